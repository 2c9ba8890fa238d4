"""The states of a kernel as a person sees them: a word, a glyph that reads without colour, and its ASCII twin."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """What a kernel does, in the word that the list shows."""

    PENDING = "pending"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    INTERRUPTING = "interrupting"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEAD = "dead"

    @property
    def has_ended(self) -> bool:
        """Whether there is no process any more."""
        return self in (Status.STOPPED, Status.DEAD)


GLYPHS: Final[dict[Status, tuple[str, str]]] = {
    Status.PENDING: ("◌", "."),
    Status.STARTING: ("◔", "~"),
    Status.IDLE: ("○", "-"),
    Status.BUSY: ("●", "*"),
    Status.INTERRUPTING: ("◍", "!"),
    Status.RESTARTING: ("↻", "@"),
    Status.STOPPING: ("◑", "v"),
    Status.STOPPED: ("✗", "x"),
    Status.DEAD: ("✗", "x"),
}
"""For each state its glyph, and the twin for terminals that have ASCII only."""

STYLES: Final[dict[Status, str]] = {
    Status.PENDING: "dim",
    Status.STARTING: "cyan",
    Status.IDLE: "",
    Status.BUSY: "bold yellow",
    Status.INTERRUPTING: "yellow",
    Status.RESTARTING: "cyan",
    Status.STOPPING: "dim cyan",
    Status.STOPPED: "dim",
    Status.DEAD: "bold red",
}
"""For each state its style in the terminal's own colours; a quiet kernel has none."""


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel as the lists show it."""

    number: int
    name: str
    status: Status
    detail: str = ""
    """Behind the word: how long it runs, what killed it."""
    queued: int = 0
    """How many cells wait behind the one that runs."""
    selected: bool = False

    @property
    def state_text(self) -> str:
        """The state in words: `busy 12s +1`, `dead SIGKILL`."""
        return " ".join(part for part in (self.status, self.detail, self._waiting) if part)

    @property
    def timeless_text(self) -> str:
        """The state in words where not even those have room: without how long it runs, or what killed it."""
        return " ".join(part for part in (self.status, self._waiting) if part)

    @property
    def brief_text(self) -> str:
        """The state where every column counts: without the word where time or reason say it."""
        return f"{self.detail}{self._waiting}"

    @property
    def _waiting(self) -> str:
        return f"+{self.queued}" if self.queued else ""


def short_duration(seconds: float) -> str:
    """Write how long something has run, in at most five columns: `12s`, `3m05`, `2h07`, `4d`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}"
    return f"{whole // 3600}h{whole // 60 % 60:02}" if whole < 86400 else f"{whole // 86400}d"
