"""Interruptible versions of the calls that block, for threads that run cells.

A signal ends what blocks in the main thread; nothing does so in another one. So there, while it runs cells, these
calls wait in a way that an interrupt can end: `time.sleep`, all that stands on `threading.Condition` (Event,
Semaphore, Barrier, `queue.Queue`, `Future.result`, `concurrent.futures.wait`), `Thread.join`, `os.system`, and
`subprocess` with all that stands on `Popen.wait` and `communicate`. Every other thread takes the original's way.

Laws of the file:

* What an interrupt ends is a lock of our own, so that it ends at once; where the original has to wait, it does so in
  slices.
* An interrupt and a notification never cost each other: whoever releases the lock first has ended the wait.
"""

from __future__ import annotations

import operator
import os
import select
import selectors
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.interruption.running import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cobnut_kernel.runtime.interruption.running import CellThread

_SLICE = 0.02
"""Seconds until what waits in the original's way looks whether it is interrupted."""

_LONG = 1e6
"""Seconds that stand for no limit, where only a call with a limit can be interrupted; poll takes no more."""

_sleep = time.sleep
_wait = threading.Condition.wait
_join = threading.Thread.join
_system: Callable[[Any], int] = os.system  # pyright: ignore[reportDeprecated] - users call it
_popen: Any = subprocess.Popen
_wait_for_child = _popen._wait
_communicate = _popen.communicate


def make_interruptible() -> None:
    """Put these versions in the originals' places, for the whole process; once is enough."""
    time.sleep = sleep
    threading.Condition.wait = wait
    threading.Thread.join = join
    os.system = system
    _popen._wait = wait_for_child
    _popen.communicate = communicate
    module: Any = subprocess
    module._PopenSelector = PipeSelector


def _cell_thread() -> CellThread | None:
    """Return the thread one is in, where it runs cells and is not the main one, which signals reach."""
    thread = HERE.thread
    return None if thread is None or thread.is_main else thread


@contextmanager
def _waking(thread: CellThread, wake: Callable[[], object]) -> Generator[None]:
    """Say how the wait that follows is ended. What is due already is raised.

    Finalizers may run in the middle of a wait and wait themselves, so the one before comes back.
    """
    before, thread.wake = thread.wake, wake
    try:
        thread.strike()
        yield
    finally:
        thread.wake = before


def _in_slices(thread: CellThread, timeout: float | None, wait_for: Callable[[float], bool]) -> bool:
    """Wait slice by slice until `wait_for` is true, the time is up (False), or an interrupt is due."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        rest = _SLICE if deadline is None else deadline - time.monotonic()
        with _waking(thread, _do_nothing):  # what is raised from outside would confuse the original
            if wait_for(max(min(rest, _SLICE), 0)):
                thread.strike()  # a child may have ended because of the same interrupt
                return True
        if rest <= 0:
            return False


def _do_nothing() -> None:
    """Stand for a wake-up where the next slice is near."""


class _Alarm:
    """A lock that one waits for, and that a timer, a notification or an interrupt releases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.notified: bool = False

    def wait(self, timeout: float) -> bool:
        """Wait for at most so many seconds, for ever where they are negative; False where the time was up."""
        return self._lock.acquire(True, timeout)

    def interrupt(self) -> None:
        """End the wait because of an interrupt; once is enough."""
        with suppress(RuntimeError):
            self._lock.release()

    def release(self) -> None:
        """End the wait as `Condition.notify` does.

        Raises:
            RuntimeError: it has ended already, so that `notify` turns to the next waiter.
        """
        self._lock.release()
        self.notified = True


@wraps(_sleep)
def sleep(seconds: Any, /) -> None:
    """Sleep; an interrupt ends it at once."""
    thread = _cell_thread()
    if thread is None:
        return _sleep(seconds)
    try:
        limit = float(seconds) if isinstance(seconds, float) else operator.index(seconds)
    except TypeError:
        return _sleep(seconds)  # which says what is wrong with it
    if not 0 < limit <= threading.TIMEOUT_MAX:
        return _sleep(seconds)
    sys.audit("time.sleep", seconds)
    deadline = time.monotonic() + limit
    while limit > 0:
        alarm = _Alarm()
        with _waking(thread, alarm.interrupt):
            alarm.wait(limit)
        thread.strike()
        limit = deadline - time.monotonic()
    return None


@wraps(_wait)
def wait(self: Any, timeout: float | None = None) -> bool:
    """Wait until notified; an interrupt ends it at once, when the condition's lock can be had again."""
    thread = _cell_thread()
    if thread is None:
        return _wait(self, timeout)
    if not self._is_owned():
        raise RuntimeError("cannot wait on un-acquired lock")
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if _wait_once(self, thread, timeout):
            return True
        thread.strike()
        if deadline is not None:
            timeout = deadline - time.monotonic()
            if timeout <= 0:
                return False


def _wait_once(condition: Any, thread: CellThread, timeout: float | None) -> bool:
    """Wait until notified (True), interrupted, or the time is up."""
    alarm = _Alarm()
    with _waking(thread, alarm.interrupt):
        condition._waiters.append(alarm)
        state = condition._release_save()
        try:
            alarm.wait(-1 if timeout is None else max(timeout, 0))
        finally:
            condition._acquire_restore(state)
            if not alarm.notified:
                with suppress(ValueError):
                    condition._waiters.remove(alarm)
    return alarm.notified


@wraps(_join)
def join(self: threading.Thread, timeout: float | None = None) -> None:
    """Wait for a thread's end; an interrupt ends it within a slice."""
    thread = _cell_thread()
    if thread is None:
        return _join(self, timeout)

    def ended(limit: float) -> bool:
        _join(self, limit)
        return not self.is_alive()

    _in_slices(thread, timeout, ended)
    return None


@wraps(_system)
def system(command: Any) -> int:
    """Run a command of the system; an interrupt reaches it and ends the wait."""
    if _cell_thread() is None:
        return _system(command)
    sys.audit("os.system", command)
    with subprocess.Popen(command, shell=True, close_fds=False) as process:
        code = process.wait()
    return -code if code < 0 else code << 8


system.__module__ = "os"  # where it is looked for when it is pickled; the original's is posix


@wraps(_wait_for_child)
def wait_for_child(self: Any, timeout: float | None) -> Any:
    """Wait for a child process; an interrupt ends it within a slice."""
    thread = _cell_thread()
    if thread is None or self.returncode is not None:
        return _wait_for_child(self, timeout)

    def ended(limit: float) -> bool:
        if limit > 0:
            _wait_for_exit(self.pid, limit)
        with suppress(subprocess.TimeoutExpired):
            _wait_for_child(self, 0)
        return self.returncode is not None

    if not _in_slices(thread, timeout, ended):
        raise subprocess.TimeoutExpired(self.args, timeout or 0)
    return self.returncode


def _wait_for_exit(pid: int, limit: float) -> None:
    """Wait until a process has ended, or the time is up; where the system has no pidfd, for a millisecond or two."""
    if not hasattr(os, "pidfd_open"):
        _sleep(min(limit, 0.002))
        return
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(limit * 1000)
        finally:
            os.close(fd)


@wraps(_communicate)
def communicate(self: Any, input: Any = None, timeout: float | None = None) -> Any:  # noqa: A002 - its name
    """Exchange data with a child process; an interrupt ends it within a slice."""
    if timeout is not None or _cell_thread() is None:
        return _communicate(self, input, timeout)
    while True:
        try:  # without a limit it may read from one pipe alone, and nothing could end that
            return _communicate(self, input, _LONG)
        except subprocess.TimeoutExpired:
            input = None  # noqa: A001 - what was left of it is sent on


class PipeSelector(selectors.PollSelector):
    """The selector of `communicate`, whose waits an interrupt ends within a slice."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Wait until a pipe is ready."""
        thread = _cell_thread()
        if thread is None:
            return super().select(timeout)
        ready: list[Any] = []

        def is_ready(limit: float) -> bool:
            ready.extend(super(PipeSelector, self).select(limit))
            return bool(ready)

        _in_slices(thread, timeout, is_ready)
        return ready
