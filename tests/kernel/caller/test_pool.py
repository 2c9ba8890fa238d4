"""Workers: taken for a call, idle afterwards, taken again, and ended when there are too many or for too long."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from tests.kernel.leftovers import eventually

from cobnut_kernel.caller import Caller, Pending, PendingCancelled

pytestmark = pytest.mark.anyio


async def test_a_worker_is_a_child_with_a_loop_of_the_same_backend(anyio_backend: str) -> None:
    """Its thread is another one, and it is the caller there."""
    caller = Caller()
    worker = await caller.to_thread(Caller)
    assert worker.parent is caller
    assert worker in caller.children
    assert worker.thread is not caller.thread
    assert worker.backend == anyio_backend


async def test_one_call_after_the_other_needs_one_worker() -> None:
    """It is idle as soon as the call is done, also when that failed or was cancelled."""
    caller = Caller()
    worker = await caller.to_thread(Caller)
    with pytest.raises(ZeroDivisionError):
        await caller.to_thread(lambda: 1 // 0)
    cancelled = caller.to_thread(anyio.sleep_forever)
    await anyio.sleep(0.01)
    cancelled.cancel()
    await cancelled.wait(result=False)
    for _ in range(20):
        assert await caller.to_thread(Caller) is worker
    assert caller.children == {worker}


async def test_there_are_as_many_workers_as_functions_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of them; when they are done, so many are kept as may be idle."""
    monkeypatch.setattr(Caller, "MAX_IDLE_POOL_INSTANCES", 3)
    caller = Caller()
    together = threading.Barrier(8)
    calls = [caller.to_thread(together.wait) for _ in range(8)]
    assert len(caller.children) == 8
    for call in calls:
        await call
    await eventually(lambda: len(caller.children) == 3)
    assert len(caller._pool) == 3


async def test_an_idle_worker_is_stopped_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whenever they became idle; those that are taken meanwhile are not."""
    monkeypatch.setattr(Caller, "IDLE_WORKER_SHUTDOWN_DURATION", 0.05)
    caller = Caller()
    first, second = caller.to_thread(Caller), caller.to_thread(Caller)
    workers = {await first, await second}
    assert len(workers) == 2
    busy = caller.to_thread(anyio.sleep_forever)
    for worker in workers - {busy.metadata["caller"]}:
        await worker.stopped.wait(timeout=20)
    assert not busy.done()
    assert caller.children == {busy.metadata["caller"]}
    busy.cancel()
    await busy.metadata["caller"].stopped.wait(timeout=20)
    assert len(caller._pool) == 0


async def test_without_a_duration_idle_workers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 switches the watch off; a watch that was set before does nothing then."""
    monkeypatch.setattr(Caller, "IDLE_WORKER_SHUTDOWN_DURATION", 0.02)
    caller = Caller()
    worker = await caller.to_thread(Caller)
    monkeypatch.setattr(Caller, "IDLE_WORKER_SHUTDOWN_DURATION", 0)
    await anyio.sleep(0.06)
    assert await caller.to_thread(Caller) is worker


async def test_a_worker_that_was_stopped_is_not_taken() -> None:
    """Another one is."""
    caller = Caller()
    first = await caller.to_thread(Caller)
    first.stop()
    second = await caller.to_thread(Caller)
    assert second is not first
    await first.stopped
    assert first not in caller.children


async def test_a_worker_may_stop_itself() -> None:
    """Its call is cancelled then, and the pool has one worker less."""
    caller = Caller()

    def stop() -> None:
        Caller().stop()

    with pytest.raises(PendingCancelled):
        await caller.to_thread(stop)
    await eventually(lambda: not caller.children)


async def test_a_worker_has_workers_of_its_own() -> None:
    """`Caller().to_thread` in a worker nests, and stopping the root ends all."""

    async def nest(depth: int) -> int:
        return depth if depth == 3 else await Caller().to_thread(nest, depth + 1)

    async with Caller("manual") as caller:
        assert await caller.to_thread(nest, 0) == 3
        (worker,) = caller.children
        assert len(worker.children) == 1
    assert worker.stopped


async def test_what_a_function_leaves_in_its_workers_loop_goes_on() -> None:
    """A call that it has scheduled there runs although its own is over."""
    later = Pending[str]()

    def leave() -> None:
        Caller().call_later(0.01, later.set_result, "late")

    await Caller().to_thread(leave)
    assert await later == "late"


async def test_stopping_with_a_worker_that_blocks(anyio_backend: str) -> None:
    """The call is cancelled; it is done, and the caller has stopped, when the code returns."""
    release = threading.Event()
    parent = Caller("NewThread", backend=anyio_backend)  # pyright: ignore[reportArgumentType]
    entered = threading.Event()

    def block() -> None:
        entered.set()
        release.wait()

    call = parent.to_thread(block)
    await anyio.to_thread.run_sync(entered.wait)
    parent.stop()
    assert call.cancelled()
    with pytest.raises(TimeoutError):
        await parent.stopped.wait(timeout=0.02)
    release.set()
    await parent.stopped
    assert call.done()


async def test_many_threads_share_a_pool() -> None:
    """However they race for workers, each call gets one and returns its own result."""
    caller = Caller()
    results: list[Any] = []

    def use(number: int) -> None:
        results.extend(caller.to_thread(divmod, 100 * number + i, 100).wait_sync() for i in range(50))

    users = [Caller().to_thread(use, number) for number in range(6)]
    for user in users:
        await user
    assert sorted(results) == [(number, i) for number in range(6) for i in range(50)]
    await eventually(lambda: len(caller._pool) == min(len(caller.children), Caller.MAX_IDLE_POOL_INSTANCES))


async def test_a_subclass_has_limits_of_its_own() -> None:
    """What a class says holds for its callers."""

    class Frugal(Caller):
        MAX_IDLE_POOL_INSTANCES = 0

    async with Frugal("manual") as caller:
        first = await caller.to_thread(Caller)
        await first.stopped
        assert isinstance(first, Frugal)
        assert not caller.children
