"""Our provisioners for jupyter_client's managers, and so for JupyterLab: entry points `cobnut-local`, `cobnut-fork`.

A kernelspec asks for one in its `metadata.kernel_provisioner`; JUPYTER_DEFAULT_PROVISIONER_NAME does for all others.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from traitlets import Any as AnyTrait
from traitlets import Unicode
from traitlets.config import LoggingConfigurable
from traitlets.utils.importstring import import_item

from cobnut_kernel.errors import KernelError, KernelStartError
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.portal import Portal, finish, settled
from cobnut_kernel.protocol.connection import PORT_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from cobnut_kernel.portal import PortalTask
    from cobnut_kernel.provisioning.base import KernelConnectionInfo
    from cobnut_kernel.provisioning.local import LocalProvisioner

T = TypeVar("T")

REPORTED_LINES = 20
"""How many lines of its stderr are logged of a kernel that ended by itself and not well."""


class CobnutLocalProvisioner(LoggingConfigurable):
    """A `LocalProvisioner` in the service of a manager of jupyter_client, whose calls come on any loop of any thread.

    What it does happens on our portal, and the kernel ends with that; on the next one it can be started again.
    The kernel's connection file is a private one; the manager writes its own for its clients, of what `launch_kernel`
    returns. They are clients of jupyter_client, so the kernel gets ports, unless the manager's transport, or that of
    this provisioner in the kernelspec, is ipc.

    Args:
        kernel_id: of the kernel.
        kernel_spec: jupyter_client's, or ours.
        parent: the manager.
        config: the traits of our provisioner.
    """

    provisioner_class: str = "cobnut_kernel.provisioning.local.LocalProvisioner"

    kernel_spec = AnyTrait(help="The spec of the kernel, as the manager has it.")
    kernel_id = Unicode(None, allow_none=True, help="The id of the kernel.")

    def __init__(self, *, kernel_id: str, kernel_spec: Any, parent: Any = None, **config: Any) -> None:
        super().__init__(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent)
        self._settings = ManagerSettings(parent, prefers_ports="transport" not in config)
        self._ours: LocalProvisioner = import_item(self.provisioner_class)(
            kernel_id=kernel_id, kernel_spec=our_spec(kernel_spec), parent=self._settings, **config
        )
        self._is_managed: bool = False
        self._is_to_end: bool = False
        self._is_lost: bool = False
        self._is_over: asyncio.Event | None = None
        self._stay: PortalTask[None] | None = None
        _count_as_theirs(type(self))

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def connection_info(self) -> KernelConnectionInfo:
        """Where the kernel is reached; empty before the first launch."""
        return self._ours.connection_info

    @property
    def has_process(self) -> bool:
        """Whether there is a process that nobody has waited for, running or not."""
        return self._is_managed

    @property
    def process(self) -> Any:
        """The process of the last launch."""
        return self._ours.process

    @property
    def pid(self) -> int | None:
        """The id of the process."""
        return self._ours.pid

    @property
    def pgid(self) -> int | None:
        """The id of the process group."""
        return self._ours.pgid

    @property
    def cwd(self) -> str:
        """The folder that the kernel was started in."""
        return self._ours.cwd

    async def poll(self) -> int | None:
        """Return None while the process runs, then its exit code; 0 where there was none."""
        return await self._do(self._ours.poll)

    async def wait(self) -> int | None:
        """Wait until the process has ended; a bad end that nobody asked for is logged with its last words."""
        code = await self._do(self._ours.wait)
        if self._is_managed and code and not self._is_to_end:
            words = "\n".join(self._ours.stderr_tail().splitlines()[-REPORTED_LINES:])
            self.log.warning("Kernel %s has ended with code %s. %s", self.kernel_id, code, words)
        self._is_managed = False
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process group."""
        await self._do(partial(self._ours.send_signal, signum))

    async def kill(self, restart: bool = False) -> None:
        """End the process group by SIGKILL."""
        self._is_to_end = True
        await self._do(partial(self._ours.kill, restart=restart))

    async def terminate(self, restart: bool = False) -> None:
        """End the process group by SIGTERM."""
        self._is_to_end = True
        await self._do(partial(self._ours.terminate, restart=restart))

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Take note that the kernel was asked to end."""
        self._is_to_end = True
        await self._do(partial(self._ours.shutdown_requested, restart=restart))

    # ── launch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare a launch; on other ports where the manager has forgotten them and its `cache_ports` is off.

        With `cache_ports`, as by default, its restart on new ports keeps the old ones with every provisioner: its
        restarter asks for new ones in the first seconds, and the clients of JupyterLab's server would stay behind.

        Raises:
            KernelStartError: the kernel cannot be started like this.
        """
        if not (self._settings.cache_ports or any(self._settings.ports)):
            self._ours.connection_info = {}
        self._is_to_end = False
        return await self._do(partial(self._prepare, kwargs))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the process and return where the kernel is reached.

        Raises:
            KernelStartError: it could not be started, or what was prepared for it has ended with the portal; nothing
                of it is left.
            KernelDiedError: it has ended before it told where it is reached; nothing of it is left.
        """
        info = await self._do(partial(self._launch, cmd, kwargs))
        self._is_managed = True
        return info

    async def post_launch(self, **kwargs: Any) -> None:
        """Follow a launch up."""
        await self._do(partial(self._ours.post_launch, **kwargs))

    async def cleanup(self, restart: bool = False) -> None:
        """Remove what the kernel used besides its process; with `restart` only what the next one does not use."""
        await self._do(partial(self._clean_up, restart=restart))

    async def _prepare(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        prepared = await self._undone_on_failure(partial(self._ours.pre_launch, **kwargs))
        self._settle()
        return prepared

    async def _adopt(self, provisioner_info: Mapping[str, Any]) -> None:
        await self._ours.load_provisioner_info(provisioner_info)
        self._settle()

    def _settle(self) -> None:
        """Let what there is of the kernel end with the portal."""
        self._is_lost = False
        if self._stay is None:
            self._is_over = asyncio.Event()
            self._stay = Portal.shared().start_soon(self._end_with_portal, self._is_over)

    async def _launch(self, cmd: list[str], kwargs: dict[str, Any]) -> KernelConnectionInfo:
        if self._is_lost:  # nobody would hear the kernel tell its ports
            raise KernelStartError("The start of the kernel was interrupted, its portal was stopped: start it again.")
        return await self._undone_on_failure(partial(self._ours.launch_kernel, cmd, **kwargs))

    async def _clean_up(self, *, restart: bool) -> None:
        await self._ours.cleanup(restart=restart)
        if not restart and self._is_over is not None:
            self._is_over.set()
            self._stay = self._is_over = None

    async def _end_with_portal(self, is_over: asyncio.Event) -> None:
        """Let nobody wait for a kernel that nobody can watch any more."""
        try:
            await is_over.wait()
        except asyncio.CancelledError:
            self._is_lost = True
            if self._ours.independent:
                self._ours.let_go()
            else:
                await finish(self._undo())
            raise

    async def _undone_on_failure(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do a step of the launch; the manager would not clear up after one that fails."""
        try:
            return await step()
        except BaseException:
            await finish(self._undo())
            raise

    async def _undo(self) -> None:
        await self._ours.kill()
        await self._ours.wait()
        await self._clean_up(restart=False)

    # ── what is known of it ─────────────────────────────────────────────────────────────────────────────────────────

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return how many seconds the kernel may take to end before it is killed."""
        return self._ours.get_shutdown_wait_time(recommended)

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Return after how many seconds a start counts as stable."""
        return self._ours.get_stable_start_time(recommended)

    def resolve_path(self, path: str) -> str | None:
        """Return the absolute path of a file as the kernel sees it."""
        return self._ours.resolve_path(path)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to adopt the kernel, as JSON has it."""
        return await self._do(self._ours.get_provisioner_info)

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Adopt a kernel that another process has started.

        Raises:
            KernelError: it is not to be had.
        """
        await self._do(partial(self._adopt, provisioner_info))
        self.kernel_id = self._ours.kernel_id
        self._is_managed = True

    async def _do(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the portal; where one ends that the kernel lives on, after that.

        Raises:
            KernelError: the portal was stopped meanwhile.
        """
        portal = Portal.shared()
        if (stay := self._stay) is not None and stay.portal is not portal:
            await settled(stay)
            self._stay = None if self._stay is stay else self._stay
        try:
            return await portal.run(step)
        except CancelledError as error:
            raise KernelError(
                "The portal of the kernel was stopped, and the kernel with it: start it again."
            ) from error


class CobnutForkProvisioner(CobnutLocalProvisioner):
    """A `ForkProvisioner` in the service of a manager of jupyter_client: our own kernel starts in some milliseconds."""

    provisioner_class = "cobnut_kernel.provisioning.fork.ForkProvisioner"


class ManagerSettings(LoggingConfigurable):
    """What our provisioners read of their manager, of one of jupyter_client.

    Args:
        manager: that one, or None.
        prefers_ports: whether its transport "tcp", which it has by default, is meant.
    """

    def __init__(self, manager: Any, *, prefers_ports: bool = True) -> None:
        super().__init__(parent=manager)
        self._manager = manager
        self._unless_ipc = "tcp" if prefers_ports else "auto"

    @property
    def transport(self) -> str:
        """How the kernel is to be reached."""
        return "ipc" if getattr(self._manager, "transport", "tcp") == "ipc" else self._unless_ipc

    @property
    def ip(self) -> str:
        """The address that the kernel listens on; none with unix sockets, whose folder is ours."""
        return "" if self.transport == "ipc" else getattr(self._manager, "ip", "")

    @property
    def ports(self) -> list[int]:
        """The ports, in the order of a connection file; 0 for any."""
        return [getattr(self._manager, name, 0) for name in PORT_NAMES]

    def __getattr__(self, name: str) -> Any:
        """Hand on the ports, the session and the encryption; the connection file is the manager's own."""
        if name in (*PORT_NAMES, "session", "transport_encryption", "cache_ports"):
            return getattr(self._manager, name)
        raise AttributeError(f"A manager of jupyter_client has no {name!r} for us.")


def our_spec(spec: Any) -> KernelSpec:
    """Make one of our kernelspecs of one of jupyter_client's, of whatever version; ours stays as it is."""
    if isinstance(spec, KernelSpec):
        return spec
    return KernelSpec(**{name: getattr(spec, name) for name in KernelSpec.class_traits() if hasattr(spec, name)})


def _count_as_theirs(ours: type) -> None:
    """Let a class pass for a provisioner where jupyter_client asks for one; nothing is imported for that."""
    base = getattr(sys.modules.get("jupyter_client.provisioning.provisioner_base"), "KernelProvisionerBase", None)
    if base is not None:
        base.register(ours)
