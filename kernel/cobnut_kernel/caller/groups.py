"""A group of pendings: those made in its context become done before it ends, or it cancels them."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.caller import Caller
from cobnut_kernel.caller.errors import CallerStoppedError, InvalidStateError, PendingCancelled
from cobnut_kernel.caller.pending import TRACKER, Latch, Pending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self

    import anyio


class PendingTrackerState(StrEnum):
    """Where a group is in its life."""

    initial = "initial"
    active = "active"
    exiting = "exiting"
    stopped = "stopped"


class PendingGroup:
    """An asynchronous context that ends when all pendings made in it, and in what they call, are done.

    Where one fails or is cancelled, all others are cancelled, and so is the body. Those that a caller makes
    elsewhere in the context, for its own use, do not belong to it; nor do those made with `allow_tracking=False`.

    Args:
        shield: hold off cancellations from outside while it is active.

    Raises:
        PendingCancelled: on leaving, where a pending has failed or was cancelled (then its cause), or the group was.
    """

    def __init__(self, *, shield: bool = False) -> None:
        self.caller: Caller = Caller()
        self._shield: bool = shield
        self._state: PendingTrackerState = PendingTrackerState.initial
        self._pending: set[Pending[Any]] = set()
        self._emptied: Latch = Latch()
        self._cancelled: str | None = None
        self._cause: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._body: AbstractAsyncContextManager[Self] | None = None

    @classmethod
    def current(cls) -> Self | None:
        """Return the group of the current context; None where there is none of this class."""
        group = TRACKER.get()
        return group if isinstance(group, cls) else None

    @property
    def state(self) -> PendingTrackerState:
        """Where it is in its life."""
        return self._state

    @property
    def pending(self) -> set[Pending[Any]]:
        """Those that are not done, in a set of its own."""
        return set(self._pending)

    async def __aenter__(self) -> Self:
        if self._state in (PendingTrackerState.active, PendingTrackerState.exiting):
            raise InvalidStateError("This group is active already: make another one.")
        self._body = self._conduct()
        return await self._body.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._body is not None
        return await self._body.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def _conduct(self) -> AsyncGenerator[Self]:
        import anyio

        self._check()
        token = TRACKER.set(self)
        try:
            with anyio.CancelScope(shield=self._shield) as self._scope:
                self._state = PendingTrackerState.active
                yield self
                await self._until_empty()
        finally:
            self._state = PendingTrackerState.exiting
            self._scope = None
            TRACKER.reset(token)
            self._cancel_all("Its group has ended.")
            with anyio.CancelScope(shield=True):
                await self._until_empty()
            self._state = PendingTrackerState.stopped
        self._check()

    def _check(self) -> None:
        if self._cancelled is not None:
            raise PendingCancelled(self._cancelled or "The group was cancelled.") from self._cause

    async def _until_empty(self) -> None:
        while self._pending:
            self._emptied = emptied = Latch()
            if self._pending:  # looked at again: the last may just have become done in another thread
                await emptied

    # ── any thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def track(self, pen: Pending[Any]) -> None:
        """Add a pending that is not done.

        Raises:
            InvalidStateError: the group is not active.
        """
        if self._state is not PendingTrackerState.active:
            raise InvalidStateError(f"The group is {self._state}: nothing can be started in it.")
        self._pending.add(pen)
        pen.add_done_callback(self._note_end)

    def remove(self, pen: Pending[Any]) -> None:
        """Take a pending out of the group, which waits for it no more.

        Raises:
            KeyError: it is not in the group.
        """
        self._pending.remove(pen)
        pen.remove_done_callback(self._note_end)
        self._note_emptiness()

    def discard(self, pen: Pending[Any]) -> None:
        """Take a pending out of the group where it is in it."""
        with suppress(KeyError):
            self.remove(pen)

    def cancel(self, msg: str | None = None) -> None:
        """Cancel the body and all pendings."""
        self._cancelled = "\n".join(filter(None, (self._cancelled, msg)))
        if (scope := self._scope) is not None:
            with suppress(CallerStoppedError):
                self.caller.call_direct(scope.cancel)

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._cancelled is not None

    def _note_end(self, pen: Pending[Any]) -> None:
        self._pending.discard(pen)
        error = None if pen.cancelled() else pen.exception()
        if self._state is PendingTrackerState.active and (error is not None or pen.cancelled()):
            self._cause = self._cause or error
            reason = f"{pen} {'failed' if error else 'was cancelled'}, and with it its group."
            self._cancel_all(reason)
            self.cancel(reason)
        self._note_emptiness()

    def _note_emptiness(self) -> None:
        if not self._pending:
            self._emptied.set()

    def _cancel_all(self, reason: str) -> None:
        for pen in list(self._pending):
            pen.cancel(reason)
