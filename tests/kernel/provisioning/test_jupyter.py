"""Our provisioners serve jupyter_client's managers, and JupyterLab's server, as they come."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpec as ForeignSpec
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_client.provisioning import KernelProvisionerBase, KernelProvisionerFactory
from jupyter_core.utils import run_sync
from tests.kernel.leftovers import eventually, is_running

from cobnut_kernel.connection_files import ProcessIdentity
from cobnut_kernel.errors import KernelError, KernelStartError
from cobnut_kernel.kernelspec import PROVISIONER_GROUP, KernelSpec, native_spec, own_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.forked_process import ForkedProcess
from cobnut_kernel.provisioning.jupyter import CobnutForkProvisioner, CobnutLocalProvisioner, ManagerSettings, our_spec
from cobnut_kernel.provisioning.local import LocalProvisioner
from cobnut_kernel.provisioning.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

PROVISIONERS = ["cobnut-local", "cobnut-fork"]
SPECS = {"ipykernel": native_spec, "cobnut": own_spec}


@pytest.fixture(scope="module", autouse=True)
def _their_loop() -> None:
    """Let jupyter_client make the loop on which its blocking managers run: it keeps that."""

    async def nothing() -> None:
        pass

    run_sync(nothing)()


@pytest.fixture(autouse=True)
def _no_singleton() -> Iterator[None]:
    """Let no test see what another has changed in jupyter_client's factory."""
    yield
    KernelProvisionerFactory.clear_instance()


@pytest.fixture
def specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSpecManager:
    """Kernelspecs, each kernel with each of our provisioners: `cobnut-with-cobnut-fork`, say."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    for name, make in SPECS.items():
        for provisioner in PROVISIONERS:
            fields = make().to_dict()
            fields["metadata"] = {**fields["metadata"], "kernel_provisioner": {"provisioner_name": provisioner}}
            install(tmp_path, f"{name}-with-{provisioner}", fields)
    return KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")])


def install(folder: Path, name: str, fields: dict[str, Any]) -> None:
    """Install a kernelspec."""
    place = folder / "kernels" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "kernel.json").write_text(json.dumps(fields))


async def run(client: Any, code: str) -> tuple[str, str]:
    """Run a cell; returns the reply's status and what was printed."""
    texts: list[str] = []
    reply = await client.execute_interactive(
        code, timeout=20, output_hook=lambda m: texts.append(m["content"].get("text", "")), allow_stdin=False
    )
    return reply["content"]["status"], "".join(texts)


def left_over(pattern: str) -> list[Path]:
    """Find files in the runtime folder."""
    return list(Path(os.environ["XDG_RUNTIME_DIR"]).rglob(pattern))


NAMES = [f"{name}-with-{provisioner}" for name in SPECS for provisioner in PROVISIONERS]


@pytest.mark.parametrize("name", NAMES)
async def test_an_async_manager(specs: KernelSpecManager, tmp_path: Path, name: str) -> None:
    """jupyter_client's asynchronous manager starts, interrupts, restarts and stops kernels by it; nothing is left."""
    manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs, connection_file=str(tmp_path / "c.json"))
    await manager.start_kernel(cwd=str(tmp_path))
    assert isinstance(manager.provisioner, KernelProvisionerBase)
    assert (
        type(manager.provisioner).__name__
        == {"local": "CobnutLocalProvisioner", "fork": "CobnutForkProvisioner"}[name.rpartition("-")[2]]
    )
    assert manager.transport == "tcp"
    assert json.loads((tmp_path / "c.json").read_text())["shell_port"] == manager.shell_port
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    assert await run(client, "import os; x = 1; print(os.getcwd())") == ("ok", f"{tmp_path}\n")
    assert manager.provisioner.resolve_path("a.txt") == str(tmp_path / "a.txt")

    client.execute("print('asleep', flush=True)\nimport time; time.sleep(60)")
    while (await client.get_iopub_msg(timeout=20))["header"]["msg_type"] != "stream":
        pass
    await manager.interrupt_kernel()
    assert (await client.get_shell_msg(timeout=20))["content"]["ename"] == "KeyboardInterrupt"

    ports, pid = manager.ports, manager.provisioner.pid
    await manager.restart_kernel()
    assert (manager.ports, manager.provisioner.pid == pid) == (ports, False)
    await client.wait_for_ready(20)
    assert await run(client, "print('x' in globals())") == ("ok", "False\n")
    assert await manager.is_alive()
    client.stop_channels()
    await manager.shutdown_kernel()
    assert not await manager.is_alive()
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_blocking_manager(specs: KernelSpecManager, name: str) -> None:
    """jupyter_client's blocking manager does the same; killed at once, the kernel is gone too."""
    manager = KernelManager(kernel_name=name, kernel_spec_manager=specs)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(20)
    assert client.execute_interactive("1", timeout=20, allow_stdin=False)["content"]["status"] == "ok"
    manager.restart_kernel(now=True)
    client.wait_for_ready(20)
    client.stop_channels()
    assert manager.provisioner is not None
    pid = manager.provisioner.pid
    manager.shutdown_kernel(now=True)
    assert not is_running(pid)
    assert not Path(manager.connection_file).exists()


def test_a_manager_in_another_thread_with_a_loop_of_its_own(specs: KernelSpecManager) -> None:
    """The kernel belongs to no loop of the caller's: one starts it, another one stops it."""
    manager = AsyncKernelManager(kernel_name="cobnut-with-cobnut-local", kernel_spec_manager=specs)
    for step in (manager.start_kernel, manager.shutdown_kernel):
        thread = threading.Thread(target=lambda step=step: asyncio.run(step()))
        thread.start()
        thread.join()
    assert not manager.has_kernel


@pytest.mark.parametrize("cache_ports", [False, True])
async def test_new_ports(specs: KernelSpecManager, cache_ports: bool) -> None:
    """A restart on new ports has new ones, unless the manager caches them: then they stay, as with its own."""
    manager = AsyncKernelManager(
        kernel_name="ipykernel-with-cobnut-local", kernel_spec_manager=specs, cache_ports=cache_ports
    )
    await manager.start_kernel()
    before = manager.ports
    await manager.restart_kernel(now=True, newports=True)
    assert (before == manager.ports) == cache_ports
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)


async def test_its_manager_decides(specs: KernelSpecManager, tmp_path: Path) -> None:
    """The ports, the key and the encryption that are set on the manager are the kernel's."""
    manager = AsyncKernelManager(
        kernel_name="cobnut-with-cobnut-local", kernel_spec_manager=specs, transport_encryption="required"
    )
    manager.session.key = b"mine"
    await manager.start_kernel()
    assert manager.provisioner is not None
    assert manager.provisioner.connection_info["key"] == b"mine"
    assert manager.curve_publickey is not None
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("asked", ["manager", "spec"])
async def test_unix_sockets_where_they_are_asked_for(specs: KernelSpecManager, tmp_path: Path, asked: str) -> None:
    """With ipc, by the manager's trait or in the kernelspec, the sockets lie in our private folder."""
    stanza = {"provisioner_name": "cobnut-local", "config": {"transport": "ipc"} if asked == "spec" else {}}
    install(tmp_path, "ipc", {**own_spec().to_dict(), "metadata": {"kernel_provisioner": stanza}})
    traits = {"transport": "ipc"} if asked == "manager" else {}
    manager = AsyncKernelManager(kernel_name="ipc", kernel_spec_manager=specs, **traits)
    await manager.start_kernel()
    assert manager.transport == "ipc"
    assert os.environ["XDG_RUNTIME_DIR"] in manager.ip
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    await manager.restart_kernel()
    await client.wait_for_ready(20)
    client.stop_channels()
    await manager.shutdown_kernel()


async def test_a_launch_that_fails_leaves_nothing(specs: KernelSpecManager, tmp_path: Path) -> None:
    """jupyter_client does not clear up after a start that has failed: the provisioner has done so itself."""
    stanza = {"kernel_provisioner": {"provisioner_name": "cobnut-local"}}
    for name, argv in {"missing": ["/no/such"], "ends": [sys.executable, "-c", "raise SystemExit(3)"]}.items():
        metadata = {**stanza, "cobnut": {"registration": name == "ends"}}
        install(tmp_path, name, {"argv": argv, "display_name": "x", "language": "x", "metadata": metadata})
        manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
        with pytest.raises(Exception, match=r"/no/such is not there|exit code 3"):
            await manager.start_kernel()
        assert not manager.has_kernel
        assert not left_over("kernel-*.json")


async def test_a_death_is_logged_and_repaired(
    specs: KernelSpecManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jupyter_client's restarter sees that the kernel is gone and starts it again; its last words are in the log."""
    manager = AsyncIOLoopKernelManager(kernel_name="ipykernel-with-cobnut-local", kernel_spec_manager=specs)
    manager.log = logging.getLogger("test_jupyter")
    monkeypatch.setattr("jupyter_client.restarter.KernelRestarter.time_to_dead", 0.05)
    await manager.start_kernel()
    assert manager.provisioner is not None
    pid = manager.provisioner.pid
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    client.execute("import os; os.write(2, b'last words'); os.kill(os.getpid(), 9)")
    await eventually(lambda: manager.provisioner.pid not in (None, pid))
    await client.wait_for_ready(20)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)


async def test_many_at_once(specs: KernelSpecManager) -> None:
    """A multi-kernel manager starts and stops several at the same time."""
    manager = AsyncMultiKernelManager(
        kernel_spec_manager=specs,
        connection_dir=os.environ["XDG_RUNTIME_DIR"],
        kernel_manager_class="jupyter_client.manager.AsyncKernelManager",
    )
    await asyncio.gather(*(manager.start_kernel(kernel_name=name) for name in NAMES))
    assert len(manager) == len(NAMES)
    await manager.shutdown_all()
    assert len(manager) == 0
    manager.context.destroy(linger=0)


# ── the end of the portal ───────────────────────────────────────────────────────────────────────────────────────────


def stop_portal() -> None:
    """End the portal, as the end of a program does, and see that no kernel of ours is left."""
    Portal.shared().stop()
    assert not psutil.Process().children(recursive=True)
    assert not left_over("kernel-*.json")


async def ready_to_fork() -> None:
    """Have a fork server that is ready, so that the next kernel is one of its."""
    Templates.warm()
    await eventually(lambda: any(server.is_ready for server in Templates.shared()._servers))


@pytest.mark.parametrize("wish", ["start_kernel", "restart_kernel", "shutdown_kernel"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_portal_that_stops_while_a_kernel_runs(specs: KernelSpecManager, name: str, wish: str) -> None:
    """The kernel ends with it, which its manager sees at once, and whatever that does next is done on the next one."""
    if name == "cobnut-with-cobnut-fork":
        await ready_to_fork()
    manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
    await manager.start_kernel()
    assert manager.provisioner is not None
    assert isinstance(manager.provisioner.process, ForkedProcess) == (name == "cobnut-with-cobnut-fork")
    await asyncio.to_thread(stop_portal)
    assert not await manager.is_alive()
    await getattr(manager, wish)()
    assert await manager.is_alive() == (wish != "shutdown_kernel")
    other = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
    await other.start_kernel()
    for each in (other, manager):
        await each.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", NAMES)
async def test_a_portal_that_stops_between_two_steps_of_a_start(
    specs: KernelSpecManager, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start fails and says so, instead of waiting for a kernel that registers with nobody; the next one works."""
    launch = CobnutLocalProvisioner.launch_kernel

    async def launch_later(self: CobnutLocalProvisioner, cmd: list[str], **kwargs: Any) -> Any:
        await asyncio.to_thread(stop_portal)
        return await launch(self, cmd, **kwargs)

    manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
    with monkeypatch.context() as patch:
        patch.setattr(CobnutLocalProvisioner, "launch_kernel", launch_later)
        with pytest.raises(KernelStartError, match=r"interrupted.*start it again"):
            await manager.start_kernel()
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("name", ["cobnut-with-cobnut-local", "cobnut-with-cobnut-fork"])
async def test_a_portal_that_stops_during_a_start(specs: KernelSpecManager, name: str, delay: float) -> None:
    """Wherever that is, who has asked for the kernel is told, and the next start works."""
    if name == "cobnut-with-cobnut-fork":
        await ready_to_fork()
    manager = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
    start = asyncio.ensure_future(manager.start_kernel())
    await asyncio.sleep(delay)
    await asyncio.to_thread(Portal.shared().stop)
    with suppress(KernelError):
        await start
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(20)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)


async def test_an_adopted_kernel_ends_with_the_portal(specs: KernelSpecManager) -> None:
    """Like one that was started; who waits for its end is told."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:  # noqa: ASYNC220 - it is quick
        theirs = LocalProvisioner(kernel_id="id", kernel_spec=own_spec())
        info = {**await theirs.get_provisioner_info(), "process": asdict(ProcessIdentity.of(process.pid))}
        adopter = CobnutLocalProvisioner(kernel_id="id", kernel_spec=own_spec())
        await adopter.load_provisioner_info(info)
        waiting = asyncio.ensure_future(adopter.wait())
        await asyncio.sleep(0)
        assert adopter.has_process
        stopping = asyncio.ensure_future(asyncio.to_thread(Portal.shared().stop))
        await asyncio.to_thread(process.wait)
        await stopping
        with suppress(KernelError):
            await waiting
        assert await adopter.poll() == 0


# ── without a kernel ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_entry_points_are_ours_and_no_others() -> None:
    """The two names are registered for jupyter_client; its own `local-provisioner` stays its own."""
    ours = {e.name: e.load() for e in entry_points(group=PROVISIONER_GROUP) if e.value.startswith("cobnut_kernel.")}
    assert ours == {"cobnut-local": CobnutLocalProvisioner, "cobnut-fork": CobnutForkProvisioner}


def test_it_needs_no_jupyter_client_to_be_imported() -> None:
    """The module is imported, and its classes are made, without jupyter_client."""
    code = (
        "import sys; from cobnut_kernel.provisioning.jupyter import CobnutLocalProvisioner as P;"
        "from cobnut_kernel.kernelspec import own_spec;"
        "p = P(kernel_id='id', kernel_spec=own_spec()); assert not p.has_process;"
        "assert 'jupyter_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kernelspec_is_taken_as_it_comes() -> None:
    """jupyter_client's becomes ours, with all its fields; ours, and one of an older version, too."""
    theirs = ForeignSpec(
        argv=["a"], name="n", language="l", env={"A": "B"}, interrupt_mode="message", resource_dir="/r"
    )
    assert our_spec(theirs).to_dict() == {**theirs.to_dict(), "kernel_protocol_version": ""}
    assert our_spec(theirs).resource_dir == "/r"
    spec = KernelSpec(argv=["a"])
    assert our_spec(spec) is spec

    class Older:
        argv = ("a",)
        language = "l"

    older = Older()
    older.argv = ["a"]
    assert our_spec(older).argv == ["a"]


def test_what_is_read_of_their_manager(tmp_path: Path) -> None:
    """Its address and ports count, its connection file does not: that one it writes itself."""
    manager = KernelManager(ip="0.0.0.0", shell_port=5, connection_file=str(tmp_path / "f"))
    settings = ManagerSettings(manager)
    assert (settings.transport, settings.ip, settings.ports) == ("tcp", "0.0.0.0", [5, 0, 0, 0, 0])
    assert settings.session is manager.session
    assert not hasattr(settings, "connection_file")
    assert ManagerSettings(manager, prefers_ports=False).transport == "auto"
    assert ManagerSettings(None).ports == [0] * 5


async def test_the_information_adopts(specs: KernelSpecManager) -> None:
    """What one provisioner tells of a running kernel lets another one end it."""
    manager = AsyncKernelManager(kernel_name="cobnut-with-cobnut-local", kernel_spec_manager=specs)
    await manager.start_kernel()
    assert manager.provisioner is not None
    info = json.loads(json.dumps(await manager.provisioner.get_provisioner_info()))
    other = CobnutLocalProvisioner(kernel_id="other", kernel_spec=manager.kernel_spec)
    await other.load_provisioner_info(info)
    assert (other.has_process, other.kernel_id, await other.poll()) == (True, manager.kernel_id, None)
    await other.kill()
    assert await manager.provisioner.wait() == -signal.SIGKILL
    await other.wait()
    assert not other.has_process
    await other.cleanup()
    await manager.shutdown_kernel(now=True)
