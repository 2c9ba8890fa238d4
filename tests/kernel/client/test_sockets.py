"""Opening and closing a client's sockets: addresses that are of no use, and encryption."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zmq
from tests.kernel.client.conftest import KernelDouble, connection

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.sockets import _is_made, _pause
from cobnut_kernel.errors import ConnectionFileError, KernelNotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cobnut_kernel.protocol.connection import ConnectionInfo


@pytest.fixture
def info(kernel: KernelDouble) -> ConnectionInfo:
    """Be a connection that works."""
    return kernel.info


def refused(info: ConnectionInfo) -> str:
    """Start a client where it cannot; returns what it says, and looks for what it leaves."""
    client = AsyncKernelClient(info)
    threads = threading.active_count()
    with pytest.raises(ConnectionFileError) as error:
        client.start_channels()
    assert not client.channels_running
    assert threading.active_count() == threads
    return str(error.value)


def test_port_that_is_not_known_yet(info: ConnectionInfo) -> None:
    """Port 0 is a kernel's business: to a client it says nothing, and no other socket stays open for it."""
    assert "names no port for stdin" in refused(replace(info, transport="tcp", ip="127.0.0.1", stdin_port=0))


def test_address_that_is_none(info: ConnectionInfo) -> None:
    """An address that cannot be resolved is an error that names the url."""
    assert "tcp://no address:2" in refused(replace(info, transport="tcp", ip="no address"))


# ── a kernel that is starting ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
async def test_what_is_said_before_the_kernel_is_there_waits_for_it(
    make_double: Callable[[], KernelDouble], tmp_path: Path
) -> None:
    """A client that comes before the kernel connects when its sockets are made: nothing it said is lost."""
    async with AsyncKernelClient(connection(tmp_path)) as client:
        asked = [client.execute(str(number)) for number in range(3)]
        client.input("42")
        kernel = make_double()
        kernel.await_subscriber()
        assert kernel.receive("stdin").content == {"value": "42"}
        assert [kernel.serve("text").msg_id for _ in asked] == asked
        assert [(await client.get_shell_msg(20))["parent_header"]["msg_id"] for _ in asked] == asked
        published = [(await client.get_iopub_msg(20))["parent_header"]["msg_id"] for _ in range(9)]
        assert published == [msg_id for msg_id in asked for _ in range(3)]


def test_a_kernel_that_never_comes_holds_nobody(tmp_path: Path) -> None:
    """A client whose kernel is not there ends at once, with what it had to say, and leaves no thread."""
    threads = threading.active_count()
    client = AsyncKernelClient(connection(tmp_path))
    client.start_channels()
    client.execute("1")
    client.stop_channels()
    assert threading.active_count() == threads


def test_a_kernel_is_looked_for_often_while_it_starts_and_seldom_when_it_does_not_come() -> None:
    """A pause is a small part of the time so far: at first as short as zmq's, at last a second."""
    assert _pause(0) == 0.002
    assert _pause(0.32) == pytest.approx(0.01)
    assert _pause(3600) == 1


def test_only_files_are_looked_for(tmp_path: Path) -> None:
    """A file can be there or not; ports, and sockets of Linux that have no file, are connected to at once."""
    assert not _is_made(f"ipc://{tmp_path}/k-1")
    (tmp_path / "k-1").touch()
    assert _is_made(f"ipc://{tmp_path}/k-1")
    assert _is_made("ipc://@k-1")
    assert _is_made("tcp://127.0.0.1:1")


# ── encryption ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encrypted(info: ConnectionInfo) -> ConnectionInfo:
    """Give a connection CURVE keys of its own."""
    public, secret = zmq.curve_keypair()
    return replace(info, curve_publickey=public, curve_secretkey=secret)


@pytest.fixture
def secret_kernel(tmp_path: Path) -> Iterator[KernelDouble]:
    """Be a kernel whose sockets are encrypted."""
    kernel = KernelDouble(encrypted(connection(tmp_path)))
    yield kernel
    kernel.close()


@pytest.mark.anyio
async def test_encrypted_channels_work_like_others(secret_kernel: KernelDouble) -> None:
    """With the keys of the connection a client hears iopub, asks on shell and control, and answers on stdin."""
    async with AsyncKernelClient(secret_kernel.info) as client:
        secret_kernel.await_subscriber()
        client.input("42")
        assert secret_kernel.receive("stdin").content == {"value": "42"}
        for channel, ask in (("shell", client.kernel_info), ("control", client.shutdown)):
            msg_id = ask()
            assert secret_kernel.serve("text", channel=channel).msg_id == msg_id
            queue = client.shell_channel if channel == "shell" else client.control_channel
            assert (await queue.get_msg(timeout=20))["parent_header"]["msg_id"] == msg_id
            published = [(await client.iopub_channel.get_msg(timeout=20))["msg_type"] for _ in range(3)]
            assert published == ["status", "stream", "status"]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["other keys", "no keys"])
async def test_without_the_kernels_keys_nothing_is_heard(secret_kernel: KernelDouble, fault: str) -> None:
    """Who has other keys, or none, reaches no kernel, is told so after his time, and can close at once."""
    info = secret_kernel.info
    info = encrypted(info) if fault == "other keys" else replace(info, curve_publickey=b"", curve_secretkey=b"")
    async with AsyncKernelClient(info) as client:
        with pytest.raises(KernelNotReadyError, match=r"within 0\.3 seconds") as caught:
            await client.wait_for_ready(timeout=0.3)
    assert ("not started with the same" in str(caught.value)) == (fault == "other keys")
    assert not secret_kernel.sockets["shell"].poll(0)
    assert not secret_kernel.sockets["iopub"].poll(0)


@pytest.mark.anyio
async def test_a_plain_kernel_is_not_heard_by_a_client_that_encrypts(kernel: KernelDouble) -> None:
    """A kernel that ignored the keys would get every cell in the clear: nothing is sent to it."""
    async with AsyncKernelClient(encrypted(kernel.info)) as client:
        with pytest.raises(KernelNotReadyError, match="has CURVE keys"):
            await client.wait_for_ready(timeout=0.3)
    assert not kernel.sockets["shell"].poll(0)


def test_a_zmq_that_cannot_encrypt_says_so(info: ConnectionInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than to talk in the clear it opens nothing, and says what is missing."""
    monkeypatch.setattr(zmq, "has", {"curve": False}.__getitem__)
    assert "install pyzmq with CURVE" in refused(encrypted(info))
