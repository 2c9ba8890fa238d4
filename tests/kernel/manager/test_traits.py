"""What can be set on a manager, where it is set, and what it tells once there is a kernel."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.leftovers import eventually
from traitlets import HasTraits, Instance, TraitError, Type
from traitlets.config import Config

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.blocking import KernelManager, MultiKernelManager
from cobnut_kernel.manager.connection import PORT_NAMES
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

MakeManager = "Callable[..., AsyncKernelManager]"

PROCESS_CONTEXT = zmq.Context.instance()
"""Made before anything is counted: it stays as long as the process."""

COLOURS = pytest.mark.parametrize("manager_class", [AsyncKernelManager, KernelManager])


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────────


@COLOURS
def test_the_documented_sections_configure_both_colours(manager_class: type[AsyncKernelManager]) -> None:
    """`KernelManager` and `ConnectionFileMixin` hold for both, the class's own name too, the most special one last."""
    config = Config(
        {
            "KernelManager": {"shutdown_wait_time": 7.0, "transport": "TCP", "hb_port": 5},
            "ConnectionFileMixin": {"ip": "*", "hb_port": 4},
            "AsyncKernelManager": {"startup_timeout": 3.0},
        }
    )
    manager = manager_class(config=config)
    assert (manager.shutdown_wait_time, manager.transport, manager.hb_port) == (7.0, "tcp", 5)
    assert manager.ip == "0.0.0.0"
    assert manager.startup_timeout == (3.0 if manager_class is AsyncKernelManager else 60.0)


@pytest.mark.parametrize("multi_class", [AsyncMultiKernelManager, MultiKernelManager])
def test_the_documented_sections_configure_many(multi_class: type[AsyncMultiKernelManager]) -> None:
    """`MultiKernelManager` holds for both colours."""
    config = Config({"MultiKernelManager": {"use_pending_kernels": True, "default_kernel_name": "ir"}})
    multi = multi_class(config=config)
    assert (multi.use_pending_kernels, multi.default_kernel_name) == (True, "ir")


def test_the_async_managers_count_as_the_documented_ones() -> None:
    """`isinstance`, `issubclass` and traits of the blocking classes take the async ones, and what derives from them."""

    class Mine(AsyncKernelManager): ...

    class Holder(HasTraits):
        manager = Instance(KernelManager)
        manager_class = Type(klass=KernelManager, default_value=AsyncKernelManager)

    assert issubclass(AsyncKernelManager, KernelManager)
    assert issubclass(AsyncMultiKernelManager, MultiKernelManager)
    assert isinstance(Mine(), KernelManager)
    assert not issubclass(KernelManager, AsyncKernelManager)
    assert Holder(manager=Mine(), manager_class=Mine).manager_class is Mine
    with pytest.raises(TraitError):
        Holder(manager=MultiKernelManager())


@COLOURS
def test_defaults_are_found_when_they_are_asked_for(manager_class: type[AsyncKernelManager]) -> None:
    """Where nothing is set: any port of this machine, a restarter only for a kernel among many, caches with ports."""
    manager = manager_class()
    assert (manager.transport, manager.ip, manager.ports, manager.connection_file) == ("auto", "127.0.0.1", [0] * 5, "")
    assert (manager.kernel_name, manager.kernel_id, manager.cache_ports) == ("python3", "", True)
    assert manager_class(transport="ipc").ip == ""
    assert not manager_class(transport="ipc").cache_ports
    assert (manager.autorestart, manager_class(parent=AsyncMultiKernelManager()).autorestart) == (False, True)
    assert manager.context is PROCESS_CONTEXT
    assert manager.data_dir.endswith("jupyter") or "JUPYTER_DATA_DIR" in os.environ
    assert manager.owns_kernel
    assert not manager_class(owns_kernel=False).owns_kernel


@COLOURS
def test_names_of_ipykernel(manager_class: type[AsyncKernelManager]) -> None:
    """The older name means the new one; who asks whether it is ipykernel is told by the name."""
    manager = manager_class(kernel_name="python")
    assert (manager.kernel_name, manager.ipykernel) == ("python3", True)
    assert manager.kernel_spec.name == "python3"
    manager.kernel_name = "cobnut"
    assert (manager.kernel_spec.name, manager.ipykernel) == ("cobnut", False)
    manager.kernel_name = "python"
    assert manager.kernel_name == "python3"


@COLOURS
def test_another_kernelspec_manager_has_other_specs(manager_class: type[AsyncKernelManager]) -> None:
    """What was found in the one before is forgotten."""
    first, second = (
        KernelSpecManager(extra_specs={"x": KernelSpec(argv=[program])}, kernel_dirs=[]) for program in "ab"
    )
    manager = manager_class(kernel_name="x", kernel_spec_manager=first)
    assert manager.kernel_spec.argv == ["a"]
    manager.kernel_spec_manager = second
    assert manager.kernel_spec.argv == ["b"]


def test_the_factory_follows_the_class_of_clients() -> None:
    """By default it is that class; a new class is a new factory, and a factory of one's own is used."""
    manager = AsyncKernelManager()
    assert manager.client_factory is AsyncKernelClient
    manager.client_class = f"{__name__}.OtherClient"
    assert manager.client_factory is OtherClient
    assert AsyncKernelManager(client_factory=OtherClient).client_factory is OtherClient
    assert AsyncKernelManager(client_class=f"{__name__}.OtherClient").client_factory is OtherClient


@pytest.mark.parametrize("multi_class", [AsyncMultiKernelManager, MultiKernelManager])
def test_a_class_that_makes_no_managers_of_ours_is_refused(multi_class: type[Any]) -> None:
    """The error says what to name instead; nothing is listed."""
    multi = multi_class(kernel_manager_class="jupyter_client.KernelManager")
    with pytest.raises(TypeError, match=r"jupyter_client\.KernelManager makes no managers of cobnut's: let"):
        multi.start_soon()
    assert len(multi) == 0


class OtherClient(AsyncKernelClient):
    """A client of somebody's own."""


@pytest.mark.parametrize("wish", [{"shell_port": 65536}, {"hb_port": -1}, {"transport": "udp"}, {"iopub_port": "x"}])
def test_settings_of_no_use_are_refused_when_they_are_set(wish: dict[str, Any]) -> None:
    """No start is needed to see it."""
    with pytest.raises(TraitError):
        AsyncKernelManager(**wish)


# ── wishes and truth ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_traits_tell_the_truth_once_the_kernel_is_launched(make_manager: MakeManager) -> None:
    """Transport, address, ports, key and file are the real ones, until the next start begins with the wishes again."""
    manager = make_manager()
    await manager.start_kernel()
    info = manager.connection_info
    assert info is not None
    assert ConnectionInfo.from_dict({**manager.get_connection_info(), "kernel_name": info.kernel_name}) == info
    assert json.loads(_read(manager.connection_file))["key"] == manager.session.key.decode() != ""
    first = manager.get_connection_info()
    await manager.restart_kernel(now=True)
    assert manager.get_connection_info() == first
    await manager.restart_kernel(now=True, newports=True)
    assert manager.session.key != first["key"]
    await manager.shutdown_kernel(now=True)
    await manager.start_kernel()
    assert manager.session.key != first["key"]
    await manager.shutdown_kernel(now=True)


async def test_what_is_changed_while_a_kernel_runs_is_a_wish_for_the_next_one(make_manager: MakeManager) -> None:
    """It is not lost when the truth of the last kernel is forgotten."""
    manager = make_manager()
    manager.adopt_connection(ConnectionInfo("tcp", "127.0.0.1", 1, 2, 3, 4, 5, key=b"chosen"), "/chosen.json")
    manager.shell_port = 4711
    manager.adopt_connection(ConnectionInfo("tcp", "127.0.0.1", 6, 7, 8, 9, 10, key=b"again"))
    assert manager.ports == [6, 8, 7, 10, 9]
    manager.session.key = b"mine"
    manager.forget_connection()
    assert (manager.shell_port, manager.hb_port, manager.session.key) == (4711, 0, b"mine")
    assert (manager.transport, manager.connection_file) == ("auto", "")


def test_what_was_wished_and_granted_stays(make_manager: MakeManager) -> None:
    """A given setting is no choice of ours: forgetting leaves it."""
    manager = make_manager(transport="tcp", shell_port=4711, session=Session(key=b"mine"))
    manager.adopt_connection(ConnectionInfo("tcp", "127.0.0.1", 4711, 2, 3, 4, 5, key=b"mine"))
    manager.forget_connection()
    assert (manager.transport, manager.ports, manager.session.key) == ("tcp", [4711, 0, 0, 0, 0], b"mine")


async def test_wishes_are_granted(make_manager: MakeManager, tmp_path: Path) -> None:
    """Port, key and file that the user chose are the kernel's, in this start and in the next one."""
    with zmq.Context() as context, context.socket(zmq.REP) as found:
        port = found.bind_to_random_port("tcp://127.0.0.1")
    path = tmp_path / "mine.json"
    manager = make_manager(connection_file=str(path), shell_port=port, session=Session(key=b"mine"))
    for _ in range(2):
        await manager.start_kernel()
        assert manager.connection_info is not None
        assert (manager.connection_info.shell_port, manager.connection_info.key) == (port, b"mine")
        assert json.loads(path.read_bytes())["shell_port"] == port
        await manager.answered
        await manager.shutdown_kernel()
        assert not path.exists()


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - shorter
        return file.read()


@COLOURS
def test_a_connection_file_is_written_once_for_its_owner_alone(manager_class: Any, tmp_path: Path) -> None:
    """What nobody gave is chosen; it is 0600; again it is not written; it is removed by who wrote it."""
    (tmp_path / "open").mkdir(mode=0o755)
    path = tmp_path / "open" / "kernel.json"
    manager = manager_class(connection_file=str(path), shell_port=4711, kernel_name="ir")
    manager.write_connection_file(jupyter_session="a.ipynb")
    fields = json.loads(_read(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (fields["shell_port"], fields["kernel_name"], fields["jupyter_session"]) == (4711, "ir", "a.ipynb")
    assert (fields["transport"], fields["ip"]) == ("tcp", "127.0.0.1")
    assert len({fields[name] for name in PORT_NAMES}) == 5
    assert 0 not in manager.ports
    assert len(fields["key"]) == 64
    manager.write_connection_file(jupyter_session="b.ipynb")
    assert json.loads(_read(str(path))) == fields
    path.unlink()
    manager.write_connection_file()
    manager.cleanup_connection_file()
    manager.cleanup_connection_file()
    assert not path.exists()


def test_a_connection_file_without_a_name_lies_in_our_folder(runtime: Path) -> None:
    """With unix sockets the paths begin as the file does, and their numbers are free ones."""
    manager = AsyncKernelManager(transport="ipc", stdin_port=3)
    manager.write_connection_file()
    assert manager.connection_file.startswith(f"{runtime}/cobnut/")
    assert manager.ip == f"{manager.connection_file.removesuffix('.json')}-ipc"
    assert sorted(manager.ports) == [1, 2, 3, 4, 5]
    assert manager.stdin_port == 3
    manager.cleanup_connection_file()


def test_somebody_elses_file_is_not_removed(tmp_path: Path) -> None:
    """A file that was only loaded stays."""
    path = tmp_path / "private" / "kernel.json"
    AsyncKernelManager(connection_file=str(path)).write_connection_file()
    other = AsyncKernelManager(connection_file=str(path))
    other.load_connection_file()
    other.cleanup_connection_file()
    assert path.exists()


@COLOURS
def test_chosen_ports_are_forgotten_and_given_ones_are_not(manager_class: Any, tmp_path: Path) -> None:
    """With the ports goes the file that names them; with unix sockets nothing happens."""
    manager = manager_class(connection_file=str(tmp_path / "private" / "k.json"), shell_port=4711)
    manager.cleanup_random_ports()
    manager.write_connection_file()
    key = manager.session.key
    manager.cleanup_random_ports()
    assert manager.ports == [4711, 0, 0, 0, 0]
    assert (manager.session.key, list((tmp_path / "private").iterdir())) == (key, [])
    sockets = manager_class(connection_file=str(tmp_path / "private" / "k.json"), transport="ipc")
    sockets.write_connection_file()
    sockets.cleanup_random_ports()
    assert sockets.ports == [1, 2, 3, 4, 5]


@COLOURS
def test_sockets_are_removed(manager_class: Any, tmp_path: Path) -> None:
    """Those that are there, and only with that transport."""
    (tmp_path / "k-1").touch()
    (tmp_path / "k-6").touch()
    manager = manager_class(transport="ipc", ip=str(tmp_path / "k"), shell_port=1, hb_port=2)
    manager_class(transport="tcp", ip=str(tmp_path / "k"), shell_port=6).cleanup_ipc_files()
    manager.cleanup_ipc_files()
    assert [path.name for path in tmp_path.iterdir()] == ["k-6"]


@COLOURS
def test_a_connection_is_loaded_but_for_ports_that_were_set(manager_class: Any) -> None:
    """Keys may be text or bytes; ports on the command line count more than those of the file, as documented."""
    pair = tuple(key.decode() for key in zmq.curve_keypair())
    manager = manager_class(shell_port=4711)
    fields = {name: number for number, name in enumerate(PORT_NAMES, 1)}
    manager.load_connection_info(
        {**fields, "ip": "10.0.0.1", "key": "abc", "curve_publickey": pair[0], "curve_secretkey": pair[1].encode()}
    )
    assert manager.ports == [4711, 2, 3, 4, 5]
    assert (manager.ip, manager.session.key, manager.transport) == ("10.0.0.1", b"abc", "auto")
    assert (manager.curve_publickey, manager.curve_secretkey) == tuple(key.encode() for key in pair)
    info = manager.get_connection_info()
    assert (info["transport"], info["curve_publickey"], info["key"]) == ("tcp", pair[0], b"abc")
    manager.load_connection_info({"transport": "ipc", "key": b"def"})
    assert (manager.transport, manager.ip, manager.session.key) == ("ipc", "", b"def")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Loading says which file cannot be read."""
    with pytest.raises(ConnectionFileError, match=r"nowhere\.json cannot be read"):
        AsyncKernelManager().load_connection_file(str(tmp_path / "nowhere.json"))


def test_the_session_in_the_info_is_another_partys() -> None:
    """Same key, another id: who has the same id gets the other's replies."""
    manager = AsyncKernelManager(session=Session(key=b"abc", username="hazel"))
    given = manager.get_connection_info(session=True)["session"]
    assert (given.key, given.username) == (b"abc", "hazel")
    assert given.session != manager.session.session
    assert "key" not in manager.get_connection_info(session=True)


# ── sockets and clients ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A zmq context of the test's own, which ends with it."""
    with zmq.Context() as context:
        yield context


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_raw_sockets_are_connected_to_the_kernel(
    make_manager: MakeManager, transport: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Shell and control answer what a Session sends, iopub is subscribed; none keeps the process from ending."""
    manager = make_manager(config=Config({"LocalProvisioner": {"transport": transport}}), context=context)
    await manager.start_kernel()
    await manager.answered
    assert manager.transport == transport
    session: Session = manager.get_connection_info(session=True)["session"]
    iopub, hb = manager.connect_iopub(), manager.connect_hb()
    for connect in (manager.connect_shell, manager.connect_control):
        sock = connect(identity=b"me")
        assert sock.linger == 1000
        session.send(sock, "kernel_info_request")
        assert sock.poll(20_000)
        _, frames = session.feed_identities(sock.recv_multipart())
        assert session.deserialize(frames)["msg_type"] == "kernel_info_reply"
        assert sock.getsockopt(zmq.IDENTITY) == b"me"
        sock.close()
    assert iopub.poll(20_000)
    assert (iopub.getsockopt(zmq.TYPE), hb.getsockopt(zmq.TYPE)) == (zmq.SUB, zmq.REQ)
    stdin = manager.connect_stdin()
    assert stdin.getsockopt(zmq.TYPE) == zmq.DEALER
    for sock in (iopub, hb, stdin):
        sock.close()
    await manager.shutdown_kernel(now=True)


def test_encrypted_sockets_have_the_kernels_keys(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Who has the pair of the connection file is let in."""
    public, secret = zmq.curve_keypair()
    with context.socket(zmq.ROUTER) as kernel:
        kernel.curve_server, kernel.curve_publickey, kernel.curve_secretkey = True, public, secret
        ports = dict.fromkeys(PORT_NAMES, kernel.bind_to_random_port("tcp://127.0.0.1"))
        manager = AsyncKernelManager(context=context, curve_publickey=public, curve_secretkey=secret, **ports)
        with manager.connect_shell() as sock:
            sock.send(b"let me in")
            assert kernel.poll(20_000)
            assert kernel.recv_multipart()[-1] == b"let me in"


@COLOURS
def test_nothing_is_connected_to_nowhere(manager_class: Any) -> None:
    """Before the connection is known there is an error that says so, and no socket."""
    with pytest.raises(ConnectionFileError, match="shell is not known yet: start it"):
        manager_class().connect_shell()


async def test_a_loaded_connection_is_one_for_clients(make_manager: MakeManager) -> None:
    """A manager that only loads another's connection file makes clients that talk to that kernel."""
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    other = AsyncKernelManager(owns_kernel=False)
    other.load_connection_file(manager.connection_file)
    async with other.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
    await manager.shutdown_kernel(now=True)


# ── command and environment ─────────────────────────────────────────────────────────────────────────────────────────


@COLOURS
def test_the_command_is_filled_in(manager_class: Any, tmp_path: Path) -> None:
    """Known fields get their values, unknown ones stay; `python` is the interpreter that we run on."""
    spec = KernelSpec(argv=["python", "{connection_file}", "{prefix}", "{resource_dir}", "{x}"], resource_dir="/there")
    specs = KernelSpecManager(extra_specs={"x": spec}, kernel_dirs=[])
    manager = manager_class(kernel_name="x", kernel_spec_manager=specs, connection_file=str(tmp_path / "k.json"))
    assert manager.format_kernel_cmd(["--more"]) == [
        sys.executable,
        os.path.realpath(tmp_path / "k.json"),
        sys.prefix,
        "/there",
        "{x}",
        "--more",
    ]


async def test_the_environment_is_changed_with_the_next_restart(make_manager: MakeManager) -> None:
    """Only where the start was given one, and without changing what the caller gave."""
    manager = make_manager()
    manager.kernel_spec_manager.extra_specs = {"tiny": KernelSpec(argv=["sh", "-c", "echo $X; exec sleep 60"])}
    manager.update_env(env={"X": "too early"})
    given = {**os.environ, "X": "1"}
    await manager.start_kernel(env=given)
    manager.update_env(env={"X": "2"})
    assert given["X"] == "1"
    await manager.restart_kernel(now=True)
    await eventually(lambda: manager.output_tail() == "2\n", manager.output_tail())
    await manager.shutdown_kernel(now=True)
