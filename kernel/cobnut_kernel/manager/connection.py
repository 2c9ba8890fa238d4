"""The connection of a manager's kernel: settings before a launch, the truth after it, and the file that tells it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from traitlets import Any as AnyTrait
from traitlets import Bytes, CaselessStrEnum, Integer, Type, Unicode, default, validate
from traitlets.config import LoggingConfigurable

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zmq

    from cobnut_kernel.client.blocking import BlockingKernelClient

PORT_NAMES = ("shell_port", "stdin_port", "iopub_port", "hb_port", "control_port")
"""The traits of the five ports, in the field's order."""

LOCALHOST = "127.0.0.1"
"""Where ports are, if nobody says otherwise."""

LINGER = 1000
"""How long a closed socket keeps what is not sent, in milliseconds: without a limit the process would not end."""

_CURVE_NAMES = ("curve_publickey", "curve_secretkey")


class Choices:
    """What was chosen for a kernel where its user gave nothing; both colours of a manager share it.

    Attributes:
        made: by the name of the setting, what was given and what was chosen in its place.
        file_is_ours: whether the manager wrote the connection file, and so removes it.
    """

    def __init__(self) -> None:
        self.made: dict[str, tuple[Any, Any]] = {}
        self.file_is_ours: bool = False


class ConnectionFileMixin(LoggingConfigurable):
    """Where one kernel is reached.

    The traits are wishes before the launch: a port of 0, an empty file name and an empty key leave it to whoever
    launches the kernel. Once it is launched they tell what it came to. The next start begins with the wishes again.

    Names and meanings are those of the documented `ConnectionFileMixin` of jupyter_client. Other than there the
    default transport is "auto": unix sockets for the kernels that are known to take them, or once have because they
    were asked for, ports for all others.
    """

    data_dir = Unicode(help="Jupyter's folder of this user's data.")
    connection_file = Unicode(
        config=True, help="Where the kernel reads its connection; by default in our process's private folder."
    )
    transport = CaselessStrEnum(
        ["auto", "tcp", "ipc"],
        default_value="auto",
        config=True,
        help="How the kernel is reached: ports (tcp), unix sockets (ipc), or what it is known, or has shown, to take.",
    )
    ip = Unicode(
        config=True,
        help="With tcp the address that the kernel listens on, with ipc the common beginning of its sockets' paths."
        " Beware: a kernel on another address than this machine's own can be reached by others.",
    )
    shell_port = Integer(0, min=0, max=65535, config=True, help="The port of shell; 0 for any.")
    iopub_port = Integer(0, min=0, max=65535, config=True, help="The port of iopub; 0 for any.")
    stdin_port = Integer(0, min=0, max=65535, config=True, help="The port of stdin; 0 for any.")
    control_port = Integer(0, min=0, max=65535, config=True, help="The port of control; 0 for any.")
    hb_port = Integer(0, min=0, max=65535, config=True, help="The port of the heartbeat; 0 for any.")
    curve_publickey = Bytes(None, allow_none=True, help="The kernel's public CURVE key in Z85; None without.")
    curve_secretkey = Bytes(None, allow_none=True, help="The kernel's secret CURVE key in Z85; None without.")
    kernel_name = Unicode(help="The name of the kernelspec.")
    session = AnyTrait(help="The Session whose key and signature scheme the kernel uses; an empty key for any.")
    context = AnyTrait(help="The zmq context of the sockets that connect_shell and its siblings make.")
    blocking_class = Type(klass=object, help="The class of what `blocking_client` makes.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._choices: Choices = Choices()

    @default("data_dir")
    def _default_data_dir(self) -> str:
        from jupyter_core.paths import jupyter_data_dir

        return jupyter_data_dir()

    @default("ip")
    def _default_ip(self) -> str:
        return "" if self.transport == "ipc" else LOCALHOST

    @default("session")
    def _default_session(self) -> Any:
        from cobnut_kernel.session import Session  # late: with it comes the JSON library

        return Session(parent=self)

    @default("context")
    def _default_context(self) -> Any:
        import zmq  # late: most managers need no socket of this kind

        return cast("Any", zmq.Context).instance()

    @default("blocking_class")
    def _default_blocking_class(self) -> type[BlockingKernelClient]:
        from cobnut_kernel.client.blocking import BlockingKernelClient

        return BlockingKernelClient

    @validate("ip")
    def _every_address(self, proposal: dict[str, Any]) -> str:
        return "0.0.0.0" if proposal["value"] == "*" else proposal["value"]

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ports(self) -> list[int]:
        """The ports of shell, stdin, iopub, heartbeat and control."""
        return [getattr(self, name) for name in PORT_NAMES]

    def loaded_connection(self) -> ConnectionInfo | None:
        """Return the connection that the traits tell; None where ports or key are missing."""
        if not all(self.ports) or not self.session.key:
            return None
        return ConnectionInfo.from_dict(self.get_connection_info())

    def get_connection_info(self, session: bool = False) -> dict[str, Any]:
        """Return where the kernel is reached as the field's dict: the key as bytes, CURVE keys as text.

        Args:
            session: in place of key and scheme, a Session for a party of its own.
        """
        info: dict[str, Any] = {
            "transport": "tcp" if self.transport == "auto" else self.transport,
            "ip": self.ip,
            **{name: getattr(self, name) for name in PORT_NAMES},
        }
        if session:
            info["session"] = self._session_of_another_party()
        else:
            info.update(signature_scheme=self.session.signature_scheme, key=self.session.key)
        public, secret = self.curve_publickey, self.curve_secretkey
        if public and secret:
            info.update(curve_publickey=public.decode(), curve_secretkey=secret.decode())
        return info

    # ── take over ───────────────────────────────────────────────────────────────────────────────────────────────────

    def load_connection_file(self, connection_file: str | None = None) -> None:
        """Take the connection over that a file tells.

        Args:
            connection_file: by default the trait's.

        Raises:
            ConnectionFileError: it is missing, unreadable or incomplete.
        """
        from cobnut_kernel.connection_files import load_connection_file

        self.load_connection_info(load_connection_file(connection_file or self.connection_file).as_dict())

    def load_connection_info(self, info: Mapping[str, Any]) -> None:
        """Take the connection over that a dict tells; ports that were set before stay.

        Raises:
            traitlets.TraitError: a field is of no use.
        """
        self.transport = info.get("transport", self.transport)
        self.ip = info.get("ip") or self._default_ip()
        for name in PORT_NAMES:
            if not getattr(self, name) and name in info:
                setattr(self, name, int(info[name]))
        if "key" in info:
            self.session.key = _as_bytes(info["key"])
        if info.get("signature_scheme"):
            self.session.signature_scheme = info["signature_scheme"]
        if all(info.get(name) for name in _CURVE_NAMES):
            for name in _CURVE_NAMES:
                setattr(self, name, _as_bytes(info[name]))

    def adopt_connection(self, info: ConnectionInfo, connection_file: str = "") -> None:
        """Take note of where the kernel was launched, in place of the wishes, which come back with the next start."""
        self._choose("transport", info.transport)
        self._choose("ip", info.ip)
        for name in PORT_NAMES:
            self._choose(name, getattr(info, name))
        for name in _CURVE_NAMES:
            self._choose(name, getattr(info, name) or None)
        self._choose("key", info.key)
        if connection_file:
            self._choose("connection_file", connection_file)

    def forget_connection(self) -> None:
        """Go back to the wishes: a new launch may choose again. What the user changed meanwhile stays."""
        for name in tuple(self._choices.made):
            self._unchoose(name)

    # ── the file ────────────────────────────────────────────────────────────────────────────────────────────────────

    def write_connection_file(self, **kwargs: Any) -> None:
        """Write the connection file, 0600, and choose what is not settled yet; not again while ours is there.

        Args:
            kwargs: more fields for the file.

        Raises:
            ConnectionFileError: the settings are of no use.
            KernelStartError: there are no ports to be had at the address.
            OSError: it cannot be written.
        """
        if self._choices.file_is_ours and Path(self.connection_file).exists():
            return
        from cobnut_kernel.connection_files import _write_whole

        self._settle()
        info = ConnectionInfo.from_dict({**kwargs, **self.get_connection_info(), "kernel_name": self.kernel_name})
        path = Path(self.connection_file)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_whole(path, json.dumps(info.as_dict(), indent=1).encode())
        self._choices.file_is_ours = True

    def cleanup_connection_file(self) -> None:
        """Remove the connection file if we wrote it."""
        if self._choices.file_is_ours:
            self._choices.file_is_ours = False
            with suppress(OSError):
                Path(self.connection_file).unlink()

    def cleanup_ipc_files(self) -> None:
        """Remove the kernel's unix sockets; nothing happens with ports."""
        if self.transport == "ipc" and self.ip:
            for port in filter(None, self.ports):
                with suppress(OSError):
                    Path(f"{self.ip}-{port}").unlink()

    def cleanup_random_ports(self) -> None:
        """Forget the ports that nobody asked for, and remove the connection file that names them."""
        chosen = [name for name in PORT_NAMES if name in self._choices.made]
        if self.transport == "tcp" and chosen:
            self.cleanup_connection_file()
            for name in chosen:
                self._unchoose(name)

    # ── sockets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def connect_shell(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket that is connected to shell; who asked for it closes it."""
        return self._connected_socket(Channel.SHELL, "DEALER", identity)

    def connect_iopub(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a SUB socket that is connected to iopub, and subscribed; who asked for it closes it."""
        connected = self._connected_socket(Channel.IOPUB, "SUB", identity)
        connected.subscribe(b"")
        return connected

    def connect_stdin(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket that is connected to stdin; who asked for it closes it."""
        return self._connected_socket(Channel.STDIN, "DEALER", identity)

    def connect_control(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a DEALER socket that is connected to control; who asked for it closes it."""
        return self._connected_socket(Channel.CONTROL, "DEALER", identity)

    def connect_hb(self, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a REQ socket that is connected to the heartbeat; who asked for it closes it."""
        return self._connected_socket(Channel.HEARTBEAT, "REQ", identity)

    def _connected_socket(self, channel: Channel, kind: str, identity: bytes | None) -> zmq.Socket[bytes]:
        import zmq

        info = ConnectionInfo.from_dict(self.get_connection_info())
        if not info.port(channel):
            raise ConnectionFileError(f"The kernel's {channel} is not known yet: start it, or load its connection.")
        made = self.context.socket(getattr(zmq, kind))
        made.linger = LINGER
        if identity:
            made.setsockopt(zmq.IDENTITY, identity)
        if info.is_encrypted:  # the kernel takes whoever has its own pair: it came with the file
            made.curve_publickey = made.curve_serverkey = info.curve_publickey
            made.curve_secretkey = info.curve_secretkey
        made.connect(info.url(channel))
        return made

    # ── choices ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _choose(self, name: str, value: Any) -> None:
        """Set a setting for now, and remember what was given."""
        current = self._setting(name)
        given, chosen = self._choices.made.get(name, (current, current))
        if current != value or name in self._choices.made:
            self._choices.made[name] = (given if current == chosen else current, value)
        self._set(name, value)

    def _unchoose(self, name: str) -> None:
        given, chosen = self._choices.made.pop(name)
        if self._setting(name) == chosen:
            self._set(name, given)

    def _setting(self, name: str) -> Any:
        return self.session.key if name == "key" else getattr(self, name)

    def _set(self, name: str, value: Any) -> None:
        if name == "key":
            self.session.key = value
        else:
            setattr(self, name, value)

    def _settle(self) -> None:
        """Choose what a connection file must tell and nobody gave."""
        if self.transport == "auto":
            self._choose("transport", "tcp")
        if not self.session.key:
            self._choose("key", os.urandom(32).hex().encode())
        if not self.connection_file:
            self._choose("connection_file", _private_path())
        if not self.ip:
            self._choose("ip", f"{os.path.splitext(self.connection_file)[0]}-ipc")  # noqa: PTH122 - a prefix, no path
        missing = [name for name in PORT_NAMES if not getattr(self, name)]
        ports = _free_ports(self.ip, len(missing)) if self.transport == "tcp" else _free_numbers(self.ip, self.ports)
        for name, port in zip(missing, ports, strict=False):
            self._choose(name, port)

    def _session_of_another_party(self) -> Any:
        """Make a Session with our key and another id: who has the same id gets the other's replies."""
        from cobnut_kernel.session import Session

        ours = self.session
        return Session(key=ours.key, username=ours.username, signature_scheme=ours.signature_scheme)


def _as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _private_path() -> str:
    from cobnut_kernel.connection_files import OwnerDirectory
    from cobnut_kernel.provisioning.guard import Guard

    Guard.shared()  # it removes the folder when this process ends
    return str(OwnerDirectory.shared().path / f"kernel-{os.urandom(8).hex()}.json")


def _free_ports(ip: str, number: int) -> list[int]:
    """Find ports of an address that nobody listens on, and that no kernel of ours was promised."""
    from cobnut_kernel.provisioning.ports import Ports

    found = Ports()
    try:
        return found.find(ip, [0] * number, hold=False)
    finally:
        found.give_back()


def _free_numbers(prefix: str, taken: list[int]) -> list[int]:
    """Find the ends of socket paths that are not there."""
    numbers = (number for number in count(1) if number not in taken and not Path(f"{prefix}-{number}").exists())
    return [next(numbers) for _ in PORT_NAMES]
