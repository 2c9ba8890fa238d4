"""The namespace of a subshell: the main one, a private one over it, or a copy."""

from __future__ import annotations

import builtins
from enum import StrEnum
from types import ModuleType
from typing import Any


class NamespaceKind(StrEnum):
    """What a subshell's cells see and change."""

    SHARED = "shared"
    """The main shell's names: what one assigns, all see (JEP 91)."""

    PRIVATE = "private"
    """Names of its own over the main shell's, which it reads and does not change."""

    SNAPSHOT = "snapshot"
    """A copy of the main shell's names as they are now; objects are not copied."""


class _ReadThrough(dict[str, Any]):
    """The main shell's names in the place of the builtins, and behind them the builtins.

    Python looks a global name up in the globals and then in `__builtins__`, in functions, classes and comprehensions
    alike; a `__missing__` of the globals themselves is passed over in class bodies. What Python takes out of the
    builtins by itself (`__import__`, say) it reads as from a plain dict, so that lies here.
    """

    def __init__(self, main: dict[str, Any]) -> None:
        super().__init__({name: value for name, value in vars(builtins).items() if name.startswith("__")})
        self._main = main

    def __missing__(self, name: str) -> Any:
        """Look the name up where the main shell's cells would."""
        try:
            return self._main[name]
        except KeyError:
            return vars(builtins)[name]


def make_namespace(kind: NamespaceKind, main: ModuleType) -> ModuleType:
    """Return the module in whose namespace a subshell's cells run."""
    if kind is NamespaceKind.SHARED:
        return main
    module = ModuleType("__main__", main.__doc__)
    if kind is NamespaceKind.SNAPSHOT:
        module.__dict__.update(main.__dict__)
    else:
        module.__dict__["__builtins__"] = _ReadThrough(main.__dict__)
    return module
