"""What completes a name: the matches, and those that are found without running any code of the user's."""

from __future__ import annotations

import builtins
import keyword
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.introspection.expressions import Before, Origin, dotted, module_begun, read
from cobnut_kernel.runtime.introspection.members import MISSING, attribute, kind, members

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Namespace = Mapping[str, Any]

UNKNOWN = "<unknown>"
"""The type of a completion that nobody has inferred, as IPython names it."""


@dataclass(frozen=True)
class Match:
    """A completion: the text that takes the place of the code from start to end, in code points."""

    start: int
    end: int
    text: str
    type: str = UNKNOWN
    signature: str = ""


@dataclass(frozen=True)
class Found:
    """A name that completes a prefix; `held` is what it stands for, as the dictionary has it."""

    prefix: str
    text: str
    type: str
    held: Any = MISSING

    @property
    def _order(self) -> tuple[bool, bool, str]:
        return self.text.startswith("__"), self.text.startswith("_"), self.text.lower()

    def __lt__(self, other: Found) -> bool:
        return self._order < other._order

    def match(self, cursor: int, signature: str = "") -> Match:
        """Return the completion at a cursor that stands behind the prefix."""
        return Match(cursor - len(self.prefix), cursor, self.text, self.type, signature)


def aligned(code: str, matches: Sequence[Match]) -> list[Match]:
    """Let all matches replace the same part of the code, each text once, where one's type is known that one."""
    if not matches:
        return []
    start, end = min(match.start for match in matches), max(match.end for match in matches)
    found: dict[str, Match] = {}
    for match in matches:
        text = code[start : match.start] + match.text + code[match.end : end]
        if text not in found or (found[text].type == UNKNOWN and match.type != UNKNOWN):
            found[text] = replace(match, start=start, end=end, text=text)
    return list(found.values())


# ── what the namespace and its objects have ─────────────────────────────────────────────────────────────────────────


def attributes(prefix: str, value: Any, names: Iterable[str], hide: int) -> list[Found]:
    """Return the attributes that complete a prefix.

    Without a prefix, `hide` says whether private names are left out: 0 none, 1 those with two underscores, 2 all.
    """
    held = members(value)
    hidden = ("", "__", "_")[hide] if not prefix else ""
    return sorted(
        Found(prefix, name, kind(held[name]) if name in held else "instance", held.get(name, MISSING))
        for name in names
        if name.startswith(prefix) and name.isidentifier() and not (hidden and name.startswith(hidden))
    )


def names(before: Before, namespaces: Iterable[Namespace], arguments: Iterable[str] = ()) -> list[Found]:
    """Return what completes a bare name: arguments, what the namespaces and the builtins hold, the text, keywords."""
    prefix = before.prefix
    found = {name: Found(prefix, name, "keyword") for name in keyword.kwlist}
    found.update((name, Found(prefix, name, "statement")) for name in before.names)
    for namespace in (vars(builtins), *reversed(list(namespaces))):
        found.update(
            (name, Found(prefix, name, kind(value), value))
            for name, value in namespace.items()
            if type(name) is str and name.startswith(prefix)
        )
    given = [Found(prefix, f"{name}=", "param") for name in set(arguments) - before.arguments]
    return sorted(found for found in (*found.values(), *given) if found.text.startswith(prefix))


def imported(origin: Origin) -> Any:
    """Return what an import statement would bind, if its module is loaded; else MISSING."""
    module = sys.modules.get(origin.module)
    if module is None or origin.name is None:
        return MISSING if module is None else module
    return attribute(module, origin.name)


def modules(begun: str) -> list[Found]:
    """Return what completes the last part of a module's name: what is loaded, and Python's own modules."""
    prefix = begun.rpartition(".")[2]
    known = {*sys.modules, *sys.stdlib_module_names}
    parts = {name[len(begun) - len(prefix) :].partition(".")[0] for name in known if name.startswith(begun)}
    hidden = () if prefix else ("_",)
    return sorted(
        Found(prefix, part, "module") for part in parts if part.isidentifier() and not part.startswith(hidden)
    )


def static(code: str, cursor: int, namespaces: Sequence[Namespace], hide: int = 2) -> list[Match]:
    """Complete without running any code of the user's, and without inferring anything."""
    before = read(code[:cursor])
    if before is None:
        begun = module_begun(code[:cursor])
        found = [] if begun is None else modules(begun)
    elif before.source is not None:
        module = sys.modules.get(before.source)
        found = [] if module is None else attributes(before.prefix, module, members(module), hide)
    elif before.expression is not None:
        value = _value(before, namespaces)
        found = [] if value is MISSING else attributes(before.prefix, value, members(value), hide)
    else:
        found = names(before, namespaces)
    return [name.match(cursor) for name in found]


def _value(before: Before, namespaces: Sequence[Namespace]) -> Any:
    root, *path = dotted(before.expression or "") or [""]
    if root in before.imports:
        value = imported(before.imports[root])
    else:
        value = MISSING if root in before.rebound else look_up(root, namespaces)
    for name in path:
        value = value if value is MISSING else attribute(value, name)
    return value


def look_up(name: str, namespaces: Sequence[Namespace]) -> Any:
    """Return what a name stands for in the first namespace that has it, or in the builtins; MISSING if in none."""
    return next((space[name] for space in (*namespaces, vars(builtins)) if name in space), MISSING)
