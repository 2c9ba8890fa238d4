"""No space on the disk, no file may grow, no descriptor is left."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.kernel.leftovers import unchanged
from tests.kernel.manager.faults.matrix import is_usable, stop_everything, warm_up

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.manager.lifecycle import RUNNING, KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from tests.kernel.manager.faces import Face

    from cobnut_kernel.kernelspec import KernelSpecManager

pytestmark = pytest.mark.anyio


@contextmanager
def full_disk(folder: Path) -> Generator[None]:
    """Give a folder a disk of its own, whose last byte is taken."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "cobnut-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"No disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left of a folder's disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):  # the first takes what is there, the second finds nothing
            with pytest.raises(OSError, match="No space left"):
                write_all(file.write, b"x" * size)
    return filler


def write_all(write: Callable[[bytes], int | None], data: bytes) -> None:
    """Write until all is written, or an error comes."""
    while data:
        data = data[write(data) or 0 :]


@pytest.mark.parametrize("is_first", [True, False], ids=["before the first start", "later"])
async def test_no_space_on_the_disk(
    face_class: type[Face], is_first: bool, specs: KernelSpecManager, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file and the reason; when there is space again the same manager starts kernels."""
    place = runtime / "disk"
    place.mkdir(mode=0o700)
    with full_disk(place):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
        monkeypatch.setenv("TMPDIR", str(place))
        OwnerDirectory.remove()
        face = face_class(specs)
        if not is_first:
            await warm_up(face)
        filler = fill(place)
        before = files_below(place)
        with pytest.raises(KernelStartError, match=f"{place}.*No space left on device") as caught:
            await face.start("tiny")
        assert re.search("(?i)free some|make room|another folder", str(caught.value))
        await face.stop()
        assert files_below(place) == before
        filler.unlink()
        await is_usable(face)
        await anyio.to_thread.run_sync(stop_everything)


def files_below(folder: Path) -> set[str]:
    """Name the files in a folder and in those below, apart from the record of their owner."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "owner.json"}


async def test_no_file_may_grow(face_class: type[Face], specs: KernelSpecManager, runtime: Path) -> None:
    """Where the system forbids to write the connection file (a quota does) the start fails likewise."""
    face = await warm_up(face_class(specs))
    async with unchanged(runtime):
        with limit(resource.RLIMIT_FSIZE, 10), pytest.raises(KernelStartError) as caught:
            await face.start("tiny")
        assert os.strerror(errno.EFBIG) in str(caught.value)
        assert str(runtime) in str(caught.value)
        await face.stop()
        await is_usable(face)


async def test_no_descriptor_is_left(face_class: type[Face], specs: KernelSpecManager, runtime: Path) -> None:
    """With too many open files a start fails, says so, and gives back those that it got."""
    face = await warm_up(face_class(specs))
    used = highest_descriptor()
    for spare in range(1, 12, 2):
        async with unchanged(runtime):
            try:
                with limit(resource.RLIMIT_NOFILE, used + 1 + spare):
                    await face.start("sleeper")
            except KernelStartError as error:
                assert os.strerror(errno.EMFILE) in str(error)  # noqa: PT017 - with enough of them it succeeds
            await face.stop(now=True)
    await is_usable(face)


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_a_portal_that_breaks_leaves_nobody_waiting(
    specs: KernelSpecManager, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Without a loop for it a start fails, and a stop that waits for it too; the next start is on another portal."""
    Portal.shared().stop()
    asked = threading.Event()

    def no_loop() -> asyncio.AbstractEventLoop:
        asked.wait(20)
        raise OSError("Too many open files")

    manager = AsyncKernelManager(kernel_name="tiny", kernel_spec_manager=specs, pending_shutdown="wait")
    with monkeypatch.context() as patch:
        patch.setattr("asyncio.events.new_event_loop", no_loop)
        manager.begin_start()
        outcomes = [manager.ready]
        if verb == "stop":
            manager.begin_stop(now=True)
            outcomes.append(manager.ready)
        asked.set()
        for outcome in outcomes:
            with pytest.raises(RuntimeError, match="portal has failed: Too many open files"):
                outcome.result(timeout=20)
        assert manager.state is KernelState.DEAD
        assert str(manager.death) == "The portal has failed: Too many open files"
    manager.begin_start().result(timeout=20)
    assert manager.state in RUNNING
    manager.begin_stop(now=True)[0].result(timeout=20)


def highest_descriptor() -> int:
    """Return the highest number among our descriptors."""
    return max(int(entry.name) for entry in Path("/dev/fd").iterdir())


@contextmanager
def limit(kind: int, value: int) -> Generator[None]:
    """Give this process less of something than it has."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
