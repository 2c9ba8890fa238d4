"""The life of a caller: started in a thread of its own or as a guest, served, stopped, gone.

Laws of the file:

* Every way out ends in `_finish`: the thread's end, the guest's task, or the loop's, which may come without a word.
* A guest whose loop ends waits for the tasks of its calls, never for other threads: one that blocks must not hold up
  the end of a loop.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import Context
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cobnut_kernel.caller.errors import CallerError, CallerMismatchError, CallerStoppedError
from cobnut_kernel.caller.loops import AsyncioLoop, Backend, running_loop
from cobnut_kernel.caller.pending import Latch
from cobnut_kernel.caller.scheduler import Scheduler

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable

    from cobnut_kernel.caller.loops import Loop


class CallerState(StrEnum):
    """Where a caller is in its life."""

    initial = "initial"
    starting = "starting"
    running = "running"
    stopping = "stopping"
    stopped = "stopped"


class Served(Protocol):
    """What a service asks of the caller that it serves."""

    @property
    def stopped(self) -> Latch:
        """True once it has stopped."""
        ...

    @property
    def children(self) -> Iterable[Served]:
        """Those that stop with it."""
        ...

    def _dismiss(self, reason: str) -> None:
        """Stop what depends on it."""
        ...

    def _silence(self) -> None:
        """Settle, in a forked child, what depends on it."""
        ...

    def _forget(self) -> None:
        """Leave all lists of the living."""
        ...


class Stopped(Latch):
    """The end of a caller, which its own thread cannot block for."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def _needs_this_thread(self) -> bool:
        return self._scheduler.is_served_here()


class Service:
    """Serves a caller with an event loop.

    Args:
        caller: the caller.
        backend: the library of the loop.
        backend_options: for a loop in a new thread, what anyio's `run` is given.
        log: gets what nobody waits for.
    """

    lock: ClassVar[threading.RLock] = threading.RLock()
    """Held while any service changes its state."""
    process_ends: ClassVar[bool] = False
    """No caller waits for its children any more: one of them may block."""

    def __init__(
        self,
        caller: Served,
        backend: Backend,
        backend_options: dict[str, Any] | None,
        log: logging.LoggerAdapter[Any],
    ) -> None:
        self.backend: Backend = backend
        self.backend_options: dict[str, Any] | None = backend_options
        self.is_host: bool = False
        self.scheduler: Scheduler = Scheduler(log, _weakly(self._on_loop_end))
        self.state: CallerState = CallerState.initial
        self.stopped: Latch = Stopped(self.scheduler)
        self.thread: threading.Thread | None = None
        self._caller: Served = caller
        self._ending: Latch = Latch()
        self._guest_task: Any = None
        self._has_lost_loop: bool = False

    @property
    def is_running(self) -> bool:
        """Whether calls are taken, and the event loop runs or is about to."""
        return self.state in (CallerState.running, CallerState.starting)

    @property
    def is_ending(self) -> bool:
        """Whether it was stopped."""
        return self.state in (CallerState.stopping, CallerState.stopped)

    def serves_running_loop(self) -> bool:
        """Say whether its event loop is the one that runs in the current thread."""
        loop = self.scheduler.loop
        return loop is not None and loop.is_running_here()

    def look_for_loop(self) -> None:
        """Let it learn that its loop has ended without a word."""
        self.scheduler.post(_nothing)

    # ── in a thread of its own ──────────────────────────────────────────────────────────────────────────────────────

    def start_thread(self, name: str) -> threading.Thread:
        """Start a new thread with an event loop.

        Raises:
            CallerStoppedError: it was started before, and has stopped.
            CallerError: the backend is not installed.
        """
        self._check_is_new()
        _import_library(self.backend)
        self.state = CallerState.starting
        self.is_host = True
        self.thread = threading.Thread(target=self._run_thread, name=name, daemon=True)
        try:
            self.thread.start()
        except BaseException:
            self._finish()
            raise
        return self.thread

    def _check_is_new(self) -> None:
        if self.state is not CallerState.initial:
            raise CallerStoppedError(f"{self._caller} cannot be started again: make another one.")

    def _run_thread(self) -> None:
        """Be the thread."""
        import anyio

        with self.lock:  # whoever has started it has noted its ident
            pass
        try:
            anyio.run(self._host, backend=self.backend, backend_options=self.backend_options)
        except BaseException as error:  # nobody is there to get it
            self.scheduler.log.exception("The event loop of %s has failed", self._caller)
            self.stop(f"The event loop of {self._caller} has failed: {error!r}.")
        finally:
            self.stop()
            self._finish()

    async def _host(self) -> None:
        loop = running_loop()
        assert loop is not None
        with self.lock:
            if self.state is CallerState.starting:
                self.state = CallerState.running
        self.scheduler.open(loop)
        await self._serve()

    # ── in a loop that runs ─────────────────────────────────────────────────────────────────────────────────────────

    def start_as_guest(self, loop: Loop) -> threading.Thread:
        """Serve with the loop that runs here, and return its thread.

        Raises:
            CallerStoppedError: it was started before, and has stopped.
            CallerMismatchError: the loop is of another backend.
        """
        self._check_is_new()
        if self.backend is not loop.backend:
            raise CallerMismatchError(f"The event loop of this thread is {loop.backend}'s, not {self.backend}'s.")
        self.thread = threading.current_thread()
        self.state = CallerState.running
        self.scheduler.open(loop)
        if isinstance(loop, AsyncioLoop):
            loop.when_closed(_weakly(self._on_loop_end))
        self._guest_task = loop.spawn(self._be_guest, Context())
        return self.thread

    async def _be_guest(self) -> None:
        try:
            await self._serve()
        except Exception:  # trio would end its whole run
            self.scheduler.log.exception("The service of %s has failed", self._caller)
        finally:
            self._finish()

    # ── until the end ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> None:
        """Hold the place in the loop until the end: of this caller, or of the loop, which cancels this."""
        try:
            await self._ending
        except GeneratorExit:  # the loop is closed: nothing can be awaited
            raise
        except BaseException:
            self.stop()
            await self.scheduler.wait_until_ended()
            raise
        await self.scheduler.wait_until_ended()
        for child in () if self.process_ends else list(self._caller.children):
            await child.stopped

    def stop(self, reason: str = "") -> None:
        """Cancel all calls, stop what depends on the caller, and end soon; again does nothing."""
        with self.lock:
            if self.is_ending:
                return
            was_started = self.state is not CallerState.initial
            self.state = CallerState.stopping
        reason = reason or f"{self._caller} was stopped."
        self._caller._dismiss(reason)
        self.scheduler.close(reason)
        self._ending.set()
        if was_started:
            self.look_for_loop()
        else:
            self._finish()

    def _finish(self) -> None:
        """Be no more; whatever is left is settled."""
        with self.lock:
            self.state = CallerState.stopped
            self._caller._forget()
        self.scheduler.abandon()
        self.stopped.set()

    def _on_loop_end(self) -> None:
        """Stop at once: nothing can be awaited in a loop that has ended."""
        if not self._has_lost_loop and not self.stopped:
            self._has_lost_loop = True
            self.stop()
            if self._guest_task is not None and self.scheduler.loop is not None:
                self.scheduler.loop.disown([self._guest_task])
            self._finish()

    def be_gone(self) -> None:
        """Be no more in a forked child: nothing runs there, nobody waits, and nobody is told."""
        self.state = CallerState.stopped
        if self.scheduler.loop is not None:
            self.scheduler.loop.disown([self._guest_task])
        self._caller._silence()
        self.scheduler.silence()
        for latch in (self._ending, self.stopped):
            latch.silence()
            latch.set()


def _import_library(backend: Backend) -> None:
    """Import what the new thread needs: two threads that import trio at once get half of it each.

    Raises:
        CallerError: it is not installed.
    """
    import_module("anyio")
    try:
        import_module(backend)
    except ModuleNotFoundError as error:
        raise CallerError(f"{backend} is not installed here: install it, or use the backend asyncio.") from error


def _weakly(method: Callable[[], object]) -> Callable[[], object]:
    """Return what calls a method while its object is there, and does not keep it."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (found := reference()) is not None:
            found()

    return call


def _nothing() -> None:
    """Do nothing, in a loop that is asked whether it is still there."""
