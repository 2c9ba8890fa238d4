"""What follows a death: when a kernel is started again, when it stays dead, and who is told."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import Gate, GatedManager, States
from traitlets.config import Config

from cobnut_kernel.errors import KernelDiedError, KernelStartCancelled, PendingKernelError
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState
from cobnut_kernel.manager.restarter import Decision, KernelRestarter, Record, RestartBudget, decide
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from cobnut_kernel.manager.manager import AsyncKernelManager

MakeManager = "Callable[..., AsyncKernelManager]"

BUDGET = RestartBudget(limit=2, period=10.0)


def death(phase: KernelState = KernelState.READY) -> DeathReport:
    """A death in a phase."""
    return DeathReport(exit_code=None, signal="SIGKILL", stderr_tail="", phase=phase)


def decisions(*deaths: tuple[float, KernelState], budget: RestartBudget = BUDGET) -> list[bool]:
    """Decide on deaths at these moments, one after the other."""
    record, restarts = Record(), list[bool]()
    for moment, phase in deaths:
        decision, record = decide(death(phase), record, budget, moment)
        restarts.append(decision.restarts)
    return restarts


READY, STARTING = KernelState.READY, KernelState.STARTING

# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_once_answered_is_restarted_within_the_budget() -> None:
    """The third death within the period is one too many; the decision says how often it was restarted."""
    assert decisions((0, READY), (1, READY), (2, READY)) == [True, True, False]
    record = Record(has_answered=True, restarts=(0.0, 1.0))
    decision, after = decide(death(), record, BUDGET, 2.0)
    assert (decision.reason, after) == ("it was restarted 2 times already within 10 seconds", record)
    decision, _ = decide(death(), Record(), BUDGET, 2.0)
    assert decision.reason == "restart 1 of at most 2 within 10 seconds"


def test_restarts_are_forgotten_with_the_time() -> None:
    """A kernel that dies now and then is restarted every time: the budget is one per period, not one for ever."""
    assert decisions(*((moment, READY) for moment in range(0, 100, 6))) == [True] * 17
    assert decisions((0, READY), (4, READY), (9, READY), (10, READY)) == [True, True, False, True]


def test_what_never_answered_stays_dead() -> None:
    """Whatever ended it would end the next one too."""
    assert decisions((0, STARTING)) == [False]
    decision, _ = decide(death(STARTING), Record(), BUDGET, 0.0)
    assert decision.reason == "it never answered"


def test_restarts_without_an_answer_count_until_there_is_one() -> None:
    """However long each of them took, there is an end; an answer in between begins anew."""
    assert decisions((0, READY), (60, STARTING), (120, STARTING)) == [True, True, False]
    assert decisions((0, READY), (60, STARTING), (120, READY), (180, STARTING)) == [True, True, True, True]


def test_a_kernel_that_did_not_come_up_gets_another_connection() -> None:
    """With the old one it may find its ports taken; one that had answered keeps it."""
    record = Record(has_answered=True)
    assert decide(death(STARTING), record, BUDGET, 0.0)[0].newports
    assert not decide(death(READY), record, BUDGET, 0.0)[0].newports


def test_no_budget_is_no_restart() -> None:
    """A limit of 0 switches restarts off."""
    assert decisions((0, READY), budget=RestartBudget(limit=0)) == [False]


def test_the_period_holds_as_many_stable_starts_as_the_limit() -> None:
    """A kernel that takes minutes to start, on a cluster say, does not escape its budget by that."""
    restarter = KernelRestarter(restart_limit=2, restart_period=1.0)
    restarter.start()
    assert restarter.judge(death(), 100.0).reason == "restart 1 of at most 2 within 200 seconds"
    assert [restarter.judge(death(), 100.0).restarts for _ in range(2)] == [True, False]
    restarter.forget()
    assert restarter.judge(death(), 100.0).restarts
    assert len(restarter.decisions) == 4


def test_who_does_not_watch_does_not_restart() -> None:
    """Before a start and after a stop a death is a death."""
    restarter = KernelRestarter()
    assert restarter.judge(death(), 1.0) == Decision(restarts=False, reason="nobody watches it", death=death())
    restarter.start()
    assert restarter.judge(death(), 1.0).restarts
    restarter.stop()
    assert not restarter.judge(death(), 1.0).restarts


def test_an_unknown_event_is_refused() -> None:
    """There are two: a callback for anything else would never be called."""
    for call in (KernelRestarter().add_callback, KernelRestarter().remove_callback):
        with pytest.raises(ValueError, match="'alive' is not a valid RestartEvent"):
            call(print, "alive")


# ── carried out ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Told:
    """What restart callbacks are told."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self.events: list[str] = []
        self.threads: set[str] = set()
        manager.add_restart_callback(self.on_restart)
        manager.add_restart_callback(self.on_death, "dead")

    def on_restart(self) -> None:
        """A restart begins."""
        self.threads.add(threading.current_thread().name)
        self.events.append("restart")

    async def on_death(self) -> None:
        """The kernel stays dead."""
        await anyio.lowlevel.checkpoint()
        self.threads.add(threading.current_thread().name)
        self.events.append("dead")


def kill(manager: AsyncKernelManager) -> None:
    """Let the kernel's process die."""
    assert isinstance(manager.provisioner, LocalProvisioner)
    assert manager.provisioner.pid is not None
    os.kill(manager.provisioner.pid, signal.SIGKILL)


async def ready_again(manager: AsyncKernelManager, ready: Any) -> None:
    """Wait until a kernel has been restarted by itself and has answered."""
    await eventually(lambda: manager.ready is not ready)
    await manager.ready
    await manager.answered


@pytest.mark.anyio
@pytest.mark.usefixtures("runtime")
class TestWithKernels:
    """With kernels that die."""

    async def test_a_kernel_that_dies_comes_back(self, make_manager: MakeManager) -> None:
        """It has the same connection; its clients are told of the death and then find the new one; callbacks hear."""
        manager = make_manager(autorestart=True)
        told, states = Told(manager), States(manager)
        await manager.start_kernel()
        await manager.answered
        connection, ready = manager.connection_info, manager.ready
        async with manager.client() as client:
            waiting = client.run("sleep")
            kill(manager)
            with pytest.raises(KernelDiedError):
                await waiting.reply()
            await ready_again(manager, ready)
            assert (await client.run("x").reply()).content["status"] == "ok"
        assert manager.connection_info == connection
        up = ("provisioning", "starting", "ready")
        await states.until("queued", *up, "dead", "restarting", *up)
        await eventually(lambda: told.events == ["restart"])
        assert told.threads == {"cobnut-portal"}
        (decision,) = manager.restarter.decisions
        assert (decision.restarts, str(decision.death)) == (True, "killed by SIGKILL")
        await manager.shutdown_kernel()
        assert told.events == ["restart"]

    async def test_a_kernel_that_keeps_dying_stays_dead_in_the_end(
        self, make_manager: MakeManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When the budget is spent the callbacks and the log say that it is dead, and why."""
        manager = make_manager(autorestart=True, config=Config({"KernelRestarter": {"restart_limit": 1}}))
        told = Told(manager)
        await manager.start_kernel()
        await manager.answered
        ready = manager.ready
        kill(manager)
        await ready_again(manager, ready)
        kill(manager)
        await eventually(lambda: told.events == ["restart", "dead"])
        assert manager.state is KernelState.DEAD
        assert "stays dead: it was restarted 1 times already within 60 seconds" in caplog.text
        await manager.restart_kernel()
        ready = manager.ready
        await manager.answered
        kill(manager)
        await ready_again(manager, ready)  # whoever restarts it gives it a new budget
        await manager.shutdown_kernel()

    async def test_a_kernel_that_never_answered_is_not_restarted(self, make_manager: MakeManager) -> None:
        """An import error is no reason to try again; the callback may be there before the start."""
        manager = make_manager("broken", autorestart=True)
        told = Told(manager)
        await manager.start_kernel()
        await eventually(lambda: told.events == ["dead"])
        assert manager.state is KernelState.DEAD
        assert manager.restarter.decisions[-1].reason == "it never answered"

    @pytest.mark.parametrize("off", ["trait", "stop_restarter"])
    async def test_restarts_can_be_switched_off(self, make_manager: MakeManager, off: str) -> None:
        """By the trait, or for the running kernel: the death is told, nothing follows."""
        manager = make_manager(autorestart=off != "trait")
        told = Told(manager)
        await manager.start_kernel()
        await manager.answered
        if off != "trait":
            manager.stop_restarter()
        kill(manager)
        await eventually(lambda: told.events == ["dead"])
        assert manager.state is KernelState.DEAD
        await manager.shutdown_kernel()

    async def test_a_callback_that_fails_is_logged_and_one_that_is_taken_back_hears_nothing(
        self, make_manager: MakeManager, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The others are told nevertheless."""
        manager = make_manager(autorestart=True)

        def fail() -> None:
            raise LookupError("of the test")

        manager.add_restart_callback(fail)
        told = Told(manager)
        manager.remove_restart_callback(told.on_death, "dead")
        manager.remove_restart_callback(print)
        await manager.start_kernel()
        await manager.answered
        ready = manager.ready
        kill(manager)
        await ready_again(manager, ready)
        await eventually(lambda: told.events == ["restart"])
        assert "A restart callback failed" in caplog.text
        await manager.shutdown_kernel()

    async def test_a_restart_that_fails_is_a_death(self, make_manager: MakeManager) -> None:
        """Where the kernel cannot be launched again, nothing is left and the callbacks say that it is dead."""
        gate = Gate("nowhere")
        manager = make_manager(manager_class=GatedManager, gate=gate, autorestart=True)
        told = Told(manager)
        await manager.start_kernel()
        await manager.answered
        gate.phase, gate.error = "prepared", LookupError("of the test")
        kill(manager)
        await eventually(lambda: told.events == ["restart", "dead"])
        assert manager.state is KernelState.DEAD
        assert "of the test" in str(manager.death)

    async def test_a_stop_ends_a_restart_that_nobody_asked_for(self, make_manager: MakeManager) -> None:
        """It is not in the way, as a start that somebody waits for would be: nothing is left, and nothing follows."""
        gate = Gate("nowhere")
        manager = make_manager(manager_class=GatedManager, gate=gate, autorestart=True)
        told = Told(manager)
        await manager.start_kernel()
        await manager.answered
        gate.phase = "launched"
        kill(manager)
        await anyio.to_thread.run_sync(gate.reached.wait)
        restart = manager.ready
        with pytest.raises(PendingKernelError):
            await manager.interrupt_kernel()
        await manager.shutdown_kernel()
        with pytest.raises(KernelStartCancelled):
            await restart
        assert (manager.state, manager.has_kernel) == (KernelState.STOPPED, False)
        await eventually(lambda: told.events == ["restart"])

    async def test_a_restart_joins_one_that_nobody_asked_for(self, make_manager: MakeManager) -> None:
        """Who asks for a restart while the kernel comes back by itself gets that one; with other options he waits."""
        gate = Gate("nowhere")
        manager = make_manager(manager_class=GatedManager, gate=gate, autorestart=True)
        states = States(manager)
        await manager.start_kernel()
        await manager.answered
        gate.phase = "launched"
        kill(manager)
        await anyio.to_thread.run_sync(gate.reached.wait)
        with pytest.raises(PendingKernelError):
            await manager.restart_kernel(newports=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.restart_kernel)
            await anyio.lowlevel.checkpoint()
            gate.open()
        await manager.answered
        up = ("provisioning", "starting", "ready")
        await states.until("queued", *up, "dead", "restarting", *up)
        await manager.shutdown_kernel()

    async def test_a_kernel_that_is_stopped_is_not_restarted(self, make_manager: MakeManager) -> None:
        """What ends because it was asked to, or was killed on purpose, is no death."""
        manager = make_manager(autorestart=True)
        told = Told(manager)
        for now in (False, True):
            await manager.start_kernel()
            await manager.answered
            await manager.shutdown_kernel(now=now)
        await manager.start_kernel()
        await manager.answered
        await manager.request_shutdown()
        await manager.finish_shutdown()
        assert manager.state is KernelState.STOPPED
        assert (told.events, manager.restarter.decisions) == ([], ())
