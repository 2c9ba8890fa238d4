"""The fault matrix: whatever goes wrong, the caller is told what and what to do, and all is as it was before."""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually, unchanged
from tests.kernel.manager.conftest import Gate, GatedManager, Tiny
from tests.kernel.manager.faces import FACES, Face, Many, One, Pending

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import (
    KernelDiedError,
    KernelError,
    KernelNotReadyError,
    KernelStartError,
    NoSuchKernel,
)
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, own_spec
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.provisioning.templates import Templates, can_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cobnut_kernel.manager.manager import AsyncKernelManager

pytestmark = pytest.mark.anyio

F = TypeVar("F", bound=Face)

SLEEPER = KernelSpec(argv=["sleep", "600"])
"""No kernel, but a process: quick to start, and silent for ever."""

BOTH_LOOPS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

DELAYS = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""After how many seconds somebody loses patience: each hits another place of a start."""


@pytest.fixture(params=FACES)
def face_class(request: pytest.FixtureRequest) -> type[Face]:
    """Each way to manage kernels in turn."""
    return FACES[request.param]


@pytest.fixture
def specs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSpecManager:
    """The kernels that are well; a test adds its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    well = {"sleeper": SLEEPER, "tiny": tiny.spec(), "own": own_spec()}
    return KernelSpecManager(extra_specs=well, kernel_dirs=[])


def add(specs: KernelSpecManager, name: str, spec: KernelSpec) -> None:
    """Make a kernel known."""
    specs.extra_specs = {**specs.extra_specs, name: spec}


async def warm_up(face: F, name: str = "sleeper") -> F:
    """Start and stop a kernel, so that what serves all of them is there: portal, guard, I/O thread, fork server."""
    await face.start("sleeper")
    await face.stop(now=True)
    if name == "own" and can_fork():
        Templates.warm()
        await face.start("own")
        await face.manager.answered
        await face.stop(now=True)
        await eventually(has_spare_kernel, "the fork server has no spare kernel")
    return face


def has_spare_kernel() -> bool:
    """Say whether a child of ours, the fork server, has one."""
    return any(child.children() for child in psutil.Process().children())


async def is_usable(face: Face) -> None:
    """Start a kernel, see it run, and stop it."""
    await face.start("sleeper")
    assert psutil.pid_exists(pid_of(face.manager))
    await face.stop(now=True)


def pid_of(manager: Any) -> int:
    """The id of a kernel's process."""
    assert manager.provisioner is not None
    assert manager.provisioner.pid is not None
    return manager.provisioner.pid


def kill(manager: Any) -> None:
    """Kill a kernel's process, as the system does when memory is short."""
    os.kill(pid_of(manager), signal.SIGKILL)


# ── starts that cannot be ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Fault:
    """A start that cannot be: what is wrong, and what the error must say of it."""

    spec: Callable[[Path], KernelSpec]
    says: str
    advises: str
    error: type[Exception] = KernelStartError
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def script(folder: Path, text: str, mode: int = 0o755) -> KernelSpec:
    """Make a spec whose program is a file with this text."""
    file = folder / "kernel-program"
    file.write_text(text)
    file.chmod(mode)
    return KernelSpec(argv=[str(file), "{connection_file}"])


def removed_environment(folder: Path) -> KernelSpec:
    """Make the spec of an environment whose interpreter has been removed from the system."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to("/no/such/python")
    return KernelSpec(argv=[str(folder / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"])


def argv(*parts: str, **fields: Any) -> Callable[[Path], KernelSpec]:
    """Make a spec with this command."""
    return lambda _: KernelSpec(argv=list(parts), **fields)


SLURM = {"kernel_provisioner": {"provisioner_name": "slurm"}}
FAULTS = {
    "no such program": Fault(argv("/no/such/kernel"), "/no/such/kernel is not there", "install it, or correct"),
    "not on the path": Fault(argv("no-such-kernel"), "no-such-kernel is not there", "install it, or correct"),
    "no command at all": Fault(argv(), "argv.* is empty", "correct"),
    "no interpreter": Fault(partial(script, text="#!/no/such/python\n"), "interpreter that is not there", "first line"),
    "no environment": Fault(removed_environment, "bin/python is not there", "install it, or correct"),
    "no permission": Fault(partial(script, text="#!/bin/sh\n", mode=0o600), "may not be used", "see their permissions"),
    "no program": Fault(partial(script, text="words\n"), "is no program that this machine can run", "correct the argv"),
    "no folder": Fault(argv("true"), "no such folder", "Choose another one", options={"cwd": "/no/such/folder"}),
    "no provisioner": Fault(argv("true", metadata=SLURM), "provisioner 'slurm'", "install the package", NoSuchKernel),
    "odd option": Fault(argv("true"), "colour", "option", options={"colour": "blue"}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_start_that_cannot_be(
    face_class: type[Face], fault: str, specs: KernelSpecManager, tmp_path: Path, runtime: Path
) -> None:
    """The error says what is wrong and what to do; nothing is left, and the next start works."""
    case = FAULTS[fault]
    add(specs, "faulty", case.spec(tmp_path))
    face = await warm_up(face_class(specs))
    async with unchanged(runtime):
        with pytest.raises(case.error) as caught:
            await face.start("faulty", **case.options)
        assert re.search(case.says, str(caught.value))
        assert re.search(case.advises, str(caught.value))
        await face.stop()
        await is_usable(face)


# ── kernels that do not come up ─────────────────────────────────────────────────────────────────────────────────────

STILLBORN = {
    "import error": ([sys.executable, "-c", "import no_such_package"], r"exit code 1\.\n(.|\n)*No module named 'no_su"),
    "our kernel's package missing": (
        [sys.executable, "-I", "-S", *own_spec().argv[2:]],
        r"exit code 1\.\n.*No module named",
    ),
    "an end at once": (["true"], "exit code 0"),
    "a crash": (["sh", "-c", "echo last words >&2; kill -SEGV $$"], "killed by SIGSEGV(.|\n)*last words"),
}


@pytest.mark.parametrize("fault", STILLBORN)
async def test_a_kernel_that_does_not_come_up(
    face_class: type[Face], fault: str, specs: KernelSpecManager, runtime: Path
) -> None:
    """Its end and its last words reach whoever waits for its answer, and the report."""
    command, words = STILLBORN[fault]
    add(specs, "stillborn", KernelSpec(argv=command))
    face = await warm_up(face_class(specs))
    async with unchanged(runtime):
        await face.start("stillborn")
        with pytest.raises(KernelDiedError, match=f"ended before it answered: {words}"):
            await face.manager.answered
        assert face.manager.state is KernelState.DEAD
        assert face.manager.death.phase is KernelState.STARTING
        await face.stop()
        await is_usable(face)


@pytest.mark.parametrize("habits", [("mute",), ("mute", "sturdy", "parent")])
async def test_a_kernel_that_never_answers(
    face_class: type[Face], habits: tuple[str, ...], specs: KernelSpecManager, tiny: Tiny, runtime: Path
) -> None:
    """It is ended with all it has started when its time is over, and that is what everybody is told."""
    add(specs, "mute", tiny.spec(*habits))
    face = await warm_up(face_class(specs, startup_timeout=0.4))
    async with unchanged(runtime):
        await face.start("mute")
        with pytest.raises(KernelDiedError, match=r"did not answer within 0\.4 seconds"):
            await face.manager.answered
        assert face.manager.death.signal == "SIGKILL"
        await face.stop()


async def test_a_client_of_a_kernel_that_never_answers(specs: KernelSpecManager, tiny: Tiny, runtime: Path) -> None:
    """It waits as long as it is told to, says what can be done, and hears of the end as soon as that comes."""
    add(specs, "mute", tiny.spec("mute"))
    face = await warm_up(One(specs, startup_timeout=0.4))
    async with unchanged(runtime):
        await face.start("mute")
        async with face.manager.client() as client:
            with pytest.raises(KernelNotReadyError, match=r"within 0\.01 seconds.*(.|\n)*wait longer"):
                await client.wait_for_ready(timeout=0.01)
            with pytest.raises(KernelDiedError, match=r"did not answer within 0\.4 seconds"):
                await client.wait_for_ready()
        await face.stop()


async def test_a_kernel_that_never_tells_where_it_listens(
    face_class: type[Face], specs: KernelSpecManager, tiny: Tiny, runtime: Path
) -> None:
    """One that was to choose its ports is ended likewise, and there its start has failed."""
    spec = tiny.spec("mute")
    spec.metadata = {
        "cobnut": {"registration": True},
        "kernel_provisioner": {"provisioner_name": "local-provisioner", "config": {"transport": "tcp"}},
    }
    add(specs, "mute", spec)
    face = await warm_up(face_class(specs, startup_timeout=0.5))
    async with unchanged(runtime):
        with pytest.raises(KernelStartError, match=r"where it listens within 0\.5 seconds, and was killed"):
            await face.start("mute")
        await face.stop()


# ── killed in every phase ───────────────────────────────────────────────────────────────────────────────────────────


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


# ── disk full ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


def stop_everything() -> None:
    """End the portal, so that nothing is on the disk that goes."""
    from tests.kernel.leftovers import stop_portal

    stop_portal()
    OwnerDirectory.remove()


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


# ── folders that vanish ─────────────────────────────────────────────────────────────────────────────────────────────


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


# ── again and again, and many at once ───────────────────────────────────────────────────────────────────────────────


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


# ── callers that give up ────────────────────────────────────────────────────────────────────────────────────────────


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
