"""Again and again, and many at once."""

from __future__ import annotations

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
import pytest
from tests.kernel.leftovers import eventually, unchanged
from tests.kernel.manager.faces import Many, ManyInThread, One
from tests.kernel.manager.faults.matrix import add, kill, warm_up

from cobnut_kernel.errors import KernelError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

    from cobnut_kernel.manager.manager import AsyncKernelManager

pytestmark = pytest.mark.anyio


@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "asked"])
async def test_two_hundred_of_our_kernels_one_after_the_other(
    is_killed: bool, specs: KernelSpecManager, runtime: Path
) -> None:
    """Each answers and is stopped; in the end nothing has grown, and no manager is held."""
    face = await warm_up(Many(specs), "own")
    managers: WeakSet[AsyncKernelManager] = WeakSet()
    async with unchanged(runtime):
        for _ in range(200):
            await face.start("own")
            managers.add(face.manager)
            if not is_killed:
                await face.manager.answered
            await face.stop(now=is_killed)
        face.manager = None
    await eventually(lambda: gc.collect() >= 0 and not managers, "managers of kernels that are gone are still held")


@pytest.mark.timeout(180)
async def test_two_hundred_restarts(specs: KernelSpecManager, runtime: Path) -> None:
    """A client goes through all of them, and in the end nothing has grown."""
    face = await warm_up(One(specs), "own")
    async with unchanged(runtime):
        await face.start("own")
        async with face.manager.client() as client:
            for number in range(200):
                await face.restart(now=True)
                if number % 20 == 0:
                    assert (await client.run("pass").reply()).content["status"] == "ok"
        await face.stop()


async def test_twenty_at_once_the_sick_among_the_sound(specs: KernelSpecManager, runtime: Path) -> None:
    """Each start has its own outcome, whatever becomes of the others; then all are stopped at once."""
    add(specs, "missing", KernelSpec(argv=["/no/such/kernel"]))
    add(specs, "broken", KernelSpec(argv=[sys.executable, "-c", "import no_such_package"]))
    face = await warm_up(Many(specs), "own")
    outcomes: list[tuple[str, str]] = []

    async def start(name: str) -> None:
        try:
            manager = face.multi.get_kernel(await face.multi.start_kernel(kernel_name=name))
            await manager.answered
        except KernelError as error:
            outcomes.append((name, type(error).__name__))
        else:
            async with manager.client() as client:
                await client.wait_for_ready()
                outcomes.append((name, (await client.run("pass").reply()).content["status"]))

    async with unchanged(runtime):
        async with anyio.create_task_group() as tasks:
            for name in ("own", "missing", "own", "broken", "own") * 4:
                tasks.start_soon(start, name)
        expected = {"own": "ok", "missing": "KernelStartError", "broken": "KernelDiedError"}
        assert sorted(outcomes) == sorted(
            [(name, expected[name]) for name in ("own", "missing", "own", "broken", "own") * 4]
        )
        await face.multi.shutdown_all()
        assert len(face.multi) == 0


async def test_twenty_at_once_of_threads_that_block(specs: KernelSpecManager, runtime: Path) -> None:
    """The blocking manager is used by twenty threads at the same time: each start has its own outcome there too."""
    add(specs, "missing", KernelSpec(argv=["/no/such/kernel"]))
    add(specs, "broken", KernelSpec(argv=[sys.executable, "-c", "import no_such_package"]))
    face = await warm_up(ManyInThread(specs), "own")

    def start(name: str) -> tuple[str, str]:
        try:
            manager = face.multi.get_kernel(face.multi.start_kernel(kernel_name=name))
            manager.answered.result(timeout=40)
        except KernelError as error:
            return name, type(error).__name__
        with manager.client() as client:
            return name, client.execute("pass", reply=True, timeout=40)["content"]["status"]

    def all_at_once() -> list[tuple[str, str]]:
        with ThreadPoolExecutor(20) as threads:
            return sorted(threads.map(start, names))

    names = ("own", "missing", "own", "broken", "own") * 4
    expected = {"own": "ok", "missing": "KernelStartError", "broken": "KernelDiedError"}
    async with unchanged(runtime):
        assert await anyio.to_thread.run_sync(all_at_once) == sorted((name, expected[name]) for name in names)
        assert len(face.multi) == 16  # a start that has failed is not listed, a kernel that has died is
        await anyio.to_thread.run_sync(face.multi.shutdown_all)
        assert len(face.multi) == 0


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("face_class", [Many, ManyInThread], ids=["awaited", "blocking"])
async def test_the_end_of_all_whatever_state_they_are_in(
    face_class: type[Many], now: bool, specs: KernelSpecManager, tiny: Tiny, runtime: Path
) -> None:
    """One that is well, one that is stubborn, one that never answers, one that is dead: none is left."""
    add(specs, "stubborn", tiny.spec("deaf", "sturdy"))
    add(specs, "mute", tiny.spec("mute", "sturdy", "parent"))
    face = await warm_up(face_class(specs, shutdown_wait_time=0.2, autorestart=False))
    async with unchanged(runtime):
        managers: list[Any] = []
        for name in ("tiny", "stubborn", "mute", "tiny"):
            await face.start(name)
            managers.append(face.manager)
        for manager in (*managers[:2], managers[3]):
            await manager.answered
        kill(managers[3])
        await eventually(lambda: managers[3].state is KernelState.DEAD)
        stop = partial(face.multi.shutdown_all, now=now)
        await (anyio.to_thread.run_sync(stop) if isinstance(face, ManyInThread) else stop())
        assert len(face.multi) == 0
        assert not any(manager.has_kernel for manager in managers)
