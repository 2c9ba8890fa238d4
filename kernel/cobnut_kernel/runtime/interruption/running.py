"""A cell that runs, and the thread that runs it: who executes what, and how it is interrupted there.

Laws of the file:

* What is raised in a thread by another one is raised while that thread executes the cell, and taken back when it
  leaves it: no interrupt is on its way when a step of the cell is over.
* Nobody waits for a lock here. A thread says what it does and then looks at what others want; those who want say so
  and then look at what it does.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import types
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from cobnut_kernel.runtime.interruption import frames, raising

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from cobnut_kernel.runtime.interruption.awaiting import AsyncioHost, TrioHost
    from cobnut_kernel.runtime.interruption.children import Child
    from cobnut_kernel.runtime.job import Job

T = TypeVar("T")


class Interrupted(NamedTuple):
    """What a cell comes to that was interrupted where nobody else had caught it, or whose time was up."""

    error: KeyboardInterrupt
    timed_out: bool = False


class CellThread:
    """A thread that runs cells, as those who interrupt it see it.

    `current` is the cell whose code it executes now; None while its loop, or a task that is no cell, runs. `wake` ends
    the interruptible wait it is in (blocking.py). `blocked_since` is when its loop was last asked for a sign of life
    that has not come, 0 where nobody waits for one; by time.monotonic(). While it `forks`, what Python calls around
    that must not be interrupted: some of it takes locks and gives them back.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread = threading.current_thread()
        self.ident: int = threading.get_ident()
        self.is_main: bool = self.thread is threading.main_thread()
        self.host: AsyncioHost | TrioHost | None = None
        self.current: RunningCell | None = None
        self.wake: Callable[[], object] | None = None
        self.blocked_since: float = 0.0
        self.forks: bool = False
        self.pending: bool = False
        self.sending: bool = False

    # ── in the thread itself ────────────────────────────────────────────────────────────────────────────────────────

    def strike(self) -> None:
        """Raise what is due to the code that calls this.

        Raises:
            KeyboardInterrupt: the running cell is to be interrupted, or a task that keeps its loop from running.
        """
        cell = self.current
        if self.forks or frames.is_stopped(sys._getframe(1)):
            return
        if cell is not None:
            if cell.wanted:
                self.settle()
                cell.take()
                raise KeyboardInterrupt
        elif self.is_kept_by_a_task(sys._getframe(1)):
            self.settle()
            self.blocked_since = 0.0
            raise KeyboardInterrupt

    def is_kept_by_a_task(self, frame: types.FrameType | None) -> bool:
        """Tell whether a task or callback of the user's has kept the loop from running since it was asked to."""
        return (
            self.blocked_since != 0.0
            and time.monotonic() - self.blocked_since > GRACE
            and self.host is not None
            and self.host.survives
            and frames.steps_a_task(frame)
        )

    def settle(self) -> None:
        """See to it that nothing that another thread raises here is still on its way."""
        while self.pending or self.sending:
            try:
                self.take_back()
            except KeyboardInterrupt:
                continue

    def take_back(self) -> None:
        """Take back what another thread raises here, once; what comes before that is raised here still.

        Raises:
            KeyboardInterrupt: it has come.
        """
        while self.sending:
            raising.yield_gil(0)
        if self.pending:
            raising.take_back(self)

    def heard(self) -> None:
        """Take note that what was raised from outside has arrived."""
        self.pending = False
        if self.current is not None:
            self.current.take()
        else:
            self.blocked_since = 0.0

    # ── in other threads ────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt_from_outside(self, cell: RunningCell | None, *, patient: bool) -> bool:
        """Interrupt what this thread executes: a cell, or where there is none a task that keeps the loop.

        Where it computes, KeyboardInterrupt is raised at its next step; where it blocks in a call of C, when that
        call returns; in a finalizer, where it may be lost, only by who is not `patient`.

        Returns:
            Whether our own code runs there, which will look by itself where it is called next.
        """
        if self.wake is not None:
            self.wake()
            return False
        self.sending = True
        try:
            with raising.fresh_slice():
                return self._raise_in(cell, patient=patient)
        finally:
            self.sending = False

    def _raise_in(self, cell: RunningCell | None, *, patient: bool) -> bool:
        frame = frames.of_thread(self.ident)
        if frame is None or self.pending or self.wake is not None or self.current is not cell:
            return False
        if not (cell.wanted if cell is not None else self.is_kept_by_a_task(frame)):
            return False
        if self.forks or frames.is_stopped(frame):
            return self.forks
        if patient and frames.is_delicate(frame):
            if cell is not None:
                cell.spared = time.monotonic()
            return False
        if frames.is_careful(frame):
            return frames.is_ours(frame)
        raising.raise_where_it_stands(self, frame, _Arriving)
        return False

    def give_up(self) -> None:
        """Take back what is on its way here: another thread is to be interrupted; it comes again."""
        self.sending = True
        try:
            raising.take_back(self)
        finally:
            self.sending = False

    def is_blocked(self) -> bool:
        """Tell whether its loop has not come round since it was asked to, although no cell's code runs there."""
        return self.blocked_since != 0.0 and self.current is None and self.thread.is_alive()

    def ask_for_a_sign(self) -> None:
        """Ask the loop for a sign of life: a task of the user's may keep it from running."""
        if self.host is not None:
            self.blocked_since = time.monotonic()
            if not self.host.call_soon(self._give_sign):
                self.blocked_since = 0.0

    def _give_sign(self) -> None:
        self.blocked_since = 0.0


class _Here(threading.local):
    thread: CellThread | None = None


HERE = _Here()
"""The thread one is in, if it runs cells."""

CELL: ContextVar[RunningCell | None] = ContextVar("cobnut_cell", default=None)
"""The cell that the running context was made by; tasks, and threads that copy their maker's context, inherit it."""

GRACE = 0.02
"""Seconds in which a loop gives a sign of life unless a task keeps it from running."""


class _Arriving(KeyboardInterrupt):
    """Becomes a KeyboardInterrupt when it is raised, and says so."""

    def __new__(cls, *_args: object) -> KeyboardInterrupt:
        if HERE.thread is not None:
            HERE.thread.heard()
        return KeyboardInterrupt()


class RunningCell:
    """One execution of a cell, from its begin to its end.

    `wanted` is set while an interrupt is due that its code has not seen. `timed_out` says that its time was up.
    `started`, and `spared`, when it was last met where an interrupt would do harm, are by time.monotonic().
    """

    __slots__ = (
        "__weakref__",
        "_asking",
        "_notice",
        "cancels",
        "children",
        "coroutine",
        "due",
        "inner",
        "interrupted",
        "job",
        "number",
        "outer",
        "spared",
        "started",
        "task",
        "thread",
        "throws",
        "timed_out",
        "wanted",
    )

    def __init__(
        self,
        job: Job,
        number: int,
        thread: CellThread,
        coroutine: Coroutine[Any, Any, Any],
        notice: Callable[[RunningCell], object],
    ) -> None:
        self.job = job
        self.number = number
        self.thread = thread
        self.coroutine = coroutine
        self.task: Any = None
        self.started: float = time.monotonic()
        self.spared: float = 0.0
        self.wanted: bool = False
        self.interrupted: bool = False
        self.timed_out: bool = False
        self.due: bool = False
        self.throws: bool = False
        self.cancels: int = 0
        self.children: list[Child] | None = None
        self.outer: RunningCell | None = None
        self.inner: RunningCell | None = None
        self._asking: bool = False
        self._notice = notice

    @property
    def thread_ident(self) -> int:
        """The thread that runs the cell, as `threading.get_ident` names it."""
        return self.thread.ident

    def take(self) -> None:
        """Say that the interrupt that was due has reached the cell's code."""
        if self.wanted:
            self.wanted = False
            self.interrupted = True
            self._notice(self)

    def stack(self) -> list[str]:
        """Draw where the cell is: what it executes, else what keeps its loop from running, else what it awaits."""
        frame = frames.of_thread(self.thread.ident)
        if self.thread.current is self:
            return frames.stack_below(frame, RunningCell.drive.__code__)
        if frames.steps_a_task(frame):
            return frames.stack_below(frame, None)
        return frames.stack_of_awaits(self.coroutine)

    def cancel_soon(self) -> None:
        """Interrupt the cell where it awaits, as soon as its loop comes round; from any thread."""
        if not self._asking and self.thread.host is not None:
            self._asking = True
            self.thread.host.call_soon(self._cancel)

    def _cancel(self) -> None:
        self._asking = False
        if self.wanted and self.inner is None and self.thread.host is not None:
            self.thread.host.cancel(self)

    @types.coroutine
    def drive(self) -> Generator[Any, Any, Any]:  # noqa: C901, PLR0912 - one loop: a call more would cost every step
        """Step the cell's coroutine by hand: this frame on a stack says that the cell's code runs below it."""
        thread, coroutine = self.thread, self.coroutine
        advance: Callable[[Any], Any] = coroutine.send
        value: Any = None
        awaited: Any = None
        failure: BaseException | None = None
        while True:
            thread.current = self
            try:
                awaited = advance(value)
            except StopIteration as finished:
                return finished.value
            except BaseException as error:
                failure = error
            finally:  # nothing is called before all is quiet here: what comes late would come there
                thread.current = self.outer
                while thread.pending or thread.sending:
                    try:
                        thread.take_back()
                    except KeyboardInterrupt:  # that was it; if it is due still, it comes again
                        continue
            if failure is None:
                if self.wanted or thread.blocked_since:
                    self._leave()
                try:
                    value = yield awaited
                    advance = coroutine.throw if self.throws else coroutine.send
                except BaseException as error:
                    advance, value = coroutine.throw, self._reason(error)
                if self.throws:
                    self.throws, value = False, KeyboardInterrupt()
            elif _is_suspended(coroutine):  # it came between the cell's await and us
                advance, value, failure = coroutine.throw, failure, None
            else:
                return _outcome(failure)

    def _leave(self) -> None:
        """Begin to await although an interrupt is due: it comes by the loop."""
        if self.wanted:
            self.cancel_soon()
        if self.thread.blocked_since:
            self.thread.blocked_since = time.monotonic()

    def _reason(self, error: BaseException) -> BaseException:
        """Turn our cancellation into the interrupt it stands for; anybody else's stays what it is."""
        if not self.cancels or self.thread.host is None or not isinstance(error, asyncio.CancelledError):
            return error
        self.thread.host.forget_cancels(self)
        return KeyboardInterrupt()


def _is_suspended(coroutine: Any) -> bool:
    return getattr(coroutine, "cr_frame", None) is not None


def _outcome(failure: BaseException) -> Interrupted:
    """Return what a cell comes to that ended by an interrupt; any other failure is raised."""
    interrupt = interrupt_in(failure)
    if interrupt is None:
        raise failure
    return Interrupted(interrupt)


def interrupt_in(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is, or a group that holds nothing else, as nurseries and task groups raise."""
    if isinstance(error, BaseExceptionGroup):
        inner = [interrupt_in(each) for each in cast("BaseExceptionGroup[BaseException]", error).exceptions]
        return inner[0] if all(inner) else None
    return error if isinstance(error, KeyboardInterrupt) else None
