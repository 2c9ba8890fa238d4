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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.transport import IOThread

_log = logging.getLogger(__name__)

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_OWNER_POLL = 1.0
"""Seconds between two looks at the owner where the system has no pidfd."""


class Signals:
    """The process's signals while a kernel runs in its main thread.

    An ending signal is seen by the I/O thread, through Python's wake-up descriptor: the main thread may be deep
    in C code and run no handler of its own.
    """

    def __init__(
        self, thread: IOThread, interrupt: Callable[[int, types.FrameType | None], None], stop: Callable[[], None]
    ) -> None:
        self._thread = thread
        self._stop = stop
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._before: dict[signal.Signals, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, interrupt)}
        for signum in _ENDING:
            self._before[signum] = signal.signal(signum, lambda _signum, _frame: None)
        thread.call_soon(thread.watch_file, self._reading.fileno(), self._on_signal)

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if any(signum in _ENDING for signum in self._reading.recv(4096)):
                self._stop()
        self._thread.watch_file(self._reading.fileno(), self._on_signal)

    def restore(self) -> None:
        """Give the process its handlers back; the sockets must be closed before, so that nothing watches."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reading.close()
        self._writing.close()


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
        if self._kernel.event_stopped.wait(self._cell_grace):
            # The main thread is done with the kernel: what follows is the interpreter's own end.
            time.sleep(self._exit_grace)
            self._end("The process did not end by itself")
        self._kernel.close_sockets()
        self._end("A cell did not end when the kernel stopped")

    def _end(self, reason: str) -> None:
        if sys.__stderr__ is not None:
            print(f"{reason}; it was here:", file=sys.__stderr__, flush=True)
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        os._exit(0)
