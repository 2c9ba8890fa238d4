"""The managers with real kernels: ipykernel and our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually, is_running, until

from cobnut_kernel.connection_files import load_connection_file
from cobnut_kernel.errors import KernelDiedError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, native_spec, own_spec
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from pathlib import Path

    from cobnut_kernel.client.client import AsyncKernelClient

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

SPECS = {"ipykernel": native_spec(), "cobnut": own_spec()}


@pytest.fixture(params=SPECS)
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncKernelManager:
    """The manager of each kernel in turn."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    specs = KernelSpecManager(extra_specs={"k": SPECS[request.param]}, kernel_dirs=[])
    specs.get_kernel_spec("k").metadata |= {"supported_encryption": ["curve"]}  # this ipykernel can, others cannot
    return AsyncKernelManager(kernel_name="k", kernel_spec_manager=specs)


async def text_of(client: AsyncKernelClient, code: str) -> str:
    """Run a cell and return what it printed."""
    return "".join([m.content["text"] async for m in client.run(code) if m.msg_type == "stream"])


async def test_a_kernels_whole_life(manager: AsyncKernelManager, tmp_path: Path) -> None:
    """Start, cells, interrupt, restart with the same client, death by SIGKILL, restart, stop; nothing is left."""
    await manager.start_kernel(cwd=str(tmp_path))
    await manager.answered
    assert manager.state is KernelState.READY
    assert manager.connection_info is not None
    assert manager.connection_info.transport == "ipc"
    async with manager.client() as client:
        assert await text_of(client, "import os; x = 6 * 7; print(x, os.getcwd())") == f"42 {tmp_path}\n"

        sleeping = client.run("print('asleep', flush=True)\nimport time; time.sleep(60)")
        async for message in sleeping:
            if message.msg_type == "stream":
                await manager.interrupt_kernel()
        assert (await sleeping.reply()).content["ename"] == "KeyboardInterrupt"
        assert await text_of(client, "print(x)") == "42\n"

        await manager.restart_kernel()
        await client.wait_for_ready()  # to hear all of a new kernel is to be connected to it
        assert await text_of(client, "print('x' in globals())") == "False\n"

        assert isinstance(manager.provisioner, LocalProvisioner)
        assert manager.provisioner.pid is not None
        running = client.run("import time; time.sleep(60)")
        os.kill(manager.provisioner.pid, signal.SIGKILL)
        with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
            await running.reply()
        await eventually(lambda: manager.state is KernelState.DEAD)
        assert str(manager.death) == "killed by SIGKILL"

        await manager.restart_kernel(now=True)
        await client.wait_for_ready()
        assert await text_of(client, "print(1)") == "1\n"
    assert manager.output_tail() == ""
    await manager.shutdown_kernel()
    assert await manager.provisioner.poll() == 0


async def test_an_exit_in_a_cell_is_a_death_with_its_code(manager: AsyncKernelManager) -> None:
    """What user code does to its process is told, with what it wrote to stderr."""
    await manager.start_kernel()
    await manager.answered
    async with manager.client() as client:
        client.execute("import os; os.write(2, b'last words\\n'); os._exit(3)")
        await eventually(lambda: manager.state is KernelState.DEAD)
    assert manager.death is not None
    assert (str(manager.death), manager.death.exit_code) == ("exit code 3", 3)
    assert manager.death.phase is KernelState.READY


async def test_a_kernel_on_ports_works_as_well(manager: AsyncKernelManager) -> None:
    """Kernels that get tcp are started, restarted on the same ports, and stopped."""
    manager.config.LocalProvisioner.transport = "tcp"
    await manager.start_kernel()
    connection = manager.connection_info
    assert connection is not None
    assert (connection.transport, connection.ip) == ("tcp", "127.0.0.1")
    await manager.answered
    async with manager.client() as client:
        assert await text_of(client, "print(1)") == "1\n"
        await manager.restart_kernel(now=True)
        assert manager.connection_info == connection
        await client.wait_for_ready()
        assert await text_of(client, "print(2)") == "2\n"
    await manager.shutdown_kernel()


async def test_our_kernel_chooses_its_ports_and_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its spec says that it can: the start is over when it listens, its file is there, a restart keeps both."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    specs = KernelSpecManager(extra_specs={"k": own_spec()}, kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="k", kernel_spec_manager=specs)
    manager.config.LocalProvisioner.transport = "tcp"
    await manager.start_kernel()
    connection = manager.connection_info
    assert connection is not None
    assert isinstance(manager.provisioner, LocalProvisioner)
    assert manager.provisioner.connection_file is not None
    assert load_connection_file(manager.provisioner.connection_file) == connection
    async with manager.client() as client:
        assert await text_of(client, "print(1)") == "1\n"
        await manager.restart_kernel()
        assert manager.connection_info == connection
        await client.wait_for_ready()
        assert await text_of(client, "print(2)") == "2\n"
        await manager.restart_kernel(newports=True)
        assert await text_of(client, "print(3)") == "3\n"
    await manager.shutdown_kernel()
    assert not manager.provisioner.connection_file.exists()


STOCK_CLIENT = """
import sys
from jupyter_client.blocking.client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels()
client.wait_for_ready(timeout=30)
client.execute_interactive("print(6 * 7)", timeout=30)
client.stop_channels()
"""


async def test_a_kernel_whose_ports_are_encrypted_works_as_well(manager: AsyncKernelManager) -> None:
    """Our client and a stock one are heard by the keys in the file; a restart keeps the keys."""
    manager.config.LocalProvisioner.transport = "tcp"
    manager.transport_encryption = "auto"
    await manager.start_kernel()
    connection = manager.connection_info
    assert connection is not None
    assert connection.is_encrypted
    await manager.answered
    assert isinstance(manager.provisioner, LocalProvisioner)
    stock = await anyio.run_process(
        [sys.executable, "-c", STOCK_CLIENT, str(manager.provisioner.connection_file)], stderr=None
    )
    assert stock.stdout == b"42\n"
    async with manager.client() as client:
        assert await text_of(client, "print(1)") == "1\n"
        await manager.restart_kernel(now=True)
        assert manager.connection_info == connection
        await client.wait_for_ready()
        assert await text_of(client, "print(2)") == "2\n"
    await manager.shutdown_kernel()


async def test_a_broken_interpreter_says_what_it_said(manager: AsyncKernelManager, tmp_path: Path) -> None:
    """A kernel whose package cannot be imported is dead, with Python's own words."""
    argv = [sys.executable, "-S", *manager.kernel_spec.argv[1:]]  # without site-packages
    manager.kernel_spec_manager.extra_specs = {"bare": KernelSpec(argv=argv, language="python")}
    manager.kernel_name = "bare"
    await manager.start_kernel(cwd=str(tmp_path), env={"PATH": os.environ["PATH"]})
    with pytest.raises(KernelDiedError, match="No module named"):
        await manager.answered
    assert manager.death is not None
    assert "No module named" in manager.death.stderr_tail


OWNER = """
import sys
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, native_spec, own_spec
from cobnut_kernel.manager.multi import AsyncMultiKernelManager

specs = {"own": own_spec(), "native": native_spec(), "other": KernelSpec(argv=["sleep", "60"])}
multi = AsyncMultiKernelManager(kernel_spec_manager=KernelSpecManager(extra_specs=specs, kernel_dirs=[]))
managers = [multi.get_kernel(multi.start_soon(kernel_name=name)) for name in specs]
for manager in managers[:2]:
    manager.answered.result(timeout=30)
managers[2].ready.result()
print(*(manager.provisioner.pid for manager in managers), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["SIGKILL", "end of the program"])
def test_no_kernel_outlives_its_owner(runtime: Path, end: str, tmp_path: Path) -> None:
    """Killed, or just ended without a word to its kernels, a program takes them and their files along."""
    owner = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stderr is not None
        kernels = list(map(int, owner.stdout.readline().split()))
        assert len(kernels) == 3
        others = [child.pid for child in psutil.Process(owner.pid).children(recursive=True)]
        assert set(kernels) < set(others)
        if end == "SIGKILL":
            owner.kill()
        else:
            owner.stdin.close()
        assert owner.wait(timeout=20) == (-signal.SIGKILL if end == "SIGKILL" else 0)
        assert owner.stderr.read() == ""
    until(lambda: not any(map(is_running, others)), f"still there: {others}")
    until(lambda: list((runtime / "cobnut").iterdir()) == [], "files are left")
