"""Pendings in the order in which they become done: what is behind `Caller.as_completed` and `Caller.wait`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterable
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from cobnut_kernel.caller.calls import CURRENT
from cobnut_kernel.caller.errors import WouldDeadlockError
from cobnut_kernel.caller.pending import Latch, Pending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator
    from typing import Self

    from cobnut_kernel.caller.caller import Caller
    from cobnut_kernel.caller.pending import PendingCreateOptions

T = TypeVar("T")

ReturnWhen = Literal["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"]


UNTRACKED: PendingCreateOptions = {"allow_tracking": False}


class Completions(Generic[T]):
    """Collects pendings that any thread makes done, for one task that takes them.

    Args:
        caller: of the thread; it makes pendings of what else can be awaited.
        limit: how many may be collected and not taken at a time; 0 for any number.
    """

    def __init__(self, caller: Caller, limit: int = 0) -> None:
        self.caller: Caller = caller
        self.collected: set[Pending[T]] = set()
        self._limit: int = limit
        self._is_released: bool = False
        self._done: deque[Pending[Any]] = deque()
        self._news: Latch = Latch()
        self._room: Latch = Latch()
        current = CURRENT.get()
        self._taker = current if current is not None and current._is_awaited_by_itself() else None

    def has_room(self) -> bool:
        """Say whether one more may be collected."""
        return not self._is_released and (not self._limit or len(self.collected) < self._limit)

    def add(self, item: Awaitable[T]) -> None:
        """Collect one.

        Raises:
            WouldDeadlockError: it is the very call that takes them.
        """
        pending: Pending[T] = item if isinstance(item, Pending) else self.caller.call_soon(_result_of, item)
        if pending is self._taker:
            raise WouldDeadlockError(f"{pending} would wait for its own end.")
        if pending not in self.collected:
            self.collected.add(pending)
            pending.add_done_callback(self.note)

    def add_from(self, items: Iterator[Awaitable[T]]) -> bool:
        """Collect while there is room; return whether there may be more."""
        while self.has_room():
            try:
                self.add(next(items))
            except StopIteration:
                return False
        return True

    async def feed(self, items: AsyncIterable[Awaitable[T]]) -> None:
        """Collect to the end, one whenever there is room; in a task of its own, which closes a generator too."""
        async with aclosing(items) if hasattr(items, "aclose") else nullcontext():  # pyright: ignore[reportArgumentType]
            async for item in items:
                self.add(item)
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        while not self.has_room():
            self._room = room = Latch()
            if not self.has_room():  # looked at again, because the taker may have set the one before
                await room

    def note(self, pending: Pending[Any]) -> None:
        """Put in line what is done, in any thread."""
        self._done.append(pending)
        self._news.set()

    async def take(self, deadline: float | None = None) -> Pending[Any]:
        """Wait for the next that is done.

        Raises:
            TimeoutError: the deadline has passed, on the clock of `time.monotonic`.
        """
        while not self._done:
            self._news = news = Latch()
            if not self._done:  # looked at again, because a thread may have set the one before
                await news.wait(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        pending = self._done.popleft()
        self.collected.discard(pending)
        self._room.set()
        return pending

    async def take_until(self, deadline: float | None, return_when: ReturnWhen) -> set[Pending[T]]:
        """Take what is done until there is enough, or the time is up; what is left stays collected."""
        done: set[Pending[T]] = set()
        while self.collected:
            try:
                pending = await self.take(deadline)
            except TimeoutError:
                break
            done.add(pending)
            if _is_enough(pending, return_when):
                break
        return done

    def release(self, reason: str | None) -> None:
        """Collect no more, let go of those that were not taken, and with a reason cancel them."""
        self._is_released = True
        for pending in list(self.collected):
            pending.remove_done_callback(self.note)
            if reason is not None:
                pending.cancel(reason)
        self.collected.clear()


class AsCompleted(Generic[T]):
    """An asynchronous iterator over pendings as they become done.

    Whatever ends the iteration, `break` included, lets go of the rest.

    Args:
        completions: collects them.
        items: all of them, or what makes them one after the other.
        cancel_unfinished: cancel the rest.
    """

    def __init__(
        self,
        completions: Completions[T],
        items: Iterable[Awaitable[T]] | AsyncIterable[Awaitable[T]],
        *,
        cancel_unfinished: bool,
    ) -> None:
        self._completions: Completions[T] = completions
        self._reason: str | None = "The iteration over it has ended." if cancel_unfinished else None
        self._feeder: Pending[Any] | None = None
        self._items: Iterator[Awaitable[T]] | None = None
        if isinstance(items, AsyncIterable):
            self._feeder = completions.caller.schedule_call(completions.feed, (items,), {}, UNTRACKED)
            self._feeder.add_done_callback(completions.note)
        else:
            self._items = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Pending[T]:
        try:
            self._fill()
            while self._feeder is not None or self._completions.collected:
                pending = await self._completions.take()
                if pending is not self._feeder:
                    self._fill()
                    return pending
                self._feeder = None
                pending.result()  # raises what the iterator of the items has raised
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration."""
        self.close()

    def close(self) -> None:
        """End the iteration: let go of the rest, and cancel it where that was asked for."""
        self._items = None
        if self._feeder is not None:
            self._feeder.cancel(self._reason)
            self._feeder = None
        self._completions.release(self._reason)

    def __del__(self) -> None:
        if hasattr(self, "_items"):
            self.close()

    def _fill(self) -> None:
        if self._items is not None and not self._completions.add_from(self._items):
            self._items = None


def as_completed(
    caller: Caller,
    items: Iterable[Awaitable[T]] | AsyncIterable[Awaitable[T]],
    max_concurrent: int | None,
    *,
    cancel_unfinished: bool,
) -> AsCompleted[T]:
    """Iterate over pendings as they become done, in the thread of the caller; `Caller.as_completed` says how."""
    default = 0 if hasattr(items, "__len__") else caller.MAX_IDLE_POOL_INSTANCES
    completions: Completions[T] = Completions(caller, default if max_concurrent is None else int(max_concurrent))
    return AsCompleted(completions, items, cancel_unfinished=cancel_unfinished)


async def wait(
    caller: Caller, items: Iterable[Awaitable[T]], timeout: float | None, return_when: ReturnWhen
) -> tuple[set[Pending[T]], set[Pending[T]]]:
    """Wait for some pendings, in the thread of the caller; `Caller.wait` says how."""
    deadline = None if timeout is None else time.monotonic() + timeout
    completions: Completions[T] = Completions(caller)
    try:
        completions.add_from(iter(items))
        done = await completions.take_until(deadline, return_when)
        return done, set(completions.collected)
    finally:
        completions.release(None)


async def _result_of(item: Awaitable[T]) -> T:
    return await item


def _is_enough(pending: Pending[Any], return_when: ReturnWhen) -> bool:
    """Say whether one that is done ends the wait; as with asyncio, a cancelled one is no exception."""
    if return_when == "FIRST_EXCEPTION":
        return not pending.cancelled() and pending.exception() is not None
    return return_when == "FIRST_COMPLETED"
