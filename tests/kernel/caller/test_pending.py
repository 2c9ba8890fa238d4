"""Pendings: set in any thread, waited for in any thread and on any loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import signal
import threading
import weakref
from typing import Any

import anyio
import pytest
from tests.kernel.caller.conftest import in_thread
from tests.kernel.leftovers import eventually, until

from cobnut_kernel.caller import Caller, InvalidStateError, NoEventLoopError, Pending, PendingCancelled
from cobnut_kernel.caller.pending import Latch

pytestmark = pytest.mark.anyio


# ── set and look ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_can_be_had_once_it_is_set() -> None:
    """`result` and `exception` are refused before, and say what to do."""
    pending = Pending[int]()
    assert not pending.done()
    assert not pending.cancelled()
    for ask in (pending.result, pending.exception):
        with pytest.raises(InvalidStateError, match="wait for it first"):
            ask()
    pending.set_result(42)
    assert pending.done()
    assert pending.result() == 42
    assert pending.exception() is None
    assert pending.wait_sync() == 42


def test_an_exception_is_raised_for_each_who_asks_with_its_own_traceback() -> None:
    """The same exception object comes again and again, and its traceback does not grow."""
    pending = Pending[None]()
    error = TypeError("my exception")
    pending.set_exception(error)
    assert pending.exception() is error
    depths: list[int] = []
    for _ in range(3):
        with pytest.raises(TypeError, match="my exception") as caught:
            pending.result()
        depths.append(len(caught.traceback))
        assert caught.value is error
    assert len(set(depths)) == 1


@pytest.mark.parametrize("first", ["set_result", "set_exception"])
@pytest.mark.parametrize("second", ["set_result", "set_exception"])
def test_it_is_set_once(first: str, second: str) -> None:
    """A second result or exception is an error for who sets it, and changes nothing."""
    pending = Pending[Any]()
    getattr(pending, first)(ValueError("first"))
    with pytest.raises(InvalidStateError, match="done already"):
        getattr(pending, second)(ValueError("second"))
    with pytest.raises(RuntimeError):
        pending.set_result(3)
    outcome = pending.exception() or pending.result()
    assert str(outcome) == "first"


def test_of_many_threads_that_set_it_one_succeeds() -> None:
    """The others are told, and everybody reads the same result."""
    for _ in range(50):
        pending = Pending[int]()
        start = threading.Barrier(4)
        refused: list[int] = []

        def set_result(number: int, pending: Pending[int] = pending, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                pending.set_result(number)
            except InvalidStateError:
                refused.append(number)  # noqa: B023 - joined below

        for thread in [in_thread(set_result, number) for number in range(4)]:
            thread.join()
        assert sorted([*refused, pending.result()]) == [0, 1, 2, 3]


def test_metadata_is_kept_and_shown_in_few_words() -> None:
    """What is said of a pending can be read, and its repr stays short whatever it is."""
    pending = Pending[None](key="long string" * 1000, other={str(i): i for i in range(1000)})
    assert pending.metadata["other"]["7"] == 7
    assert pending.context is None
    assert len(repr(pending)) < 400
    assert "🏃" in repr(pending)
    pending.cancel()
    assert "⛔ 🏃" in repr(pending)
    pending.set_result(None)
    assert "⛔ 🏁" in repr(pending)


def test_it_takes_no_other_attributes_and_can_be_referred_to_weakly() -> None:
    """A pending is small: it has slots."""
    pending = Pending[None]()
    assert weakref.ref(pending)() is pending
    assert inspect.isawaitable(pending)
    with pytest.raises(AttributeError):
        pending.not_an_attribute = 1  # pyright: ignore[reportAttributeAccessIssue]


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_callbacks_are_called_in_order_once_and_at_once_where_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises, be it SystemExit, is logged and does not keep the others from being called."""
    pending = Pending[int]()
    called: list[int] = []

    def fail(_: Pending[int]) -> None:
        raise SystemExit

    pending.add_done_callback(lambda p: called.append(p.result()))
    pending.add_done_callback(fail)
    pending.add_done_callback(lambda _: called.append(2))
    pending.set_result(1)
    pending.add_done_callback(lambda _: called.append(3))
    assert called == [1, 2, 3]
    assert "failed" in caplog.text


def test_callbacks_can_be_taken_back() -> None:
    """All instances of a function are removed, and counted."""
    pending = Pending[None]()
    called: list[object] = []
    pending.add_done_callback(called.append)
    pending.add_done_callback(called.append)
    assert pending.remove_done_callback(called.append) == 2
    assert pending.remove_done_callback(called.append) == 0
    pending.set_result(None)
    assert called == []


def test_each_callback_is_called_once_although_threads_race() -> None:
    """Callbacks that are added while another thread sets the result are neither lost nor called twice."""
    for _ in range(100):
        pending = Pending[None]()
        called: list[int] = []
        start = threading.Barrier(2)

        def set_result(pending: Pending[None] = pending, start: threading.Barrier = start) -> None:
            start.wait()
            pending.set_result(None)

        thread = in_thread(set_result)
        start.wait()
        for number in range(20):
            pending.add_done_callback(lambda _, number=number, called=called: called.append(number))
        thread.join()
        assert sorted(called) == list(range(20))


# ── wait ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_task_waits_for_what_another_thread_sets() -> None:
    """`await` and `wait` return the result, on either loop."""
    options: list[dict[str, Any] | None] = [None, {}, {"timeout": 30, "shield": True}]
    for given in options:
        pending = Pending[int]()
        thread = threading.Timer(0.01, pending.set_result, [42])
        thread.start()
        assert await (pending if given is None else pending.wait(**given)) == 42
        assert await pending == 42
        assert await pending.wait(result=False) is None
        thread.join()


async def test_a_task_waits_for_what_another_task_sets() -> None:
    """Many tasks of one loop are woken by one result."""
    pending = Pending[int]()
    got: list[int] = []

    async def wait() -> None:
        got.append(await pending)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        pending.set_result(7)
    assert got == [7] * 10


@pytest.mark.parametrize("other", ["asyncio", "trio", "thread"])
@pytest.mark.parametrize("fails", [False, True])
async def test_waiters_of_all_kinds_get_the_same(other: str, fails: bool) -> None:
    """A pending set in one loop wakes a waiter of another loop in another thread, or a thread without a loop."""
    pending = Pending[int]()
    got: list[object] = []

    async def wait_there() -> int:
        return await pending

    def wait() -> None:
        try:
            got.append(pending.wait_sync() if other == "thread" else anyio.run(wait_there, backend=other))
        except LookupError as error:
            got.append(error)

    thread = in_thread(wait)
    await anyio.sleep(0.02)
    error = LookupError("no")
    pending.set_exception(error) if fails else pending.set_result(5)
    await anyio.to_thread.run_sync(thread.join)
    assert got == [error if fails else 5]


async def test_time_that_is_up_cancels_it_unless_it_is_protected() -> None:
    """`wait` with a timeout raises TimeoutError; the protected pending can still be set."""
    pending = Pending[int]()
    with pytest.raises(TimeoutError, match="not done within"):
        await pending.wait(timeout=0.001, protect=True)
    assert not pending.cancelled()
    with pytest.raises(TimeoutError):
        await pending.wait(timeout=0.001)
    assert pending.cancelled()
    with pytest.raises(PendingCancelled, match="not done within"):
        pending.result()


async def test_a_cancelled_waiter_cancels_it_unless_it_is_protected() -> None:
    """Who stops waiting takes along what he waited for."""
    for protect in (True, False):
        pending = Pending[int]()
        with anyio.move_on_after(0.001):
            await pending.wait(protect=protect)
        assert pending.cancelled() is not protect
    awaited = Pending[int]()
    with anyio.move_on_after(0.001) as scope:
        await awaited
    assert scope.cancelled_caught
    assert awaited.cancelled()


async def test_a_shielded_waiter_gets_its_cancellation_when_it_is_done() -> None:
    """With `shield` the wait goes on although a scope was cancelled, and does not spin meanwhile."""
    pending = Pending[int]()
    timer = threading.Timer(0.05, pending.set_result, [1])
    timer.start()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pending.wait(shield=True)
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert pending.result() == 1
    timer.join()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_shielded_waiter_withstands_a_cancelled_task_of_asyncio() -> None:
    """Also asyncio's own cancellation, twice, is held off until the result is there; then it comes."""
    pending = Pending[int]()
    task = asyncio.create_task(pending.wait(shield=True))
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    pending.set_result(3)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pending.result() == 3


async def test_a_shielded_wait_ends_with_its_time() -> None:
    """The shield holds off cancellations, not the timeout."""
    with pytest.raises(TimeoutError):
        await Pending[int]().wait(timeout=0.01, shield=True)


def test_a_thread_waits_and_stops_waiting() -> None:
    """`wait_sync` knows timeout, protect and result."""
    pending = Pending[int]()
    with pytest.raises(TimeoutError):
        pending.wait_sync(timeout=0.001, protect=True)
    assert not pending.cancelled()
    with pytest.raises(TimeoutError):
        pending.wait_sync(timeout=0.001)
    assert pending.cancelled()
    pending.set_result(1)
    assert pending.wait_sync(result=False) is None
    with pytest.raises(PendingCancelled):
        pending.wait_sync()


def test_a_signal_ends_the_wait_of_the_main_thread() -> None:
    """KeyboardInterrupt reaches a thread in `wait_sync`, and cancels what it waited for."""
    pending = Pending[int]()
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pending.wait_sync(timeout=20)
    finally:
        signal.signal(signal.SIGINT, before)
    timer.join()
    assert pending.cancelled()


async def test_a_result_set_by_a_signal_handler_wakes_a_task() -> None:
    """The loop is woken although the signal came while it waited for its selector."""
    pending = Pending[int]()

    def on_signal(_number: int, _frame: object) -> None:
        pending.set_result(9)

    before = signal.signal(signal.SIGUSR1, on_signal)
    main = threading.main_thread().ident
    assert main is not None
    try:
        timer = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGUSR1])
        timer.start()
        assert await pending.wait(timeout=20) == 9
    finally:
        signal.signal(signal.SIGUSR1, before)
    timer.join()


def test_awaiting_without_an_event_loop_is_an_error_that_says_so() -> None:
    """A coroutine that is stepped by hand gets NoEventLoopError, which names `wait_sync`."""
    with pytest.raises(NoEventLoopError, match="wait_sync"):
        Pending[int]().__await__().send(None)


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("with_await", [False, True])
async def test_waiting_for_what_is_done_is_a_checkpoint_on_trio(with_await: bool) -> None:
    """As all of trio's own functions it notices that it was cancelled; the result is still there."""
    pending = Pending[int]()
    pending.set_result(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await (pending if with_await else pending.wait())
    assert scope.cancelled_caught
    assert await pending == 1
    assert await pending.wait() == 1


async def test_waiting_leaves_no_callback_behind() -> None:
    """A waiter that gives up takes itself off the list."""
    pending = Pending[int]()
    for _ in range(3):
        with anyio.move_on_after(0.001):
            await pending.wait(protect=True)
        with pytest.raises(TimeoutError):
            await pending.wait(timeout=0.001, protect=True)
        with pytest.raises(TimeoutError):
            pending.wait_sync(timeout=0.001, protect=True)
    assert pending._callbacks == []


async def test_the_last_waiters_get_the_result_of_one_that_is_reset() -> None:
    """`set_result(reset=True)` wakes who waits with the value, and it is not done afterwards."""
    pending = Pending[int]()
    for number in range(10):
        task = Caller().call_soon(pending.wait)
        await anyio.wait_all_tasks_blocked()
        pending.set_result(number, reset=True)
        assert not pending.done()
        assert await task == number
    pending.set_exception(RuntimeError("stop"))
    with pytest.raises(InvalidStateError):
        pending.set_result(2)
    assert pending.exception() is not None


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_without_a_caller_is_cancelled_at_once_and_done_when_it_is_set() -> None:
    """The documented example: whoever cancels asks, and the canceller sees to the end."""
    pending = Pending[None]()
    assert pending.cancel()
    assert pending.cancelled()
    assert not pending.done()
    pending.set_canceller(lambda _: pending.set_result(None))
    assert pending.done()
    assert pending.cancelled()


def test_reasons_are_collected() -> None:
    """Each reason is in the error of who asks for the result."""
    pending = Pending[None]()
    assert pending.cancel("message 1")
    assert pending.cancel()
    assert pending.cancel("message 2")
    for ask in (pending.result, pending.exception):
        with pytest.raises(PendingCancelled, match="message 1\nmessage 2"):
            ask()


def test_a_done_one_cannot_be_cancelled() -> None:
    """`cancel` says so, and the result stays."""
    pending = Pending[int]()
    pending.set_result(1)
    assert not pending.cancel()
    assert pending.result() == 1


def test_a_canceller_is_set_once() -> None:
    """A second one, or one that comes too late, is refused."""
    pending = Pending[None]()
    reasons: list[str | None] = []
    pending.set_canceller(reasons.append)
    with pytest.raises(InvalidStateError, match="one can be set once"):
        pending.set_canceller(reasons.append)
    pending.cancel("why")
    pending.cancel("again")
    assert reasons == ["why"]
    pending.set_result(None)
    with pytest.raises(InvalidStateError):
        pending.set_canceller(reasons.append)


def test_what_was_raised_by_a_cancelled_one_is_the_cause() -> None:
    """The error of its clean-up is not lost."""
    pending = Pending[None]()
    pending.cancel("why")
    pending.set_exception(ValueError("in the clean-up"))
    with pytest.raises(PendingCancelled, match="why") as caught:
        pending.result()
    assert isinstance(caught.value.__cause__, ValueError)


# ── what nobody asks for ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asked", [False, True])
def test_a_failure_that_nobody_asks_for_is_logged(asked: bool, caplog: pytest.LogCaptureFixture) -> None:
    """When the pending goes and its exception was never looked at, the log tells of it."""
    pending = Pending[None]()
    pending.set_exception(LookupError("lost"))
    if asked:
        pending.exception()
    del pending
    gc.collect()
    assert ("nobody has asked" in caplog.text) is not asked
    assert ("LookupError: lost" in caplog.text) is not asked
    assert all(record.levelno == logging.ERROR for record in caplog.records)


async def test_a_latch_is_set_once_and_nobody_can_cancel_it() -> None:
    """It is false until it is set, and a waiter that gives up does it no harm."""
    latch = Latch()
    assert not latch
    with anyio.move_on_after(0.001):
        await latch
    assert not latch.cancel()
    threading.Timer(0.01, latch.set).start()
    await latch
    latch.set()
    assert latch
    assert not latch.cancelled()


async def test_an_ended_loop_needs_no_waking() -> None:
    """A result for a waiter whose loop is over is no error for who sets it."""
    pending = Pending[int]()

    async def give_up() -> None:
        waiter = asyncio.ensure_future(pending.wait(protect=True))
        await asyncio.sleep(0)
        waiter.cancel()

    await anyio.to_thread.run_sync(asyncio.run, give_up())
    pending.set_result(1)
    await eventually(pending.done)
    until(pending.done)
