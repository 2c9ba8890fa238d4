"""How callers end: stopped, with their loop, and collected."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import Any

import anyio
import pytest
from tests.kernel.caller.conftest import in_thread
from tests.kernel.leftovers import eventually

from cobnut_kernel.caller import (
    Caller,
    CallerState,
    CallerStoppedError,
    Pending,
    PendingCancelled,
    WouldDeadlockError,
)

pytestmark = pytest.mark.anyio


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_stopping_cancels_what_is_scheduled_and_wakes_who_waits(backend: Any) -> None:
    """Whatever state a call is in: queued, waiting for its time, running; and no thread is left."""
    caller = Caller("NewThread", backend=backend)
    started = threading.Event()
    cleaned: list[bool] = []

    async def run() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)

    calls = [caller.call_soon(run), caller.call_later(1000, int)]
    await anyio.to_thread.run_sync(started.wait)
    assert caller.stop() in (CallerState.stopping, CallerState.stopped)
    assert caller.stop() in (CallerState.stopping, CallerState.stopped)
    for call in calls:
        with pytest.raises(PendingCancelled, match="was stopped"):
            await call
    await caller.stopped
    assert cleaned == [True]
    with pytest.raises(RuntimeError, match=r"was stopped. Ask for another one with Caller\(\)"):
        caller.call_soon(int)
    for refused in (caller.call_direct, caller.to_thread, caller.queue_call):
        with pytest.raises(CallerStoppedError):
            refused(int)
    await eventually(lambda: not caller.thread.is_alive())
    assert Caller.get_current(caller.thread) is None


async def test_stopping_a_guest_leaves_the_loop_alone() -> None:
    """The next `Caller()` is a new one in the same loop."""
    caller = Caller()
    forever = caller.call_soon(anyio.sleep_forever)
    assert await caller.call_soon(lambda: 1 + 1) == 2
    caller.stop()
    await caller.stopped
    assert forever.cancelled()
    assert Caller() is not caller
    assert await Caller().call_soon(lambda: 3) == 3


async def test_a_guest_that_stops_makes_room_at_once() -> None:
    """`Caller()` right after `stop()` is a new one; a thread of its own has one caller to its end."""
    caller = Caller()
    forever = caller.call_soon(anyio.sleep_forever)
    caller.stop()
    new = Caller()
    assert new is not caller
    assert await new.call_soon(lambda: 1) == 1
    await caller.stopped
    assert Caller() is new
    assert forever.cancelled()

    async def clean_up() -> None:
        begun.set_result(None)
        try:
            await anyio.sleep_forever()
        finally:
            found.append(Caller())

    found: list[Caller] = []
    begun = Pending[None]()
    child = new.get()
    call = child.call_soon(clean_up)
    await begun
    child.stop()
    await call.wait(result=False)
    assert found in ([], [child])


async def test_blocking_for_the_end_in_the_callers_own_thread_is_an_error() -> None:
    """The end would never come; `await` does not block."""
    caller = Caller()
    caller.stop()
    with pytest.raises(WouldDeadlockError, match="use `await`"):
        caller.stopped.wait_sync()
    await caller.stopped
    assert caller.stopped.wait_sync() is None


async def test_a_call_that_stops_its_caller_ends() -> None:
    """It is cancelled like all others; nothing deadlocks."""
    child = Caller().get()
    with pytest.raises(PendingCancelled):
        await child.call_soon(child.stop)
    await child.stopped

    async def stop_and_wait() -> None:
        Caller().stop()
        await Caller().stopped

    child = Caller().get()
    with pytest.raises(PendingCancelled):
        await child.call_soon(stop_and_wait)
    await child.stopped


async def test_a_call_that_resists_its_cancellation_is_cancelled_again_by_stop(anyio_backend: str) -> None:
    """On asyncio, where a cancellation comes once, a task that swallowed it can still be stopped."""
    child = Caller().get(backend="asyncio")
    swallowed = threading.Event()
    started = threading.Event()

    async def resist() -> None:
        started.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.sleep(1000)

    pending = child.call_soon(resist)
    await anyio.to_thread.run_sync(started.wait)
    pending.cancel()
    await anyio.to_thread.run_sync(swallowed.wait)
    assert not pending.done()
    child.stop()
    await child.stopped
    assert pending.done()


async def test_calls_and_a_stop_race_and_every_call_is_done() -> None:
    """Whatever another thread schedules while the caller stops is done or refused."""
    for _ in range(20):
        child = Caller().get(backend="asyncio")
        pendings: list[Any] = []

        def schedule(child: Caller = child, pendings: list[Any] = pendings) -> None:
            try:
                while True:
                    pendings.append(child.call_soon(int))
            except CallerStoppedError:
                pass

        thread = in_thread(schedule)
        await eventually(lambda pendings=pendings: pendings)
        child.stop()
        await anyio.to_thread.run_sync(thread.join)
        await child.stopped
        assert all(pending.done() for pending in pendings)


async def test_a_call_that_the_stop_did_not_see_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another thread schedules just then, when the stop has looked at all calls already."""
    caller = Caller().get()

    class StopsFirst(set[Any]):
        def add(self, call: Any) -> None:
            caller.stop()
            super().add(call)

    await caller.call_soon(int)
    monkeypatch.setattr(caller._scheduler, "calls", StopsFirst())
    call = caller.call_soon(anyio.sleep_forever)
    assert call.cancelled()
    with pytest.raises(PendingCancelled, match="was stopped"):
        await call
    await caller.stopped


async def test_the_state_of_a_caller_is_shown() -> None:
    """Its repr tells name and state."""
    caller = Caller("manual", name="mine")
    assert repr(caller) == "Caller<mine ❗>"
    async with caller:
        assert repr(caller) == "Caller<mine 🏃>"
    assert repr(caller) == "Caller<mine ⛔>"


# ── a loop that ends ────────────────────────────────────────────────────────────────────────────────────────────────


def run_to_its_end(backend: str, *, how: str) -> tuple[Caller, list[Any]]:
    """Let a loop with a caller end in this thread; return the caller, and calls in every state."""

    async def main() -> tuple[Caller, list[Any]]:
        caller = Caller()
        running = caller.call_soon(anyio.sleep_forever)
        await anyio.sleep(0.01)
        queued: list[Any] = []
        in_thread(lambda: queued.append(caller.call_soon(anyio.sleep_forever))).join()
        return caller, [running, caller.call_soon(anyio.sleep_forever), caller.call_later(1000, int), *queued]

    if how == "run":
        return anyio.run(main, backend=backend)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize(("backend", "how"), [("asyncio", "run"), ("trio", "run"), ("asyncio", "close")])
def test_a_caller_ends_with_its_loop(backend: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """All calls are cancelled, waiters in other threads are woken, and the caller is no more."""
    caller, calls = run_to_its_end(backend, how=how)
    assert caller.stopped
    assert Caller.all_callers(running_only=False) == []
    for call in calls:
        assert call.done()
        with pytest.raises(PendingCancelled):
            call.wait_sync(timeout=5)
    with pytest.raises(CallerStoppedError):
        caller.call_soon(int)
    del caller, calls, call  # pyright: ignore[reportPossiblyUnboundVariable]
    gc.collect()
    assert caplog.text == "", "asyncio complains of tasks that were left"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_caller_made_in_the_last_step_of_a_loop_ends_too(backend: str) -> None:
    """Its task never gets to run on asyncio; still nothing is left, and nothing is complained about."""

    async def main() -> tuple[Caller, Any]:
        return Caller(), Caller().call_soon(anyio.sleep_forever)

    caller, call = anyio.run(main, backend=backend)
    assert caller.stopped
    assert call.cancelled()
    assert call.done()
    gc.collect()


def test_a_loop_that_is_never_closed_gives_way_to_the_next() -> None:
    """A new loop in the same thread gets a caller of its own, and the old one's ends with its loop."""
    loop = asyncio.new_event_loop()

    async def caller_here() -> Caller:
        return Caller()

    first = loop.run_until_complete(caller_here())
    assert loop.run_until_complete(caller_here()) is first
    second = asyncio.run(caller_here())
    assert second is not first
    assert second.stopped
    assert not first.stopped
    loop.close()
    assert first.stopped


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loop_that_is_dropped_takes_its_calls_along(caplog: pytest.LogCaptureFixture) -> None:
    """Neither stopped nor closed, only collected, once the thread has a caller for another loop."""
    loop = asyncio.new_event_loop()
    started: list[bool] = []

    async def work() -> None:
        started.append(True)
        await asyncio.sleep(1000)

    async def main() -> Any:
        call = Caller().call_soon(work)
        await asyncio.sleep(0.01)
        return call

    async def other() -> None:
        Caller()

    call = loop.run_until_complete(main())
    asyncio.run(other())
    assert started
    assert not call.done()
    caller = weakref.ref(call.metadata.pop("caller"))
    reference = weakref.ref(call)
    outcomes: list[bool] = []

    def note(call: Any) -> None:
        outcomes.append(call.cancelled())

    call.add_done_callback(note)
    del loop, call
    gc.collect()
    assert outcomes == [True]
    assert caller() is None
    assert reference() is None
    assert "ignored GeneratorExit" not in caplog.text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_a_loop_does_not_wait_for_threads(backend: str) -> None:
    """A worker that blocks holds up nothing; it ends when its code does."""
    release = threading.Event()

    async def main() -> Any:
        pending = Caller().to_thread(release.wait)
        await anyio.sleep(0.02)
        return pending

    pending = anyio.run(main, backend=backend)
    assert pending.cancelled()
    assert not pending.done()
    release.set()
    with pytest.raises(PendingCancelled):
        pending.wait_sync()


def test_a_waiter_in_another_thread_is_woken_when_the_loop_ends() -> None:
    """`wait_sync` there does not wait for ever for a loop that is gone."""
    woken: list[BaseException] = []

    async def main() -> threading.Thread:
        pending = Caller().call_soon(anyio.sleep_forever)

        def wait() -> None:
            try:
                pending.wait_sync(timeout=20)
            except BaseException as error:
                woken.append(error)

        return in_thread(wait)

    asyncio.run(main()).join()
    assert [type(error) for error in woken] == [PendingCancelled]


# ── garbage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stopped_caller_is_collected() -> None:
    """Nothing holds one that has stopped: neither registry nor loop nor thread."""
    async with Caller("manual") as caller:
        assert await caller.call_soon(lambda: 1 + 1) == 2
        child: Caller | None = caller.get()
        assert await child.call_soon(lambda: 2) == 2
    references = [weakref.ref(caller), weakref.ref(child)]
    del caller, child
    deadline = time.monotonic() + 20
    while any(reference() for reference in references):
        assert time.monotonic() < deadline
        gc.collect()
        await anyio.lowlevel.checkpoint()


async def test_a_call_keeps_nothing_when_it_is_over() -> None:
    """Its function, and what its exception's traceback knows, go with the pending, without the garbage collector."""

    class Thing:
        def fail(self) -> None:
            raise LookupError

    thing = Thing()
    reference = weakref.ref(thing)
    pending = Caller().call_soon(thing.fail)
    await pending.wait(result=False)
    assert pending.metadata["func"] == thing.fail
    gc.disable()
    try:
        del pending, thing
        await eventually(lambda: reference() is None)
    finally:
        gc.enable()
