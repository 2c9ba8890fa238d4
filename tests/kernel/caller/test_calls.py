"""Calls: how functions run in a caller's loop, how they end, and what reaches whoever waits."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
import traceback
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
import sniffio
import trio
from tests.kernel.caller.conftest import caller_of
from tests.kernel.leftovers import eventually

from cobnut_kernel.caller import Caller, Pending

pytestmark = pytest.mark.anyio

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


# ── run ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["call_soon", "call_later", "to_thread", "queue_call", "schedule_call"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("arguments", [((), {}), ((1, 2, 3), {"a": 10})])
async def test_every_way_to_call_returns_what_the_function_returns(
    kind: str, method: str, is_async: bool, arguments: tuple[tuple[int, ...], dict[str, int]]
) -> None:
    """Synchronous functions and coroutine functions get their arguments, in the right thread."""
    caller = caller_of(kind)
    args, kwargs = arguments

    def function(*args: int, **kwargs: int) -> tuple[object, ...]:
        return args, kwargs, Caller() is caller

    async def coroutine_function(*args: int, **kwargs: int) -> tuple[object, ...]:
        await anyio.lowlevel.checkpoint()
        return function(*args, **kwargs)

    called: Any = coroutine_function if is_async else function
    if method == "schedule_call":
        pending = caller.schedule_call(called, args, kwargs)
    elif method == "call_later":
        pending = caller.call_later(0.001, called, *args, **kwargs)
    else:
        pending = getattr(caller, method)(called, *args, **kwargs)
    assert await pending == (args, kwargs, method != "to_thread")


async def test_anything_that_can_be_called_is(kind: str) -> None:
    """Partials, methods, classes, and a coroutine that a plain function returns; a pending is returned as it is."""
    caller = caller_of(kind)

    async def double(number: int) -> int:
        return 2 * number

    assert await caller.call_soon(functools.partial(double, 21)) == 42
    assert await caller.call_soon(lambda: double(4)) == 8
    assert await caller.call_soon("abc".upper) == "ABC"
    assert await caller.call_soon(dict[str, int], a=1) == {"a": 1}
    pending = Pending[None]()
    assert await caller.call_soon(lambda: pending) is pending


async def test_a_call_runs_in_a_task_of_its_loop(kind: str, anyio_backend: str) -> None:
    """What needs a task or a running loop works in it: the library's own functions and anyio's."""
    backend = anyio_backend if kind == "here" else kind

    def look() -> object:
        return asyncio.current_task() if backend == "asyncio" else trio.lowlevel.current_task()

    async def use_anyio() -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        return sniffio.current_async_library()

    caller = caller_of(kind)
    assert await caller.call_soon(look) is not None
    assert await caller.call_soon(use_anyio) == backend
    assert await (await caller.call_soon(lambda: caller.call_soon(use_anyio))) == backend


async def test_a_function_runs_in_a_copy_of_the_context_it_was_scheduled_in(kind: str) -> None:
    """It reads what was set before, whenever and wherever it runs; what it sets stays with the pending."""
    caller = caller_of(kind)
    VARIABLE.set("scheduled")

    async def read_and_set() -> str:
        await anyio.lowlevel.checkpoint()
        before = VARIABLE.get()
        VARIABLE.set("set by the function")
        return before

    calls = [caller.call_soon(read_and_set), caller.call_later(0.01, read_and_set), caller.to_thread(read_and_set)]
    VARIABLE.set("changed meanwhile")
    assert [await call for call in calls] == ["scheduled"] * 3
    assert VARIABLE.get() == "changed meanwhile"
    for call in calls:
        assert call.context is not None
        assert call.context[VARIABLE] == "set by the function"


async def test_a_context_can_be_given(kind: str) -> None:
    """`schedule_call` takes one, and copies it, so that it may be in use elsewhere."""
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "given")
    call = caller_of(kind).schedule_call(VARIABLE.get, (), {}, None, context)
    in_use = contextvars.copy_context()
    own = in_use.run(lambda: caller_of(kind).schedule_call(VARIABLE.get, (), {}, None, in_use))
    assert await call == "given"
    assert await own == "unset"


async def test_calls_begin_in_the_order_in_which_they_were_scheduled(kind: str) -> None:
    """From one thread, first come, first called; but trio begins its tasks in an order of its own."""
    caller = caller_of(kind)
    order: list[int] = []
    calls = [caller.call_soon(order.append, number) for number in range(100)]
    for call in calls:
        await call
    assert sorted(order) == list(range(100))
    if caller.backend == "asyncio":
        assert order == list(range(100))


async def test_what_is_called_in_the_callers_own_thread_does_not_overtake(kind: str) -> None:
    """A call of the loop's own thread stands behind those that other threads have queued before."""
    caller = caller_of(kind)
    order: list[str] = []

    def schedule() -> Pending[None]:
        Caller().to_thread(caller.call_direct, order.append, "other thread").wait_sync()
        caller.call_direct(order.append, "own thread")
        return caller.call_soon(order.append, "task")

    await (await caller.call_soon(schedule))
    assert order == ["other thread", "own thread", "task"]


async def test_calls_from_many_threads_all_happen(kind: str) -> None:
    """None is lost, whoever schedules."""
    caller = caller_of(kind)
    counted: list[int] = []

    def schedule() -> None:
        for number in range(200):
            caller.call_soon(counted.append, number)

    schedulers = [Caller().to_thread(schedule) for _ in range(5)]
    for scheduler in schedulers:
        await scheduler
    await eventually(lambda: len(counted) == 1000)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_functions_take_a_pending() -> None:
    """It is awaitable as any other: `wait_for`, `gather`, `shield` and `timeout` work with it."""
    caller = Caller()
    assert await asyncio.wait_for(caller.to_thread(abs, -1), 20) == 1
    assert await asyncio.gather(caller.call_soon(abs, -2), caller.to_thread(abs, -3)) == [2, 3]
    call = caller.to_thread(anyio.sleep_forever)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 0.01)
    assert call.cancelled()
    shielded = caller.call_later(0.02, abs, -4)
    task = asyncio.ensure_future(asyncio.shield(asyncio.ensure_future(shielded)))
    await asyncio.sleep(0)
    task.cancel()
    assert await shielded == 4


async def test_a_task_group_takes_a_pending() -> None:
    """One that fails cancels the others, through their waiters."""
    caller = Caller()
    forever = caller.to_thread(anyio.sleep_forever)

    async def wait_for_both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forever.wait)
            tasks.start_soon(caller.call_later(0.01, lambda: 1 // 0).wait)

    with pytest.raises(ExceptionGroup) as caught:
        await wait_for_both()
    assert caught.group_contains(ZeroDivisionError)
    assert forever.cancelled()


async def test_many_calls_run_at_once(kind: str) -> None:
    """One that waits does not hold up the others."""
    caller = caller_of(kind)
    event = Pending[None]()
    waiting = [caller.call_soon(event.wait) for _ in range(20)]
    await caller.call_soon(event.set_result, None)
    for call in waiting:
        assert await call is None


async def test_a_later_call_waits_for_its_time(kind: str) -> None:
    """The delay counts from the scheduling, and stands in the metadata."""
    start = time.monotonic()
    call = caller_of(kind).call_later(0.05, time.monotonic)
    assert call.metadata["delay"] == 0.05
    assert await call - start >= 0.05
    assert await caller_of(kind).call_later(-1, int) == 0


async def test_the_current_pending_is_known_inside(kind: str) -> None:
    """And nowhere else; what is called by a call has its own."""
    caller = caller_of(kind)
    call = caller.call_soon(Caller.current_pending)
    assert await call is call
    assert Caller.current_pending() is None

    async def nested() -> bool:
        inner = Caller().call_soon(Caller.current_pending)
        return await inner is inner and Caller.current_pending() is not inner

    assert await caller.call_soon(nested)


async def test_the_metadata_says_what_is_called() -> None:
    """Function, arguments, caller, and what else `schedule_call` was told."""
    caller = Caller()
    call = caller.schedule_call(int, ("7",), {}, {"allow_tracking": False}, None, key="value")
    assert call.metadata == {"func": int, "args": ("7",), "kwargs": {}, "caller": caller, "key": "value"}
    assert "int in Caller<MainThread 🏃>" in repr(call)
    assert await call == 7


# ── direct calls ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_direct_call_happens_in_the_loops_thread(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """In order, with functions and coroutines; what they raise, SystemExit too, is logged and ends nothing."""
    caller = caller_of(kind)
    happened: list[object] = []

    async def note() -> None:
        await anyio.lowlevel.checkpoint()
        happened.append(threading.current_thread())

    async def fail() -> None:
        raise LookupError("late")

    def leave() -> None:
        raise SystemExit("early")

    for function in (leave, fail, lambda: happened.append(1), note):
        caller.call_direct(function)
    await eventually(lambda: len(happened) == 2)
    assert happened == [1, caller.thread]
    assert "early" in caplog.text
    await eventually(lambda: "late" in caplog.text)


async def test_a_direct_call_is_never_made_at_once(kind: str) -> None:
    """Not even in the caller's own thread."""
    caller = caller_of(kind)
    happened: list[int] = []

    def schedule() -> int:
        caller.call_direct(happened.append, 1)
        return len(happened)

    assert await caller.call_soon(schedule) == 0
    await eventually(lambda: happened)


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit, StopAsyncIteration, BaseException])
@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_function_raises_reaches_who_waits_and_nobody_else(
    kind: str, error: type[BaseException], is_async: bool
) -> None:
    """Also what would end the loop: it goes on."""
    caller = caller_of(kind)

    async def fail_late() -> None:
        await anyio.lowlevel.checkpoint()
        raise error("no")

    def fail() -> None:
        raise error("no")

    call = caller.call_soon(fail_late if is_async else fail)
    with pytest.raises(error, match="no"):
        await call
    assert isinstance(call.exception(), error)
    assert not call.cancelled()
    assert await caller.call_soon(lambda: 5) == 5


async def test_stop_iteration_reaches_who_asks() -> None:
    """A coroutine cannot raise it; it still hangs nobody."""
    call = Caller().call_soon(next, iter(()))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await call
    assert isinstance(call.exception(), RuntimeError)


async def test_a_traceback_shows_the_users_frames_only() -> None:
    """Between who waits and the function that failed there is nothing of the machinery that ran it."""

    def inner() -> None:
        raise LookupError

    def outer() -> None:
        inner()

    with pytest.raises(LookupError) as caught:
        await Caller().to_thread(outer)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-2:] == ["outer", "inner"]
    assert "run" not in frames
    assert "run_function" not in frames


async def test_a_call_with_wrong_arguments_fails() -> None:
    """The TypeError is for who waits."""
    with pytest.raises(TypeError):
        await Caller().call_soon(lambda: 1, 2, 3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="not callable"):
        await Caller().call_soon(None)  # pyright: ignore[reportArgumentType, reportCallIssue]


async def test_several_errors_of_a_task_group_arrive_together(kind: str) -> None:
    """An exception group is an exception like others."""

    async def fail() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 1000)
            raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        await caller_of(kind).call_soon(fail)
    assert caught.group_contains(LookupError)
