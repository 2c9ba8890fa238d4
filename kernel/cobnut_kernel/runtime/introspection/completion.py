"""IPython's completer, for a thread of its own, that looks at live objects before it infers anything."""

from __future__ import annotations

import inspect
import sys
import time
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from IPython.core import completer
from IPython.core.completer import IPCompleter, cursor_to_position, position_to_cursor
from IPython.utils.dir2 import dir2

from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.introspection.aside import keep_to_itself
from cobnut_kernel.runtime.introspection.expressions import Before, read
from cobnut_kernel.runtime.introspection.matches import UNKNOWN, Found, Match, aligned, attributes, imported, names
from cobnut_kernel.runtime.introspection.members import MISSING, bound, members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from IPython.core.interactiveshell import InteractiveShell

keep_to_itself(completer)

_JEDI = "IPCompleter.jedi_matcher"

_SIGNATURES = 64
"""How many completions may be for their signatures to be sent: nobody reads those of a hundred, which cost 5 ms."""

_OTHERS = 500
"""How many completions are sent beside those of the language itself, as IPython has it."""

_SORTING_KEY: Callable[[str], Any] = vars(completer)["completions_sorting_key"]  # it carries no types

_SETTINGS: list[str] = sorted(IPCompleter.class_trait_names(config=True), key=lambda name: name != "greedy")
"""The settings of a completer; `greedy` comes first, for it sets others."""


class Finder(IPCompleter):
    """A shell's completer for one thread.

    A name that the namespace knows, or an attribute of what it holds, is answered from there in a millisecond. Jedi,
    which IPython would ask, takes ten to a hundred, and is asked about the rest.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        # A proxy: who keeps finders by shell must not keep the shells.
        super().__init__(shell=weakref.proxy(shell), namespace={}, global_namespace={})
        self._jedi_fails: bool = False

    def adopt(self, other: IPCompleter) -> None:
        """Take the settings of the shell's own completer, which the user configures, and what extensions gave it."""
        for name in _SETTINGS:
            value = getattr(other, name)
            if getattr(self, name) != value:
                setattr(self, name, value)
        self.custom_matchers = other.custom_matchers
        self.custom_completers = other.custom_completers
        self.dict_keys_only = other.dict_keys_only
        self.use_jedi = other.use_jedi and not self._jedi_fails

    def find(self, code: str, cursor: int, namespaces: Iterable[Mapping[str, Any]], seconds: float) -> list[Match]:
        """Return the completions at a cursor, the best first; types are inferred for so many seconds.

        Args:
            code: the text of the cell.
            cursor: where the cursor is, in code points.
            namespaces: the user's own, and one that it reads through to; they are copied, since cells change them.
            seconds: how long the types of what was found may be inferred.
        """
        local, *outer = [dict(namespace) for namespace in namespaces]
        self.namespace, self.global_namespace = local, outer[0] if outer else {}
        try:
            return aligned(code, self._matches(code, cursor, time.monotonic() + seconds))
        finally:  # nothing of the user's is kept alive by us
            self.namespace, self.global_namespace = {}, {}

    def _matches(self, code: str, cursor: int, deadline: float) -> list[Match]:
        line, column = position_to_cursor(code, cursor)
        results = cast("dict[str, Any]", self._complete(full_text=code, cursor_line=line, cursor_pos=column))
        if self._jedi_fails and self.use_jedi:  # it has been found out just now
            self.use_jedi = False
            return self._matches(code, cursor, deadline)
        language = list(results.pop(_JEDI, {"completions": ()})["completions"])
        return [*_of_language(language, cursor, deadline), *_of_others(results.values(), code[:cursor])]

    # ── what stands in for jedi ─────────────────────────────────────────────────────────────────────────────────────

    def _jedi_matches(self, cursor_column: int, cursor_line: int, text: str) -> Any:
        before = read(text[: cursor_to_position(text, cursor_line, cursor_column)])
        found = None if before is None else self._live(before)
        if found is not None:
            return found
        if not self._has_jedi():
            return []
        infer = cast("Callable[..., Iterable[Any]]", super()._jedi_matches)
        return list(infer(cursor_column, cursor_line, text))

    def _live(self, before: Before) -> list[Found] | None:
        """Complete from the live objects; None where they cannot tell."""
        if before.source is not None:
            module = sys.modules.get(before.source)
            return None if module is None else self._attributes(before.prefix, module)
        if before.roots & before.rebound or not self._import(before):
            return None
        if before.expression is not None:
            value = self._evaluate(before.expression)
            return None if value is MISSING else self._attributes(before.prefix, value)
        callee = None if before.callee is None else self._evaluate(before.callee)
        if callee is MISSING:
            return None
        arguments = () if callee is None else self._arguments(callee)
        return names(before, (self.namespace, self.global_namespace), arguments)

    def _attributes(self, prefix: str, value: Any) -> list[Found]:
        found = attributes(prefix, value, _names_of(value), self.omit__names)
        return [
            Found(name.prefix, name.text, name.type, MISSING if name.held is MISSING else bound(name.held, value))
            for name in found
        ]

    def _import(self, before: Before) -> bool:
        """Bind in our copy of the namespace what the text imports and needs; say whether all of that is loaded."""
        values = {name: imported(before.imports[name]) for name in before.roots & before.imports.keys()}
        self.namespace.update(values)
        return MISSING not in values.values()

    def _evaluate(self, expression: str) -> Any:
        """Evaluate as far as the user's policy allows (`IPCompleter.evaluation`); MISSING if it does not."""
        from IPython.core.guarded_eval import EvaluationContext, guarded_eval

        context = EvaluationContext(
            globals=self.global_namespace,
            locals=self.namespace,
            evaluation=cast("Any", self.evaluation),
            auto_import=self._auto_import,
            policy_overrides=self.policy_overrides,
        )
        try:
            return cast("Any", guarded_eval(expression, context))
        except Exception:  # not allowed, or the user's code has failed
            return MISSING

    def _arguments(self, callee: Any) -> list[str]:
        try:
            return cast("list[str]", self._default_arguments(callee))
        except Exception:  # it has no signature
            return []

    def _has_jedi(self) -> bool:
        """Import jedi, once; a user's own module of that name, imported by him, leaves us without."""
        if "jedi.inference.compiled.access" not in sys.modules:
            try:
                with without_user_folder():
                    keep_to_itself(*(import_module(name) for name in _SHARING))
            except Exception:
                self._jedi_fails = True
        return not self._jedi_fails

    # ── what would import the user's modules in this thread ─────────────────────────────────────────────────────────

    def dispatch_custom_completer(self, text: str) -> list[str] | None:
        """Ask the completers that were set for a command; none that would import what jedi can read without."""
        if self.use_jedi and _needs_import(cast("str", self.line_buffer).split(" ")):
            return None
        return super().dispatch_custom_completer(text)


_SHARING = ("jedi.inference.compiled.access", "jedi.inference.docstrings", "parso.python.errors")
"""The modules of jedi that change what all threads share."""


def _names_of(value: Any) -> Iterable[str]:
    """Return the names of a value's attributes: those it says, or those it has."""
    try:
        return dir2(value)
    except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit):
        return members(value)


def _needs_import(words: list[str]) -> bool:
    """Whether IPython would import a module to complete this line; it does so in `from x import` and `import x.y`."""
    if words[0] == "from" and len(words) > 3:
        return words[1] not in sys.modules
    if words[0] in {"from", "import"} and len(words) == 2 and "." in words[1]:
        return words[1].rpartition(".")[0] not in sys.modules
    return False


def _of_language(found: list[Any], cursor: int, deadline: float) -> Iterator[Match]:
    """Turn names, found live or by jedi, into matches."""
    signed = len(found) <= _SIGNATURES
    for name in found:
        if isinstance(name, Found):
            yield name.match(cursor, _signature(name.held) if signed and name.type == "function" else "")
        else:
            begun = len(name.name_with_symbols) - len(name.complete or "")
            kind, signature = _inferred(name, signed) if time.monotonic() < deadline else (UNKNOWN, "")
            yield Match(cursor - begun, cursor, name.name_with_symbols, kind, signature)


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except Exception:  # many builtins have none
        return "(?)"


def _inferred(name: Any, signed: bool) -> tuple[str, str]:
    try:
        kind = str(name.type)
        signatures: list[Any] = name.get_signatures() if signed and kind == "function" else []
        return kind, "(" + str(signatures[0].to_string()).partition("(")[2] if signatures else ""
    except Exception:  # jedi fails on some of what it finds
        return UNKNOWN, ""


def _of_others(results: Iterable[dict[str, Any]], before: str) -> list[Match]:
    """Turn what the other matchers have found into matches, those first whose order they have chosen."""
    ordered: list[Match] = []
    sortable: list[Match] = []
    for result in results:
        fragment = result["matched_fragment"]
        if not before.endswith(fragment):
            continue
        start = len(before) - len(fragment)
        (ordered if result.get("ordered", False) else sortable).extend(
            Match(start, len(before), found.text, found.type or UNKNOWN) for found in result["completions"]
        )
    sortable.sort(key=lambda match: _SORTING_KEY(match.text))
    return (ordered + sortable)[:_OTHERS]
