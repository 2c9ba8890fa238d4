"""One kernel as the program sees it: its document, what waits for it, and how it stands."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cobnut.kernel_status import KernelRow, Status, short_duration
from cobnut.model.document import Document, Level
from cobnut.model.history import InputHistory
from cobnut.places import short_path
from cobnut_kernel.kernelspec import OWN_NAME
from cobnut_kernel.manager.lifecycle import BEGINNING, KernelState

if TYPE_CHECKING:
    from cobnut.model.cell import Cell
    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.protocol.messages import Message

STUBBORN: Final = 2.0
"""Seconds after which a cell that an interrupt has not stopped is worth a word."""

_STATUS = {
    KernelState.QUEUED: Status.PENDING,
    KernelState.PROVISIONING: Status.STARTING,
    KernelState.STARTING: Status.STARTING,
    KernelState.RESTARTING: Status.RESTARTING,
    KernelState.STOPPING: Status.STOPPING,
    KernelState.STOPPED: Status.STOPPED,
    KernelState.DEAD: Status.DEAD,
}


class Session:
    """A kernel, its document and its prompt; changed by the bridge alone, in the interface's loop.

    Attributes:
        number: what Esc is followed by to show it.
        waiting: cells that were entered and not sent yet: the kernel is not ready.
        client: who talks to the kernel; None while it cannot be talked to.
        draft: what stands in the prompt while another kernel is shown.
        interrupted: cells that were asked to stop, at `interrupted_at`, and run still.
        first_cell: where in the document the cells of the kernel's present life begin.
    """

    def __init__(self, number: int, name: str, kernel_id: str, spec_name: str, manager: AsyncKernelManager) -> None:
        spec = manager.kernel_spec
        self.number: int = number
        self.kernel_id: str = kernel_id
        self.spec_name: str = spec_name
        self.manager: AsyncKernelManager = manager
        self.language: str = (spec.language or "").lower() or "python" if spec else "python"
        self.name: str = name or (f"{self.language}-{number}" if spec_name == OWN_NAME else spec_name)
        self.version: str = ""
        self.folder: str = short_path(Path.cwd())
        self.document: Document = Document(self.language)
        self.history: InputHistory = InputHistory()
        self.draft: str = ""
        self.state: KernelState = KernelState.QUEUED
        self.client: AsyncKernelClient | None = None
        self.connecting: AsyncKernelClient | None = None
        self.waiting: deque[Cell] = deque()
        self.interrupted: set[Cell] = set()
        self.interrupted_at: float = 0.0
        self.first_cell: int = 0
        self.is_restarting: bool = False
        self.is_stopping: bool = False

    @property
    def status(self) -> Status:
        """What the kernel does, as a person sees it."""
        if self.is_restarting:
            return Status.RESTARTING
        if self.is_stopping and not _STATUS.get(self.state, Status.IDLE).has_ended:
            return Status.STOPPING
        if self.state is not KernelState.READY:
            return _STATUS[self.state]
        if self.client is None:
            return Status.STARTING
        if not self.document.running:
            return Status.IDLE
        return Status.INTERRUPTING if self.interrupted else Status.BUSY

    @property
    def is_running(self) -> bool:
        """Whether a cell runs, and so a clock."""
        return bool(self.document.running)

    @property
    def is_working(self) -> bool:
        """Whether a cell runs or waits."""
        return bool(self.document.running or self.document.queued)

    @property
    def interpreter(self) -> str:
        """What runs the code: its language and version, and which kernelspec started it."""
        return f"{self.language} {self.version} ({self.spec_name})".replace("  ", " ")

    @property
    def next_number(self) -> int:
        """The number that the next cell will have, as far as one can say."""
        cells = self.document.cells[self.first_cell :]
        counts = [cell.execution_count or 0 for cell in cells if not cell.foreign]
        return max(counts, default=0) + len(self.document.queued) + 1

    def notice(self, now: float) -> str:
        """Say what can be done about a cell that an interrupt does not stop; nothing where there is none."""
        is_stubborn = self.status is Status.INTERRUPTING and now - self.interrupted_at >= STUBBORN
        return "Not stopped yet: ^C again, or Esc 0 0 restarts it" if is_stubborn else ""

    def begin_anew(self, now: float) -> None:
        """Note that the kernel is started anew: what ran and what waited has ended, and it counts from one again."""
        self.waiting.clear()
        self.document.end_runs(now)
        self.document.notice("The kernel is started anew; its variables are gone.", now)
        self.first_cell = len(self.document.cells)

    def row(self, now: float, *, selected: bool) -> KernelRow:
        """Describe the kernel for the lists."""
        queued = len(self.document.queued)
        return KernelRow(self.number, self.name, self.status, self._detail(now), queued, selected=selected)

    def _detail(self, now: float) -> str:
        report = self.manager.death
        if self.status is Status.DEAD and report is not None:
            return report.signal or ("" if report.exit_code is None else f"({report.exit_code})")
        times = [cell.elapsed(now) or 0.0 for cell in self.document.running]
        return short_duration(max(times)) if times else ""

    def greet(self, info: Message) -> None:
        """Note what a kernel says of itself in its kernel_info_reply."""
        match info.content.get("language_info"):
            case {"name": str(name), **rest} if name:
                self.language = self.document.language = name.lower()
                self.version = ".".join(str(rest.get("version", "")).split(".")[:2])
            case _:
                pass  # it does not say

    def say_ended(self, now: float) -> None:
        """Write into the document that the kernel has ended, and why if nobody wanted it."""
        then = "Esc 0 0 starts it anew, Esc S S closes it."
        report = self.manager.death
        if self.state is KernelState.STOPPED or report is None:
            self.document.kernel_died(f"The kernel has ended. {then}", now, Level.INFO)
            return
        if report.stderr_tail:
            self.document.notice(report.stderr_tail, now, Level.WARNING)
        what = "could not be started" if report.phase in BEGINNING else "has ended"
        self.document.kernel_died(f"The kernel {what}: {str(report).rstrip('.')}. {then}", now)

    def detach(self) -> list[AsyncKernelClient]:
        """Talk to the kernel no more; returns who is to be closed."""
        clients = [client for client in (self.client, self.connecting) if client is not None]
        self.client = self.connecting = None
        self.interrupted.clear()
        return clients

    def disconnect(self) -> None:
        """Talk to the kernel no more, and hear nothing of it."""
        for client in self.detach():
            client.stop_channels()
