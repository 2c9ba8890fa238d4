"""Several pendings: in the order in which they become done, and until there are enough."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cobnut_kernel.caller import Caller, NoEventLoopError, Pending, PendingCancelled, WouldDeadlockError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cobnut_kernel.caller.completion import ReturnWhen

pytestmark = pytest.mark.anyio


async def after(delay: float, value: int) -> int:
    """Return a value a while later."""
    await anyio.sleep(delay)
    return value


async def test_pendings_come_in_the_order_in_which_they_become_done() -> None:
    """Whether they were done before, fail, or are cancelled; each once."""
    caller = Caller()
    done = Pending[int]()
    done.set_result(0)
    failing = caller.call_later(0.01, lambda: 1 // 0)
    cancelled = caller.call_soon(anyio.sleep_forever)
    caller.call_later(0.03, cancelled.cancel)
    items: list[Pending[Any]] = [caller.call_soon(after, 0.06, 3), cancelled, failing, done, done]
    seen = [pending async for pending in caller.as_completed(items)]
    assert seen == [done, failing, cancelled, items[0]]
    with pytest.raises(ZeroDivisionError):
        failing.result()


async def test_nothing_completes_nothing() -> None:
    """An empty list, generator or asynchronous generator ends at once."""

    async def none() -> AsyncGenerator[Pending[int]]:
        for pending in list[Pending[int]]():
            yield pending

    empty: list[Any] = [[], iter(()), none()]
    for items in empty:
        assert [pending async for pending in Caller().as_completed(items)] == []


async def test_a_generator_is_asked_for_as_many_as_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default as many as may be idle in the pool, so that no more workers are made; a container is taken whole."""
    monkeypatch.setattr(Caller, "MAX_IDLE_POOL_INSTANCES", 2)
    caller = Caller()
    running: list[int] = []
    highest: list[int] = []

    async def work(number: int) -> threading.Thread:
        running.append(number)
        highest.append(len(running))
        await anyio.sleep(0.002)
        running.pop()
        return threading.current_thread()

    for limit, expected in ((None, 2), (5, 5), (2, 2)):
        highest.clear()
        threads: set[threading.Thread] = set()
        made = (caller.to_thread(work, number) for number in range(20))
        async for pending in caller.as_completed(made, max_concurrent=limit):
            threads.add(pending.result())
        assert max(highest) <= expected
        assert len(threads) >= expected
    highest.clear()
    calls = [caller.call_soon(work, number) for number in range(20)]
    assert len([pending async for pending in caller.as_completed(calls)]) == 20
    assert max(highest) == 20


async def test_an_endless_asynchronous_generator_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented example: it is asked for more while there is room, and is closed when the loop is left."""
    monkeypatch.setattr(Caller, "MAX_IDLE_POOL_INSTANCES", 3)
    caller = Caller()
    made: list[Pending[int]] = []
    closed = Pending[None]()

    async def forever() -> AsyncGenerator[Pending[int]]:
        try:
            while True:
                made.append(caller.to_thread(abs, len(made)))
                yield made[-1]
        finally:
            closed.set_result(None)

    seen: list[int] = []
    async with aclosing(caller.as_completed(forever())) as completed:
        async for pending in completed:
            seen.append(await pending)
            if len(seen) == 10:
                break
    await closed
    assert sorted(seen) == sorted(set(seen))
    assert len(made) <= 10 + 3


@pytest.mark.parametrize("cancel", [True, False])
async def test_leaving_early_cancels_the_rest_if_wanted(cancel: bool) -> None:
    """`break` is enough."""
    caller = Caller()
    items = [caller.call_soon(int), *(caller.call_soon(anyio.sleep_forever) for _ in range(3))]
    async for pending in caller.as_completed(items, cancel_unfinished=cancel):
        assert pending is items[0]
        break
    assert [item.cancelled() for item in items[1:]] == [cancel] * 3
    assert all(len(item._callbacks) == 0 for item in items)


async def test_a_cancelled_iteration_cancels_the_rest() -> None:
    """The scope around it is left, and all are done."""
    caller = Caller()
    items = [caller.to_thread(anyio.sleep_forever) for _ in range(5)]
    with anyio.move_on_after(0.02):
        async for _ in caller.as_completed(items):
            pass
    for item in items:
        with pytest.raises(PendingCancelled, match="iteration"):
            await item


async def test_an_error_of_the_generator_ends_the_iteration() -> None:
    """It comes out, of the synchronous and of the asynchronous one, and what it has made is cancelled."""
    caller = Caller()
    made: list[Pending[Any]] = []

    def make() -> Iterator[Pending[Any]]:
        made.append(caller.call_soon(anyio.sleep_forever))
        yield made[-1]
        raise LookupError

    async def make_async() -> AsyncGenerator[Pending[Any]]:
        for pending in make():
            yield pending

    for items in (make(), make_async()):
        with pytest.raises(LookupError):
            async for _ in caller.as_completed(items):
                pass
    assert [pending.cancelled() for pending in made] == [True, True]


async def test_whatever_can_be_awaited_is_taken(anyio_backend: str) -> None:
    """Coroutines, and asyncio's tasks; the pendings of them are what comes."""
    caller = Caller()
    seen = {pending.result() async for pending in caller.as_completed(after(i / 1000, i) for i in range(4))}
    assert seen == {0, 1, 2, 3}
    done, pending = await caller.wait(after(i / 1000, i) for i in range(4))
    assert {each.result() for each in done} == {0, 1, 2, 3}
    assert pending == set()
    if anyio_backend == "asyncio":
        done, _ = await caller.wait([asyncio.ensure_future(after(0, 5))])
        assert {each.result() for each in done} == {5}


async def test_iterating_in_another_thread_uses_that_ones_loop() -> None:
    """The caller need not be that of the thread that iterates."""
    main = Caller()

    async def iterate() -> list[int]:
        return [pending.result() async for pending in main.as_completed(main.call_soon(after, 0, i) for i in range(3))]

    assert sorted(await main.get().call_soon(iterate)) == [0, 1, 2]


async def test_a_call_cannot_wait_for_itself_among_others() -> None:
    """It is an error instead of a wait without end."""
    caller = Caller()

    async def iterate(asynchronous: bool) -> None:
        current = Caller.current_pending()
        assert current is not None

        async def items() -> AsyncGenerator[Pending[Any]]:
            yield current

        async for _ in caller.as_completed(items() if asynchronous else [current]):
            pass

    async def wait() -> None:
        current = Caller.current_pending()
        assert current is not None
        await caller.wait([current])

    for call in (caller.call_soon(iterate, True), caller.call_soon(iterate, False), caller.call_soon(wait)):
        with pytest.raises(WouldDeadlockError, match="its own end"):
            await call


def test_without_a_loop_nothing_can_be_iterated() -> None:
    """The error says so."""
    caller = Caller("NewThread", backend="asyncio")
    with pytest.raises(NoEventLoopError):
        caller.as_completed([])
    caller.stop()


@pytest.mark.parametrize("return_when", ["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
async def test_waiting_ends_when_there_is_enough(return_when: ReturnWhen) -> None:
    """As `asyncio.wait`: a cancelled one is not an exception."""
    caller = Caller()
    gates = [Pending[None]() for _ in range(4)]

    async def work(number: int) -> None:
        await gates[number].wait(protect=True)
        if number == 2:
            raise LookupError

    items = [caller.call_soon(work, number) for number in range(4)]
    order = {"FIRST_COMPLETED": [1], "FIRST_EXCEPTION": [0, 2], "ALL_COMPLETED": [0, 1, 2, 3]}[return_when]
    if return_when == "FIRST_EXCEPTION":
        await anyio.sleep(0.01)
        items[1].cancel()
    for number in order:
        caller.call_later(0.01 * number, gates[number].set_result, None)
    done, pending = await caller.wait(items, return_when=return_when)
    expected = {"FIRST_COMPLETED": {1}, "FIRST_EXCEPTION": {0, 1, 2}, "ALL_COMPLETED": {0, 1, 2, 3}}[return_when]
    assert done == {items[number] for number in expected}
    assert pending == set(items) - done
    assert not any(each.cancelled() for each in pending)
    for item in items:
        item.cancel()
        await item.wait(result=False)
    assert items[2].cancelled() or items[2].exception()


async def test_time_that_is_up_is_no_error() -> None:
    """What is not done is in the second set, and goes on."""
    caller = Caller()
    fast, slow = caller.call_soon(int), caller.call_soon(anyio.sleep_forever)
    assert await caller.wait([fast, slow], timeout=0.05) == ({fast}, {slow})
    assert await caller.wait([slow], timeout=0) == (set(), {slow})
    assert not slow.cancelled()
    assert await caller.wait([]) == (set(), set())


async def test_a_cancelled_wait_leaves_the_pendings_alone() -> None:
    """Unlike `await`."""
    caller = Caller()
    slow = caller.call_soon(anyio.sleep_forever)
    with anyio.move_on_after(0.01):
        await caller.wait([slow])
    assert not slow.cancelled()
    assert len(slow._callbacks) == 0
