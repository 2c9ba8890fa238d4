"""Evidence that the system killed a process for want of memory: the counters of its control group.

The kernel log, which says it best, is closed to users; a control group counts what was killed in it (`oom_kill` of
`memory.events`, or of `memory.oom_control` in version 1). Where nothing is counted there is no evidence.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20

UNLIMITED = 1 << 60
"""From this many bytes on a limit of version 1 means that there is none."""


@dataclass(frozen=True)
class MemoryCount:
    """What a control group counts.

    Attributes:
        kills: how many of its processes were killed for want of memory.
        peak: the most that it used, or what it uses where that is not told, in bytes; 0 where neither is known.
        limit: how much it may use, in bytes; None without a limit.
    """

    kills: int
    peak: int = 0
    limit: int | None = None


def evidence(before: MemoryCount | None, after: MemoryCount | None) -> str:
    """Say what the counters show about a process that was killed between them; nothing where they show nothing."""
    if before is None or after is None or after.kills <= before.kills:
        return ""
    used = f" at {_mib(after.peak)}" if after.peak else ""
    most = f" of at most {_mib(after.limit)}" if after.limit is not None else ""
    return f"out of memory{used}{most}"


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"


@dataclass(frozen=True)
class ControlGroup:
    """The control group that holds a process to its memory.

    Attributes:
        folder: where its files are.
        top: the folder of the outermost group that can be seen.
        version: of the control groups, 1 or 2.
    """

    folder: Path
    top: Path
    version: int

    def count(self) -> MemoryCount | None:
        """Read the counters; None where there are none."""
        names = _FILES[self.version]
        with suppress(OSError, ValueError):
            kills = _FIELD.search((self.folder / names.events).read_text("ascii"))
            if kills is not None:
                peak = _number(self.folder / names.peak) or _number(self.folder / names.current) or 0
                return MemoryCount(int(kills[1]), peak, self._limit(names.limit))
        return None

    def _limit(self, name: str) -> int | None:
        """Return the narrowest of the limits that hold for the group: its own or one further out."""
        around = [self.folder, *self.folder.parents]
        folders = around[: around.index(self.top) + 1] if self.top in around else around[:1]
        limits = [limit for folder in folders if (limit := _number(folder / name)) is not None and limit < UNLIMITED]
        return min(limits, default=None)


@dataclass(frozen=True)
class _Files:
    events: str
    peak: str
    current: str
    limit: str


_FILES = {
    1: _Files("memory.oom_control", "memory.max_usage_in_bytes", "memory.usage_in_bytes", "memory.limit_in_bytes"),
    2: _Files("memory.events", "memory.peak", "memory.current", "memory.max"),
}
_FIELD = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def control_group(pid: int, proc: Path = Path("/proc")) -> ControlGroup | None:
    """Find the control group that holds a process to its memory; None where the system has none, or does not tell.

    Args:
        pid: of a process that lives.
        proc: where the system tells about processes.
    """
    with suppress(OSError, ValueError, IndexError):
        membership = (proc / str(pid) / "cgroup").read_text("utf-8")
        mounts = (proc / str(pid) / "mountinfo").read_text("utf-8")
        return _locate(membership, mounts)
    return None


def _locate(membership: str, mounts: str) -> ControlGroup | None:
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in membership.splitlines())}
    for controllers, path in paths.items():
        if "memory" in controllers.split(","):  # version 1, or a system that has both
            return _mounted(mounts, path, 1)
    return _mounted(mounts, paths[""], 2) if "" in paths else None


def _mounted(mounts: str, path: str, version: int) -> ControlGroup | None:
    """Find the folder of a group: the mounted root stands for a path of its own, in a container say."""
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        fields, (file_system, _, options) = place.split(" "), kind.split(" ", 2)
        fits = file_system == "cgroup2" if version == 2 else "memory" in options.rsplit(" ", 1)[-1].split(",")
        if fits and file_system.startswith("cgroup"):
            top, root = Path(_plain(fields[4])), _plain(fields[3])
            inside = path.removeprefix(root.rstrip("/")) if path.startswith(root) else path
            folder = Path(f"{top}/{inside}")
            return ControlGroup(folder if folder.is_dir() else top, top, version)
    return None


def _plain(field: str) -> str:
    """Undo the escapes of a field of mountinfo: a space is written as a backslash and its octal code."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _number(file: Path) -> int | None:
    """Read a number; None where there is none, or it says "max"."""
    with suppress(OSError, ValueError):
        return int(file.read_text("ascii"))
    return None


class MemoryWatch:
    """What happened to the memory of one process since it was launched.

    Args:
        pid: of a process of this machine; None where there is none, and so no evidence.
    """

    def __init__(self, pid: int | None) -> None:
        self._group = control_group(pid) if pid is not None else None
        self._before = self._group.count() if self._group is not None else None

    def evidence(self) -> str:
        """Say what shows that the process was killed for want of memory; nothing where nothing does."""
        return evidence(self._before, self._group.count()) if self._group is not None else ""
