"""The two kinds of event loop that a caller can serve, asyncio's and trio's, behind one interface.

Laws of the file:

* `post` may be called by any thread, and by a signal handler; everything else belongs to the loop's own thread.
* A context that is copied between loops takes along which library runs: it is put right before a task starts in it.
* Neither asyncio's nor trio's module is imported here for its own sake: a loop that runs has imported it already.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio import _get_running_loop as get_asyncio_loop
from enum import StrEnum
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    import trio

FOREVER = 1e9
"""Seconds until a timer that only waits for its loop to be closed: 31 years."""


class Backend(StrEnum):
    """The library whose event loop runs, by anyio's names."""

    asyncio = "asyncio"
    trio = "trio"


class Loop(Protocol):
    """An event loop that runs, or ran, in one thread."""

    backend: Backend
    ident: int
    """The thread's."""

    def is_running_here(self) -> bool:
        """Say whether this is the loop that runs in the current thread."""
        ...

    def is_in_task(self) -> bool:
        """Say whether one of the loop's tasks is what runs now, so that the loop looks at its tasks before it waits."""
        ...

    def is_own_task(self, task: Any) -> bool:
        """Say whether it is this task that runs now."""
        ...

    def post(self, callback: Callable[[], object], context: Context) -> None:
        """Run a callback soon, in the order of the calls.

        Raises:
            RuntimeError: the loop has ended.
        """
        ...

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]], context: Context) -> Any:
        """Start a task and return it; the function may raise nothing but the loop's cancellation."""
        ...

    def cancel(self, task: Any, message: str) -> None:
        """Cancel a task that has begun."""
        ...

    def is_cancellation(self, error: BaseException) -> bool:
        """Say whether an exception ends a task that was cancelled, and must go on to the loop."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        """Run a callback after some seconds, unless the loop ends before."""
        ...

    async def sleep(self, delay: float) -> None:
        """Wait some seconds; zero lets the other tasks go first."""
        ...

    async def ended(self, tasks: list[Any]) -> None:
        """Wait until tasks have ended, whatever is cancelled meanwhile."""
        ...

    def disown(self, tasks: list[Any]) -> None:
        """Forget tasks of a loop that is no more: nobody needs to be told that they have not ended."""
        ...


class AsyncioLoop:
    """The asyncio loop that runs in the current thread."""

    backend = Backend.asyncio

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ident: int = get_ident()
        self._loop: asyncio.AbstractEventLoop = loop

    def is_running_here(self) -> bool:
        """Say whether this is the loop that runs in the current thread."""
        return get_asyncio_loop() is self._loop

    def is_in_task(self) -> bool:
        """Say whether one of the loop's tasks is what runs now; outside of them the loop may be about to wait."""
        return get_ident() == self.ident and asyncio.current_task(self._loop) is not None

    def is_own_task(self, task: Any) -> bool:
        """Say whether it is this task that runs now."""
        return get_ident() == self.ident and asyncio.current_task(self._loop) is task

    def post(self, callback: Callable[[], object], context: Context) -> None:
        """Run a callback soon."""
        self._loop.call_soon_threadsafe(callback, context=context)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]], context: Context) -> asyncio.Task[None]:
        """Start a task."""
        if "trio" in sys.modules:
            _say_asyncio_runs(context)
        coroutine = function()
        try:
            return self._loop.create_task(coroutine, context=context)
        except BaseException:
            coroutine.close()
            raise

    def cancel(self, task: asyncio.Task[None], message: str) -> None:
        """Cancel a task once; what it does about that is not disturbed again."""
        task.cancel(message)

    def is_cancellation(self, error: BaseException) -> bool:
        """Say whether asyncio has cancelled the task."""
        return isinstance(error, asyncio.CancelledError)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        """Run a callback after some seconds."""
        self._loop.call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        """Wait some seconds."""
        await asyncio.sleep(delay)

    async def ended(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait until tasks have ended; a cancellation that comes meanwhile has come too late to matter."""
        while waiting := [task for task in tasks if not task.done()]:
            try:
                await asyncio.wait(waiting)
            except asyncio.CancelledError:
                continue

    def disown(self, tasks: list[asyncio.Task[None] | None]) -> None:
        """Forget tasks of a closed loop: asyncio and Python would warn of those that have not ended, or never began."""
        for task in filter(None, tasks):
            task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue] - as asyncio.gather does
            coroutine = cast("CoroutineType[Any, Any, None]", task.get_coro())
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Run a callback when the loop is closed, or collected: it gives up its timers then, unrun."""
        self._loop.call_later(FOREVER, _AtClose(callback))


class _AtClose:
    """A timer's callback that waits not for the time but for the end of the timer."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback

    def __call__(self) -> None:
        """Nothing: 31 years are over."""

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self._callback()


class TrioLoop:
    """The trio run of the current thread.

    Tasks are trio's system tasks: they need no nursery of the user's, may be given a context, and trio cancels
    them when its main task has ended.
    """

    backend = Backend.trio

    def __init__(self) -> None:
        import trio

        self.ident: int = get_ident()
        self._trio = trio
        self._token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()
        # System tasks hold Ctrl-C back; what is the user's in them must not.
        trio.lowlevel.disable_ki_protection(run_function)

    def is_running_here(self) -> bool:
        """Say whether this is the run of the current thread."""
        lowlevel = self._trio.lowlevel
        return lowlevel.in_trio_run() and lowlevel.current_trio_token() is self._token

    def is_in_task(self) -> bool:
        """Say whether one of the run's tasks is what runs now."""
        return get_ident() == self.ident and self._trio.lowlevel.in_trio_task() and self.is_running_here()

    def is_own_task(self, task: _TrioTask) -> bool:
        """Say whether it is this task that runs now."""
        return self.is_in_task() and self._trio.lowlevel.current_task() is task.task

    def post(self, callback: Callable[[], object], context: Context) -> None:
        """Run a callback soon."""
        self._token.run_sync_soon(context.run, callback)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]], context: Context) -> _TrioTask:
        """Start a system task with a scope of its own."""
        task = _TrioTask(self._trio.CancelScope())
        task.task = self._trio.lowlevel.spawn_system_task(_scoped, task, function, context=context)
        return task

    def cancel(self, task: _TrioTask, message: str) -> None:
        """Cancel a task's scope; the reason is for those who wait."""
        task.scope.cancel()

    def is_cancellation(self, error: BaseException) -> bool:
        """Say whether trio has cancelled the task."""
        return isinstance(error, self._trio.Cancelled)

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        """Run a callback after some seconds."""

        async def later() -> None:
            await self._trio.sleep(delay)
            callback()

        self._trio.lowlevel.spawn_system_task(later)

    async def sleep(self, delay: float) -> None:
        """Wait some seconds."""
        await self._trio.sleep(delay)

    async def ended(self, tasks: list[_TrioTask]) -> None:
        """Wait until tasks have ended, also when trio's run ends and cancels whoever waits."""
        with self._trio.CancelScope(shield=True):
            for task in tasks:
                await task.ended.wait()

    def disown(self, tasks: list[_TrioTask]) -> None:
        """Forget tasks: trio never leaves one."""


class _TrioTask:
    """A trio task, the scope that cancels it, and its end."""

    __slots__ = ("ended", "scope", "task")

    def __init__(self, scope: trio.CancelScope) -> None:
        import trio

        self.scope = scope
        self.ended = trio.Event()
        self.task: object = None


async def _scoped(task: _TrioTask, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        with task.scope:
            await function()
    finally:
        del function  # an exception knows this frame by those of its traceback
        task.ended.set()


async def run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function in the task it was scheduled for; where it returns a coroutine, await that."""
    result: Any = function(*args, **kwargs)
    if isinstance(result, CoroutineType):
        result = await cast("CoroutineType[Any, Any, Any]", result)
    return result


def running_loop() -> Loop | None:
    """Return the event loop that runs in the current thread; None where none does.

    Where trio runs as a guest in asyncio's loop, it is trio's inside of trio's tasks and asyncio's elsewhere.
    """
    if is_trio_here():
        return TrioLoop()
    loop = get_asyncio_loop()
    return None if loop is None else AsyncioLoop(loop)


def is_trio_here() -> bool:
    """Say whether a task of trio's is what runs in the current thread."""
    lowlevel = sys.modules.get("trio.lowlevel")
    in_trio_task: Callable[[], bool] | None = getattr(lowlevel, "in_trio_task", None)  # not yet, while it is imported
    return in_trio_task is not None and in_trio_task()


def _say_asyncio_runs(context: Context) -> None:
    """Put right what a context says that was copied in a trio run: anyio would act on it."""
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        variable = sniffio.current_async_library_cvar
        if context.get(variable) not in (None, "asyncio"):
            context.run(variable.set, "asyncio")
