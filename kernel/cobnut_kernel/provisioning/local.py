"""Kernels that are processes of this machine and children of ours."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import CaselessStrEnum, Float, default

from cobnut_kernel.connection_files import SOCKET_PATH_LIMIT, OwnerDirectory, write_connection_file
from cobnut_kernel.errors import KernelDiedError, KernelStartError
from cobnut_kernel.kernelspec import registers
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.provisioning.base import KernelConnectionInfo, KernelProvisionerBase
from cobnut_kernel.provisioning.encryption import decide_encryption, with_keys
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.process import ChildProcess, signal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cobnut_kernel.provisioning.encryption import Encryption
    from cobnut_kernel.provisioning.registration import RegistrationDesk

_PYTHONS = frozenset({"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"})
"""Programs of a kernelspec that mean the interpreter we run on."""

_IPC_KERNELS = ("cobnut_kernel", "ipykernel", "xpython")
"""What the command of a Python kernel names if it can listen on unix sockets."""

_FIELD = re.compile(r"\{([A-Za-z0-9_]+)\}")
_PREFIXES = count(1)
_taken_ports: set[int] = set()


class LocalProvisioner(KernelProvisionerBase):
    """A kernel as a child process, in a session of its own, that ends with us.

    Its connection file, and its unix sockets where it has them, lie in the private folder of our process. Its
    stdout and stderr are kept, never shown: `output_tail`.

    Attributes:
        process: the process of the last launch.
        connection_file: where the kernel reads its connection.
        cwd: the folder it was started in.
    """

    transport = CaselessStrEnum(
        ["auto", "ipc", "tcp"],
        default_value="auto",
        config=True,
        help="How the kernel is reached: unix sockets (ipc), ports of 127.0.0.1 (tcp), or what it is known to take.",
    )
    registration_timeout = Float(
        config=True,
        help="Seconds that a kernel which chooses its ports may take to tell them; its manager's startup_timeout.",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.process: ChildProcess | None = None
        self.connection_file: Path | None = None
        self.cwd: str = ""
        self._desk: RegistrationDesk | None = None
        self._ports: list[int] = []

    @default("registration_timeout")
    def _default_registration_timeout(self) -> float:
        return getattr(self.parent, "startup_timeout", 60.0)

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_process(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        """The id of the process, which is that of its group and its session too."""
        return self.process.pid if self.process is not None else None

    @property
    def pgid(self) -> int | None:
        """The id of the process group."""
        return self.pid

    async def poll(self) -> int | None:
        """Return None while the process runs, then its exit code; 0 where there was none."""
        return self.process.poll() if self.process is not None else 0

    async def wait(self) -> int | None:
        """Wait until the process has ended; its pidfd tells, nothing is polled."""
        return await self.process.wait() if self.process is not None else None

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process group."""
        if self.process is not None:
            self.process.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:
        """Send SIGKILL to the process group."""
        if self.process is not None:
            self.process.kill()

    async def terminate(self, restart: bool = False) -> None:
        """Send SIGTERM to the process group."""
        await self.send_signal(signal.SIGTERM)

    # ── launch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Decide where the kernel is reached, write its connection file, and fill in its command.

        Raises:
            KernelStartError: the arguments ask for what cannot be.
            ConnectionFileError: there is no private place for the connection file.
            OSError: the connection file cannot be written.
        """
        if kwargs.pop("independent", False):
            raise KernelStartError("Kernels that outlive their owner are not supported yet: leave `independent` out.")
        policy = kwargs.pop("transport_encryption", None) or getattr(self.parent, "transport_encryption", "disabled")
        encryption = decide_encryption(policy, self.kernel_spec)
        self.process = None  # what the last one said is no longer of interest
        Guard.shared()  # from here on there are files for it to remove at the end
        given: Mapping[str, str] = kwargs.get("env") or {}
        kwargs = await super().pre_launch(**kwargs)
        kwargs["env"]["JPY_PARENT_PID"] = str(os.getpid())
        session_name = given.get("JPY_SESSION_NAME")
        info = self._reserve({"jupyter_session": session_name} if session_name else {}, encryption)
        file = self.connection_file = OwnerDirectory.shared().path / f"kernel-{self.kernel_id}.json"
        if info.shell_port:
            self.connection_info = _fields(info)
            write_connection_file(file, info)
        else:
            # Imported here: with unix sockets, the rule, nothing is chosen.
            from cobnut_kernel.provisioning.registration import RegistrationDesk

            self._desk = RegistrationDesk(self.kernel_id, info, file)
            write_connection_file(file, self._desk.info)
        arguments: list[str] = kwargs.pop("extra_arguments", None) or []
        kwargs["cmd"] = kwargs.pop("cmd", None) or self.format_kernel_cmd(arguments, kwargs)
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the process, and wait for its registration where it chooses its ports itself.

        Raises:
            KernelStartError: the program or the folder is not there or cannot be used, or the kernel does not
                register in time.
            KernelDiedError: its process has ended before.
        """
        kwargs.pop("kernel_id", None)
        cwd = self.cwd = _folder(kwargs.pop("cwd", None))
        cmd = _expanded(cmd)
        try:
            self.process = ChildProcess.spawn(cmd, cwd=cwd, **kwargs)
        except (OSError, ValueError, TypeError) as error:
            raise KernelStartError(_explanation(cmd, cwd, error)) from error
        Guard.shared().add(self.process.identity, self._files())
        if self._desk is not None:
            self.connection_info = _fields(await self._registered(self._desk, self.process))
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the sockets and, unless a launch follows, the connection file; give the ports back."""
        self._close_desk()
        kept = str(self.connection_file) if restart else ""
        _remove(path for path in self._files() if path != kept)
        if not restart:
            _taken_ports.difference_update(self._ports)
        if self.process is not None and self.process.poll() is not None:
            Guard.shared().remove(self.process.pid)

    # ── what is known of it ─────────────────────────────────────────────────────────────────────────────────────────

    def output_tail(self) -> str:
        """Return the last 64 KiB of stdout and stderr, as they came."""
        return self.process.output.text() if self.process is not None else ""

    def stderr_tail(self) -> str:
        """Return the last 64 KiB of stderr."""
        return self.process.errors.text() if self.process is not None else ""

    def resolve_path(self, path: str) -> str | None:
        """Return the absolute path of a file that the kernel names, from its folder."""
        return str(Path(self.cwd, os.path.expanduser(path)).resolve())  # noqa: PTH111 - `~` is the kernel's

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return the connection, and which process it is: id, start time and boot."""
        info = await super().get_provisioner_info()
        return {**info, "process": asdict(self.process.identity) if self.process is not None else None}

    def format_kernel_cmd(self, extra_arguments: list[str], launch_args: Mapping[str, Any]) -> list[str]:
        """Fill in the command of the kernelspec: `{connection_file}`, `{prefix}`, `{resource_dir}`, launch arguments.

        A field that is not known, or whose value is no text, stays as it is.
        """
        fields = {
            "connection_file": os.path.realpath(self.connection_file or ""),
            "prefix": sys.prefix,
            "resource_dir": self.kernel_spec.resource_dir,
            **{name: value for name, value in launch_args.items() if isinstance(value, str)},
        }
        argv: list[str] = [*self.kernel_spec.argv, *extra_arguments]
        if argv and argv[0] in _PYTHONS:
            argv[0] = sys.executable
        return [_FIELD.sub(lambda match: fields.get(match[1], match[0]), argument) for argument in argv]

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _reserve(self, extra: Mapping[str, Any], encryption: Encryption) -> ConnectionInfo:
        """Decide where the kernel is reached; after a restart where it was before. Ports of 0 are its own to choose."""
        return with_keys(self._known_connection() or self._new_connection(extra), encryption)

    def _known_connection(self) -> ConnectionInfo | None:
        if not self.connection_info:
            return None
        _taken_ports.update(self._ports)
        return ConnectionInfo.from_dict(self.connection_info)

    def _new_connection(self, extra: Mapping[str, Any]) -> ConnectionInfo:
        name = self.kernel_spec.name
        key = os.urandom(32).hex().encode()
        prefix = str(OwnerDirectory.shared().path / str(next(_PREFIXES)))
        if self._takes_ipc(prefix):
            return ConnectionInfo("ipc", prefix, 1, 2, 3, 4, 5, key=key, kernel_name=name, extra=extra)
        _taken_ports.difference_update(self._ports)
        self._ports = [] if registers(self.kernel_spec) else _free_ports(len(Channel))
        return ConnectionInfo("tcp", "127.0.0.1", *self._ports, key=key, kernel_name=name, extra=extra)

    async def _registered(self, desk: RegistrationDesk, process: ChildProcess) -> ConnectionInfo:
        """Wait until the kernel has told where it listens; one that does not is killed."""
        ended = asyncio.ensure_future(process.wait())
        either = {desk.registered, ended}
        try:
            await asyncio.wait(either, timeout=self.registration_timeout, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            process.kill()
            raise
        finally:
            ended.cancel()
            self._close_desk()
        if desk.registered.cancelled():
            process.kill()
            raise _unregistered(desk, process, self.registration_timeout)
        info = desk.registered.result()
        self._ports = [info.port(channel) for channel in Channel]
        _taken_ports.update(self._ports)
        return info

    def _close_desk(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    def _takes_ipc(self, prefix: str) -> bool:
        fits = len(os.fsencode(f"{prefix}-5")) <= SOCKET_PATH_LIMIT
        if self.transport == "ipc" and not fits:
            raise KernelStartError(f"The path {prefix}-5 is too long for a socket: set TMPDIR to a shorter one.")
        if self.transport != "auto":
            return self.transport == "ipc"
        is_python = self.kernel_spec.language.lower() == "python"
        return fits and is_python and any(name in part for part in self.kernel_spec.argv for name in _IPC_KERNELS)

    def _files(self) -> list[str]:
        sockets = ConnectionInfo.from_dict(self.connection_info).ipc_paths() if self.connection_info else []
        return [*sockets, *([str(self.connection_file)] if self.connection_file else [])]


def _fields(info: ConnectionInfo) -> KernelConnectionInfo:
    return {**info.as_dict(), "key": info.key}


def _unregistered(desk: RegistrationDesk, process: ChildProcess, timeout: float) -> KernelStartError | KernelDiedError:
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


def _expanded(cmd: list[str]) -> list[str]:
    """Replace a `~` at the beginning of each argument by the home folder."""
    return [os.path.expanduser(argument) for argument in cmd]  # noqa: PTH111 - an argument need not be a path


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with suppress(OSError):
            Path(path).unlink()


def _folder(cwd: str | os.PathLike[str] | None) -> str:
    """Return the folder to start in: the one given, or ours."""
    try:
        return os.fspath(cwd) if cwd else str(Path.cwd())
    except FileNotFoundError as error:
        raise KernelStartError("The folder we are in has been removed: go to another one, or name one.") from error


def _free_ports(number: int) -> list[int]:
    """Find ports that nobody listens on, and that no kernel of ours was promised."""
    bound: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < number:
            bound.append(socket.socket())
            bound[-1].bind(("127.0.0.1", 0))
            port = bound[-1].getsockname()[1]
            if port not in _taken_ports:
                ports.append(port)
    finally:
        for each in bound:
            each.close()
    _taken_ports.update(ports)
    return ports


def _explanation(cmd: list[str], cwd: str, error: Exception) -> str:
    """Say why a process could not be started, and what to do about it."""
    program = cmd[0] if cmd else ""
    if not Path(cwd).is_dir():
        return f"The kernel cannot start in {cwd}: there is no such folder. Choose another one."
    match error:
        case FileNotFoundError() if os.sep in program and Path(program).exists():
            return f"The kernel's program {program} names an interpreter that is not there: see its first line."
        case FileNotFoundError():
            return f"The kernel's program {program} is not there: install it, or correct the argv of its kernelspec."
        case PermissionError():
            return f"The kernel's program {program}, or the folder {cwd}, may not be used: see their permissions."
        case OSError(errno=errno.ENOEXEC):
            return f"The kernel's program {program} is no program that this machine can run."
        case _:
            return f"The kernel's program {program} cannot be started: {error}"
