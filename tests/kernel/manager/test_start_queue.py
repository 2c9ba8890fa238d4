"""The queue of starts: who may go on, in which order, and what happens to the others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import Gate, GatedManager, Tiny

from cobnut_kernel.errors import KernelStartCancelled
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.manager.start_queue import StartQueue

if TYPE_CHECKING:
    from cobnut_kernel.manager.start_queue import Turn

MakeMulti = "Callable[..., AsyncMultiKernelManager]"


def queue_of(limit: int, *kernel_ids: str) -> tuple[StartQueue, dict[str, Turn]]:
    """A queue that kernels have joined in this order."""
    queue = StartQueue(limit)
    return queue, {kernel_id: queue.join(kernel_id) for kernel_id in kernel_ids}


# ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "starting"), [(1, ("a",)), (2, ("a", "b")), (5, ("a", "b", "c")), (0, ("a", "b", "c"))]
)
def test_as_many_start_as_may(limit: int, starting: tuple[str, ...]) -> None:
    """The first ones have their turn at once, the others wait in order; 0 is no limit."""
    queue, turns = queue_of(limit, "a", "b", "c")
    assert queue.starting == starting
    assert queue.waiting == tuple("abc"[len(starting) :])
    assert [turn.came.done() for turn in turns.values()] == [name in starting for name in "abc"]


def test_who_ends_makes_room_for_the_next() -> None:
    """Whether it was its turn or it still waited; once is enough."""
    queue, turns = queue_of(1, "a", "b", "c", "d")
    turns["b"].end()
    assert turns["b"].came.cancelled()
    assert queue.waiting == ("c", "d")
    for _ in range(2):
        turns["a"].end()
    assert (queue.starting, queue.waiting) == (("c",), ("d",))
    assert turns["c"].came.result(0) is None


def test_who_gives_up_waiting_is_passed_over() -> None:
    """A cancelled future never has its turn, and takes nobody's."""
    queue, turns = queue_of(1, "a", "b", "c")
    turns["b"].came.cancel()
    turns["a"].end()
    assert (queue.starting, queue.waiting) == (("c",), ())


def test_the_order_can_be_changed() -> None:
    """A place counts from 0, the next one; what is out of bounds is the first or the last; positions are told."""
    queue, turns = queue_of(1, "x", "a", "b", "c")
    queue.move("c", 0)
    assert queue.waiting == ("c", "a", "b")
    queue.move("c", 99)
    assert queue.waiting == ("a", "b", "c")
    queue.move("b", -1)
    assert queue.waiting == ("b", "a", "c")
    assert (queue.position("c"), queue.position("x"), queue.position("nobody")) == (2, None, None)
    turns["x"].end()
    assert queue.starting == ("b",)


def test_a_start_can_jump_the_queue() -> None:
    """To start now counts as one of those that start: the next waits until there is room again."""
    queue, turns = queue_of(1, "a", "b", "c")
    queue.start_now("c")
    assert (queue.starting, queue.waiting) == (("a", "c"), ("b",))
    turns["a"].end()
    assert queue.waiting == ("b",)
    turns["c"].end()
    assert queue.starting == ("b",)


def test_only_who_waits_can_be_moved() -> None:
    """Whoever has his turn, or is not there, is no place in the queue."""
    queue, _ = queue_of(1, "a")
    for wish in (lambda: queue.move("a", 0), lambda: queue.start_now("a"), lambda: queue.start_now("nobody")):
        with pytest.raises(KeyError, match="No start of a kernel with this id waits"):
            wish()


def test_a_higher_limit_lets_more_in() -> None:
    """At once, and a lower one takes no turn away."""
    queue, _ = queue_of(1, "a", "b", "c")
    queue.limit = 2
    assert queue.starting == ("a", "b")
    queue.limit = 1
    assert (queue.limit, queue.starting) == (1, ("a", "b"))
    queue.limit = 0
    assert queue.waiting == ()


def test_many_threads_never_exceed_the_limit() -> None:
    """However many join and leave at once, no more have their turn than may, and in the end none is left."""
    queue, most, lock = StartQueue(3), [0], threading.Lock()

    def start(number: int) -> None:
        for _ in range(50):
            turn = queue.join(str(number))
            turn.came.result(20)
            with lock:
                most[0] = max(most[0], len(queue.starting))
            turn.end()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 3
    assert queue.waiting == queue.starting == ()


# ── with kernels ────────────────────────────────────────────────────────────────────────────────────────────────────


class QueuedManager(GatedManager):
    """A manager whose gate is that of its kernel's name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gate=kwargs["parent"].gates.get(kwargs["kernel_name"], Gate("nowhere")), **kwargs)


class Multi(AsyncMultiKernelManager):
    """A multi-kernel manager with gates for kernels by their names."""

    gates: dict[str, Gate]


@pytest.fixture
def make_multi(tiny: Tiny) -> MakeMulti:
    """Make multi-kernel managers that start one kernel at a time, unless told otherwise."""

    def make(*gates: Gate, **traits: Any) -> Multi:
        specs = {
            "tiny": tiny.spec(),
            "gated": tiny.spec(),
            "slow": tiny.spec("slow"),
            "broken": tiny.spec("broken"),
            "missing": KernelSpec(argv=["/no/such/kernel"]),
        }
        multi = Multi(
            kernel_spec_manager=KernelSpecManager(extra_specs=specs, kernel_dirs=[]),
            default_kernel_name="tiny",
            **{"use_pending_kernels": True, "max_concurrent_starts": 1, **traits},
        )
        multi.gates = dict(zip(("gated",), gates, strict=False))
        multi.kernel_manager_class = f"{__name__}.QueuedManager"
        return multi

    return make


@pytest.mark.anyio
@pytest.mark.usefixtures("runtime")
class TestWithKernels:
    """With kernels that start."""

    async def test_a_start_waits_until_the_one_before_has_answered(self, make_multi: MakeMulti, tiny: Tiny) -> None:
        """Not until its process runs, but until it answers: before, it still takes the machine's time."""
        multi = make_multi()
        first, second = [await multi.start_kernel(kernel_name="slow") for _ in range(2)]
        managers = [multi.get_kernel(kernel_id) for kernel_id in (first, second)]
        await managers[0].ready
        assert (multi.start_queue.starting, multi.start_queue.waiting) == ((first,), (second,))
        assert managers[1].state is KernelState.QUEUED
        assert not managers[1].ready.done()
        tiny.go()
        await managers[0].answered
        await managers[1].answered
        assert multi.start_queue.starting == multi.start_queue.waiting == ()
        (queued, *_) = managers[1].phases
        assert queued.state is KernelState.QUEUED
        assert queued.seconds is not None
        await multi.shutdown_all()

    @pytest.mark.parametrize("end", ["missing", "broken"])
    async def test_a_start_that_fails_or_a_kernel_that_dies_holds_nobody_up(
        self, make_multi: MakeMulti, end: str
    ) -> None:
        """The turn ends with the kernel."""
        multi = make_multi()
        await multi.start_kernel(kernel_name=end)
        second = multi.get_kernel(await multi.start_kernel())
        await second.answered
        await multi.shutdown_all()

    async def test_a_start_that_hangs_holds_nobody_up_for_ever(self, make_multi: MakeMulti) -> None:
        """After the time for a turn the next one goes on; the one that hangs goes on hanging."""
        gate = Gate("before")
        multi = make_multi(gate, start_turn_time=0.05)
        first = multi.get_kernel(await multi.start_kernel(kernel_name="gated"))
        second = multi.get_kernel(await multi.start_kernel())
        await second.answered
        assert first.state is KernelState.PROVISIONING
        gate.open()
        await first.answered
        await multi.shutdown_all()

    async def test_the_queue_can_be_seen_and_changed(self, make_multi: MakeMulti) -> None:
        """Positions, another order, one at once, and one not at all."""
        gate = Gate("before")
        multi = make_multi(gate)
        names = ("gated", "tiny", "tiny", "tiny", "tiny")
        ids = [await multi.start_kernel(kernel_name=name, kernel_id=f"k{number}") for number, name in enumerate(names)]
        queue = multi.start_queue
        assert queue.waiting == tuple(ids[1:])
        queue.move("k4", 0)
        assert [queue.position(kernel_id) for kernel_id in ids] == [None, 1, 2, 3, 0]
        queue.start_now("k3")
        await multi.get_kernel("k3").answered
        cancelled = multi.get_kernel("k2")
        multi.cancel_start("k2")
        with pytest.raises(KernelStartCancelled):
            await cancelled.ready
        await eventually(lambda: "k2" not in multi)
        assert queue.waiting == ("k4", "k1")
        assert multi.get_kernel("k1").state is KernelState.QUEUED
        gate.open()
        await multi.get_kernel("k1").answered
        assert multi.get_kernel("k4").state is KernelState.READY
        await multi.shutdown_all()

    async def test_a_caller_waits_for_its_turn_and_may_give_up(self, make_multi: MakeMulti) -> None:
        """Without pending kernels a start returns when its kernel runs; cancelled in the queue it leaves nothing."""
        gate = Gate("before")
        multi = make_multi(gate, use_pending_kernels=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: multi.start_kernel(kernel_name="gated", kernel_id="first"))
            await anyio.to_thread.run_sync(gate.reached.wait)
            with anyio.move_on_after(0.05):
                await multi.start_kernel(kernel_id="second")
            assert multi.list_kernel_ids() == ["first"]
            assert multi.start_queue.waiting == ()
            gate.open()
        await multi.shutdown_all()

    async def test_the_end_of_all_cancels_what_waits(self, make_multi: MakeMulti) -> None:
        """Whoever has his turn is waited for; who waits for it never has it."""
        gate = Gate("before")
        multi = make_multi(gate, use_pending_kernels=False)
        outcomes: dict[str, str] = {}

        async def start(name: str) -> None:
            try:
                outcomes[name] = await multi.start_kernel(kernel_name=name, kernel_id=name)
            except KernelStartCancelled:
                outcomes[name] = "cancelled"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start, "gated")
            await anyio.to_thread.run_sync(gate.reached.wait)
            tasks.start_soon(start, "tiny")
            await eventually(lambda: multi.start_queue.waiting == ("tiny",))
            tasks.start_soon(multi.shutdown_all)
            await eventually(lambda: "tiny" in outcomes)
            gate.open()
        assert outcomes == {"gated": "gated", "tiny": "cancelled"}
        assert len(multi) == 0
        assert multi.start_queue.starting == ()

    async def test_stopping_who_waits_takes_him_out(self, make_multi: MakeMulti) -> None:
        """With `wait` a stop waits for the turn too; with `cancel` there is none."""
        gate = Gate("before")
        multi = make_multi(gate, pending_shutdown="cancel")
        await multi.start_kernel(kernel_name="gated")
        waiting = await multi.start_kernel()
        manager = multi.get_kernel(waiting)
        await multi.shutdown_kernel(waiting)
        await manager.ready
        await eventually(lambda: waiting not in multi)
        assert multi.start_queue.waiting == ()
        await multi.shutdown_all(now=True)

    async def test_a_restart_needs_no_turn(self, make_multi: MakeMulti) -> None:
        """What ran already does not wait behind those who come."""
        gate = Gate("before")
        multi = make_multi(gate)
        running = await multi.start_kernel()
        await multi.get_kernel(running).answered
        await multi.start_kernel(kernel_name="gated")
        await multi.restart_kernel(running, now=True)
        await multi.get_kernel(running).answered
        await multi.shutdown_all(now=True)

    async def test_the_limit_is_the_number_of_cores_and_can_be_changed(self, make_multi: MakeMulti) -> None:
        """By default and by the trait, while the manager is in use too."""
        assert AsyncMultiKernelManager().start_queue.limit >= 1
        multi = make_multi(max_concurrent_starts=3)
        assert multi.start_queue.limit == 3
        multi.max_concurrent_starts = 0
        multi.start_turn_time = 1.0
        assert (multi.start_queue.limit, multi.start_queue.turn_time) == (0, 1.0)
