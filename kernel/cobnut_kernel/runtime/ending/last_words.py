"""What a process says at its end, on its own stderr, where nobody may read any more."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import sys
from typing import TYPE_CHECKING

from cobnut_kernel.runtime.interruption import frames
from cobnut_kernel.runtime.output.capture import own_descriptor

if TYPE_CHECKING:
    import threading

_PATIENCE = 0.01
"""Seconds that a reader has to take something before it is dropped."""


def say(*lines: str) -> None:
    """Write lines to the process's own stderr, also while it is captured; never wait for who should read them."""
    data = "".join(f"{line.rstrip()}\n" for line in lines).encode(errors="backslashreplace")
    fd = own_descriptor(2)
    with contextlib.suppress(OSError):  # it is closed, or has been meanwhile
        while data and _is_writable(fd):
            data = data[os.write(fd, data[: select.PIPE_BUF]) :]


def stack_of(thread: threading.Thread) -> list[str]:
    """Draw where a thread is, outermost first, without our own frames."""
    return frames.stack_below(frames.of_thread(thread.ident or 0), None)


def flush() -> None:
    """Write what the buffers of Python's streams hold."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # user code has closed it, or put something else there
            if stream is not None:
                stream.flush()


def end_after(seconds: float) -> None:
    """End the process after some seconds from a thread that needs no GIL, and show where it was (exit code 1)."""
    try:
        fd = os.dup(own_descriptor(2))
    except OSError:
        fd = None
    if fd is None or not _is_writable(fd):  # to write would be to wait
        fd = os.open(os.devnull, os.O_WRONLY)
    faulthandler.dump_traceback_later(seconds, exit=True, file=fd)


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events == select.POLLOUT for _, events in poll.poll(_PATIENCE * 1000))
