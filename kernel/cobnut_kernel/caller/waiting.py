"""How a thread, a task of asyncio's and a task of trio's wait for a pending, and how each is woken.

A waiter is a callback of the pending: it is called once, in whatever thread makes the pending done, takes the outcome
along (the pending may be used again), and wakes who waits.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from abc import ABC, abstractmethod
from asyncio import _get_running_loop as get_asyncio_loop
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.errors import NoEventLoopError, WouldDeadlockError
from cobnut_kernel.caller.loops import is_trio_here

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from cobnut_kernel.caller.pending import Outcome, Pending


async def checkpoint() -> None:
    """Let others run, and notice a cancellation, where every `await` does so: on trio."""
    if is_trio_here():
        await sys.modules["trio.lowlevel"].checkpoint()


def awaited(pending: Pending[Any]) -> Generator[Any, None, Outcome]:
    """Wait as `await` does: `wait_until_done` without its options, and on asyncio without its cost.

    Raises:
        NoEventLoopError: no loop runs here.
        WouldDeadlockError: it is the pending's own task that waits.
    """
    loop = None if is_trio_here() else get_asyncio_loop()
    if loop is None or pending._is_awaited_by_itself():
        return (yield from wait_until_done(pending, None, protect=False, shield=False).__await__())
    waiter = _AsyncioWaiter(loop)
    pending.add_done_callback(waiter)
    try:
        yield from waiter.future.__await__()
    except BaseException:
        pending.remove_done_callback(waiter)
        pending.cancel("Who waited for it was cancelled.")
        raise
    assert waiter.outcome is not None
    return waiter.outcome


async def wait_until_done(pending: Pending[Any], timeout: float | None, *, protect: bool, shield: bool) -> Outcome:
    """Wait in a task of either loop; cancel the pending when the waiter stops waiting, unless it is protected.

    Raises:
        TimeoutError: the time is up.
        NoEventLoopError: no loop runs here.
        WouldDeadlockError: it is the pending's own task that waits.
    """
    if pending._is_awaited_by_itself():
        raise WouldDeadlockError(f"{pending} would wait for its own end.")
    loop = None if (is_trio := is_trio_here()) else get_asyncio_loop()
    if not is_trio and loop is None:
        raise NoEventLoopError(f"No event loop runs here that can wait for {pending}: use wait_sync.")
    try:
        if loop is None:
            outcome = await _wait_on_trio(pending, timeout, shield=shield)
        else:
            outcome = await _wait_on_asyncio(pending, loop, timeout, shield=shield)
    except BaseException:
        if not protect:
            pending.cancel("Who waited for it was cancelled.")
        raise
    return _in_time(outcome, pending, timeout, protect=protect)


def block_until_done(pending: Pending[Any], timeout: float | None, *, protect: bool) -> Outcome:
    """Block the thread; cancel the pending when time is up or the wait is interrupted, unless it is protected.

    Raises:
        TimeoutError: the time is up.
    """
    waiter = _ThreadWaiter()
    pending.add_done_callback(waiter)
    try:
        waiter.event.wait(timeout)
    except BaseException:
        if not protect:
            pending.cancel("Who waited for it was interrupted.")
        raise
    finally:
        pending.remove_done_callback(waiter)
    return _in_time(waiter.outcome, pending, timeout, protect=protect)


def _in_time(outcome: Outcome | None, pending: Pending[Any], timeout: float | None, *, protect: bool) -> Outcome:
    """Return the outcome; where the time was up before, cancel the pending."""
    if outcome is not None:
        return outcome
    message = f"{pending} was not done within {timeout:g} s."
    if not protect:
        pending.cancel(message)
    raise TimeoutError(message)


class _Waiter(ABC):
    """Who waits."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: Outcome | None = None

    def __call__(self, pending: Pending[Any]) -> None:
        """Take the outcome, and wake whoever it is."""
        self.outcome = pending.outcome()
        if self.outcome is None:  # it was reset a moment ago: this one waits for the next outcome
            pending.add_done_callback(self)
        else:
            self.notify()

    @abstractmethod
    def notify(self) -> None:
        """Wake whoever it is, from any thread."""


class _ThreadWaiter(_Waiter):
    """A thread that waits. An Event, not a bare lock: a kernel can interrupt the threads that wait for one."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def notify(self) -> None:
        """Wake the thread."""
        self.event.set()


# ── asyncio ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _wait_on_asyncio(
    pending: Pending[Any], loop: asyncio.AbstractEventLoop, timeout: float | None, *, shield: bool
) -> Outcome | None:
    """Wait; return None when the time is up."""
    waiter = _AsyncioWaiter(loop)
    timer = None if timeout is None else loop.call_later(timeout, waiter.wake)
    pending.add_done_callback(waiter)
    try:
        if shield:
            await _wait_shielded(waiter)
        else:
            await waiter.future
    finally:
        if timer is not None:
            timer.cancel()
        if waiter.outcome is None:
            pending.remove_done_callback(waiter)
    return waiter.outcome


async def _wait_shielded(waiter: _AsyncioWaiter) -> None:
    """Wait also while the task is cancelled, by asyncio or a scope of anyio's; it is told afterwards."""
    cancelled: asyncio.CancelledError | None = None
    with _anyio_shield():
        while not waiter.woken:
            try:
                await waiter.future
            except asyncio.CancelledError as error:
                cancelled = error
                waiter.renew()
    if cancelled is not None:
        raise cancelled


def _anyio_shield() -> AbstractContextManager[object]:
    """Return a scope that keeps anyio from cancelling again and again; without anyio there is nothing to shield."""
    anyio: Any = sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


class _AsyncioWaiter(_Waiter):
    """A task of asyncio's that waits."""

    __slots__ = ("_ident", "_loop", "future", "woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome = None
        self._ident = threading.get_ident()
        self._loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.woken = False

    def notify(self) -> None:
        """Wake the task: directly out of another task of its loop, through the loop's door from anywhere else.

        Outside of tasks the loop may be waiting for its selector, and not look: in a signal handler, say.
        """
        if threading.get_ident() == self._ident and asyncio.current_task(self._loop) is not None:
            self.wake()
        else:
            with suppress(RuntimeError):  # the loop is closed, and its tasks with it
                self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Wake the task, in its loop's thread."""
        self.woken = True
        if not self.future.done():
            self.future.set_result(None)

    def renew(self) -> None:
        """Wait again, with another future: the last one was cancelled."""
        if not self.woken:
            self.future = self._loop.create_future()


# ── trio ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _wait_on_trio(pending: Pending[Any], timeout: float | None, *, shield: bool) -> Outcome | None:
    """Wait; return None when the time is up."""
    waiter = _TrioWaiter()
    if timeout is None and not shield:
        await waiter.wait(pending)
    else:
        trio: Any = sys.modules["trio"]
        deadline = float("inf") if timeout is None else trio.current_time() + timeout
        with trio.CancelScope(deadline=deadline, shield=shield):
            await waiter.wait(pending)
    return waiter.outcome


class _TrioWaiter(_Waiter):
    """A task of trio's that waits."""

    __slots__ = ("_asleep", "_lowlevel", "_task", "_token")

    def __init__(self) -> None:
        super().__init__()
        self._lowlevel: Any = sys.modules["trio.lowlevel"]
        self._task: Any = self._lowlevel.current_task()
        self._token: Any = self._lowlevel.current_trio_token()
        self._asleep = False

    async def wait(self, pending: Pending[Any]) -> None:
        """Wait; what is done already is a checkpoint all the same, as everything in trio."""
        pending.add_done_callback(self)
        if self.outcome is not None:
            await self._lowlevel.checkpoint()
            return

        def abort(_: Callable[[], object]) -> Any:
            self._asleep = False
            pending.remove_done_callback(self)
            return self._lowlevel.Abort.SUCCEEDED

        self._asleep = True
        await self._lowlevel.wait_task_rescheduled(abort)

    def notify(self) -> None:
        """Wake the task: directly out of another task of its run, through the run's door from anywhere else."""
        if is_trio_here() and self._lowlevel.current_trio_token() is self._token:
            self._wake()
        else:
            with suppress(RuntimeError):  # trio.RunFinishedError: the run is over, and its tasks with it
                self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._lowlevel.reschedule(self._task)
