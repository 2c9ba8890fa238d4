"""One event loop on one thread of the process, for work that outlives the call that asked for it.

Managers and what they start live here, so that a start goes on although its caller has no loop, and one object
never lives on two loops. The loop is asyncio's; callers may be on asyncio, on trio, or on no loop at all.

Laws of the file:

* A call that is cancelled has ended when its future is done: nobody waits for less than the whole undoing.
* A call has an end: where the portal ends, for whatever reason, who waits for it is told.
* Whatever a call raises goes to whoever asked, and disturbs nobody else.
* What lives on the portal ends with it: on its thread `shared` is that portal, however many follow it.
* asyncio is imported by the thread, not by whoever imports this module: it takes as long as a kernel's fork.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, TypeVarTuple, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")

_here = threading.local()
"""The portal whose thread this is, as `portal`."""

SIGNAL_TIME = 0.2
"""After how many seconds at most a blocking call of the main thread sees a signal."""

LOOP_DESCRIPTORS = 4
"""How many descriptors a loop takes, with one for its import."""

EXIT_PATIENCE = 10.0
"""How long the end of the process waits for what is being undone, in seconds."""

_log = logging.getLogger(__name__)


class Portal:
    """An asyncio loop on a thread of its own; it starts with the first call and ends with `stop` or the process.

    Raises:
        OSError: there are not enough descriptors for it.
    """

    _process_portal: Portal | None = None
    _process_lock = threading.Lock()

    def __init__(self, name: str = "cobnut-portal") -> None:
        self.stopped: bool = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._early: deque[Callable[[], object]] = deque()
        self._context = Context()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: asyncio.Event | None = None
        self._is_ending: bool = False
        self._awaited: set[PortalTask[Any]] = set()
        self._at_end: list[Callable[[], object]] = []
        self._reserved: list[int] = _reserve(LOOP_DESCRIPTORS)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            _release(self._reserved)
            raise
        atexit.register(self.stop, EXIT_PATIENCE)

    @classmethod
    def shared(cls) -> Portal:
        """Return the process's portal; a new one where there is none, or the last was stopped.

        On a portal's own thread it is that one, although it is being stopped: what begins there ends there.

        Raises:
            OSError: there are not enough descriptors for a new one.
        """
        if (portal := cls._of_this_thread()) is not None:
            return portal
        with cls._process_lock:
            if cls._process_portal is None or cls._process_portal.stopped:
                cls._process_portal = cls()
            return cls._process_portal

    @classmethod
    def runs_here(cls) -> bool:
        """Whether the caller runs on the thread of a portal."""
        return cls._of_this_thread() is not None

    @classmethod
    def _of_this_thread(cls) -> Portal | None:
        portal: Portal | None = getattr(_here, "portal", None)
        return portal if type(portal) is cls else None

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on the portal's own thread."""
        return threading.current_thread() is self._thread

    # ── from any thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a coroutine function on the portal and block until it has ended.

        An exception in the waiting thread, Ctrl-C say, cancels it and waits until it is undone.

        Raises:
            RuntimeError: called on the portal's own thread, which cannot wait for itself, or after `stop`.
        """
        if self.is_here:
            raise RuntimeError(f"{_name(function)} would wait for itself on the portal's thread: await it instead.")
        task = PortalTask(self, partial(function, *args, **kwargs))
        try:
            self._begin(task)
            return _outcome(task)
        except BaseException:
            if task.cancel():
                with suppress(CancelledError, Exception):
                    _outcome(task)
            raise

    async def run(self, function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """Run a coroutine function on the portal and await its result, on asyncio, trio or the portal itself.

        Cancelling the caller cancels it; the caller goes on when all of it is undone.
        """
        if self.is_here:
            return await function(*args)
        return await join(self.start_soon(function, *args))

    def start_soon(self, function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> PortalTask[T]:
        """Start a coroutine function on the portal and return its future, at once.

        Raises:
            RuntimeError: the portal was stopped.
        """
        task = PortalTask(self, partial(function, *args))
        self._begin(task)
        return task

    def _begin(self, task: PortalTask[Any]) -> None:
        self._awaited.add(task)
        task.add_done_callback(self._awaited.discard)
        try:
            self.call_soon(task.begin)
        except BaseException:
            self._awaited.discard(task)
            raise

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run a callback on the portal's thread soon; in the order of the calls.

        Raises:
            RuntimeError: the portal was stopped; on its own thread it takes calls until its end.
        """
        with self._lock:
            if self.stopped and not self.is_here:
                raise RuntimeError("The portal was stopped: ask for the process's new one with Portal.shared().")
            if self._loop is None:
                self._early.append(partial(callback, *args))
            else:
                # Not in the caller's context, whose variables say that trio runs here.
                self._loop.call_soon_threadsafe(partial(callback, *args), context=self._context)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Run a callback on the portal's thread when all its tasks have ended; the last one given runs first."""
        self._at_end.append(callback)

    def stop(self, patience: float | None = None) -> None:
        """Cancel what runs, wait until it is undone, and end the thread; again does nothing.

        Args:
            patience: seconds to wait for the end; by default as long as it takes.

        Raises:
            RuntimeError: called on the portal's own thread.
        """
        if self.is_here:
            raise RuntimeError("The portal cannot be stopped on its own thread, which would wait for itself.")
        if self._pid != os.getpid():  # after a fork its thread is the parent's
            return
        with self._lock:
            if not self.stopped:
                self.stopped = True
                if self._loop is not None and self._end is not None:
                    self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(patience)
        atexit.unregister(self.stop)

    # ── on the portal's thread ──────────────────────────────────────────────────────────────────────────────────────

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine that is cancelled at the portal's end; at that end it begins all the same.

        It has nobody to raise to: what it raises is logged.
        """
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        if self._is_ending:
            self._loop.call_soon(task.cancel)  # after its first step
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("What lived on the portal has failed", exc_info=error)

    def _run(self) -> None:
        _here.portal = self
        failure: BaseException | None = None
        try:
            _release(self._reserved)
            import asyncio

            with asyncio.Runner() as runner:
                runner.run(self._serve())
        except BaseException as error:  # too many open files for a loop, say
            failure = error
        with self._lock:
            self.stopped = True
            self._early.clear()
        for task in tuple(self._awaited):
            task.abandon(failure)
        if failure is not None:
            _log.error("The portal has failed", exc_info=failure)

    async def _serve(self) -> None:
        import asyncio

        self._end = asyncio.Event()
        try:
            await self._until_end(asyncio.get_running_loop(), self._end)
            await self._undo()
        finally:
            while self._at_end:
                _guarded(self._at_end.pop())

    async def _undo(self) -> None:
        """Cancel what runs, and what begins meanwhile, and wait until it is undone."""
        import asyncio

        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _until_end(self, loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> None:
        """Let calls in until the end."""
        import asyncio

        with self._lock:
            self._loop = loop
            while self._early:
                loop.call_soon(self._early.popleft(), context=self._context)
            if self.stopped:
                end.set()
        await end.wait()
        for _ in range(2):  # the calls' tasks are made, and take their first step: then they can undo themselves
            await asyncio.sleep(0)


class PortalTask(Future[T], Generic[T]):
    """The future of a call on the portal.

    `cancel` asks for the end; the future is done when the call has undone what it did, not before.

    Attributes:
        portal: where the call runs.
    """

    def __init__(self, portal: Portal, call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        super().__init__()
        self.portal: Portal = portal
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._begun: bool = False
        self._unwanted: bool = False

    def cancel(self) -> bool:
        """Ask the call to end; False if it has ended already, or never begins."""
        if self.done():
            return False
        try:
            self.portal.call_soon(self._cancel)
        except RuntimeError:  # the portal is stopping and cancels everything itself
            return self._task is not None
        return True

    def begin(self) -> None:
        """Start the call, on the portal's thread."""
        if not self.done():
            self._task = self.portal.create_task(self._conduct())
            self._task.add_done_callback(self._ended)

    def abandon(self, failure: BaseException | None) -> None:
        """Tell who waits that the portal has ended, and why; for its thread, after its loop."""
        if self.done():
            return
        if failure is None:
            self._give_up()
            return
        error = RuntimeError(f"The portal has failed: {failure or type(failure).__name__}")
        error.__cause__ = failure
        self.set_exception(error)

    def _cancel(self) -> None:
        if self._task is None:  # an exception kept its caller from asking for it
            self._give_up()
        elif self._begun and not self._unwanted:
            self._task.cancel()
        self._unwanted = True

    async def _conduct(self) -> None:
        self._begun = True
        if self._unwanted and self._task is not None:  # it begins all the same, so that it can undo what announced it
            self._task.cancel()
        try:
            result = await self._call()
        except Exception as error:
            self.set_exception(error)
        except (KeyboardInterrupt, SystemExit) as error:  # they would end the loop for everybody
            self.set_exception(error)
        else:
            self.set_result(result)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self.done():
            self._give_up()

    def _give_up(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()


async def join(future: Future[T]) -> T:
    """Await another thread's future on asyncio or trio; cancelling the caller cancels it and awaits its end.

    Raises:
        concurrent.futures.CancelledError: somebody else cancelled it.
    """
    import anyio

    try:
        await settled(future)
    except BaseException:
        future.cancel()
        with anyio.CancelScope(shield=True):
            await settled(future)
        raise
    return future.result()


async def settled(future: Future[Any]) -> None:
    """Wait on asyncio or trio until another thread's future is done; cancelling the caller leaves it alone."""
    if future.done():
        return
    import anyio

    event = anyio.Event()
    wake = _thread_safe_waker(event)
    future.add_done_callback(lambda _: wake())
    await event.wait()


async def finish(work: Awaitable[T]) -> T:
    """Await work on asyncio to its end although the caller is cancelled meanwhile; the cancellation comes after."""
    import asyncio

    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen: the cancellation goes first
        raise cancelled
    return task.result()


def _thread_safe_waker(event: Any) -> Callable[[], None]:
    """Return what sets an event of the running loop from any thread; an ended loop needs no waking."""
    from anyio.lowlevel import current_token

    loop = cast("Any", current_token().native_token)
    soon = loop.run_sync_soon if hasattr(loop, "run_sync_soon") else loop.call_soon_threadsafe

    def wake() -> None:
        with suppress(RuntimeError):  # asyncio's for an ended loop, and the base of trio's RunFinishedError
            soon(event.set)

    return wake


def wait_until_done(future: Future[Any], timeout: float | None = None) -> None:
    """Block until a future is done, whatever its outcome.

    The main thread looks up now and then: a Ctrl-C that comes while it is about to wait for a lock does not wake it.

    Raises:
        TimeoutError: it is not done after so many seconds.
    """
    end = None if timeout is None else monotonic() + timeout
    look = SIGNAL_TIME if threading.current_thread() is threading.main_thread() else None
    while not future.done():
        left = None if end is None else end - monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("It is not done in time.")
        with suppress(TimeoutError, CancelledError):
            future.exception(min((time for time in (left, look) if time is not None), default=None))


def _outcome(task: PortalTask[T]) -> T:
    """Block until a call has ended, and return or raise what it does."""
    wait_until_done(task)
    return task.result()


def _reserve(number: int) -> list[int]:
    """Open descriptors for somebody who needs them later: who lacks them hears of it before anything is announced."""
    reserved: list[int] = []
    try:
        while len(reserved) < number:
            reserved.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except BaseException:
        _release(reserved)
        raise
    return reserved


def _release(reserved: list[int]) -> None:
    while reserved:
        os.close(reserved.pop())


def _guarded(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        _log.exception("What was to run at the portal's end failed")


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _after_fork() -> None:
    # A child has no portal: its parent's thread did not come along, and a lock may have been held.
    Portal._process_portal = None
    Portal._process_lock = threading.Lock()
    _here.portal = None


os.register_at_fork(after_in_child=_after_fork)
