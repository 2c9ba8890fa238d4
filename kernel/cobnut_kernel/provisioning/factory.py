"""Which provisioner a kernelspec asks for, and the making of one."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from traitlets import Unicode, default
from traitlets.config import SingletonConfigurable

from cobnut_kernel.kernelspec import LOCAL_PROVISIONER, PROVISIONER_GROUP, KernelSpec, provisioner_stanza
from cobnut_kernel.provisioning.base import KernelProvisionerBase

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class KernelProvisionerFactory(SingletonConfigurable):
    """Make the provisioner that a kernelspec names, or the default one.

    "local-provisioner" is ours, `LocalProvisioner`, without an entry point; any other name is looked up in the
    entry-point group `jupyter_client.kernel_provisioners`, when it is first asked for.
    """

    GROUP_NAME = PROVISIONER_GROUP

    default_provisioner_name = Unicode(
        config=True, help="The provisioner of kernelspecs that name none (JUPYTER_DEFAULT_PROVISIONER_NAME)."
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.provisioners: dict[str, EntryPoint] = {}

    @default("default_provisioner_name")
    def _default_provisioner_name(self) -> str:
        return os.environ.get("JUPYTER_DEFAULT_PROVISIONER_NAME", LOCAL_PROVISIONER)

    def is_provisioner_available(self, kernel_spec: KernelSpec) -> bool:
        """Say whether the provisioner of a kernelspec can be had; warn where it cannot."""
        name, _ = self._stanza(kernel_spec)
        if name == LOCAL_PROVISIONER or self._find(name) is not None:
            return True
        self.log.warning("The provisioner %r of kernel %r is not installed.", name, kernel_spec.name)
        return False

    def create_provisioner_instance(
        self, kernel_id: str, kernel_spec: KernelSpec, parent: Any = None
    ) -> KernelProvisionerBase:
        """Make the provisioner of one kernel; the stanza's `config` becomes its traits.

        Raises:
            ModuleNotFoundError: it is not installed; the text names it.
            TypeError: it is no provisioner of ours.
        """
        name, config = self._stanza(kernel_spec)
        provisioner_class = self._load(name)
        return provisioner_class(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent, **config)

    def get_provisioner_entries(self) -> dict[str, str]:
        """Return every provisioner's name and the `module:object` that makes it."""
        entries = {entry.name: entry.value for entry in self._get_all_provisioners()}
        return {**entries, LOCAL_PROVISIONER: "cobnut_kernel.provisioning.local:LocalProvisioner"}

    def _stanza(self, kernel_spec: KernelSpec) -> tuple[str, dict[str, Any]]:
        name, config = provisioner_stanza(kernel_spec)
        return name or self.default_provisioner_name, config

    def _load(self, name: str) -> type[KernelProvisionerBase]:
        if name == LOCAL_PROVISIONER:
            return import_module("cobnut_kernel.provisioning.local").LocalProvisioner
        entry = self._find(name)
        if entry is None:
            raise ModuleNotFoundError(
                f"The provisioner {name!r} is not installed: install the package that brings it, or start the kernel"
                f" with another kernelspec."
            )
        loaded = entry.load()
        if not (isinstance(loaded, type) and issubclass(loaded, KernelProvisionerBase)):
            raise TypeError(f"The provisioner {name!r} ({entry.value}) is not made for cobnut.")
        return loaded

    def _find(self, name: str) -> EntryPoint | None:
        if name not in self.provisioners:
            self.provisioners.update({entry.name: entry for entry in self._get_all_provisioners()})
        return self.provisioners.get(name)

    @staticmethod
    def _get_all_provisioners() -> list[EntryPoint]:
        from importlib.metadata import entry_points

        return list(entry_points(group=PROVISIONER_GROUP))
