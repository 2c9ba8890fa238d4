"""Provisioners that others have made for jupyter_client start kernels elsewhere, through our adapter."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.leftovers import private_runtime
from tests.kernel.sshd import HOST, Sshd, running_sshd

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.provisioning.adapter import ProvisionerAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut_kernel.client.client import AsyncKernelClient

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

MULTIPLEXED = """
  ControlMaster auto
  ControlPath {folder}/control
  ControlPersist 20
"""


@pytest.fixture(autouse=True)
def _runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir(mode=0o700)
    yield from private_runtime(monkeypatch)


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """A server to which a connection, once it is there, serves all commands."""
    with running_sshd() as server:
        with server.config.open("a") as config:
            config.write(MULTIPLEXED.format(folder=server.folder))
        yield server


def manager_of(provisioner: str, config: dict[str, Any], argv: list[str], **fields: Any) -> AsyncKernelManager:
    """Make the manager of a kernel whose spec names a provisioner."""
    stanza = {"kernel_provisioner": {"provisioner_name": provisioner, "config": config}}
    spec = KernelSpec(argv=argv, language="python", metadata=stanza, **fields)
    specs = KernelSpecManager(extra_specs={"far": spec}, kernel_dirs=[])
    return AsyncKernelManager(kernel_name="far", kernel_spec_manager=specs)


async def text_of(client: AsyncKernelClient, code: str) -> str:
    """Run a cell and return what it printed."""
    return "".join([m.content["text"] async for m in client.run(code) if m.msg_type == "stream"])


async def use(manager: AsyncKernelManager) -> None:
    """Start a kernel, run a cell, interrupt another, restart it, and stop it."""
    await manager.start_kernel()
    assert isinstance(manager.provisioner, ProvisionerAdapter)
    await manager.answered
    async with manager.client() as client:
        await client.wait_for_ready()
        assert await text_of(client, "x = 6 * 7; print(x)") == "42\n"
        sleeping = client.run("print('asleep', flush=True)\nimport time; time.sleep(60)")
        async for message in sleeping:
            if message.msg_type == "stream":
                await manager.interrupt_kernel()
        assert (await sleeping.reply()).content["ename"] == "KeyboardInterrupt"
    assert await manager.is_alive()
    await manager.restart_kernel()
    await manager.answered
    async with manager.client() as client:
        await client.wait_for_ready()
        assert await text_of(client, "print('x' in globals())") == "False\n"
    await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert not manager.provisioner.has_process


# ── sshpyk ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ssh_settings(server: Sshd) -> dict[str, Any]:
    """Write what a kernelspec says for sshpyk."""
    return {
        "ssh": str(server.bin / "ssh"),
        "ssh_host_alias": HOST,
        "remote_python": sys.executable,
        "remote_kernel_name": "python3",
    }


async def test_a_kernel_by_ssh(sshd: Sshd) -> None:
    """A kernel of sshpyk starts, is interrupted, restarts and stops on another host: on this one, by sshd."""
    pytest.importorskip("sshpyk")
    await use(manager_of("sshpyk-provisioner", ssh_settings(sshd), ["-"], interrupt_mode="message"))
    assert "Accepted publickey" in sshd.log


async def test_a_persistent_kernel_goes_on(sshd: Sshd) -> None:
    """One that sshpyk is to keep is left alone by a stop, in the middle of its cell, and found again as it was."""
    pytest.importorskip("sshpyk")
    manager = manager_of(
        "sshpyk-provisioner", {**ssh_settings(sshd), "persistent": True}, ["-"], interrupt_mode="message"
    )
    await manager.start_kernel()
    await manager.answered
    assert isinstance(manager.provisioner, ProvisionerAdapter)
    file = manager.provisioner._theirs.persistent_file
    async with manager.client() as client:
        await client.wait_for_ready()
        pid = int(await text_of(client, "import os; print(os.getpid())"))
        async for message in client.run("print('asleep', flush=True)\nimport time; time.sleep(1); x = 42"):
            if message.msg_type == "stream":
                break
    await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert not manager.has_kernel
    again = manager_of("sshpyk-provisioner", {**ssh_settings(sshd), "existing": file}, ["-"], interrupt_mode="message")
    try:
        await again.start_kernel()
        await again.answered
        async with again.client() as client:
            await client.wait_for_ready()
            assert await text_of(client, "print(os.getpid(), x)") == f"{pid} 42\n"
    finally:
        await again.shutdown_kernel()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_host_that_cannot_be_reached_is_told(sshd: Sshd) -> None:
    """The start fails with the provisioner's name and what it says, and nothing is left of it."""
    pytest.importorskip("sshpyk")
    settings = {**ssh_settings(sshd), "remote_python": "/no/such/python"}
    manager = manager_of("sshpyk-provisioner", settings, ["-"], interrupt_mode="message")
    with pytest.raises(KernelStartError, match="'sshpyk-provisioner' could not start the kernel 'far': "):
        await manager.start_kernel()
    assert not manager.has_kernel


# ── gateway_provisioners ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kernel_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter's distributed provisioner, with this machine as its cluster: the launcher tells the connection late."""
    package = Path(pytest.importorskip("gateway_provisioners").__file__).parent
    for part in ("python/scripts/launch_ipykernel.py", "shared/scripts/server_listener.py"):
        shutil.copy(package / "kernel-launchers" / part, tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the launcher has its connection file
    monkeypatch.setattr("gateway_provisioners.distributed.kernel_log_dir", str(tmp_path))
    monkeypatch.setenv("KERNEL_USERNAME", "tester")  # of the kernel's environment alone; it takes no root
    names = ("kernel-id", "public-key", "response-address", "port-range")
    options = [part for name in names for part in (f"--{name}", f"{{{name.replace('-', '_')}}}")]
    argv = [sys.executable, str(tmp_path / "launch_ipykernel.py"), *options, "--cluster-type", "none"]
    manager = manager_of("distributed-provisioner", {"remote_hosts": ["localhost"]}, argv)
    try:
        await use(manager)
    finally:
        from gateway_provisioners.response_manager import ResponseManager

        ResponseManager.instance().stop_response_manager()
        ResponseManager.clear_instance()
