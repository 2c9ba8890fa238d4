"""Which thread has which caller: how one is found, and what becomes of all when the process forks or ends."""

from __future__ import annotations

import atexit
import os
import threading
import time
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar

from cobnut_kernel.caller.errors import CallerMismatchError, NoEventLoopError
from cobnut_kernel.caller.loops import running_loop
from cobnut_kernel.caller.options import backend_of
from cobnut_kernel.caller.service import Service

if TYPE_CHECKING:
    from cobnut_kernel.caller.caller import Caller
    from cobnut_kernel.caller.loops import Loop
    from cobnut_kernel.caller.options import CallerCreateOptions

C = TypeVar("C", bound="Caller")

EXIT_PATIENCE = 1.0
"""How long the end of the process waits for what the threads of callers have to undo, in seconds."""
ANSWER_PATIENCE = 0.1
"""How long it waits for a thread to look at its loop at all, in seconds; one that blocks is left alone."""

callers: dict[int, Caller] = {}
"""The caller of each thread that has one, by the thread's ident."""


def of_current_thread(cls: type[C], options: CallerCreateOptions) -> C | Caller:
    """Return the caller of the event loop that runs here; where none runs, with a backend, one in a new thread.

    Raises:
        NoEventLoopError: no loop runs here, and no backend is given.
        CallerMismatchError: the caller or the loop is another one than the options say.
    """
    existing = callers.get(get_ident())
    if existing is not None and is_of_running_loop(existing):
        return _matching(existing, options)
    if (loop := running_loop()) is not None:
        if existing is not None:
            existing._service.look_for_loop()
        return _guest(cls, loop, options)
    if options.get("backend") is None:
        raise NoEventLoopError(
            "No event loop runs in this thread: name a backend to start one in a new thread, "
            "as in Caller(backend='asyncio')."
        )
    return cls("NewThread", **options)


def of_main_thread(cls: type[C], options: CallerCreateOptions) -> C | Caller:
    """Return the caller of the main thread, which other threads can only find.

    Raises:
        NoEventLoopError: no loop runs there, or it has no caller yet.
        CallerMismatchError: the caller or the loop is another one than the options say.
    """
    main = threading.main_thread()
    is_here = threading.current_thread() is main
    if is_here and running_loop() is not None:
        return of_current_thread(cls, options)
    existing = callers.get(main.ident or 0)
    if existing is None or is_here or not existing.running:
        raise NoEventLoopError("The main thread has no caller: call Caller() there, while an event loop runs.")
    return _matching(existing, options)


def is_of_running_loop(caller: Caller) -> bool:
    """Say whether there can be no other caller for the loop that runs here; a guest that stops makes room for one."""
    return caller._service.serves_running_loop() and (caller.running or caller._service.is_host)


def _guest(cls: type[C], loop: Loop, options: CallerCreateOptions) -> C:
    """Make a caller for a loop that runs here."""
    if (backend := options.get("backend")) and backend_of(backend) != loop.backend:
        raise CallerMismatchError(f"The event loop of this thread is {loop.backend}'s, not {backend}'s.")
    caller = cls._create({**options, "backend": loop.backend})
    caller._start_as_guest(loop)
    return caller


def _matching(caller: Caller, options: CallerCreateOptions) -> Caller:
    """Return a caller, if it is what the options ask for."""
    if (name := options.get("name")) and name != caller.name:
        raise CallerMismatchError(f"The thread has {caller} already, which is not named {name!r}.")
    return with_backend(caller, options)


def with_backend(caller: C, options: CallerCreateOptions) -> C:
    """Return a caller, if it has the backend that the options ask for.

    Raises:
        CallerMismatchError: it has not.
    """
    if (backend := options.get("backend")) and backend_of(backend) != caller.backend:
        raise CallerMismatchError(f"There is {caller} already, and its backend is {caller.backend}, not {backend}.")
    return caller


def _stop_all() -> None:
    """Stop the callers that have threads of their own, and wait a little: what they run may have something to undo."""
    hosts = [caller for caller in list(callers.values()) if caller._service.is_host]
    hosts = [host for host in hosts if host.thread is not threading.current_thread()]
    Service.process_ends = True
    answers = [_asked_for_answer(host) for host in hosts]
    for host in hosts:
        host.stop(force=True)
    answer_deadline, deadline = time.monotonic() + ANSWER_PATIENCE, time.monotonic() + EXIT_PATIENCE
    for host, answer in zip(hosts, answers, strict=True):
        if answer.wait(max(0.0, answer_deadline - time.monotonic())):
            host.thread.join(max(0.0, deadline - time.monotonic()))


def _asked_for_answer(host: Caller) -> threading.Event:
    """Return what a caller's loop sets as soon as it looks."""
    answer = threading.Event()
    if not host._service.scheduler.post(answer.set):
        answer.set()
    return answer


def _after_fork() -> None:
    # A child has no callers: the other threads did not come along, and the lock may have been held.
    Service.lock = threading.RLock()
    gone = list(callers.values())
    callers.clear()
    for caller in gone:
        caller._service.be_gone()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_after_fork)
