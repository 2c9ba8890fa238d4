"""Callers: functions called in the event loop of a chosen thread, from any thread.

Laws of the file:

* A thread has one caller at a time, that of the event loop that runs in it.
* A caller either hosts a thread, started for it, or is a guest in a loop that ran before it came. A guest ends with
  its loop, or with `stop`; a host with `stop`, or the process, which does not wait for it.
* Stopping a caller stops its children, and cancels its calls; it has stopped when the tasks of its calls have ended.
"""

from __future__ import annotations

import logging
import threading
import weakref
from contextvars import Context, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from cobnut_kernel.caller import registry
from cobnut_kernel.caller.calls import CURRENT, Call, DirectCall
from cobnut_kernel.caller.errors import CallerError, CallerStoppedError
from cobnut_kernel.caller.loops import Backend, running_loop
from cobnut_kernel.caller.options import CallerCreateOptions, Modifier, backend_of
from cobnut_kernel.caller.pool import WorkerPool
from cobnut_kernel.caller.queues import CallQueues
from cobnut_kernel.caller.service import CallerState, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from types import CoroutineType
    from typing import Self, Unpack

    import zmq

    from cobnut_kernel.caller.completion import AsCompleted, ReturnWhen
    from cobnut_kernel.caller.groups import PendingGroup
    from cobnut_kernel.caller.loops import Loop
    from cobnut_kernel.caller.pending import Latch, Pending, PendingCreateOptions

P = ParamSpec("P")
T = TypeVar("T")

_MARKS = {CallerState.initial: "❗", CallerState.starting: "🏃", CallerState.running: "🏃", CallerState.stopping: "🏁"}


class Caller:
    """Calls functions in the event loop of one thread; every method may be used in any thread.

    `Caller()` is the caller of the current thread. It is made when it is first asked for, and serves the event loop
    that runs, without more ado; where none runs, a backend asks for a new thread with a loop.

    Functions may be synchronous or not. They run in a task of their own, in a copy of the context in which they
    were scheduled, so that what they print belongs to whoever scheduled them.

    Args:
        modifier: which caller is wanted.

            - `"CurrentThread"`: that of the event loop that runs in this thread; where none does, and a backend is
              given, that of a new thread.
            - `"MainThread"`: that of the main thread; in any other thread it must exist already.
            - `"NewThread"`: that of a new thread.
            - `"manual"`: a new one that is not started. It takes calls, and begins them when it is: `start_sync` gives
              it a new thread, `async with` the event loop that runs.
        options: what is to be known of a new caller; `name` and `backend` must fit one that exists.

    Raises:
        NoEventLoopError: there is no event loop to serve, and no backend to start one.
        CallerMismatchError: the caller that exists has another name or backend.
    """

    MAX_IDLE_POOL_INSTANCES: ClassVar[int] = 10
    """How many workers of `to_thread` a caller keeps when they have nothing to do."""
    IDLE_WORKER_SHUTDOWN_DURATION: ClassVar[float] = 60
    """How long a worker of `to_thread` may have nothing to do until it is stopped, in seconds; 0 for any time."""

    def __new__(cls, modifier: Modifier = "CurrentThread", /, **options: Unpack[CallerCreateOptions]) -> Self:
        """Find or make the caller that is asked for."""
        match modifier:
            case "CurrentThread":
                caller = registry.of_current_thread(cls, options)
            case "MainThread":
                caller = registry.of_main_thread(cls, options)
            case "NewThread" | "manual":
                caller = cls._create(options)
                if modifier == "NewThread":
                    caller.start_sync()
            case _:
                raise ValueError(f"There is no {modifier!r}: use CurrentThread, MainThread, NewThread or manual.")
        return caller  # pyright: ignore[reportReturnType] - one registry for all classes

    @classmethod
    def _create(cls, options: CallerCreateOptions, parent: Caller | None = None) -> Self:
        caller = super().__new__(cls)
        caller._prepare(options, parent)
        return caller

    def _prepare(self, options: CallerCreateOptions, parent: Caller | None) -> None:
        self._given_name: str = options.get("name", "")
        self._protected: bool = options.get("protected", False)
        self._zmq_context: zmq.Context[Any] | None = options.get("zmq_context")
        self._log: logging.LoggerAdapter[Any] = options.get("log") or logging.LoggerAdapter(logging.getLogger(__name__))
        self._service: Service = Service(
            self, backend_of(options.get("backend")), options.get("backend_options"), self._log
        )
        self._scheduler = self._service.scheduler
        self._entered: int = 0
        self._stops_on_leaving: bool = False
        self._parent: weakref.ref[Caller] | None = None if parent is None else weakref.ref(parent)
        self._children: set[Caller] = set()
        self._pool: WorkerPool = WorkerPool(self)
        self._queues: CallQueues = CallQueues(self._scheduler, self)

    # ── find ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def get_existing(cls, caller_id: int | None = None, /) -> Self | None:
        """Return the caller of a thread, by the thread's ident; by default of the current thread; None without one."""
        ident = get_ident() if caller_id is None else caller_id
        return registry.callers.get(ident)  # pyright: ignore[reportReturnType] - one registry for all classes

    @classmethod
    def get_current(cls, thread: threading.Thread) -> Self | None:
        """Return the caller of a thread; None where it has none."""
        return None if thread.ident is None else cls.get_existing(thread.ident)

    @classmethod
    def all_callers(cls, running_only: bool = True) -> list[Caller]:
        """Return the callers of all threads; those that are stopping too where not only the running are wanted."""
        return [caller for caller in list(registry.callers.values()) if caller.running or not running_only]

    @classmethod
    def id_current(cls) -> int:
        """Return the id that a caller of the current thread has, or would have."""
        return get_ident()

    @classmethod
    def current_pending(cls) -> Pending[Any] | None:
        """Return the pending whose function, scheduled by a caller, runs in the current context; None elsewhere."""
        return CURRENT.get()

    # ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────

    def __repr__(self) -> str:
        return f"Caller<{self.name} {_MARKS.get(self._service.state, '⛔')}>"

    @property
    def name(self) -> str:
        """The name it was given, or that of its thread."""
        thread = self._service.thread
        return self._given_name or (thread.name if thread else "")

    @property
    def id(self) -> int:
        """The ident of its thread; 0 before it is started."""
        thread = self._service.thread
        return (thread.ident or 0) if thread else 0

    @property
    def thread(self) -> threading.Thread:
        """The thread in which it calls.

        Raises:
            CallerError: it is not started.
        """
        if self._service.thread is None:
            raise CallerError(f"{self} has no thread yet: start it with start_sync(), or enter it with `async with`.")
        return self._service.thread

    @property
    def backend(self) -> Backend:
        """The library whose event loop it serves."""
        return self._service.backend

    @property
    def backend_options(self) -> dict[str, Any] | None:
        """What its event loop, and those of its children with the same backend, are started with."""
        return self._service.backend_options

    @property
    def zmq_context(self) -> zmq.Context[Any] | None:
        """The zmq context it was given; it opens no socket of its own."""
        return self._zmq_context

    @property
    def log(self) -> logging.LoggerAdapter[Any]:
        """Gets what nobody waits for."""
        return self._log

    @property
    def protected(self) -> bool:
        """Whether it stops only by force."""
        return self._protected

    @property
    def running(self) -> bool:
        """Whether it takes calls, and its event loop runs or is about to."""
        return self._service.is_running

    @property
    def stopped(self) -> Latch:
        """True once it has stopped; it can be awaited on any event loop, or with `wait_sync` in any other thread."""
        return self._service.stopped

    @property
    def children(self) -> frozenset[Caller]:
        """The callers that it has made, workers among them, and that have not stopped."""
        return frozenset(self._children)

    @property
    def parent(self) -> Caller | None:
        """The caller that has made it."""
        return self._parent() if self._parent is not None else None

    # ── start, and stop ─────────────────────────────────────────────────────────────────────────────────────────────

    def start_sync(self) -> None:
        """Start it in a new thread with an event loop of its own; where it runs already, do nothing.

        Raises:
            CallerStoppedError: it was stopped: a caller runs once.
            CallerError: the backend is not installed.
        """
        with Service.lock:
            if not self.running:
                thread = self._service.start_thread(self._given_name or "cobnut-caller")
                assert thread.ident is not None
                registry.callers[thread.ident] = self

    def _start_as_guest(self, loop: Loop) -> None:
        with Service.lock:
            self._service.start_as_guest(loop)
            registry.callers[loop.ident] = self

    async def __aenter__(self) -> Self:
        """Serve the event loop that runs here, if it is not started.

        Leaving the outermost context stops it and waits for the end of calls and children, unless it ran before and
        is protected, has a thread of its own, or was entered in one of its own calls.

        Raises:
            CallerStoppedError: it has stopped.
            CallerError: it is, or can only be, the caller of another event loop.
        """
        if self._service.state is CallerState.initial:
            self._enter_loop()
            self._stops_on_leaving = True
        elif not self.running:
            raise CallerStoppedError(f"{self} has stopped and cannot be entered: make another one.")
        elif not self._service.serves_running_loop():
            raise CallerError(f"{self} serves another event loop: enter it there, or make one with Caller('manual').")
        elif not self._entered:
            is_in_own_call = CURRENT.get() in self._scheduler.calls
            self._stops_on_leaving = not (self._protected or self._service.is_host or is_in_own_call)
        self._entered += 1
        return self

    def _enter_loop(self) -> None:
        loop = running_loop()
        assert loop is not None
        existing = self.get_existing()
        if existing is not None and registry.is_of_running_loop(existing):
            raise CallerError(f"This thread has {existing} already: use that, it is what Caller() returns.")
        self._start_as_guest(loop)

    async def __aexit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered and self._stops_on_leaving:
            self._service.stop()
            await self.stopped.wait(shield=True)

    def stop(self, *, force: bool = False) -> CallerState:
        """Stop it and its children, cancel what is scheduled, and return the state; `stopped` says when it is over.

        Args:
            force: stop it although it is protected.
        """
        if force or not self._protected:
            self._service.stop()
        return self._service.state

    def _dismiss(self, reason: str) -> None:
        """Stop what depends on it."""
        for child in self.children:
            child.stop(force=True)
        self._queues.close_all(reason)

    def _silence(self) -> None:
        """Settle, in a forked child, what depends on it."""
        self._queues.silence()

    def _forget(self) -> None:
        """Leave all lists of the living."""
        if registry.callers.get(self.id) is self:
            del registry.callers[self.id]
        if (parent := self.parent) is not None:
            parent._children.discard(self)
            parent._pool.discard(self)

    # ── children ────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, child_name: str = "", /, **options: Unpack[CallerCreateOptions]) -> Self:
        """Return the child of a name, or make a child: a caller in a new thread that stops with this one.

        A new child gets this one's backend, zmq context, and, where the backends are the same, its backend options,
        unless others are given. Without a name, first or among the options, it is always a new one.

        Raises:
            CallerMismatchError: the child that exists has another backend.
            CallerStoppedError: this caller has stopped.
        """
        with Service.lock:
            if self._service.is_ending:
                raise CallerStoppedError(f"{self} has stopped: it can have no children.")
            options["name"] = child_name or options.get("name", "")
            child = self._child_named(options["name"])
            if child is not None:
                return registry.with_backend(child, options)
            child = self._create(self._inherited(options), self)
            self._children.add(child)
            child.start_sync()
        return child

    def _child_named(self, name: str) -> Self | None:
        named = (child for child in self._children if name and child._given_name == name and child.running)
        return next(named, None)  # pyright: ignore[reportReturnType] - children are of their parent's class

    def _inherited(self, options: CallerCreateOptions) -> CallerCreateOptions:
        given: CallerCreateOptions = {**options}
        given["backend"] = backend_of(options.get("backend") or self.backend)
        if given["backend"] == self.backend:
            given.setdefault("backend_options", self.backend_options)
        given.setdefault("zmq_context", self._zmq_context)
        return given

    # ── call ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def schedule_call(
        self,
        func: Callable[..., CoroutineType[Any, Any, T] | T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        pending_create_options: PendingCreateOptions | None = None,
        context: Context | None = None,
        /,
        **metadata: Any,
    ) -> Pending[T]:
        """Call a function in the event loop; `call_soon` and the others are this with types.

        Args:
            func: the function; where it returns a coroutine, that is awaited.
            args: its arguments.
            kwargs: its keyword arguments.
            pending_create_options: says what is to be done with the pending.
            context: run in a copy of this one, instead of the current. The copy is the pending's `context`.
            metadata: more to be kept with the pending.

        Raises:
            CallerStoppedError: it has stopped.
        """
        metadata.update(func=func, args=args, kwargs=kwargs, caller=self)
        tracked = pending_create_options is None or pending_create_options.get("allow_tracking", True)
        return self._schedule(metadata, copy_context() if context is None else context.copy(), tracked=tracked)

    def _schedule(self, metadata: dict[str, Any], context: Context, *, tracked: bool = True) -> Pending[Any]:
        self._scheduler.check_is_open()
        call: Call[Any] = Call(self._scheduler, metadata, context, tracked=tracked)
        self._scheduler.submit(call)
        return call

    def call_soon(
        self, func: Callable[P, T | CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[T]:
        """Call a function in the event loop, in a task of its own.

        Raises:
            CallerStoppedError: it has stopped.
        """
        return self._schedule({"func": func, "args": args, "kwargs": kwargs, "caller": self}, copy_context())

    def call_later(
        self, delay: float, func: Callable[P, T | CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[T]:
        """Call a function in the event loop, no sooner than so many seconds from now.

        Raises:
            CallerStoppedError: it has stopped.
        """
        metadata = {"func": func, "args": args, "kwargs": kwargs, "caller": self, "delay": delay}
        return self._schedule(metadata, copy_context())

    def call_direct(
        self, func: Callable[P, T | CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Call a quick function in the event loop's thread, without a task, a pending or a context of its own.

        A coroutine that it returns is awaited in a task. What it raises is logged.

        Raises:
            CallerStoppedError: it has stopped.
        """
        self._scheduler.check_is_open()
        self._scheduler.submit_direct(DirectCall(self._scheduler, func, args, kwargs))

    def to_thread(
        self, func: Callable[P, T | CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[T]:
        """Call a function in a worker: a child in a thread of its own, with an event loop of the same backend.

        There are as many workers as functions that run. Idle ones are kept for later calls, up to
        `MAX_IDLE_POOL_INSTANCES` of them, and `IDLE_WORKER_SHUTDOWN_DURATION` long. A task that a function leaves
        behind goes on while its worker lives.

        Cancelling ends what awaits. It cannot end code that blocks the thread: that runs to its end, then the pending
        is done, and cancelled.

        Raises:
            CallerStoppedError: it has stopped.
        """
        return self._pool.call(func, args, kwargs)

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def queue_call(
        self, func: Callable[P, T | CoroutineType[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[T]:
        """Call a function in the event loop when its earlier queued calls are over; return the pending of its queue.

        The pending is done when the queue is empty, with the result of the last call that did not fail; with the next
        call it is not done again. What calls raise is logged. All run in a copy of the context of the first.

        The queue lives until `queue_close`, until its pending is cancelled (which a waiter does that is cancelled or
        out of time), or until the function, or the object whose method it is, is collected.

        Raises:
            CallerStoppedError: it has stopped.
        """
        return self._queues.add(func, args, kwargs)

    def queue_get(self, func: Callable[..., Any]) -> Pending[Any] | None:
        """Return the pending of a function's queue; None where it has none."""
        return self._queues.pending(hash(func))

    def queue_close(self, func: Callable[..., Any] | int) -> None:
        """Close a function's queue, named by the function or its hash: drop what is queued, cancel what runs."""
        self._queues.close(func if isinstance(func, int) else hash(func), "Its queue was closed.")

    # ── wait for several ────────────────────────────────────────────────────────────────────────────────────────────

    def as_completed(
        self,
        items: Iterable[Awaitable[T]] | AsyncIterable[Awaitable[T]],
        *,
        max_concurrent: int | None = None,
        cancel_unfinished: bool = True,
    ) -> AsCompleted[T]:
        """Return an asynchronous iterator over pendings in the order in which they become done.

        Args:
            items: pendings, or what else can be awaited. What makes them one by one, a generator say, is only asked
                for more while there is room, which limits how many run at a time.
            max_concurrent: how many may be waited for at a time, 0 for any number; by default any number of a
                container's, and otherwise `MAX_IDLE_POOL_INSTANCES`.
            cancel_unfinished: cancel the rest when the iteration ends early.

        Raises:
            NoEventLoopError: no event loop runs here.
            WouldDeadlockError: while iterating: one of the items is the very call that iterates.
        """
        from cobnut_kernel.caller.completion import as_completed

        return as_completed(type(self)(), items, max_concurrent, cancel_unfinished=cancel_unfinished)

    async def wait(
        self, items: Iterable[Awaitable[T]], *, timeout: float | None = None, return_when: ReturnWhen = "ALL_COMPLETED"
    ) -> tuple[set[Pending[T]], set[Pending[T]]]:
        """Wait for pendings, or what else can be awaited, and return two sets: the done ones, and the others.

        Neither the end of the time nor a cancellation of the waiter cancels them. Time that is up is no error.

        Args:
            items: what to wait for.
            timeout: how long, in seconds.
            return_when: when to stop waiting: with all, with the first, or with the first that has failed.

        Raises:
            WouldDeadlockError: one of the items is the very call that waits.
        """
        from cobnut_kernel.caller.completion import wait

        return await wait(type(self)(), items, timeout, return_when)

    def create_pending_group(self, *, shield: bool = False) -> PendingGroup:
        """Return a new context that waits for the pendings made in it; with a shield, also while it is cancelled."""
        from cobnut_kernel.caller.groups import PendingGroup

        return PendingGroup(shield=shield)
