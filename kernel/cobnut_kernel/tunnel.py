"""A kernel on another machine, reached through plain `ssh`: its ports or sockets are unix sockets of ours, or ports.

One ssh process does it, with the user's own configuration: agent, jump hosts, names. It is the master of a connection
(`ControlMaster`) whose remote command is a `cat` that reads from us: when we end, however, its input ends, and with it
the connection on both machines. Nothing is left running, and the sockets are in our process's private folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import ConnectionFileError, TunnelError
from cobnut_kernel.portal import Portal, finish
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

PATIENCE = 30.0
"""Seconds that a server may take to let us in."""

END_TIME = 2.0
"""Seconds that ssh may take to end when its input has ended, before it is killed."""

FILE_LIMIT = 1 << 20
"""Bytes that a remote connection file may have: what comes is data of another machine."""

_READY = "cobnut-tunnel-is-open"
_OPTIONS = {
    "BatchMode": "yes",  # a question of ssh's would go to the terminal, past whoever draws there
    "ControlMaster": "yes",
    "ControlPersist": "no",
    "ExitOnForwardFailure": "yes",
    "ForkAfterAuthentication": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveInterval": "15",
    "StreamLocalBindMask": "0177",
    "StreamLocalBindUnlink": "yes",
}


class Tunnel:
    """The way to one kernel on another machine; `open` makes it, and `close` or the end of this process ends it.

    Attributes:
        server: the host, as ssh knows it.
        remote: where the kernel is, seen from there.
        connection_info: where it is, seen from here: for a client.
    """

    def __init__(self, server: str, remote: ConnectionInfo, local: ConnectionInfo, process: SshProcess) -> None:
        self.server = server
        self.remote = remote
        self.connection_info = local
        self._process = process

    @classmethod
    async def open(
        cls,
        server: str,
        kernel: ConnectionInfo | str | os.PathLike[str],
        *,
        transport: str = "ipc",
        options: Sequence[str] = (),
        timeout: float = PATIENCE,
    ) -> Tunnel:
        """Open a tunnel; from asyncio or trio.

        Args:
            server: a host of ssh's configuration, `user@host`, or `user@host:port`.
            kernel: where the kernel is, seen from the server; or the path of its connection file there.
            transport: what the kernel's channels are here: unix sockets ("ipc") or ports ("tcp").
            options: more arguments for ssh, as `["-i", "key"]`.
            timeout: how many seconds the server may take.

        Raises:
            TunnelError: ssh could not do it; the text has its own words.
            ConnectionFileError: the connection file there is of no use.
        """
        return await Portal.shared().run(_open, server, kernel, transport, tuple(options), timeout)

    @property
    def is_open(self) -> bool:
        """Whether the ssh process runs."""
        return self._process.is_running

    @property
    def pid(self) -> int:
        """The process id of ssh."""
        return self._process.pid

    async def close(self) -> None:
        """End the tunnel, and wait for that; again does nothing."""
        await Portal.shared().run(self._process.end)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class SshProcess:
    """One ssh that holds a connection; on the portal's thread."""

    def __init__(self, server: str, options: Sequence[str]) -> None:
        self._host = [*options, *destination(server)]
        self._server = server
        # ssh adds 17 characters to the path while it makes the socket
        self._control = OwnerDirectory.shared().path / f"s-{os.urandom(3).hex()}"
        self._process: asyncio.subprocess.Process | None = None
        self._files: list[Path] = [self._control]
        self._ending = asyncio.Lock()
        self._is_over = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was begun."""
        return self._process.pid if self._process is not None else 0

    async def begin(self, file: str = "") -> bytes:
        """Connect; return what a file there holds, where one is named.

        Raises:
            TunnelError: ssh could not.
            ConnectionFileError: the file is too large to be one.
        """
        read = f"cat -- {shlex.quote(file)} && " if file else ""
        self._process = await self._spawn(
            *_arguments(_OPTIONS), *self._host, f"{read}echo && echo {_READY} && exec cat >/dev/null"
        )
        assert self._process.stdout is not None
        try:
            output = await self._process.stdout.readuntil(f"\n{_READY}\n".encode())
        except asyncio.LimitOverrunError as error:
            raise ConnectionFileError(
                f"The connection file {file} of {self._server} is of no use: it has more than {FILE_LIMIT} bytes."
            ) from error
        except asyncio.IncompleteReadError as error:
            raise await self._failure() from error
        return output.removesuffix(f"\n{_READY}\n".encode())

    async def forward(self, here: str, there: str) -> None:
        """Let a socket or port of ours lead to one there.

        Raises:
            TunnelError: ssh could not.
        """
        if here.startswith("/"):
            self._files.append(Path(here))
        asked = await self._spawn("-O", "forward", "-L", f"{here}:{there}", *self._host)
        _, words = await asked.communicate()
        if asked.returncode:
            raise TunnelError(f"ssh cannot lead {here} to {there} of {self._server}: {_words(words)}")

    async def hold(self) -> None:
        """Wait until it was ended; whoever cancels this ends it."""
        try:
            await self._is_over.wait()
        finally:
            await self.end()

    async def end(self) -> None:
        """End it, and remove its sockets."""
        await finish(self._end())

    async def _end(self) -> None:
        self._is_over.set()
        async with self._ending:
            await self._end_process()
            for file in self._files:
                with suppress(OSError):
                    file.unlink()

    async def _end_process(self) -> None:
        process = self._process
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            ended = asyncio.ensure_future(_ended(process))
            if not (await asyncio.wait({ended}, timeout=END_TIME))[0]:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await ended

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                "ssh",
                "-S",
                str(self._control),
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in our terminal is not for it
                limit=FILE_LIMIT,
            )
        except OSError as error:
            raise TunnelError(f"ssh cannot be run: {error.strerror}. Install OpenSSH's client.") from error

    async def _failure(self) -> TunnelError:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        words = await self._process.stderr.read(FILE_LIMIT)
        return TunnelError(f"ssh cannot open a tunnel to {self._server}: {_words(words)}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process, and read on: asyncio sees it only when nothing is left in its pipes."""
    streams = filter(None, (process.stdout, process.stderr))
    await asyncio.gather(process.wait(), *map(_read_on, streams))


async def _read_on(stream: asyncio.StreamReader) -> None:
    while await stream.read(FILE_LIMIT):
        pass


async def _open(
    server: str,
    kernel: ConnectionInfo | str | os.PathLike[str],
    transport: str,
    options: tuple[str, ...],
    timeout: float,
) -> Tunnel:
    process = SshProcess(server, options)
    portal = Portal.shared()  # with which all of it ends: at the end of the program, say
    portal.create_task(process.hold())
    portal.at_end(OwnerDirectory.remove_empty)
    try:
        async with asyncio.timeout(timeout):
            if isinstance(kernel, ConnectionInfo):
                await process.begin()
                remote = kernel
            else:
                remote = read_remote_file(await process.begin(os.fspath(kernel)), server, os.fspath(kernel))
            local = local_end(remote, transport)
            for channel in Channel:
                await process.forward(_place(local, channel), _place(remote, channel))
    except TimeoutError as error:
        await process.end()
        raise TunnelError(f"{server} did not let ssh in within {timeout:g} seconds.") from error
    except BaseException:
        await process.end()
        raise
    return Tunnel(server, remote, local, process)


def destination(server: str) -> list[str]:
    """Name a server as ssh's arguments; it may have a port behind a colon.

    Raises:
        TunnelError: it is none, and would be an option.
    """
    host, colon, port = server.rpartition(":")
    if not (colon and port.isdecimal() and ":" not in host):
        host, port = server, ""
    if not host or host.startswith("-"):
        raise TunnelError(f"{server!r} is no host for ssh: give a name of its configuration, or user@host.")
    return [*(["-p", port] if port else []), host]


def read_remote_file(content: bytes, server: str, path: str) -> ConnectionInfo:
    """Read a connection file of another machine.

    Raises:
        ConnectionFileError: it is of no use; the text says whose it is.
    """
    try:
        return ConnectionInfo.from_dict(json.loads(content))
    except ValueError as error:  # a ConnectionFileError is one too
        raise ConnectionFileError(f"The connection file {path} of {server} is of no use: {error}") from error


def local_end(remote: ConnectionInfo, transport: str) -> ConnectionInfo:
    """Choose where a kernel of another machine is to be found here.

    Raises:
        ConnectionFileError: the path of our folder is too long for sockets, or the transport is none.
    """
    if transport == "ipc":
        prefix = str(OwnerDirectory.shared().path / f"t-{os.urandom(3).hex()}")
        ports: list[int] = [1, 2, 3, 4, 5]
    else:
        prefix, ports = "127.0.0.1", free_ports(5)
    names = (f"{channel}_port" for channel in Channel)
    changes: dict[str, Any] = dict(zip(names, ports, strict=True))
    return replace(remote, transport=transport, ip=prefix, **changes)


def free_ports(count: int) -> list[int]:
    """Find ports that are free now, all of them different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _place(info: ConnectionInfo, channel: Channel) -> str:
    """Name an end of a forwarding as ssh wants it."""
    if info.transport == "ipc":
        return f"{info.ip}-{info.port(channel)}"
    ip = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1"}.get(info.ip, info.ip)
    return f"[{ip}]:{info.port(channel)}" if ":" in ip and not ip.startswith("[") else f"{ip}:{info.port(channel)}"


def _arguments(options: dict[str, str]) -> list[str]:
    return [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]


def _words(output: bytes) -> str:
    """Return what ssh has said, without what a terminal would obey."""
    text = "".join(character if character.isprintable() else " " for character in output.decode(errors="replace"))
    return " ".join(text.split()) or "it ended without a word."
