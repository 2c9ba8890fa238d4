"""AsyncKernelManager: start, watch, interrupt, restart and stop one kernel."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4
from weakref import WeakSet

from traitlets import (
    CaselessStrEnum,
    DottedObjectName,
    Enum,
    Float,
    Instance,
    TraitError,
    Unicode,
    default,
    observe,
    validate,
)
from traitlets.config import LoggingConfigurable
from traitlets.utils.importstring import import_item

from cobnut_kernel.errors import KernelError
from cobnut_kernel.kernelspec import NATIVE_NAME, KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState, Lifecycle, Ready
from cobnut_kernel.portal import Portal, PortalTask, join, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.life import KernelLife
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

T = TypeVar("T")

PENDING_POLICIES = ("raise", "wait", "cancel")
"""What a stop does while the kernel's start or restart runs."""


class AsyncKernelManager(LoggingConfigurable):
    """The manager of one kernel.

    Its methods may be awaited on asyncio or trio, from any thread; what they do happens on the portal's thread and
    goes on when nobody waits. Cancelling who awaits a start undoes it; cancelling who awaits a stop ends the kernel
    by force. A kernel can be started again after it was stopped or has died.

    While a start or a restart is on its way (the kernel is pending) `restart_kernel` and `interrupt_kernel` raise
    `PendingKernelError`, and `shutdown_kernel` does what `pending_shutdown` says.
    """

    kernel_name = Unicode(NATIVE_NAME, help="The name of the kernelspec.")
    kernel_id = Unicode(help="The kernel's id; the first start gives it one.")
    kernel_spec_manager = Instance(KernelSpecManager, help="Where kernelspecs are looked for.")
    client_class = DottedObjectName(
        "cobnut_kernel.client.client.AsyncKernelClient", config=True, help="The class of what `client` makes."
    )
    shutdown_wait_time = Float(
        5.0, config=True, help="Seconds that a kernel may take to end: half after it is asked, half after SIGTERM."
    )
    startup_timeout = Float(60.0, config=True, help="Seconds after which a kernel that never answered is ended.")
    transport_encryption = CaselessStrEnum(
        ["disabled", "auto", "required"],
        default_value="disabled",
        config=True,
        help="Whether what is sent on ports is encrypted (CURVE): never, where the kernelspec declares that the kernel"
        " can, or always, on unix sockets too; with 'required' a kernel that cannot is not started.",
    )
    pending_shutdown = Enum(
        PENDING_POLICIES,
        default_value="raise",
        config=True,
        help="What shutdown_kernel does while the kernel is pending: raise, wait for the start, or cancel it.",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lock = threading.RLock()
        self._portal: Portal | None = None
        self._lifecycle = Lifecycle(self._note)
        self._life: KernelLife | None = None
        self._rise: PortalTask[None] | None = None
        self._fall: PortalTask[None] | None = None
        self._promise: Ready | None = None
        self._options: dict[str, Any] = {}
        self._spec: KernelSpec | None = None
        self._clients: WeakSet[AsyncKernelClient] = WeakSet()
        self._callbacks: list[Callable[[AsyncKernelManager, KernelState], object]] = []

    @default("kernel_spec_manager")
    def _default_kernel_spec_manager(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self)

    @validate("transport_encryption")
    def _check_transport_encryption(self, proposal: dict[str, Any]) -> str:
        if proposal["value"] != "disabled":
            import zmq  # to import a manager is to need no socket yet

            if not zmq.has("curve"):
                raise TraitError("This zmq cannot encrypt: install pyzmq with CURVE, or leave it 'disabled'.")
        return proposal["value"]

    @observe("kernel_name")
    def _on_kernel_name(self, change: dict[str, Any]) -> None:
        self._spec = None
        if change["new"] == "python":
            self.kernel_name = NATIVE_NAME

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> KernelState:
        """Where the kernel is on its way."""
        return self._lifecycle.state

    @property
    def ready(self) -> Ready:
        """The outcome of the last start, restart or stop.

        A start is over when the process runs and its connection is known.
        """
        return self._lifecycle.ready

    @property
    def answered(self) -> Ready:
        """The kernel's first answer over the wire; fails with its start, its death or its stop."""
        return self._lifecycle.answered

    @property
    def death(self) -> DeathReport | None:
        """Why the kernel is dead; None where it is not."""
        return self._lifecycle.death

    @property
    def provisioner(self) -> KernelProvisionerBase | None:
        """What provides the kernel's process; None before the first start."""
        return self._life.provisioner if self._life is not None else None

    @property
    def connection_info(self) -> ConnectionInfo | None:
        """Where the kernel is, or was, reached; None before the first start."""
        return self._life.connection if self._life is not None else None

    @property
    def has_kernel(self) -> bool:
        """Whether there is a process."""
        provisioner = self.provisioner
        return provisioner is not None and provisioner.has_process

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernelspec of `kernel_name`.

        Raises:
            NoSuchKernel: there is none.
        """
        spec = self._spec
        if spec is None:
            spec = self._spec = self.kernel_spec_manager.get_kernel_spec(self.kernel_name)
        return spec

    def output_tail(self) -> str:
        """Return the end of what the process wrote to stdout and stderr, raw: escape sequences are still in it."""
        provisioner = self.provisioner
        return provisioner.output_tail() if provisioner is not None else ""

    async def is_alive(self) -> bool:
        """Say whether the process runs."""
        return self.has_kernel and await self._run(lambda life: life.is_alive())

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel, and wait until its process runs and its connection is known.

        Args:
            options: `kernel_name`, `kernel_id`, `cwd`, `env` (in place of ours, not added to it),
                `extra_arguments` for the kernel's command, `transport_encryption` in place of the trait, and what
                `subprocess.Popen` takes.

        Raises:
            NoSuchKernel: there is no kernelspec of that name.
            KernelStartError: it could not be started; nothing of the attempt is left.
            KernelStartCancelled: somebody stopped it meanwhile.
            PendingKernelError: it is starting, restarting or stopping already.
            KernelError: it runs already.
        """
        await join(self.begin_start(**options))

    def begin_start(self, **options: Any) -> PortalTask[None]:
        """Begin what `start_kernel` does, and return at once; needs no loop. Raises as it does."""
        with self._lock:
            self._portal = Portal.shared()
            ready = self._lifecycle.begin_start()
            self.kernel_id = options.pop("kernel_id", None) or self.kernel_id or str(uuid4())
            self.kernel_name = options.pop("kernel_name", None) or self.kernel_name
            self._options = options
            self._rise = self._begin(lambda life: life.start(ready, options))
            return self._rise

    async def restart_kernel(self, now: bool = False, newports: bool = False, **options: Any) -> None:
        """Stop the kernel and start it again, with the same id, key and connection; a dead one too.

        Args:
            now: kill it at once, rather than ask it to end.
            newports: give it another connection. Without, its clients find it again by themselves.
            options: replace those of the start.

        Raises:
            PendingKernelError: it is starting, restarting or stopping.
            KernelError: it was never started.
            Exception: what `start_kernel` raises.
        """
        with self._lock:
            self._portal = Portal.shared()
            ready = self._lifecycle.begin_restart()
            merged = self._options = {**self._options, **options}
            self._rise = self._begin(lambda life: life.restart(ready, merged, now=now, newports=newports))
        await join(self._rise)

    def cancel_start(self) -> None:
        """Cancel the start or restart that is on its way; what it did is undone. Nothing happens where none is."""
        with self._lock:
            if self._lifecycle.is_beginning and self._rise is not None:
                self._rise.cancel()

    # ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────

    async def interrupt_kernel(self) -> None:
        """Interrupt what the kernel does, by a signal or a message as its spec says; wait for its first answer before.

        Raises:
            PendingKernelError: it is starting, restarting or stopping.
            KernelError: no kernel is running, or it died before it answered, or does not answer the request.
        """
        self._lifecycle.require_settled("interrupt")
        await self._run(lambda life: life.interrupt())

    async def signal_kernel(self, signum: int) -> None:
        """Send a signal to the kernel's process group.

        Raises:
            KernelError: no kernel is running.
        """
        await self._run(lambda life: life.signal(signum))

    def client(self, **traits: Any) -> AsyncKernelClient:
        """Make a client of the kernel, a party of its own; it is told when the kernel dies and when it is back.

        Raises:
            KernelError: the kernel's connection is not known yet.
        """
        client = self.create_client(**traits)
        with self._lock:
            self._clients.add(client)
        return client

    def add_state_callback(self, callback: Callable[[AsyncKernelManager, KernelState], object]) -> Callable[[], None]:
        """Call back with every new state, in order, on the portal's thread: it must not wait. Returns the undo."""
        self._callbacks.append(callback)

        def undo() -> None:
            with suppress(ValueError):
                self._callbacks.remove(callback)

        return undo

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Stop the kernel: interrupt it, ask it to end, then SIGTERM, then SIGKILL to its group.

        While a stop runs this waits for that one, and with `now` kills at once. Nothing happens where no kernel is.

        Args:
            now: kill it at once.
            restart: tell the kernel that another start follows, and keep its connection file.

        Raises:
            PendingKernelError: it is starting, and `pending_shutdown` is "raise".
        """
        task, is_ours = self.begin_stop(now=now, restart=restart)
        await (join(task) if is_ours else settled(task))

    async def kill_kernel(self) -> None:
        """Stop the kernel by SIGKILL to its group. Raises as `shutdown_kernel` does."""
        await self.shutdown_kernel(now=True)

    def begin_stop(
        self, *, now: bool = False, restart: bool = False, pending: str | None = None
    ) -> tuple[PortalTask[None], bool]:
        """Begin what `shutdown_kernel` does, and return at once; needs no loop. Raises as it does.

        Args:
            now: kill it at once.
            restart: tell the kernel that another start follows.
            pending: in place of the trait `pending_shutdown`.

        Returns:
            The stop, and whether this call began it.
        """
        policy = pending or self.pending_shutdown
        with self._lock:
            if self._lifecycle.is_beginning:
                if policy == "raise":
                    self._lifecycle.require_settled("stop")
                if policy == "cancel":
                    self.cancel_start()
            if self._fall is not None and self._lifecycle.ready is self._promise and not self.ready.done():
                if now and self._life is not None and self._portal is not None:
                    self._portal.call_soon(self._life.hurry)
                return self._fall, False
            waits = self._lifecycle.is_beginning and policy == "wait"
            promise = self._promise = self._lifecycle.await_stop() if waits else self._lifecycle.begin_stop()
            self._fall = self._begin(lambda life: life.stop(promise, now=now, restart=restart))
            return self._fall, True

    # ── for the life ────────────────────────────────────────────────────────────────────────────────────────────────

    def create_provisioner(self) -> KernelProvisionerBase:
        """Make the provisioner that the kernelspec names.

        Raises:
            NoSuchKernel: there is no kernelspec.
            ModuleNotFoundError: the provisioner is not installed.
        """
        from cobnut_kernel.provisioning.factory import KernelProvisionerFactory

        factory = KernelProvisionerFactory.instance(parent=self.parent)
        return factory.create_provisioner_instance(self.kernel_id, self.kernel_spec, parent=self)

    def create_client(self, **traits: Any) -> AsyncKernelClient:
        """Make a client that is not told of the kernel's death.

        Raises:
            KernelError: the kernel's connection is not known yet.
        """
        info = self.connection_info
        if info is None:
            raise KernelError("The kernel's connection is not known yet: start it and await `ready`.")
        return import_item(self.client_class)(connection_info=info, parent=self, **traits)

    def known_clients(self) -> list[AsyncKernelClient]:
        """List the clients to tell of the kernel's death."""
        with self._lock:
            return list(self._clients)

    def _begin(self, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> PortalTask[T]:
        portal = Portal.shared()
        return portal.start_soon(self._on_portal, portal, work)

    async def _run(self, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> T:
        portal = Portal.shared()
        return await portal.run(self._on_portal, portal, work)

    async def _on_portal(self, portal: Portal, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> T:
        from cobnut_kernel.manager.life import KernelLife  # with asyncio: on the portal's thread, not on import

        if self._life is None or self._life.portal is not portal:  # its portal has ended, and the kernel with it
            self._life = KernelLife(self, self._lifecycle, portal)
        return await work(self._life)

    def _note(self, state: KernelState) -> None:
        with suppress(RuntimeError):  # the portal is ending, and with it all who listened
            if self._portal is not None:
                self._portal.call_soon(self._announce, state)

    def _announce(self, state: KernelState) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(self, state)
            except Exception:  # the others hear of it nevertheless
                self.log.exception("A state callback of kernel %s failed", self.kernel_id)
