"""Which starts may go on and which wait: at most so many at once, in an order that can be changed.

A start takes its place in the queue in the call that asks for it, and goes on when its turn comes. It holds its turn
until its kernel has answered or ended, or a limit of time is over: then the next one goes on.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def admitted(waiting: Iterable[Turn], starting: int, limit: int) -> list[Turn]:
    """Decide which of those who wait may start, besides those who do.

    Args:
        waiting: the first one first.
        starting: how many hold a turn.
        limit: how many may at once; 0 is no limit.
    """
    waiting = list(waiting)
    return waiting[: max(0, limit - starting)] if limit else waiting


class Turn:
    """One start's place in the queue.

    Attributes:
        kernel_id: of the kernel that starts.
        came: is done when the start may go on; cancelling it gives the place up.
        limit: after how many seconds the turn is over, whatever became of the start.
    """

    def __init__(self, queue: StartQueue, kernel_id: str, limit: float) -> None:
        self.kernel_id: str = kernel_id
        self.limit: float = limit
        self.came: Future[None] = Future()
        self._queue = queue

    def end(self) -> None:
        """Let the next one go on; whoever still waits waits no longer. Once is enough, in any thread."""
        self._queue.leave(self)


class StartQueue:
    """The starts of a multi-kernel manager that wait, and those that have their turn; safe to use from any thread.

    Args:
        limit: how many may start at once; 0 is no limit.
        turn_time: after how many seconds a turn is over, whatever became of the start.
    """

    def __init__(self, limit: int = 0, turn_time: float = 30.0) -> None:
        self.turn_time: float = turn_time
        self._lock = threading.RLock()
        self._limit = limit
        self._waiting: list[Turn] = []
        self._starting: list[Turn] = []

    @property
    def limit(self) -> int:
        """How many may start at once; 0 is no limit."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        with self._lock:
            self._limit = limit
            self._admit()

    @property
    def waiting(self) -> tuple[str, ...]:
        """The ids of the kernels that wait for their turn, the next one first."""
        return tuple(turn.kernel_id for turn in tuple(self._waiting))

    @property
    def starting(self) -> tuple[str, ...]:
        """The ids of the kernels that have their turn, in the order in which it came."""
        return tuple(turn.kernel_id for turn in tuple(self._starting))

    def position(self, kernel_id: str) -> int | None:
        """Return how many wait before a kernel; None where it does not wait."""
        waiting = self.waiting
        return waiting.index(kernel_id) if kernel_id in waiting else None

    # ── in and out ──────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, kernel_id: str) -> Turn:
        """Take the last place; the turn may come at once."""
        turn = Turn(self, kernel_id, self.turn_time)
        with self._lock:
            self._waiting.append(turn)
            self._admit()
        return turn

    def leave(self, turn: Turn) -> None:
        """Give a place or a turn up."""
        with self._lock:
            for turns in (self._waiting, self._starting):
                if turn in turns:
                    turns.remove(turn)
            self._admit()
        turn.came.cancel()

    # ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def move(self, kernel_id: str, position: int) -> None:
        """Let a kernel that waits wait elsewhere: 0 is the next one, and no place is behind the last.

        Raises:
            KeyError: it does not wait.
        """
        with self._lock:
            turn = self._waiter(kernel_id)
            self._waiting.remove(turn)
            self._waiting.insert(max(0, position), turn)

    def start_now(self, kernel_id: str) -> None:
        """Let a kernel go on although others have their turn.

        Raises:
            KeyError: it does not wait.
        """
        with self._lock:
            self._let_in(self._waiter(kernel_id))

    def _waiter(self, kernel_id: str) -> Turn:
        for turn in self._waiting:
            if turn.kernel_id == kernel_id:
                return turn
        raise KeyError(f"No start of a kernel with this id waits: {kernel_id}")

    def _admit(self) -> None:
        while turns := admitted(self._waiting, len(self._starting), self._limit):  # one given up makes room
            for turn in turns:
                self._let_in(turn)

    def _let_in(self, turn: Turn) -> None:
        self._waiting.remove(turn)
        if turn.came.set_running_or_notify_cancel():
            self._starting.append(turn)
            turn.came.set_result(None)
