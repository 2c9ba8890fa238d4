"""What is known of one kernel, whom one talks to it by, and who is told when something changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

from cobnut_kernel.errors import KernelError
from cobnut_kernel.manager.callbacks import Callbacks
from cobnut_kernel.manager.clients import Client, Clients
from cobnut_kernel.manager.lifecycle import BEGINNING, DeathReport, KernelState, Lifecycle, Phase, Ready
from cobnut_kernel.manager.restarter import KernelRestarter
from cobnut_kernel.manager.traits import ManagerTraits
from cobnut_kernel.manager.workplace import Workplace

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.client.blocking import BlockingKernelClient
    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.manager.start_queue import Turn
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

HOLDING = BEGINNING | {KernelState.STARTING}
"""The states in which a start holds its turn."""


class KnownKernel(ManagerTraits):
    """The part of a kernel's manager that changes nothing: it may be asked in any thread, and answers at once.

    Attributes:
        clients: those that are told of the kernel's deaths and returns.
        restarter: decides what follows a death.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clients: Clients = Clients()
        self.restarter: KernelRestarter = KernelRestarter(parent=self)
        self._lifecycle = Lifecycle(self._note)
        self._work = Workplace(cast("AsyncKernelManager", self), self._lifecycle)
        self._turn: Turn | None = None
        self._on_state = Callbacks[Any, KernelState](self.log, "state")
        self._on_event = Callbacks[Any, Phase](self.log, "event")

    @classmethod
    def section_names(cls) -> list[str]:
        """Name the sections of a configuration that count; this class has none of its own."""
        return [name for name in super().section_names() if name != KnownKernel.__name__]

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
    def phases(self) -> tuple[Phase, ...]:
        """Where the kernel has been since its last start or restart was asked for, and how long; now is the last."""
        return self._lifecycle.phases

    @property
    def shutting_down(self) -> bool:
        """Whether the kernel is on its way down, to come up again maybe."""
        return self.state in {KernelState.STOPPING, KernelState.RESTARTING}

    @property
    def death(self) -> DeathReport | None:
        """Why the kernel is dead; None where it is not."""
        return self._lifecycle.death

    @property
    def provisioner(self) -> KernelProvisionerBase | None:
        """What provides the kernel's process; None before the first start."""
        return self._work.life.provisioner if self._work.life is not None else None

    @property
    def connection_info(self) -> ConnectionInfo | None:
        """Where the kernel is, or was, reached, or what was loaded; None where nothing is known."""
        launched = self._work.life.connection if self._work.life is not None else None
        return launched or self.loaded_connection()

    @property
    def has_kernel(self) -> bool:
        """Whether there is a process."""
        provisioner = self.provisioner
        return provisioner is not None and provisioner.has_process

    def output_tail(self) -> str:
        """Return the end of what the process wrote to stdout and stderr, raw: escape sequences are still in it."""
        provisioner = self.provisioner
        return provisioner.output_tail() if provisioner is not None else ""

    def resolve_path(self, path: str) -> str | None:
        """Return the absolute path of a file as the kernel sees it; None where that is not known."""
        provisioner = self.provisioner
        return provisioner.resolve_path(path) if provisioner is not None else None

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def client(self, **traits: Any) -> AsyncKernelClient:
        """Make a client of the kernel, a party of its own; it is told when the kernel dies and when it is back.

        Raises:
            KernelError: the kernel's connection is not known yet.
        """
        return self.add_client(self.create_client(**traits))

    def blocking_client(self) -> BlockingKernelClient:
        """Make a client that blocks, told like the others; `blocking_class` names its class.

        Raises:
            KernelError: the kernel's connection is not known yet.
        """
        return self.add_client(self.create_client(self.blocking_class))

    def add_client(self, client: Client) -> Client:
        """Tell a client of the kernel's deaths and returns from now on, as long as somebody else holds it."""
        return self.clients.add(client)

    def create_client(self, factory: Callable[..., Any] | None = None, **traits: Any) -> Any:
        """Make a client that is not told of the kernel's death.

        Args:
            factory: what makes it, in place of the trait `client_factory`.
            traits: of the client.

        Raises:
            KernelError: the kernel's connection is not known yet.
        """
        info = self.connection_info
        if info is None:
            raise KernelError("The kernel's connection is not known yet: start it and await `ready`.")
        return (factory or self.client_factory)(connection_info=info, **{"parent": self, **traits})

    # ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def add_state_callback(self, callback: Callable[[Self, KernelState], object]) -> Callable[[], None]:
        """Call back with every new state, in order, on the portal's thread: it must not wait. Returns the undo."""
        return self._on_state.add(callback)

    def add_event_callback(self, callback: Callable[[Self, Phase], object]) -> Callable[[], None]:
        """Call back with every phase, when it begins and again, with its `seconds`, when it is over.

        In order, on the portal's thread: it must not wait. Returns the undo.
        """
        return self._on_event.add(callback)

    def start_restarter(self) -> None:
        """Restart the kernel when it dies, where `autorestart` says so; every start does this."""
        self.restarter.start()

    def stop_restarter(self) -> None:
        """Do not restart the kernel when it dies, until its next start."""
        self.restarter.stop()

    def add_restart_callback(self, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back, without arguments, when the kernel restarts by itself, or is dead and stays so ("dead").

        On the portal's thread; a coroutine function is awaited there. What it raises is logged.

        Raises:
            ValueError: there is no such event.
        """
        self.restarter.add_callback(callback, event)

    def remove_restart_callback(self, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back no longer; no error where it was not to be."""
        self.restarter.remove_callback(callback, event)

    def _note(self, state: KernelState) -> None:
        if self._turn is not None and state not in HOLDING:
            self._turn.end()
        self._work.call_soon(self._announce, state, self._lifecycle.phases[-2:])

    def _announce(self, state: KernelState, phases: tuple[Phase, ...]) -> None:
        self._on_state.tell(self, state)
        for phase in phases:
            self._on_event.tell(self, phase)
