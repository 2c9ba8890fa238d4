"""The socket at which a kernel registers, with a kernel that sends what a test says."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.leftovers import eventually

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.provisioning.registration import RegistrationDesk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut_kernel.protocol.registration import RegistrationInfo

pytestmark = pytest.mark.anyio

WANTED = ConnectionInfo("tcp", "127.0.0.1", key=b"secret", kernel_name="k", extra={"jupyter_session": "s"})
PORTS: dict[str, Any] = {
    "shell_port": 1001,
    "iopub_port": 1002,
    "stdin_port": 1003,
    "control_port": 1004,
    "hb_port": 1005,
}
FILE = Path("/run/me/kernel-id.json")


@pytest.fixture(autouse=True)
async def _nothing_left() -> Any:
    """See to it that each test closes what it opens: there are threads of ours while a socket is open."""
    before = own_threads()
    yield
    assert own_threads() == before


def own_threads() -> set[threading.Thread]:
    """Find the threads of ours; there may be some of the process's other tests."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("cobnut")}


@pytest.fixture
async def desk() -> Any:
    """Wait for the kernel `id`."""
    desk = RegistrationDesk("id", WANTED, FILE)
    yield desk
    desk.close()
    desk.close()


@pytest.fixture
def dealer(desk: RegistrationDesk) -> Iterator[zmq.Socket[bytes]]:
    """Be a kernel's socket."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(desk.info.url)
        yield socket


async def answer(dealer: zmq.Socket[bytes]) -> list[bytes]:
    """Wait for what the launcher sends."""
    await eventually(lambda: dealer.poll(0), "nobody answered")
    return dealer.recv_multipart()


async def test_a_kernel_is_known_and_acknowledged(desk: RegistrationDesk, dealer: zmq.Socket[bytes]) -> None:
    """What it tells is filled into what was wanted; the file that it reads names file, key and socket."""
    info = desk.info
    assert (info.kernel_id, info.wanted, info.connection_file) == ("id", WANTED, str(FILE))
    connection = replace(WANTED, **PORTS)
    dealer.send_multipart(info.registration(connection))
    info.check_acknowledgement(await answer(dealer), info.registration(connection))
    assert await desk.registered == connection
    assert desk.refused == ""


def forgeries(info: RegistrationInfo) -> dict[str, tuple[list[bytes], str]]:
    """Messages that are none of the kernel's, and why."""
    connection = replace(WANTED, **PORTS)
    stranger = replace(info, wanted=replace(WANTED, key=b"guessed"))
    other = replace(info, kernel_id="other")
    return {
        "another key": (stranger.registration(connection), "not signed"),
        "another kernel": (other.registration(connection), "another kernel, 'other'"),
        "no port": (info.registration(WANTED), "port 0"),
        "noise": ([b"noise"], "no registration"),
    }


async def test_what_is_none_of_the_kernels_is_passed_over(
    desk: RegistrationDesk, dealer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody answers it, it is logged, and the kernel itself can still register; then nobody else."""
    for frames, reason in forgeries(desk.info).values():
        dealer.send_multipart(frames)
        await eventually(lambda reason=reason: reason in caplog.text)
        assert reason in desk.refused
    assert not desk.registered.done()
    for connection in (replace(WANTED, **PORTS), replace(WANTED, **{**PORTS, "hb_port": 9})):
        dealer.send_multipart(desk.info.registration(connection))
    await answer(dealer)
    assert (await desk.registered).hb_port == 1005
    await eventually(lambda: "registered again" in caplog.text)
    assert not dealer.poll(0)


async def test_who_waits_when_it_closes_is_not_left_waiting() -> None:
    """Its future is cancelled."""
    desk = RegistrationDesk("id", WANTED, FILE)
    desk.close()
    assert desk.registered.cancelled()


async def test_an_id_that_is_none_opens_nothing() -> None:
    """It is refused before there is a socket that nobody would close."""
    with pytest.raises(ConnectionFileError, match="kernel_id 'a/b'"):
        RegistrationDesk("a/b", WANTED, FILE)
