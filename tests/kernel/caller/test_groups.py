"""Groups: what is started in one ends before it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cobnut_kernel.caller import (
    Caller,
    InvalidStateError,
    Pending,
    PendingCancelled,
    PendingGroup,
    PendingTrackerState,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


async def test_a_group_waits_for_what_is_started_in_it() -> None:
    """In any thread, and by what it starts; those made with `allow_tracking=False` are not in it."""
    caller = Caller()
    assert PendingGroup.current() is None
    made: list[Pending[Any]] = []

    async def nest(depth: int) -> None:
        await anyio.sleep(0.005)
        if depth:
            made.append(Caller().to_thread(nest, depth - 1))

    async with caller.create_pending_group() as group:
        assert PendingGroup.current() is group
        assert group.state is PendingTrackerState.active
        made.append(group.caller.call_soon(nest, 3))
        assert made[0] in group.pending
        untracked = caller.schedule_call(anyio.sleep_forever, (), {}, {"allow_tracking": False})
        assert untracked not in group.pending
    assert PendingGroup.current() is None
    assert len(made) == 4
    assert all(pending.done() and not pending.cancelled() for pending in made)
    assert group.pending == set()
    assert group.state == "stopped"
    assert not untracked.done()


async def test_what_fails_takes_the_others_along() -> None:
    """They are cancelled, the body too, and the failure is the cause of what comes out."""
    caller = Caller()
    pendings: list[Pending[Any]] = []

    async def enter() -> None:
        async with PendingGroup():
            pendings.extend((caller.call_soon(anyio.sleep_forever), caller.to_thread(anyio.sleep_forever)))
            caller.call_later(0.01, lambda: 1 // 0)
            await anyio.sleep_forever()

    with pytest.raises(PendingCancelled, match="failed") as caught:
        await enter()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert all(pending.done() and pending.cancelled() for pending in pendings)


async def test_what_is_cancelled_takes_the_others_along() -> None:
    """Also in a body that is over already."""
    caller = Caller()
    group = PendingGroup()
    others: list[Pending[Any]] = []

    async def enter() -> None:
        async with group:
            others.append(caller.call_soon(anyio.sleep_forever))
            one = caller.call_soon(anyio.sleep_forever)
            caller.call_later(0.01, one.cancel)

    with pytest.raises(PendingCancelled, match="was cancelled"):
        await enter()
    assert group.cancelled()
    assert others[0].cancelled()
    with pytest.raises(PendingCancelled):
        await enter()


async def test_a_group_can_be_cancelled_from_any_thread() -> None:
    """All in it is, and who leaves it is told why."""
    caller = Caller()
    group = PendingGroup()

    async def enter() -> None:
        async with group:
            caller.to_thread(group.cancel, "enough")
            await anyio.sleep_forever()

    with pytest.raises(PendingCancelled, match="enough"):
        await enter()


async def test_a_cancellation_from_outside_ends_the_group_and_goes_on() -> None:
    """The pendings are done when it is left, and nothing can be started in it meanwhile."""
    caller = Caller()
    group = PendingGroup()
    refused: list[bool] = []

    async def clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            try:
                caller.call_soon(int)
            except InvalidStateError:
                refused.append(True)

    with anyio.move_on_after(0.02) as scope:
        async with group:
            pending = caller.call_soon(clean_up)
    assert scope.cancelled_caught
    assert pending.done()  # pyright: ignore[reportPossiblyUnboundVariable]
    assert refused == [True]
    assert not group.cancelled()


async def test_an_error_of_the_body_comes_out() -> None:
    """What was started is cancelled."""
    pendings: list[Pending[Any]] = []

    async def enter() -> None:
        async with PendingGroup():
            pendings.append(Caller().call_soon(anyio.sleep_forever))
            raise LookupError

    with pytest.raises(LookupError):
        await enter()
    assert pendings[0].cancelled()
    assert pendings[0].done()


async def test_a_shield_holds_off_cancellations_from_outside() -> None:
    """The group comes to its end first."""
    caller = Caller()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with caller.create_pending_group(shield=True) as group:
            pending = caller.call_soon(lambda: 1)
        assert pending.result() == 1
        assert not group.cancelled()


async def test_a_group_is_active_once_at_a_time() -> None:
    """It may be used again afterwards."""
    caller = Caller()
    async with PendingGroup() as group:
        with pytest.raises(InvalidStateError, match="active already"):
            await group.__aenter__()
    async with group:
        pending = caller.call_soon(lambda: 2)
    assert pending.result() == 2


async def test_the_innermost_group_has_what_is_started() -> None:
    """Groups nest; a subclass knows its own."""

    class Own(PendingGroup):
        pass

    caller = Caller()
    async with PendingGroup() as outer:
        async with Own() as inner:
            pending = caller.call_soon(anyio.sleep, 0)
            assert pending in inner.pending
            assert pending not in outer.pending
            assert Own.current() is PendingGroup.current() is inner
        assert Own.current() is None
        assert PendingGroup.current() is outer


async def test_a_pending_can_be_taken_out() -> None:
    """The group waits for it no more, and does not care what becomes of it."""
    async with PendingGroup() as group:
        bare, failing = Pending[None](), Pending[None]()
        group.discard(bare)
        group.remove(failing)
        group.discard(failing)
        with pytest.raises(KeyError):
            group.remove(failing)
        failing.set_exception(LookupError())
    assert not bare.done()
    assert failing.exception() is not None


async def test_queues_and_iterations_do_not_belong_to_the_group() -> None:
    """What a caller needs for itself does not keep a group from ending."""
    caller = Caller()

    async def make() -> AsyncGenerator[Pending[int]]:
        yield caller.call_soon(int)

    async with PendingGroup() as group:
        assert await caller.queue_call(lambda: 1) == 1
        assert [pending.result() async for pending in caller.as_completed(make())] == [0]
    assert not group.cancelled()
