"""Starts that cannot be, and kernels that do not come up."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.leftovers import unchanged
from tests.kernel.manager.faces import Face, One
from tests.kernel.manager.faults.matrix import add, is_usable, warm_up

from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError, KernelStartError, NoSuchKernel
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, own_spec
from cobnut_kernel.manager.lifecycle import KernelState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

pytestmark = pytest.mark.anyio

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
