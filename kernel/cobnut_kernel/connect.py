"""The field's connection-file functions by their documented names and parameters, over ours."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.connection_files import find_connection_file as _find
from cobnut_kernel.connection_files import load_connection_file, write_anywhere
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.tunnel import Tunnel, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_tunnels: list[Tunnel] = []


def write_connection_file(  # noqa: PLR0913, PLR0917 - documented so
    fname: str | None = None,
    shell_port: int = 0,
    iopub_port: int = 0,
    stdin_port: int = 0,
    hb_port: int = 0,
    control_port: int = 0,
    ip: str = "",
    key: bytes = b"",
    transport: str = "tcp",
    signature_scheme: str = "hmac-sha256",
    kernel_name: str = "",
    **kwargs: Any,
) -> tuple[str, dict[str, Any]]:
    """Write a connection file that only its owner can read (0600), whole; return its path and what is in it.

    Args:
        fname: its path; by default a new one in the folder for temporary files.
        shell_port: like the other four, the port of the channel; 0 chooses a free one, or with ipc a number.
        iopub_port: of iopub.
        stdin_port: of stdin.
        hb_port: of the heartbeat.
        control_port: of control.
        ip: the address; with ipc the common beginning of the sockets' paths. By default this machine's own, or the
            path of the file.
        key: signs the messages.
        transport: "tcp" or "ipc".
        signature_scheme: the one there is.
        kernel_name: the name of the kernelspec.
        kwargs: more fields, as `curve_publickey`, `curve_secretkey` and `jupyter_session`.

    Raises:
        ConnectionFileError: a setting is of no use.
        OSError: the file cannot be written.
    """
    path = Path(fname) if fname else _new_file()
    named = dict(zip(Channel, (shell_port, control_port, iopub_port, stdin_port, hb_port), strict=True))
    fields = {
        **{name: value.decode() if isinstance(value, bytes) else value for name, value in kwargs.items()},
        **{f"{channel}_port": port for channel, port in _chosen(named, transport).items()},
        "ip": ip or (f"{path.with_suffix('')}-ipc" if transport == "ipc" else "127.0.0.1"),
        "key": key.decode(),
        "transport": transport,
        "signature_scheme": signature_scheme,
        "kernel_name": kernel_name,
    }
    info = ConnectionInfo.from_dict(fields)
    write_anywhere(path, info)
    return str(path), info.as_dict()


def find_connection_file(
    filename: str = "kernel-*.json", path: str | Iterable[str] | None = None, profile: str | None = None
) -> str:
    """Find a connection file by its path, its name, a glob, or a part of its name; the one used last if several.

    Args:
        filename: what to look for.
        path: a folder, or folders, to look in; by default here, ours, and Jupyter's runtime folder.
        profile: is not used any more.

    Raises:
        ConnectionFileError: there is none.
    """
    return str(_find(filename, path))


def tunnel_to_kernel(
    connection_info: str | os.PathLike[str] | Mapping[str, Any], sshserver: str, sshkey: str | None = None
) -> tuple[int, int, int, int, int]:
    """Lead five ports of this machine to a kernel by ssh, until this process ends.

    Args:
        connection_info: where the kernel is, seen from the server; or a connection file here that says so.
        sshserver: `user@host:port`, or a name of ssh's configuration.
        sshkey: a file with the key to use, where the configuration names none.

    Returns:
        The local ports of shell, iopub, stdin, heartbeat and control.

    Raises:
        TunnelError: ssh could not do it; the text has its own words.
        ConnectionFileError: the connection is of no use.
    """
    if isinstance(connection_info, (str, os.PathLike)):
        info = load_connection_file(connection_info)
    else:
        info = ConnectionInfo.from_dict(connection_info)
    options = ["-i", os.fspath(sshkey)] if sshkey else []

    async def open_tunnel() -> Tunnel:
        return await Tunnel.open(sshserver, info, transport="tcp", options=options)

    tunnel = Portal.shared().call(open_tunnel)
    _tunnels.append(tunnel)  # its process would end with it
    local = tunnel.connection_info
    return local.shell_port, local.iopub_port, local.stdin_port, local.hb_port, local.control_port


def _new_file() -> Path:
    descriptor, name = tempfile.mkstemp(suffix=".json")
    os.close(descriptor)
    return Path(name)


def _chosen(ports: Mapping[Channel, int], transport: str) -> dict[Channel, int]:
    """Choose the ports that are 0."""
    free = iter(free_ports(5) if transport == "tcp" else [n for n in range(1, 11) if n not in ports.values()])
    return {channel: port or next(free) for channel, port in ports.items()}
