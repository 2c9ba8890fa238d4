"""A cell that was run or waits to be: its code, how its run stands, and what it put out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from cobnut.model.outputs import Outputs

if TYPE_CHECKING:
    from datetime import datetime


class RunState(StrEnum):
    """How the run of a cell stands."""

    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    """Never run: a cell before it failed, or the kernel ended."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to come of the run."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(eq=False, slots=True)
class Cell:
    """One input and what came of it; times are monotonic seconds of this process.

    `msg_id` is that of the execute request, None while it has not been sent. A foreign cell was run by another client.
    """

    code: str
    msg_id: str | None = None
    language: str = "python"
    state: RunState = RunState.QUEUED
    execution_count: int | None = None
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    outputs: Outputs = field(default_factory=Outputs)
    foreign: bool = False
    revision: int = 0
    started_on: datetime | None = None
    """When the kernel says that it started: two of its own times give a run's length, whenever we read them."""
    is_settled: bool = False
    """Whether the kernel itself said how the run ended."""
    failure: dict[str, object] | None = None
    """The content of a reply that told an error, until the outputs have it too."""

    def elapsed(self, now: float) -> float | None:
        """Give how many seconds the run has taken so far, or took; None where it never started."""
        if self.started_at is None:
            return None
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)
