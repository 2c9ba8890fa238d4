"""Threads beside the cells, for what may run the user's code, and may take for ever.

Laws of the file:

* Who waits for an answer waits no longer than it said. What takes longer is left to its thread, which has some seconds
  more, since it may be filling a cache; then it is stopped, if it runs bytecode.
* There is a limit to such threads. While all of them hang, nothing that may hang is begun.
* These threads show no warnings and do not touch the list of warning filters, which is the whole process's.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import deque
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cobnut_kernel.runtime.imports import user_folder_last, without_user_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

T = TypeVar("T")

DEADLINE = 0.3
"""Seconds that an answer may take before it is given without looking at live objects."""

PATIENCE = 5.0
"""Seconds that a thread may go on with what came too late."""

THREADS = 4
"""How many threads there may be: one that works, and those that hang."""

_log = logging.getLogger(__name__)
_here = threading.local()


class _Stopped(BaseException):
    """Ends what a thread was left behind with."""


class _Attempt(Generic[T]):
    """A call on its way: who asked waits for `done`."""

    def __init__(self, call: Callable[[], T], context: Context) -> None:
        self._call = call
        self._context = context
        self.done = threading.Lock()
        self.done.acquire()
        self.values: list[T] = []

    def perform(self) -> None:
        try:
            self.values.append(self._context.run(self._call))
        except _Stopped:
            raise
        except BaseException:  # the user's code may raise what it likes, SystemExit too
            _log.debug("An attempt beside the cells failed", exc_info=True)


class _Worker:
    """A thread that makes one attempt after the other."""

    def __init__(self, idle: deque[_Worker]) -> None:
        self._idle = idle
        self._attempts: SimpleQueue[_Attempt[Any] | None] = SimpleQueue()
        self._current: _Attempt[Any] | None = None
        self._changing = threading.Lock()
        self._ending: bool = False
        self.thread = threading.Thread(target=self._serve, name="cobnut-aside", daemon=True)
        for name in ("pydev_do_not_trace", "is_pydev_daemon_thread"):  # a debugger neither shows nor stops it
            setattr(self.thread, name, True)
        self.thread.start()

    def put(self, attempt: _Attempt[Any] | None) -> None:
        """Make an attempt; None ends the thread."""
        self._attempts.put(attempt)

    def stop(self, attempt: _Attempt[Any]) -> None:
        """Raise an exception where the thread is, if it still makes this attempt; the thread ends after it."""
        with without_user_folder():
            import ctypes  # here: hardly ever needed
        with self._changing:
            if self._current is attempt and self.thread.ident is not None:
                self._ending = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.thread.ident), ctypes.py_object(_Stopped)
                )

    def _serve(self) -> None:
        _here.aside = True
        with user_folder_last(), suppress(_Stopped):
            while not self._ending and (attempt := self._attempts.get()) is not None:
                self._current = attempt
                attempt.perform()
                with self._changing:
                    self._current = None
                    if not self._ending:
                        self._idle.append(self)
                attempt.done.release()
                del attempt  # it holds what was found


class Aside:
    """Makes calls in threads of its own, each within a time."""

    def __init__(self, threads: int = THREADS, patience: float = PATIENCE) -> None:
        self._limit = threads
        self._patience = patience
        self._idle: deque[_Worker] = deque()
        self._workers: list[_Worker] = []

    def run(self, call: Callable[[], T], instead: Callable[[], T], seconds: float = DEADLINE) -> T:
        """Return what a call returns, or what another one does instead if it fails or is not done in time."""
        worker = self._worker()
        if worker is None:
            return instead()
        _show_no_warnings()
        attempt = _Attempt(call, copy_context())
        worker.put(attempt)
        if not attempt.done.acquire(timeout=seconds):
            self._leave(worker, attempt)
            return instead()
        return attempt.values[0] if attempt.values else instead()

    def begin(self, call: Callable[[], object]) -> None:
        """Make a call that nobody waits for; nothing happens while all threads are taken."""
        worker = self._worker()
        if worker is not None:
            worker.put(_Attempt(call, copy_context()))

    def close(self) -> None:
        """End the threads that do not hang."""
        while self._idle:
            self._idle.pop().put(None)

    @property
    def threads(self) -> list[threading.Thread]:
        """The threads that live, those that hang too."""
        return [worker.thread for worker in self._workers if worker.thread.is_alive()]

    def _worker(self) -> _Worker | None:
        while self._idle:
            worker = self._idle.pop()  # the one that worked last: what it needs is at hand
            if worker.thread.is_alive():
                return worker
        self._workers = [worker for worker in self._workers if worker.thread.is_alive()]
        if len(self._workers) >= self._limit:
            return None
        self._workers.append(_Worker(self._idle))
        return self._workers[-1]

    def _leave(self, worker: _Worker, attempt: _Attempt[Any]) -> None:
        timer = threading.Timer(self._patience, worker.stop, (attempt,))
        timer.name, timer.daemon = "cobnut-aside-limit", True
        timer.start()


# ── what modules must not do to the whole process from here ─────────────────────────────────────────────────────────


def is_aside() -> bool:
    """Whether the running thread is one of these."""
    return getattr(_here, "aside", False)


class _Caught:
    """A `warnings.catch_warnings` that catches nothing, since nothing is shown."""

    def __enter__(self) -> list[Any]:
        return []

    def __exit__(self, *_: object) -> None:
        pass


class _Warnings:
    """The module `warnings` as others use it here: filters are set, and restored, in other threads only.

    `catch_warnings` puts back the list that it found: two threads in it leave the process with the wrong one.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def catch_warnings(self, **options: Any) -> Any:
        return _Caught() if is_aside() else warnings.catch_warnings(**options)

    def simplefilter(self, *args: Any, **options: Any) -> None:
        if not is_aside():
            warnings.simplefilter(*args, **options)


class _System:
    """The module `sys` as others use it here: sys.path is read, never replaced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    @property
    def path(self) -> list[str]:
        return sys.path

    @path.setter
    def path(self, _path: list[str]) -> None:
        pass


class _ShowElsewhere:
    """Shows a warning as `warnings` does, but none of these threads'."""

    def __init__(self, show: Callable[[Any], None]) -> None:
        self._show = show

    def __call__(self, message: Any) -> None:
        if not is_aside():
            self._show(message)


def _show_no_warnings() -> None:
    """Let `warnings` show none of these threads'; whoever records warnings just now takes this back when he ends."""
    show = vars(warnings)["_showwarnmsg_impl"]
    if not isinstance(show, _ShowElsewhere):
        warnings.__dict__["_showwarnmsg_impl"] = _ShowElsewhere(show)


def keep_to_itself(*modules: ModuleType) -> None:
    """Let modules that run in these threads change nothing that all threads share: filters of warnings, sys.path."""
    for module in modules:
        if vars(module).get("warnings") is warnings:
            module.__dict__["warnings"] = _Warnings()
        if module.__name__ == "jedi.inference.compiled.access" and vars(module).get("sys") is sys:
            module.__dict__["sys"] = _System()
