"""Provisioners made for jupyter_client, as ours: the way to Slurm, Kubernetes, YARN and Docker by existing engines."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from traitlets import Float

from cobnut_kernel.connection_files import OwnerDirectory, ProcessIdentity
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.protocol.connection import PORT_NAMES, ConnectionInfo
from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.provisioning.base import KernelConnectionInfo, KernelProvisionerBase
from cobnut_kernel.provisioning.encryption import Encryption, decide_encryption
from cobnut_kernel.provisioning.foreign_watch import ForeignLoop, Watch, has_process, local_process
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.process import Outputs

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Coroutine, Generator, Mapping
    from importlib.metadata import EntryPoint

    from cobnut_kernel.kernelspec import KernelSpec
    from cobnut_kernel.provisioning.foreign_manager import ForeignManager

T = TypeVar("T")

_PREFIXES = count(1)


def adapt(
    entry_point: EntryPoint, kernel_id: str, kernel_spec: KernelSpec, parent: Any, config: Mapping[str, Any]
) -> KernelProvisionerBase:
    """Make a provisioner of what a package has registered for jupyter_client.

    Args:
        entry_point: of the provisioner's class.
        kernel_id: of the kernel.
        kernel_spec: of the kernel.
        parent: its manager.
        config: the provisioner's traits, from the kernelspec.

    Raises:
        ModuleNotFoundError: jupyter_client, or what else the provisioner needs, is not installed.
        KernelStartError: the provisioner cannot be imported for another reason.
        TypeError: it is none.
    """
    loaded = _load(entry_point)
    from cobnut_kernel.provisioning.foreign_manager import ForeignProvisioner

    if not (isinstance(loaded, type) and issubclass(loaded, ForeignProvisioner)):
        raise TypeError(
            f"The provisioner {entry_point.name!r} ({entry_point.value}) is not made for cobnut, nor for"
            " jupyter_client: start the kernel with another kernelspec."
        )
    return ProvisionerAdapter(
        kernel_id=kernel_id,
        kernel_spec=kernel_spec,
        parent=parent,
        name=entry_point.name,
        provisioner_class=loaded,
        settings=config,
    )


def _load(entry_point: EntryPoint) -> object:
    from importlib.util import find_spec

    if find_spec("jupyter_client") is None:
        raise ModuleNotFoundError(
            f"The provisioner {entry_point.name!r} is made for jupyter_client, which is not installed: install it by"
            " `pip install jupyter_client`, or start the kernel with another kernelspec."
        )
    try:
        return entry_point.load()
    except ImportError as error:
        raise ModuleNotFoundError(
            f"The provisioner {entry_point.name!r} ({entry_point.value}) lacks something: {error}. Install that, or"
            " start the kernel with another kernelspec."
        ) from error
    except Exception as error:
        raise KernelStartError(
            f"The provisioner {entry_point.name!r} ({entry_point.value}) fails when it is imported: {_text(error)}"
        ) from error


class ProvisionerAdapter(KernelProvisionerBase):
    """A provisioner made for jupyter_client, which does what one of ours is asked to do.

    Its own methods run on the loop of foreign provisioners. Whether its kernel runs is looked at from time to time,
    as those provisioners offer nothing else; the end of a process of this machine is noticed at once.

    Attributes:
        name: of the entry point.
        connection_file: where the kernel's connection is written down, on this machine.
    """

    poll_interval = Float(
        3.0, config=True, help="Seconds between two looks at a kernel: each may be a call to another machine."
    )

    def __init__(
        self, *, name: str, provisioner_class: type[Any], settings: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.name: str = name
        self.connection_file: Path | None = None
        self._class = provisioner_class
        self._settings = dict(settings or {})
        self._theirs: Any = None
        self._manager: ForeignManager | None = None
        self._encryption: Encryption = Encryption.DISABLED
        self._outputs: Outputs | None = None
        self._watch: Watch | None = None
        self._guarded: int | None = None

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_process(self) -> bool:
        """Whether the provisioner says so, and no end was seen."""
        return self._theirs is not None and has_process(self._theirs) and not (self._watch and self._watch.has_ended)

    async def poll(self) -> int | None:
        """Ask the provisioner whether its kernel runs: None, or the exit code; 0 where there was none."""
        return await self._do(self._watch.look) if self._watch is not None else 0

    async def wait(self) -> int | None:
        """Wait until the provisioner says that its kernel has ended; several may wait at once, and give up."""
        return await self._watch.end() if self._watch is not None else None

    async def send_signal(self, signum: int) -> None:
        """Let the provisioner send a signal; a kernel that has ended gets none."""
        if self.has_process:
            await self._do(lambda: self._theirs.send_signal(signum))

    async def kill(self, restart: bool = False) -> None:
        """Let the provisioner end its kernel by force; that it cannot is logged."""
        await self._end_by("kill", restart=restart)

    async def terminate(self, restart: bool = False) -> None:
        """Let the provisioner ask its kernel to end; that it cannot is logged."""
        await self._end_by("terminate", restart=restart)

    async def keeps_kernel(self, restart: bool = False) -> bool:
        """Offer the provisioner the request that would end its kernel: some keep it back in their manager's session."""

        async def offer() -> bool:
            if self._manager is None:
                return False
            self._manager.shutting_down = True
            try:
                return not self._manager.lets_through(MessageType.SHUTDOWN_REQUEST, {"restart": restart})
            except Exception:  # an end must come to its end
                self.log.exception("The provisioner %s of kernel %s failed: session.send", self.name, self.kernel_id)
                return False

        return await self._do(offer)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Tell the provisioner that its kernel was asked to end."""
        await self._end_by("shutdown_requested", restart=restart)

    async def _end_by(self, method: str, *, restart: bool) -> None:
        async def end() -> None:
            if self._theirs is None or self._manager is None or self._watch is None:
                return
            self._manager.shutting_down = True
            self._watch.hurry()
            try:
                await getattr(self._theirs, method)(restart=restart)
            except Exception:  # an end must come to its end
                self.log.exception("The provisioner %s of kernel %s failed: %s", self.name, self.kernel_id, method)
            if method == "kill" and (process := local_process(self._theirs)) is not None:
                process.kill()

        await self._do(end)

    # ── launch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Let the provisioner prepare a launch.

        Raises:
            KernelStartError: it cannot, or the kernel cannot be encrypted although it must be.
        """
        policy = kwargs.pop("transport_encryption", None) or getattr(self.parent, "transport_encryption", "disabled")
        self._encryption = decide_encryption(policy, self.kernel_spec)
        given = {name: value for name, value in kwargs.items() if value is not None}
        Guard.shared()  # from here on there may be files for it to remove at the end
        return await self._start(lambda: self._prepare(given))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Let the provisioner start its kernel; it may tell only now where that is reached.

        Raises:
            KernelStartError: it cannot, or what it says of the kernel's connection is of no use.
        """
        info = await self._start(lambda: self._launch(cmd, kwargs))
        self._guard(local_process(self._theirs))
        return info

    async def post_launch(self, **kwargs: Any) -> None:
        """Let the provisioner follow its launch up.

        Raises:
            KernelStartError: it fails.
        """
        await self._start(lambda: self._theirs.post_launch(**kwargs))

    async def cleanup(self, restart: bool = False) -> None:
        """Let the provisioner release what its kernel used, and remove the connection file unless a launch follows."""
        await self._do(lambda: self._release(restart=restart))
        if self._guarded is not None and not self.has_process:
            Guard.shared().remove(self._guarded)
            self._guarded = None

    def _guard(self, process: subprocess.Popen[bytes] | None) -> None:
        """Let a process of this machine, with its group, end when ours does."""
        with suppress(ProcessLookupError):
            if process is not None and os.getpgid(process.pid) == process.pid:
                self._guarded = process.pid
                Guard.shared().add(ProcessIdentity.of(process.pid), [str(self.connection_file)])

    async def _prepare(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self._manager is not None and not self.connection_info:  # another connection is wanted
            await self._release(restart=False)
        if self._manager is None or self._theirs is None:
            self._manager, self._theirs = self._make()
        self._outputs = None
        self._watch = Watch(self._theirs, self.name, self.poll_interval, self.log)
        self._manager.begin_launch(kwargs, self._encryption)
        prepared: dict[str, Any] = await self._theirs.pre_launch(**kwargs)
        return prepared

    async def _launch(self, cmd: list[str], kwargs: dict[str, Any]) -> KernelConnectionInfo:
        assert self._manager is not None
        assert self._watch is not None
        with self._captured_output(kwargs) as streams:
            info: dict[str, Any] = await self._theirs.launch_kernel(cmd, **kwargs, **streams)
        if not has_process(self._theirs):
            raise KernelStartError(f"The provisioner {self.name!r} has started nothing, and does not say why.")
        self._watch.begin(self._outputs)
        key = info.get("key", b"")
        self._manager.take_over({**info, "key": key.encode() if isinstance(key, str) else key})
        self.connection_file = Path(self._manager.connection_file)
        connection = ConnectionInfo.from_dict({**info, "kernel_name": self.kernel_spec.name})
        if self._encryption is Encryption.REQUIRED and not connection.is_encrypted:
            raise KernelStartError(f"The kernel must be encrypted, and the provisioner {self.name!r} has not done so.")
        self.connection_info = {**connection.as_dict(), "key": connection.key}
        return self.connection_info

    async def _release(self, *, restart: bool) -> None:
        theirs, manager = self._theirs, self._manager
        if theirs is None or manager is None:
            return
        try:
            await theirs.cleanup(restart=restart)
        finally:
            manager.release(restart=restart)
            if not restart:
                self._theirs = self._manager = None
                if self._watch is not None:
                    self._watch.give_up()

    # ── what is known of it ─────────────────────────────────────────────────────────────────────────────────────────

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return what the provisioner says, or what is recommended before there is one."""
        return self._theirs.get_shutdown_wait_time(recommended=recommended) if self._theirs else recommended

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Return what the provisioner says, or what is recommended before there is one."""
        return self._theirs.get_stable_start_time(recommended=recommended) if self._theirs else recommended

    def resolve_path(self, path: str) -> str | None:
        """Return the path that the provisioner knows for a file of the kernel; None where it knows none."""
        resolve = getattr(self._theirs, "resolve_path", None)  # since jupyter_client 8.8
        return resolve(path) if resolve is not None else None

    def output_tail(self) -> str:
        """Return the last 64 KiB of stdout and stderr, of a process of this machine."""
        return self._outputs.output.text() if self._outputs is not None else ""

    def stderr_tail(self) -> str:
        """Return the last 64 KiB of stderr, of a process of this machine."""
        return self._outputs.errors.text() if self._outputs is not None else ""

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return the connection, and what the provisioner tells another process, as JSON has it."""
        info = await super().get_provisioner_info()
        theirs: Any = await self._do(self._theirs.get_provisioner_info) if self._theirs is not None else {}
        return {**info, "provisioner": _as_json(theirs)}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Take over the kernel that another process had started, as far as the provisioner can.

        Raises:
            KernelStartError: it cannot.
        """
        await super().load_provisioner_info(provisioner_info)
        theirs = dict(cast("dict[str, Any]", provisioner_info["provisioner"]))
        if "connection_info" in theirs:
            theirs["connection_info"] = self.connection_info
        await self._start(lambda: self._adopt(theirs))

    async def _adopt(self, info: dict[str, Any]) -> None:
        self._manager, self._theirs = self._make()
        await self._theirs.load_provisioner_info(info)
        self._watch = Watch(self._theirs, self.name, self.poll_interval, self.log)
        self._watch.begin(None)

    # ── theirs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _make(self) -> tuple[ForeignManager, Any]:
        """Make the provisioner, and the manager that it takes for ours, with the connection that is decided already."""
        from cobnut_kernel.provisioning.foreign_manager import ForeignManager

        wishes = _wishes(self.parent, self.connection_info)
        if wishes["transport"] == "ipc" and not wishes["ip"]:
            wishes["ip"] = str(OwnerDirectory.shared().path / f"f{next(_PREFIXES)}")
        if not wishes["connection_file"]:
            wishes["connection_file"] = str(OwnerDirectory.shared().path / f"kernel-{self.kernel_id}.json")
        manager = ForeignManager.standing_for(self.parent, self.kernel_id, self.kernel_spec, **wishes)
        theirs = self._class(
            kernel_id=self.kernel_id, kernel_spec=manager.kernel_spec, parent=manager, **self._settings
        )
        theirs.connection_info = {}  # jupyter_client's own is one dict for all of them
        return manager, theirs

    @contextmanager
    def _captured_output(self, kwargs: Mapping[str, Any]) -> Generator[dict[str, int]]:
        """Keep what a process of this machine writes: to our terminal it must not."""
        from cobnut_kernel.provisioning.foreign_manager import inherits_output

        names = [name for name in ("stdout", "stderr") if kwargs.get(name) is None]
        if not inherits_output(self._theirs) or len(names) < 2:
            yield {}
            return
        self._outputs = Outputs()
        pipes = [os.pipe() for _ in names]
        try:
            self._outputs.attach(*(os.fdopen(reader, "rb", 0) for reader, _ in pipes))
            yield {name: writer for name, (_, writer) in zip(names, pipes, strict=True)}
        finally:
            for _, writer in pipes:
                os.close(writer)

    async def _start(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do a step of the start; whatever goes wrong is told with the provisioner's name."""
        try:
            return await self._do(step)
        except KernelStartError:
            raise
        except Exception as error:
            raise KernelStartError(
                f"The provisioner {self.name!r} could not start the kernel {self.kernel_spec.name!r}: {_text(error)}"
            ) from error

    async def _do(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await ForeignLoop.shared().run(step)


def _wishes(manager: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what is decided of a connection: what it was before, or else what is set on our manager."""
    names = ("ip", *PORT_NAMES, "curve_publickey", "curve_secretkey")
    session = getattr(manager, "session", None)
    wishes = {name: getattr(manager, name, None) for name in (*names, "transport")}
    wishes["key"] = getattr(session, "key", b"")
    wishes.update({name: known[name] for name in wishes if name in known})
    for name in ("curve_publickey", "curve_secretkey"):
        if isinstance(key := wishes[name], str):
            wishes[name] = key.encode()
    transport = "ipc" if wishes["transport"] == "ipc" else "tcp"
    return {**wishes, "transport": transport, "connection_file": getattr(manager, "connection_file", "")}


def _as_json(value: Any) -> Any:
    """Make JSON of what a provisioner tells of itself: bytes become text, what is strange its description."""
    match value:
        case bytes():
            return value.decode("utf-8", "replace")
        case dict():
            return {str(key): _as_json(each) for key, each in cast("dict[Any, Any]", value).items()}
        case list() | tuple():
            return [_as_json(each) for each in cast("list[Any]", value)]
        case str() | int() | float() | bool() | None:
            return value
        case _:
            return str(value)


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
