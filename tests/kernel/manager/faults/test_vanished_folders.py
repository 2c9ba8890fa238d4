"""Folders that vanish: ours, that of the login, the one we are in."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.kernel.leftovers import unchanged
from tests.kernel.manager.conftest import Gate, GatedManager
from tests.kernel.manager.faults.matrix import is_usable, stop_everything, warm_up

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import KernelDiedError, KernelStartError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.manager.faces import Face

    from cobnut_kernel.kernelspec import KernelSpecManager

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("when", ["before a start", "while it runs", "before a restart"])
async def test_our_folder_vanishes(face_class: type[Face], when: str, specs: KernelSpecManager, runtime: Path) -> None:
    """Where somebody removes the folder of the connection files it is made again, and no stop minds."""
    face = await warm_up(face_class(specs))
    async with unchanged(runtime):
        if when == "before a start":
            shutil.rmtree(runtime / "cobnut")
        await face.start("tiny")
        await face.manager.answered
        if when != "before a start":
            shutil.rmtree(runtime / "cobnut")
        if when == "before a restart":
            await face.restart(now=True)
            await face.manager.answered
        await face.stop()
        await is_usable(face)


async def test_the_runtime_folder_of_the_login_vanishes(
    face_class: type[Face], specs: KernelSpecManager, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a logout it may: then the kernels' files lie in the folder for temporary files, and go from there too."""
    monkeypatch.setenv("TMPDIR", str(runtime / "tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "login"))
    for name in ("tmp", "login"):
        (runtime / name).mkdir(mode=0o700)
    OwnerDirectory.remove()
    face = await warm_up(face_class(specs))
    shutil.rmtree(runtime / "login")
    await face.start("tiny")
    await face.manager.answered
    places = {owner.parent for owner in folders_of_owners(runtime / "tmp")}
    await face.stop()
    await anyio.to_thread.run_sync(stop_everything)
    (place,) = places
    place.rmdir()  # it is empty


def folders_of_owners(folder: Path) -> set[Path]:
    """Find the folders of the processes that have kernels."""
    return {record.parent for record in folder.rglob("owner.json")}


async def test_the_connection_file_vanishes_before_it_is_read(
    make_manager: Callable[..., GatedManager], runtime: Path
) -> None:
    """The kernel cannot come up, and its own words say which file it misses."""
    gate = Gate("nowhere")
    manager = make_manager(manager_class=GatedManager, gate=gate)
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    async with unchanged(runtime):
        manager.gate = gate = Gate("prepared")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(manager.start_kernel)
            await anyio.to_thread.run_sync(gate.reached.wait)
            shutil.rmtree(runtime / "cobnut")
            gate.open()
        with pytest.raises(KernelDiedError, match=r"connection file .*json cannot be read: No such file"):
            await manager.answered
        await manager.shutdown_kernel()
        manager.gate = Gate("nowhere")
        await manager.start_kernel()
        await manager.shutdown_kernel(now=True)


async def test_the_folder_we_are_in_vanishes(
    face_class: type[Face], specs: KernelSpecManager, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that names no folder says that ours is gone; one that names a folder works."""
    face = await warm_up(face_class(specs))
    gone = tmp_path / "gone"
    gone.mkdir()
    async with unchanged(runtime):
        with monkeypatch.context() as patch:
            patch.chdir(gone)
            gone.rmdir()
            with pytest.raises(KernelStartError, match="folder we are in has been removed: go to another one"):
                await face.start("tiny")
            await face.stop()
            await face.start("tiny", cwd=str(tmp_path))
            await face.manager.answered
            await face.stop()
