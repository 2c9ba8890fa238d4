"""The managers and kernelspecs that provisioners made for jupyter_client are given: of their own kind.

This is the one module that imports jupyter_client. It is imported when such a provisioner is asked for, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from jupyter_client.kernelspec import KernelSpec as ForeignSpec
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner as ForeignLocalProvisioner
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase as ForeignProvisioner
from traitlets.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jupyter_client.connect import KernelConnectionInfo

    from cobnut_kernel.kernelspec import KernelSpec

__all__ = ["ForeignManager", "ForeignProvisioner", "foreign_spec", "inherits_output"]


class ForeignManager(KernelManager):
    """What a provisioner made for jupyter_client takes for its kernel's manager.

    It holds the connection, writes the connection file and fills in the kernel's command, as those provisioners want
    it; it never starts or stops a kernel. Its settings come from our manager, none from the configuration.
    """

    @classmethod
    def section_names(cls) -> list[str]:
        """Name the sections of a configuration that count: none that is meant for our managers."""
        return [cls.__name__]

    @classmethod
    def standing_for(cls, manager: Any, kernel_id: str, spec: KernelSpec, **wishes: Any) -> ForeignManager:
        """Make what stands for one of our managers.

        Args:
            manager: ours, or anything else with a configuration and a log; None for neither.
            kernel_id: of the kernel.
            spec: of the kernel.
            wishes: what is already decided of the connection, and the file for it, by the names of the traits; the
                key among them.
        """
        key: bytes = wishes.pop("key", b"")
        given = {name: value for name, value in wishes.items() if value and cls.class_traits().get(name) is not None}
        log = {} if manager is None else {"log": manager.log}
        config: Config = getattr(manager, "config", None) or Config()
        made = cls(config=config, kernel_id=kernel_id, kernel_name=spec.name, **given, **log)
        made._kernel_spec = foreign_spec(spec)
        # Ports that were decided are not to be replaced by those of its cache.
        made.cache_ports = made.transport == "tcp" and not any(made.ports)
        if key:
            made.session.key = key
        return made

    def begin_launch(self, arguments: Mapping[str, Any], encryption: str) -> None:
        """Take note of a launch: what `{name}` in the kernel's command may stand for, and what is to be encrypted."""
        self.shutting_down = False
        self._launch_args = dict(arguments)
        if self.has_trait("transport_encryption"):  # since 8.9
            self.transport_encryption = encryption

    def lets_through(self, msg_type: str, content: dict[str, Any]) -> bool:
        """Say whether a message to the kernel passes what a provisioner may have put before `session.send`.

        Nothing is sent: the session is given an outlet that leads nowhere.
        """
        outlet = _Outlet()
        self.session.send(cast("Any", outlet), self.session.msg(msg_type, content=content))
        return outlet.is_used

    def take_over(self, info: Mapping[str, Any]) -> None:
        """Keep the connection that a launch has led to, and write it into the connection file if it does not say so.

        Raises:
            Exception: it is of no use.
        """
        self._reconcile_connection_info(cast("KernelConnectionInfo", {**info}))

    def release(self, *, restart: bool) -> None:
        """Remove the sockets and, unless a launch follows, the connection file."""
        if not restart:
            self.cleanup_connection_file()
        self.cleanup_ipc_files()


class _Outlet:
    """What a session takes for a socket, to see whether it sends at all."""

    def __init__(self) -> None:
        self.is_used: bool = False

    def send_multipart(self, *_: object, **__: object) -> None:
        """Take note of a message."""
        self.is_used = True


def foreign_spec(spec: KernelSpec) -> ForeignSpec:
    """Make of our kernelspec one of jupyter_client's, with whatever fields that version knows."""
    known = ForeignSpec.class_traits()
    return ForeignSpec(**{name: getattr(spec, name) for name in spec.trait_names() if name in known})


def inherits_output(provisioner: object) -> bool:
    """Say whether a provisioner's kernel would write to our stdout and stderr if it was not given others."""
    return getattr(type(provisioner), "launch_kernel", None) is ForeignLocalProvisioner.launch_kernel
