"""Who runs in the main thread, and how to stop it.

Laws of the file:

* User code sees `KeyboardInterrupt`, whether it computes, blocks or awaits.
* It is raised only below `_drive`'s frame, which catches it: none can reach the loop, the kernel or the next cell.
* Our own code is never interrupted half way: a signal that finds it comes again a moment later.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import types
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from cobnut_kernel.transport import IOThread

T = TypeVar("T")

_AGAIN = 0.005
"""Seconds until a signal that found our own code is sent again."""

_OURS = str(Path(__file__).parents[1])


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
        self._cancelled: bool = False

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T | Interrupted:
        """Run a cell's coroutine; an interrupt reaches it, wherever it is, as KeyboardInterrupt."""
        self._generation += 1
        self._cancelled = False
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await self._drive(coroutine)
        finally:
            self._task = None

    def interrupt(self) -> None:
        """Interrupt the cell that runs, and the children in its process group; from any thread, at once.

        The signal carries the number of the cell it is meant for, so that it cannot hit the next one.
        """
        if self._task is None:
            return
        self._aimed_at = self._generation
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGINT)
        else:
            self._kill_main()

    def on_signal(self, _signum: int, frame: types.FrameType | None) -> None:
        """Decide what SIGINT does, in the main thread: raise, cancel the awaiting cell, come again, or nothing.

        Raises:
            KeyboardInterrupt: a cell's code is running in this thread.
        """
        aimed_at, self._aimed_at = self._aimed_at, None
        if self._task is None or (aimed_at is not None and aimed_at != self._generation):
            return
        if frame is not None and frame.f_code.co_filename.startswith(_OURS):
            self._thread.call_soon(self._thread.call_later, _AGAIN, self._again, self._generation)
        elif _runs_a_cell(frame):
            raise KeyboardInterrupt
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, self._generation)

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
        if not self._cancelled:
            return cancelled
        self._cancelled = False
        if self._task is not None:
            self._task.uncancel()
        return KeyboardInterrupt()

    def _cancel(self, generation: int) -> None:
        if self._task is not None and generation == self._generation:
            self._cancelled = True
            self._task.cancel()

    def _again(self, generation: int) -> None:
        if self._task is not None and generation == self._generation:
            self._aimed_at = generation
            self._kill_main()

    def _kill_main(self) -> None:
        ident = threading.main_thread().ident
        if ident is not None:
            signal.pthread_kill(ident, signal.SIGINT)


def _runs_a_cell(frame: types.FrameType | None) -> bool:
    drive = Interrupts._drive.__code__
    while frame is not None:
        if frame.f_code is drive:
            return True
        frame = frame.f_back
    return False
