"""A result that is not there yet, which any thread and any event loop can wait for.

Laws of the file:

* Nothing locks. Each step is one atomic operation of the interpreter's (append, pop, clear of a list), so that
  a signal handler, or a KeyboardInterrupt between two steps, leaves nothing locked and nothing half set.
* The first outcome counts: it is the first in the list, and whoever comes second finds it there.
* Who waits adds himself first and looks for the outcome afterwards; who sets the outcome wakes all afterwards.
"""

from __future__ import annotations

import logging
from contextvars import Context, ContextVar
from enum import Enum
from reprlib import Repr
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

from cobnut_kernel.caller.errors import InvalidStateError, PendingCancelled, WouldDeadlockError
from cobnut_kernel.caller.waiting import awaited, block_until_done, checkpoint, wait_until_done

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import NotRequired, Self

T = TypeVar("T")

_log = logging.getLogger(__name__)


class PendingCreateOptions(TypedDict):
    """What can be said of a pending when it is made."""

    allow_tracking: NotRequired[bool]
    """The pending group of the current context may add it; it does by default."""


class Kind(Enum):
    """What has become of a pending."""

    RESULT = 1
    EXCEPTION = 2
    CANCELLED = 3


Outcome = tuple[Kind, Any, "TracebackType | None", "_Unseen | None"]
"""What has become of a pending: the result, or the exception with its traceback and who tells of it.

A cancelled one has what its code raised, if it raised anything but the cancellation.
"""


class Tracker(Protocol):
    """What wants to know of the pendings made in a context."""

    def track(self, pen: Pending[Any], /) -> None:
        """Take note of a new one."""
        ...


TRACKER: ContextVar[Tracker | None] = ContextVar("cobnut_pending_tracker", default=None)
"""What is told of the pendings made in a context: their group."""


class Pending(Generic[T]):
    """A result that is not there yet; it is awaited on any event loop, and waited for in any thread.

    A pending of one's own is set by `set_result` or `set_exception`; those of a caller's methods are set by the caller.

    Args:
        options: says what else is to be done with the new pending.
        metadata: whatever belongs to it. A caller adds `func`, `args`, `kwargs` and `caller`.
    """

    __slots__ = ("__weakref__", "_asked", "_callbacks", "_canceller", "_context", "_metadata", "_outcome")

    REPR_OMIT: ClassVar[frozenset[str]] = frozenset({"func", "args", "kwargs", "caller"})
    """The metadata that its `repr` leaves out, or shows in another way."""

    def __init__(self, options: PendingCreateOptions | None = None, /, **metadata: Any) -> None:
        self._prepare(metadata)
        if options is None or options.get("allow_tracking", True):
            self._tell_tracker()

    def _prepare(self, metadata: dict[str, Any], context: Context | None = None) -> None:
        self._asked: str | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self._canceller: Callable[[str | None], object] | None = None
        self._context: Context | None = context
        self._metadata: dict[str, Any] = metadata
        self._outcome: list[Outcome] = []

    def _tell_tracker(self) -> None:
        tracker = TRACKER.get()
        if tracker is not None:
            tracker.track(self)

    def __repr__(self) -> str:
        marks = ("⛔ " if self.cancelled() else "") + ("🏁" if self.done() else "🏃")
        return f"<Pending {marks} at {id(self)}{_described(self._metadata)}>"

    @property
    def metadata(self) -> dict[str, Any]:
        """What was said about it when it was made."""
        return self._metadata

    @property
    def context(self) -> Context | None:
        """The context that its function runs in; None where it has no function."""
        return self._context

    # ── wait ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def __await__(self) -> Generator[Any, None, T]:
        for outcome in self._outcome:
            yield from checkpoint().__await__()
            return self._value_of(outcome)
        return self._value_of((yield from awaited(self)))

    async def wait(
        self, *, timeout: float | None = None, protect: bool = False, result: bool = True, shield: bool = False
    ) -> T | None:
        """Wait on asyncio or trio until it is done, and return the result.

        Who stops waiting, being cancelled or out of time, cancels it, and does not wait for its end.

        Args:
            timeout: how long to wait, in seconds.
            protect: do not cancel it.
            result: return the result, or raise the exception; without it None is returned.
            shield: go on waiting while the waiting task is cancelled; the cancellation comes when it is done.

        Raises:
            TimeoutError: the time is up.
            PendingCancelled: it was cancelled.
            WouldDeadlockError: it is the call that waits.
            BaseException: what its function has raised.
        """
        outcome = self.outcome()
        if outcome is None:
            outcome = await wait_until_done(self, timeout, protect=protect, shield=shield)
        else:
            await checkpoint()
        return self._value_of(outcome) if result else _mark_seen(outcome)

    def wait_sync(self, *, timeout: float | None = None, protect: bool = False, result: bool = True) -> T | None:
        """Block the current thread until it is done, and return the result; any thread but the one it runs in.

        Who stops waiting, being interrupted or out of time, cancels it, and does not wait for its end.

        Args:
            timeout: how long to wait, in seconds.
            protect: do not cancel it.
            result: return the result, or raise the exception; without it None is returned.

        Raises:
            TimeoutError: the time is up.
            PendingCancelled: it was cancelled.
            WouldDeadlockError: it runs in the current thread, which would not get to it.
            BaseException: what its function has raised.
        """
        outcome = self.outcome()
        if outcome is None:
            if self._needs_this_thread():
                raise WouldDeadlockError(
                    f"{self} runs in this thread, which cannot run it while it waits: use `await`, or wait in another."
                )
            outcome = block_until_done(self, timeout, protect=protect)
        return self._value_of(outcome) if result else _mark_seen(outcome)

    def _needs_this_thread(self) -> bool:
        """Say whether it can only become done while the current thread does something else."""
        return False

    def _is_awaited_by_itself(self) -> bool:
        """Say whether it is the task of this very call that runs now."""
        return False

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def done(self) -> bool:
        """Say whether there is a result or an exception."""
        return bool(self._outcome)

    def cancelled(self) -> bool:
        """Say whether it was cancelled; it may be before it is done, because its code has not ended yet."""
        for kind, *_ in self._outcome:
            return kind is Kind.CANCELLED
        return self._asked is not None

    def result(self) -> T:
        """Return the result.

        Raises:
            PendingCancelled: it was cancelled.
            InvalidStateError: it is not done.
            BaseException: what its function has raised.
        """
        for outcome in self._outcome:
            return self._value_of(outcome)
        raise self._why_not_done()

    def exception(self) -> BaseException | None:
        """Return what its function has raised; None where it has returned.

        Raises:
            PendingCancelled: it was cancelled.
            InvalidStateError: it is not done.
        """
        for outcome in self._outcome:
            kind, value, *_ = outcome
            if kind is Kind.CANCELLED:
                raise self._cancellation(value)
            _mark_seen(outcome)
            return value if kind is Kind.EXCEPTION else None
        raise self._why_not_done()

    def outcome(self) -> Outcome | None:
        """Return what has become of it, as one object; None where it is not done."""
        for outcome in self._outcome:
            return outcome
        return None

    def _value_of(self, outcome: Outcome) -> T:
        """Return the result of an outcome, or raise what it holds."""
        kind, value, traceback, _ = outcome
        if kind is Kind.RESULT:
            return value
        if kind is Kind.CANCELLED:
            raise self._cancellation(value)
        _mark_seen(outcome)
        raise value.with_traceback(traceback)

    def _why_not_done(self) -> Exception:
        if self._asked is not None:
            return self._cancellation(None)
        return InvalidStateError(f"{self} is not done: wait for it first.")

    def _cancellation(self, cause: BaseException | None) -> PendingCancelled:
        """Return a new error for each who asks; its cause is what the code raised when it was cancelled."""
        error = PendingCancelled(self._asked or f"{self} was cancelled.")
        error.__cause__ = cause
        return error

    # ── set ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def set_result(self, value: T, *, reset: bool = False) -> None:
        """Set the result, in any thread, and wake all that wait.

        Args:
            value: the result; where it was cancelled it is done without one.
            reset: be not done afterwards: those who wait get the value, others wait for the next.

        Raises:
            InvalidStateError: it is done.
        """
        self._set(Kind.RESULT, value)
        if reset:
            self._outcome.clear()

    def set_exception(self, exception: BaseException) -> None:
        """Set an exception, in any thread, and wake all that wait.

        Raises:
            InvalidStateError: it is done.
        """
        self._set(Kind.EXCEPTION, exception)

    def _set(self, kind: Kind, value: object) -> None:
        if not self._settle(kind, value):
            raise InvalidStateError(f"{self} is done already: a result or an exception can be set once.")

    def _settle(self, kind: Kind, value: object) -> bool:
        """Make it done, and wake all that wait; return whether this outcome is the first."""
        if kind is Kind.RESULT and self._asked is None:
            outcome: Outcome = (kind, value, None, None)
        else:
            outcome = self._bad_outcome(kind, value)
        self._outcome.append(outcome)
        if self._outcome[0] is not outcome:
            self._outcome.pop()
            _mark_seen(outcome)
            return False
        if self._callbacks:
            self._run_callbacks()
        return True

    def _bad_outcome(self, kind: Kind, value: Any) -> Outcome:
        if self._asked is not None:
            return (Kind.CANCELLED, None if kind is Kind.RESULT else value, None, None)
        return (kind, value, value.__traceback__, _Unseen(self._metadata, value))

    # ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self, msg: str | None = None) -> bool:
        """Ask for its end, in any thread, and return whether it counts as cancelled; it cannot be taken back.

        It is done when its code has ended: what awaits gets the cancellation of its event loop there, once. Code
        that blocks its thread cannot be reached: it runs to its end, and what it returns or raises is dropped. A
        function that has not begun never does. One without a caller is done when `set_result` says so.

        Args:
            msg: why; of several cancellations the reasons are collected.
        """
        if self._outcome:
            return self.cancelled()
        first = self._asked is None
        self._asked = "\n".join(filter(None, (self._asked, msg)))
        if first:
            self._end_early(msg)
        return True

    def _end_early(self, msg: str | None) -> None:
        """Do what makes it done soon."""
        if self._canceller is not None:
            self._canceller(msg)

    def set_canceller(self, canceller: Callable[[str | None], object], /) -> None:
        """Set what cancels it: it gets the reason, must be safe in any thread, and see to it that a result is set.

        Where it was cancelled before, the canceller is called at once.

        Raises:
            InvalidStateError: it is done, or has a canceller.
        """
        if self._outcome or self._canceller is not None:
            raise InvalidStateError(f"{self} is done or has a canceller: one can be set once, before it is done.")
        self._canceller = canceller
        if self._asked is not None:
            canceller(self._asked or None)

    # ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def add_done_callback(self, fn: Callable[[Self], object], /) -> None:
        """Call a function when it is done, in the thread that sets it, in the order they were added; now, where it is.

        It must be quick and thread-safe. What it raises is logged.
        """
        self._callbacks.append(fn)
        if self._outcome:
            self._run_callbacks()

    def remove_done_callback(self, fn: Callable[[Self], object], /) -> int:
        """Take back a callback, as often as it was added, and return how often that was."""
        removed = 0
        try:
            while True:
                self._callbacks.remove(fn)
                removed += 1
        except ValueError:
            return removed

    def silence(self) -> None:
        """Forget the callbacks, in a forked child: those who gave them are not there."""
        self._callbacks.clear()

    def _run_callbacks(self) -> None:
        """Call each callback once, although several threads may be here."""
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            try:
                callback(self)
            except BaseException:  # all others must still be called: somebody waits
                _log.exception("A callback of %r failed", self)


class Latch(Pending[None]):
    """What happens once and is not undone, as the end of a caller: true when it has happened.

    Who waits for it and stops waiting does it no harm.
    """

    __slots__ = ()

    def __init__(self) -> None:
        self._prepare({})

    def __bool__(self) -> bool:
        return bool(self._outcome)

    def set(self) -> None:
        """Let it happen; again does nothing."""
        self._settle(Kind.RESULT, None)

    def cancel(self, msg: str | None = None) -> bool:
        """Do nothing: it is nobody's to cancel."""
        return False


def _mark_seen(outcome: Outcome) -> None:
    """Note that somebody has looked at an outcome, and need not be told of a failure."""
    if (unseen := outcome[3]) is not None:
        unseen.seen = True


class _Unseen:
    """Says what has failed when nobody can ask for it any more and nobody has."""

    __slots__ = ("_error", "_metadata", "seen")

    def __init__(self, metadata: dict[str, Any], error: BaseException) -> None:
        self._metadata = metadata
        self._error = error
        self.seen = False

    def __del__(self) -> None:
        if not self.seen:
            name = _described(self._metadata).strip() or "A pending"
            _log.error("%s failed, and nobody has asked for its result", name, exc_info=self._error)


_short = Repr()
_short.maxstring = _short.maxother = 40
_short.maxlevel = 2
_short.maxdict = 8


def _described(metadata: dict[str, Any]) -> str:
    """Return what is told of a pending: its function, and what else is known in a few words."""
    function, caller = metadata.get("func"), metadata.get("caller")
    others = {key: value for key, value in metadata.items() if key not in Pending.REPR_OMIT}
    parts = (
        f" {getattr(function, '__qualname__', None) or _short.repr(function)}" if function is not None else "",
        f" in {caller}" if caller is not None else "",
        f" {_short.repr(others)}" if others else "",
    )
    return "".join(parts)
