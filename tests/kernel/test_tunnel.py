"""Kernels of another machine, reached through an sshd of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from tests.kernel.client.conftest import RealKernel, running_kernel
from tests.kernel.leftovers import eventually, is_running, private_runtime, until
from tests.kernel.sshd import HOST, Sshd, running_sshd

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.connect import tunnel_to_kernel
from cobnut_kernel.errors import ConnectionFileError, TunnelError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.tunnel import FILE_LIMIT, Tunnel, destination, local_end, read_remote_file

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run async tests under both loops."""
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    """Run an sshd."""
    with running_sshd() as server:
        yield server


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep our sockets in a folder of the test's own."""
    yield from private_runtime(monkeypatch)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    """Run a kernel with unix sockets."""
    with running_kernel("cobnut_kernel", tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


def options(server: Sshd) -> list[str]:
    """Let ssh know the server."""
    return ["-F", str(server.config)]


def are_private(info: ConnectionInfo) -> bool:
    """Say whether only we can reach the sockets of a connection."""
    return all(Path(path).stat().st_mode & 0o077 == 0 for path in info.ipc_paths())


def left_over(runtime: Path) -> list[str]:
    """List the files in the folders of processes."""
    return [path.name for path in runtime.rglob("*/*/*")]


def another_key(server: Sshd, folder: Path) -> Path:
    """Write a configuration for ssh with a key that the server does not know."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    config = folder / "config"
    config.write_text(server.config.read_text().replace(f"{server.folder}/key\n", f"{folder}/key\n"))
    return config


async def answer(info: ConnectionInfo) -> str:
    """Run a cell."""
    async with AsyncKernelClient(info) as client:
        await client.wait_for_ready(LIMIT)
        messages = [message async for message in client.run("print('far away')")]
        return "".join(message.content["text"] for message in messages if message.msg_type == "stream")


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_kernel_of_a_remote_file(server: Sshd, kernel: RealKernel, runtime: Path, transport: str) -> None:
    """The file is read there, its sockets are led here, to sockets or ports, and nothing is left afterwards."""
    file = kernel.folder / "connection.json"
    async with await Tunnel.open(HOST, file, transport=transport, options=options(server)) as tunnel:
        assert tunnel.remote == kernel.info
        assert tunnel.connection_info.transport == transport
        assert tunnel.is_open
        assert await answer(tunnel.connection_info) == "far away\n"
        assert are_private(tunnel.connection_info)
    assert not tunnel.is_open
    assert not is_running(tunnel.pid)
    assert left_over(runtime) == ["owner.json"]
    await tunnel.close()
    await eventually(lambda: not server.clients(), "the server still has a client")


async def test_kernel_that_listens_on_ports(server: Sshd, kernel: RealKernel, tmp_path: Path) -> None:
    """Ports there become unix sockets here; a known connection needs no file there."""
    async with (
        await Tunnel.open(HOST, kernel.info, transport="tcp", options=options(server)) as near,
        await Tunnel.open(HOST, near.connection_info, options=options(server)) as tunnel,
    ):
        assert await answer(tunnel.connection_info) == "far away\n"


@pytest.mark.parametrize(
    ("host", "file", "words"),
    [
        (HOST, "/nowhere/kernel.json", "No such file"),
        ("cobnut-no-such-host.invalid", "/x", "(?i)could not resolve|name or service|not known"),
        ("127.0.0.1:1", "/x", "(?i)refused"),
    ],
)
async def test_what_ssh_says(server: Sshd, host: str, file: str, words: str) -> None:
    """What goes wrong is told in ssh's own words, with the server's name; nothing is left running."""
    with pytest.raises(TunnelError, match=words) as error:
        await Tunnel.open(host, file, options=options(server))
    assert host in str(error.value)
    await eventually(lambda: not server.clients())


async def test_key_that_is_refused(server: Sshd, tmp_path: Path) -> None:
    """A server that does not know us is an error at once: ssh asks nothing on the terminal."""
    with pytest.raises(TunnelError, match="Permission denied"):
        await Tunnel.open(HOST, "/x", options=["-F", str(another_key(server, tmp_path))])


async def test_remote_file_that_is_none(server: Sshd, tmp_path: Path) -> None:
    """A file there that is no connection file is an error that names file and server; nothing is left running."""
    file = tmp_path / "a file with 'quotes'.json"
    file.write_text("{")
    with pytest.raises(ConnectionFileError, match=HOST):
        await Tunnel.open(HOST, file, options=options(server))
    await eventually(lambda: not server.clients())


async def test_remote_file_that_is_too_large(server: Sshd, tmp_path: Path) -> None:
    """Of a file there that is no connection file no more is read than such a one may have, and ssh ends."""
    file = tmp_path / "large.json"
    file.write_bytes(b"x" * 4 * FILE_LIMIT)
    with pytest.raises(ConnectionFileError, match=f"has more than {FILE_LIMIT} bytes"):
        await Tunnel.open(HOST, file, options=options(server))
    await eventually(lambda: not server.clients())


async def test_closing_twice_at_once(server: Sshd, kernel: RealKernel) -> None:
    """Both return when ssh has ended."""
    tunnel = await Tunnel.open(HOST, kernel.folder / "connection.json", options=options(server))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tunnel.close)
        tasks.start_soon(tunnel.close)
    assert not is_running(tunnel.pid)


async def test_server_that_does_not_answer(server: Sshd) -> None:
    """A server that lets nobody in is given up after the time."""
    with pytest.raises(TunnelError, match="within 0 seconds"):
        await Tunnel.open(HOST, "/x", options=options(server), timeout=0)


async def test_no_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without ssh the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TunnelError, match="Install OpenSSH"):
        await Tunnel.open(HOST, "/x")


PROGRAM = """
import sys
from cobnut_kernel.portal import Portal
from cobnut_kernel.tunnel import Tunnel
async def open():
    return await Tunnel.open(sys.argv[1], sys.argv[2], options=sys.argv[3:])
tunnel = Portal.shared().call(open)
print(tunnel.pid, flush=True)
sys.stdin.readline()
"""


def test_killed_with_a_tunnel(server: Sshd, kernel: RealKernel) -> None:
    """When the process that has a tunnel is killed, ssh ends on both machines."""
    file = str(kernel.folder / "connection.json")
    command = [sys.executable, "-c", PROGRAM, HOST, file, *options(server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert server.clients()
        process.kill()
    until(lambda: not is_running(pid), "ssh runs on")
    until(lambda: not server.clients(), "the server still has a client")


def test_program_that_ends_without_closing(server: Sshd, kernel: RealKernel, runtime: Path) -> None:
    """When a program ends and has not closed its tunnel, ssh and its sockets are gone before."""
    file = str(kernel.folder / "connection.json")
    command = [sys.executable, "-c", PROGRAM, HOST, file, *options(server)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert left_over(runtime)
        process.communicate("\n", timeout=LIMIT)
        assert process.returncode == 0
    assert not is_running(pid)
    assert not left_over(runtime)
    until(lambda: not server.clients(), "the server still has a client")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_documented_function(
    server: Sshd, kernel: RealKernel, monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    """`tunnel_to_kernel` leads five ports of this machine to a kernel."""
    monkeypatch.setenv("PATH", str(server.bin), prepend=os.pathsep)
    shell, iopub, stdin, heart, control = tunnel_to_kernel(kernel.info.as_dict(), HOST, str(server.folder / "key"))
    ports = {"shell_port": shell, "iopub_port": iopub, "stdin_port": stdin, "hb_port": heart, "control_port": control}
    info = {**kernel.info.as_dict(), **ports, "transport": "tcp", "ip": "127.0.0.1"}
    assert await answer(ConnectionInfo.from_dict(info)) == "far away\n"
    assert tunnel_to_kernel(str(kernel.folder / "connection.json"), HOST)[0] != shell


# ── deciding ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("server", "arguments"),
    [("host", ["host"]), ("me@host:2222", ["-p", "2222", "me@host"]), ("fe80::1", ["fe80::1"])],
)
def test_destinations(server: str, arguments: list[str]) -> None:
    """A server may have a user and a port."""
    assert destination(server) == arguments


@pytest.mark.parametrize("server", ["", "-oProxyCommand=x", "-x:22"])
def test_what_is_no_destination(server: str) -> None:
    """What ssh would take for an option is refused."""
    with pytest.raises(TunnelError, match="no host"):
        destination(server)


def test_local_end_keeps_the_rest() -> None:
    """Key and all else stay; a transport that is none is refused."""
    remote = ConnectionInfo("tcp", "10.0.0.1", 1, 2, 3, 4, 5, key=b"key", extra={"more": 1})
    local = local_end(remote, "ipc")
    assert (local.key, local.extra, local.transport) == (b"key", {"more": 1}, "ipc")
    with pytest.raises(ConnectionFileError):
        local_end(remote, "pigeon")
    with pytest.raises(ConnectionFileError, match="of far"):
        read_remote_file(b"[]", "far", "/x")
