"""Which cells run, in whatever thread, and how they are stopped.

Laws of the file:

* User code sees `KeyboardInterrupt`, whether it computes, blocks or awaits.
* It is raised only below the frame of a cell's `drive`, which catches it, or in a task of the user's, whose end its
  loop survives: none can reach the kernel or the next cell.
* Our own code is never interrupted half way: an interrupt that finds it comes again a moment later, or is delivered
  where user code calls us next.

How a cell is reached depends on what it does at the moment: what the main thread executes, by a signal; what awaits,
in its loop (awaiting.py); what another thread executes, by an exception raised from outside (running.py), or by ending
the wait that blocks it (blocking.py). Until the cell has seen it, the I/O thread looks again and again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import deque
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakMethod

import anyio

from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.interruption import raising
from cobnut_kernel.runtime.interruption.awaiting import AsyncioHost, TrioHost
from cobnut_kernel.runtime.interruption.blocking import make_interruptible
from cobnut_kernel.runtime.interruption.children import children_of, interrupt_children, remember_children
from cobnut_kernel.runtime.interruption.frames import (
    end_at_the_cell,
    is_careful,
    is_delicate,
    is_original_call,
    is_ours,
)
from cobnut_kernel.runtime.interruption.running import CELL, HERE, CellThread, Interrupted, RunningCell

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine, Sequence

    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.transport import IOThread

__all__ = ["POKE", "Interrupted", "Interrupts", "RunningCell", "end_at_the_cell"]

T = TypeVar("T")

POKE = signal.SIGURG
"""A signal that means nothing and is handled after SIGINT: when its handler runs, that of SIGINT has run."""

_AGAIN = 0.001
"""Seconds until an interrupt that has not been seen is looked after; later looks are further apart."""

_RARELY = 0.25
"""Seconds between two looks after an interrupt that has been due for long, in a call that cannot be stopped."""

_DELICATE = 0.5
"""Seconds that a finalizer gets to end in peace, and a thread to take a lock: it may be waiting for that."""

_ENOUGH = 30
"""Looks that it gets besides: the whole process may have had no processor in that time, and code that takes a lock
again and again is met there three times out of four."""

_INSIST = 1.0
"""Seconds until a cell whose time is up, and that has caught its interrupt and gone on, is interrupted once more."""


_REMEMBERED = 100
"""How many interrupts are remembered for the cells that were on their way from their queue to us."""

_GLANCE = 0.001
"""Seconds between two looks at the cells of which one wants to know whether they are stuck."""


class Interrupts:
    """Runs cells so that they can be interrupted, in any number of threads and loops, and does it."""

    def __init__(self, thread: IOThread) -> None:
        self.due: bool = False
        self._io_thread = thread
        self._numbers = count()
        self._running: dict[int, RunningCell] = {}
        self._threads: dict[int, CellThread] = {}
        self._sending = threading.Lock()
        self._expected: bool = False
        self._unheard: bool = False
        self._sweeps: bool = False
        self._look: int = 0
        self._looks: int = 0
        self._looks_since: float = 0.0
        self._stopped: deque[tuple[int, Callable[[Job], bool]]] = deque(maxlen=_REMEMBERED)
        self._stopped_before: int = -1
        self.resume: Callable[[int], object] | None = None  # lets a thread go on that a debugger has stopped
        make_lock = WeakMethod(self._make_lock)  # what is registered there is there for ever
        os.register_at_fork(after_in_child=lambda: (make_lock() or _do_nothing)())

    def _make_lock(self) -> None:
        """Take a new lock in a forked child: the thread that held the old one is not there."""
        self._sending = threading.Lock()

    # ── running cells ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, coroutine: Coroutine[Any, Any, T], job: Job, timeout: float | None = None) -> T | Interrupted:
        """Run a cell's coroutine in this thread; an interrupt reaches it, wherever it is, as KeyboardInterrupt.

        Several may run at once, in one loop (each in a task of its own, or one within another) and in many. A cell
        whose `timeout`, in seconds, has passed is interrupted alone, and again every second until it ends; then it
        comes to `Interrupted`, whatever it made of that.
        """
        cell = self._begin(coroutine, job)
        if timeout is not None:
            self._io_thread.call_soon(self._io_thread.call_later, timeout, self._time_out, cell.number)
        try:
            result: T | Interrupted = await cell.drive()
        finally:
            self._end(cell)
        if cell.timed_out and cell.interrupted:
            error = result.error if isinstance(result, Interrupted) else KeyboardInterrupt()
            return Interrupted(error, timed_out=True)
        return result

    def running(self) -> list[RunningCell]:
        """Return the cells that run, in the order of their begin."""
        return list(self._running.values())

    async def stuck(self, cells: Sequence[RunningCell], grace: float = 0.03) -> list[dict[str, Any]]:
        """Say which of the interrupted cells have not seen it within `grace` seconds, and where they are.

        One that was met at delicate places only has more time: the next look may find it elsewhere.

        Returns:
            For each: `msg_id` and `subshell_id` of its request, and `stack`, the lines of its traceback.
        """
        rest = ceil(grace / _GLANCE)
        while any(cell.wanted and (rest > 0 or time.monotonic() - cell.spared < grace) for cell in cells):
            rest -= 1
            await anyio.sleep(_GLANCE)
        return [_described(cell) for cell in cells if cell.wanted]

    def _begin(self, coroutine: Coroutine[Any, Any, Any], job: Job) -> RunningCell:
        thread = HERE.thread
        if thread is None or self._threads.get(thread.ident) is not thread:
            thread = self._enter_thread()
        cell = RunningCell(job, next(self._numbers), thread, coroutine, self._on_taken)
        if thread.host is not (host := _host(thread.host)):
            thread.host, thread.blocked_since = host, 0.0
        cell.task = host.task()
        cell.outer = thread.current
        if cell.outer is not None:
            cell.outer.inner = cell
        CELL.set(cell)
        self._running[cell.number] = cell
        stopped = job.number < self._stopped_before and self._was_stopped(job)
        if stopped or (self._sweeps and self._hears(thread)):
            cell.wanted = True
            self._attend_soon()
        return cell

    def _end(self, cell: RunningCell) -> None:
        with self._sending:  # a signal that is being sent is heard here
            self._running.pop(cell.number)
        if cell.wanted or cell.due:
            cell.wanted = cell.due = False
            self._on_taken(cell)
        if cell.cancels and cell.thread.host is not None:
            cell.thread.host.forget_cancels(cell)
        if cell.outer is not None:
            cell.outer.inner = None

    def _was_stopped(self, job: Job) -> bool:
        """Tell whether a cell was interrupted when it waited no more and did not run yet."""
        is_cell = job.message.msg_type == MessageType.EXECUTE_REQUEST
        return is_cell and any(job.number < before and select(job) for before, select in list(self._stopped))

    def _enter_thread(self) -> CellThread:
        if HERE.thread is None:
            HERE.thread = CellThread()
        thread = HERE.thread
        living = [each for each in tuple(self._threads.values()) if each.thread.is_alive()]
        self._threads = {each.ident: each for each in (*living, thread)}  # others walk through the one before
        remember_children()
        if not thread.is_main:
            make_interruptible()
        return thread

    # ── interrupting ────────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt(self, select: Callable[[Job], bool] | None = None, before: int = -1) -> list[RunningCell]:
        """Interrupt the cells that run, or those whose job is selected; from any thread, at once.

        Without `select` the interrupt is the whole process's: children in its process group get it too, and a task
        that blocks a loop is ended. With it, only the children that the selected cells have started do, and no other
        cell's code is touched. Where no cell runs, a task that blocks a loop is ended, and nothing else happens.
        A cell whose job's number is below `before`, and that is on its way from its queue to us, is interrupted when it
        begins.

        Returns:
            The cells that were interrupted.
        """
        self._stopped.append((before, select or (lambda _: True)))
        self._stopped_before = max(before, self._stopped_before)
        cells = [cell for cell in self.running() if select is None or select(cell.job)]
        return self._interrupt(cells, everything=select is None)

    def _interrupt(self, cells: list[RunningCell], *, everything: bool) -> list[RunningCell]:
        cells = list(dict.fromkeys(each for cell in cells for each in _with_inner(cell)))
        self._look_anew()
        with self._sending:
            cells = [cell for cell in cells if cell.number in self._running]
            self._sweeps = everything and bool(cells)  # what begins from here on may lose its child
            try:
                cells += self._begun_besides(cells)
                deaf = [cell for cell in cells if self._is_signalled(cell, everything=everything)]
                deaf = [cell for cell in deaf if not self._hears(cell.thread)]
                self._want([cell for cell in cells if cell not in deaf], everything=everything)
                self._send(cells, everything=everything, listens=self._listens())
                cells += self._begun_besides(cells)
            finally:
                self._sweeps = False
        self._attempt_all()
        self._attend_soon()
        return cells

    def _send(self, cells: list[RunningCell], *, everything: bool, listens: bool) -> None:
        """Send SIGINT to the child processes, and to the main thread where it executes one of these cells."""
        main = self._main_thread()
        if cells and everything and main is not None and _leads_its_group():
            self._expected = listens
            os.killpg(os.getpid(), signal.SIGINT)
        else:
            children = children_of(cells)
            if any(self._is_signalled(cell, everything=everything) for cell in cells):
                self._expected = listens
                _kill_main(signal.SIGINT)  # before the children: what waits for one is to end by this, not by its end
            interrupt_children(children)
        if self._expected:
            self._unheard = True
            self._poke()

    def _begun_besides(self, cells: list[RunningCell]) -> list[RunningCell]:
        """Name the cells that have begun meanwhile, where all are interrupted."""
        return [cell for cell in self.running() if cell not in cells] if self._sweeps else []

    def _listens(self) -> bool:
        """Tell whether SIGINT comes to us: a handler of the user's own gets it alone, and the cell nothing else."""
        return signal.getsignal(signal.SIGINT) == self.on_signal

    def _hears(self, thread: CellThread) -> bool:
        return not thread.is_main or self._listens()

    def _is_signalled(self, cell: RunningCell, *, everything: bool) -> bool:
        """Tell whether a cell gets SIGINT: the main thread executes it, or it is meant with the whole process."""
        return cell.thread.is_main and (everything or cell.thread.current is cell)

    def interrupt_again(self) -> None:
        """Raise an interrupt once more that Python has dropped in this thread, a moment later."""
        thread = HERE.thread
        if thread is not None:
            if thread.current is not None:
                thread.current.wanted = True
            else:
                thread.ask_for_a_sign()
            self._attend_soon()

    def _want(self, cells: list[RunningCell], *, everything: bool) -> None:
        """Say that these cells are to be interrupted, and ask their loops to do so where they await."""
        for cell in cells:
            cell.wanted = True
            if cell.thread.current is not cell:
                cell.cancel_soon()
        for thread in tuple(self._threads.values()):
            here = _in(thread, self.running())
            if all(cell.wanted for cell in here) and (here or everything):
                thread.ask_for_a_sign()

    def _time_out(self, number: int) -> None:
        cell = self._running.get(number)
        if cell is not None:
            cell.timed_out = True
            cell.interrupted = False
            self._interrupt([cell], everything=False)
            self._io_thread.call_later(_INSIST, self._time_out, number)

    def _on_taken(self, cell: RunningCell) -> None:
        cell.due = False
        cell.thread.blocked_since = cell.thread.blocked_since and time.monotonic()
        self.due = any(each.due for each in self.running())

    # ── until it has been seen ──────────────────────────────────────────────────────────────────────────────────────

    def insist(self) -> None:
        """See to it that the main thread hears of a SIGINT: it may have come just before a call that waits."""
        self._unheard = True
        self._attend_soon()

    def _attend_soon(self) -> None:
        self._look += 1
        self._look_anew()
        self._io_thread.call_soon(self._attend, self._look)

    def _look_anew(self) -> None:
        self._looks, self._looks_since = 0, time.monotonic()

    def _attend(self, look: int) -> None:
        """Look after what has not been seen yet, and again later until all has been."""
        if look != self._look:  # another one has been asked for since
            return
        self._looks += 1
        if self._attempt_all() or self._unheard:
            pause = min(max(_AGAIN, (time.monotonic() - self._looks_since) / 10), _RARELY)
            self._io_thread.call_later(pause, self._attend, look)

    def _attempt_all(self) -> bool:
        """Try to interrupt what is to be; from any thread.

        Returns:
            Whether there was something.
        """
        if self.resume is not None:
            self._resume_all(self.resume)
        cells = [cell for cell in self.running() if cell.wanted and cell.inner is None]
        threads = [each for each in tuple(self._threads.values()) if each.is_blocked()]
        if self._unheard or any(each.is_main for each in (*threads, *(cell.thread for cell in cells))):
            self._poke()
        if raising.turn.acquire(blocking=False):  # one at a time, and whoever comes second need not wait
            try:
                for cell in cells:
                    self._attempt(cell)
                for thread in threads:
                    if not thread.is_main and thread.interrupt_from_outside(None, patient=self._is_patient()):
                        self.due = True
            finally:
                raising.turn.release()
        return bool(cells or threads)

    def _resume_all(self, resume: Callable[[int], object]) -> None:
        """Let go on what a debugger has stopped and what is to be interrupted: there it can be."""
        for thread in tuple(self._threads.values()):
            if thread.is_blocked() or any(cell.wanted for cell in _in(thread, self.running())):
                resume(thread.ident)

    def _poke(self) -> None:
        """Make the main thread look for signals; libuv's waits go on where one has come, so its loop is woken too."""
        _kill_main(POKE)
        main = self._main_thread()
        if main is not None and main.host is not None and main.current is None:
            main.host.call_soon(_do_nothing)

    def _attempt(self, cell: RunningCell) -> None:
        if cell.thread.current is not cell:
            cell.cancel_soon()
        elif not cell.thread.is_main and cell.thread.interrupt_from_outside(cell, patient=self._is_patient()):
            cell.due = self.due = True

    # ── in the thread of the code that is interrupted ───────────────────────────────────────────────────────────────

    def on_signal(self, _signum: int, frame: types.FrameType | None) -> None:
        """Take SIGINT, in the main thread: one that we did not send interrupts every cell.

        Raises:
            KeyboardInterrupt: the user's code is running in this thread.
        """
        expected, self._expected = self._expected, False
        if not expected:
            self._want([each for cell in self.running() for each in _with_inner(cell)], everything=True)
            self._attend_soon()
        self._deliver(frame)

    def on_poke(self, _signum: int, frame: types.FrameType | None) -> None:
        """Take note that the main thread has heard; a SIGINT that was ignored, as `os.system` does, counts now.

        Raises:
            KeyboardInterrupt: as `on_signal` does.
        """
        self._unheard = self._expected = False
        self._deliver(frame)

    def checkpoint(self) -> None:
        """Deliver an interrupt that is due, at the beginning of what user code calls again and again.

        Code that does little else but print would be found in our own, whenever it was looked after.

        Raises:
            KeyboardInterrupt: one was due.
        """
        thread = HERE.thread
        if thread is not None:
            thread.strike()

    def _deliver(self, frame: types.FrameType | None) -> None:
        """Raise what is due in the main thread, unless our own code, or a loop's, was found there."""
        main = self._main_thread()
        if main is None or frame is None:
            return
        cell = main.current
        if not (cell.wanted if cell is not None else main.is_kept_by_a_task(frame)):
            return
        if not main.forks and (is_original_call(frame) or not is_careful(frame)):
            if not (self._is_patient() and is_delicate(frame)):
                main.strike()
            elif cell is not None:
                cell.spared = time.monotonic()
        elif main.forks or is_ours(frame):
            self.due = True
            if cell is not None:
                cell.due = True

    def _is_patient(self) -> bool:
        """Tell whether delicate places are left in peace still: an interrupt raised there may be lost, or do harm."""
        return self._looks < _ENOUGH or time.monotonic() - self._looks_since < _DELICATE

    def _main_thread(self) -> CellThread | None:
        return self._threads.get(threading.main_thread().ident or 0)


def _host(known: AsyncioHost | TrioHost | None) -> AsyncioHost | TrioHost:
    """Return the running loop as a host of cells."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return known if known is not None and known.loop is TrioHost.current() else TrioHost()
    return known if known is not None and known.loop is loop else AsyncioHost(loop)


def _in(thread: CellThread, cells: list[RunningCell]) -> list[RunningCell]:
    return [cell for cell in cells if cell.thread is thread]


def _with_inner(cell: RunningCell) -> list[RunningCell]:
    """Return a cell and those that run within it: they are part of what it does, and end before it can."""
    return [cell] if cell.inner is None else [cell, *_with_inner(cell.inner)]


def _described(cell: RunningCell) -> dict[str, Any]:
    return {"msg_id": cell.job.message.msg_id, "subshell_id": cell.job.subshell_id, "stack": cell.stack()}


def _leads_its_group() -> bool:
    """Tell whether the processes of our group are our own children, and theirs."""
    return os.getpgrp() == os.getpid()


def _do_nothing() -> None:
    """Let a loop come round."""


def _kill_main(signum: signal.Signals) -> None:
    ident = threading.main_thread().ident
    if ident is not None:
        signal.pthread_kill(ident, signum)
