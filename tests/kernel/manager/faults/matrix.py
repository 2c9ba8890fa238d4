"""What the tests of the fault matrix share: kernels, and what is done before and after each fault."""

from __future__ import annotations

import os
import signal
from typing import Any, TypeVar

import psutil
import pytest
from tests.kernel.leftovers import eventually, stop_portal
from tests.kernel.manager.faces import Face

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.provisioning.templates import Templates, can_fork

F = TypeVar("F", bound=Face)

SLEEPER = KernelSpec(argv=["sleep", "600"])
"""No kernel, but a process: quick to start, and silent for ever."""

BOTH_LOOPS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])

DELAYS = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
"""After how many seconds somebody loses patience: each hits another place of a start."""


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


def stop_everything() -> None:
    """End the portal, and remove the folder of our process."""
    stop_portal()
    OwnerDirectory.remove()
