"""Kernels that are killed, in every phase of their lives."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually, unchanged
from tests.kernel.manager.conftest import Gate, GatedManager, Tiny
from tests.kernel.manager.faces import Face, Many, One
from tests.kernel.manager.faults.matrix import DELAYS, kill, pid_of, warm_up

from cobnut_kernel.errors import KernelDiedError, KernelError
from cobnut_kernel.manager.lifecycle import KernelState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cobnut_kernel.kernelspec import KernelSpecManager

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("phase", ["launched", "followed up"])
async def test_killed_while_it_is_launched(
    phase: str, make_manager: Callable[..., GatedManager], runtime: Path
) -> None:
    """A process that is gone before its start is over is a dead kernel, with the signal that ended it."""
    gate = Gate("nowhere")
    manager = make_manager(manager_class=GatedManager, gate=gate)
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    async with unchanged(runtime):
        manager.gate = gate = Gate(phase)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.start_kernel)
            await anyio.to_thread.run_sync(gate.reached.wait)
            kill(manager)
            gate.open()
        with pytest.raises(KernelDiedError, match="ended before it answered: killed by SIGKILL"):
            await manager.answered
        assert manager.state is KernelState.DEAD
        await manager.shutdown_kernel()


async def test_killed_before_it_answered(face_class: type[Face], specs: KernelSpecManager, runtime: Path) -> None:
    """Who waits for the answer, and who waits to interrupt it, is told."""
    face = await warm_up(face_class(specs))
    async with unchanged(runtime):
        await face.start("sleeper")
        kill(face.manager)
        with pytest.raises(KernelDiedError, match="ended before it answered: killed by SIGKILL"):
            await face.manager.answered
        assert str(face.manager.death) == "killed by SIGKILL"
        await face.restart(now=True)
        assert face.manager.state is KernelState.STARTING
        await face.stop(now=True)


async def test_killed_while_somebody_waits_to_interrupt_it(make_manager: Callable[..., Any], runtime: Path) -> None:
    """An interrupt that waits for the kernel's first answer does not wait for a dead one."""
    manager = make_manager("mute")
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    async with unchanged(runtime):
        await manager.start_kernel()

        async def interrupt() -> None:
            with pytest.raises(KernelError, match=r"killed by SIGKILL|no kernel is running"):
                await manager.interrupt_kernel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(interrupt)
            kill(manager)
        await manager.shutdown_kernel()


@pytest.mark.parametrize("face_class", [One, Many])
async def test_killed_while_cells_run(face_class: type[Face], specs: KernelSpecManager, runtime: Path) -> None:
    """All who wait for replies and outputs are told, the ones in the queue too; nobody can ask any more."""
    face = await warm_up(face_class(specs, autorestart=False))
    async with unchanged(runtime):
        await face.start("tiny")
        await face.manager.answered
        async with face.manager.client() as client:
            await client.wait_for_ready()
            cells = [client.run("sleep") for _ in range(5)]
            kill(face.manager)
            for cell in cells:
                with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
                    await cell.reply()
                with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
                    [_ async for _ in cell]
            await eventually(lambda: face.manager.state is KernelState.DEAD)
            with pytest.raises(KernelDiedError):
                client.run("x")
        await face.stop()


async def test_killed_while_it_stops(make_manager: Callable[..., Any], runtime: Path) -> None:
    """A stop that waits for a stubborn kernel is over when somebody else has killed that."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    async with unchanged(runtime):
        await manager.start_kernel()
        await manager.answered
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.shutdown_kernel)
            await eventually(lambda: manager.state is KernelState.STOPPING)
            kill(manager)
        assert (manager.state, manager.death) == (KernelState.STOPPED, None)


async def test_killed_while_it_is_restarted(make_manager: Callable[..., Any], tiny: Tiny, runtime: Path) -> None:
    """Where the old kernel is killed the new one comes sooner; where the new one is, that is told of it."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    async with unchanged(runtime):
        await manager.start_kernel()
        await manager.answered
        old = pid_of(manager)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.restart_kernel)
            await eventually(lambda: "shutdown_request" in tiny.heard())
            os.kill(old, signal.SIGKILL)
        assert pid_of(manager) != old
        await manager.answered
        kill(manager)
        await eventually(lambda: manager.state is KernelState.DEAD)
        await manager.shutdown_kernel()


@pytest.mark.parametrize("delay", DELAYS)
async def test_our_kernel_killed_some_time_after_its_launch(
    delay: float, specs: KernelSpecManager, runtime: Path
) -> None:
    """Wherever it is on its way up it is noticed, and the next one comes up."""
    face = await warm_up(One(specs), "own")
    async with unchanged(runtime):
        await face.start("own")
        await anyio.sleep(delay)
        kill(face.manager)
        await eventually(lambda: face.manager.state is KernelState.DEAD)
        assert str(face.manager.death) == "killed by SIGKILL"
        await face.restart()
        await face.manager.answered
        await face.stop()
