"""Completion, inspection, completeness and history: what a front end asks about code, answered while cells run.

The methods are for one thread, which waits for each answer no longer than `aside` says. Everything that may run the
user's code, or take long, is done in another one, by objects of its own: IPython's completer and inspector serve one
thread only (ipykernel #261). What comes too late is replaced by what can be told without running anything.
"""

from __future__ import annotations

import builtins
import codeop
import threading
from functools import partial
from time import monotonic
from tokenize import TokenError
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary, ref

from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.introspection.aside import DEADLINE, Aside, keep_to_itself
from cobnut_kernel.runtime.introspection.expressions import dotted
from cobnut_kernel.runtime.introspection.inputs import HistoryRequest, Inputs
from cobnut_kernel.runtime.introspection.matches import Match, aligned, look_up, static
from cobnut_kernel.runtime.introspection.members import MISSING, attribute, is_class, members
from cobnut_kernel.runtime.shells.namespace import _ReadThrough

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from IPython.core.interactiveshell import InteractiveShell
    from IPython.core.oinspect import Inspector

    from cobnut_kernel.runtime.introspection.completion import Finder

_TYPES = "_jupyter_types_experimental"
"""The key of the metadata with types and signatures, as ipykernel names it and JupyterLab reads it."""

JEDI_AFTER = 3.0
"""Seconds without a question, after the first completion, until jedi is made ready: while that takes the interpreter,
an answer takes ten times as long."""

_TYPING = 0.8
"""The part of the time that may go by until the types of completions are no longer inferred."""


class Language:
    """Answers requests about code.

    Args:
        deadline: seconds that an answer may take before it is given without looking at live objects.
        aside: the threads.
        jedi_after: seconds without a question, after the first completion, until jedi is made ready. It takes 0.4 s
            and 35 MB, which only those pay who complete; None waits for the first completion that needs it, which then
            comes too late.
    """

    def __init__(
        self, deadline: float = DEADLINE, aside: Aside | None = None, jedi_after: float | None = JEDI_AFTER
    ) -> None:
        self._deadline = deadline
        self._aside = Aside() if aside is None else aside
        self._jedi_after = jedi_after
        self._asked_at: float = 0.0
        self._timer: threading.Timer | None = None

    def close(self) -> None:
        """End the threads that do not hang."""
        self._jedi_after = None
        if self._timer is not None:
            self._timer.cancel()
        self._aside.close()

    def warm_up(self, shell: InteractiveShell, *, jedi: bool = False) -> None:
        """Import what the first answers need, in another thread, and return at once: 50 ms and 3 MB without jedi."""
        self._aside.begin(partial(self._warm_up, shell, jedi))

    # ── completion ──────────────────────────────────────────────────────────────────────────────────────────────────

    def complete(self, shell: InteractiveShell, content: dict[str, Any]) -> dict[str, Any]:
        """Answer a complete_request.

        Source: "Completion" in the Jupyter messaging specification; the types in the metadata are ipykernel's.

        Raises:
            TypeError: the code is no text, or the cursor no number.
        """
        code, cursor = _position(content)
        matches = self._aside.run(
            lambda: self._finder(shell).find(code, cursor, _namespaces(shell), _TYPING * self._deadline),
            lambda: aligned(code, static(code, cursor, [dict(space) for space in _namespaces(shell)])),
            self._deadline,
        )
        self._asked_at = monotonic()
        if self._timer is None and self._jedi_after is not None:
            self._look_later(self._jedi_after, ref(shell))
        return _complete_reply(matches, cursor)

    def _finder(self, shell: InteractiveShell) -> Finder:
        """Return this thread's completer for a shell, with the settings that the shell's has now."""
        kept = _kept_for_this_thread(shell)
        finder: Any = kept.get("finder")
        with without_user_folder():
            own = cast("Any", shell.Completer)
            if finder is None:
                from cobnut_kernel.runtime.introspection.completion import Finder

                finder = kept["finder"] = Finder(shell)
        finder.adopt(own)
        return finder

    # ── inspection ──────────────────────────────────────────────────────────────────────────────────────────────────

    def inspect(self, shell: InteractiveShell, content: dict[str, Any]) -> dict[str, Any]:
        """Answer an inspect_request.

        Source: "Introspection" in the Jupyter messaging specification; `omit_sections` is ipykernel's.

        Raises:
            TypeError: the code is no text, or the cursor no number.
        """
        code, cursor = _position(content)
        level = 1 if content.get("detail_level") else 0
        omitted = [str(section) for section in content.get("omit_sections") or ()]
        data = self._aside.run(
            lambda: self._described(shell, _name_at(code, cursor), level, omitted),
            lambda: _described_unseen(code, cursor, _namespaces(shell)),
            self._deadline,
        )
        self._asked_at = monotonic()
        return {"status": "ok", "found": bool(data), "data": data, "metadata": {}}

    def _described(self, shell: InteractiveShell, name: str, level: int, omitted: list[str]) -> dict[str, Any]:
        """Describe what a name stands for, as `name?` and `name??` do; {} if it stands for nothing.

        The shell's own method for it puts names into the builtins for a while, which cells in other threads need.
        """
        spaces = [("Interactive", space) for space in _namespaces(shell)]
        info = shell._ofind(name, cast("Any", [*spaces, ("Python builtin", vars(builtins))])) if name else None
        if info is None or not info.found:
            return {}
        bundle = self._inspector(shell)._get_info(
            info.obj, name, _formatter(shell, name), info, level, cast("Any", omitted)
        )
        if not shell.enable_html_pager:
            bundle.pop("text/html", None)
        return dict(bundle)

    def _inspector(self, shell: InteractiveShell) -> Inspector:
        kept = _kept_for_this_thread(shell)
        inspector: Any = kept.get("inspector")
        theme = shell.inspector._theme_name
        if inspector is None or inspector._theme_name != theme:
            inspector = kept["inspector"] = shell.inspector_class(
                theme_name=theme, str_detail_level=shell.object_info_string_level
            )
        inspector.mime_hooks = shell.inspector.mime_hooks
        return inspector

    # ── completeness ────────────────────────────────────────────────────────────────────────────────────────────────

    def is_complete(self, shell: InteractiveShell, content: dict[str, Any]) -> dict[str, Any]:
        """Answer an is_complete_request.

        Source: "Code completeness" in the Jupyter messaging specification.

        Raises:
            TypeError: the code is no text.
        """
        code = _code(content)
        return self._aside.run(lambda: _completeness(shell, code), lambda: {"status": "unknown"}, self._deadline)

    # ── history ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def history(self, shell: InteractiveShell, content: dict[str, Any]) -> dict[str, Any]:
        """Answer a history_request.

        Source: "History" in the Jupyter messaging specification; session 0 is this one, -1 the one before.

        Raises:
            ValueError: it asks in no known way.
            TypeError: a number is none.
        """
        request = HistoryRequest.from_content(content)
        if shell.history_manager is None:
            return {"status": "ok", "history": []}
        inputs = Inputs(shell.history_manager)
        rows = self._aside.run(lambda: inputs.find(request), lambda: inputs.find_present(request), self._deadline)
        return {"status": "ok", "history": rows}

    # ── preparation ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_later(self, seconds: float, shell: ref[InteractiveShell]) -> None:
        self._timer = threading.Timer(seconds, self._make_jedi_ready, (shell,))
        self._timer.name, self._timer.daemon = "cobnut-language", True
        self._timer.start()

    def _make_jedi_ready(self, shell: ref[InteractiveShell]) -> None:
        """Warm up with a shell that was asked; where it has gone meanwhile, the next one that is asked does it.

        Who is asked again and again just now is left alone: it is done in the first pause.
        """
        living, pause = shell(), self._jedi_after
        if pause is None:
            return
        if (left := self._asked_at + pause - monotonic()) > 0:
            self._look_later(left, shell)
        elif living is None:
            self._timer = None
        else:
            self.warm_up(living, jedi=True)

    def _warm_up(self, shell: InteractiveShell, jedi: bool) -> None:
        finder = self._finder(shell)
        finder.find("print.__n", len("print.__n"), [{}], 1)
        self._described(shell, "print", 0, [])
        _completeness(shell, "if 1:")
        if jedi and finder.use_jedi:
            code = "text = str(1)\ntext.isal"
            finder.find(code, len(code), [{}], 1)


def _kept_for_this_thread(shell: InteractiveShell) -> dict[str, Any]:
    """Return what a shell keeps for the running thread: it goes with the shell, to which it leads back."""
    attributes = cast("dict[str, Any]", shell.__dict__)
    kept: WeakKeyDictionary[threading.Thread, dict[str, Any]]
    kept = attributes.setdefault("_kept_by_thread", WeakKeyDictionary())
    return kept.setdefault(threading.current_thread(), {})


def _namespaces(shell: InteractiveShell) -> list[Mapping[str, Any]]:
    """Return the user's namespace, and the one that it reads through to, if it does."""
    behind = cast("Any", shell.user_ns.get("__builtins__"))
    return [shell.user_ns, behind._main] if isinstance(behind, _ReadThrough) else [shell.user_ns]


def _code(content: dict[str, Any]) -> str:
    code = content.get("code")
    if not isinstance(code, str):
        raise TypeError("Such a request needs its 'code', as text.")
    return code


def _position(content: dict[str, Any]) -> tuple[str, int]:
    """Return the code and where in it the cursor is; 0 is its beginning, none its end."""
    code, cursor = _code(content), content.get("cursor_pos")
    if cursor is None:
        return code, len(code)
    if not isinstance(cursor, int):
        raise TypeError(f"The 'cursor_pos' must be a number of code points, not {cursor!r}.")
    return code, min(max(cursor, 0), len(code))


def _complete_reply(matches: list[Match], cursor: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "matches": [match.text for match in matches],
        "cursor_start": matches[0].start if matches else cursor,
        "cursor_end": matches[0].end if matches else cursor,
        "metadata": {
            _TYPES: [
                {"start": m.start, "end": m.end, "text": m.text, "type": m.type, "signature": m.signature}
                for m in matches
            ]
        },
    }


def _name_at(code: str, cursor: int) -> str:
    from IPython.utils.tokenutil import token_at_cursor

    return token_at_cursor(code, cursor)


def _formatter(shell: InteractiveShell, name: str) -> Any:
    if not shell.sphinxify_docstring:
        return None
    from IPython.core import interactiveshell

    sphinxify: Any = vars(interactiveshell)["sphinxify"]  # it carries no types
    return sphinxify(shell.object_inspect(name))


def _described_unseen(code: str, cursor: int, namespaces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe what a name stands for without asking it; {} if it stands for nothing."""
    try:
        root, *path = dotted(_name_at(code, cursor)) or [""]
    except (SyntaxError, TokenError):
        return {}
    value = look_up(root, namespaces)
    for part in path:
        value = value if value is MISSING else attribute(value, part)
    if value is MISSING:
        return {}
    text = value.__doc__ if isinstance(value, FunctionType) else members(value).get("__doc__")
    described = f"Type: {type.__dict__['__name__'].__get__(value if is_class(value) else type(value))}"
    return {"text/plain": f"{described}\nDocstring:\n{text}" if type(text) is str else described}


def _completeness(shell: InteractiveShell, code: str) -> dict[str, Any]:
    from IPython.core import inputtransformer2

    keep_to_itself(inputtransformer2, codeop)
    status, indent = shell.input_transformer_manager.check_complete(code)
    return {"status": status, "indent": " " * (indent or 0)} if status == "incomplete" else {"status": status}
