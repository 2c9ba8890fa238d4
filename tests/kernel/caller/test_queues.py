"""Queued calls: one after the other, per function."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from tests.kernel.leftovers import eventually

from cobnut_kernel.caller import Caller, CallerStoppedError, Pending, PendingCancelled, WouldDeadlockError

pytestmark = pytest.mark.anyio

VARIABLE: ContextVar[int] = ContextVar("VARIABLE", default=0)


async def test_calls_of_one_function_happen_one_after_the_other() -> None:
    """In the order in which they were queued; the pending is that of all of them, and has the last result."""
    caller = Caller()
    running: list[int] = []
    order: list[int] = []

    async def work(number: int) -> int:
        assert not running
        running.append(number)
        await anyio.sleep(0.001)
        order.append(running.pop())
        return number

    pendings = [caller.queue_call(work, number) for number in range(10)]
    assert set(pendings) == {caller.queue_get(work)}
    assert not pendings[0].done()
    assert await pendings[0] == 9
    assert order == list(range(10))
    assert pendings[0].done()
    assert await pendings[0] == 9


async def test_functions_do_not_wait_for_each_other() -> None:
    """Each has a queue of its own."""
    caller = Caller()
    event = Pending[str]()

    async def wait() -> str:
        return await event

    first = caller.queue_call(wait)
    assert await caller.queue_call(event.set_result, "done") is None
    assert await first == "done"


async def test_a_queue_that_was_empty_goes_on() -> None:
    """The pending is done while nothing is queued, and not done again with the next call."""
    caller = Caller()

    def same(number: int) -> int:
        return number

    for number in range(5):
        pending = caller.queue_call(same, number)
        assert not pending.done()
        assert await pending == number
        assert pending is caller.queue_get(same)


async def test_what_calls_raise_is_logged_and_the_queue_goes_on(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last result of those that succeed counts; a CancelledError of the user's own is no cancellation."""
    caller = Caller()

    def work(number: int) -> int:
        if number == 1:
            raise LookupError("one")
        if number == 2:
            raise SystemExit("two")
        if number == 3:
            raise asyncio.CancelledError("three")
        return number

    *_, pending = [caller.queue_call(work, number) for number in range(4)]
    assert await pending == 0
    for word in ("one", "two", "three"):
        assert word in caplog.text
    assert await caller.queue_call(work, 4) == 4


async def test_the_context_is_that_of_the_first_call() -> None:
    """Also for those that come when the queue was empty; the pending in it is the queue's."""
    caller = Caller()

    async def look() -> tuple[int, object]:
        return VARIABLE.get(), Caller.current_pending()

    VARIABLE.set(1)
    pending = caller.queue_call(look)
    VARIABLE.set(2)
    assert await caller.queue_call(look) == (1, pending)
    assert await caller.queue_call(look) == (1, pending)
    assert pending.context is not None
    assert pending.context[VARIABLE] == 1


@pytest.mark.parametrize("by", ["function", "hash", "pending"])
async def test_closing_a_queue_drops_what_is_queued_and_cancels_what_runs(by: str) -> None:
    """By the function, by its hash, or by cancelling the pending; a later call opens a new one."""
    caller = Caller()
    started = Pending[None]()
    called: list[int] = []

    async def work(number: int) -> int:
        called.append(number)
        if number == 0:
            started.set_result(None)
            await anyio.sleep_forever()
        return number

    *_, pending = [caller.queue_call(work, number) for number in range(5)]
    await started
    if by == "pending":
        assert pending.cancel()
    else:
        caller.queue_close(work if by == "function" else hash(work))
    assert caller.queue_get(work) is None
    with pytest.raises(PendingCancelled):
        await pending
    assert called == [0]
    assert await caller.queue_call(work, 7) == 7
    caller.queue_close(print)
    caller.queue_close(0)


async def test_closing_an_idle_queue_keeps_its_last_result() -> None:
    """There is nothing to cancel."""
    caller = Caller()
    pending = caller.queue_call(lambda: 5)
    assert await pending == 5
    assert not pending.cancel()
    assert pending.result() == 5


async def test_a_function_that_nobody_holds_is_called_and_its_queue_goes() -> None:
    """A lambda gives its result to who waits, before and after it was collected."""
    caller = Caller()
    pending = caller.queue_call(lambda: 5)
    await anyio.sleep(0.01)
    gc.collect()
    assert await pending == 5
    await eventually(lambda: not caller._queues._queues)


async def test_a_function_in_the_place_of_a_collected_one_has_a_queue_of_its_own() -> None:
    """The next object at the same address has the same hash; its calls are not dropped with the old queue."""
    caller = Caller()
    called: list[int] = []
    keys: set[int] = set()

    async def queue(number: int) -> None:
        def note() -> None:
            called.append(number)

        keys.add(hash(note))
        caller.queue_call(note)
        await anyio.lowlevel.checkpoint()

    for number in range(200):
        await queue(number)
    await eventually(lambda: len(called) == 200)
    assert len(keys) < 200, "no address was used again: the test has tested nothing"


async def test_a_queue_goes_with_the_object_whose_method_it_calls() -> None:
    """It does not keep it."""

    class Thing:
        def method(self) -> int:
            return 3

    caller = Caller()
    thing = Thing()
    reference = weakref.ref(thing)
    assert await caller.queue_call(thing.method) == 3
    assert caller.queue_get(thing.method) is not None
    del thing
    gc.collect()
    assert reference() is None
    await eventually(lambda: not caller._queues._queues)


async def test_a_function_that_says_nothing_of_its_end_can_be_queued() -> None:
    """Methods of built-in objects cannot be referred to weakly."""
    called: list[int] = []
    pending = Caller().queue_call(called.append, 1)
    assert await pending is None
    assert called == [1]
    Caller().queue_close(called.append)


async def test_a_call_may_queue_the_next() -> None:
    """The queue is not empty before that is done."""
    caller = Caller()
    called: list[int] = []

    def count(number: int) -> int:
        called.append(number)
        if number:
            caller.queue_call(count, number - 1)
        return number

    assert await caller.queue_call(count, 20) == 0
    assert called == list(range(20, -1, -1))


async def test_waiting_for_the_queue_in_it_is_an_error() -> None:
    """It would wait for its own end."""
    caller = Caller()

    async def wait() -> str:
        pending = caller.queue_get(wait)
        assert pending is not None
        with pytest.raises(WouldDeadlockError):
            await pending
        with pytest.raises(WouldDeadlockError):
            pending.wait_sync()
        return "not blocked"

    assert await caller.queue_call(wait) == "not blocked"


async def test_threads_queue_calls_and_none_is_lost() -> None:
    """Whenever the queue runs empty meanwhile; nor do two run at once."""
    caller = Caller()
    counted: list[int] = []
    running: list[int] = []

    async def count(number: int) -> int:
        assert not running
        running.append(number)
        await anyio.lowlevel.checkpoint()
        counted.append(running.pop())
        return number

    def queue(first: int) -> None:
        for number in range(200):
            pending = caller.queue_call(count, first + number)
            if number % 10 == 0:
                pending.wait_sync()

    for thread in [Caller().to_thread(queue, 1000 * number) for number in range(4)]:
        await thread
    await caller.queue_get(count)  # pyright: ignore[reportGeneralTypeIssues]
    assert len(counted) == 800
    for first in range(4):
        assert [n for n in counted if n // 1000 == first] == [1000 * first + n for n in range(200)]


async def test_what_is_queued_while_the_queue_runs_empty_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look that finds nothing and the rest, a thread may have queued something."""
    caller = Caller()

    def same(number: int) -> int:
        return number

    pending = caller.queue_call(same, 1)
    queue = caller._queues._find(hash(same))
    assert queue is not None
    take = queue._next
    added: list[Pending[int]] = []

    def take_and_add() -> Any:
        item = take()
        if item is None and not added:
            added.append(caller.queue_call(same, 2))
        return item

    monkeypatch.setattr(queue, "_next", take_and_add)
    assert await pending == 2
    assert added == [pending]


async def test_a_queue_ends_with_its_caller() -> None:
    """Waiters are told, and no further call is taken."""
    child = Caller().get()
    started = threading.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep_forever()

    pending: Pending[Any] = child.queue_call(work)
    child.queue_call(work)
    await anyio.to_thread.run_sync(started.wait)
    child.stop()
    with pytest.raises(PendingCancelled, match="was stopped"):
        await pending
    with pytest.raises(CallerStoppedError):
        child.queue_call(work)
    await child.stopped


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_queue_ends_with_its_loop(backend: str) -> None:
    """What runs is cancelled, and nothing that is queued begins any more."""
    called: list[int] = []

    async def work(number: int) -> None:
        called.append(number)
        await anyio.sleep_forever()

    async def main() -> list[Pending[Any]]:
        pendings = [Caller().queue_call(work, number) for number in range(3)]
        await anyio.sleep(0.01)
        return pendings

    pendings = anyio.run(main, backend=backend)
    assert called == [0]
    with pytest.raises(PendingCancelled):
        pendings[0].wait_sync(timeout=5)


async def test_a_waiter_that_gives_up_closes_the_queue_unless_it_is_protected() -> None:
    """As with every pending."""
    caller = Caller()

    async def work() -> None:
        await anyio.sleep_forever()

    pending = caller.queue_call(work)
    with pytest.raises(TimeoutError):
        await pending.wait(timeout=0.01, protect=True)
    assert caller.queue_get(work) is pending
    with pytest.raises(TimeoutError):
        await pending.wait(timeout=0.01)
    assert caller.queue_get(work) is None
    await pending.wait(result=False)


async def test_a_queue_of_a_manual_caller_begins_when_it_does() -> None:
    """What is queued before is kept."""
    caller = Caller("manual")
    called: list[int] = []

    def note(number: int) -> int:
        called.append(number)
        return number

    for number in range(3):
        caller.queue_call(note, number)
    async with caller:
        assert await caller.queue_call(note, 3) == 3
    assert called == [0, 1, 2, 3]
