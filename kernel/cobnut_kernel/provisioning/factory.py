"""Which provisioner a kernelspec asks for, and the making of one."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from traitlets import Unicode, default
from traitlets.config import SingletonConfigurable

from cobnut_kernel.kernelspec import LOCAL_PROVISIONER, PROVISIONER_GROUP, KernelSpec, provisioner_stanza
from cobnut_kernel.provisioning.base import KernelProvisionerBase

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

FORK_PROVISIONER = "cobnut-fork"
"""The provisioner of our own kernels where nobody asks for another one, on systems that have fork servers."""

_OURS = {
    LOCAL_PROVISIONER: "cobnut_kernel.provisioning.local:LocalProvisioner",
    "cobnut-local": "cobnut_kernel.provisioning.local:LocalProvisioner",
    FORK_PROVISIONER: "cobnut_kernel.provisioning.fork:ForkProvisioner",
}
"""Those that need no entry point; one of these names that a package registers is not looked at."""


class KernelProvisionerFactory(SingletonConfigurable):
    """Make the provisioner that a kernelspec names, or the default one.

    "local-provisioner" is ours, `LocalProvisioner`, without an entry point, and so are "cobnut-local" and
    "cobnut-fork"; any other name is looked up in the entry-point group `jupyter_client.kernel_provisioners`, when it
    is first asked for. Where nobody has chosen at all, our own kernel gets "cobnut-fork".
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
        try:
            self._entry(name)
        except ModuleNotFoundError:
            self.log.warning("The provisioner %r of kernel %r is not installed.", name, kernel_spec.name)
            return False
        return True

    def create_provisioner_instance(
        self, kernel_id: str, kernel_spec: KernelSpec, parent: Any = None
    ) -> KernelProvisionerBase:
        """Make the provisioner of one kernel; the stanza's `config` becomes its traits.

        One that was made for jupyter_client is given an adapter, where jupyter_client is installed.

        Raises:
            ModuleNotFoundError: it is not installed; the text names it, and says what to do.
            TypeError: it is no provisioner.
        """
        name, config = self._stanza(kernel_spec)
        name = self._best(name, kernel_spec)
        entry = self._entry(name)
        provisioner_class = _ours(name) if entry is None else _made_for_us(entry)
        if provisioner_class is not None:
            return provisioner_class(kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent, **config)
        assert entry is not None
        # Imported here: few kernels have a provisioner of another make.
        from cobnut_kernel.provisioning.adapter import adapt

        return adapt(entry, kernel_id, kernel_spec, parent, config)

    def get_provisioner_entries(self) -> dict[str, str]:
        """Return every provisioner's name and the `module:object` that makes it."""
        return {**{entry.name: entry.value for entry in self._get_all_provisioners()}, **_OURS}

    def _stanza(self, kernel_spec: KernelSpec) -> tuple[str, dict[str, Any]]:
        name, config = provisioner_stanza(kernel_spec)
        return name or self.default_provisioner_name, config

    def _best(self, name: str, kernel_spec: KernelSpec) -> str:
        """Return the provisioner to use for a name: the fork server where nobody has chosen, and it can be used."""
        if name != LOCAL_PROVISIONER or provisioner_stanza(kernel_spec)[0]:
            return name
        from cobnut_kernel.provisioning.templates import is_forkable

        return FORK_PROVISIONER if is_forkable(kernel_spec.argv) else name

    def _entry(self, name: str) -> EntryPoint | None:
        """Return the entry point of a provisioner; None for ours, which need none.

        Raises:
            ModuleNotFoundError: there is none.
        """
        if name in _OURS:
            return None
        if name not in self.provisioners:
            self.provisioners[name] = self._get_provisioner(name)
        return self.provisioners[name]

    @staticmethod
    def _get_all_provisioners() -> list[EntryPoint]:
        from importlib.metadata import entry_points

        return list(entry_points(group=PROVISIONER_GROUP))

    @staticmethod
    def _get_provisioner(name: str) -> EntryPoint:
        from importlib.metadata import entry_points

        found = list(entry_points(group=PROVISIONER_GROUP, name=name))
        if not found:
            raise ModuleNotFoundError(
                f"The provisioner {name!r} is not installed: install the package that brings it, `{sys.executable} -m"
                f" pip install` and its name, or start the kernel with another kernelspec."
            )
        return found[0]


def _ours(name: str) -> type[KernelProvisionerBase]:
    module, _, class_name = _OURS[name].partition(":")
    return getattr(import_module(module), class_name)


def _made_for_us(entry: EntryPoint) -> type[KernelProvisionerBase] | None:
    """Load a provisioner that is made for us; None for any other, and for one that cannot be loaded."""
    try:
        loaded = entry.load()
    except Exception:  # the adapter says what is wrong
        return None
    return loaded if isinstance(loaded, type) and issubclass(loaded, KernelProvisionerBase) else None
