"""Kernels that are processes of this machine: children of ours, or adopted from who has started them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import CaselessStrEnum, Float, default

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.provisioning.base import KernelConnectionInfo, KernelProvisionerBase
from cobnut_kernel.provisioning.command import expand_home, explain_failure, fill_in, working_folder
from cobnut_kernel.provisioning.encryption import decide_encryption
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.owner_pipe import VARIABLE as OWNER_PIPE
from cobnut_kernel.provisioning.owner_pipe import OwnerPipe
from cobnut_kernel.provisioning.place import LocalPlace, PlaceRequest
from cobnut_kernel.provisioning.placement import Wishes, asked_transport, is_known_to_take_ipc
from cobnut_kernel.provisioning.process import ChildProcess
from cobnut_kernel.provisioning.socket_proof import SocketProof

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cobnut_kernel.provisioning.encryption import Encryption
    from cobnut_kernel.provisioning.process import KernelProcess

RETRIES = 3
"""How often a kernel is started again that has lost one of its ports to somebody else."""

_OWNER = "JPY_PARENT_PID"
_PORT_IS_TAKEN = re.compile(r"address (is )?already in use|EADDRINUSE", re.IGNORECASE)


class LocalProvisioner(KernelProvisionerBase):
    """A kernel as a child process, in a session of its own, that ends with us unless it is `independent`.

    Its connection file, and its unix sockets where it has them, lie in the private folder of our process; those of an
    independent one where Jupyter's tools find them. Its stdout and stderr are kept, never shown: `output_tail`; of an
    independent kernel they are not, for it could not write when we have ended.

    Attributes:
        process: the process of the last launch.
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
        self.cwd: str = ""
        self.independent: bool = False
        self._place = LocalPlace()
        self._request: PlaceRequest | None = None
        self._launch: tuple[list[str], dict[str, str], dict[str, Any]] | None = None
        self._retries: int = 0
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
    def connection_file(self) -> Path | None:
        """Where the kernel reads its connection."""
        return self._place.connection_file

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
        encryption = decide_encryption(policy, self.kernel_spec)
        self.independent = bool(kwargs.pop("independent", False))
        self.process = None  # what the last one said is no longer of interest
        self._retries = 0
        is_another = bool(kwargs.get("cmd")) or is_known_to_take_ipc(self.kernel_spec)
        self._proof = None if is_another else SocketProof(self.kernel_spec, self.log)
        given: Mapping[str, str] = kwargs.get("env") or {}
        extra = {"jupyter_session": name} if (name := given.get("JPY_SESSION_NAME")) else {}
        kwargs = await super().pre_launch(**kwargs)
        arguments: list[str] = kwargs.pop("extra_arguments", None) or []
        try:
            self._request = self._asked(encryption, extra)
            self.connection_info = self._place.take(self._request, self.connection_info)
            kwargs["cmd"] = kwargs.pop("cmd", None) or self._command(arguments, kwargs)
        except BaseException:
            await self.cleanup()
            raise
        return kwargs

    def _asked(self, encryption: Encryption, extra: Mapping[str, Any]) -> PlaceRequest:
        """Say what this launch asks of its place; what the user wishes is read at the first, and for new ports."""
        before = self._request if self.connection_info else None
        return PlaceRequest(
            self.kernel_id,
            self.kernel_spec,
            wishes=before.wishes if before is not None else Wishes.of(self.parent),
            transport=self.transport,
            encryption=encryption,
            extra=extra,
            independent=self.independent,
            is_proven=self._proof is not None and self._proof.is_given,
            leaves_sockets=self._leaves_sockets,
        )

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
        if self._request is None or self._launch is None or self._retries >= RETRIES or not self._has_lost_a_port():
            return None
        self._retries += 1
        self.log.warning("Kernel %s did not get its ports: it is started again on others.", self.kernel_id)
        await self.cleanup(restart=True)
        self._place.give_ports_back()
        self._request = replace(self._request, holds_ports=False)
        self.connection_info = {}
        self.connection_info = self._place.take(self._request, self.connection_info)
        return await self._begin(*self._launch)

    def note_answer(self, *, answered: bool) -> None:
        """Remember a kernel that answers on unix sockets, and forget one that does not: its next launch gets ports.

        Where somebody asks for sockets it gets them all the same, and so does one that is known to take them.
        """
        if self._proof is None or self._request is None or self.connection_info.get("transport") != "ipc":
            return
        self._proof.give() if answered else self._proof.withdraw()
        asked = asked_transport(self.kernel_spec, self._request.wishes, self.transport)
        self._leaves_sockets = not answered and asked == "auto"

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the sockets and, unless a launch follows, the connection file; give the ports back."""
        self._place.leave(self.connection_info, restart=restart)
        if self.process is not None and self.process.poll() is not None:
            Guard.shared().remove(self.process.pid)

    def let_go(self) -> None:
        """Watch the process no longer, and hold nothing of its; it may go on."""
        self._place.give_ports_back()
        if self.process is not None:
            self.process.release()
            if self._ends_with_us:
                Guard.shared().remove(self.process.pid)

    def _has_lost_a_port(self) -> bool:
        is_tcp = self.connection_info.get("transport") == "tcp"
        return is_tcp and not self.has_process and _PORT_IS_TAKEN.search(self.output_tail()) is not None

    async def _begin(self, cmd: list[str], env: dict[str, str], options: dict[str, Any]) -> KernelConnectionInfo:
        try:
            process = self.process = await self._spawn(cmd, env, self.cwd, options)
        except (OSError, ValueError, TypeError) as error:
            raise KernelStartError(explain_failure(cmd, self.cwd, error)) from error
        if self._ends_with_us:
            self._guard(process)
        if self._place.awaits_registration:
            self.connection_info = await self._place.registration(process, self.registration_timeout)
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

    def _files(self) -> list[str]:
        return self._place.files(self.connection_info)

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
        self._place.connection_file = Path(file) if file else None
        self.cwd = provisioner_info.get("cwd") or ""
        self.independent = bool(provisioner_info.get("independent"))
        process = self.process = AdoptedProcess(identity)
        if self._ends_with_us:
            self._guard(process)
