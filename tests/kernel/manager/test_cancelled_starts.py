"""Starts and restarts that are given up, at every phase: nothing of them is left, and all who wait are told."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually, is_running
from tests.kernel.manager.conftest import PHASES, Gate, GatedManager, Tiny
from tests.kernel.manager.test_manager import files, guards

from cobnut_kernel.errors import KernelError, KernelStartCancelled
from cobnut_kernel.kernelspec import KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]


class CancelledManager(GatedManager):
    """A manager whose gate is that of its multi-kernel manager."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gate=kwargs["parent"].gate, **kwargs)


class Multi(AsyncMultiKernelManager):
    """A multi-kernel manager with a gate for its kernels."""

    gate = Gate("nowhere")


@pytest.fixture
def make_multi(tiny: Tiny) -> Callable[..., Multi]:
    """Make multi-kernel managers of kernels that wait where a test says so."""

    def make(gate: Gate, **traits: Any) -> Multi:
        registering = tiny.spec("mute")
        registering.metadata = {"cobnut": {"registration": True}, "transport": "tcp"}
        specs = {
            "tiny": tiny.spec(),
            "slow": tiny.spec("slow"),
            "stubborn": tiny.spec("deaf", "sturdy"),
            "registering": registering,
        }
        multi = Multi(
            kernel_spec_manager=KernelSpecManager(extra_specs=specs, kernel_dirs=[]),
            default_kernel_name="tiny",
            **traits,
        )
        multi.gate = gate
        multi.kernel_manager_class = f"{__name__}.CancelledManager"
        return multi

    return make


GiveUp = "Callable[[Multi, str, anyio.CancelScope], Awaitable[None]]"


async def by_its_caller(_multi: Multi, _kernel_id: str, scope: anyio.CancelScope) -> None:
    """Who awaits the start, or the restart, is cancelled."""
    scope.cancel()


async def by_anybody(multi: Multi, kernel_id: str, _scope: anyio.CancelScope) -> None:
    """Somebody cancels the start."""
    multi.cancel_start(kernel_id)


async def by_a_stop(multi: Multi, kernel_id: str, _scope: anyio.CancelScope) -> None:
    """Somebody stops the kernel, and says that its start need not be waited for."""
    multi.get_kernel(kernel_id).pending_shutdown = "cancel"
    await multi.shutdown_kernel(kernel_id)


async def by_the_end_of_all(multi: Multi, _kernel_id: str, _scope: anyio.CancelScope) -> None:
    """Everything ends now."""
    await multi.shutdown_all(now=True)


WAYS = (by_its_caller, by_anybody, by_a_stop, by_the_end_of_all)


async def give_up(
    multi: Multi, kernel_id: str, work: Callable[[], Awaitable[object]], arrived: Callable[[], object], way: Any
) -> None:
    """Begin some work, and give it up when it has arrived somewhere; assert that nothing is left."""

    async def attempt(scope: anyio.CancelScope) -> None:
        with scope, pytest.raises(KernelStartCancelled):
            await work()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, scope)
        await eventually(arrived, "it never came there")
        manager = multi.get_kernel(kernel_id)
        await way(multi, kernel_id, scope)
    await eventually(lambda: kernel_id not in multi, "the id is still listed")
    assert manager.state is KernelState.STOPPED
    assert manager.ready.done()
    assert manager.answered.done()
    assert not manager.has_kernel
    assert (multi.start_queue.starting, multi.start_queue.waiting) == ((), ())
    assert files() == []
    assert psutil.Process().children() == guards()
    await eventually(lambda: running_tasks() == 0, "a task is left")


def running_tasks() -> int:
    """How many tasks run on the portal: of the guard there is none."""
    return len(Portal.shared()._tasks)


def start(multi: Multi, name: str = "tiny") -> Callable[[], Awaitable[object]]:
    """The start of a kernel whose id is known."""
    return lambda: multi.start_kernel(kernel_name=name, kernel_id="k")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_start_that_is_given_up_leaves_nothing(make_multi: Callable[..., Multi], phase: str, way: Any) -> None:
    """Before and after pre_launch, after launch_kernel, after post_launch: whoever gives it up."""
    gate = Gate(phase)
    multi = make_multi(gate)
    await give_up(multi, "k", start(multi), gate.reached.is_set, way)


@pytest.mark.parametrize("way", WAYS)
async def test_a_start_that_is_given_up_in_the_queue_leaves_nothing(make_multi: Callable[..., Multi], way: Any) -> None:
    """It never had its turn."""
    multi = make_multi(Gate("nowhere"), max_concurrent_starts=1)
    turn = multi.start_queue.join("another")
    arrived = lambda: multi.start_queue.waiting == ("k",)  # noqa: E731
    work = start(multi)

    async def leave(multi: Multi, kernel_id: str, scope: anyio.CancelScope) -> None:
        await way(multi, kernel_id, scope)
        turn.end()

    await give_up(multi, "k", work, arrived, leave)


@pytest.mark.parametrize("way", WAYS)
async def test_a_start_that_is_given_up_while_the_kernel_registers_leaves_nothing(
    make_multi: Callable[..., Multi], way: Any, tiny: Tiny
) -> None:
    """Its process runs, and has not told yet where it listens."""
    multi = make_multi(Gate("nowhere"))
    multi.config.LocalProvisioner.transport = "tcp"
    await give_up(multi, "k", start(multi, "registering"), lambda: "up" in tiny.lines, way)


@pytest.mark.parametrize("now", [False, True])
async def test_a_kernel_that_is_stopped_before_it_answers_leaves_nothing(
    make_multi: Callable[..., Multi], tiny: Tiny, now: bool
) -> None:
    """Its start is over, so that there is nothing to cancel: a stop ends it."""
    multi = make_multi(Gate("nowhere"))
    await multi.start_kernel(kernel_name="slow", kernel_id="k")
    await eventually(lambda: "up" in tiny.lines)
    manager = multi.get_kernel("k")
    assert isinstance(manager.provisioner, LocalProvisioner)
    pid = manager.provisioner.pid
    assert pid is not None
    multi.cancel_start("k")
    assert manager.state is KernelState.STARTING
    await multi.shutdown_kernel("k", now=now)
    assert isinstance(manager.answered.exception(), KernelStartCancelled)
    assert not is_running(pid)
    assert (files(), "k" in multi, multi.start_queue.starting) == ([], False, ())


@pytest.mark.parametrize("way", WAYS)
async def test_a_restart_that_is_given_up_while_the_old_kernel_ends_leaves_none(
    make_multi: Callable[..., Multi], way: Any
) -> None:
    """In its first half: the old one is ended by force, a new one never begins."""
    multi = make_multi(Gate("nowhere"))
    await multi.start_kernel(kernel_name="stubborn", kernel_id="k")
    manager = multi.get_kernel("k")
    manager.shutdown_wait_time = 3600
    await manager.answered
    restarting = lambda: manager.state is KernelState.RESTARTING  # noqa: E731
    await give_up(multi, "k", lambda: multi.restart_kernel("k"), restarting, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_restart_that_is_given_up_on_the_way_up_leaves_nothing(
    make_multi: Callable[..., Multi], phase: str, way: Any
) -> None:
    """In its second half it is a start like any other."""
    gate = Gate("nowhere")
    multi = make_multi(gate)
    await multi.start_kernel(kernel_id="k")
    await multi.get_kernel("k").answered
    gate.phase = phase
    await give_up(multi, "k", lambda: multi.restart_kernel("k", now=True), gate.reached.is_set, way)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_pending_start_that_is_cancelled_is_gone(make_multi: Callable[..., Multi], phase: str) -> None:
    """With pending kernels as well: the start's future tells of it, and the id is listed no more."""
    gate = Gate(phase)
    multi = make_multi(gate, use_pending_kernels=True)
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    await anyio.to_thread.run_sync(gate.reached.wait)
    multi.cancel_start(kernel_id)
    with pytest.raises(KernelStartCancelled):
        await manager.ready
    await eventually(lambda: kernel_id not in multi)
    assert files() == []
    with pytest.raises(KeyError):
        multi.cancel_start(kernel_id)


# ── all at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Turmoil:
    """Asks for this and that of three kernels, from several tasks, and gives up at odd moments."""

    def __init__(self, multi: Multi, seed: int) -> None:
        self.multi = multi
        self.random = Random(seed)
        self.wishes: tuple[Callable[[str], Awaitable[object]], ...] = (
            lambda kernel_id: multi.start_kernel(kernel_id=kernel_id),
            multi.shutdown_kernel,
            multi.kill_kernel,
            lambda kernel_id: multi.restart_kernel(kernel_id, now=True),
            multi.restart_kernel,
            multi.interrupt_kernel,
            multi.request_shutdown,
            lambda kernel_id: multi.finish_shutdown(kernel_id, 0.1),
            self.cancel,
            self.let_die,
            self.let_die,
        )

    async def cancel(self, kernel_id: str) -> None:
        """Cancel a start."""
        self.multi.cancel_start(kernel_id)

    async def let_die(self, kernel_id: str) -> None:
        """Kill a kernel from outside."""
        provisioner = self.multi.get_kernel(kernel_id).provisioner
        if isinstance(provisioner, LocalProvisioner) and provisioner.has_process and provisioner.pid is not None:
            os.kill(provisioner.pid, signal.SIGKILL)

    async def ask(self, times: int) -> None:
        """Ask for something again and again; what is refused is refused."""
        for _ in range(times):
            wish, patience = self.random.choice(self.wishes), self.random.choice((0.001, 0.01, 0.1, 5))
            with anyio.move_on_after(patience), suppress(KernelError, KeyError, ValueError, ProcessLookupError):
                await wish(self.random.choice("abc"))
            await anyio.sleep(self.random.random() * 0.02)


@pytest.mark.parametrize("pending", ["raise", "wait", "cancel"])
async def test_whatever_is_asked_in_whatever_order_nothing_is_left(
    make_multi: Callable[..., Multi], pending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Starts, stops, restarts, deaths and cancellations at odd moments: in the end all can be stopped."""
    multi = make_multi(
        Gate("nowhere"), max_concurrent_starts=2, pending_shutdown=pending, use_pending_kernels=pending != "raise"
    )
    turmoil = Turmoil(multi, seed=len(pending))
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(turmoil.ask, 15)
    await multi.shutdown_all(now=True)
    await eventually(lambda: len(multi) == 0)
    assert (multi.start_queue.starting, multi.start_queue.waiting) == ((), ())
    assert files() == []
    assert psutil.Process().children() == guards()
    await eventually(lambda: running_tasks() == 0, "a task is left")
    assert "Traceback" not in caplog.text
    assert "destroyed" not in caplog.text
