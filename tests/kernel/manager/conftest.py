"""What these tests share: a private runtime folder, quick kernels, provisioners that wait where a test says so."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.leftovers import eventually, leaving_nothing, private_runtime
from traitlets.config import Config

from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cobnut_kernel.manager.lifecycle import KernelState

TINY = str(Path(__file__).with_name("tiny_kernel.py"))


@pytest.fixture
def _private_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from private_runtime(monkeypatch)


@pytest.fixture
def runtime(_private_runtime: Path) -> Iterator[Path]:
    """The runtime folder of the login, new for each test; no descriptor, thread, process or file may stay behind."""
    yield from leaving_nothing(_private_runtime)


def pid_of(manager: AsyncKernelManager) -> int:
    """Return the id of the kernel's process."""
    assert isinstance(manager.provisioner, LocalProvisioner)
    assert manager.provisioner.pid is not None
    return manager.provisioner.pid


class Tiny:
    """The spec of a tiny kernel, and what it wrote into its log."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"

    def spec(self, *habits: str, interrupt_mode: str = "message") -> KernelSpec:
        """Make the spec of a kernel with habits; its command names ipykernel, so it gets unix sockets."""
        argv = [sys.executable, TINY, "{connection_file}", str(self.log), *habits, "like-ipykernel"]
        return KernelSpec(argv=argv, language="python", interrupt_mode=interrupt_mode)

    @property
    def lines(self) -> list[str]:
        """What happened to the kernels so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def heard(self) -> list[str]:
        """What the kernels were told, without how they came up."""
        return [line.partition(" ")[0] for line in self.lines if not line.startswith(("kernel_info", "up", "child"))]

    def go(self) -> None:
        """Let a slow kernel go on."""
        self.log.with_suffix(".go").touch()

    def child(self) -> int:
        """Return the process id of the last background child."""
        return [int(line.split()[1]) for line in self.lines if line.startswith("child")][-1]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """The quick kernels of one test."""
    return Tiny(tmp_path)


@pytest.fixture
def make_manager(tiny: Tiny, runtime: Path) -> Callable[..., AsyncKernelManager]:
    """Make managers of tiny kernels with habits; traits as keywords."""
    del runtime

    def make(
        *habits: str,
        interrupt_mode: str = "message",
        manager_class: type[AsyncKernelManager] = AsyncKernelManager,
        registers: bool = False,
        **traits: Any,
    ) -> AsyncKernelManager:
        spec = tiny.spec(*habits, interrupt_mode=interrupt_mode)
        if registers:  # on ports, for it is ports that are chosen
            spec.metadata = {"cobnut": {"registration": True}}
            traits["config"] = Config({"LocalProvisioner": {"transport": "tcp"}})
        specs = KernelSpecManager(extra_specs={"tiny": spec}, kernel_dirs=[])
        return manager_class(**{"kernel_name": "tiny", "kernel_spec_manager": specs, **traits})

    return make


class Gate:
    """A place on the way of a start where it waits, or fails, if a test says so."""

    def __init__(self, phase: str, error: Exception | None = None) -> None:
        self.phase = phase
        self.error = error
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        """Let the start go on."""
        self._open.set()

    async def pass_through(self, phase: str) -> None:
        """Wait at the phase of this gate."""
        if phase == self.phase:
            self.reached.set()
            if self.error is not None:
                raise self.error
            await eventually(self._open.is_set)


PHASES = ("before", "prepared", "launched", "followed up")


class GatedProvisioner(LocalProvisioner):
    """A local provisioner with a gate before and after each of its steps."""

    gate: Gate

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Prepare, between two gates."""
        await self.gate.pass_through("before")
        arguments = await super().pre_launch(**kwargs)
        await self.gate.pass_through("prepared")
        return arguments

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Launch, before a gate."""
        info = await super().launch_kernel(cmd, **kwargs)
        await self.gate.pass_through("launched")
        return info

    async def post_launch(self, **kwargs: Any) -> None:
        """Follow up, before a gate."""
        await super().post_launch(**kwargs)
        await self.gate.pass_through("followed up")


class GatedManager(AsyncKernelManager):
    """A manager whose kernel waits at a gate."""

    def __init__(self, gate: Gate, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gate = gate

    def create_provisioner(self) -> GatedProvisioner:
        """Make a provisioner that waits at the gate."""
        made = GatedProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        made.gate = self.gate
        return made


class States:
    """The states of a kernel as its callback tells them."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self.seen: list[str] = []
        manager.add_state_callback(self.note)

    def note(self, _: AsyncKernelManager, state: KernelState) -> None:
        """Note a state."""
        self.seen.append(str(state))

    async def until(self, *states: str) -> None:
        """Wait until these were the states."""
        await eventually(lambda: self.seen == list(states), f"expected {states}")


@pytest.fixture
def watch() -> Callable[[AsyncKernelManager], States]:
    """Note the states of kernels."""
    return States
