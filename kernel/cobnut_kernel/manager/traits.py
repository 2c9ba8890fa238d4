"""What can be set on the managers, the same for both colours, and what follows from it without a kernel."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

from traitlets import Any as AnyTrait
from traitlets import (
    Bool,
    CaselessStrEnum,
    DottedObjectName,
    Enum,
    Float,
    Instance,
    Integer,
    TraitError,
    Unicode,
    default,
    observe,
    validate,
)
from traitlets.config import LoggingConfigurable
from traitlets.utils.importstring import import_item

from cobnut_kernel.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from cobnut_kernel.manager.connection import ConnectionFileMixin

PENDING_POLICIES = ("raise", "wait", "cancel")
"""What a stop does while the kernel's start or restart runs."""

NATIVE_NAMES = frozenset({"python", "python2", "python3"})
"""The names under which Jupyter knows ipykernel, and knew it."""


class ManagerTraits(ConnectionFileMixin):
    """What can be set on the manager of one kernel.

    In a configuration its section is `KernelManager` for both colours, as documented; `ConnectionFileMixin` and the
    name of the class itself count too.

    Args:
        owns_kernel: whether the kernel is the manager's to stop; False for one that somebody else started.

    Attributes:
        twin: the manager of the other colour for the same kernel, where there is one.
    """

    kernel_name = Unicode(NATIVE_KERNEL_NAME, help="The name of the kernelspec.")
    kernel_id = Unicode(help="The kernel's id; the first start gives it one.")
    kernel_spec_manager = Instance(KernelSpecManager, help="Where kernelspecs are looked for.")
    client_class = DottedObjectName(
        "cobnut_kernel.client.client.AsyncKernelClient", config=True, help="The class of what `client` makes."
    )
    client_factory = AnyTrait(config=True, help="What makes a client; `client_class` by default.")
    autorestart = Bool(
        config=True,
        help="Whether a kernel that has answered and dies is started again; by default if a multi-kernel manager"
        " started it.",
    )
    keep = Bool(False, help="Whether the kernel stays although nobody uses it: it is never culled.")
    cache_ports = Bool(config=True, help="Whether a provisioner keeps the ports it found; with tcp by default.")
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

    def __init__(self, *, owns_kernel: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._owns_kernel: bool = owns_kernel
        self._spec: KernelSpec | None = None
        self._launch_args: dict[str, Any] = {}
        self.twin: ManagerTraits | None = None

    @classmethod
    def section_names(cls) -> list[str]:
        """Name the sections of a configuration that count, the most general first."""
        names = super().section_names()
        return list(dict.fromkeys("KernelManager" if name == ManagerTraits.__name__ else name for name in names))

    @default("kernel_spec_manager")
    def _default_kernel_spec_manager(self) -> KernelSpecManager:
        return KernelSpecManager(parent=self)

    @default("autorestart")
    def _default_autorestart(self) -> bool:
        # Who starts a single kernel watches it himself: nbclient raises its DeadKernelError.
        return isinstance(self.parent, MultiManagerTraits)

    @default("client_factory")
    def _default_client_factory(self) -> Any:
        return import_item(self.client_class)

    @default("cache_ports")
    def _default_cache_ports(self) -> bool:
        return self.transport != "ipc"

    @validate("kernel_name")
    def _modern_name(self, proposal: dict[str, Any]) -> str:
        return NATIVE_KERNEL_NAME if proposal["value"] == "python" else proposal["value"]

    @validate("transport_encryption")
    def _check_transport_encryption(self, proposal: dict[str, Any]) -> str:
        if proposal["value"] != "disabled":
            import zmq  # to import a manager is to need no socket yet

            if not zmq.has("curve"):
                raise TraitError("This zmq cannot encrypt: install pyzmq with CURVE, or leave it 'disabled'.")
        return proposal["value"]

    @observe("kernel_name", "kernel_spec_manager")
    def _on_kernel_name(self, _change: Any) -> None:
        self._spec = None

    @observe("client_class")
    def _on_client_class(self, change: dict[str, Any]) -> None:
        if self.trait_has_value("client_factory"):
            self.client_factory = import_item(change["new"])

    # ── what follows ────────────────────────────────────────────────────────────────────────────────────────────────

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

    @property
    def ipykernel(self) -> bool:
        """Whether the name says that the kernel is ipykernel, and takes its options."""
        return self.kernel_name in NATIVE_NAMES

    @property
    def owns_kernel(self) -> bool:
        """Whether the kernel is ours to stop."""
        return self._owns_kernel

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Fill in the kernelspec's command, as a launch on this machine does.

        A field that is not known, or whose value is no text, stays as it is.

        Raises:
            NoSuchKernel: there is no kernelspec.
        """
        from cobnut_kernel.provisioning.command import fill_in

        spec = self.kernel_spec
        known = {"connection_file": os.path.realpath(self.connection_file)} if self.connection_file else {}
        fields = {**known, "prefix": sys.prefix, "resource_dir": spec.resource_dir, **self._launch_args}
        return fill_in([*spec.argv, *(extra_arguments or [])], fields)

    def update_env(self, *, env: dict[str, str]) -> None:
        """Change the environment that the next restart gives; nothing happens if the start was given none."""
        given = self._launch_args.get("env")
        if isinstance(given, dict):
            self._launch_args = {**self._launch_args, "env": {**given, **env}}


class MultiManagerTraits(LoggingConfigurable):
    """What can be set on the manager of many kernels; in a configuration its section is `MultiKernelManager`."""

    default_kernel_name = Unicode(NATIVE_KERNEL_NAME, config=True, help="The kernelspec of a start that names none.")
    kernel_spec_manager = Instance(KernelSpecManager, allow_none=True, help="Where kernelspecs are looked for.")
    kernel_manager_class = DottedObjectName(
        "cobnut_kernel.manager.manager.AsyncKernelManager",
        config=True,
        help="The class of one kernel's manager, of either colour.",
    )
    kernel_manager_factory = AnyTrait(help="What makes one kernel's manager; `kernel_manager_class` by default.")
    shared_context = Bool(
        True, config=True, help="Whether the sockets of connect_shell and its siblings share one zmq context."
    )
    context = AnyTrait(help="That zmq context; the process's by default.")
    connection_dir = Unicode(help="The folder of the connection files; by default our process's private one.")
    external_connection_dir = Unicode(
        None, allow_none=True, help="A folder whose connection files tell of kernels that others started."
    )
    use_pending_kernels = Bool(False, config=True, help="Whether start and shutdown return at once.")
    pending_shutdown = Enum(
        PENDING_POLICIES,
        default_value="raise",
        config=True,
        help="What a shutdown does with a pending kernel: raise, wait for its start, or cancel it.",
    )
    autorestart = Bool(
        None,
        allow_none=True,
        config=True,
        help="Whether kernels that have answered and die are started again; by default as for one kernel.",
    )
    max_concurrent_starts = Integer(
        min=0, config=True, help="How many kernels may start at once, by default one per core; 0 is no limit."
    )
    start_turn_time = Float(
        30.0, config=True, help="Seconds after which a start that neither answers nor ends holds up the others no more."
    )
    cull_idle_timeout = Float(
        0.0,
        config=True,
        help="Seconds without use after which a kernel is ended; 0 is never. `cull_idle_timeout` in the metadata of a"
        " kernelspec counts instead where culling is on.",
    )
    cull_interval = Float(300.0, min=0.01, config=True, help="Seconds between two looks at which kernels are idle.")
    cull_busy = Bool(False, config=True, help="Whether kernels that run something are culled too.")
    cull_connected = Bool(False, config=True, help="Whether kernels that clients are attached to are culled too.")
    shutdown_deadline = Float(
        10.0, config=True, help="Seconds that shutdown_all gives to all kernels together before it kills the rest."
    )

    @classmethod
    def section_names(cls) -> list[str]:
        """Name the sections of a configuration that count, the most general first."""
        names = super().section_names()
        return list(
            dict.fromkeys("MultiKernelManager" if name == MultiManagerTraits.__name__ else name for name in names)
        )

    @default("context")
    def _default_context(self) -> Any:
        import zmq  # late: most managers need no socket of this kind

        return cast("Any", zmq.Context).instance()

    @default("max_concurrent_starts")
    def _default_max_concurrent_starts(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @default("kernel_manager_factory")
    def _default_kernel_manager_factory(self) -> Any:
        return self._make_kernel_manager

    @observe("kernel_manager_class")
    def _on_kernel_manager_class(self, _change: Any) -> None:
        self.kernel_manager_factory = self._make_kernel_manager

    def _make_kernel_manager(self, **traits: Any) -> ManagerTraits:
        made: Any = import_item(self.kernel_manager_class)
        if not (isinstance(made, type) and issubclass(made, ManagerTraits)):
            raise TypeError(
                f"{self.kernel_manager_class} makes no managers of cobnut's: let kernel_manager_class name"
                " KernelManager, AsyncKernelManager or what derives from them."
            )
        if not self.shared_context or self.trait_has_value("context"):
            import zmq

            traits.setdefault("context", self.context if self.shared_context else zmq.Context())
        return made(**traits)
