"""The blocking managers: lists of one-liners over the async ones, for code that has no event loop or cannot await.

They work in scripts, in threads, in cells of a Jupyter kernel, and inside running asyncio and trio programs, which
stand still meanwhile. Ctrl-C while one of them blocks cancels what it waits for, and undoes it.
"""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from traitlets import All, DottedObjectName, HasTraits

from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.manager.traits import ManagerTraits, MultiManagerTraits
from cobnut_kernel.portal import Portal, settled
from cobnut_kernel.traits import ABCMetaWithTraits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping

    import zmq

    from cobnut_kernel.client.blocking import BlockingKernelClient
    from cobnut_kernel.manager.culling import Activity
    from cobnut_kernel.manager.lifecycle import DeathReport, KernelState, Phase, Ready
    from cobnut_kernel.manager.restarter import KernelRestarter
    from cobnut_kernel.manager.start_queue import StartQueue
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

P = ParamSpec("P")
T = TypeVar("T")

_OWN_TRAITS = frozenset({"parent", "config", "log"})
_OWN_TRAITS_OF_ONE = _OWN_TRAITS | {"client_class", "client_factory", "blocking_class"}
_OWN_TRAITS_OF_MANY = _OWN_TRAITS | {"kernel_manager_class", "kernel_manager_factory"}
"""What the two colours do not share."""


class KernelManager(ManagerTraits, metaclass=ABCMetaWithTraits):
    """The manager of one kernel, whose methods return when what they do is done.

    What each does is said at `AsyncKernelManager`, which does it: there is one inside. For `isinstance` and
    `issubclass` that class counts as one of this, as documented. What is set on either is set on both; what a launch
    changes is told to observers on the portal's thread. The class is as long as the documented one is.

    Args:
        asynchronous: the manager inside, where there is one already; its settings count then.

    Attributes:
        asynchronous: the manager inside.
        asynchronous_class: its class, for who derives both.
    """

    asynchronous_class: type[AsyncKernelManager] = AsyncKernelManager
    client_class = DottedObjectName(
        "cobnut_kernel.client.blocking.BlockingKernelClient", config=True, help="The class of what `client` makes."
    )

    def __init__(self, *, asynchronous: AsyncKernelManager | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asynchronous: AsyncKernelManager = asynchronous or self.asynchronous_class(
            parent=self.parent, config=self.config, log=self.log, owns_kernel=self.owns_kernel
        )
        self.twin = self.asynchronous
        self.asynchronous.twin = self
        self._owns_kernel = self.asynchronous.owns_kernel
        self._choices = self.asynchronous._choices
        sides = (self, self.asynchronous) if asynchronous is None else (asynchronous, self)
        _share(*sides, set(ManagerTraits.class_trait_names()) - _OWN_TRAITS_OF_ONE)

    @classmethod
    def of(cls, manager: AsyncKernelManager) -> KernelManager:
        """Return the blocking manager of an async one's kernel: the one there is, or a new one."""
        twin = manager.twin
        return twin if isinstance(twin, KernelManager) else cls(asynchronous=manager, parent=manager.parent)

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> KernelState:
        """Where the kernel is on its way."""
        return self.asynchronous.state

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Where the kernel has been since its last start, and for how long."""
        return self.asynchronous.phases

    @property
    def ready(self) -> Ready:
        """The outcome of the last start, restart or stop."""
        return self.asynchronous.ready

    @property
    def answered(self) -> Ready:
        """The kernel's first answer over the wire."""
        return self.asynchronous.answered

    @property
    def death(self) -> DeathReport | None:
        """Why the kernel is dead; None where it is not."""
        return self.asynchronous.death

    @property
    def shutting_down(self) -> bool:
        """Whether the kernel is on its way down, to come up again maybe."""
        return self.asynchronous.shutting_down

    @property
    def restarter(self) -> KernelRestarter:
        """What decides what follows a death."""
        return self.asynchronous.restarter

    @property
    def provisioner(self) -> KernelProvisionerBase | None:
        """What provides the kernel's process; None before the first start."""
        return self.asynchronous.provisioner

    @property
    def connection_info(self) -> ConnectionInfo | None:
        """Where the kernel is, or was, reached, or what was loaded; None where nothing is known."""
        return self.asynchronous.connection_info

    @property
    def has_kernel(self) -> bool:
        """Whether there is a process."""
        return self.asynchronous.has_kernel

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return Portal.shared().call(self.asynchronous.is_alive)

    def output_tail(self) -> str:
        """Return the end of what the process wrote to stdout and stderr, raw."""
        return self.asynchronous.output_tail()

    def resolve_path(self, path: str) -> str | None:
        """Return the absolute path of a file as the kernel sees it; None where that is not known."""
        return self.asynchronous.resolve_path(path)

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Fill in the kernelspec's command, as a launch on this machine does."""
        return self.asynchronous.format_kernel_cmd(extra_arguments)

    def update_env(self, *, env: dict[str, str]) -> None:
        """Change the environment that the next restart gives."""
        self.asynchronous.update_env(env=env)

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_kernel(self, **options: Any) -> None:
        """Start the kernel, and wait until its process runs and its connection is known."""
        _begin(self._take_back, self.asynchronous.start_kernel, **options)

    def restart_kernel(self, now: bool = False, newports: bool = False, **options: Any) -> None:
        """Stop the kernel and start it again, with the same id, key and connection; a dead one too."""
        _begin(self._take_back, self.asynchronous.restart_kernel, now=now, newports=newports, **options)

    async def _take_back(self, _: None) -> None:
        await self.asynchronous.kill_kernel()

    def cancel_start(self) -> None:
        """Cancel the start or restart that is on its way."""
        self.asynchronous.cancel_start()

    def adopt(self, info: Mapping[str, Any]) -> None:
        """Take over a running kernel that another process described by `provisioner_info`."""
        Portal.shared().call(self.asynchronous.adopt, info)

    def attach(self) -> None:
        """Take a kernel of somebody else's, whose connection was loaded, for one that runs and answers."""
        self.asynchronous.attach()

    def provisioner_info(self) -> dict[str, Any]:
        """Describe the running kernel so that another process can `adopt` it."""
        return Portal.shared().call(self.asynchronous.provisioner_info)

    # ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt_kernel(self) -> None:
        """Interrupt what the kernel does, by a signal or a message as its spec says."""
        Portal.shared().call(self.asynchronous.interrupt_kernel)

    def signal_kernel(self, signum: int) -> None:
        """Send a signal to the kernel's process group."""
        Portal.shared().call(self.asynchronous.signal_kernel, signum)

    def client(self, **traits: Any) -> BlockingKernelClient:
        """Make a blocking client of the kernel, a party of its own."""
        return self.asynchronous.add_client(self.create_client(**traits))

    def blocking_client(self) -> BlockingKernelClient:
        """Make a blocking client; `blocking_class` names its class."""
        return self.asynchronous.add_client(self.asynchronous.create_client(self.blocking_class, parent=self))

    def create_client(self, **traits: Any) -> BlockingKernelClient:
        """Make a blocking client that is not told of the kernel's death."""
        return self.asynchronous.create_client(self.client_factory, **{"parent": self, **traits})

    def add_state_callback(self, callback: Callable[[KernelManager, KernelState], object]) -> Callable[[], None]:
        """Call back with every new state, in order, on the portal's thread: it must not wait. Returns the undo."""
        return self.asynchronous.add_state_callback(lambda _, state: callback(self, state))

    def add_event_callback(self, callback: Callable[[KernelManager, Phase], object]) -> Callable[[], None]:
        """Call back with every phase, when it begins and when it is over, on the portal's thread: it must not wait."""
        return self.asynchronous.add_event_callback(lambda _, phase: callback(self, phase))

    def add_restart_callback(self, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back on each restart that nobody asked for, or with event "dead" when the restarter gives up."""
        self.asynchronous.add_restart_callback(callback, event)

    def remove_restart_callback(self, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back no longer."""
        self.asynchronous.remove_restart_callback(callback, event)

    def start_restarter(self) -> None:
        """Restart the kernel from now on when it dies."""
        self.asynchronous.start_restarter()

    def stop_restarter(self) -> None:
        """Let the kernel be dead from now on when it dies."""
        self.asynchronous.stop_restarter()

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Stop the kernel: interrupt it, ask it to end, then SIGTERM, then SIGKILL to its group."""
        Portal.shared().call(self.asynchronous.shutdown_kernel, now=now, restart=restart)

    def kill_kernel(self) -> None:
        """Stop the kernel by SIGKILL to its group."""
        Portal.shared().call(self.asynchronous.kill_kernel)

    def request_shutdown(self, restart: bool = False) -> None:
        """Ask the kernel to end, and wait for nothing."""
        Portal.shared().call(self.asynchronous.request_shutdown, restart=restart)

    def finish_shutdown(self, waittime: float | None = None, pollinterval: float = 0.1, restart: bool = False) -> None:
        """Wait until the kernel that was asked has ended, then SIGTERM, then SIGKILL to its group."""
        Portal.shared().call(self.asynchronous.finish_shutdown, waittime, pollinterval, restart)

    def cleanup_resources(self, restart: bool = False) -> None:
        """Release what an ended kernel has left."""
        Portal.shared().call(self.asynchronous.cleanup_resources, restart=restart)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown_kernel()


class MultiKernelManager(MultiManagerTraits, metaclass=ABCMetaWithTraits):
    """Kernels by id, with methods that return when what they do is done; see `KernelManager` for one of them.

    What each does is said at `AsyncMultiKernelManager`, which does it: there is one inside. For `isinstance` and
    `issubclass` that class counts as one of this, as documented. With `use_pending_kernels` start and shutdown return
    at once here too. The class is as long as the documented one is.

    Attributes:
        asynchronous: the manager inside.
    """

    kernel_manager_class = DottedObjectName(
        "cobnut_kernel.manager.blocking.KernelManager",
        config=True,
        help="The class of one kernel's manager, of either colour.",
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asynchronous: AsyncMultiKernelManager = _Inner(self, parent=self.parent, config=self.config, log=self.log)
        _share(self, self.asynchronous, set(MultiManagerTraits.class_trait_names()) - _OWN_TRAITS_OF_MANY)

    # ── which there are ─────────────────────────────────────────────────────────────────────────────────────────────

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self.asynchronous

    def __len__(self) -> int:
        return len(self.asynchronous)

    def list_kernel_ids(self) -> list[str]:
        """List the ids, in the order of the starts."""
        return self.asynchronous.list_kernel_ids()

    def get_kernel(self, kernel_id: str) -> KernelManager:
        """Return the blocking manager of a kernel; KeyError for an unknown id."""
        return KernelManager.of(self.asynchronous.get_kernel(kernel_id))

    def remove_kernel(self, kernel_id: str) -> KernelManager | None:
        """Take a kernel off the list, without stopping it; returns its manager, or None where there is none."""
        removed = self.asynchronous.remove_kernel(kernel_id)
        return KernelManager.of(removed) if removed is not None else None

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Make the id of a new kernel, on the portal's thread: it must not block. `kwargs` are those of its start."""
        return AsyncMultiKernelManager.new_kernel_id(self.asynchronous, **kwargs)

    def pre_start_kernel(self, kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[ManagerTraits, str, str]:
        """Prepare a start: return the kernel's manager, of either colour, its kernelspec's name and its id.

        On the portal's thread: it must not block.
        """
        return AsyncMultiKernelManager.pre_start_kernel(self.asynchronous, kernel_name, kwargs)

    @property
    def start_queue(self) -> StartQueue:
        """The starts that wait for their turn."""
        return self.asynchronous.start_queue

    def activity(self, kernel_id: str) -> Activity | None:
        """Return how a kernel is used; None where nobody listens to it."""
        return self.asynchronous.activity(kernel_id)

    def add_event_callback(self, callback: Callable[[str, Phase], object]) -> Callable[[], None]:
        """Call back with id and phase of every kernel, on the portal's thread: it must not wait. Returns the undo."""
        return self.asynchronous.add_event_callback(callback)

    # ── start and stop ──────────────────────────────────────────────────────────────────────────────────────────────

    def start_kernel(self, *, kernel_name: str | None = None, **options: Any) -> str:
        """Start a kernel and return its id: when its process runs, or at once with `use_pending_kernels`."""
        return _begin(self._take_back, self.asynchronous.start_kernel, kernel_name=kernel_name, **options)

    def start_soon(self, *, kernel_name: str | None = None, **options: Any) -> str:
        """Start a kernel and return its id, at once."""
        return self.asynchronous.start_soon(kernel_name=kernel_name, **options)

    def cancel_start(self, kernel_id: str) -> None:
        """Cancel the start or restart of a kernel."""
        self.asynchronous.cancel_start(kernel_id)

    def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Stop a kernel and take it off the list; with `use_pending_kernels` that happens after this has returned."""
        Portal.shared().call(self.asynchronous.shutdown_kernel, kernel_id, now=now, restart=restart)

    def shutdown_all(self, now: bool = False) -> None:
        """Stop all kernels at the same time, under one deadline (`shutdown_deadline`)."""
        Portal.shared().call(self.asynchronous.shutdown_all, now=now)

    def kill_kernel(self, kernel_id: str) -> None:
        """Stop a kernel by SIGKILL to its group, and take it off the list."""
        Portal.shared().call(self.asynchronous.kill_kernel, kernel_id)

    def request_shutdown(self, kernel_id: str, restart: bool = False) -> None:
        """Ask a kernel to end, and wait for nothing."""
        Portal.shared().call(self.asynchronous.request_shutdown, kernel_id, restart=restart)

    def finish_shutdown(
        self, kernel_id: str, waittime: float | None = None, pollinterval: float = 0.1, restart: bool = False
    ) -> None:
        """Wait until a kernel has ended, or end it; it stays listed."""
        Portal.shared().call(self.asynchronous.finish_shutdown, kernel_id, waittime, pollinterval, restart)

    def cleanup_resources(self, kernel_id: str, restart: bool = False) -> None:
        """Release what an ended kernel has left."""
        Portal.shared().call(self.asynchronous.cleanup_resources, kernel_id, restart=restart)

    async def _take_back(self, kernel_id: str) -> None:
        if (started := self.asynchronous.remove_kernel(kernel_id)) is not None:
            await settled(started.begin_stop(now=True, pending="cancel")[0])

    # ── one kernel ──────────────────────────────────────────────────────────────────────────────────────────────────

    def is_alive(self, kernel_id: str) -> bool:
        """Say whether a kernel's process runs."""
        return Portal.shared().call(self.asynchronous.is_alive, kernel_id)

    def restart_kernel(self, kernel_id: str, now: bool = False, **options: Any) -> None:
        """Restart a kernel."""
        Portal.shared().call(self.asynchronous.restart_kernel, kernel_id, now=now, **options)

    def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt a kernel."""
        Portal.shared().call(self.asynchronous.interrupt_kernel, kernel_id)

    def signal_kernel(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a kernel's process group."""
        Portal.shared().call(self.asynchronous.signal_kernel, kernel_id, signum)

    def update_env(self, *, kernel_id: str, env: dict[str, str]) -> None:
        """Change the environment that the next restart of a kernel gives; nothing happens for an unknown id."""
        self.asynchronous.update_env(kernel_id=kernel_id, env=env)

    def add_restart_callback(self, kernel_id: str, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back on a kernel's restarts, or with event "dead" when its restarter gives up."""
        self.asynchronous.add_restart_callback(kernel_id, callback, event)

    def remove_restart_callback(self, kernel_id: str, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back no longer."""
        self.asynchronous.remove_restart_callback(kernel_id, callback, event)

    # ── its connection ──────────────────────────────────────────────────────────────────────────────────────────────

    def get_connection_info(self, kernel_id: str) -> dict[str, Any]:
        """Return where a kernel is reached, as the field's dict."""
        return self.asynchronous.get_connection_info(kernel_id)

    def connect_shell(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's shell."""
        return self.asynchronous.connect_shell(kernel_id, identity)

    def connect_iopub(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's iopub."""
        return self.asynchronous.connect_iopub(kernel_id, identity)

    def connect_stdin(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's stdin."""
        return self.asynchronous.connect_stdin(kernel_id, identity)

    def connect_control(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's control."""
        return self.asynchronous.connect_control(kernel_id, identity)

    def connect_hb(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's heartbeat."""
        return self.asynchronous.connect_hb(kernel_id, identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown_all()


class _Inner(AsyncMultiKernelManager):
    """The manager inside a blocking one: what its users may override is asked of the blocking one."""

    def __init__(self, face: MultiKernelManager, **kwargs: Any) -> None:
        self._face = face
        super().__init__(**kwargs)
        self.kernel_manager_factory = partial(_make, face)

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Let the blocking manager make it."""
        return self._face.new_kernel_id(**kwargs)

    def pre_start_kernel(self, kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[Any, str, str]:
        """Let the blocking manager prepare the start."""
        return self._face.pre_start_kernel(kernel_name, kwargs)


def _make(face: MultiKernelManager, **traits: Any) -> Any:
    """Make one kernel's manager, whose parent is the blocking one."""
    return face.kernel_manager_factory(**{**traits, "parent": face})


def _begin(
    take_back: Callable[[T], Coroutine[Any, Any, None]],
    function: Callable[P, Coroutine[Any, Any, T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Block on what begins something; take it back where it succeeds in the moment in which Ctrl-C is pressed."""
    portal = Portal.shared()
    begun: list[T] = []

    @wraps(function)
    async def begin() -> T:
        begun.append(await function(*args, **kwargs))
        return begun[0]

    try:
        return portal.call(begin)
    except BaseException:
        if begun:
            portal.call(take_back, begun[0])
        raise


def _share(one: HasTraits, other: HasTraits, names: Collection[str]) -> None:
    """Keep traits of two objects the same from now on; those of the first count at the beginning.

    A default that costs something to make is made when one of the two is asked for it, and then is the other's too.
    """
    for name in names:
        if one.trait_has_value(name):
            setattr(other, name, getattr(one, name))
    for source, target in ((one, other), (other, one)):
        source.observe(partial(_pass_on, target), list(names), All)


def _pass_on(target: HasTraits, change: dict[str, Any]) -> None:
    setattr(target, change["name"], change["new" if change["type"] == "change" else "value"])


KernelManager.register(AsyncKernelManager)
MultiKernelManager.register(AsyncMultiKernelManager)
