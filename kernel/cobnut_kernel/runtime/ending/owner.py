"""The kernel's owner, how his end is noticed, and how long a kernel stays that nobody owns."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import stat
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from cobnut_kernel.transport import IOThread

OWNER_PROCESS = "JPY_PARENT_PID"
"""The variable with the owner's process id; it need not be our parent, there may be wrappers between."""

OWNER_PIPE = "COBNUT_OWNER_FD"
"""The variable with an inherited pipe that ends with the owner, as `name_pipe` writes it."""

_POLL = 1.0
"""Seconds between two looks at the owner where the system has no pidfd."""

_KEEP = re.compile(r"keep(?: +(\d+(?:\.\d+)?) *([smhd]?))?")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

_log = logging.getLogger(__name__)


class Policy(NamedTuple):
    """What an abandoned kernel does: how many seconds it stays after the last that was heard of anybody.

    0 is to die at once, infinity to stay.
    """

    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "die", "keep", or "keep" with a time: "keep 90", "keep 10m", "keep 1.5 h".

        Raises:
            ValueError: the text is none of these.
        """
        text = text.strip()
        kept = _KEEP.fullmatch(text)
        if text == "die":
            return cls()
        if kept is None:
            raise ValueError(
                f"{text!r} is nothing that an abandoned kernel can do: say 'die', 'keep', or how long it is kept, "
                "as in 'keep 10m' (s, m, h or d)."
            )
        return cls(float(kept[1]) * _UNITS[kept[2]] if kept[1] else math.inf)


class Lease:
    """How long a kernel stays that has lost its terminal or its owner; used in the I/O thread only.

    A kernel that is kept for a time ends that long after the last request, of any client and on any channel; a cell
    that is still running does not prolong it.

    Args:
        thread: the I/O thread.
        policy: what to do once the kernel is abandoned.
        stop: stops the kernel.
        last_request: tells when the last request came, on the clock of `time.monotonic`.
    """

    def __init__(
        self, thread: IOThread, policy: Policy, stop: Callable[[], None], last_request: Callable[[], float]
    ) -> None:
        self._thread = thread
        self._policy = policy
        self._stop = stop
        self._last_request = last_request
        self._since: float | None = None

    def abandon(self, reason: str) -> None:
        """Do what the policy says; again, it starts the time anew."""
        if not self._policy.seconds:
            self._stop()
            return
        first, self._since = self._since is None, monotonic()
        if not first:
            return
        if math.isinf(self._policy.seconds):
            _log.warning("%s: the kernel stays.", reason)
        else:
            _log.warning("%s: the kernel ends %g s after the last request.", reason, self._policy.seconds)
            self._thread.call_later(self._policy.seconds, self._look)

    def _look(self) -> None:
        left = max(self._since or 0.0, self._last_request()) + self._policy.seconds - monotonic()
        if left > 0:
            self._thread.call_later(left, self._look)
        else:
            self._stop()


class Owner(NamedTuple):
    """Who started the kernel and wants it to end with him, as far as it is known: by process, by pipe, or both."""

    pid: int | None = None
    pipe: int | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Take the owner from the environment; the pipe's variable is removed, it means nothing to our children."""
        return cls(_read_pid(environ.get(OWNER_PROCESS, "")), _take_pipe(environ.pop(OWNER_PIPE, "")))

    def watch(self, thread: IOThread, gone: Callable[[str], None]) -> None:
        """Call `gone` in the I/O thread, with a reason for the log, when the owner's end is noticed."""
        if self.pipe is not None:
            thread.call_soon(thread.watch_file, self.pipe, partial(_read_pipe, thread, self.pipe, gone))
        if self.pid is not None:
            _watch_process(thread, self.pid, partial(gone, f"The kernel's owner, process {self.pid}, is gone"))


def name_pipe(fd: int) -> str:
    """Return what `OWNER_PIPE` must say of a pipe's reading end: its number, and what tells it from another of it."""
    return f"{fd}:{os.fstat(fd).st_ino}"


# ── by process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_pid(text: str) -> int | None:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text:
        _log.warning("%s is %r, which is no process: the owner's end will not be seen by it.", OWNER_PROCESS, text)
    return None


def _watch_process(thread: IOThread, pid: int, gone: Callable[[], None]) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        thread.call_soon(gone)
    except (OSError, AttributeError):  # no pidfd: another system, an old one, or a container that forbids it
        thread.call_soon(_poll_process, thread, pid, gone)
    else:
        thread.call_soon(thread.watch_file, fd, partial(_close, fd, gone))


def _poll_process(thread: IOThread, pid: int, gone: Callable[[], None]) -> None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        gone()
        return
    except PermissionError:  # somebody else's, but there
        pass
    thread.call_later(_POLL, _poll_process, thread, pid, gone)


def _close(fd: int, gone: Callable[[], None]) -> None:
    os.close(fd)
    gone()


# ── by pipe ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_pipe(text: str) -> int | None:
    """Return the pipe's descriptor, unless it is none or, its number being used again, another one."""
    number, _, inode = text.partition(":")
    try:
        fd = int(number) if text else -1
        status, mode = os.fstat(fd), fcntl.fcntl(fd, fcntl.F_GETFL)
        if stat.S_ISFIFO(status.st_mode) and mode & os.O_ACCMODE == os.O_RDONLY and inode == str(status.st_ino):
            os.set_inheritable(fd, False)
            return fd
    except (ValueError, OverflowError, OSError):  # a wrapper has closed it
        pass
    if text:
        _log.warning("%s is %r, and no pipe is there: the owner's end will not be seen by it.", OWNER_PIPE, text)
    return None


def _read_pipe(thread: IOThread, fd: int, gone: Callable[[str], None]) -> None:
    if os.read(fd, 4096):  # what he says is not for us
        thread.watch_file(fd, partial(_read_pipe, thread, fd, gone))
    else:
        _close(fd, partial(gone, "The pipe of the kernel's owner has ended"))
