"""The user's folder on sys.path, and the late imports that must not look there."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_FOLDER = ""
"""The working directory as Python's own prompt has it on sys.path: wherever the process is at the moment."""


def add_user_folder() -> None:
    """Let cells import what lies in the working directory.

    The kernel starts with `python -P`, without it, so that a user's `queue.py` is not imported by our start.
    """
    if _FOLDER not in sys.path:
        sys.path.insert(0, _FOLDER)


@contextmanager
def without_user_folder() -> Generator[None]:
    """Import in this context what the kernel itself needs late: a user's `decimal.py` is not found."""
    if _FOLDER not in sys.path:
        yield
        return
    place = sys.path.index(_FOLDER)
    del sys.path[place]
    try:
        yield
    finally:
        sys.path.insert(place, _FOLDER)
