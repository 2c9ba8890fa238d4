"""How calls are ended: cancelled, in waits that could never end, and by interrupts."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from tests.kernel.caller.conftest import caller_of
from tests.kernel.leftovers import eventually

from cobnut_kernel.caller import Caller, Pending, PendingCancelled, WouldDeadlockError
from cobnut_kernel.caller.calls import CURRENT, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

pytestmark = pytest.mark.anyio

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_that_is_cancelled_before_it_begins_never_does(kind: str) -> None:
    """Whether it stands in the queue or its task is about to start."""
    called: list[int] = []
    call = caller_of(kind).call_soon(called.append, 1)
    hurried = call.cancel("early")
    await call.wait(result=False)
    if kind == "here":
        assert hurried
    if call.cancelled():
        assert called == []
    else:
        assert not hurried


async def test_a_later_call_is_cancelled_at_once(kind: str) -> None:
    """Nobody waits for its time."""
    call = caller_of(kind).call_later(1000, int)
    await anyio.sleep(0.01)
    call.cancel()
    with pytest.raises(PendingCancelled):
        await call


@pytest.mark.parametrize("message", ["why", None])
@pytest.mark.parametrize("from_thread", [False, True])
async def test_a_running_call_gets_the_cancellation_of_its_loop(
    kind: str, message: str | None, from_thread: bool
) -> None:
    """It may clean up; it is cancelled when asked, and done when that is over."""
    caller = caller_of(kind)
    started = Pending[None]()
    release = Pending[None]()
    cleaned: list[str] = []

    async def work() -> None:
        started.set_result(None)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await release
            cleaned.append("yes")
            raise

    call = caller.call_soon(work)
    await started
    if from_thread:
        assert await Caller().to_thread(call.cancel, message)
    else:
        assert call.cancel(message)
    assert call.cancelled()
    assert not call.done()
    release.set_result(None)
    with pytest.raises(PendingCancelled, match=message or "was cancelled"):
        await call
    assert cleaned == ["yes"]
    assert call.done()
    assert call.cancel()


async def test_the_result_of_a_cancelled_call_is_dropped(kind: str) -> None:
    """A task that swallows its cancellation and returns is cancelled all the same."""
    begun = Pending[None]()

    async def insist() -> int:
        begun.set_result(None)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        return 5

    call = caller_of(kind).call_soon(insist)
    await begun
    call.cancel("no more")
    with pytest.raises(PendingCancelled, match="no more"):
        await call


async def test_what_a_cancelled_call_raises_instead_is_the_cause(kind: str) -> None:
    """An error in the clean-up is not lost."""
    begun = Pending[None]()

    async def stumble() -> None:
        begun.set_result(None)
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("in the clean-up")

    call = caller_of(kind).call_soon(stumble)
    await begun
    call.cancel()
    with pytest.raises(PendingCancelled) as caught:
        await call
    assert isinstance(caught.value.__cause__, LookupError)


async def test_code_that_blocks_its_thread_runs_to_its_end() -> None:
    """It counts as cancelled at once, is done when the code returns, and its result is dropped."""
    entered, release, after = threading.Event(), threading.Event(), threading.Event()

    def block() -> int:
        entered.set()
        release.wait()
        after.set()
        return 5

    call = Caller().to_thread(block)
    await anyio.to_thread.run_sync(entered.wait)
    assert call.cancel("enough")
    assert call.cancelled()
    assert not call.done()
    with pytest.raises(TimeoutError):
        await call.wait(timeout=0.01)
    release.set()
    with pytest.raises(PendingCancelled, match="enough"):
        await call
    assert after.is_set()


async def test_who_waits_and_is_cancelled_cancels_the_call(kind: str) -> None:
    """As with a task of asyncio's."""
    call = caller_of(kind).call_soon(anyio.sleep_forever)
    with anyio.move_on_after(0.01):
        await call
    assert call.cancelled()
    await call.wait(result=False)
    assert call.done()


async def test_a_cancellation_inside_the_function_is_its_own_business(kind: str) -> None:
    """A timeout of the function's is an error of the function's."""

    async def run_out_of_time() -> None:
        with anyio.fail_after(0.001):
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError):
        await caller_of(kind).call_soon(run_out_of_time)


class Suspended:
    """Can be awaited, and is never over."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def test_a_call_whose_coroutine_is_dropped_is_cancelled() -> None:
    """As the garbage collector does with a loop that is gone; in whatever context that happens, it is left alone."""
    caller = Caller()

    async def work() -> None:
        await Suspended()

    call: Call[None] = Call(caller._scheduler, {"func": work, "args": (), "kwargs": {}}, Context(), tracked=False)
    coroutine = call.run()
    contextvars.copy_context().run(coroutine.send, None)
    token = CURRENT.set(other := Pending[None]())
    coroutine.close()
    assert CURRENT.get() is other
    CURRENT.reset(token)
    assert call.done()
    with pytest.raises(PendingCancelled, match="loop has ended"):
        call.result()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_service_of_a_dropped_loop_awaits_nothing() -> None:
    """Python complains of a coroutine that goes on when it is closed."""
    caller = Caller()
    call = caller.call_soon(anyio.sleep_forever)
    await anyio.sleep(0.01)
    service = caller._service._serve()
    service.send(None)
    service.close()
    assert caller.running
    assert not call.done()


async def test_a_task_of_asyncios_that_somebody_cancels_is_a_cancelled_call() -> None:
    """Whoever cancels the task: who waits is told, and the loop goes on."""
    child = Caller().get(backend="asyncio")
    task = Pending[asyncio.Task[Any] | None]()

    async def work() -> None:
        task.set_result(asyncio.current_task())
        await asyncio.sleep(1000)

    call = child.call_soon(work)
    found = await task
    assert found is not None
    child.call_direct(found.cancel, "by somebody")
    with pytest.raises(PendingCancelled, match="by somebody"):
        await call
    assert child.running
    await eventually(found.done)
    assert found.cancelled()


async def test_cancelling_twice_disturbs_the_clean_up_once(kind: str) -> None:
    """The second reason is noted, and the task's clean-up goes on."""
    caller = caller_of("asyncio") if kind == "here" else caller_of(kind)
    begun, cleaning, cancelled, cleaned = (Pending[None]() for _ in range(4))

    async def work() -> None:
        begun.set_result(None)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                cleaning.set_result(None)
                await cancelled
                cleaned.set_result(None)

    call = caller.call_soon(work)
    await begun
    call.cancel("first")
    await cleaning
    call.cancel("second")
    cancelled.set_result(None)
    with pytest.raises(PendingCancelled, match="first\nsecond"):
        await call
    assert cleaned.done()


# ── waits that could never end ──────────────────────────────────────────────────────────────────────────────────────


async def test_blocking_for_a_call_in_its_own_thread_is_an_error(kind: str) -> None:
    """`wait_sync` says what to do instead of standing still for ever; elsewhere it waits."""
    caller = caller_of(kind)

    def block() -> str:
        with pytest.raises(WouldDeadlockError, match="use `await`"):
            caller.call_soon(int).wait_sync()
        return "not blocked"

    assert await caller.call_soon(block) == "not blocked"
    assert await Caller().to_thread(lambda: caller.call_soon(lambda: 3).wait_sync()) == 3
    done = caller.call_soon(lambda: 4)
    await done
    assert done.wait_sync() == 4


async def test_a_call_that_awaits_itself_is_an_error(kind: str) -> None:
    """With `await` and with `wait`; a task that it has started may wait for it."""
    caller = caller_of(kind)

    async def wait_for_itself() -> str:
        current = Caller.current_pending()
        assert current is not None
        with pytest.raises(WouldDeadlockError, match="its own end"):
            await current
        with pytest.raises(WouldDeadlockError, match="its own end"):
            await current.wait(timeout=1)
        return "not blocked"

    assert await caller.call_soon(wait_for_itself) == "not blocked"


async def test_a_result_can_be_waited_for_in_a_blocked_loop() -> None:
    """`wait_sync` for another thread's work blocks the loop, and returns."""
    caller = Caller()
    assert caller.to_thread(lambda: 1 + 1).wait_sync() == 2
    assert caller.to_thread(lambda: 1 + 1).wait_sync(result=False) is None
    with pytest.raises(TimeoutError):
        caller.to_thread(anyio.sleep, 1000).wait_sync(timeout=0.01)


# ── interrupts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], threading.Timer]]:
    """Press Ctrl-C a moment later, with Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timers: list[threading.Timer] = []

    def press() -> threading.Timer:
        ident = threading.main_thread().ident
        assert ident is not None
        timer = threading.Timer(0.05, signal.pthread_kill, [ident, signal.SIGINT])
        timers.append(timer)
        timer.start()
        return timer

    yield press
    for timer in timers:
        timer.join()
    signal.signal(signal.SIGINT, before)


async def test_an_interrupt_of_the_loop_loses_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was taken out of the queue when it came is put back, and everyone gets the result."""
    caller = Caller().get(backend="asyncio", backend_options={"loop_factory": Stubborn})
    queue = caller._scheduler._queue
    hits: list[int] = []

    class Interrupted(type(queue)):  # pyright: ignore[reportUntypedBaseClass]
        def popleft(self) -> Any:
            item = super().popleft()
            hits.append(1)
            if len(hits) % 3 == 1:
                raise KeyboardInterrupt
            return item

    assert await caller.call_soon(abs, 0) == 0
    monkeypatch.setattr(caller._scheduler, "_queue", Interrupted())
    calls = [caller.call_soon(abs, -number) for number in range(20)]
    for number, call in enumerate(calls):
        assert await call.wait(timeout=20) == number
    assert len(hits) > 20


class Stubborn(asyncio.SelectorEventLoop):
    """A loop that an interrupt does not end, as the kernel's."""

    def run_forever(self) -> None:
        """Go on after an interrupt."""
        while True:
            try:
                return super().run_forever()
            except KeyboardInterrupt:
                continue


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_ends_the_function_that_blocks_the_main_thread(
    backend: str, ctrl_c: Callable[[], threading.Timer]
) -> None:
    """The loop, trio's with its own handler too, goes on, and who waits gets the KeyboardInterrupt."""

    async def main() -> str:
        call = Caller().call_soon(time.sleep, 20)
        ctrl_c()
        try:
            await call
        except KeyboardInterrupt:
            return "interrupted"
        return "not interrupted"

    # asyncio's runner would take the signal for itself, and cancel its main task
    run = asyncio.new_event_loop if backend == "asyncio" else None
    if run is None:
        assert trio.run(main) == "interrupted"
        return
    loop = run()
    try:
        assert loop.run_until_complete(main()) == "interrupted"
    finally:
        loop.close()
