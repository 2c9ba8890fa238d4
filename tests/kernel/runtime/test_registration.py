"""The kernel's part in the handshake, with a launcher that does what a test says."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import zmq

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.protocol.registration import RegistrationInfo
from cobnut_kernel.runtime.registration import Registration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORTS = {"shell_port": 1001, "iopub_port": 1002, "stdin_port": 1003, "control_port": 1004, "hb_port": 1005}


class Launcher:
    """A launcher's socket, and nobody behind it but the test."""

    def __init__(self, transport: str, folder: Path) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind("tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{folder}/r-6")
        url = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        port = int(url.rpartition(":")[2]) if transport == "tcp" else 6
        address = {"registration_ip": "127.0.0.1" if transport == "tcp" else f"{folder}/r", "registration_port": port}
        self.info = RegistrationInfo.from_dict({"kernel_id": "k", "key": "secret", "transport": transport, **address})

    def receive(self) -> list[bytes]:
        """Wait for the kernel's message."""
        assert self.socket.poll(20_000), "the kernel did not register"
        return self.socket.recv_multipart()

    def close(self) -> None:
        """End."""
        self.context.destroy(0)


@pytest.fixture(params=["tcp", "ipc"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    """Be a launcher that waits."""
    launcher = Launcher(request.param, tmp_path)
    yield launcher
    launcher.close()


def test_a_kernel_that_is_acknowledged_goes_on(launcher: Launcher) -> None:
    """What it sent names its ports; afterwards nothing of the handshake is left."""
    connection = replace(launcher.info.wanted, **PORTS)
    registration = Registration(launcher.info)
    registration.send(connection)
    received = launcher.receive()
    assert launcher.info.read_registration(received) == connection
    launcher.socket.send_multipart(launcher.info.acknowledgement(received))
    registration.confirm(20)
    registration.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "cobnut-io"]


def test_a_kernel_that_nobody_acknowledges_says_so(launcher: Launcher) -> None:
    """After the time for the answer it knows that nobody will use it, and where it asked."""
    registration = Registration(launcher.info)
    registration.send(replace(launcher.info.wanted, **PORTS))
    with pytest.raises(
        KernelStartError, match=f"{launcher.info.url} did not acknowledge .* within 0.1 seconds: it has"
    ):
        registration.confirm(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "cobnut-io"]


def test_a_strangers_acknowledgement_is_none(launcher: Launcher) -> None:
    """An answer that is signed with another key, or that is the kernel's own message, does not count; it is told."""
    registration = Registration(launcher.info)
    registration.send(replace(launcher.info.wanted, **PORTS))
    received = launcher.receive()
    other = replace(launcher.info, wanted=replace(launcher.info.wanted, key=b"other"))
    launcher.socket.send_multipart(other.acknowledgement(received))
    with pytest.raises(KernelStartError, match="not signed with the key of the registration file"):
        registration.confirm(0.5)

    registration.send(replace(launcher.info.wanted, **PORTS))
    launcher.socket.send_multipart(launcher.receive())
    with pytest.raises(KernelStartError, match="sent back"):
        registration.confirm(0.5)


def test_an_address_that_is_none_is_said() -> None:
    """The error names it."""
    fields = {"kernel_id": "k", "transport": "tcp", "registration_ip": "no address", "registration_port": 5}
    info = RegistrationInfo.from_dict(fields)
    with pytest.raises(KernelStartError, match="No launcher can be at tcp://no address:5"):
        Registration(info).send(replace(info.wanted, **PORTS))
