"""Where a kernel is reached, as far as that is a decision: by its user's wishes, its kernelspec, and what fits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from cobnut_kernel.connection_files import SOCKET_PATH_LIMIT
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.protocol.connection import PORT_NAMES

if TYPE_CHECKING:
    from cobnut_kernel.kernelspec import KernelSpec

LOCALHOST = "127.0.0.1"

IPC_KERNELS = ("cobnut_kernel", "ipykernel", "xpython")
"""What the command of a Python kernel names if it can listen on unix sockets."""


SHORT_PATHS = {"xpython": 23}
"""How long the common beginning of the paths may be for kernels that take less than the system: in bytes."""


class Wishes(NamedTuple):
    """What the user of a manager has set about the connection of its kernel; what is empty is ours to choose.

    Attributes:
        transport: "tcp", "ipc" or "auto".
        ip: an address, or with ipc the common beginning of the sockets' paths.
        ports: shell, iopub, stdin, control, heartbeat; 0 for any.
        key: signs the messages.
        connection_file: where the kernel reads its connection.
        remembers_ports: whether ports are kept for the kernel when it does not run.
    """

    transport: str = "auto"
    ip: str = ""
    ports: tuple[int, ...] = (0, 0, 0, 0, 0)
    key: bytes = b""
    connection_file: str = ""
    remembers_ports: bool = True

    @classmethod
    def of(cls, manager: object) -> Self:
        """Read them from the traits of a manager, as far as it has them."""
        session = getattr(manager, "session", None)
        ip = str(getattr(manager, "ip", None) or "")
        return cls(
            str(getattr(manager, "transport", None) or "auto"),
            {"localhost": LOCALHOST, "*": "0.0.0.0"}.get(ip, ip),
            tuple(int(getattr(manager, name, None) or 0) for name in PORT_NAMES),
            bytes(getattr(session, "key", None) or b""),
            str(getattr(manager, "connection_file", None) or ""),
            bool(getattr(manager, "cache_ports", True)),
        )

    @property
    def are_about_ports(self) -> bool:
        """Whether somebody who says nothing of the transport means ports all the same."""
        return any(self.ports) or self.ip not in ("", LOCALHOST)


def decide_transport(spec: KernelSpec, wishes: Wishes, setting: str, prefix: str, *, is_proven: bool = False) -> str:
    """Decide between "ipc" and "tcp".

    Args:
        spec: of the kernel.
        wishes: of the manager's user.
        setting: of the provisioner.
        prefix: where the sockets would be.
        is_proven: whether the kernel has answered on unix sockets before.

    Raises:
        KernelStartError: ipc is asked for, and the paths of the sockets would be too long.
    """
    fits = len(os.fsencode(f"{prefix}-5")) <= SOCKET_PATH_LIMIT
    asked = asked_transport(spec, wishes, setting)
    if asked == "ipc" and not fits:
        raise KernelStartError(f"The path {prefix}-5 is too long for a socket: set TMPDIR to a shorter one.")
    if asked != "auto":
        return asked
    can = is_proven or is_known_to_take_ipc(spec)
    return "ipc" if can and fits and not wishes.are_about_ports else "tcp"


def asked_transport(spec: KernelSpec, wishes: Wishes, setting: str) -> str:
    """Return the transport that somebody asks for: the manager's user, the provisioner's, the kernelspec; or "auto"."""
    asked = (wishes.transport, setting, declared_transport(spec))
    return next((each for each in asked if each != "auto"), "auto")


def needs_short_paths(spec: KernelSpec, prefix: str) -> bool:
    """Say whether the kernel is one that cannot take paths as long as these."""
    limits = (limit for name, limit in SHORT_PATHS.items() if any(name in part for part in spec.argv))
    return len(os.fsencode(prefix)) > min(limits, default=SOCKET_PATH_LIMIT)


def declared_transport(spec: KernelSpec) -> str:
    """Read which transport a kernelspec asks for in `metadata.cobnut.transport`; "auto" where it asks for none."""
    own: Any = spec.metadata.get("cobnut")
    asked: object = cast("dict[str, object]", own).get("transport") if isinstance(own, dict) else None
    return asked if isinstance(asked, str) and asked in ("ipc", "tcp") else "auto"


def is_known_to_take_ipc(spec: KernelSpec) -> bool:
    """Say whether a kernel is one of those that can listen on unix sockets, by the name of its program."""
    is_python = spec.language.lower() == "python"
    return is_python and any(name in part for part in spec.argv for name in IPC_KERNELS)
