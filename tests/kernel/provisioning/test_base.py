"""What every provisioner does by itself: the environment of the kernel, and what is told of it."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.provisioning.base import KernelProvisionerBase

pytestmark = pytest.mark.anyio


class Nowhere(KernelProvisionerBase):
    """A provisioner that provides nothing."""

    @property
    def has_process(self) -> bool:
        """Say no."""
        return False

    async def poll(self) -> int | None:
        """Say that it has ended."""
        return 0

    async def wait(self) -> int | None:
        """Say that it has ended."""
        return 0

    async def send_signal(self, signum: int) -> None:
        """Do nothing."""

    async def kill(self, restart: bool = False) -> None:
        """Do nothing."""

    async def terminate(self, restart: bool = False) -> None:
        """Do nothing."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Launch nothing."""
        return {}

    async def cleanup(self, restart: bool = False) -> None:
        """Do nothing."""


def provisioner(language: str = "python", **env: str) -> Nowhere:
    """Make one for a kernel of a language, with variables of its spec."""
    return Nowhere(kernel_id="id", kernel_spec=KernelSpec(argv=["prog"], language=language, env=env))


def test_what_must_be_given_is_asked_for() -> None:
    """A provisioner that lacks one of the documented methods cannot be made."""
    with pytest.raises(TypeError, match="abstract"):
        KernelProvisionerBase(kernel_id="id")  # pyright: ignore[reportAbstractUsage] - the claim


async def test_the_environment_is_ours_or_the_one_given() -> None:
    """An `env` takes the place of ours, an empty one too, and is not changed itself."""
    given = {"A": "1"}
    assert (await provisioner(B="2").pre_launch(env=given))["env"] == {"A": "1", "B": "2"}
    assert given == {"A": "1"}
    assert (await provisioner().pre_launch(env={}))["env"] == {}
    launched = await provisioner(B="2").pre_launch(cwd="/x")
    assert launched["env"] == {**os.environ, "B": "2"}
    assert launched["cwd"] == "/x"


async def test_the_specs_variables_may_name_those_of_the_environment() -> None:
    """`${NAME}` is replaced; an unknown name stays, `$$` is a dollar, and the spec's own do not name each other."""
    spec = {"X": "${HOME}/x", "Y": "$X", "Z": "${MISSING}:$$5", "N": "1"}
    env = (await provisioner(**spec).pre_launch(env={"HOME": "/home"}))["env"]
    assert env == {"HOME": "/home", "X": "/home/x", "Y": "$X", "Z": "${MISSING}:$5", "N": "1"}


async def test_a_python_kernel_is_not_misled_about_its_interpreter() -> None:
    """PYTHONEXECUTABLE is not handed on to Python kernels."""
    env = {"PYTHONEXECUTABLE": "/ours"}
    assert (await provisioner().pre_launch(env=env))["env"] == {}
    assert (await provisioner("R").pre_launch(env=env))["env"] == env


async def test_what_is_told_of_a_kernel_is_json_and_can_be_taken_over() -> None:
    """The key becomes text on the way out and bytes again on the way in."""
    teller, hearer = provisioner(), provisioner()
    assert json.loads(json.dumps(await teller.get_provisioner_info())) == {"kernel_id": "id", "connection_info": {}}
    teller.connection_info = {"ip": "127.0.0.1", "key": b"secret"}
    hearer.kernel_id = ""
    await hearer.load_provisioner_info(json.loads(json.dumps(await teller.get_provisioner_info())))
    assert (hearer.kernel_id, hearer.connection_info) == ("id", teller.connection_info)


def test_no_two_provisioners_share_a_connection() -> None:
    """The connection is each one's own."""
    first, second = provisioner(), provisioner()
    first.connection_info["ip"] = "x"
    assert second.connection_info == {}


async def test_what_need_not_be_given_has_a_meaning() -> None:
    """Recommended times are kept, nothing is known of paths and output."""
    nowhere = provisioner()
    await nowhere.post_launch()
    await nowhere.shutdown_requested(restart=True)
    assert (nowhere.get_shutdown_wait_time(3), nowhere.get_stable_start_time(4)) == (3, 4)
    assert nowhere.resolve_path("x") is None
    assert nowhere.output_tail() == nowhere.stderr_tail() == ""
