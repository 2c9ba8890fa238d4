"""Kernels of the user, found by files and processes; who is dead, or somebody else, is neither listed nor asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from tests.kernel.client.conftest import RealKernel, running_kernel
from tests.kernel.leftovers import until

from cobnut_kernel import attachment
from cobnut_kernel.attachment import (
    Activity,
    LiveKernel,
    System,
    ask_kernels,
    attach,
    find_kernels,
    live_kernels,
    read_address,
    stale_connection_files,
)
from cobnut_kernel.protocol.connection import ConnectionInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""


def write(folder: Path, name: str, **fields: Any) -> Path:
    """Write a connection file."""
    ports = {
        f"{channel}_port": number for number, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)
    }
    file = folder / name
    file.write_text(json.dumps({"transport": "tcp", "ip": "127.0.0.1", "key": "key", **ports, **fields}))
    return file


@pytest.fixture
def listener() -> Iterator[int]:
    """Listen on a port of this machine; nobody accepts."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


# ── kernels that run ────────────────────────────────────────────────────────────────────────────────────────────────


def tcp(kernel: RealKernel) -> None:
    """Let a kernel that was not started use ports."""
    sockets = [socket.socket() for _ in range(5)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    kernel.info = ConnectionInfo("tcp", "127.0.0.1", *(each.getsockname()[1] for each in sockets), key=b"key")
    for each in sockets:
        each.close()


@pytest.fixture(scope="module", params=["cobnut_kernel", "ipykernel_launcher"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    """Run a kernel: ours with unix sockets, ipykernel with ports."""
    kernel = RealKernel(request.param, tmp_path_factory.mktemp("kernel"))
    if request.param == "ipykernel_launcher":
        tcp(kernel)
    try:
        kernel.start()
        until(lambda: _states(kernel) in ([Activity.IDLE], [Activity.BUSY]), "the kernel does not answer")
        yield kernel
    finally:
        kernel.stop()


def _states(kernel: RealKernel) -> list[Activity]:
    return [found.state for found in live_kernels([kernel.folder], timeout=5)]


def test_what_is_known_of_a_kernel(kernel: RealKernel) -> None:
    """A kernel that runs is found with its process and its folder; an idle one answers that it is."""
    [found] = live_kernels([kernel.folder], timeout=LIMIT)
    assert kernel.process is not None
    assert (found.pid, found.cwd) == (kernel.process.pid, kernel.folder)
    assert found.connection_info == kernel.info
    assert found.kernel_id == "connection"
    assert found.state is Activity.IDLE


@pytest.mark.anyio
async def test_busy_kernel(kernel: RealKernel) -> None:
    """A kernel that runs a cell is busy, and is not disturbed by the question."""
    async with attach(kernel.folder / "connection.json") as client:
        await client.wait_for_ready(LIMIT)
        gate = kernel.folder / "gate"
        waiting = f"import os, time\nprint('in', flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
        run = client.run(waiting)
        async for message in run:
            if message.msg_type == "stream":
                break
        [found] = await ask_kernels(find_kernels([kernel.folder]))
        assert found.state is Activity.BUSY
        gate.touch()
        assert (await run.reply()).content["status"] == "ok"
        gate.unlink()


@pytest.mark.anyio
async def test_attached_client(kernel: RealKernel) -> None:
    """What is attached is a client and no more: the kernel is there when it has gone."""
    [found] = find_kernels([kernel.folder])
    async with attach(found) as client:
        await client.wait_for_ready(LIMIT)
        assert (await client.run("1").reply()).content["status"] == "ok"
    assert kernel.process is not None
    assert kernel.process.poll() is None


def test_stopped_kernel(tmp_path: Path) -> None:
    """A kernel whose process is stopped is silent; a killed one is not listed, however new its file is."""
    with running_kernel("cobnut_kernel", tmp_path) as kernel:
        until(lambda: _states(kernel) == [Activity.IDLE])
        assert kernel.process is not None
        os.kill(kernel.process.pid, signal.SIGSTOP)
        assert [found.state for found in live_kernels([tmp_path], timeout=0.1)] == [Activity.SILENT]
        assert stale_connection_files([tmp_path]) == []
        kernel.process.kill()
        kernel.process.wait()
        assert find_kernels([tmp_path]) == []
        assert stale_connection_files([tmp_path]) == [tmp_path / "connection.json"]


def test_kernel_that_starts(tmp_path: Path) -> None:
    """A process that was given the file and does not listen yet is a kernel that starts; a client of it is none."""
    file = write(tmp_path, "kernel-1.json")
    command = [sys.executable, "-c", "import sys; print(); sys.stdin.read()"]
    for option, expected in (("-f", [Activity.STARTING]), ("--existing", [])):
        with subprocess.Popen([*command, option, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert [found.state for found in live_kernels([tmp_path])] == expected
            assert {found.pid for found in find_kernels([tmp_path])} <= {process.pid}


@pytest.mark.anyio
async def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty kernels are asked at the same time, but never more than a few."""
    running = most = 0

    async def activity(_kernel: LiveKernel, _timeout: float) -> Activity:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return Activity.IDLE

    monkeypatch.setattr(attachment, "_activity", activity)
    info = ConnectionInfo("tcp", "127.0.0.1", 1, 2, 3, 4, 5)
    asked = await ask_kernels([LiveKernel(tmp_path / str(number), info) for number in range(50)])
    assert [kernel.connection_file.name for kernel in asked] == [str(number) for number in range(50)]
    assert 1 < most <= attachment.AT_ONCE


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_file_of_nobody(tmp_path: Path, listener: int) -> None:
    """A file whose port nobody listens on is stale; one whose port a process of the user has counts."""
    write(tmp_path, "kernel-dead.json", shell_port=1)
    alive = write(tmp_path, "kernel-live.json", shell_port=listener, jupyter_session="work.ipynb", kernel_name="r")
    [found] = find_kernels([tmp_path])
    assert (found.connection_file, found.pid, found.cwd) == (alive, os.getpid(), Path.cwd())
    assert (found.kernel_id, found.kernel_name, found.title) == ("live", "r", "work.ipynb")
    assert stale_connection_files([tmp_path]) == [tmp_path / "kernel-dead.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_port_of_somebody_else(tmp_path: Path) -> None:
    """A port that another user listens on is not the user's kernel, and gets nothing."""
    serve = (
        "import os, socket\nos.setuid(65534)\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "print(s.getsockname()[1], flush=True)\ns.settimeout(30)\n"
        "import select\nprint(select.select([s, 0], [], [])[0] == [0])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        write(tmp_path, "kernel-1.json", shell_port=int(process.stdout.readline()))
        assert live_kernels([tmp_path]) == []
        assert stale_connection_files([tmp_path]) == [tmp_path / "kernel-1.json"]
        assert process.communicate("")[0] == "True\n", "somebody has connected"


def test_kernel_of_another_machine(tmp_path: Path) -> None:
    """A file that names another machine's address is neither listed nor stale."""
    write(tmp_path, "kernel-1.json", ip="192.0.2.7")
    write(tmp_path, "kernel-2.json", ip="far.example")
    assert find_kernels([tmp_path]) == []
    assert stale_connection_files([tmp_path]) == []


def test_what_is_no_connection_file(tmp_path: Path) -> None:
    """Other files of the runtime folder, and broken ones, are passed over; a folder that is not there is empty."""
    (tmp_path / "jpserver-1.json").write_text('{"url": "http://127.0.0.1:8888"}')
    (tmp_path / "kernel-1.json").write_text("{")
    (tmp_path / "kernel-2.json").mkdir()
    write(tmp_path, "kernel-3.json", ip=5)
    assert find_kernels([tmp_path, tmp_path / "gone"]) == []
    assert stale_connection_files([tmp_path]) == []


def test_socket_that_nobody_serves(tmp_path: Path) -> None:
    """A unix socket that is left over is no kernel; neither is a file in its place."""
    prefix = str(tmp_path / "k")
    file = write(tmp_path, "kernel-1.json", transport="ipc", ip=prefix)
    assert find_kernels([tmp_path]) == []
    Path(f"{prefix}-1").touch()
    assert find_kernels([tmp_path]) == []
    Path(f"{prefix}-1").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{prefix}-1")
        assert find_kernels([tmp_path]) == []
        listening.listen()
        [found] = find_kernels([tmp_path])
        assert found.pid == os.getpid()
    assert stale_connection_files([tmp_path]) == [file]


def test_default_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: int) -> None:
    """By default Jupyter's runtime folder is looked at, where JupyterLab, VS Code and jupyter console have theirs."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    file = write(tmp_path, "kernel-v3a1.json", shell_port=listener)
    assert file in [found.connection_file for found in find_kernels()]


# ── what the system tells ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.byteorder != "little", reason="the examples are of little-endian machines")
@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    """Addresses of /proc/net/tcp and tcp6 are read, mapped ones as what they stand for."""
    assert read_address(text) == ip_address(address)


@pytest.mark.parametrize(
    ("ip", "listens"),
    [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", True), ("*", True), ("127.0.0.2", False), ("::1", False)],
)
def test_address_that_is_served(ip: str, listens: bool, listener: int) -> None:
    """A port counts on the address that is listened on, and where the kernel listens on all."""
    assert System().listener(ConnectionInfo("tcp", ip, listener))[0] is listens


def test_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: int) -> None:
    """Where there is no /proc, lsof says who listens on a port; a unix socket that takes a connection is served."""
    program = tmp_path / "lsof"
    program.write_text(f'#!/bin/sh\ncase "$*" in *TCP:{listener}*) echo p4711; echo f3;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    system = System(tmp_path / "none")
    assert system.listener(ConnectionInfo("tcp", "127.0.0.1", listener)) == (True, 4711)
    assert system.listener(ConnectionInfo("tcp", "127.0.0.1", 1)) == (False, None)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "k-1"))
        info = ConnectionInfo("ipc", str(tmp_path / "k"), 1)
        assert system.listener(info) == (False, None)
        listening.listen()
        assert system.listener(info) == (True, None)
    assert system.folder(os.getpid()) is None
    assert system.process_of(program) is None
