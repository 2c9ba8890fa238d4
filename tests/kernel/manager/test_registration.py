"""Kernels that choose their ports and tell them (JEP 66): every way a start can go, and nothing left of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.test_manager import files, pid_of

from cobnut_kernel.connection_files import OwnerDirectory, load_connection_file
from cobnut_kernel.errors import KernelDiedError, KernelStartCancelled, KernelStartError, PendingKernelError
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning import ports as kernel_ports
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

    from cobnut_kernel.manager.manager import AsyncKernelManager

    MakeManager = Callable[..., AsyncKernelManager]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]


STOCK_CLIENT = """
import sys
from jupyter_client.blocking.client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels()
print(client.kernel_info(reply=True, timeout=20)["content"]["status"])
client.stop_channels()
"""


def file_of(manager: AsyncKernelManager) -> Path:
    """Where the kernel's connection file lies."""
    return OwnerDirectory.shared().path / f"kernel-{manager.kernel_id}.json"


def process_of(manager: AsyncKernelManager) -> psutil.Process | None:
    """The kernel's process, as soon as there is one; the manager does not know yet that it has one."""
    provisioner = manager.provisioner
    pid = provisioner.pid if isinstance(provisioner, LocalProvisioner) else None
    return psutil.Process(pid) if pid is not None else None


def nothing_is_left(manager: AsyncKernelManager) -> bool:
    """Whether neither process nor file nor promised port is there."""
    return (manager.has_kernel, files(), kernel_ports.promised) == (False, [], set())


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_kernel_that_registers_is_known_when_its_start_is_over(
    make_manager: MakeManager, anyio_backend: str
) -> None:
    """Its ports are its own choice; connection and file say the same, and stock clients find it by them."""
    del anyio_backend
    manager = make_manager(registers=True)
    await manager.start_kernel(env={**os.environ, "JPY_SESSION_NAME": "book.ipynb"})
    info = manager.connection_info
    assert info is not None
    assert info.transport == "tcp"
    ports = [info.shell_port, info.iopub_port, info.stdin_port, info.control_port, info.hb_port]
    assert len({*ports, 0}) == 6
    assert load_connection_file(file_of(manager)) == info
    assert info.extra == {"jupyter_session": "book.ipynb"}
    assert (file_of(manager).stat().st_mode & 0o777, info.kernel_name) == (0o600, "tiny")
    assert {port for port in ports if port in kernel_ports.promised} == set(ports)
    stock = await anyio.run_process([sys.executable, "-c", STOCK_CLIENT, str(file_of(manager))], stderr=None)
    assert stock.stdout == b"ok\n"
    await manager.answered
    await manager.shutdown_kernel()
    assert nothing_is_left(manager)


async def test_a_restart_keeps_the_ports_and_newports_chooses_others(make_manager: MakeManager) -> None:
    """Clients find a restarted kernel where it was; where it is moved it registers again, with another key."""
    manager = make_manager(registers=True)
    await manager.start_kernel()
    await manager.answered
    before = manager.connection_info
    assert before is not None
    async with manager.client() as client:
        await manager.restart_kernel()
        assert manager.connection_info == before == load_connection_file(file_of(manager))
        assert (await client.run("x").reply()).content["status"] == "ok"
        await manager.restart_kernel(newports=True)
        after = manager.connection_info
        assert after is not None
        assert after.key != before.key
        assert load_connection_file(file_of(manager)) == after
        assert (await client.run("x").reply()).content["status"] == "ok"
    await manager.shutdown_kernel()
    assert nothing_is_left(manager)


async def test_a_kernel_that_dies_before_it_registers_shows_its_last_words(make_manager: MakeManager) -> None:
    """The start fails with exit code and stderr, the report has them too; another start is possible."""
    manager = make_manager("broken", registers=True)
    with pytest.raises(KernelDiedError, match=r"before it told where it listens: exit code 1(.|\n)*kernel_of_the_day"):
        await manager.start_kernel()
    with pytest.raises(KernelDiedError):
        await manager.answered
    report = manager.death
    assert report is not None
    assert (str(report), report.exit_code, report.phase) == ("exit code 1", 1, KernelState.PROVISIONING)
    assert "kernel_of_the_day" in report.stderr_tail
    assert manager.connection_info is None
    assert nothing_is_left(manager)
    with pytest.raises(KernelDiedError):
        await manager.restart_kernel()


async def test_a_kernel_that_is_killed_before_it_registers_is_reported(make_manager: MakeManager) -> None:
    """The signal is named."""
    manager = make_manager("slow", registers=True)
    start = manager.begin_start()
    await eventually(lambda: process_of(manager))
    os.kill(pid_of(manager), signal.SIGKILL)
    with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
        await manager.ready
    assert str(manager.death) == "killed by SIGKILL"
    assert isinstance(start.exception(), KernelDiedError)
    assert nothing_is_left(manager)


async def test_a_kernel_that_never_registers_is_killed(make_manager: MakeManager) -> None:
    """After the time for a start it is given up, with the reason."""
    manager = make_manager("mute", registers=True, startup_timeout=0.3)
    with pytest.raises(KernelStartError, match=r"did not tell where it listens within 0\.3 seconds, and was killed"):
        await manager.start_kernel()
    assert "within 0.3 seconds" in str(manager.death)
    assert manager.state is KernelState.DEAD
    assert nothing_is_left(manager)


async def test_a_registration_with_another_key_is_refused(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever it was, it was not our kernel; the kernel that waits in vain ends, and both reasons are told."""
    manager = make_manager("forged", registers=True)
    with pytest.raises(KernelDiedError) as caught:
        await manager.start_kernel()
    assert "refused: The message was not signed with the key of the registration file" in str(caught.value)
    assert "did not acknowledge the kernel's registration" in str(caught.value)
    assert "was refused" in caplog.text
    assert nothing_is_left(manager)


async def test_only_the_first_registration_counts(make_manager: MakeManager) -> None:
    """A kernel that tells other ports afterwards stays where it said first."""
    manager = make_manager("twice", registers=True)
    await manager.start_kernel()
    assert manager.connection_info is not None
    assert manager.connection_info.shell_port != 1
    await manager.answered
    await manager.shutdown_kernel()
    assert nothing_is_left(manager)


@pytest.mark.parametrize("how", ["cancel_start", "stop", "stop now", "portal"])
async def test_a_start_is_cancelled_while_the_kernel_has_not_registered(make_manager: MakeManager, how: str) -> None:
    """By whomever: the process is gone, and with it file and socket."""
    manager = make_manager("slow", registers=True, pending_shutdown="cancel")
    start = manager.begin_start()
    await eventually(lambda: process_of(manager))
    process = process_of(manager)
    with pytest.raises(PendingKernelError):
        await manager.interrupt_kernel()
    content = json.loads(file_of(manager).read_text())
    assert content["registration_port"]
    answered = manager.answered
    if how == "cancel_start":
        manager.cancel_start()
    elif how == "portal":
        Portal.shared().stop()
    else:
        await manager.shutdown_kernel(now=how == "stop now")
    await eventually(start.done)
    assert process is not None
    await eventually(lambda: not process.is_running())
    with pytest.raises(KernelStartCancelled):
        await answered
    assert nothing_is_left(manager)


async def test_a_cancelled_registration_can_be_started_again(make_manager: MakeManager, tiny: Tiny) -> None:
    """Nothing of the first attempt is in the way of the second."""
    manager = make_manager("slow", registers=True)
    manager.begin_start()
    await eventually(lambda: process_of(manager))
    manager.cancel_start()
    with pytest.raises(KernelStartCancelled):
        await manager.ready
    tiny.go()
    await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()
    assert nothing_is_left(manager)


async def test_many_kernels_register_at_once(make_manager: MakeManager) -> None:
    """Each is known by its own ports, and no two have the same."""
    managers = [make_manager(registers=True) for _ in range(6)]
    for manager in managers:
        manager.begin_start()
    for manager in managers:
        await manager.answered
    infos = [manager.connection_info for manager in managers]
    ports: list[Any] = [info.as_dict()[name] for info in infos if info for name in info.as_dict() if "_port" in name]
    assert len(set(ports)) == 30
    for manager in managers:
        await manager.shutdown_kernel(now=True)
        assert not manager.has_kernel
    assert nothing_is_left(managers[0])
