"""What a process hands on to its children without a word, and what is left of a fork server's that it lost sight of."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_LIMITS = frozenset(
    f"RLIMIT_{name}" for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "RSS", "STACK")
)
"""What a process may use at most, as the module `resource` names it."""


def circumstances() -> tuple[object, ...]:
    """Return what a process hands on to its children besides what a request names: limits, processors, users."""
    import resource

    limits = (resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name in _LIMITS)
    users = (os.geteuid(), os.getegid(), *os.getgroups())
    return (*limits, *users, *os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), _status("SigIgn"))


def umask() -> int:
    """Return our file mode creation mask; to ask the system call would change it for a moment, for all threads."""
    return int(_status("Umask") or "077", 8)


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def end_strays(pipes: set[str]) -> None:
    """End the processes that can write into one of some pipes, but for ourselves and our children.

    Those are the kernels that a fork server had forked, and of which it could not tell any more.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it has ended, or is not ours
            pid, parent = int(process.name), int(process.joinpath("stat").read_bytes().rpartition(b")")[2].split()[1])
            is_ours = os.getpid() in (pid, parent)
            if not is_ours and any(_writes(entry, pipes) for entry in process.joinpath("fd").iterdir()):
                os.kill(pid, signal.SIGKILL)


def _writes(entry: Path, pipes: set[str]) -> bool:
    try:
        return bool(entry.lstat().st_mode & 0o200) and str(entry.readlink()) in pipes
    except OSError:  # it was closed meanwhile
        return False
