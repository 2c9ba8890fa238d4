"""What every provisioner can do: provide the process of one kernel, wherever that runs, and end it.

Names and meanings are those of the documented `KernelProvisionerBase` of jupyter_client.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from string import Template
from typing import TYPE_CHECKING, Any

from traitlets import Instance, Unicode
from traitlets.config import LoggingConfigurable

from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.traits import ABCMetaWithTraits

if TYPE_CHECKING:
    from collections.abc import Mapping

KernelConnectionInfo = dict[str, Any]
"""The fields of a connection file as a dict; the key as bytes."""


class KernelProvisionerBase(ABC, LoggingConfigurable, metaclass=ABCMetaWithTraits):
    """The process of one kernel.

    A manager calls, in this order: `pre_launch`, `launch_kernel`, `post_launch`; then, while the kernel lives,
    `poll`, `wait` and `send_signal`; at its end `keeps_kernel`, `shutdown_requested`, `terminate`, `kill` and
    `cleanup`. One provisioner serves a kernel through all its restarts. All calls come on the loop of the portal.

    Attributes:
        connection_info: where the kernel is reached; empty before the first launch. A restart uses it again.
    """

    kernel_spec: Instance[KernelSpec] = Instance(KernelSpec, help="The spec of the kernel.")
    kernel_id = Unicode(help="The id of the kernel.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_info: KernelConnectionInfo = {}

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    @abstractmethod
    def has_process(self) -> bool:
        """Whether there is a process; true when `launch_kernel` has returned, false when `wait` has."""

    @abstractmethod
    async def poll(self) -> int | None:
        """Return None while the process runs, then its exit code; the negative number of a signal that ended it."""

    @abstractmethod
    async def wait(self) -> int | None:
        """Wait until the process has ended and return its exit code; several may wait at once."""

    @abstractmethod
    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process and to what it started; a process that has ended gets none."""

    @abstractmethod
    async def kill(self, restart: bool = False) -> None:
        """End the process by what it cannot refuse; `restart` tells that another launch follows."""

    @abstractmethod
    async def terminate(self, restart: bool = False) -> None:
        """Ask the process to end; `restart` tells that another launch follows."""

    @abstractmethod
    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the process and return where the kernel is reached.

        Raises:
            Exception: it could not be started; nothing of it is left.
        """

    @abstractmethod
    async def cleanup(self, restart: bool = False) -> None:
        """Release what the kernel used besides its process; with `restart` only what the next one does not use."""

    # ── around it ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare a launch: return the arguments of `launch_kernel`, the command as `cmd`.

        This one makes the environment: `env`, or else ours; over it the spec's, whose values may name variables of
        it (`${NAME}`; an unknown one stays as it is).
        """
        given = kwargs.pop("env", None)
        environment = dict(os.environ if given is None else given)
        environment.update(self._substituted_env(environment))
        self._finalize_env(environment)
        return {**kwargs, "env": environment}

    async def post_launch(self, **kwargs: Any) -> None:
        """Follow a launch up; the arguments are those of `launch_kernel`."""

    async def launch_again(self) -> KernelConnectionInfo | None:
        """Start a kernel again that has ended before it answered, if there is reason to think that it helps.

        Returns:
            Where it is reached now; None where there is no such reason.
        """
        return None

    def note_answer(self, *, answered: bool) -> None:
        """Take note that the kernel has answered after its launch, or has not: it ended before, or was silent."""

    def let_go(self) -> None:
        """Leave the process alone, which may outlive us: watch it no longer, and release what watching took."""

    async def keeps_kernel(self, restart: bool = False) -> bool:
        """Say whether the kernel is to go on when its manager stops it.

        It is neither interrupted nor asked to end then. Every stop asks this first, but for a kill. Who keeps a kernel
        has no process any more: what there still is of one is ended. `shutdown_requested` and `cleanup` follow all
        the same.
        """
        del restart
        return False

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Take note that the kernel has been asked to end."""

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return how many seconds a kernel may take to end before it is killed."""
        return recommended

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Return after how many seconds a start counts as stable."""
        return recommended

    def resolve_path(self, path: str) -> str | None:
        """Return the absolute path of a file as the kernel sees it; None where that is not known."""
        del path
        return None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to know this kernel, as JSON has it."""
        key = self.connection_info.get("key", b"")
        readable = {**self.connection_info, "key": key.decode() if isinstance(key, bytes) else key}
        return {"kernel_id": self.kernel_id, "connection_info": readable if self.connection_info else {}}

    async def load_provisioner_info(self, provisioner_info: Mapping[str, Any]) -> None:
        """Take over what `get_provisioner_info` of another process returned."""
        self.kernel_id = provisioner_info["kernel_id"]
        self.connection_info = dict(provisioner_info["connection_info"])
        if isinstance(key := self.connection_info.get("key"), str):
            self.connection_info["key"] = key.encode()

    # ── what the process said ───────────────────────────────────────────────────────────────────────────────────────

    def output_tail(self) -> str:
        """Return the end of what the process wrote to stdout and stderr; empty where that is not known."""
        return ""

    def stderr_tail(self) -> str:
        """Return the end of what the process wrote to stderr; empty where that is not known."""
        return ""

    # ── environment ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _substituted_env(self, environment: Mapping[str, str]) -> dict[str, str]:
        spec_env: dict[str, Any] = self.kernel_spec.env
        return {name: Template(str(value)).safe_substitute(environment) for name, value in spec_env.items()}

    def _finalize_env(self, env: dict[str, str]) -> None:
        """Take out of the environment what would mislead the kernel."""
        if self.kernel_spec.language.lower().startswith("python"):
            env.pop("PYTHONEXECUTABLE", None)
