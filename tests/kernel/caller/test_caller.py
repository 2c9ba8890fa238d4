"""Callers: found, started, entered, stopped; the documented examples among them."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import anyio
import pytest
import trio
from tests.kernel.caller.conftest import in_thread
from tests.kernel.leftovers import eventually, until

from cobnut_kernel.caller import (
    Backend,
    Caller,
    CallerError,
    CallerMismatchError,
    CallerState,
    CallerStoppedError,
    NoEventLoopError,
    PendingCancelled,
)

pytestmark = pytest.mark.anyio


def other_than(backend: str) -> str:
    """Return the other backend."""
    return "trio" if backend == "asyncio" else "asyncio"


# ── find ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_thread_with_a_loop_has_a_caller_as_soon_as_it_asks(anyio_backend: str) -> None:
    """`Caller()` needs nothing but a running loop, and is the same one every time."""
    caller = Caller()
    assert Caller() is Caller("CurrentThread") is Caller("MainThread") is caller
    assert Caller.get_existing() is Caller.get_existing(caller.id) is Caller.get_current(caller.thread) is caller
    assert caller in Caller.all_callers()
    assert caller.running
    assert not caller.stopped
    assert caller.thread is threading.current_thread()
    assert caller.id == Caller.id_current() == threading.get_ident()
    assert caller.name == threading.current_thread().name
    assert caller.backend == Backend(anyio_backend) == anyio_backend
    assert (caller.parent, caller.children, caller.protected, caller.zmq_context) == (None, frozenset(), False, None)
    assert caller.backend_options is None
    assert await caller.call_soon(lambda: 1 + 1) == 2


async def test_a_caller_is_found_in_a_callback_of_the_loop(anyio_backend: str) -> None:
    """Where no task runs, but the loop does, `Caller()` works too."""
    found: list[Caller] = []
    if anyio_backend == "asyncio":
        asyncio.get_running_loop().call_soon(lambda: found.append(Caller()))
    else:
        trio.lowlevel.current_trio_token().run_sync_soon(lambda: found.append(Caller()))
    await eventually(lambda: found)
    assert found == [Caller()]


def test_the_documented_new_thread() -> None:
    """Where no event loop runs, a backend starts one in a new thread: `Caller(name="my event loop", ...)`."""
    caller = Caller(name="my event loop", backend="asyncio")
    assert caller.thread is not threading.current_thread()
    assert caller.name == caller.thread.name == "my event loop"
    assert caller.call_soon(threading.current_thread).wait_sync() is caller.thread
    assert caller.call_soon(lambda: Caller() is caller).wait_sync()
    caller.stop()
    caller.stopped.wait_sync()


async def test_the_documented_worker(anyio_backend: str) -> None:
    """`my_worker = caller.get("my own worker", backend="trio")`: by its name, which may stand first."""
    caller = Caller()
    my_worker = caller.get("my own worker", backend="trio")

    async def work() -> tuple[object, ...]:
        await trio.lowlevel.checkpoint()
        return Caller(), threading.current_thread().name

    assert await my_worker.call_soon(work) == (my_worker, "my own worker")
    assert caller.get(name="my own worker") is my_worker
    assert my_worker.backend == "trio"


def test_without_a_loop_and_a_backend_there_is_no_caller() -> None:
    """The error names the way out; so does that for a backend or a modifier that does not exist."""
    with pytest.raises(NoEventLoopError, match=r"Caller\(backend='asyncio'\)"):
        Caller()
    with pytest.raises(RuntimeError, match="no caller: call Caller"):
        Caller("MainThread")
    for modifier in ("NewThread", "manual"):
        with pytest.raises(NoEventLoopError, match="asyncio or trio"):
            Caller(modifier)
    with pytest.raises(ValueError, match="no backend 'curio': use asyncio or trio"):
        Caller(backend="curio")  # pyright: ignore[reportArgumentType] - that is the test
    with pytest.raises(ValueError, match="There is no 'Thread'"):
        Caller("Thread")  # pyright: ignore[reportArgumentType] - that is the test
    assert Caller.get_existing() is None
    assert Caller.get_current(threading.Thread()) is None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_new_thread_is_new_every_time(backend: Any) -> None:
    """`"NewThread"` never finds one."""
    first, second = Caller("NewThread", backend=backend), Caller("NewThread", backend=backend)
    assert first is not second
    assert first.call_soon(lambda: 2 + 2).wait_sync() == 4
    assert {first, second} <= set(Caller.all_callers())
    for caller in (first, second):
        caller.stop()
        caller.stopped.wait_sync()
        until(lambda caller=caller: not caller.thread.is_alive())


async def test_a_caller_that_exists_must_be_what_is_asked_for(anyio_backend: str) -> None:
    """Another name or backend is an error of value, also where no caller exists but the loop is another one's."""
    wrong: Any = other_than(anyio_backend)
    with pytest.raises(CallerMismatchError, match="The event loop of this thread is"):
        Caller(backend=wrong)
    caller = Caller(name="mine")
    assert caller.name == "mine"
    for modifier in ("CurrentThread", "MainThread"):
        with pytest.raises(ValueError, match="not named 'wrong name'"):
            Caller(modifier, name="wrong name")
        with pytest.raises(ValueError, match="its backend is"):
            Caller(modifier, backend=wrong)
    assert Caller(name="mine", backend=caller.backend) is caller


async def test_other_threads_find_the_main_threads_caller_when_it_exists() -> None:
    """`Caller("MainThread")` in a worker is the main thread's; before that has one, it is an error that says so."""

    def find() -> Caller:
        return Caller("MainThread")

    with pytest.raises(NoEventLoopError, match="call Caller\\(\\) there"):
        await anyio.to_thread.run_sync(find)
    caller = Caller()
    assert await caller.to_thread(find) is caller


async def test_a_loop_in_another_thread_has_a_caller_of_its_own(anyio_backend: str) -> None:
    """`Caller()` there serves that loop, and ends with it."""
    found: list[Caller] = []

    async def there() -> None:
        found.append(Caller())
        assert await Caller().call_soon(threading.current_thread) is threading.current_thread()

    thread = in_thread(lambda: anyio.run(there, backend=anyio_backend))
    await anyio.to_thread.run_sync(thread.join)
    assert found[0].thread is thread
    assert found[0].stopped
    assert found[0] is not Caller()


# ── children ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_children_stop_with_their_parent(anyio_backend: str) -> None:
    """Children of children too, and the protected ones; none is left in the parent's set."""
    async with Caller("manual") as caller:
        assert await caller.to_thread(lambda: 2 + 1) == 3
        (worker,) = caller.children
        child = caller.get(name="c1", protected=True)
        assert caller.children == {worker, child}
        assert caller.get(name="c1") is child
        with pytest.raises(RuntimeError, match="its backend is"):
            caller.get(name="c1", backend=other_than(anyio_backend))  # pyright: ignore[reportArgumentType]
        grandchild = child.get(name="c2")
        assert grandchild.parent is child
        assert grandchild in child.children
        assert grandchild not in caller.children
        assert caller.get(name="c2") is not grandchild
    assert caller.children == frozenset()
    assert caller.stopped
    assert child.stopped
    assert grandchild.stopped
    with pytest.raises(CallerStoppedError):
        caller.get(name="c3")


async def test_children_inherit_backend_options_and_context(anyio_backend: str) -> None:
    """Options only where the backend is the same; what is given goes first; the new loop is started with them."""
    made: list[object] = []

    def factory() -> asyncio.AbstractEventLoop:
        made.append(loop := asyncio.new_event_loop())
        return loop

    context: Any = object()
    options = {"loop_factory": factory}
    parent = Caller("NewThread", backend="asyncio", backend_options=options, zmq_context=context)
    same, other = parent.get(), parent.get(backend="trio")
    assert (same.backend, same.backend_options, same.zmq_context) == ("asyncio", options, context)
    assert (other.backend, other.backend_options, other.zmq_context) == ("trio", None, context)
    assert parent.get(backend_options=None, zmq_context=None).zmq_context is None
    for caller in (parent, same):
        assert await caller.call_soon(asyncio.get_running_loop) in made
    assert (await parent.to_thread(Caller)).backend_options == options
    parent.stop()
    await parent.stopped


async def test_the_documented_children_of_a_context() -> None:
    """Unnamed, and named with either backend."""
    async with Caller("manual") as caller:
        first = caller.get()
        second = caller.get(name="asyncio backend", backend="asyncio")
        third = caller.get(name="trio backend", backend="trio")
        assert caller.children == {first, second, third}
        assert caller.get() not in {first, second, third}
    assert not caller.children


async def test_a_child_that_stops_leaves_its_parent() -> None:
    """It can be had again under its name: a new one."""
    caller = Caller()
    child = caller.get(name="child")
    child.stop()
    assert caller.get(name="child") is not child
    await child.stopped
    assert child not in caller.children


@pytest.mark.parametrize(
    ("backend", "backend_options"), [("trio", {"no_such_option": 1}), ("asyncio", {"loop_factory": lambda: 1 / 0})]
)
async def test_a_loop_that_cannot_start_fails_its_calls(
    backend: Any, backend_options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for ever; who waits and the log are told why."""
    child = Caller("manual", backend=backend, backend_options=backend_options)
    pending = child.call_soon(int)
    child.start_sync()
    with pytest.raises(PendingCancelled, match="has failed: "):
        await pending
    await child.stopped
    with pytest.raises(CallerStoppedError, match="has failed: "):
        child.call_soon(int)
    assert "Traceback" in caplog.text


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other library is optional: asking for it without having it is one clear error, and no thread."""
    monkeypatch.setitem(sys.modules, "trio", None)
    with pytest.raises(CallerError, match="trio is not installed here"):
        Caller("NewThread", backend="trio")


# ── manual, and in a context ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_manual_caller_begins_its_calls_when_it_is_entered() -> None:
    """It takes calls before; they run in the loop that enters it."""
    caller = Caller("manual")
    pending = caller.call_soon(threading.current_thread)
    assert not caller.running
    assert caller.id == 0
    with pytest.raises(CallerError, match="start_sync"):
        caller.thread  # noqa: B018 - the access is the test
    await anyio.wait_all_tasks_blocked()
    assert not pending.done()
    async with caller as entered:
        assert entered is caller is Caller()
        assert caller.running
        assert await pending is threading.current_thread()
    assert caller.stopped
    assert not caller.running


def test_a_manual_caller_can_start_a_thread() -> None:
    """`start_sync` gives it a new thread, once."""
    caller = Caller("manual", name="mine", backend="trio")
    pending = caller.call_soon(threading.current_thread)
    caller.start_sync()
    caller.start_sync()
    assert pending.wait_sync() is caller.thread
    assert caller.thread.name == "mine"
    caller.stop()
    caller.stopped.wait_sync()
    with pytest.raises(CallerStoppedError, match="make another one"):
        caller.start_sync()


async def test_a_manual_caller_that_is_stopped_never_starts() -> None:
    """What it was given is cancelled, and it can be neither entered nor started."""
    caller = Caller("manual")
    pending = caller.call_soon(int)
    assert caller.stop() is CallerState.stopped
    assert caller.stopped
    assert pending.done()
    assert pending.cancelled()
    with pytest.raises(CallerStoppedError):
        caller.start_sync()
    with pytest.raises(CallerStoppedError):
        async with caller:
            pass


async def test_a_call_that_is_cancelled_before_a_manual_start_is_done_at_once() -> None:
    """It waits for no loop."""
    caller = Caller("manual")
    pending = caller.call_soon(int)
    pending.cancel("why")
    with pytest.raises(PendingCancelled, match="why"):
        pending.wait_sync(timeout=5)
    caller.stop()


async def test_only_one_caller_serves_a_thread(anyio_backend: str) -> None:
    """A manual one cannot be entered where there is one, nor in a loop of another backend."""
    with pytest.raises(CallerMismatchError):
        async with Caller("manual", backend=other_than(anyio_backend)):  # pyright: ignore[reportArgumentType]
            pass
    caller = Caller()
    with pytest.raises(CallerError, match="use that"):
        async with Caller("manual"):
            pass
    assert caller.running


async def test_leaving_the_outermost_context_stops_it() -> None:
    """Contexts may be nested; the calls in the loop are cancelled when the last is left."""
    async with Caller() as caller:
        async with caller:
            pending = caller.call_soon(anyio.sleep_forever)
        assert caller.running
    assert caller.stopped
    with pytest.raises(PendingCancelled):
        await pending
    assert Caller() is not caller


async def test_leaving_does_not_stop_what_somebody_else_needs() -> None:
    """A protected caller that ran before, one with a thread of its own, and the caller of a running call go on."""
    kernel = Caller(protected=True)
    async with kernel:
        pass
    assert kernel.running

    async def enter() -> int:
        async with Caller() as caller:
            return await caller.call_soon(lambda: 5)

    child = kernel.get()
    assert await child.call_soon(enter) == 5
    assert child.running
    assert await kernel.call_soon(enter) == 5
    assert kernel.running
    kernel.stop()
    assert kernel.running
    kernel.stop(force=True)
    await kernel.stopped


async def test_a_protected_caller_that_its_context_started_stops_with_it() -> None:
    """`stop` without force does nothing to it, leaving the context does."""
    async with Caller("manual", protected=True) as caller:
        assert caller.stop() is CallerState.running
        assert not caller.stopped
    assert caller.stopped


async def test_a_caller_is_entered_in_its_own_thread_only() -> None:
    """Elsewhere it is an error that says what to do."""
    child = Caller().get()
    with pytest.raises(CallerError, match="Caller\\('manual'\\)"):
        async with child:
            pass


async def test_leaving_after_an_error_cancels_and_raises_it() -> None:
    """What the body raises comes out, and the caller has stopped."""
    caller = Caller("manual")
    pending = caller.call_soon(anyio.sleep_forever)

    async def enter() -> None:
        async with caller:
            raise LookupError

    with pytest.raises(LookupError):
        await enter()
    assert caller.stopped
    assert pending.cancelled()


async def test_leaving_a_cancelled_context_still_waits_for_the_end() -> None:
    """The children have stopped when the context is left, although it was cancelled."""
    caller = Caller("manual")
    child = caller.get()
    with anyio.move_on_after(0.01):
        async with caller:
            await anyio.sleep_forever()
    assert caller.stopped
    assert child.stopped
