"""Which provisioner a kernelspec gets."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from traitlets.config import Config

from cobnut_kernel.kernelspec import PROVISIONER_GROUP, KernelSpec
from cobnut_kernel.provisioning.factory import KernelProvisionerFactory
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Special(LocalProvisioner):
    """A provisioner of somebody's package."""


def find(entries: list[EntryPoint]) -> Callable[[str], EntryPoint]:
    """Look for an entry point among some."""
    real = KernelProvisionerFactory._get_provisioner
    return lambda name: next((entry for entry in entries if entry.name == name), None) or real(name)


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a package register provisioners: one of ours, one that is none, and the name that is ours."""
    found = [
        EntryPoint("special", f"{__name__}:Special", PROVISIONER_GROUP),
        EntryPoint("foreign", "collections:OrderedDict", PROVISIONER_GROUP),
        EntryPoint("local-provisioner", "jupyter_client.provisioning:LocalProvisioner", PROVISIONER_GROUP),
    ]
    monkeypatch.setattr(KernelProvisionerFactory, "_get_all_provisioners", staticmethod(lambda: found))
    monkeypatch.setattr(KernelProvisionerFactory, "_get_provisioner", staticmethod(find(found)))
    monkeypatch.setattr(EntryPoint, "load", lambda entry: Special if entry.name == "special" else dict)
    monkeypatch.delenv("JUPYTER_DEFAULT_PROVISIONER_NAME", raising=False)
    yield
    KernelProvisionerFactory.clear_instance()


def spec(name: str = "", **config: Any) -> KernelSpec:
    """Make a spec that names a provisioner, or none."""
    stanza = {"kernel_provisioner": {"provisioner_name": name, "config": config}} if name else {}
    return KernelSpec(argv=["prog"], name="k", metadata=stanza)


def test_a_spec_that_names_none_gets_ours() -> None:
    """The default is our LocalProvisioner, as it is for the name local-provisioner, whoever registered that."""
    factory = KernelProvisionerFactory()
    for each in (spec(), spec("local-provisioner")):
        assert factory.is_provisioner_available(each)
        made = factory.create_provisioner_instance("id", each)
        assert type(made) is LocalProvisioner
        assert (made.kernel_id, made.kernel_spec) == ("id", each)


def test_the_stanzas_config_becomes_traits() -> None:
    """What the kernelspec configures the provisioner is made with."""
    made = KernelProvisionerFactory().create_provisioner_instance("id", spec("special", transport="tcp"))
    assert type(made) is Special
    assert made.transport == "tcp"


def test_the_default_can_be_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration, or else the environment variable, names the provisioner of specs that name none."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "special")
    assert type(KernelProvisionerFactory().create_provisioner_instance("id", spec())) is Special
    config = Config({"KernelProvisionerFactory": {"default_provisioner_name": "local-provisioner"}})
    assert type(KernelProvisionerFactory(config=config).create_provisioner_instance("id", spec())) is LocalProvisioner


def test_a_missing_provisioner_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The error says which one is missing, and what to do; asked before, the answer is no, with a warning."""
    factory = KernelProvisionerFactory(log=logging.getLogger("test"))
    with pytest.raises(ModuleNotFoundError, match="'slurm' is not installed: install"):
        factory.create_provisioner_instance("id", spec("slurm"))
    assert not factory.is_provisioner_available(spec("slurm"))
    assert "'slurm' of kernel 'k'" in caplog.text


def test_a_provisioner_that_is_none_of_ours_is_refused() -> None:
    """A class of another kind is not used as if it were one."""
    with pytest.raises(TypeError, match=r"'foreign' \(collections:OrderedDict\) is not made for cobnut"):
        KernelProvisionerFactory().create_provisioner_instance("id", spec("foreign"))


def test_all_entries_are_listed() -> None:
    """Names and makers, ours in the place of any other local-provisioner."""
    assert KernelProvisionerFactory().get_provisioner_entries() == {
        "special": f"{__name__}:Special",
        "foreign": "collections:OrderedDict",
        "local-provisioner": "cobnut_kernel.provisioning.local:LocalProvisioner",
        "cobnut-local": "cobnut_kernel.provisioning.local:LocalProvisioner",
        "cobnut-fork": "cobnut_kernel.provisioning.fork:ForkProvisioner",
    }


def test_there_is_one_factory() -> None:
    """The factory is the process's singleton."""
    assert KernelProvisionerFactory.instance() is KernelProvisionerFactory.instance()
    assert KernelProvisionerFactory.GROUP_NAME == "jupyter_client.kernel_provisioners"
