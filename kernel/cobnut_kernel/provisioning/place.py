"""The place where a local kernel is reached: its sockets or ports, and the file that tells it of them."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from cobnut_kernel.errors import KernelDiedError, KernelStartError
from cobnut_kernel.kernelspec import registers
from cobnut_kernel.protocol.connection import PORT_NAMES, ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.provisioning.encryption import Encryption, with_keys
from cobnut_kernel.provisioning.files import is_private, own_folder, remove, write_file
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.placement import (
    LOCALHOST,
    Wishes,
    decide_transport,
    needs_short_paths,
)
from cobnut_kernel.provisioning.ports import Ports, require_own_address
from cobnut_kernel.provisioning.process import signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cobnut_kernel.kernelspec import KernelSpec
    from cobnut_kernel.provisioning.base import KernelConnectionInfo
    from cobnut_kernel.provisioning.process import KernelProcess
    from cobnut_kernel.provisioning.registration import RegistrationDesk

_PREFIXES = count(1)


@dataclass(frozen=True)
class PlaceRequest:
    """What a launch asks of a place.

    Attributes:
        kernel_id: of the kernel.
        spec: of the kernel.
        wishes: of its manager's user.
        transport: what the provisioner is set to: "auto", "ipc" or "tcp".
        encryption: what is to be encrypted.
        extra: more fields for the connection file.
        independent: whether the kernel outlives us.
        is_proven: whether it has answered on unix sockets before.
        leaves_sockets: whether it has not answered on those that it has.
        holds_ports: whether its ports are to be kept bound; a kernel that does not reuse addresses needs them free.
    """

    kernel_id: str
    spec: KernelSpec
    wishes: Wishes
    transport: str = "auto"
    encryption: Encryption = Encryption.DISABLED
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    independent: bool = False
    is_proven: bool = False
    leaves_sockets: bool = False
    holds_ports: bool = True


class LocalPlace:
    """The place of one kernel, from its first launch to its last end.

    Attributes:
        connection_file: where the kernel reads its connection.
    """

    def __init__(self) -> None:
        self.connection_file: Path | None = None
        self._ports = Ports()
        self._desk: RegistrationDesk | None = None
        self._short_folder: str = ""

    @property
    def awaits_registration(self) -> bool:
        """Whether the kernel chooses its ports itself, and has not told them yet."""
        return self._desk is not None

    def take(self, request: PlaceRequest, known: KernelConnectionInfo) -> KernelConnectionInfo:
        """Decide where the kernel is reached, and write its connection file.

        Args:
            request: what it is to be like.
            known: the connection of the launch before; it is used again if it can be had again.

        Returns:
            The connection; `known` where the kernel will tell: `registration`.

        Raises:
            KernelStartError: what is asked for cannot be, or the connection file cannot be written.
            ConnectionFileError: there is no private place for the connection file.
        """
        path = self._path(request)
        info = with_keys(self._again(request, known) or self._choose(request, path), request.encryption)
        private = not request.wishes.connection_file and not request.independent
        if info.shell_port:
            write_file(path, info, private=private)
        else:
            # Imported here: with unix sockets, the rule, nothing is chosen.
            from cobnut_kernel.provisioning.registration import RegistrationDesk

            self._desk = RegistrationDesk(request.kernel_id, info, path)
            write_file(path, self._desk.info, private=private)
        self.connection_file = path
        return _fields(info) if info.shell_port else known

    async def registration(self, process: KernelProcess, timeout: float) -> KernelConnectionInfo:
        """Wait until the kernel has told where it listens; one that does not is killed.

        Args:
            process: the kernel's.
            timeout: how many seconds it may take.

        Raises:
            KernelStartError: it has not told in time.
            KernelDiedError: it has ended before.
        """
        desk = self._desk
        assert desk is not None
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({desk.registered, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            process.kill()
            raise
        finally:
            ended.cancel()
            self._close_desk()
        if desk.registered.cancelled():
            process.kill()
            raise _unregistered(desk, process, timeout)
        info = desk.registered.result()
        self._ports.note([info.port(channel) for channel in Channel])
        return _fields(info)

    def files(self, known: KernelConnectionInfo) -> list[str]:
        """Return all that is in the file system of a connection, folders after what is in them."""
        sockets = ConnectionInfo.from_dict(known).ipc_paths() if known else []
        return [*sockets, *filter(None, (str(self.connection_file or ""), self._short_folder))]

    def leave(self, known: KernelConnectionInfo, *, restart: bool = False) -> None:
        """Remove the sockets and, unless a launch follows, all the rest; give the ports back."""
        self._close_desk()
        kept = (str(self.connection_file), self._short_folder) if restart else ()
        remove(path for path in self.files(known) if path not in kept)
        if not restart:
            self.give_ports_back()

    def give_ports_back(self) -> None:
        """Hold no ports any more."""
        self._ports.give_back()

    def _close_desk(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    # ── where ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _path(self, request: PlaceRequest) -> Path:
        """Return where the connection file is, or will be."""
        known = self.connection_file
        if known is not None and known.parent.is_dir():
            return known
        if request.wishes.connection_file:
            return Path(request.wishes.connection_file).expanduser().absolute()
        if request.independent:
            from jupyter_core.paths import jupyter_runtime_dir

            return Path(jupyter_runtime_dir()) / f"kernel-{request.kernel_id}.json"
        Guard.shared()  # from here on there are files for it to remove at the end
        return own_folder() / f"kernel-{request.kernel_id}.json"

    def _again(self, request: PlaceRequest, known: KernelConnectionInfo) -> ConnectionInfo | None:
        """Return the connection of the launch before; None where there was none, or it cannot be had again."""
        if not known:
            return None
        info = ConnectionInfo.from_dict(known)
        if info.transport == "ipc":
            return info if Path(info.ip).parent.is_dir() and not request.leaves_sockets else None
        if not self._ports.are_held and request.wishes.remembers_ports:
            with suppress(KernelStartError):
                self._ports.find(info.ip, [info.port(channel) for channel in Channel])
                return info
            return None
        return info

    def _choose(self, request: PlaceRequest, path: Path) -> ConnectionInfo:
        """Choose a connection; ports of 0 are the kernel's to choose."""
        wishes = request.wishes
        fields: dict[str, Any] = {
            "key": wishes.key or os.urandom(32).hex().encode(),
            "kernel_name": request.spec.name,
            "extra": request.extra,
        }
        prefix = self._prefix(request, path)
        if decide_transport(request.spec, wishes, request.transport, prefix, is_proven=request.is_proven) == "ipc":
            others = (number for number in count(1) if number not in wishes.ports)
            return _connection("ipc", prefix, [port or next(others) for port in wishes.ports], fields)
        ip = wishes.ip or LOCALHOST
        require_own_address(ip)
        if _chooses_ports(request, path):
            return _connection("tcp", ip, [], fields)
        ports = self._ports.find(ip, wishes.ports, hold=wishes.remembers_ports and request.holds_ports)
        return _connection("tcp", ip, ports, fields)

    def _prefix(self, request: PlaceRequest, path: Path) -> str:
        """Return the common beginning of the paths of unix sockets."""
        if os.sep in request.wishes.ip:
            return os.path.abspath(request.wishes.ip)  # noqa: PTH100 - a prefix, no path
        if request.independent:
            return str(path.with_name(os.urandom(4).hex()))
        prefix = str(own_folder() / str(next(_PREFIXES)))
        if not needs_short_paths(request.spec, prefix):
            return prefix
        self._short_folder = mkdtemp(prefix="cob-", dir="/tmp")
        return f"{self._short_folder}/1"


def _chooses_ports(request: PlaceRequest, path: Path) -> bool:
    """Say whether the kernel chooses its ports and tells them: then it writes the file, which must be private."""
    return registers(request.spec) and not any(request.wishes.ports) and is_private(path.parent)


def _connection(transport: str, ip: str, ports: Iterable[int], fields: Mapping[str, Any]) -> ConnectionInfo:
    return ConnectionInfo(transport, ip, **dict(zip(PORT_NAMES, ports, strict=False)), **fields)


def _fields(info: ConnectionInfo) -> KernelConnectionInfo:
    return {**info.as_dict(), "key": info.key}


def _unregistered(desk: RegistrationDesk, process: KernelProcess, timeout: float) -> KernelStartError | KernelDiedError:
    """Say why a kernel has not told where it listens, and show its last words."""
    words = f"\n{process.errors.text().strip()}" if process.errors.text().strip() else ""
    refused = f" What came was refused: {desk.refused}" if desk.refused else ""
    code = process.poll()
    if code is None:
        return KernelStartError(
            f"The kernel did not tell where it listens within {timeout:g} seconds, and was killed.{refused}{words}"
        )
    end = f"exit code {code}" if code >= 0 else f"killed by {signal_name(-code)}"
    return KernelDiedError(f"The kernel's process ended before it told where it listens: {end}.{refused}{words}")
