"""The processes that user code has started and left, and their end.

These are this process's children, theirs, and so on, in whatever group or session. A process that is to outlive the
kernel must have another parent, as daemons have and what a shell has left in the background.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LOOK = 0.05
"""Seconds between two looks whether a process has started another one meanwhile."""

_REAP = 0.1
"""Seconds that what was killed may take to be gone."""

_PROC = Path("/proc")


class Process(NamedTuple):
    """A running process, held so that its number cannot come to mean another one."""

    pid: int
    pidfd: int | None = None

    @classmethod
    def hold(cls, pid: int) -> Self:
        """Take hold of a process.

        Raises:
            ProcessLookupError: it is gone.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (OSError, AttributeError):
            pidfd = None
        return cls(pid, pidfd)

    @property
    def running(self) -> bool:
        """Whether it runs; one that only waits to be reaped does not."""
        if self.pidfd is not None:
            return not _readable([self.pidfd], 0)
        return _state(self.pid) not in ("", "Z")

    @property
    def is_ours(self) -> bool:
        """Whether it is for us to end.

        That of multiprocessing, or of loky, which removes what this process leaves behind is not: it ends then.
        """
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return "resource_tracker" not in _command(self.pid)

    def send(self, signum: signal.Signals) -> None:
        """Send a signal, if it is still there and ours to send to."""
        with suppress(ProcessLookupError, PermissionError):
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, signum)
            else:
                os.kill(self.pid, signum)

    def release(self) -> None:
        """Let go of it."""
        if self.pidfd is not None:
            os.close(self.pidfd)

    def __str__(self) -> str:
        return f"{self.pid} ({_command(self.pid)})"


@dataclass
class Descendants:
    """A process's descendants, from the first SIGTERM to the last SIGKILL; held while the context lasts.

    Other users' are left alone, and so is what ends by itself as soon as this process is gone.
    """

    root: int = field(default_factory=os.getpid)
    _known: dict[int, Process] = field(default_factory=dict[int, Process])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._known.values():
            process.release()
        self._known.clear()

    def end(self, grace: float) -> list[str]:
        """End them all: SIGTERM, some seconds of grace, SIGKILL. Name those that had to be killed."""
        deadline = monotonic() + grace
        self._send(signal.SIGTERM, self._find())
        while (running := self._running()) and (left := deadline - monotonic()) > 0:
            _wait(running, min(left, _LOOK))
            self._send(signal.SIGTERM, self._find())
        return self.kill() if running else []

    def kill(self) -> list[str]:
        """Send SIGKILL to them all, and wait a moment for their end. Name them."""
        self._find()
        killed = [str(process) for process in self._running()]
        deadline = monotonic() + _REAP
        while (running := self._running()) and (left := deadline - monotonic()) > 0:
            self._send(signal.SIGKILL, running)
            _wait(running, min(left, _LOOK))
            self._find()
        return killed

    def _send(self, signum: signal.Signals, processes: list[Process]) -> None:
        for process in processes:
            process.send(signum)
            process.send(signal.SIGCONT)  # one that is stopped hears of nothing else

    def _find(self) -> list[Process]:
        """Take hold of those that are not known yet, and return them."""
        found: list[Process] = []
        for pid in descendants(self.root):
            known = self._known.get(pid)
            if (known is None or not known.running) and _state(pid) != "Z":
                with suppress(ProcessLookupError):
                    self._known[pid] = Process.hold(pid)
                    found.append(self._known[pid])
        return [process for process in found if process.is_ours]

    def _running(self) -> list[Process]:
        return [process for process in self._known.values() if process.running and process.is_ours]


def reap() -> None:
    """Take leave of the children that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(root: int) -> list[int]:
    """List the children of a process, theirs, and so on."""
    children_of = _children_by_kernel if _children_file(root).exists() else _children_by_table()
    found: list[int] = []
    ahead = [root]
    while ahead:
        children = [pid for pid in children_of(ahead.pop()) if pid not in found]
        found += children
        ahead += children
    return found


# ── what the system tells ───────────────────────────────────────────────────────────────────────────────────────────


def _children_file(pid: int) -> Path:
    return _PROC / str(pid) / "task" / str(pid) / "children"


def _children_by_kernel(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children


def _children_by_table() -> Callable[[int], list[int]]:
    """Look once at all processes, where the kernel keeps no list of children: some Linuxes, and macOS."""
    children: dict[int, list[int]] = {}
    for line in _ps("-A", "-o", "pid=,ppid="):
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    return lambda pid: children.get(pid, [])


def _state(pid: int) -> str:
    """Return the letter of a process's state: Z is a zombie, and nothing is gone."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    if _PROC.joinpath("self").exists():
        return ""
    return "".join(_ps("-o", "state=", "-p", str(pid)))[:1]


def _command(pid: int) -> str:
    with suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    if _PROC.joinpath("self").exists():
        return ""
    return "".join(_ps("-o", "command=", "-p", str(pid))).strip()


def _ps(*options: str) -> list[str]:
    """Ask `ps`, which is not one of the children it is asked about."""
    with subprocess.Popen(["ps", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        lines = process.communicate()[0].splitlines()
    return [line for line in lines if line.split()[:1] != [str(process.pid)]]


def _wait(children: Iterable[Process], seconds: float) -> None:
    """Wait until one of them has ended, or the time is over."""
    pidfds = [process.pidfd for process in children]
    if None in pidfds:
        _readable([], min(seconds, 0.01))
    else:
        _readable([pidfd for pidfd in pidfds if pidfd is not None], seconds)


def _readable(fds: list[int], seconds: float) -> bool:
    poll = select.poll()  # select takes no descriptor above 1023
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
