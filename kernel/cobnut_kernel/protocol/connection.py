"""What a connection file says: where a kernel's five sockets are, and the key that signs their messages."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.messages import Channel

SIGNATURE_SCHEME = "hmac-sha256"
"""The one scheme we sign with, and the only one in use."""

SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""How long the path of a unix socket may be: the system's `sun_path` without its closing zero."""

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
"""The fields of the ports, in the order of a connection file."""

_CURVE_KEYS = ("curve_publickey", "curve_secretkey")
_KNOWN = frozenset((*PORT_NAMES, *_CURVE_KEYS, "transport", "ip", "key", "signature_scheme", "kernel_name"))
_CURVE_KEY = rb"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"


@dataclass(frozen=True)
class ConnectionInfo:
    """The content of a connection file.

    With `tcp`, `ip` is an address and a port is a port; a port of 0 asks the kernel to choose. With `ipc`, `ip` is
    the common beginning of five socket paths and a port is the number at their end. `extra` keeps the fields that
    we do not know. With a pair of CURVE keys (Z85, 40 characters each; the kernel's own) the sockets are encrypted;
    nothing else keeps strangers off them, so the public one is a secret too. The keys, and what may hold others,
    are left out of the `repr`.

    Source: "Connection files" in the Jupyter messaging specification's kernel section; JEP 145 for the CURVE keys.
    """

    transport: str
    ip: str
    shell_port: int = 0
    iopub_port: int = 0
    stdin_port: int = 0
    control_port: int = 0
    hb_port: int = 0
    key: bytes = field(default=b"", repr=False)
    signature_scheme: str = SIGNATURE_SCHEME
    kernel_name: str = ""
    curve_publickey: bytes = field(default=b"", repr=False)
    curve_secretkey: bytes = field(default=b"", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False, hash=False)

    def __post_init__(self) -> None:
        """Refuse what no socket, or no connection file, could use.

        Raises:
            ConnectionFileError: an unknown transport or scheme, no address, a port out of range, a socket path that
                is too long for the system, a key that is no UTF-8, or CURVE keys that are no pair.
        """
        if self.transport not in ("tcp", "ipc"):
            raise ConnectionFileError(f"The transport must be 'tcp' or 'ipc', not {self.transport!r}.")
        if self.signature_scheme != SIGNATURE_SCHEME:
            raise ConnectionFileError(
                f"Messages signed by {self.signature_scheme!r} are not supported: use {SIGNATURE_SCHEME!r}."
            )
        for name in PORT_NAMES:
            if not 0 <= getattr(self, name) <= 65535:
                raise ConnectionFileError(f"The {name} must lie between 0 and 65535.")
        self._check_key()
        self._check_curve_keys()
        self._check_address()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ConnectionInfo:
        """Read the dict that a connection file holds; ports may be text, as the handshake pattern sends them (JEP 66).

        Raises:
            ConnectionFileError: it is no dict, or a field is missing, of the wrong type or of no use.
        """
        if not isinstance(fields, Mapping):
            raise ConnectionFileError(f"The connection is no JSON object, but of type {type(fields).__name__}.")
        return cls(
            transport=text_field(fields, "transport", "tcp"),
            ip=text_field(fields, "ip"),
            **{name: port_field(fields, name) for name in PORT_NAMES},
            key=_key(fields, "key"),
            signature_scheme=text_field(fields, "signature_scheme", SIGNATURE_SCHEME),
            kernel_name=text_field(fields, "kernel_name", ""),
            curve_publickey=_key(fields, "curve_publickey"),
            curve_secretkey=_key(fields, "curve_secretkey"),
            extra={name: value for name, value in fields.items() if name not in _KNOWN},
        )

    def as_dict(self) -> dict[str, Any]:
        """Write the dict that a connection file holds; the keys as text."""
        return {
            **self.extra,
            **{name: getattr(self, name) for name in PORT_NAMES},
            "ip": self.ip,
            "key": self.key.decode(),
            "transport": self.transport,
            "signature_scheme": self.signature_scheme,
            "kernel_name": self.kernel_name,
            **({name: getattr(self, name).decode() for name in _CURVE_KEYS} if self.is_encrypted else {}),
        }

    @property
    def is_encrypted(self) -> bool:
        """Whether the sockets are encrypted by CURVE: the kernel's as servers, with its pair of keys."""
        return bool(self.curve_secretkey)

    def port(self, channel: Channel) -> int:
        """Name a channel's port, or its number at the end of the ipc path."""
        return getattr(self, f"{channel}_port")

    def url(self, channel: Channel) -> str:
        """Name a channel's zmq endpoint; with tcp, port 0 becomes a wildcard that `bind` resolves.

        Raises:
            ConnectionFileError: port 0 with ipc: no socket file is meant.
        """
        port = self.port(channel)
        if self.transport == "ipc" and not port:
            raise ConnectionFileError(f"With ipc the {channel}_port must be chosen before: give a number from 1.")
        return endpoint(self.transport, self.ip, port)

    def ipc_paths(self) -> list[str]:
        """List the socket files, one per channel; none with tcp, nor where the port is 0."""
        if self.transport == "tcp":
            return []
        return [f"{self.ip}-{port}" for port in map(self.port, Channel) if port]

    def _check_key(self) -> None:
        try:
            self.key.decode()
        except UnicodeDecodeError as error:
            raise ConnectionFileError(
                "The key is no UTF-8, and a connection file holds text: make one by `secrets.token_hex().encode()`."
            ) from error

    def _check_curve_keys(self) -> None:
        keys: dict[str, bytes] = {name: getattr(self, name) for name in _CURVE_KEYS}
        missing = [name for name, key in keys.items() if not key]
        if len(missing) == 1:
            raise ConnectionFileError(
                f"The connection has no {missing[0]!r} beside its other CURVE key: give both, or none."
            )
        for name, key in keys.items():
            if key and not re.fullmatch(_CURVE_KEY, key):
                raise ConnectionFileError(
                    f"The {name!r} of the connection is no CURVE key: it must have 40 characters of Z85, as"
                    " `zmq.curve_keypair()` makes them."
                )

    def _check_address(self) -> None:
        if not self.ip or "\0" in self.ip:
            raise ConnectionFileError("The connection names no usable 'ip': give an address, or a path for ipc.")
        try:
            longest = max(len(path.encode()) for path in [self.ip, *self.ipc_paths()])
        except UnicodeEncodeError as error:
            raise ConnectionFileError(f"The 'ip' {self.ip!r} is no UTF-8: choose another address or path.") from error
        if self.transport == "ipc" and longest > SOCKET_PATH_BYTES:
            raise ConnectionFileError(
                f"The socket path {self.ip!r} and its number have {longest} bytes; this system takes"
                f" {SOCKET_PATH_BYTES}: choose a shorter directory."
            )


def endpoint(transport: str, ip: str, port: int) -> str:
    """Name the zmq endpoint of an address; with tcp, port 0 becomes a wildcard that `bind` resolves."""
    if transport == "ipc":
        return f"ipc://{ip}-{port}"
    host = f"[{ip}]" if ":" in ip and not ip.startswith("[") else ip
    return f"tcp://{host}:{port or '*'}"


def text_field(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Read a text from the dict of a file; the default where it is missing or empty.

    Raises:
        ConnectionFileError: it is no text, or missing and there is no default.
    """
    value = fields.get(name)
    if value is None and default is None:
        raise ConnectionFileError(f"The connection names no {name!r}.")
    if value is None or value == "":
        return default or ""
    if not isinstance(value, str):
        raise ConnectionFileError(f"The {name!r} of the connection must be text, not {type(value).__name__}.")
    return value


def port_field(fields: Mapping[str, Any], name: str) -> int:
    """Read a port from the dict of a file; it may be text.

    Raises:
        ConnectionFileError: it is missing, or no whole number.
    """
    value = fields.get(name)
    if value is None:
        raise ConnectionFileError(f"The connection names no {name!r}.")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        return int(value)
    given = repr(value[:20]) if isinstance(value, str) else type(value).__name__
    raise ConnectionFileError(f"The {name!r} of the connection must be a whole number, not {given}.")


def _key(fields: Mapping[str, Any], name: str) -> bytes:
    value = fields.get(name)
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ConnectionFileError(f"The {name!r} of the connection must be text, not {type(value).__name__}.")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ConnectionFileError(f"The {name!r} of the connection has lone surrogates: it cannot be used.") from error
