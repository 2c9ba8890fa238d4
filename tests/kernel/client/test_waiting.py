"""Futures between threads and loops."""

from __future__ import annotations

import threading
from functools import partial

import anyio
import pytest

from cobnut_kernel.client.waiting import SharedFuture, Waiters
from cobnut_kernel.errors import KernelDiedError
from cobnut_kernel.transport import Bell

pytestmark = pytest.mark.anyio


async def test_future_brings_a_result_from_another_thread() -> None:
    """A task that awaits a future gets the result that a thread sets."""
    future = SharedFuture[int]()
    async with anyio.create_task_group() as tasks:
        results: list[int] = []

        async def wait() -> None:
            results.append(await future)

        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        thread = threading.Thread(target=future.set_result, args=(7,))
        thread.start()
    thread.join()
    assert results == [7, 7]


async def test_future_can_be_awaited_again() -> None:
    """A future that is done gives its result as often as it is awaited."""
    future = SharedFuture[int]()
    future.set_result(7)
    assert [await future, await future] == [7, 7]


async def test_first_outcome_counts() -> None:
    """Results and errors after the first have no effect."""
    future = SharedFuture[int]()
    future.set_result(1)
    future.set_result(2)
    future.set_error(KernelDiedError("too late"))
    assert await future == 1


async def test_each_waiter_raises_an_error_of_its_own() -> None:
    """Waiters do not share one exception object, whose traceback would grow with each."""
    future = SharedFuture[int]()
    future.set_error(KernelDiedError("gone"))
    future.set_result(1)
    with pytest.raises(KernelDiedError, match="gone") as first:
        await future
    with pytest.raises(KernelDiedError, match="gone") as second:
        await future
    assert first.value is not second.value


async def test_cancelled_waiter_leaves_the_others() -> None:
    """A waiter that is cancelled takes nothing from those who go on waiting."""
    future = SharedFuture[int]()
    results: list[int] = []

    async def wait() -> None:
        results.append(await future)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        with anyio.move_on_after(0):
            await future
        await anyio.wait_all_tasks_blocked()
        future.set_result(3)
    assert results == [3]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_one_future_serves_two_kinds_of_loop(anyio_backend: str) -> None:
    """Tasks under asyncio and under trio, in two threads, await one future."""
    future = SharedFuture[int]()
    results: list[int] = []
    ready = threading.Barrier(3)

    async def wait() -> None:
        ready.wait()
        results.append(await future)

    threads = [threading.Thread(target=partial(anyio.run, wait, backend=name)) for name in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    ready.wait()
    future.set_result(5)
    for thread in threads:
        thread.join()
    assert results == [5, 5]


async def test_wake_between_question_and_wait_is_not_missed() -> None:
    """What comes while the waiter is being entered ends the wait."""
    waiters = Waiters()
    arrived: list[int] = []

    def ready() -> list[int]:
        if not arrived:
            arrived.append(1)
            waiters.wake()
            return []
        return arrived

    await waiters.wait(ready)
    assert arrived


def test_wake_after_the_loop_has_ended_is_harmless() -> None:
    """Waking a waiter whose loop is gone raises nothing."""
    waiters = Waiters()

    async def leave() -> None:
        waiters._bells.append(bell := Bell())
        with anyio.move_on_after(0):
            await bell.wait(lambda: False)

    anyio.run(leave)
    waiters.wake()
