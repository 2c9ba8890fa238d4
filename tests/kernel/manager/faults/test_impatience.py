"""Callers that give up: their tasks are cancelled, at any time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually, unchanged
from tests.kernel.manager.faces import Face, Many, One, Pending
from tests.kernel.manager.faults.matrix import BOTH_LOOPS, DELAYS, is_usable, pid_of, warm_up

from cobnut_kernel.manager.lifecycle import KernelState

if TYPE_CHECKING:
    from pathlib import Path

    from cobnut_kernel.kernelspec import KernelSpecManager

pytestmark = pytest.mark.anyio


@BOTH_LOOPS
@pytest.mark.parametrize("face_class", [One, Many], ids=["one", "many"])
async def test_who_gives_up_a_start(
    face_class: type[Face], specs: KernelSpecManager, runtime: Path, anyio_backend: str
) -> None:
    """Whenever that is: either the kernel runs, or nothing of it is left."""
    del anyio_backend
    face = await warm_up(face_class(specs), "own")
    for delay in DELAYS:
        async with unchanged(runtime):
            with anyio.move_on_after(delay) as patience:
                await face.start("own")
            if patience.cancelled_caught:
                assert not (face.multi.list_kernel_ids() if isinstance(face, Many) else face.manager.has_kernel)
            else:
                await face.manager.answered
                await face.stop()
    await is_usable(face)


@BOTH_LOOPS
async def test_who_gives_up_waiting_for_a_pending_start(
    specs: KernelSpecManager, runtime: Path, anyio_backend: str
) -> None:
    """The start goes on: it is nobody's who only waits for it."""
    del anyio_backend
    face = await warm_up(Pending(specs), "own")
    for delay in DELAYS:
        async with unchanged(runtime):
            with anyio.move_on_after(delay):
                await face.start("own")
            (kernel_id,) = face.multi.list_kernel_ids()
            face.manager = face.multi.get_kernel(kernel_id)
            await face.manager.answered
            await face.stop(now=True)


@BOTH_LOOPS
async def test_who_gives_up_a_restart(specs: KernelSpecManager, runtime: Path, anyio_backend: str) -> None:
    """Either the new kernel runs, or neither of the two is left; never the old one."""
    del anyio_backend
    face = await warm_up(One(specs), "own")
    for delay in DELAYS:
        async with unchanged(runtime):
            await face.start("own")
            await face.manager.answered
            old = pid_of(face.manager)
            with anyio.move_on_after(delay) as patience:
                await face.restart()
            await eventually(lambda old=old: not psutil.pid_exists(old))
            if patience.cancelled_caught:
                assert face.manager.state is KernelState.STOPPED
            else:
                await face.manager.answered
                await face.stop()


@BOTH_LOOPS
@pytest.mark.parametrize("face_class", [One, Many], ids=["one", "many"])
async def test_who_gives_up_a_stop(
    face_class: type[Face], specs: KernelSpecManager, runtime: Path, anyio_backend: str
) -> None:
    """The kernel is gone nevertheless."""
    del anyio_backend
    face = await warm_up(face_class(specs), "own")
    for delay in DELAYS:
        async with unchanged(runtime):
            await face.start("own")
            pid = pid_of(face.manager)
            with anyio.move_on_after(delay):
                await face.stop()
            await eventually(lambda pid=pid: not psutil.pid_exists(pid))
            await face.stop() if isinstance(face, One) else None


@BOTH_LOOPS
async def test_who_gives_up_waiting_for_a_kernel(specs: KernelSpecManager, runtime: Path, anyio_backend: str) -> None:
    """An interrupt, a request, a cell, the first answer: whoever waits no longer disturbs nobody and leaves nothing."""
    del anyio_backend
    face = await warm_up(One(specs))
    await face.start("tiny")
    async with face.manager.client() as client:
        await client.wait_for_ready()
        async with unchanged(runtime):
            cell = client.run("sleep")
            for wait in (cell.reply, cell.__anext__, face.manager.answered._wait, face.manager.interrupt_kernel):
                for delay in DELAYS[:4]:
                    with anyio.move_on_after(delay):
                        await wait()
            for _ in range(100):
                with anyio.move_on_after(0):
                    await client.request("kernel_info_request", {})
        await face.manager.interrupt_kernel()
        assert (await cell.reply()).content["status"] == "error"
        assert (await client.run("x").reply()).content["status"] == "ok"
    await face.stop()


async def test_who_gives_up_all_of_a_program(specs: KernelSpecManager, runtime: Path) -> None:
    """Ten starts, in ten tasks, cancelled together at any time: no id, no process and no file is left."""
    face = await warm_up(Many(specs), "own")
    for delay in DELAYS:
        async with unchanged(runtime):
            with anyio.move_on_after(delay):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(partial(face.multi.start_kernel, kernel_name="own"))
                    await anyio.sleep_forever()
            await face.multi.shutdown_all(now=True)
            assert face.multi.list_kernel_ids() == []
