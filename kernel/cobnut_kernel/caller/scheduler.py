"""The calls of one caller: on their way into its event loop, in it, and what becomes of them when it ends.

Laws of the file:

* `submit`, `post`, `withdraw` and `close` may be called by any thread; nothing locks.
* A call from one of the loop's own tasks begins at once; all others stand in one queue, and one wake-up of the loop
  takes in all that stand there.
* Every call becomes done: by its task, by being withdrawn, or by `abandon` when the loop is no more.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context
from threading import get_ident
from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.errors import CallerStoppedError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from cobnut_kernel.caller.calls import Call, DirectCall
    from cobnut_kernel.caller.loops import Loop


class Scheduler:
    """The queue into an event loop, and the calls that are not done.

    Args:
        log: gets what nobody waits for.
        on_loop_end: called when it turns out that the loop has ended.
    """

    def __init__(self, log: logging.LoggerAdapter[Any], on_loop_end: Callable[[], object]) -> None:
        self.log: logging.LoggerAdapter[Any] = log
        self.loop: Loop | None = None
        self.calls: set[Call[Any]] = set()
        self._closed: str = ""
        self._context: Context = Context()
        self._on_loop_end: Callable[[], object] = on_loop_end
        self._queue: deque[Call[Any] | DirectCall] = deque()
        self._is_rung: bool = False

    # ── in any thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, call: Call[Any]) -> None:
        """Let a call begin as soon as the loop can; where none are taken any more, it is cancelled."""
        self.calls.add(call)
        loop = self.loop
        if loop is not None and not self._queue and loop.is_in_task():
            call.begin(loop)
        else:
            self._queue.append(call)
            self._ring()
        if self._closed:  # by another thread, maybe, which has not seen this call
            call.cancel(self._closed)

    def submit_direct(self, call: DirectCall) -> None:
        """Let a function be called where the loop takes in its calls, never at once."""
        self._queue.append(call)
        self._ring()

    def post(self, callback: Callable[[], object]) -> bool:
        """Run a callback in the loop's thread; return whether there is a loop for it."""
        try:
            if self.loop is not None:
                self.loop.post(callback, self._context)
                return True
        except RuntimeError:
            self._on_loop_end()
        return False

    def withdraw(self, call: Call[Any]) -> bool:
        """Take a call out of the queue; return whether it was there, so that it will never begin."""
        try:
            self._queue.remove(call)
        except (ValueError, IndexError):  # it is not there; or the loop's thread is taking calls in
            return False
        return True

    def forget(self, call: Call[Any]) -> None:
        """Note that a call is done."""
        self.calls.discard(call)

    def check_is_open(self) -> None:
        """Raise where no call is taken any more.

        Raises:
            CallerStoppedError: the loop has ended, or is to.
        """
        if self._closed:
            raise CallerStoppedError(f"{self._closed} Ask for another one with Caller().")

    def is_served_here(self) -> bool:
        """Say whether the loop is that of the current thread."""
        return self.loop is not None and self.loop.ident == get_ident()

    def _ring(self) -> None:
        """Wake the loop, once for all that is in the queue; without a loop yet, its start does."""
        if self.loop is None or self._is_rung:
            return
        self._is_rung = True
        is_posted = False
        try:
            is_posted = self.post(self._take_in)
        finally:
            if not is_posted:  # where it is, the loop may have looked already: its word counts
                self._is_rung = False

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self, reason: str) -> None:
        """Take no more calls, and cancel those that are not done, also those that were cancelled before."""
        self._closed = self._closed or reason
        for call in list(self.calls):
            if not call.cancelled():
                call.cancel(reason)
            else:
                call.end()

    async def wait_until_ended(self) -> None:
        """Wait in the loop until the tasks of all calls have ended; then no call is left."""
        assert self.loop is not None
        while tasks := [call.task for call in list(self.calls) if call.task is not None]:
            await self.loop.ended(tasks)
            for call in list(self.calls):  # cancelled by the loop before its first step, it never was in our code
                if call.task in tasks:
                    call.abandon()

    def abandon(self) -> None:
        """Settle all calls that nothing else can: the loop has ended."""
        self._closed = self._closed or "The event loop of this caller has ended."
        self._queue.clear()
        calls = list(self.calls)
        if self.loop is not None:
            self.loop.disown([call.task for call in calls])
        for call in calls:
            call.abandon()

    def silence(self) -> None:
        """Settle all calls in a forked child, where nobody waits for them."""
        for call in list(self.calls):
            call.silence()
        self.abandon()

    # ── in the loop's thread ────────────────────────────────────────────────────────────────────────────────────────

    def open(self, loop: Loop) -> None:
        """Serve a loop, which runs here, with what was queued before."""
        self.loop = loop
        if self._queue:
            self._ring()

    def _take_in(self) -> None:
        """Begin the calls that stand in the queue now; those that come meanwhile get the next turn."""
        assert self.loop is not None
        self._is_rung = False
        try:
            for _ in range(len(self._queue)):
                self._queue.popleft().begin(self.loop)
        except IndexError:  # somebody has withdrawn a call
            pass
        except BaseException:  # an interrupt, maybe between taking a call out and its beginning
            queued = list(self._queue)
            self._queue.extendleft([call for call in list(self.calls) if not call.has_begun() and call not in queued])
            raise
        finally:
            if self._queue:
                self._ring()
