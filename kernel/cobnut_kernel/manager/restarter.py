"""Whether a kernel that has died is started again, why not, and who is told.

A kernel that answered once is restarted, within a budget of so many restarts per time; one that never answered is
not: whatever ended it would end the next one too (#715). `decide` decides, the kernel's life carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from traitlets import Bool, Float, Integer
from traitlets.config import LoggingConfigurable

from cobnut_kernel.errors import KernelStartCancelled
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    from concurrent.futures import Future

    from cobnut_kernel.manager.lifecycle import DeathReport

Callback = Callable[[], object]
"""Takes nothing; what it returns is awaited where it can be."""

HISTORY = 20
"""How many decisions are remembered."""


class RestartEvent(StrEnum):
    """What callbacks are told of: a restart that begins, or a death that no restart follows."""

    RESTART = "restart"
    DEAD = "dead"


@dataclass(frozen=True)
class RestartBudget:
    """How often a kernel may be restarted: `limit` times in any `period` of so many seconds."""

    limit: int = 5
    period: float = 60.0

    def recent(self, restarts: tuple[float, ...], now: float) -> tuple[float, ...]:
        """Return the restarts that still count."""
        return tuple(moment for moment in restarts if now - moment < self.period)


@dataclass(frozen=True)
class Record:
    """What a kernel has been through since somebody started or restarted it.

    Attributes:
        has_answered: whether it ever did.
        restarts: when it was restarted by itself, in seconds; those that count.
    """

    has_answered: bool = False
    restarts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What follows a death.

    Attributes:
        restarts: whether the kernel is started again.
        reason: why, or why not; part of a sentence.
        newports: whether it gets another connection: with the last one it did not come up.
        death: the death that it follows.
    """

    restarts: bool
    reason: str
    death: DeathReport
    newports: bool = False


def decide(death: DeathReport, record: Record, budget: RestartBudget, now: float) -> tuple[Decision, Record]:
    """Decide whether a kernel that has died is started again, and return what is known of it then.

    Restarts count until they are older than the budget's period; those after which the kernel did not answer count
    until it does, however long each of them took.
    """
    answered = death.phase is KernelState.READY
    if answered:
        record = Record(has_answered=True, restarts=budget.recent(record.restarts, now))
    if not record.has_answered:
        return Decision(restarts=False, reason="it never answered", death=death), record
    spent = len(record.restarts)
    if spent >= budget.limit:
        without = "" if answered else ", the last time without an answer"
        reason = f"it was restarted {spent} times already within {budget.period:g} seconds{without}"
        return Decision(restarts=False, reason=reason, death=death), record
    reason = f"restart {spent + 1} of at most {budget.limit} within {budget.period:g} seconds"
    record = replace(record, restarts=(*record.restarts, now))
    return Decision(restarts=True, reason=reason, death=death, newports=not answered), record


class KernelRestarter(LoggingConfigurable):
    """The restarts of one kernel: its budget, what has been decided, and whom to tell.

    It watches from each start of its kernel to its stop.
    """

    restart_limit = Integer(
        5, config=True, help="How often a kernel may be restarted within restart_period before it stays dead."
    )
    restart_period = Float(60.0, config=True, help="Seconds within which restarts count.")
    stable_start_time = Float(
        10.0,
        config=True,
        help="Seconds after which a start counts as stable, where the provisioner knows no better:"
        " the period is at least restart_limit times as long.",
    )
    random_ports_until_alive = Bool(
        True, config=True, help="Whether a kernel that did not answer after a restart gets another connection."
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_watching: bool = False
        self.decisions: tuple[Decision, ...] = ()
        self._record = Record()
        self._callbacks: list[tuple[RestartEvent, Callback]] = []

    def start(self) -> None:
        """Watch from now on."""
        self.is_watching = True

    def stop(self) -> None:
        """Let deaths be deaths until the next start."""
        self.is_watching = False

    def forget(self) -> None:
        """Forget what the kernel has been through: somebody starts it anew."""
        self._record = Record()

    def judge(self, death: DeathReport, stable_start_time: float) -> Decision:
        """Decide what follows a death, and remember it.

        Args:
            death: of the kernel.
            stable_start_time: the provisioner's.
        """
        if not self.is_watching:
            return Decision(restarts=False, reason="nobody watches it", death=death)
        period = max(self.restart_period, self.restart_limit * stable_start_time)
        budget = RestartBudget(self.restart_limit, period)
        decision, self._record = decide(death, self._record, budget, time.monotonic())
        if not self.random_ports_until_alive:
            decision = replace(decision, newports=False)
        self.decisions = (*self.decisions, decision)[-HISTORY:]
        return decision

    # ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def add_callback(self, callback: Callback, event: str = "restart") -> None:
        """Call back, without arguments, when a restart begins, or on a death that no restart follows ("dead").

        Raises:
            ValueError: there is no such event.
        """
        self._callbacks.append((RestartEvent(event), callback))

    def remove_callback(self, callback: Callback, event: str = "restart") -> None:
        """Call back no longer; no error where it was not to be.

        Raises:
            ValueError: there is no such event.
        """
        unwanted = (RestartEvent(event), callback)
        self._callbacks = [known for known in self._callbacks if known != unwanted]

    def announce(self, decision: Decision) -> None:
        """Say what follows a death: in the log, and to whom it may concern."""
        outcome = "is restarted" if decision.restarts else "stays dead"
        self.log.warning("Kernel %s has died (%s), and %s: %s", self._name, decision.death, outcome, decision.reason)
        self._tell(RestartEvent.RESTART if decision.restarts else RestartEvent.DEAD)

    def note_outcome(self, restart: Future[None]) -> None:
        """Say that a restart has failed; one that was cancelled was somebody's wish."""
        error = None if restart.cancelled() else restart.exception()
        if error is not None and not isinstance(error, KernelStartCancelled):
            self.log.warning("Kernel %s stays dead: it could not be restarted: %s", self._name, error)
            self._tell(RestartEvent.DEAD)

    @property
    def _name(self) -> str:
        return getattr(self.parent, "kernel_id", "")

    def _tell(self, event: RestartEvent) -> None:
        for wanted, callback in tuple(self._callbacks):
            if wanted is event:
                Portal.shared().start_soon(self._call, callback)

    async def _call(self, callback: Callback) -> None:
        """Call back, and await what it returns where that can be awaited; what it raises is logged."""
        try:
            outcome = callback()
            if isawaitable(outcome):
                await outcome
        except Exception:
            self.log.exception("A restart callback failed")
