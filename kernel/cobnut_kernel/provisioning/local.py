"""Kernels that are processes of this machine: children of ours, or adopted from who has started them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from traitlets import CaselessStrEnum, Float, default

from cobnut_kernel.errors import KernelDiedError, KernelStartError
from cobnut_kernel.kernelspec import registers
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.provisioning.base import KernelConnectionInfo, KernelProvisionerBase
from cobnut_kernel.provisioning.command import expand_home, explain_failure, fill_in, working_folder
from cobnut_kernel.provisioning.encryption import decide_encryption, with_keys
from cobnut_kernel.provisioning.files import is_private, own_folder, remove, write_file
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.owner_pipe import VARIABLE as OWNER_PIPE
from cobnut_kernel.provisioning.owner_pipe import OwnerPipe
from cobnut_kernel.provisioning.placement import (
    LOCALHOST,
    PORT_NAMES,
    Wishes,
    asked_transport,
    decide_transport,
    is_known_to_take_ipc,
    needs_short_paths,
)
from cobnut_kernel.provisioning.ports import Ports, require_own_address
from cobnut_kernel.provisioning.process import ChildProcess, signal_name
from cobnut_kernel.provisioning.socket_proof import SocketProof

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cobnut_kernel.provisioning.encryption import Encryption
    from cobnut_kernel.provisioning.process import KernelProcess
    from cobnut_kernel.provisioning.registration import RegistrationDesk

RETRIES = 3
"""How often a kernel is started again that has lost one of its ports to somebody else."""

_OWNER = "JPY_PARENT_PID"
_PORT_IS_TAKEN = re.compile(r"address (is )?already in use|EADDRINUSE", re.IGNORECASE)
_PREFIXES = count(1)


class LocalProvisioner(KernelProvisionerBase):
    """A kernel as a child process, in a session of its own, that ends with us unless it is `independent`.

    Its connection file, and its unix sockets where it has them, lie in the private folder of our process; those of an
    independent one where Jupyter's tools find them. Its stdout and stderr are kept, never shown: `output_tail`; of an
    independent kernel they are not, for it could not write when we have ended.

    Attributes:
        process: the process of the last launch.
        connection_file: where the kernel reads its connection.
        cwd: the folder it was started in.
        independent: whether it outlives us.
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
        self.process: KernelProcess | None = None
        self.connection_file: Path | None = None
        self.cwd: str = ""
        self.independent: bool = False
        self._wishes: Wishes | None = None
        self._desk: RegistrationDesk | None = None
        self._ports = Ports()
        self._encryption: Encryption | None = None
        self._extra: dict[str, Any] = {}
        self._launch: tuple[list[str], dict[str, str], dict[str, Any]] | None = None
        self._retries: int = 0
        self._short_folder: str = ""
        self._proof: SocketProof | None = None
        self._leaves_sockets: bool = False

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
        """Return None while the process runs, then its exit code; 0 where there was none, or nobody knows it."""
        return self.process.poll() if self.process is not None else 0

    async def wait(self) -> int | None:
        """Wait until the process has ended; its pidfd tells, nothing is polled. None where nobody knows its code."""
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

        Args:
            kwargs: those of the base class; `cmd` in place of the kernelspec's command; `extra_arguments` for that;
                `transport_encryption` in place of the manager's; `independent` for a kernel that outlives us; and
                what `subprocess.Popen` takes.

        Raises:
            KernelStartError: the arguments, or the manager's settings, ask for what cannot be, or the connection file
                cannot be written.
            ConnectionFileError: there is no private place for the connection file.
        """
        policy = kwargs.pop("transport_encryption", None) or getattr(self.parent, "transport_encryption", "disabled")
        self._encryption = decide_encryption(policy, self.kernel_spec)
        self.independent = bool(kwargs.pop("independent", False))
        self.process = None  # what the last one said is no longer of interest
        self._retries = 0
        is_another = bool(kwargs.get("cmd")) or is_known_to_take_ipc(self.kernel_spec)
        self._proof = None if is_another else SocketProof(self.kernel_spec, self.log)
        given: Mapping[str, str] = kwargs.get("env") or {}
        self._extra = {"jupyter_session": name} if (name := given.get("JPY_SESSION_NAME")) else {}
        kwargs = await super().pre_launch(**kwargs)
        arguments: list[str] = kwargs.pop("extra_arguments", None) or []
        try:
            if self._wishes is None or not self.connection_info:  # the first start, or one on new ports
                self._wishes = self._read_wishes()
            self._place(self._wishes)
            kwargs["cmd"] = kwargs.pop("cmd", None) or self._command(arguments, kwargs)
        except BaseException:
            await self.cleanup()
            raise
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the process, and wait for its registration where it chooses its ports itself.

        Raises:
            KernelStartError: the program or the folder is not there or cannot be used, or the kernel does not
                register in time.
            KernelDiedError: its process has ended before.
        """
        kwargs.pop("kernel_id", None)
        self.cwd = working_folder(kwargs.pop("cwd", None))
        self._launch = (expand_home(cmd), kwargs.pop("env", None) or dict(os.environ), kwargs)
        return await self._begin(*self._launch)

    async def launch_again(self) -> KernelConnectionInfo | None:
        """Start a kernel again that has ended because somebody else had one of its ports; on other ports.

        Raises:
            KernelStartError: it cannot be started, or the port is one that the manager's user has chosen.
        """
        wishes = self._wishes
        if wishes is None or self._launch is None or self._retries >= RETRIES or not self._has_lost_a_port():
            return None
        self._retries += 1
        self.log.warning("Kernel %s did not get its ports: it is started again on others.", self.kernel_id)
        await self.cleanup(restart=True)
        self.connection_info = {}
        self._ports.give_back()
        self._place(wishes)
        return await self._begin(*self._launch)

    def note_answer(self, *, answered: bool) -> None:
        """Remember a kernel that answers on unix sockets, and forget one that does not: its next launch gets ports.

        Where somebody asks for sockets it gets them all the same, and so does one that is known to take them.
        """
        if self._proof is None or self._wishes is None or self.connection_info.get("transport") != "ipc":
            return
        self._proof.give() if answered else self._proof.withdraw()
        asked = asked_transport(self.kernel_spec, self._wishes, self.transport)
        self._leaves_sockets = not answered and asked == "auto"

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the sockets and, unless a launch follows, the connection file; give the ports back."""
        self._close_desk()
        kept = (str(self.connection_file), self._short_folder) if restart else ()
        remove(path for path in self._files() if path not in kept)
        if not restart:
            self._ports.give_back()
        if self.process is not None and self.process.poll() is not None:
            Guard.shared().remove(self.process.pid)

    def let_go(self) -> None:
        """Watch the process no longer, and hold nothing of its; it may go on."""
        self._ports.give_back()
        if self.process is not None:
            self.process.release()
            if self._ends_with_us:
                Guard.shared().remove(self.process.pid)

    async def _begin(self, cmd: list[str], env: dict[str, str], options: dict[str, Any]) -> KernelConnectionInfo:
        try:
            process = self.process = await self._spawn(cmd, env, self.cwd, options)
        except (OSError, ValueError, TypeError) as error:
            raise KernelStartError(explain_failure(cmd, self.cwd, error)) from error
        if self._ends_with_us:
            self._guard(process)
        if self._desk is not None:
            self.connection_info = _fields(await self._registered(self._desk, process))
        return self.connection_info

    async def _spawn(self, cmd: list[str], env: dict[str, str], cwd: str, options: dict[str, Any]) -> KernelProcess:
        """Start the process.

        Raises:
            OSError: the program, or the folder, is not there or cannot be used.
            ValueError: an argument or a variable cannot be passed to a process.
        """
        if self.independent:
            silence = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
            return ChildProcess.spawn(cmd, env=env, cwd=cwd, **{**silence, **options})
        pipe = OwnerPipe.shared()
        if any("cobnut_kernel" in part for part in cmd):
            env = {**env, OWNER_PIPE: pipe.name}
            options = {**options, "pass_fds": (*options.get("pass_fds", ()), pipe.reading_end)}
        return ChildProcess.spawn(cmd, env=env, cwd=cwd, **options)

    @property
    def _ends_with_us(self) -> bool:
        """Whether the process is to end when ours does: neither that of an independent kernel nor a guest's is."""
        return not self.independent and bool(getattr(self.parent, "owns_kernel", True))

    def _guard(self, process: KernelProcess) -> None:
        """Have the process ended, and its files removed, when we end without doing it."""
        Guard.shared().add(process.identity, self._files())

    def _finalize_env(self, env: dict[str, str]) -> None:
        super()._finalize_env(env)
        env.pop(OWNER_PIPE, None)  # that of our own owner
        env.pop(_OWNER, None)
        if not self.independent:
            env[_OWNER] = str(os.getpid())

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

    def format_kernel_cmd(self, extra_arguments: list[str], launch_args: Mapping[str, Any]) -> list[str]:
        """Fill in the command of the kernelspec: `{connection_file}`, `{prefix}`, `{resource_dir}`, launch arguments.

        A field that is not known, or whose value is no text, stays as it is.
        """
        fields = {
            "connection_file": os.path.realpath(self.connection_file or ""),
            "prefix": sys.prefix,
            "resource_dir": self.kernel_spec.resource_dir,
        }
        return fill_in([*self.kernel_spec.argv, *extra_arguments], {**fields, **launch_args})

    def _command(self, extra_arguments: list[str], launch_args: Mapping[str, Any]) -> list[str]:
        if not self.kernel_spec.argv:
            raise KernelStartError(f"The argv of the kernelspec {self.kernel_spec.name!r} is empty: correct it.")
        return self.format_kernel_cmd(extra_arguments, launch_args)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to adopt the kernel: connection, process, files, folder."""
        info = await super().get_provisioner_info()
        return {
            **info,
            "pid": self.pid,
            "pgid": self.pgid,
            "ip": info["connection_info"].get("ip", ""),
            "process": asdict(self.process.identity) if self.process is not None else None,
            "connection_file": str(self.connection_file or ""),
            "cwd": self.cwd,
            "independent": self.independent,
        }

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Adopt a kernel that runs on this machine, started by another process; its exit code will not be known.

        From now on it ends with us, unless our manager does not own it, or its `independent` is true: change that in
        the information where it is to be otherwise. One that was not independent when it was started ends with who
        has started it too.

        Raises:
            KernelError: it has ended, or what runs under its number is another process; the text says which.
        """
        from cobnut_kernel.provisioning.adoption import AdoptedProcess, read_identity, require_running

        identity = read_identity(provisioner_info.get("process") or {})
        require_running(identity)
        await super().load_provisioner_info(provisioner_info)
        file = provisioner_info.get("connection_file")
        self.connection_file = Path(file) if file else None
        self.cwd = provisioner_info.get("cwd") or ""
        self.independent = bool(provisioner_info.get("independent"))
        process = self.process = AdoptedProcess(identity)
        if self._ends_with_us:
            self._guard(process)

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _read_wishes(self) -> Wishes:
        """Read what the manager's user has set about the connection."""
        return Wishes.of(self.parent)

    def _place(self, wishes: Wishes) -> None:
        """Decide where the kernel is reached, and write its connection file."""
        path = self._path(wishes)
        private = not wishes.connection_file and not self.independent
        info = with_keys(self._known_connection() or self._new_connection(wishes, path), self._needed_encryption())
        if info.shell_port:
            self.connection_info = _fields(info)
            write_file(path, info, private=private)
        else:
            # Imported here: with unix sockets, the rule, nothing is chosen.
            from cobnut_kernel.provisioning.registration import RegistrationDesk

            self._desk = RegistrationDesk(self.kernel_id, info, path)
            write_file(path, self._desk.info, private=private)
        self.connection_file = path

    def _needed_encryption(self) -> Encryption:
        assert self._encryption is not None
        return self._encryption

    def _path(self, wishes: Wishes) -> Path:
        """Return where the connection file is, or will be."""
        known = self.connection_file
        if known is not None and known.parent.is_dir():
            return known
        if wishes.connection_file:
            return Path(wishes.connection_file).expanduser().absolute()
        if self.independent:
            from jupyter_core.paths import jupyter_runtime_dir

            return Path(jupyter_runtime_dir()) / f"kernel-{self.kernel_id}.json"
        Guard.shared()  # from here on there are files for it to remove at the end
        return own_folder() / f"kernel-{self.kernel_id}.json"

    def _known_connection(self) -> ConnectionInfo | None:
        """Return the connection of the launch before; None where there was none, or it cannot be had again."""
        if not self.connection_info:
            return None
        info = ConnectionInfo.from_dict(self.connection_info)
        if info.transport == "ipc":
            return info if Path(info.ip).parent.is_dir() and not self._leaves_sockets else None
        ports = [info.port(channel) for channel in Channel]
        if not self._ports.are_held and self._remembers_ports:
            with suppress(KernelStartError):
                self._ports.find(info.ip, ports)
                return info
            return None
        return info

    @property
    def _remembers_ports(self) -> bool:
        return self._wishes is None or self._wishes.remembers_ports

    def _new_connection(self, wishes: Wishes, path: Path) -> ConnectionInfo:
        """Choose a connection; ports of 0 are the kernel's to choose."""
        fields: dict[str, Any] = {
            "key": wishes.key or os.urandom(32).hex().encode(),
            "kernel_name": self.kernel_spec.name,
            "extra": self._extra,
        }
        prefix = self._prefix(wishes, path)
        is_proven = self._proof is not None and self._proof.is_given
        if decide_transport(self.kernel_spec, wishes, self.transport, prefix, is_proven=is_proven) == "ipc":
            others = (number for number in count(1) if number not in wishes.ports)
            return _connection("ipc", prefix, [port or next(others) for port in wishes.ports], fields)
        ip = wishes.ip or LOCALHOST
        require_own_address(ip)
        if self._chooses_ports(wishes, path):
            return _connection("tcp", ip, [], fields)
        ports = self._ports.find(ip, wishes.ports, hold=wishes.remembers_ports and not self._retries)
        return _connection("tcp", ip, ports, fields)

    def _prefix(self, wishes: Wishes, path: Path) -> str:
        """Return the common beginning of the paths of unix sockets."""
        if os.sep in wishes.ip:
            return os.path.abspath(wishes.ip)  # noqa: PTH100 - a prefix, no path
        if self.independent:
            return str(path.with_name(os.urandom(4).hex()))
        prefix = str(own_folder() / str(next(_PREFIXES)))
        if not needs_short_paths(self.kernel_spec, prefix):
            return prefix
        self._short_folder = mkdtemp(prefix="cob-", dir="/tmp")
        return f"{self._short_folder}/1"

    def _chooses_ports(self, wishes: Wishes, path: Path) -> bool:
        """Say whether the kernel chooses its ports and tells them: then it writes the file, which must be private."""
        return registers(self.kernel_spec) and not any(wishes.ports) and is_private(path.parent)

    async def _registered(self, desk: RegistrationDesk, process: KernelProcess) -> ConnectionInfo:
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
        self._ports.note([info.port(channel) for channel in Channel])
        return info

    def _close_desk(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.close()

    def _has_lost_a_port(self) -> bool:
        is_tcp = self.connection_info.get("transport") == "tcp"
        return is_tcp and not self.has_process and _PORT_IS_TAKEN.search(self.output_tail()) is not None

    def _files(self) -> list[str]:
        sockets = ConnectionInfo.from_dict(self.connection_info).ipc_paths() if self.connection_info else []
        return [*sockets, *filter(None, (str(self.connection_file or ""), self._short_folder))]


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
