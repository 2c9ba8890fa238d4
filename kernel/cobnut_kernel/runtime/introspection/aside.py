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
import time
import warnings
from collections import deque
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cobnut_kernel.runtime.imports import user_folder_last
from cobnut_kernel.runtime.interruption import frames, raising

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

T = TypeVar("T")

DEADLINE = 0.3
"""Seconds that an answer may take before it is given without looking at live objects."""

PATIENCE = 5.0
"""Seconds that a thread may go on with what came too late."""

_AGAIN = 0.05
"""Seconds between two tries to stop a thread: it may be where nothing may be raised."""

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
        self._ending: bool = False
        self.pending: bool = False
        self.thread = threading.Thread(target=self._serve, name="cobnut-aside", daemon=True)
        for name in ("pydev_do_not_trace", "is_pydev_daemon_thread"):  # a debugger neither shows nor stops it
            setattr(self.thread, name, True)
        self.thread.start()

    def put(self, attempt: _Attempt[Any] | None) -> None:
        """Make an attempt; None ends the thread."""
        self._attempts.put(attempt)

    @property
    def ident(self) -> int:
        """The id of the thread."""
        return self.thread.ident or 0

    def stop(self, attempt: _Attempt[Any]) -> None:
        """Raise an exception where the thread is, until it no longer makes this attempt; it ends after it."""
        while self._current is attempt and self.thread.is_alive():
            with raising.turn, raising.fresh_slice():
                self._raise_in(attempt)
            time.sleep(_AGAIN)

    def give_up(self) -> None:
        """Take back what is on its way here: another thread is to be interrupted; it comes again."""
        raising.take_back(self)

    def _raise_in(self, attempt: _Attempt[Any]) -> None:
        frame = frames.of_thread(self.ident)
        if frame is None or self.pending or self._current is not attempt:
            return
        self._ending = True
        if not (frames.imports(frame) or frames.is_delicate(frame)):
            raising.raise_where_it_stands(self, frame, _Stopped)

    def _serve(self) -> None:
        _here.aside = True
        try:
            with user_folder_last(), suppress(_Stopped):
                self._make_attempts()
        finally:
            self._settle()

    def _make_attempts(self) -> None:
        while not self._ending and (attempt := self._attempts.get()) is not None:
            self._current = attempt
            attempt.perform()
            self._current = None
            if not self._ending:
                self._idle.append(self)
            attempt.done.release()
            del attempt  # it holds what was found

    def _settle(self) -> None:
        """See to it that the end of the thread, which takes a lock that all threads need, is not disturbed."""
        self._current = None
        with suppress(_Stopped):
            if self.pending:
                raising.take_back(self)


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
    """The module `sys` as others use it here: sys.path is read, never replaced, and no error is shown."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)

    @property
    def path(self) -> list[str]:
        return sys.path

    @path.setter
    def path(self, _path: list[str]) -> None:
        pass

    @property
    def excepthook(self) -> Callable[..., object]:
        return _note_error if is_aside() else sys.excepthook


def _note_error(*error: Any) -> None:
    _log.debug("A question beside the cells failed", exc_info=error)


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


_USE_THE_SYSTEM = ("jedi.inference.compiled.access", "IPython.core.completer")
"""The modules that set sys.path, or show what went wrong."""


def keep_to_itself(*modules: ModuleType) -> None:
    """Let modules that run in these threads change nothing that all threads share: filters of warnings, sys.path."""
    for module in modules:
        if vars(module).get("warnings") is warnings:
            module.__dict__["warnings"] = _Warnings()
        if module.__name__ in _USE_THE_SYSTEM and vars(module).get("sys") is sys:
            module.__dict__["sys"] = _System()
