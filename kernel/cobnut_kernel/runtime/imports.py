"""The user's folder on sys.path, and the late imports that must not look there.

sys.path itself stays as it is: the user's code may import something of his own in another thread meanwhile. What a
thread asks for here holds for that thread alone.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from enum import Enum
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager
    from importlib.machinery import ModuleSpec

_FOLDER = ""
"""The working directory as Python's own prompt has it on sys.path: wherever the process is at the moment."""


class _Search(Enum):
    """Where a thread looks for a module."""

    WITHOUT = "not in the user's folder"
    LAST = "in the user's folder after all others"


_here = threading.local()


class _Finder:
    """Finds modules, before Python's own finders, for the threads that have asked for another order."""

    def find_spec(self, name: str, path: object = None, target: Any = None) -> ModuleSpec | None:
        """Find a module outside of the user's folder.

        Raises:
            ModuleNotFoundError: it is nowhere else, and this thread must not look there.
        """
        search = getattr(_here, "search", None)
        if search is None or path is not None or _FOLDER not in sys.path:
            return None
        for finder in list(sys.meta_path):
            if finder is not self and (spec := _find(finder, name, target)) is not None:
                return spec
        if search is _Search.WITHOUT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


_finder = _Finder()


def _find(finder: Any, name: str, target: Any) -> ModuleSpec | None:
    if finder is PathFinder:
        return PathFinder.find_spec(name, [folder for folder in sys.path if folder != _FOLDER], target)
    find_spec = getattr(finder, "find_spec", None)
    return None if find_spec is None else find_spec(name, None, target)


def add_user_folder() -> None:
    """Let cells import what lies in the working directory.

    The kernel starts with `python -P`, without it, so that a user's `queue.py` is not imported by our start.
    """
    if _FOLDER not in sys.path:
        sys.path.insert(0, _FOLDER)


@contextmanager
def _searching(search: _Search) -> Generator[None]:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # pyright: ignore[reportArgumentType] - it has what a finder needs
    before = getattr(_here, "search", None)
    _here.search = search
    try:
        yield
    finally:
        _here.search = before


def without_user_folder() -> AbstractContextManager[None]:
    """Import in this context what the kernel itself needs late: a user's `decimal.py` is not found."""
    return _searching(_Search.WITHOUT)


def user_folder_last() -> AbstractContextManager[None]:
    """Import in this context what both may need: a user's `decimal.py` hides no other, his `mine.py` is found."""
    return _searching(_Search.LAST)
