"""What makes a forked child a process of its own: session, streams, signals."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.zygote.owner import close

if TYPE_CHECKING:
    import types
    from collections.abc import Sequence

    from cobnut_kernel.protocol.fork import Fork

_NOT_FOR_US = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that do not end a template: its end is that of its owner, after that of its kernels."""


class SignalHandlers:
    """What signals do to a template; the children get back what was there before."""

    def __init__(self) -> None:
        self.bell, ringing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, signal.SIG_IGN) for number in _NOT_FOR_US
        }
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ring_only)
        signal.set_wakeup_fd(ringing, warn_on_full_buffer=False)

    def heard(self) -> None:
        """Take note of what has rung the bell."""
        with suppress(BlockingIOError):
            os.read(self.bell, 4096)

    def fork(self) -> int:
        """Fork, so that the child gets no signal before it has `restore`d its handlers.

        Raises:
            OSError: the system has no room for another process.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return pid

    def restore(self) -> None:
        """Give a child the handlers and the mask of a process that was just started."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _ring_only(_signum: int, _frame: types.FrameType | None) -> None:
    """Do nothing: Python has written to the bell."""


@dataclass(frozen=True)
class NewKernel:
    """A forked child, and what it is to become."""

    request: Fork
    descriptors: Sequence[int]

    def settle(self, handlers: SignalHandlers) -> None:
        """Make the process one of its own: session, streams, signals, name."""
        os.setsid()
        take_streams(dict(zip(self.request.streams, self.descriptors, strict=True)))
        handlers.restore()
        os.umask(self.request.umask)
        with suppress(OSError):
            Path("/proc/self/comm").write_text("cobnut-kernel")


def show_command(command: Sequence[str]) -> None:
    """Show a command where `ps` looks, in the place of the one that the process was started with.

    That place is the memory of the arguments and, behind it, of the environment: C code must not have that in use any
    more. Where the command is longer than the arguments were, the system takes it for one text (proc(5), cmdline).
    """
    with suppress(OSError, ValueError, IndexError):
        start, end, env_start, env_end = map(
            int, Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[45:49]
        )
        room = env_end - start if env_start == end else end - start
        parts = [os.fsencode(part) for part in command]
        text = b"\0".join(parts) if sum(map(len, parts)) + len(parts) <= end - start else b" ".join(parts)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 - no file, and unbuffered
            memory.seek(start)
            memory.write(text[: room - 1].ljust(room, b"\0"))


def take_streams(streams: dict[int, int]) -> None:
    """Give descriptors their numbers, by number, and close all others; 0, 1 and 2 are /dev/null where not named."""
    nothing = os.open(os.devnull, os.O_RDWR)
    wanted = {0: nothing, 1: nothing, 2: nothing, **streams}
    above = max(wanted) + 1  # out of each other's way
    for number, copy in [(number, fcntl.fcntl(it, fcntl.F_DUPFD, above)) for number, it in wanted.items()]:
        os.dup2(copy, number, inheritable=number <= 2)
    close([int(name) for name in os.listdir("/proc/self/fd") if int(name) not in wanted])  # noqa: PTH208 - numbers
