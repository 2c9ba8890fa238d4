"""Which kernel the first prompt belongs to, decided without asking anything."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cobnut.places import short_path
from cobnut_kernel.environments import active_environment, environment_spec
from cobnut_kernel.kernelspec import OWN_NAME

if TYPE_CHECKING:
    from cobnut_kernel.kernelspec import KernelSpecManager


@dataclass(frozen=True, slots=True)
class Scratch:
    """The kernelspec of the first kernel, and what is to be said about the choice."""

    spec_name: str
    note: str = ""


def choose_scratch(specs: KernelSpecManager, name: str | None) -> Scratch:
    """Choose by name if one is given, else the active environment if there is a kernel in it, else our own.

    The environment's kernel is offered by `specs` from then on.

    Raises:
        NoSuchKernel: there is none of that name, or it is broken.
    """
    if name is not None:
        return Scratch(specs.get_kernel_spec(name).name)
    prefix = active_environment()
    if prefix is None:
        return Scratch(OWN_NAME)
    spec = environment_spec(prefix)
    if spec is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        place = short_path(prefix)
        return Scratch(
            OWN_NAME,
            f"No kernel is installed in {place}: this is cobnut's own Python {version}. "
            f"To use the other: {place}/bin/python -m pip install ipykernel",
        )
    if spec.name != OWN_NAME:
        specs.extra_specs = {**specs.extra_specs, spec.name: spec}
    return Scratch(spec.name)
