"""One call of a function in a caller's event loop: the pending that knows how to run itself and how to end."""

from __future__ import annotations

import time
from contextvars import Context, ContextVar
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

from cobnut_kernel.caller.loops import run_function
from cobnut_kernel.caller.pending import Kind, Pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.caller.loops import Loop
    from cobnut_kernel.caller.scheduler import Scheduler

T = TypeVar("T")

CURRENT: ContextVar[Pending[Any] | None] = ContextVar("cobnut_current_pending", default=None)
"""The pending whose function runs in a context."""

_LAYERS = 2
"""How many frames of a traceback are ours: `Call.run` and `run_function`."""


class Call(Pending[T]):
    """A call on its way into an event loop, in it, or done.

    It begins in the loop's thread, in a task and a context of its own. Cancelled before, it never begins; cancelled
    afterwards, its task is cancelled once, and it is done when the task has ended, whatever that returns or raises.
    """

    __slots__ = ("_is_running", "_loop", "_not_before", "_scheduler", "task")

    def __init__(self, scheduler: Scheduler, metadata: dict[str, Any], context: Context, *, tracked: bool) -> None:
        self._prepare(metadata, context)
        self._scheduler = scheduler
        self._loop: Loop | None = None
        self._is_running = False
        self._not_before: float | None = time.monotonic() + metadata["delay"] if "delay" in metadata else None
        self.task: Any = None
        if tracked:
            self._tell_tracker()

    # ── in the loop's thread ────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, loop: Loop) -> None:
        """Start its task; again does nothing."""
        if self.has_begun():
            return
        if self._asked is not None:
            self._settle(Kind.RESULT, None)
            return
        assert self._context is not None
        self._loop = loop
        try:
            task = loop.spawn(self.run, self._context)
        except BaseException as error:
            self._settle(Kind.EXCEPTION, error)
            return
        if not self._outcome:  # it may have run to its end already, where the loop starts tasks eagerly
            self.task = task

    def has_begun(self) -> bool:
        """Say whether it is out of the queue: its task is started, or it needs none any more."""
        return self._loop is not None or bool(self._outcome)

    async def run(self) -> None:
        """Call the function and settle, whatever happens; only the loop's own cancellation goes on."""
        if self._asked is not None:
            self._settle(Kind.RESULT, None)
            return
        self._is_running = True
        CURRENT.set(self)
        metadata = self._metadata
        try:
            if self._not_before is not None:
                await self._wait_for_time(self._not_before)
            result = await run_function(metadata["func"], metadata["args"], metadata["kwargs"])
        except GeneratorExit:  # nobody runs it any more, and this may be anybody's context
            self.abandon()
            raise
        except BaseException as error:
            CURRENT.set(None)  # the context knows the call, and the call the context
            if self._fail(error):
                raise
        else:
            CURRENT.set(None)
            self._settle(Kind.RESULT, result)
        finally:
            del self, metadata  # an exception knows this frame by those of its traceback

    async def _wait_for_time(self, deadline: float) -> None:
        """Wait for what is left of the `delay` in the metadata, which counts from the scheduling."""
        assert self._loop is not None
        await self._loop.sleep(max(0.0, deadline - time.monotonic()))

    def _fail(self, error: BaseException) -> bool:
        """Settle after an exception, and return whether it belongs to the loop."""
        assert self._loop is not None
        is_cancellation = self._loop.is_cancellation(error)
        if is_cancellation:
            if self._asked is None:
                self._asked = "\n".join(map(str, error.args)) or "Its task was cancelled."
        else:
            _strip(error)
        self._settle(Kind.EXCEPTION, None if is_cancellation else error)
        return is_cancellation

    def _cancel_task(self) -> None:
        """Cancel the task; one that has not begun looks for itself when it does."""
        if not self._outcome and self._is_running and self._loop is not None:
            self._loop.cancel(self.task, self._asked or "")

    # ── in any thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, kind: Kind, value: object) -> bool:
        self.task = None
        is_first = super()._settle(kind, value)
        self._scheduler.forget(self)
        return is_first

    def _end_early(self, msg: str | None) -> None:
        if self._canceller is not None:
            self._canceller(msg)
        self.end()

    def end(self) -> None:
        """Cancel its task soon; settle now where it has none."""
        if self._scheduler.withdraw(self):
            self._settle(Kind.RESULT, None)
        else:
            self._scheduler.post(self._cancel_task)

    def abandon(self) -> None:
        """Settle as cancelled: the loop has ended, and the task never will."""
        self._asked = self._asked or "The event loop has ended."
        self._settle(Kind.RESULT, None)

    def _needs_this_thread(self) -> bool:
        return self._scheduler.is_served_here()

    def _is_awaited_by_itself(self) -> bool:
        return self._is_running and self._loop is not None and self._loop.is_own_task(self.task)


class DirectCall:
    """A function that is called where the loop takes in its calls, without a task, a context or a pending."""

    __slots__ = ("_args", "_function", "_kwargs", "_scheduler")

    def __init__(
        self, scheduler: Scheduler, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._scheduler = scheduler
        self._function = function
        self._args = args
        self._kwargs = kwargs

    def begin(self, loop: Loop) -> None:
        """Call the function; a coroutine that it returns gets a task. What either raises is logged."""
        try:
            result = self._function(*self._args, **self._kwargs)
        except BaseException:  # it would end the loop
            self._scheduler.log.exception("A direct call of %r failed", self._function)
            return
        if isinstance(result, CoroutineType):
            metadata: dict[str, Any] = {"func": partial(_same, result), "args": (), "kwargs": {}}
            call: Call[Any] = Call(self._scheduler, metadata, Context(), tracked=False)
            call.add_done_callback(self._log_failure)
            self._scheduler.calls.add(call)
            call.begin(loop)

    def _log_failure(self, call: Call[Any]) -> None:
        if not call.cancelled() and (error := call.exception()) is not None:
            self._scheduler.log.error("A direct call of %r failed", self._function, exc_info=error)


def _same(value: object) -> object:
    return value


def _strip(error: BaseException) -> None:
    """Take our own frames off a traceback: the user does not know them, and they hold what is done with."""
    traceback = error.__traceback__
    for _ in range(_LAYERS):
        if traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
    error.__traceback__ = traceback
