"""One function's calls, one after the other: the queue behind `Caller.queue_call`."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.calls import CURRENT, Call
from cobnut_kernel.caller.loops import Backend, run_function
from cobnut_kernel.caller.pending import Kind, Pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.caller.loops import Loop
    from cobnut_kernel.caller.scheduler import Scheduler

    Item = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class QueuePending(Pending[Any]):
    """The pending of a queue: done while nothing is queued, with the last result; done no more with the next call.

    Cancelling it closes the queue.
    """

    __slots__ = ("_queue",)

    def __init__(self, queue: CallQueue, metadata: dict[str, Any], context: Context) -> None:
        self._prepare(metadata, context)
        self._queue = queue

    def cancel(self, msg: str | None = None) -> bool:
        """Close the queue: what is queued is dropped, what runs is cancelled."""
        self._queue.close(msg)
        return self.cancelled()

    def reopen(self) -> None:
        """Be not done again: there is something to wait for."""
        self._outcome.clear()

    def mark_cancelled(self, msg: str | None) -> None:
        """Count as cancelled, unless it is done; it is done when what runs has ended."""
        super().cancel(msg)

    def settle(self, result: object) -> None:
        """Be done, for now."""
        self._settle(Kind.RESULT, result)

    def _needs_this_thread(self) -> bool:
        return self._queue.scheduler.is_served_here()

    def _is_awaited_by_itself(self) -> bool:
        return self._queue.is_running_here()


class CallQueues:
    """The queues of one caller, by the hash of their functions."""

    def __init__(self, scheduler: Scheduler, caller: object) -> None:
        self._caller: object = caller
        self._lock: threading.RLock = threading.RLock()
        self._queues: dict[int, CallQueue] = {}
        self._scheduler: Scheduler = scheduler

    def add(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> QueuePending:
        """Queue a call in its function's queue.

        Raises:
            CallerStoppedError: the caller takes no more calls.
        """
        key = hash(function)
        while True:
            queue = self._find(key) or self._new(key, function)
            if queue.add(function, args, kwargs):
                return queue.pending
            self._forget(key, queue)  # closed by another thread just now

    def pending(self, key: int) -> QueuePending | None:
        """Return the pending of a queue; None where there is no such queue."""
        queue = self._find(key)
        return None if queue is None else queue.pending

    def close(self, key: int, reason: str) -> None:
        """Close a queue, if there is one."""
        if (queue := self._find(key)) is not None:
            queue.close(reason)

    def close_all(self, reason: str) -> None:
        """Close all queues."""
        for key in list(self._queues):
            self.close(key, reason)

    def silence(self) -> None:
        """Settle all pendings in a forked child, where nobody waits for them."""
        for queue in self._queues.values():
            queue.pending.silence()
            queue.pending.mark_cancelled("Its process has forked.")
            queue.pending.settle(None)

    def _find(self, key: int) -> CallQueue | None:
        """Return the queue of a key; a function that was collected may have left its key to another one."""
        queue = self._queues.get(key)
        return None if queue is None or queue.is_orphaned else queue

    def _new(self, key: int, function: Callable[..., Any]) -> CallQueue:
        with self._lock:
            if self._find(key) is None:
                metadata = {"caller": self._caller, "key": key, "name": getattr(function, "__qualname__", "")}
                self._queues[key] = CallQueue(self._scheduler, function, metadata, partial(self._forget, key))
            return self._queues[key]

    def _forget(self, key: int, queue: CallQueue) -> None:
        with self._lock:
            if self._queues.get(key) is queue:
                del self._queues[key]


class CallQueue:
    """The queue of one function; a task runs while there is something in it.

    The context of the first call is that of all. What a call raises is logged, and the queue goes on.

    Args:
        scheduler: of the caller in whose loop the calls are made.
        function: closes the queue when it is collected: nothing here holds it once its calls are over.
        on_close: called once, when the queue takes no more calls.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        function: Callable[..., Any],
        metadata: dict[str, Any],
        on_close: Callable[[CallQueue], None],
    ) -> None:
        self.scheduler: Scheduler = scheduler
        self._context: Context = copy_context()
        self.pending: QueuePending = QueuePending(self, metadata, self._context)
        self._items: deque[Item] = deque()
        self.is_orphaned: bool = False
        """Its function was collected; it is about to be closed."""
        self._is_active: bool = False
        self._is_closed: bool = False
        self._lock: threading.RLock = threading.RLock()
        self._on_close: Callable[[CallQueue], None] = on_close
        self._run: Call[Any] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = _when_collected(self, function)

    def add(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Queue a call; return False where the queue is closed.

        Raises:
            CallerStoppedError: the caller takes no more calls.
        """
        self.scheduler.check_is_open()
        with self._lock:
            if self._is_closed:
                return False
            self._items.append((function, args, kwargs))
            starts = not self._is_active
            if starts:
                self._is_active = True
                self.pending.reopen()
        if starts:
            self._start()
        return True

    def close(self, reason: str | None = None) -> None:
        """Drop what is queued, and cancel what runs."""
        dropped: deque[Item] = (
            deque()
        )  # what it holds is let go after the lock: a function's end may close other queues
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            dropped.extend(self._items)
            self._items.clear()
            if self._is_active:
                self.pending.mark_cancelled(reason or "Its queue was closed.")
        if self._finalizer is not None:
            self._finalizer.detach()
        self._on_close(self)
        if (run := self._run) is not None:
            run.cancel(reason)

    def is_running_here(self) -> bool:
        """Say whether it is the queue's own task that runs now."""
        return self._run is not None and self._run._is_awaited_by_itself()

    def _start(self) -> None:
        metadata: dict[str, Any] = {"func": self._work, "args": (), "kwargs": {}}
        run: Call[Any] = Call(self.scheduler, metadata, self._context, tracked=False)
        self._run = run
        run.add_done_callback(self._ended)
        self.scheduler.submit(run)

    def _ended(self, run: Call[Any]) -> None:
        """Make the pending done where the task could not: it was cancelled, or has never begun."""
        if run.cancelled() or run.exception() is not None:
            self.close("Its task was cancelled.")
            self.pending.settle(None)
        if self._run is run:
            self._run = None

    async def _work(self) -> None:
        """Make the calls, one after the other, until none is left."""
        CURRENT.set(self.pending)
        loop = self.scheduler.loop
        assert loop is not None
        result = last = None  # the last one's function must not be collected before the pending is done
        while True:
            while item := self._next():
                last = item
                result = await self._call(loop, item, result)
                await loop.sleep(0)
            if self._rest(result):
                del last
                return

    def _next(self) -> Item | None:
        with suppress(IndexError):
            return self._items.popleft()
        return None

    async def _call(self, loop: Loop, item: Item, last: Any) -> Any:
        """Return the result of a call; where it fails, the last one."""
        try:
            return await run_function(*item)
        except BaseException as error:
            if isinstance(error, GeneratorExit) or self._is_closed or _ends_the_task(loop, error):
                raise
            self.scheduler.log.exception("A queued call of %r failed", item[0])
            return last

    def _rest(self, result: Any) -> bool:
        """Be done, unless something was queued meanwhile."""
        with self._lock:
            if self._items:
                return False
            self._is_active = False
            self.pending.settle(result)
        return True


def _ends_the_task(loop: Loop, error: BaseException) -> bool:
    """Say whether the task was cancelled; a CancelledError of asyncio's that is the user's own does not count."""
    if not loop.is_cancellation(error):
        return False
    if loop.backend is Backend.asyncio and isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return True


def _when_collected(queue: CallQueue, function: Callable[..., Any]) -> weakref.finalize[..., Any] | None:
    """Close a queue when its function is collected, or the object whose method it is; some never say."""
    reference = weakref.ref(queue)

    def collected() -> None:
        # Anything may be going on in this thread just now: the loop's closes it.
        if (queue := reference()) is not None:
            queue.is_orphaned = True
            queue.scheduler.post(partial(queue.close, "Its function was collected."))

    try:
        finalizer = weakref.finalize(getattr(function, "__self__", function), collected)
    except TypeError:
        return None
    finalizer.atexit = False
    return finalizer
