"""How the process of a kernel ends: in order, within a budget, and always.

Laws of the file:

* The kernel's own end comes first: cells are interrupted, lanes stop, replies go out, sockets and files go. Then, in
  the main thread and in the interpreter's order, thread pools and threads that are no daemons; the user's atexit
  functions, once; child processes; and `os._exit`, which waits for nothing.
* A step that takes longer than its time is called away from by a poke. So is a cell or task that does not end, and the
  order begins where it was. Where the main thread hears no signal, deep in C, the watchdog goes on without it.
* What was cut short is written to the process's own stderr, with its stack. What atexit functions print goes to the
  process's own streams as well: the clients have said goodbye before.

The limit: C code that holds the GIL and looks for no signal before the kernel is asked to end hears nobody. SIGKILL is
for that.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from cobnut_kernel.errors import CobnutError
from cobnut_kernel.runtime.ending.descendants import Descendants, reap
from cobnut_kernel.runtime.ending.last_words import flush, say, stack_of
from cobnut_kernel.runtime.ending.signals import Signals
from cobnut_kernel.runtime.ending.watchdog import Watchdog
from cobnut_kernel.runtime.interruption import frames
from cobnut_kernel.runtime.interruption.interrupts import POKE

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from cobnut_kernel.runtime.kernel import Kernel

_MOMENT = 0.05
"""Seconds for what takes none unless something holds it up."""

_OWN = 1.0
"""Seconds for what is our own and takes none: it ends the process where we are wrong."""

_NEXT = 0.1
"""Seconds that each atexit function has after one that was cut short: those of libraries are behind the user's."""

_CUTS = 3
"""How often a step is called away from before the process ends without the rest of it."""

_SAME = 0.1
"""Seconds in which two SIGTERMs are one: `timeout` and shells send it to the process and to its group."""


class Budget(NamedTuple):
    """Seconds that each part of a process's end may take.

    Attributes:
        cells: for the cells to end once they are interrupted, and for the tasks that they have left.
        threads: for threads that are no daemons, counted from the kernel's stop.
        atexit: for the user's atexit functions, all together.
        children: between SIGTERM and SIGKILL of child processes.
    """

    cells: float = 0.15
    threads: float = 0.25
    atexit: float = 1.0
    children: float = 0.5

    @property
    def total(self) -> float:
        """All of it."""
        return self.cells + self.threads + self.atexit + self.children


def run_process(kernel: Kernel, budget: Budget | None = None) -> NoReturn:
    """Run a kernel in the main thread of a process that is its own, and end the process with it.

    Raises:
        CobnutError: the kernel cannot start; the text says what to do.
        OSError: a file cannot be written.
    """
    budget = budget or Budget()
    ending = Ending(kernel, budget)
    ending.listen()
    Watchdog(kernel, ending, budget).start()
    code = 0
    try:
        kernel.run()
    except (CobnutError, OSError):
        raise
    except BaseException:
        say(traceback.format_exc())
        code = 1
    ending.run(code)


class CutShort(BaseException):
    """Raised in what runs longer than its time at the process's end."""


class Step(NamedTuple):
    """A part of the end that the main thread is at, when its time is over, and how often it was already."""

    name: str
    deadline: float
    cuts: int = 0


class Ending:
    """The order of a process's end, in its main thread, with what the watchdog must know of it.

    Attributes:
        step: where the main thread is in the order; None before.
        moved: set whenever there is a new step.
        stopped_at: when the kernel was stopped, by time.monotonic(); else when the order began.
        called_away: whether the main thread is to leave the kernel's event loop and begin.
        given_up: whether the watchdog goes on without it.
    """

    def __init__(self, kernel: Kernel, budget: Budget) -> None:
        self.step: Step | None = None
        self.moved = threading.Event()
        self.stopped_at: float = 0.0
        self.called_away: bool = False
        self.given_up: bool = False
        self._kernel = kernel
        self._budget = budget
        self._pid = os.getpid()
        self._cuttable: bool = False
        self._asked_at: float | None = None

    def listen(self) -> None:
        """Hear signals from now on: the process can be ended before the kernel has taken them, and after."""
        signal.signal(POKE, self._on_poke)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_sighup)

    def run(self, code: int) -> NoReturn:
        """Do what is to be done at the end, and end the process."""
        self._begin(Step("beginning", monotonic() + _OWN))
        self._kernel.stop()
        self._settle()
        self._do("threads", max(self.stopped_at + self._budget.threads - monotonic(), _MOMENT), _end_threads)
        self._do("atexit functions", self._budget.atexit, atexit._run_exitfuncs)
        self._do("child processes", self._budget.children + _OWN, self.end_children)
        self._name_threads()
        self._do("output", _MOMENT, flush)
        os._exit(code)

    def end_children(self) -> None:
        """End the child processes, and name those that had to be killed; the watchdog does it too."""
        with Descendants() as descendants:
            for name in descendants.end(self._budget.children):
                say(f"The child process {name} did not end when it was asked to; it was killed.")
        reap()

    def _begin(self, step: Step) -> None:
        while self.given_up:  # the watchdog ends the process: half an atexit function is worse than none
            time.sleep(_OWN)
        self.stopped_at = self.stopped_at or monotonic()
        self.step = step
        self.moved.set()

    def _settle(self) -> None:
        """Give signals and streams back to the process, which may have been called away from the middle of a cell."""
        signal.set_wakeup_fd(-1)
        handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGHUP: signal.SIG_IGN}
        for signum, handler in (handlers | {signal.SIGTERM: self._on_sigterm, POKE: self._on_poke}).items():
            signal.signal(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, POKE})
        sys.unraisablehook = sys.__unraisablehook__
        if self.called_away:
            self._do("streams", _MOMENT, self._restore_streams)

    def _do(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        """Do a part of the end, for some seconds at most."""
        self._begin(Step(name, monotonic() + seconds))
        try:
            try:
                self._cuttable = True
                work()
            finally:
                self._cuttable = False
        except CutShort:
            pass
        except BaseException:
            say(f"The kernel's end goes on after an error in its {name}:\n{traceback.format_exc()}")

    def _restore_streams(self) -> None:
        if self._kernel._streams is not None:
            self._kernel._streams.restore()

    def _remove_files(self) -> None:
        """Remove the kernel's files without closing its sockets, which may take a while."""
        kernel = self._kernel
        paths = kernel._connection.ipc_paths() if kernel._connection is not None else []
        if kernel.connection_file and not kernel._keep_file:
            paths.append(kernel.connection_file)
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def _name_threads(self) -> None:
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                say(f"The thread {thread.name!r} did not end with the kernel; it was here:", *stack_of(thread))

    def _name_tasks(self) -> None:
        if self._kernel.event_stopped.is_set():
            with contextlib.suppress(RuntimeError):  # no loop of asyncio's runs here
                for task in asyncio.all_tasks():
                    where = frames.stack_of_awaits(task.get_coro())
                    say(f"The task {task.get_name()!r} did not end with the kernel; it was here:", *where)

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_poke(self, _signum: int, _frame: types.FrameType | None) -> None:
        """Leave what does not end: a cell or task for the order of the end, and a step whose time is over.

        Raises:
            CutShort: the time of a step is over.
        """
        step = self.step
        if step is None:
            if self.called_away:
                self._begin(Step("beginning", monotonic() + _OWN))
                self._remove_files()
                self._name_tasks()
                self.run(0)
        elif self._cuttable and monotonic() > step.deadline and step.cuts < _CUTS:
            self._begin(Step(step.name, monotonic() + _NEXT, step.cuts + 1))
            raise CutShort(f"The time for {step.name} is over.")

    def _on_sigterm(self, _signum: int, _frame: types.FrameType | None) -> None:
        """Stop a kernel that has not taken the signals yet; hearing it once more, end at once."""
        now = monotonic()
        if os.getpid() != self._pid:  # forked at the end, when nobody takes the handlers from a child
            os._exit(0)
        elif self._asked_at is None:
            self._asked_at = now
            self._stop_early()
        elif now - self._asked_at > _SAME:
            say("SIGTERM came again: nothing more is waited for.")
            self._remove_files()
            with Descendants() as descendants:
                descendants.kill()
            os._exit(0)

    def _on_sighup(self, _signum: int, _frame: types.FrameType | None) -> None:
        self._stop_early()

    def _stop_early(self) -> None:
        if not Signals.are_taken() and not self._kernel.event_stopping.is_set():
            self._kernel.stop()


def _end_threads() -> None:
    """Let thread pools go, and wait for threads that are no daemons, as the interpreter's own end does."""
    shutdown: Callable[[], None] = threading._shutdown  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType] - nothing public does this
    shutdown()
