"""What one thread raises in another: one exception at a time in the whole process, and only where it was seen to stand.

CPython up to 3.12 has one flag for the exceptions of all threads. Who takes his own lowers it, and another's comes
later, at any place: where an import, say, has just taken the lock that all imports need. So what has not arrived is
taken back before another one is raised; whoever wanted it raises it again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.interruption import frames

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Generator

yield_gil: Final = time.sleep
"""The real one: `time.sleep` itself may have become interruptible."""

turn: threading.Lock = threading.Lock()
"""Is held by who looks where a thread stands and raises something there."""

_ALONE = 0.05
"""Seconds in which what was raised in one thread is to arrive, before it is given up for another one."""

_SLICE = 0.001
"""Seconds until a thread that computes lets go of the GIL for one that would look where it is."""


class Target(Protocol):
    """A thread in which something is raised.

    Attributes:
        pending: whether it is on its way.
    """

    @property
    def ident(self) -> int:
        """The id of the thread."""
        ...

    pending: bool

    def give_up(self) -> None:
        """Take back what is on its way, by `take_back`; from another thread."""
        ...


def _make_turn() -> None:
    """Take a new lock in a forked child: the thread that held the old one is not there."""
    global turn
    turn = threading.Lock()


os.register_at_fork(after_in_child=_make_turn)

_latest: Target | None = None
_raised: float = 0.0


@contextmanager
def fresh_slice() -> Generator[None]:
    """Get the GIL anew: what follows is likely over before another thread runs."""
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(min(_SLICE, interval))
        yield_gil(0)
        yield
    finally:
        sys.setswitchinterval(interval)


def raise_where_it_stands(target: Target, frame: types.FrameType, error: type[BaseException]) -> bool:
    """Raise an exception in a thread that stands in a frame; False where it does so no more, or must wait.

    A thread whose system has little time for it loses the GIL in the midst of this, and the other goes on from where
    it may be interrupted to where it must not: then the exception is taken back. It is where it was seen, or gone.
    """
    global _latest, _raised
    place = frame.f_lasti
    if not _makes_way(target):
        return False
    target.pending, _latest, _raised = True, target, time.monotonic()
    _set_exception()(target.ident, error)
    now = frames.of_thread(target.ident)
    if target.pending and not (now is frame and frame.f_lasti == place):
        take_back(target)
        return False
    return True


def take_back(target: Target) -> None:
    """See to it that nothing that was raised in a thread is still on its way there."""
    _set_exception()(target.ident, None)
    target.pending = False


def _makes_way(target: Target) -> bool:
    """Tell whether nothing is on its way to another thread; what has been for long is given up."""
    other = _latest
    if other is None or other is target or not other.pending:
        return True
    if time.monotonic() - _raised < _ALONE:
        return False
    other.give_up()
    return True


@cache
def _set_exception() -> Callable[[int, type[BaseException] | None], object]:
    """Return CPython's function that raises in another thread; with None it takes back what was not raised yet."""
    with without_user_folder():
        import ctypes
    function: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc
    function.argtypes = ctypes.c_ulong, ctypes.py_object

    def raise_in(ident: int, error: type[BaseException] | None) -> object:
        return function(ident, ctypes.py_object() if error is None else error)

    return raise_in
