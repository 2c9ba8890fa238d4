"""The user's kernels, whoever started them: found by their connection files, and known by their processes to live.

A connection file stays when its kernel is killed, and its port may be somebody else's by then. So a file counts as
long as a process of the user listens where it says; how old it is proves nothing. Nothing is sent to anybody else.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from shutil import which
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING, Any

from cobnut_kernel.connection_files import default_folders, load_connection_file
from cobnut_kernel.errors import CobnutError, ConnectionFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.protocol.connection import ConnectionInfo

ANSWER_TIME = 0.5
"""Seconds that a kernel may take to show that it is idle."""

AT_ONCE = 20
"""How many kernels are asked at the same time: each takes five descriptors of ours meanwhile."""

_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""

_ACCEPTING = 1 << 16
"""The flag of a listening socket in /proc/net/unix."""


class Activity(StrEnum):
    """What a kernel of somebody else is doing."""

    STARTING = "starting"
    """Its process runs, and does not listen yet."""
    IDLE = "idle"
    BUSY = "busy"
    SILENT = "silent"
    """Not even its heart answers: it was stopped, or hangs."""
    UNKNOWN = "unknown"
    """It was not asked."""


@dataclass(frozen=True)
class LiveKernel:
    """A kernel of the user that lives.

    Attributes:
        connection_file: where it was found.
        connection_info: what is in there.
        pid: the process that listens; None where the system does not tell.
        cwd: the folder that it works in; None where the system does not tell.
        state: what it is doing.
    """

    connection_file: Path
    connection_info: ConnectionInfo
    pid: int | None = None
    cwd: Path | None = None
    state: Activity = Activity.UNKNOWN

    @property
    def kernel_id(self) -> str:
        """The id in the name of its file."""
        return self.connection_file.stem.removeprefix("kernel-")

    @property
    def kernel_name(self) -> str:
        """The name of its kernelspec; empty where the file does not tell."""
        return self.connection_info.kernel_name

    @property
    def title(self) -> str:
        """The notebook that it belongs to, as JupyterLab writes it into the file; else empty."""
        return str(self.connection_info.extra.get("jupyter_session") or "")


# ── for users ───────────────────────────────────────────────────────────────────────────────────────────────────────


def live_kernels(
    folders: Iterable[str | os.PathLike[str]] | None = None, timeout: float = ANSWER_TIME
) -> list[LiveKernel]:
    """List the user's kernels that live, and what each is doing.

    Args:
        folders: where to look for connection files; by default in Jupyter's runtime folder, where JupyterLab, VS Code
            and jupyter console have theirs, and in ours.
        timeout: how many seconds each may take to show that it is idle; all are asked at the same time.
    """
    from cobnut_kernel.portal import Portal

    return Portal.shared().call(ask_kernels, find_kernels(folders), timeout)


def find_kernels(folders: Iterable[str | os.PathLike[str]] | None = None) -> list[LiveKernel]:
    """List the user's kernels that live, by files and processes alone: nothing is sent to them."""
    system = System()
    found = (_living(file, info, system) for file, info in _connections(folders))
    return [kernel for kernel in found if kernel is not None]


def stale_connection_files(folders: Iterable[str | os.PathLike[str]] | None = None) -> list[Path]:
    """List the connection files of this machine whose kernels have ended; they may be somebody else's to remove."""
    system = System()
    return [
        file
        for file, info in _connections(folders)
        if _is_local(info) and _living(file, info, system) is None and system.is_complete
    ]


async def ask_kernels(kernels: Iterable[LiveKernel], timeout: float = ANSWER_TIME) -> list[LiveKernel]:
    """Ask kernels what they are doing, all at the same time; under asyncio or trio."""
    import anyio

    listed = list(kernels)
    states: dict[int, Activity] = {}
    turns = anyio.CapacityLimiter(AT_ONCE)

    async def ask(number: int, kernel: LiveKernel) -> None:
        async with turns:
            states[number] = await _activity(kernel, timeout)

    async with anyio.create_task_group() as tasks:
        for number, kernel in enumerate(listed):
            tasks.start_soon(ask, number, kernel)
    return [replace(kernel, state=states[number]) for number, kernel in enumerate(listed)]


def attach(kernel: LiveKernel | str | os.PathLike[str], **traits: Any) -> AsyncKernelClient:
    """Make a client of a kernel that lives, or of a connection file; its process stays whose it is.

    Raises:
        ConnectionFileError: the file is of no use.
    """
    from cobnut_kernel.client.client import AsyncKernelClient

    file = kernel.connection_file if isinstance(kernel, LiveKernel) else kernel
    return AsyncKernelClient(connection_file=os.fspath(file), **traits)


# ── who lives ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _connections(folders: Iterable[str | os.PathLike[str]] | None) -> Iterator[tuple[Path, ConnectionInfo]]:
    """Read the connection files of the user; what else lies there is none."""
    for folder in default_folders() if folders is None else map(Path, folders):
        for file in sorted(folder.glob("*.json")):
            with suppress(OSError, ConnectionFileError):
                if file.stat().st_uid == os.geteuid():
                    yield file, load_connection_file(file)


def _living(file: Path, info: ConnectionInfo, system: System) -> LiveKernel | None:
    listens, pid = system.listener(info)
    if listens:
        return LiveKernel(file, info, pid, system.folder(pid))
    pid = system.process_of(file)
    return None if pid is None else LiveKernel(file, info, pid, system.folder(pid), Activity.STARTING)


def _is_local(info: ConnectionInfo) -> bool:
    """Say whether a connection is to this machine itself."""
    return info.transport == "ipc" or info.ip in ("localhost", "") or _address(info.ip).is_loopback


def _address(text: str) -> IPv4Address | IPv6Address:
    """Read an address; a name that is not this machine's is nobody's address."""
    try:
        return ip_address({"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(text, text.strip("[]")))
    except ValueError:
        return IPv4Address("255.255.255.255")


@dataclass(frozen=True)
class Listener:
    """A socket of the user that listens on a port."""

    address: IPv4Address | IPv6Address
    inode: int

    def serves(self, ip: str) -> bool:
        """Say whether it is what a connection to an address reaches."""
        address = _address(ip)
        return self.address.is_unspecified or address.is_unspecified or self.address == address


class System:
    """What the system tells of the user's sockets and processes, as it is when it is first asked."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._user = os.geteuid()

    @cached_property
    def is_complete(self) -> bool:
        """Whether it tells enough to say that a kernel has ended."""
        return (self._proc / "net" / "tcp").exists() or which("lsof") is not None

    def listener(self, info: ConnectionInfo) -> tuple[bool, int | None]:
        """Say whether a process of the user listens at a connection's shell, and which, as far as that is told."""
        if info.transport == "ipc":
            return self._unix_listener(Path(f"{info.ip}-{info.shell_port}"))
        if not (self._proc / "net").exists():
            pid = _listener_by_lsof(info.shell_port)
            return pid is not None, pid
        for listener in self._ports.get(info.shell_port, ()):
            if listener.serves(info.ip):
                return True, self._owners.get(listener.inode)
        return False, None

    def process_of(self, file: Path) -> int | None:
        """Find the process that was started with a connection file, not as a client of its kernel."""
        path = os.fsencode(file.resolve())
        for pid, arguments in self._commands.items():
            if path in arguments and b"--existing" not in arguments:
                return pid
        return None

    def folder(self, pid: int | None) -> Path | None:
        """Tell the folder that a process works in."""
        try:
            return None if pid is None else (self._proc / str(pid) / "cwd").readlink()
        except OSError:
            return None

    def _unix_listener(self, path: Path) -> tuple[bool, int | None]:
        try:
            found = path.stat()
        except (OSError, ValueError):
            return False, None
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != self._user:
            return False, None
        if (self._proc / "net").exists():
            inode = self._paths.get(str(path))
            return inode is not None, None if inode is None else self._owners.get(inode)
        return _accepts(path), None

    @cached_property
    def _ports(self) -> dict[int, list[Listener]]:
        """The user's listening sockets by their ports."""
        ports: dict[int, list[Listener]] = defaultdict(list)
        for line in [*self._lines("net/tcp"), *self._lines("net/tcp6")]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENING and fields[7] == str(self._user):
                address, _, port = fields[1].rpartition(":")
                ports[int(port, 16)].append(Listener(read_address(address), int(fields[9])))
        return ports

    @cached_property
    def _paths(self) -> dict[str, int]:
        """The listening unix sockets by their paths."""
        found = (re.fullmatch(r"\S+ \S+ \S+ (\S+) \S+ \S+ +(\d+) (.*)", line) for line in self._lines("net/unix"))
        return {match[3]: int(match[2]) for match in found if match is not None and int(match[1], 16) & _ACCEPTING}

    @cached_property
    def _owners(self) -> dict[int, int]:
        """The processes of the user by the inodes of their sockets; the oldest that has one."""
        owners: dict[int, int] = {}
        for pid in self._processes:
            with suppress(OSError):
                for entry in os.scandir(self._proc / str(pid) / "fd"):
                    with suppress(OSError):
                        match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path))  # noqa: PTH115
                        if match is not None:
                            owners.setdefault(int(match[1]), pid)
        return owners

    @cached_property
    def _commands(self) -> dict[int, list[bytes]]:
        """The command lines of the user's processes."""
        commands: dict[int, list[bytes]] = {}
        for pid in self._processes:
            with suppress(OSError):
                commands[pid] = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        return commands

    @cached_property
    def _processes(self) -> list[int]:
        """The processes of the user, the oldest first as far as numbers tell."""
        found: list[int] = []
        with suppress(OSError):
            for entry in os.scandir(self._proc):
                with suppress(OSError):
                    if entry.name.isdecimal() and entry.stat().st_uid == self._user:
                        found.append(int(entry.name))
        return sorted(found)

    def _lines(self, name: str) -> list[str]:
        try:
            return (self._proc / name).read_text(errors="surrogateescape").splitlines()[1:]
        except OSError:
            return []


def read_address(text: str) -> IPv4Address | IPv6Address:
    """Read an address as /proc/net has it: words of 32 bits, each in the machine's byte order, in hexadecimal."""
    words = [int(text[place : place + 8], 16) for place in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address


def _accepts(path: Path) -> bool:
    """Say whether anybody listens at a unix socket; nothing is sent to him."""
    with socket(AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _listener_by_lsof(port: int) -> int | None:
    """Find the process of the user that listens on a port, where there is no /proc, as on macOS."""
    program = which("lsof")
    if program is None or sys.platform == "win32":
        return None
    command = [program, "-nP", "-a", "-u", str(os.geteuid()), f"-iTCP:{port}", "-sTCP:LISTEN", "-Fp"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"^p(\d+)$", asked.stdout, re.MULTILINE)
    return None if match is None else int(match[1])


# ── what it is doing ────────────────────────────────────────────────────────────────────────────────────────────────


async def _activity(kernel: LiveKernel, timeout: float) -> Activity:
    """Ask one kernel: idle is who answers, busy who does not although his heart beats."""
    from cobnut_kernel.client.client import AsyncKernelClient

    if kernel.state is Activity.STARTING:
        return Activity.STARTING
    client = AsyncKernelClient(_reachable(kernel.connection_info))
    try:
        client.start_channels()
        return await _ask(client, timeout)
    except CobnutError:
        return Activity.SILENT
    finally:
        client.stop_channels()


async def _ask(client: AsyncKernelClient, timeout: float) -> Activity:
    try:
        reply = await client.kernel_info(reply=True, timeout=timeout)
        if "cobnut.stack" not in reply["content"].get("supported_features", ()):
            return Activity.IDLE
        stacks = await client.stack(reply=True, timeout=timeout)  # ours answers although it is busy
        return Activity.BUSY if stacks["content"].get("cells") else Activity.IDLE
    except TimeoutError:
        return Activity.BUSY if await client.hb_channel.beats(timeout) else Activity.SILENT


def _reachable(info: ConnectionInfo) -> ConnectionInfo:
    """Name an address that can be connected to: a kernel that listens on all is reached on this machine's own."""
    return replace(info, ip="127.0.0.1") if info.ip in ("0.0.0.0", "*") else info
