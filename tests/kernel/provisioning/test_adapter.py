"""Provisioners made for jupyter_client do their work for our managers."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from jupyter_client.provisioning import KernelProvisionerBase as ForeignBase
from tests.kernel.leftovers import eventually, is_running
from traitlets import Int

from cobnut_kernel.connection_files import load_connection_file
from cobnut_kernel.errors import KernelError, KernelStartCancelled, KernelStartError
from cobnut_kernel.kernelspec import PROVISIONER_GROUP, KernelSpec, KernelSpecManager, native_spec, own_spec
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.adapter import ProvisionerAdapter, adapt
from cobnut_kernel.provisioning.foreign_watch import ForeignLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut_kernel.client.client import AsyncKernelClient

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

SPECS = {"ipykernel": native_spec, "cobnut": own_spec}
STOCK = "jupyter_client.provisioning:LocalProvisioner"


class Manager(AsyncKernelManager):
    """A manager whose kernels get a foreign provisioner, whatever their spec says."""

    maker: str = STOCK
    settings: ClassVar[dict[str, Any]] = {}

    def create_provisioner(self) -> ProvisionerAdapter:
        """Make the provisioner."""
        entry = EntryPoint("foreign", self.maker, PROVISIONER_GROUP)
        made = adapt(entry, self.kernel_id, self.kernel_spec, self, self.settings)
        assert isinstance(made, ProvisionerAdapter)
        return made


@pytest.fixture
def manage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make managers whose kernels have the provisioner of a class in this file, or the stock one."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    def make(
        provisioner: type | None = None,
        spec: KernelSpec | None = None,
        settings: dict[str, Any] | None = None,
        **traits: Any,
    ) -> Manager:
        specs = KernelSpecManager(extra_specs={"k": spec or own_spec()}, kernel_dirs=[])
        manager = Manager(kernel_name="k", kernel_spec_manager=specs, **traits)
        if provisioner is not None:
            manager.maker = f"{provisioner.__name__}:made"
            monkeypatch.setattr(EntryPoint, "load", lambda _: provisioner)
        manager.settings = settings or {}
        return manager

    return make


async def text_of(client: AsyncKernelClient, code: str) -> str:
    """Run a cell and return what it printed."""
    return "".join([m.content["text"] async for m in client.run(code) if m.msg_type == "stream"])


def adapter_of(manager: AsyncKernelManager) -> ProvisionerAdapter:
    """Return the provisioner of a manager."""
    assert isinstance(manager.provisioner, ProvisionerAdapter)
    return manager.provisioner


# ── the stock provisioner ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SPECS)
async def test_a_kernels_whole_life(manage: Any, tmp_path: Path, name: str) -> None:
    """Start, cells, interrupt, restart, death by SIGKILL, restart, stop by the stock provisioner; nothing is left."""
    manager = manage(spec=SPECS[name](), autorestart=False)
    await manager.start_kernel(cwd=str(tmp_path))
    await manager.answered
    assert manager.connection_info is not None
    assert manager.connection_info.transport == "tcp"
    connection = manager.connection_info
    async with manager.client() as client:
        await client.wait_for_ready()
        assert await text_of(client, "import os; x = 42; print(x, os.getcwd())") == f"42 {tmp_path}\n"
        sleeping = client.run("print('asleep', flush=True)\nimport time; time.sleep(60)")
        async for message in sleeping:
            if message.msg_type == "stream":
                await manager.interrupt_kernel()
        assert (await sleeping.reply()).content["ename"] == "KeyboardInterrupt"

        await manager.restart_kernel()
        assert manager.connection_info == connection
        await client.wait_for_ready()
        assert await text_of(client, "print('x' in globals())") == "False\n"

        client.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        await eventually(lambda: manager.state is KernelState.DEAD)
        assert str(manager.death) == "killed by SIGKILL"
        assert await adapter_of(manager).poll() == -signal.SIGKILL

        await manager.restart_kernel(now=True)
        await client.wait_for_ready()
        assert await text_of(client, "print(1)") == "1\n"
        assert manager.connection_info.key == connection.key
    assert await manager.is_alive()
    await manager.shutdown_kernel()
    assert not adapter_of(manager).has_process
    assert not await manager.is_alive()


async def test_what_the_process_writes_is_kept_and_not_shown(manage: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A process that the stock provisioner starts would write to our terminal: it writes to us."""
    spec = KernelSpec(argv=[sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], language="python")
    manager = manage(spec=spec)
    await manager.start_kernel()
    with pytest.raises(KernelError):
        await manager.answered
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert manager.death is not None
    assert (manager.death.exit_code, manager.death.stderr_tail) == (1, "err")
    assert sorted(manager.output_tail().split()) == ["err", "out"]
    assert capfd.readouterr() == ("", "")


async def test_it_takes_what_is_wished_of_the_connection(manage: Any, tmp_path: Path) -> None:
    """Address, ports, key and file that are set on our manager are the kernel's, not others as with jupyter_client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    manager = manage(shell_port=port, connection_file=str(tmp_path / "mine.json"))
    manager.session.key = b"a key of mine"
    await manager.start_kernel()
    connection = manager.connection_info
    assert connection is not None
    assert (connection.shell_port, connection.key) == (port, b"a key of mine")
    assert load_connection_file(tmp_path / "mine.json").port("shell") == port
    await manager.answered
    await manager.shutdown_kernel()
    assert not (tmp_path / "mine.json").exists()


async def test_unix_sockets_where_they_are_asked_for(manage: Any) -> None:
    """With the transport ipc the sockets lie in our private folder, and go with the kernel."""
    manager = manage(transport="ipc")
    await manager.start_kernel()
    connection = manager.connection_info
    assert connection is not None
    assert connection.transport == "ipc"
    await manager.answered
    assert all(map(os.path.exists, connection.ipc_paths()))
    await manager.shutdown_kernel()
    assert not any(map(os.path.exists, connection.ipc_paths()))


async def test_new_ports_are_new(manage: Any) -> None:
    """A restart with newports gives the kernel another connection, and the clients hear of it."""
    manager = manage()
    await manager.start_kernel()
    await manager.answered
    before = manager.connection_info
    async with manager.client() as client:
        await client.wait_for_ready()
        await manager.restart_kernel(newports=True)
        assert manager.connection_info != before
        await client.wait_for_ready()
        assert await text_of(client, "print(1)") == "1\n"
    await manager.shutdown_kernel(now=True)


async def test_encryption(manage: Any) -> None:
    """Required, the kernel is encrypted; a kernel that cannot is not started."""
    manager = manage(transport_encryption="required")
    await manager.start_kernel()
    assert manager.connection_info is not None
    assert manager.connection_info.is_encrypted
    await manager.answered
    await manager.shutdown_kernel()
    plain = KernelSpec(argv=["whatever"], language="x")
    with pytest.raises(KernelStartError, match="must be encrypted"):
        await manage(spec=plain, transport_encryption="required").start_kernel()


async def test_a_failed_start_is_told_with_the_provisioners_name(manage: Any) -> None:
    """What the provisioner raises is a KernelStartError that names it; the next start is a new one."""
    spec = KernelSpec(argv=["/no/such/program"], language="x")
    manager = manage(spec=spec)
    for _ in range(2):
        with pytest.raises(KernelStartError, match=r"'foreign' could not start the kernel 'k': .*no/such/program"):
            await manager.start_kernel()
    spec.argv = own_spec().argv
    await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()


# ── strange provisioners ────────────────────────────────────────────────────────────────────────────────────────────


class Remote(ForeignBase):
    """A provisioner of a kernel that it sees only from afar, and whose connection it learns when it has started.

    Its process is ours, but it does not tell so.
    """

    level = Int(0, config=True)
    hidden: subprocess.Popen[bytes] | None = None
    told: ClassVar[list[str]] = []

    @property
    def has_process(self) -> bool:
        """Whether there is a process."""
        return self.hidden is not None

    async def poll(self) -> int | None:
        """Look."""
        return self.hidden.poll() if self.hidden is not None else 0

    async def wait(self) -> int | None:
        """Forget the process."""
        process, self.hidden = self.hidden, None
        return process.wait() if process is not None else 0

    async def send_signal(self, signum: int) -> None:
        """Send a signal."""
        assert self.hidden is not None
        self.hidden.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """Kill it."""
        self.told.append(f"kill {restart}")
        if self.hidden is not None:
            self.hidden.kill()

    async def terminate(self, restart: bool = False) -> None:
        """Terminate it."""
        self.told.append(f"terminate {restart}")
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Hear that it was asked to end."""
        assert self.parent.shutting_down
        self.told.append(f"shutdown_requested {restart}")

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Know nothing of the connection yet."""
        return await super().pre_launch(cmd=["over", "there"], **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Start a kernel that chooses its ports."""
        assert cmd == ["over", "there"]
        file = Path(kwargs["env"]["IPYTHONDIR"]) / f"far-{len(self.told)}-{id(self)}.json"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", str(file), "--IPKernelApp.trio_loop=False"]
        self.hidden = subprocess.Popen(argv, stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - as such provisioners do
        while not file.exists() or not file.read_text().endswith("}"):
            assert self.hidden.poll() is None
            await asyncio.sleep(0.01)
        info = json.loads(file.read_text())
        file.unlink()
        self.connection_info = {**info, "key": info["key"].encode()}
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """Note it."""
        self.told.append(f"cleanup {restart}")

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Take more time."""
        return recommended + 1


@pytest.fixture(autouse=True)
def told() -> list[str]:
    """What the provisioners of this file were told."""
    Remote.told.clear()
    return Remote.told


async def test_a_connection_that_is_known_late(manage: Any, told: list[str]) -> None:
    """What launch_kernel returns counts, and is written into a file of ours; the end is seen by polling."""
    manager = manage(Remote, native_spec(), {"level": 3})
    await manager.start_kernel()
    adapter = adapter_of(manager)
    assert adapter._theirs.level == 3
    assert adapter.get_shutdown_wait_time(2.0) == 3.0
    assert adapter.connection_file is not None
    assert load_connection_file(adapter.connection_file).key == manager.connection_info.key
    await manager.answered
    async with manager.client() as client:
        await client.wait_for_ready()
        await manager.restart_kernel()
        await client.wait_for_ready()
        assert await text_of(client, "print(1)") == "1\n"
    await manager.shutdown_kernel()
    assert told == ["shutdown_requested True", "cleanup True", "shutdown_requested False", "cleanup False"]
    assert not adapter.connection_file.exists()


async def test_an_end_is_seen_by_polling(manage: Any) -> None:
    """A kernel that dies out of sight is found dead at the next look; a look that fails tells nothing."""
    manager = manage(Remote, native_spec(), autorestart=False)
    manager.config.ProvisionerAdapter.poll_interval = 0.05
    await manager.start_kernel()
    await manager.answered
    theirs = adapter_of(manager)._theirs
    looks = iter([OSError("unreachable"), OSError("unreachable")])
    poll = theirs.poll

    async def flaky() -> int | None:
        for error in looks:
            raise error
        return await poll()

    theirs.poll = flaky
    os.kill(theirs.hidden.pid, signal.SIGKILL)
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert str(manager.death) == "killed by SIGKILL"


class Methodical(Remote):
    """A provisioner that has made a method of the property."""

    def has_process(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] - the defect is the test
        """Whether there is a process."""
        return self.hidden is not None


class Stubborn(Remote):
    """A provisioner that can end nothing, and whose cleanup fails."""

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Fail."""
        raise OSError("no route")

    terminate = shutdown_requested

    async def cleanup(self, restart: bool = False) -> None:
        """Fail."""
        raise OSError("no route")


@pytest.mark.parametrize("kind", [Methodical, Stubborn])
async def test_defects_of_provisioners_are_survived(manage: Any, kind: type[Remote]) -> None:
    """has_process as a method is asked; a provisioner that fails at the end does not keep the kernel from ending."""
    manager = manage(kind, native_spec())
    await manager.start_kernel()
    await manager.answered
    process = adapter_of(manager)._theirs.hidden
    await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert process.poll() is not None


class Keeping(Remote):
    """A provisioner that keeps its kernel: as some do it keeps the request that would end it from being sent."""

    kept: ClassVar[list[subprocess.Popen[bytes]]] = []

    async def post_launch(self, **kwargs: Any) -> None:
        """Stand between the manager and its session."""
        send = self.parent.session.send

        def filtered(stream: Any, message: Any, *args: Any, **options: Any) -> Any:
            if message["msg_type"] != "shutdown_request" or message["content"]["restart"]:
                return send(stream, message, *args, **options)
            assert self.hidden is not None
            self.kept.append(self.hidden)
            self.hidden = None
            return None

        self.parent.session.send = filtered
        self.unfiltered = send

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Stand there no longer."""
        await super().shutdown_requested(restart)
        self.parent.session.send = self.unfiltered


@pytest.fixture
def kept() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The kernels that were kept; they end with the test."""
    yield Keeping.kept
    while Keeping.kept:
        process = Keeping.kept.pop()
        process.kill()
        process.wait()


async def test_a_kernel_that_is_to_be_kept_is_not_asked_to_end(
    manage: Any, told: list[str], kept: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """A stop leaves it running, and its cell too; its provisioner is told of the stop, and clears up."""
    manager = manage(Keeping, native_spec())
    await manager.start_kernel()
    await manager.answered
    go, done = tmp_path / "go", tmp_path / "done"
    async with manager.client() as client:
        await client.wait_for_ready()
        cell = f"print('asleep', flush=True)\nimport os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
        async for message in client.run(f"{cell}\nopen({str(done)!r}, 'w')"):
            if message.msg_type == "stream":
                break
    await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert not manager.has_kernel
    assert told == ["shutdown_requested False", "cleanup False"]
    assert [process.poll() for process in kept] == [None]
    go.touch()
    await eventually(done.exists)


async def test_a_kernel_that_is_to_be_kept_is_restarted(
    manage: Any, told: list[str], kept: list[subprocess.Popen[bytes]]
) -> None:
    """A restart asks it to end, because its provisioner lets that through, and a kill is a kill."""
    manager = manage(Keeping, native_spec())
    await manager.start_kernel()
    await manager.answered
    first = adapter_of(manager)._theirs.hidden
    await manager.restart_kernel()
    await manager.answered
    assert first.poll() == 0
    assert told == ["shutdown_requested True", "cleanup True"]
    second = adapter_of(manager)._theirs.hidden
    await manager.shutdown_kernel(now=True)
    assert second.poll() == -signal.SIGKILL
    assert not kept


async def test_a_stop_in_phases_keeps_a_kernel_too(
    manage: Any, told: list[str], kept: list[subprocess.Popen[bytes]]
) -> None:
    """`request_shutdown` does not ask the kernel, and `finish_shutdown` finds nothing to end."""
    manager = manage(Keeping, native_spec())
    await manager.start_kernel()
    await manager.answered
    await manager.request_shutdown()
    await manager.finish_shutdown()
    assert manager.state is KernelState.STOPPED
    assert told == ["shutdown_requested False", "cleanup False"]
    assert [process.poll() for process in kept] == [None]


async def test_the_end_of_the_program_keeps_a_kernel_too(
    manage: Any, told: list[str], kept: list[subprocess.Popen[bytes]]
) -> None:
    """Where nobody stops it before the portal ends it goes on, as it would without us."""
    manager = manage(Keeping, native_spec())
    await manager.start_kernel()
    await manager.answered
    Portal.shared().stop()
    assert told == ["shutdown_requested False", "cleanup False"]
    assert [process.poll() for process in kept] == [None]


class Failing(Remote):
    """A provisioner whose part in the sending fails."""

    async def post_launch(self, **kwargs: Any) -> None:
        """Stand between the manager and its session, in vain."""

        def failing(*_: Any) -> None:
            raise OSError("no route")

        self.parent.session.send = failing


async def test_a_defect_in_the_sending_keeps_nothing(manage: Any, told: list[str]) -> None:
    """The kernel is asked to end as any other."""
    manager = manage(Failing, native_spec())
    await manager.start_kernel()
    await manager.answered
    process = adapter_of(manager)._theirs.hidden
    await manager.shutdown_kernel()
    assert process.poll() == 0
    assert told == ["shutdown_requested False", "cleanup False"]


class Blocking(Remote):
    """A provisioner that blocks the loop that it is on."""

    begun = threading.Event()
    go = threading.Event()

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Block."""
        self.begun.set()
        self.go.wait()
        return await super().pre_launch(**kwargs)


async def test_one_that_blocks_does_not_stop_ours(manage: Any) -> None:
    """While a foreign provisioner blocks its loop, ours goes on; a start that is cancelled ends when it lets go."""
    manager = manage(Blocking, native_spec())
    starting = manager.begin_start()
    await eventually(Blocking.begun.is_set)

    async def answer() -> int:
        return 42

    assert await Portal.shared().run(answer) == 42
    manager.cancel_start()
    Blocking.go.set()
    await eventually(starting.done)
    assert isinstance(starting.exception(), KernelStartCancelled)


class Empty(Remote):
    """A provisioner that starts nothing."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Return a connection of nothing."""
        return {"ip": "127.0.0.1"}


class Vague(Remote):
    """A provisioner that does not tell all of the connection."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Leave a port out."""
        await super().launch_kernel(cmd, **kwargs)
        return {name: value for name, value in self.connection_info.items() if name != "hb_port"}


@pytest.mark.parametrize(
    ("kind", "text"), [(Empty, "'foreign' has started nothing"), (Vague, "'foreign' could not start")]
)
async def test_a_launch_that_tells_nonsense_has_failed(manage: Any, told: list[str], kind: type, text: str) -> None:
    """No process or no whole connection: the start fails, what there is of the kernel is ended, and cleaned up."""
    manager = manage(kind, native_spec())
    with pytest.raises(KernelStartError, match=text):
        await manager.start_kernel()
    assert told == (["cleanup False"] if kind is Empty else ["kill False", "cleanup False"])


async def test_a_bad_configuration_is_told(manage: Any) -> None:
    """A setting of the kernelspec that the provisioner refuses fails the start, with its text."""
    with pytest.raises(KernelStartError, match=r"'foreign' could not start the kernel 'k': .*'level' trait"):
        await manage(Remote, settings={"level": "high"}).start_kernel()


async def test_its_information_is_json(manage: Any) -> None:
    """What the provisioner tells another process goes through JSON, and the other one's stock twin takes it over."""
    manager = manage()
    await manager.start_kernel()
    await manager.answered
    adapter = adapter_of(manager)
    info = await Portal.shared().run(adapter.get_provisioner_info)
    again = json.loads(json.dumps(info))
    assert again["provisioner"]["pid"] == adapter._theirs.pid
    other = Manager(kernel_name="k", kernel_spec_manager=manager.kernel_spec_manager, kernel_id="other")
    taken = other.create_provisioner()
    await Portal.shared().run(taken.load_provisioner_info, again)
    assert taken.connection_info == adapter.connection_info
    assert taken._theirs.pid == adapter._theirs.pid
    await Portal.shared().run(taken.cleanup)
    await manager.shutdown_kernel()


async def test_it_ends_with_the_portal(manage: Any) -> None:
    """The loop of foreign provisioners ends after the portal, whose end ends their kernels."""
    manager = manage()
    await manager.start_kernel()
    process = adapter_of(manager)._theirs.process
    loop = ForeignLoop.shared()
    Portal.shared().stop()
    assert loop.stopped
    assert process.poll() is not None or not is_running(process.pid)


# ── what cannot be adapted ──────────────────────────────────────────────────────────────────────────────────────────


def adapted(value: str) -> object:
    """Adapt what an entry point names."""
    return adapt(EntryPoint("slurm", value, PROVISIONER_GROUP), "id", own_spec(), None, {})


def test_without_jupyter_client_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provisioner is named, and what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"'slurm' is made for jupyter_client, .*pip install jupyter_client"):
        adapted(STOCK)


def test_a_provisioner_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module is told as one, any other failure at import with its text."""
    (tmp_path / "broken_provisioner.py").write_text("[][0]")
    (tmp_path / "lacking_provisioner.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KernelStartError, match=r"'slurm' \(broken_provisioner:P\) fails .*list index out of range"):
        adapted("broken_provisioner:P")
    with pytest.raises(ModuleNotFoundError, match=r"'slurm' \(lacking_provisioner:P\) lacks .*no_such_module"):
        adapted("lacking_provisioner:P")


@pytest.mark.parametrize("value", ["collections:OrderedDict", "os:getcwd"])
def test_what_is_no_provisioner_is_refused(value: str) -> None:
    """A class or function of another kind is not called as if it were one."""
    with pytest.raises(TypeError, match=r"'slurm' .* is not made for cobnut, nor for jupyter_client"):
        adapted(value)


def test_the_adapter_needs_no_jupyter_client_to_be_imported() -> None:
    """The package is imported when a provisioner made for it is asked for, not before."""
    code = "import sys, cobnut_kernel.provisioning.adapter; assert 'jupyter_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
