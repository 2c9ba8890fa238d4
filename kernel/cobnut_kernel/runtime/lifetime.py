"""How a kernel's life ends: by request, by signal, with its owner, and always."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from cobnut_kernel.runtime.interrupts import POKE

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from cobnut_kernel.runtime.interrupts import Interrupts
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.transport import IOThread

_log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_OWNER_POLL = 1.0
"""Seconds between two looks at the owner where the system has no pidfd."""


class Signals:
    """The process's signals while a kernel runs in its main thread.

    They are seen by the I/O thread too, through Python's wake-up descriptor: the main thread may be deep in C code
    and run no handler of its own.
    """

    _current: ClassVar[Signals | None] = None
    _held: ClassVar[threading.local] = threading.local()

    def __init__(self, thread: IOThread, interrupts: Interrupts, stop: Callable[[], None]) -> None:
        self._thread = thread
        self._interrupts = interrupts
        self._stop = stop
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        handlers = {signal.SIGINT: interrupts.on_signal, POKE: interrupts.on_poke}
        handlers |= dict.fromkeys(_ENDING, self._on_ending)
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, handlers[number]) for number in handlers
        }
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        thread.call_soon(thread.watch_file, self._reading.fileno(), self._on_signal)
        Signals._current = self

    def restore(self) -> None:
        """Give the process its handlers back; the sockets must be closed before, so that nothing watches."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        sys.unraisablehook = self._hook_before
        self._reading.close()
        self._writing.close()
        Signals._current = None

    # ── around a fork ───────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def hold(cls) -> None:
        """Hold signals back until the child has handlers of its own: the inherited ones would tell us of its end."""
        if cls._current is not None:
            cls._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, cls._current._before)

    @classmethod
    def let_go(cls) -> None:
        """Let signals come again."""
        mask = cls._held.__dict__.pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @classmethod
    def leave(cls) -> None:
        """Give a forked child the system's handlers, so that SIGTERM ends it."""
        if cls._current is not None:
            signal.set_wakeup_fd(-1)
            sys.unraisablehook = sys.__unraisablehook__
            for signum in cls._current._before:
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        cls.let_go()

    # ── in the main thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _on_ending(self, _signum: int, _frame: types.FrameType | None) -> None:
        # The way by the descriptor is enough, unless user code has put its own there (asyncio's add_signal_handler).
        # And ringing lets go of the GIL: C code that holds it but looks for signals would let no other thread run.
        self._thread.call_soon(self._stop)

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again where Python has dropped an interrupt: in a destructor, or in what is called at a fork."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._interrupts.interrupt_again()
        else:
            self._hook_before(unraisable)

    # ── in the I/O thread ───────────────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            received = self._reading.recv(4096)
            if any(signum in _ENDING for signum in received):
                self._stop()
            if signal.SIGINT in received:
                self._interrupts.insist()
        self._thread.watch_file(self._reading.fileno(), self._on_signal)


os.register_at_fork(before=Signals.hold, after_in_parent=Signals.let_go, after_in_child=Signals.leave)


def watch_owner(thread: IOThread, pid: int, stop: Callable[[], None]) -> None:
    """Call `stop` in the I/O thread when the process that owns the kernel is gone.

    The owner is who set JPY_PARENT_PID; it need not be our parent, there may be wrappers between
    (jupyter_console #221).
    """
    if not hasattr(os, "pidfd_open"):
        thread.call_soon(_poll_owner, thread, pid, stop)
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        stop()
    else:
        thread.call_soon(thread.watch_file, fd, stop)


def _poll_owner(thread: IOThread, pid: int, stop: Callable[[], None]) -> None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        stop()
    except PermissionError:
        _log.warning("The kernel's owner, process %d, belongs to somebody else: its end will not be seen.", pid)
    else:
        thread.call_later(_OWNER_POLL, _poll_owner, thread, pid, stop)


class Watchdog:
    """Ends the kernel's process when user code will not.

    Args:
        kernel: the process's kernel.
        cell_grace: seconds that a running cell gets to end when the kernel stops.
        exit_grace: seconds that atexit functions, threads and children get after that.
    """

    def __init__(self, kernel: Kernel, *, cell_grace: float = 0.2, exit_grace: float = 5.0) -> None:
        self._kernel = kernel
        self._cell_grace = cell_grace
        self._exit_grace = exit_grace

    def start(self) -> None:
        """Watch from now on, in a thread of its own."""
        threading.Thread(target=self._run, name="cobnut-watchdog", daemon=True).start()

    def _run(self) -> None:
        self._kernel.event_stopping.wait()
        if not self._kernel.event_stopped.wait(self._cell_grace) and self._kernel.close_sockets():
            self._end("A cell did not end when the kernel stopped")
        # The main thread is done with the kernel: what follows is the interpreter's own end.
        time.sleep(self._exit_grace)
        self._end("The process did not end by itself")

    def _end(self, reason: str) -> None:
        if sys.__stderr__ is not None:
            print(f"{reason}; it was here:", file=sys.__stderr__, flush=True)
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        os._exit(0)
