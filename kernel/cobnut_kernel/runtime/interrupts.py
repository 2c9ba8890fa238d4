"""Who runs in the main thread, and how to stop it.

Laws of the file:

* User code sees `KeyboardInterrupt`, whether it computes, blocks or awaits.
* It is raised only below `_drive`'s frame, which catches it, or in a task of the user's, whose end our loop survives:
  none can reach the kernel or the next cell.
* Our own code is never interrupted half way: a signal that finds it comes again a moment later, or is delivered
  where user code calls us next.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from cobnut_kernel.runtime.loop import KernelLoop

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from cobnut_kernel.transport import IOThread

T = TypeVar("T")

_AGAIN = 0.005
"""Seconds until a signal that found our own code is sent again, and until one that nobody heard is looked after."""

POKE = signal.SIGURG
"""A signal that means nothing and is handled after SIGINT: when its handler runs, that of SIGINT has run."""

_OURS = str(Path(__file__).parents[1])
_LOOPS = tuple(str(Path(str(module.__file__)).parent) for module in (asyncio, anyio))


@dataclass(frozen=True)
class Interrupted:
    """What a cell comes to that was interrupted where nobody else had caught it."""

    error: KeyboardInterrupt


class Interrupts:
    """Runs cells of the main thread so that they can be interrupted, and does it."""

    def __init__(self, thread: IOThread) -> None:
        self._thread = thread
        self._generation: int = 0
        self._task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._aimed_at: int | None = None
        self._wanted: int | None = None
        self._retrying: bool = False
        self._sending = threading.Lock()
        self._unheard: bool = False
        self.due: bool = False
        self._cancels: int = 0

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T | Interrupted:
        """Run a cell's coroutine; an interrupt reaches it, wherever it is, as KeyboardInterrupt."""
        self._generation += 1
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await self._drive(coroutine)
        finally:
            with self._sending:  # a signal that is being sent is heard here
                self._aimed_at = None
            self._forget_cancels()
            self._task = None

    def interrupt(self) -> None:
        """Interrupt the cell that runs, and the children in its process group; from any thread, at once.

        The signal carries the number of the cell it is meant for, so that it cannot hit the next one. Where no cell
        runs, it frees the main thread from a task that blocks it, and otherwise does nothing.
        """
        if self._task is None and signal.getsignal(signal.SIGINT) != self.on_signal:
            return
        with self._sending:
            self._aimed_at = self._generation
            if self._task is not None and os.getpgrp() == os.getpid():
                os.killpg(os.getpid(), signal.SIGINT)
            else:
                _kill_main(signal.SIGINT)
            _kill_main(POKE)
        self.insist()

    def interrupt_again(self) -> None:
        """Raise an interrupt once more, a moment later, that the running code has not got to see."""
        if self._task is not None:
            self._wanted = self._generation
            self._come_again()

    def on_signal(self, _signum: int, frame: types.FrameType | None) -> None:
        """Decide what SIGINT does, in the main thread: raise, cancel the awaiting cell, come again, or nothing.

        Raises:
            KeyboardInterrupt: the user's code is running in this thread.
        """
        aimed_at, self._aimed_at = self._aimed_at, None
        retrying, self._retrying = self._retrying, False
        if not retrying or aimed_at is not None:
            self._wanted = self._generation if aimed_at is None else aimed_at
        self._deliver(frame)

    def checkpoint(self) -> None:
        """Deliver an interrupt that is due, at the beginning of what user code calls again and again.

        Code that does little else but print would be found in our own, whenever the signal came again.

        Raises:
            KeyboardInterrupt: one was due.
        """
        if threading.current_thread() is threading.main_thread():
            frame = sys._getframe(1)
            while frame.f_back is not None and _is_ours(frame):
                frame = frame.f_back
            self._deliver(frame)

    def _deliver(self, frame: types.FrameType | None) -> None:
        self.due = False
        if self._wanted != self._generation:  # its cell has ended, or has been interrupted meanwhile
            return
        if frame is not None and _is_ours(frame):
            self.due = True
            self._come_again()
        elif _runs_a_cell(frame):
            self._wanted = None
            raise KeyboardInterrupt
        else:
            self._interrupt_the_loop(frame)

    def _interrupt_the_loop(self, frame: types.FrameType | None) -> None:
        """Cancel the cell that awaits; until it has heard of it, look again whether it, or a task, blocks the loop."""
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._cancel, self._generation)
            self._come_again()
        else:
            self._wanted = None
        if isinstance(self._loop, KernelLoop) and _steps_a_task(frame):
            raise KeyboardInterrupt

    @types.coroutine
    def _drive(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T | Interrupted]:
        """Step the coroutine by hand, to turn our cancellation into the KeyboardInterrupt it stands for."""
        step = partial(coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as finished:
                return finished.value
            except KeyboardInterrupt as error:
                return Interrupted(error)
            try:
                answer = yield awaited
            except asyncio.CancelledError as error:
                step = partial(coroutine.throw, self._reason(error))
            except BaseException as error:
                step = partial(coroutine.throw, error)
            else:
                step = partial(coroutine.send, answer)

    def _reason(self, cancelled: asyncio.CancelledError) -> BaseException:
        if not self._cancels:
            return cancelled
        self._forget_cancels()
        return KeyboardInterrupt()

    def _cancel(self, generation: int) -> None:
        if self._task is not None and generation == self._generation == self._wanted:
            self._wanted = None
            self._cancels += 1
            self._task.cancel()

    def _forget_cancels(self) -> None:
        """Take back all we asked for: a count that stays would cancel task groups of later cells."""
        while self._cancels:
            self._cancels -= 1
            if self._task is not None:
                self._task.uncancel()

    def _come_again(self) -> None:
        self._thread.call_soon(self._thread.call_later, _AGAIN, self._again, self._generation)

    def _again(self, generation: int) -> None:
        if generation == self._generation == self._wanted:
            self._retrying = True
            _kill_main(signal.SIGINT)
            self.insist()

    # ── a signal that nobody hears ──────────────────────────────────────────────────────────────────────────────────

    def insist(self) -> None:
        """See to it that the main thread hears of a SIGINT: it may have come just before a call that waits."""
        self._unheard = True
        self._thread.call_soon(self._thread.call_later, _AGAIN, self._poke, _AGAIN)

    def on_poke(self, _signum: int, frame: types.FrameType | None) -> None:
        """Take note that the main thread has heard; a SIGINT of ours that was ignored, as `os.system` does, counts now.

        Raises:
            KeyboardInterrupt: as `on_signal` does.
        """
        self._unheard = False
        if self._aimed_at is None and not self._retrying:
            return
        if signal.getsignal(signal.SIGINT) == self.on_signal:
            self.on_signal(signal.SIGINT, frame)
        else:  # the user's own handler has got it
            self._aimed_at, self._retrying = None, False

    def _poke(self, pause: float) -> None:
        if self._unheard:
            _kill_main(POKE)
            self._thread.call_later(pause, self._poke, min(2 * pause, 0.5))


def _kill_main(signum: signal.Signals) -> None:
    ident = threading.main_thread().ident
    if ident is not None:
        signal.pthread_kill(ident, signum)


def end_at_the_cell(trace: types.TracebackType | None) -> None:
    """Take our own frames off the end of a traceback: what the user wants to see is the line that led to them."""
    last = None
    while trace is not None:
        if not _is_ours(trace.tb_frame):
            last = trace
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None


def _is_ours(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _runs_a_cell(frame: types.FrameType | None) -> bool:
    drive = Interrupts._drive.__code__
    while frame is not None:
        if frame.f_code is drive:
            return True
        frame = frame.f_back
    return False


def _steps_a_task(frame: types.FrameType | None) -> bool:
    """Whether the loop runs a task or callback of the user's: its first frame, but for the loops', is not ours."""
    first = None
    while frame is not None and frame.f_code is not asyncio.Handle._run.__code__:
        if not frame.f_code.co_filename.startswith(_LOOPS):
            first = frame
        frame = frame.f_back
    return frame is not None and first is not None and not first.f_code.co_filename.startswith(_OURS)
