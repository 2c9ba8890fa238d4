"""What `protocol/registration.py` promises of registration files and the two messages of the handshake."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest

from cobnut_kernel.errors import ConnectionFileError, MalformedMessageError, SignatureError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.registration import RegistrationInfo

DOCUMENTED: dict[str, Any] = {
    "kernel_id": "unique_kernel_id",
    "transport": "tcp",
    "registration_ip": "127.0.0.1",
    "registration_port": 51587,
    "signature_scheme": "hmac-sha256",
    "key": "a0436f6c-1916-498b-8eb9-e81ab9368e84",
}
KEY = DOCUMENTED["key"].encode()
PORTS: dict[str, Any] = {
    "shell_port": 1001,
    "iopub_port": 1002,
    "stdin_port": 1003,
    "control_port": 1004,
    "hb_port": 1005,
}


@pytest.fixture
def info() -> RegistrationInfo:
    """The file of the specification's example."""
    return RegistrationInfo.from_dict(DOCUMENTED)


def message(content: Any, key: bytes = KEY, *identities: bytes) -> list[bytes]:
    """Write a message as the specification says."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return [*identities, b"<IDS|MSG>", hmac.new(key, data, hashlib.sha256).hexdigest().encode(), data]


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_documented_file_is_understood(info: RegistrationInfo) -> None:
    """The kernel listens on the launcher's address, on ports of its own choice."""
    assert (info.kernel_id, info.url, info.connection_file) == ("unique_kernel_id", "tcp://127.0.0.1:51587", "")
    assert info.wanted == ConnectionInfo("tcp", "127.0.0.1", key=KEY)


def test_a_launcher_may_want_more() -> None:
    """Address, ports, names and CURVE keys of the connection are the launcher's, if it likes; so is the file."""
    more = {**PORTS, "ip": "0.0.0.0", "kernel_name": "k", "jupyter_session": "s", "connection_file": "/run/k.json"}
    info = RegistrationInfo.from_dict({**DOCUMENTED, **more, "registration_port": "51587"})
    assert info.wanted == ConnectionInfo(
        "tcp", "0.0.0.0", **PORTS, key=KEY, kernel_name="k", extra={"jupyter_session": "s"}
    )
    assert info.connection_file == "/run/k.json"
    assert RegistrationInfo.from_dict(json.loads(json.dumps(info.as_dict()))) == info


def test_unix_sockets_register_too() -> None:
    """The launcher's address is the beginning of a path and a number; the kernel's sockets lie beside it, from 1 on."""
    fields = {**DOCUMENTED, "transport": "ipc", "registration_ip": "/run/me/r", "registration_port": 6}
    info = RegistrationInfo.from_dict(fields)
    assert info.url == "ipc:///run/me/r-6"
    assert sorted(info.wanted.ipc_paths()) == [f"/run/me/r-unique_kernel_id-{number}" for number in range(1, 6)]
    assert RegistrationInfo.from_dict({**fields, "ip": "/run/me/k"}).wanted.ip == "/run/me/k"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"registration_ip": None}, "names no 'registration_ip'"),
        ({"registration_ip": "", "ip": "127.0.0.1"}, "needs a registration_ip"),
        ({"registration_port": None}, "names no 'registration_port'"),
        ({"registration_port": 0}, "from 1 to 65535"),
        ({"registration_port": 70000}, "from 1 to 65535"),
        ({"registration_port": "x"}, "'registration_port' .* whole number"),
        ({"kernel_id": None}, "names no 'kernel_id'"),
        ({"kernel_id": 5}, "'kernel_id' .* must be text"),
        ({"kernel_id": "../x"}, "kernel_id '../x' of the registration cannot be part of a file's name"),
        ({"kernel_id": ""}, "kernel_id '' of the registration"),
        ({"transport": "udp"}, "transport must be 'tcp' or 'ipc'"),
        ({"signature_scheme": "hmac-md5"}, "not supported"),
        ({"connection_file": 1}, "'connection_file' .* must be text"),
        ({"shell_port": -1}, "shell_port must lie"),
    ],
)
def test_a_file_of_no_use_says_why(fields: dict[str, Any], complaint: str) -> None:
    """The error names the field."""
    with pytest.raises(ConnectionFileError, match=complaint):
        RegistrationInfo.from_dict({**DOCUMENTED, **fields})


def test_the_key_is_not_shown(info: RegistrationInfo) -> None:
    """Neither a log nor a traceback tells it."""
    assert KEY.decode() not in repr(info)


# ── the messages ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kernels_message_is_the_specifications(info: RegistrationInfo) -> None:
    """One signed frame that holds id and ports, the ports as text."""
    connection = replace(info.wanted, **PORTS)
    frames = info.registration(connection)
    expected = {"kernel_id": "unique_kernel_id", **{name: str(port) for name, port in PORTS.items()}}
    assert json.loads(frames[2]) == expected
    assert frames == message(frames[2])
    assert info.read_registration([b"identity", *frames]) == connection


def test_what_the_launcher_wanted_stays_in_the_connection() -> None:
    """The message brings the ports; everything else is what the file said."""
    info = RegistrationInfo.from_dict({**DOCUMENTED, "ip": "10.0.0.1", "kernel_name": "k", "jupyter_session": "s"})
    told = info.read_registration(message({"kernel_id": info.kernel_id, **PORTS, "ip": "elsewhere"}))
    assert told == replace(info.wanted, **PORTS)


@pytest.mark.parametrize(
    ("frames", "error", "complaint"),
    [
        (message({"kernel_id": "unique_kernel_id", **PORTS}, b"other"), SignatureError, "not signed with the key"),
        (message({"kernel_id": "another", **PORTS}), MalformedMessageError, "another kernel, 'another'"),
        (message({"kernel_id": "unique_kernel_id"}), MalformedMessageError, "shell_port"),
        (message({**PORTS}), MalformedMessageError, "kernel_id"),
        (message({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": "0"}), MalformedMessageError, "port 0"),
        (message({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": "70000"}), MalformedMessageError, "hb_port"),
        (message({"kernel_id": "unique_kernel_id", **PORTS, "hb_port": []}), MalformedMessageError, "hb_port"),
        (message(b"{"), MalformedMessageError, "names no ports"),
        (message(b"[]"), MalformedMessageError, "names no ports"),
        (message(b"5"), MalformedMessageError, "names no ports"),
        ([b"", b""], MalformedMessageError, "no registration"),
        ([b"id", b"sig", b"{}"], MalformedMessageError, "no registration"),
        ([b"<IDS|MSG>", b"\xff", b"{}"], SignatureError, "not signed"),
    ],
)
def test_what_is_no_registration_is_refused(
    info: RegistrationInfo, frames: list[bytes], error: type[Exception], complaint: str
) -> None:
    """Only the kernel that the file was given to registers, and with ports that can be connected to."""
    with pytest.raises(error, match=complaint):
        info.read_registration(frames)


def test_an_acknowledgement_goes_to_who_registered(info: RegistrationInfo) -> None:
    """It carries the identities of the message, and is signed; its content is the launcher's affair."""
    sent = info.registration(replace(info.wanted, **PORTS))
    frames = info.acknowledgement([b"a", b"b", *sent])
    assert frames == message(frames[-1], KEY, b"a", b"b")
    info.check_acknowledgement(frames[2:], sent)
    info.check_acknowledgement(message(b"ACK"), sent)


def test_what_is_no_acknowledgement_is_refused(info: RegistrationInfo) -> None:
    """Neither a stranger's answer nor the kernel's own message sent back is one."""
    sent = info.registration(replace(info.wanted, **PORTS))
    with pytest.raises(SignatureError):
        info.check_acknowledgement(message(b"ACK", b"other"), sent)
    with pytest.raises(MalformedMessageError, match="sent back"):
        info.check_acknowledgement(sent, sent)
    with pytest.raises(MalformedMessageError):
        info.check_acknowledgement([b"ACK"], sent)


def test_without_a_key_nothing_is_signed() -> None:
    """As everywhere in the protocol, an empty key means empty signatures."""
    info = RegistrationInfo.from_dict({**DOCUMENTED, "key": ""})
    sent = info.registration(replace(info.wanted, **PORTS))
    assert sent[1] == b""
    assert info.read_registration(sent).hb_port == 1005
    info.check_acknowledgement(info.acknowledgement(sent), sent)
