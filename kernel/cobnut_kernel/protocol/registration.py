"""The handshake by which a kernel tells its launcher where it listens (JEP 66): the file, and the two messages.

A launcher that does not choose a kernel's ports gives it a registration file in place of a connection file. The
kernel binds what it likes and sends a message that names its ports; the launcher acknowledges it. Both are signed,
and shorter than a Jupyter message: `[*identities, b"<IDS|MSG>", signature, content]`.

Source: "Registration file format" and "Kernel startup handshake" in the Jupyter messaging specification.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cobnut_kernel.errors import ConnectionFileError, MalformedMessageError, SignatureError
from cobnut_kernel.protocol.codec import DELIMITER
from cobnut_kernel.protocol.connection import ConnectionInfo, endpoint, port_field, text_field
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OWN = frozenset(("kernel_id", "registration_ip", "registration_port", "connection_file"))
_PORTS = tuple(f"{channel}_port" for channel in Channel)
_ACKNOWLEDGED = dumps({"status": "ok"})


@dataclass(frozen=True)
class RegistrationInfo:
    """The content of a registration file.

    Besides the documented fields it may hold those of a connection file: `ip` and ports are what the launcher wants
    (port 0, or none: the kernel chooses), what is left is for the file that the kernel will write.

    Attributes:
        kernel_id: by which the launcher knows the kernel.
        ip: where the launcher listens: an address, or for ipc the beginning of a path.
        port: of the launcher; for ipc the number at the path's end.
        wanted: the connection, as far as it is decided, with transport, key and scheme.
        connection_file: where the kernel shall write its connection; empty where that is not said.
    """

    kernel_id: str
    ip: str
    port: int
    wanted: ConnectionInfo
    connection_file: str = ""

    def __post_init__(self) -> None:
        """Refuse what leads nowhere.

        Raises:
            ConnectionFileError: an address that is none, or an id that could not be part of a file's name.
        """
        if not self.ip or not 0 < self.port <= 65535:
            raise ConnectionFileError(
                "The registration needs a registration_ip, and a registration_port from 1 to 65535."
            )
        if not self.kernel_id or {"/", "\0"} & set(self.kernel_id):
            raise ConnectionFileError(
                f"The kernel_id {self.kernel_id[:80]!r} of the registration cannot be part of a file's name."
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RegistrationInfo:
        """Read the dict that a registration file holds.

        Raises:
            ConnectionFileError: a field is missing, of the wrong type or of no use.
        """
        kernel_id, ip = text_field(fields, "kernel_id"), text_field(fields, "registration_ip")
        port, file = port_field(fields, "registration_port"), text_field(fields, "connection_file", "")
        return cls(kernel_id, ip, port, _wanted(fields, ip, kernel_id), file)

    def as_dict(self) -> dict[str, Any]:
        """Write the dict that a registration file holds."""
        return {
            **self.wanted.as_dict(),
            "kernel_id": self.kernel_id,
            "registration_ip": self.ip,
            "registration_port": self.port,
            **({"connection_file": self.connection_file} if self.connection_file else {}),
        }

    @property
    def url(self) -> str:
        """The zmq endpoint of the launcher."""
        return endpoint(self.wanted.transport, self.ip, self.port)

    # ── the two messages ────────────────────────────────────────────────────────────────────────────────────────────

    def registration(self, connection: ConnectionInfo) -> list[bytes]:
        """Write the kernel's message: its id and its ports, which the specification has as text."""
        ports = {name: str(getattr(connection, name)) for name in _PORTS}
        return self._signed(dumps({"kernel_id": self.kernel_id, **ports}))

    def read_registration(self, frames: Sequence[bytes]) -> ConnectionInfo:
        """Read the kernel's message: the connection that was wanted, with the ports that it names.

        Raises:
            MalformedMessageError: it is no registration, or one that is of no use.
            SignatureError: it was not signed with the key of the file.
        """
        try:
            fields = loads(self._checked(frames))
            if fields["kernel_id"] != self.kernel_id:
                raise MalformedMessageError(f"The registration is that of another kernel, {fields['kernel_id']!r}.")
            told = ConnectionInfo.from_dict({"ip": self.wanted.ip, **{name: fields[name] for name in _PORTS}})
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedMessageError(f"The registration names no ports: {error}") from error
        ports = {name: getattr(told, name) for name in _PORTS}
        if not all(ports.values()):
            raise MalformedMessageError("The registration names the port 0: the kernel must bind before it registers.")
        return replace(self.wanted, **ports)

    def acknowledgement(self, registration: Sequence[bytes]) -> list[bytes]:
        """Write the launcher's answer to a kernel's message, with the identities of who sent it."""
        return [*registration[: registration.index(DELIMITER)], *self._signed(_ACKNOWLEDGED)]

    def check_acknowledgement(self, frames: Sequence[bytes], registration: Sequence[bytes]) -> None:
        """Check that the launcher has answered; what it says is its own affair.

        Args:
            frames: what came.
            registration: what was sent; it is signed too, and no answer to itself.

        Raises:
            MalformedMessageError: it is no answer.
            SignatureError: it was not signed with the key of the file.
        """
        if self._checked(frames) == registration[-1]:
            raise MalformedMessageError("The answer is the kernel's own registration, sent back.")

    def _signed(self, content: bytes) -> list[bytes]:
        return [DELIMITER, self._signature(content), content]

    def _checked(self, frames: Sequence[bytes]) -> bytes:
        if len(frames) < 3 or frames[-3] != DELIMITER:
            raise MalformedMessageError("The frames are no <IDS|MSG>, signature and content: this is no registration.")
        if not hmac.compare_digest(frames[-2], self._signature(frames[-1])):
            raise SignatureError("The message was not signed with the key of the registration file.")
        return frames[-1]

    def _signature(self, content: bytes) -> bytes:
        key = self.wanted.key
        return hmac.new(key, content, sha256).hexdigest().encode() if key else b""


def _wanted(fields: Mapping[str, Any], ip: str, kernel_id: str) -> ConnectionInfo:
    """Read what the launcher wants; by default on its own address, which is this machine's, or beside its socket."""
    is_ipc = fields.get("transport") == "ipc"
    ports = {name: fields.get(name) or (number if is_ipc else 0) for number, name in enumerate(_PORTS, 1)}
    known = {name: value for name, value in fields.items() if name not in _OWN}
    default = f"{ip}-{kernel_id}" if is_ipc else ip
    return ConnectionInfo.from_dict({**known, **ports, "ip": fields.get("ip") or default})
