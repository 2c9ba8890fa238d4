"""The workers of a caller: children in threads of their own, which `to_thread` takes and which come back when done."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.errors import CallerStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.caller.caller import Caller
    from cobnut_kernel.caller.pending import Pending


class Worker:
    """A worker, and since when it has had nothing to do."""

    __slots__ = ("caller", "idle_since", "is_watched")

    def __init__(self, caller: Caller) -> None:
        self.caller: Caller = caller
        self.idle_since: float = 0.0
        self.is_watched: bool = False
        """A timer of its loop will look whether it has been idle for too long."""


class WorkerPool:
    """The idle workers of one caller; the one that became idle last is taken first.

    A worker is in the deque or belongs to a call, never both: who gets it out of the deque has it.

    Args:
        owner: the caller; its class says how many workers may be idle, and how long.
    """

    def __init__(self, owner: Caller) -> None:
        self._owner: Caller = owner
        self._idle: deque[Worker] = deque()

    def __len__(self) -> int:
        """Return how many workers are idle."""
        return len(self._idle)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pending[Any]:
        """Call a function in an idle worker, or in a new one.

        Raises:
            CallerStoppedError: the owner takes no more calls.
        """
        while True:
            worker = self._take()
            try:
                pending = worker.caller.schedule_call(function, args, kwargs)
            except CallerStoppedError:
                if not self._owner.running:
                    raise
                continue  # it was stopped just now, alone: there are others
            pending.add_done_callback(partial(self._put, worker))
            return pending

    def discard(self, caller: Caller) -> None:
        """Forget a worker that was stopped."""
        for worker in list(self._idle):
            if worker.caller is caller:
                self._remove(worker)

    def _take(self) -> Worker:
        try:
            return self._idle.pop()
        except IndexError:
            return Worker(self._owner.get())

    def _put(self, worker: Worker, _: object) -> None:
        """Let a worker be idle, or end it where enough of them are; in whatever thread its call became done."""
        if not worker.caller.running:
            return
        if len(self._idle) >= self._owner.MAX_IDLE_POOL_INSTANCES:
            worker.caller.stop(force=True)
            return
        worker.idle_since = time.monotonic()
        self._idle.append(worker)
        duration = self._owner.IDLE_WORKER_SHUTDOWN_DURATION
        if duration > 0 and not worker.is_watched:
            self._watch(worker, duration)

    def _watch(self, worker: Worker, delay: float) -> None:
        """Look after some seconds how long the worker has been idle, by a timer of its own loop."""
        worker.is_watched = True
        with suppress(CallerStoppedError):
            worker.caller.call_direct(self._set_timer, worker, delay)

    def _set_timer(self, worker: Worker, delay: float) -> None:
        """Set the timer, in the worker's thread."""
        loop = worker.caller._scheduler.loop
        assert loop is not None
        loop.call_later(delay, partial(self._look_at, worker))

    def _look_at(self, worker: Worker) -> None:
        """End a worker that has been idle for too long; in its own thread."""
        worker.is_watched = False
        duration = self._owner.IDLE_WORKER_SHUTDOWN_DURATION
        if duration <= 0 or worker not in self._idle:  # a busy one is watched again when it is put back
            return
        remaining = worker.idle_since + duration - time.monotonic()
        if remaining > 0:
            self._watch(worker, remaining)
        elif self._remove(worker):
            worker.caller.stop(force=True)

    def _remove(self, worker: Worker) -> bool:
        """Get a worker out of the deque; return whether it is ours now."""
        try:
            self._idle.remove(worker)
        except (ValueError, IndexError):  # a call has it; or the deque was changed while it was searched
            return False
        return True
