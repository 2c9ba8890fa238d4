"""How a cell that awaits is reached, under asyncio and under trio.

Both hosts raise KeyboardInterrupt at the cell's own await, where its code may catch it and await on. A cancel scope
would not do: what is cancelled stays cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from cobnut_kernel.runtime.interruption.frames import add_trio, awaiting_frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.runtime.interruption.running import RunningCell

    Host = "AsyncioHost | TrioHost"


class AsyncioHost:
    """An asyncio loop whose tasks run cells: the cell's task is cancelled, and the cell's drive turns that around.

    `survives` tells whether a KeyboardInterrupt may leave a task of this loop without ending the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: object = loop
        self.survives: bool = getattr(loop, "survives_interrupts", False)
        self._loop = loop

    def task(self) -> Any:
        """Return the task that runs."""
        return asyncio.current_task(self._loop)

    def call_soon(self, callback: Callable[[], object]) -> bool:
        """Call back in the loop; from any thread and any signal handler. False where the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)
            return True
        return False

    def cancel(self, cell: RunningCell) -> None:
        """Interrupt a cell that awaits; in its loop."""
        cell.take()
        cell.cancels += 1
        cell.task.cancel()

    def forget_cancels(self, cell: RunningCell) -> None:
        """Take back all we asked for: a count that stays would cancel task groups of later cells."""
        while cell.cancels:
            cell.cancels -= 1
            cell.task.uncancel()


class TrioHost:
    """A trio loop whose tasks run cells: what the cell's task waits for is aborted with KeyboardInterrupt.

    That is trio's own way for the main task of a run; ours is for the task of a cell. A nursery that is aborted like
    this cancels its tasks and raises the interrupt in a group, as trio has it.
    """

    survives: bool = True

    def __init__(self) -> None:
        self._trio: Any = sys.modules["trio"].lowlevel
        self.loop: object = self._trio.current_trio_token()
        add_trio()

    @staticmethod
    def current() -> object:
        """Return what stands for the running loop."""
        return sys.modules["trio"].lowlevel.current_trio_token()

    def task(self) -> Any:
        """Return the task that runs."""
        return self._trio.current_task()

    def call_soon(self, callback: Callable[[], object]) -> bool:
        """Call back in the loop; from any thread and any signal handler. False where the loop has ended."""
        token: Any = self.loop
        with suppress(RuntimeError):  # the base of trio's RunFinishedError
            token.run_sync_soon(callback)
            return True
        return False

    def cancel(self, cell: RunningCell) -> None:
        """Interrupt a cell that awaits; in its loop. Where it cannot be now, the interrupt stays due.

        What must not be aborted (a thread that is waited for, say) takes the raising function and may call it later.
        """
        if cell.task._abort_func is not None:
            cell.task._attempt_abort(partial(_raise_in, cell))
        elif self._stands_at_a_checkpoint(cell):
            cell.take()
            cell.throws = True

    def forget_cancels(self, cell: RunningCell) -> None:
        """Do nothing: an abort leaves nothing behind."""

    def _stands_at_a_checkpoint(self, cell: RunningCell) -> bool:
        """Tell whether a cell only lets other tasks run, at a point where trio itself may raise."""
        codes = [frame.f_code for frame in awaiting_frames(cell.coroutine)]
        trio = self._trio
        return {trio.checkpoint.__code__, trio.cancel_shielded_checkpoint.__code__} <= set(codes[-3:])


def _raise_in(cell: RunningCell) -> NoReturn:
    cell.take()
    raise KeyboardInterrupt
