"""The states of a kernel and the ways between them: pure decisions, without any input or output.

```
STOPPED ─▶ QUEUED ─▶ PROVISIONING ─▶ STARTING ─▶ READY ─▶ STOPPING ─▶ STOPPED
                           ▲             └─────────┴─▶ RESTARTING ─▶ PROVISIONING
                           └ DEAD (with a report) may follow every state in which something runs or begins
```

While a kernel is QUEUED, PROVISIONING, RESTARTING or STOPPING it is *pending*. A start, a restart and a stop are
transitions; each has one future, `Ready`, made in the very call that asks for it, and every way out resolves it.
How long a kernel was in each state is kept: `Lifecycle.phases`.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cobnut_kernel.errors import KernelDiedError, KernelError, KernelStartCancelled, PendingKernelError
from cobnut_kernel.portal import Portal, settled, wait_until_done

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class KernelState(StrEnum):
    """Where a kernel is on its way."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DEAD = "dead"
    RESTARTING = "restarting"


_S = KernelState

WAYS: dict[KernelState, frozenset[KernelState]] = {
    _S.STOPPED: frozenset({_S.QUEUED, _S.RESTARTING}),
    _S.DEAD: frozenset({_S.QUEUED, _S.RESTARTING}),
    _S.QUEUED: frozenset({_S.PROVISIONING, _S.STOPPING, _S.STOPPED, _S.DEAD}),
    _S.PROVISIONING: frozenset({_S.STARTING, _S.STOPPING, _S.STOPPED, _S.DEAD}),
    _S.STARTING: frozenset({_S.READY, _S.STOPPING, _S.RESTARTING, _S.DEAD}),
    _S.READY: frozenset({_S.STOPPING, _S.RESTARTING, _S.DEAD}),
    _S.RESTARTING: frozenset({_S.PROVISIONING, _S.STOPPING, _S.STOPPED, _S.DEAD}),
    _S.STOPPING: frozenset({_S.STOPPED}),
}
"""From each state, the states that may follow."""

BEGINNING = frozenset({_S.QUEUED, _S.PROVISIONING, _S.RESTARTING})
"""Pending on the way up: there is no process to talk to yet."""

RUNNING = frozenset({_S.STARTING, _S.READY})
"""A process runs and its connection is known."""

AT_REST = frozenset({_S.STOPPED, _S.DEAD})
"""Nothing runs and nothing is left."""


@dataclass(frozen=True)
class Phase:
    """A state that a kernel is or was in, and how long.

    Attributes:
        state: which.
        began: when, in seconds since the epoch.
        seconds: how long it lasted; None while it lasts.
    """

    state: KernelState
    began: float
    seconds: float | None = None


@dataclass(frozen=True)
class DeathReport:
    """Why a kernel is no more, or never came to be.

    Attributes:
        exit_code: what its process returned; None where a signal ended it or no process was there.
        signal: the name of the signal that ended it, "SIGKILL" say.
        stderr_tail: the last 40 lines that it wrote to stderr.
        phase: the state in which it died.
        reason: why cobnut ended it, or could not start it; empty where it died by itself.
        out_of_memory: what shows that the system killed it for want of memory; empty where nothing does.
    """

    exit_code: int | None
    signal: str | None
    stderr_tail: str
    phase: KernelState
    reason: str = ""
    out_of_memory: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        end = f"killed by {self.signal}" if self.signal else f"exit code {self.exit_code}"
        if not self.signal and self.exit_code is None:
            end = "how it ended is not known"
        return f"{end}: {self.out_of_memory}" if self.out_of_memory else end


class Ready:
    """The outcome of a transition, to await on any loop or ask for in any thread.

    Cancelling who awaits it leaves the transition alone.
    """

    def __init__(self) -> None:
        self._future: Future[None] = Future()

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the transition is over; raises what made it fail."""
        return self._wait().__await__()

    def done(self) -> bool:
        """Whether the transition is over."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> None:
        """Block until the transition is over; return None or raise what made it fail.

        Args:
            timeout: seconds to wait, None without end; `TimeoutError` after that.

        Raises:
            RuntimeError: it is not over, and the caller runs on the thread that works on it.
        """
        self._block(timeout)
        return self._future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Block until the transition is over; return what made it fail, or None. See `result`."""
        self._block(timeout)
        return self._future.exception()

    def cancelled(self) -> bool:
        """Whether a start ended because it was cancelled."""
        return self.done() and isinstance(self._future.exception(), KernelStartCancelled)

    def add_done_callback(self, callback: Callable[[Ready], object]) -> None:
        """Call back when the transition is over, in the thread that ends it; at once where it is over."""
        self._future.add_done_callback(lambda _: callback(self))

    def resolve(self, error: BaseException | None = None) -> None:
        """End the transition; what came first stays."""
        if self.done():
            return
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)

    async def _wait(self) -> None:
        await settled(self._future)
        self._future.result()

    def _block(self, timeout: float | None) -> None:
        if not self.done() and Portal.runs_here():
            raise RuntimeError("This would wait for itself on the portal's thread: await the object instead.")
        wait_until_done(self._future, timeout)


class Lifecycle:
    """One kernel's state, its transitions' futures and the report of its death; safe to use from any thread.

    `begin_…` are what somebody asks for; the other verbs are what has happened, told by whoever carries it out.

    Args:
        on_change: is called with every new state, in order, while the state is locked: it must only take note.
        clock: tells the seconds by which the phases are measured.

    Attributes:
        phases: where the kernel has been since its last start or restart was asked for; the last one is where it is.
    """

    def __init__(
        self, on_change: Callable[[KernelState], object] = lambda _: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.phases: tuple[Phase, ...] = ()
        self.state: KernelState = KernelState.STOPPED
        self.ready: Ready = Ready()
        self.answered: Ready = Ready()
        self.death: DeathReport | None = None
        self._begun: bool = False
        self._on_change = on_change
        self._clock = clock
        self._entered: float = 0.0
        self._lock = threading.RLock()

    @property
    def is_beginning(self) -> bool:
        """Whether the kernel is pending on its way up."""
        return self.state in BEGINNING

    @property
    def is_running(self) -> bool:
        """Whether a process runs and its connection is known."""
        return self.state in RUNNING

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing runs and nothing is about to."""
        return self.state in AT_REST

    # ── what is asked for ───────────────────────────────────────────────────────────────────────────────────────────

    def begin_start(self) -> Ready:
        """Queue the kernel's start; the `ready` that was there before the first start becomes the start's.

        Raises what `require_startable` does.
        """
        with self._lock:
            self.require_startable()
            self.phases = ()
            self._move(KernelState.QUEUED)
            return self._begin_life()

    def begin_restart(self) -> Ready:
        """Take the kernel down to start it again.

        Raises:
            PendingKernelError: it is pending.
            KernelError: it was never started.
        """
        with self._lock:
            self.require_settled("restart")
            if not self._begun:
                raise KernelError("The kernel cannot be restarted: it was never started.")
            self.answered.resolve(KernelStartCancelled("The kernel was restarted before it answered."))
            self.phases = ()
            self._move(KernelState.RESTARTING)
            return self._begin_life()

    def begin_stop(self, promised: Ready | None = None) -> Ready:
        """Take the kernel down, even while it is on its way up: whoever carries out its start must then end it.

        A kernel that is at rest stays so, and one that is stopping too: its future is returned.

        Args:
            promised: what `await_stop` returned, where the stop had to wait.
        """
        with self._lock:
            if self.state is KernelState.STOPPING:
                return self.ready
            self.ready = promised or Ready()
            if self.is_at_rest:
                self.ready.resolve()
                return self.ready
            self.answered.resolve(KernelStartCancelled("The kernel was stopped before it answered."))
            self._move(KernelState.STOPPING)
            return self.ready

    def await_stop(self) -> Ready:
        """Promise a stop that comes when the running start is over; `begin_stop` follows then."""
        with self._lock:
            self.ready = Ready()
            return self.ready

    def require_startable(self) -> None:
        """Refuse a start while there is a kernel.

        Raises:
            PendingKernelError: it is pending already.
            KernelError: it runs already.
        """
        self.require_settled("start")
        if self.is_running:
            raise KernelError("The kernel runs already: restart it, or make another manager.")

    def require_settled(self, wish: str) -> None:
        """Refuse a wish while the kernel is pending.

        Raises:
            PendingKernelError: it is.
        """
        if self.is_beginning or self.state is KernelState.STOPPING:
            raise PendingKernelError(
                f"The kernel is in a pending state ({self.state}): wait for its `ready` before you {wish} it."
            )

    # ── what has happened ───────────────────────────────────────────────────────────────────────────────────────────

    def provision(self) -> bool:
        """Begin to provide what the kernel runs on; False where it is no longer wanted."""
        return self._advance(KernelState.PROVISIONING, KernelState.QUEUED, KernelState.RESTARTING)

    def launched(self) -> bool:
        """The process runs and its connection is known; False where it is no longer wanted."""
        return self._advance(KernelState.STARTING, KernelState.PROVISIONING)

    def answer(self) -> bool:
        """The kernel answered for the first time; False where it is no longer wanted."""
        with self._lock:
            if not self._advance(KernelState.READY, KernelState.STARTING):
                return False
            self.answered.resolve()
            return True

    def die(self, report: DeathReport) -> bool:
        """The kernel's process has ended; False where it was meant to."""
        with self._lock:
            if not self._advance(KernelState.DEAD, KernelState.STARTING, KernelState.READY, report=report):
                return False
            self.answered.resolve(KernelDiedError(_obituary(report)))
            return True

    def fail(self, report: DeathReport, error: BaseException) -> bool:
        """The start failed and is undone; False where it was no longer wanted."""
        with self._lock:
            if not self._advance(KernelState.DEAD, *BEGINNING, report=report):
                return False
            self.answered.resolve(error)
            return True

    def cancel(self) -> bool:
        """The start was cancelled and is undone; False where a stop did that, which goes on."""
        with self._lock:
            if not self._advance(KernelState.STOPPED, *BEGINNING):
                return False
            self.answered.resolve(KernelStartCancelled("The start of the kernel was cancelled."))
            return True

    def attach(self) -> None:
        """A kernel that somebody else started is there, and answers. Raises what `require_startable` does."""
        with self._lock:
            ready = self.begin_start()
            self.provision()
            self.launched()
            ready.resolve()
            self.answer()

    def stopped(self) -> bool:
        """Nothing of the kernel is left; False where it was not stopping."""
        return self._advance(KernelState.STOPPED, KernelState.STOPPING)

    def abandon(self, ready: Ready, error: BaseException | None) -> None:
        """Whoever carried a transition out is no more, and nothing of it is left; one that is over stays so.

        Args:
            ready: the transition's.
            error: why; None where it was cancelled.
        """
        if ready.done():
            return
        with self._lock:
            if error is None:
                self.cancel()
            else:
                self.fail(DeathReport(None, None, "", self.state, reason=str(error)), error)
            if ready is self.ready:
                self.stopped()
        ready.resolve(error or KernelStartCancelled("The start of the kernel was cancelled."))

    def _begin_life(self) -> Ready:
        if self._begun:
            self.ready, self.answered = Ready(), Ready()
        self._begun = True
        self.death = None
        return self.ready

    def _advance(self, state: KernelState, *origins: KernelState, report: DeathReport | None = None) -> bool:
        with self._lock:
            if self.state not in origins:
                return False
            self.death = report
            self._move(state)
            return True

    def _move(self, state: KernelState) -> None:
        assert state in WAYS[self.state], f"no way leads from {self.state} to {state}"
        self.state = state
        now = self._clock()
        self.phases = _followed(self.phases, now - self._entered, Phase(state, time.time()))
        self._entered = now
        self._on_change(state)


def _followed(phases: tuple[Phase, ...], seconds: float, phase: Phase) -> tuple[Phase, ...]:
    """End the last phase, if there is one, and begin another."""
    ended = (*phases[:-1], replace(phases[-1], seconds=seconds)) if phases else ()
    return (*ended, phase)


def _obituary(report: DeathReport) -> str:
    when = "before it answered" if report.phase is KernelState.STARTING else f"while it was {report.phase}"
    tail = f"\n{report.stderr_tail}" if report.stderr_tail else ""
    return f"The kernel's process ended {when}: {report}.{tail}"
