"""What the kernel and its children use of the machine: processor and memory, read from /proc and the control group.

The keys are ipykernel's, which jupyter-resource-usage reads; where the system does not tell, a key is absent.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")

_LARGE = 1 << 30
"""Bytes from which on memory is counted whole: to find out what is shared takes the longer, and matters the less."""

_EXACT = {"Total": "total", "Free": "free", "Available": "available"}
_MEMORY = {
    "Active": "active",
    "Inactive": "inactive",
    "Buffers": "buffers",
    "Cached": "cached",
    "Shmem": "shared",
    "Slab": "slab",
} | {f"Mem{name}": key for name, key in _EXACT.items()}
"""The lines of /proc/meminfo that are reported, by the names that psutil gave them."""


@dataclass(frozen=True)
class _Sample:
    """Times by the clock and of the processor: each process's, and the machine's busy and whole time; in seconds."""

    at: float
    processes: dict[tuple[int, int], float]
    busy: float
    whole: float


class Usage:
    """Reports what the kernel uses; percentages are over the time since the last report."""

    def __init__(self, proc: Path = _PROC, groups: Path = _GROUPS) -> None:
        self._proc = proc
        self._groups = groups
        self._last: _Sample | None = None

    def report(self) -> dict[str, Any]:
        """Return the content of a usage_reply.

        `kernel_cpu` is in percent of one processor, `kernel_memory` in bytes, both with the children; the first
        `kernel_cpu` is over the process's life. `limits` are those of the control group, where it has some: `memory`
        and `memory_used` in bytes, `cpus`.
        """
        content: dict[str, Any] = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "cpu_count": os.cpu_count(),
            **self._memory_of_host(),
            **self._limits(),
        }
        pids = self._family(os.getpid())
        memory = [held for pid in pids if (held := self._memory(pid)) is not None]
        if memory:
            content["kernel_memory"] = sum(memory)
        return content | self._processor(pids)

    # ── processor ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _processor(self, pids: list[int]) -> dict[str, float]:
        last, now = self._last, self._sample(pids)
        self._last = now
        if last is None:
            used, since = sum(os.times()[:2]), time.time() - self._started(now)
            return {"kernel_cpu": _percent(used, since)}
        used = sum(spent - last.processes.get(key, 0.0) for key, spent in now.processes.items())
        content = {"kernel_cpu": _percent(used, now.at - last.at)}
        if now.whole > last.whole:
            content["host_cpu_percent"] = _percent(now.busy - last.busy, now.whole - last.whole)
        return content

    def _sample(self, pids: list[int]) -> _Sample:
        at = time.monotonic()
        times = [found for pid in pids if (found := self._times(pid)) is not None]
        if not times:  # no /proc
            times = [((os.getpid(), 0), sum(os.times()[:2]))]
        return _Sample(at, dict(times), *self._machine())

    def _times(self, pid: int) -> tuple[tuple[int, int], float] | None:
        """Return a process's identity, for numbers are used again, and the processor time it has had."""
        fields = self._stat(pid)
        if len(fields) < 20:
            return None
        return (pid, int(fields[19])), (int(fields[11]) + int(fields[12])) / _ticks()

    def _stat(self, pid: int) -> list[bytes]:
        return _read(self._proc / str(pid) / "stat").rpartition(b")")[2].split()  # a name may hold spaces and brackets

    def _started(self, now: _Sample) -> float:
        """Return when this process has started, by the clock; where that is unknown, a second ago."""
        booted = next((row.split()[1] for row in _lines(self._proc / "stat") if row.startswith(b"btime ")), None)
        start = next((start for pid, start in now.processes if pid == os.getpid()), 0)
        return time.time() - 1 if booted is None or not start else int(booted) + start / _ticks()

    def _machine(self) -> tuple[float, float]:
        rows = _lines(self._proc / "stat")
        spent = [int(field) / _ticks() for field in rows[0].split()[1:9]] if rows else []
        if len(spent) < 8:
            return 0.0, 0.0
        return sum(spent) - spent[3] - spent[4], sum(spent)  # idle, and waiting for a disk

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _family(self, pid: int) -> list[int]:
        """Return a process and all below it."""
        pids = [pid]
        for each in pids:  # which grows meanwhile
            with suppress(OSError):
                for task in (self._proc / str(each) / "task").iterdir():
                    pids += [int(child) for child in _read(task / "children").split() if int(child) not in pids]
        return pids

    def _memory(self, pid: int) -> int | None:
        """Return what a process holds: of pages that it shares its part, but for large ones."""
        held = _read(self._proc / str(pid) / "statm").split()
        resident = int(held[1]) * os.sysconf("SC_PAGE_SIZE") if len(held) > 1 else None
        if resident is None or resident > _LARGE:
            return resident
        shares = (row for row in _lines(self._proc / str(pid) / "smaps_rollup") if row.startswith(b"Pss:"))
        return next((int(row.split()[1]) * 1024 for row in shares), resident)

    def _memory_of_host(self) -> dict[str, Any]:
        rows = (row.decode().partition(":") for row in _lines(self._proc / "meminfo"))
        memory = {_MEMORY[name]: int(text.split()[0]) * 1024 for name, _, text in rows if name in _MEMORY}
        if "total" not in memory or "available" not in memory:
            return {}
        used = memory["total"] - memory["available"]
        return {"host_virtual_memory": {**memory, "used": used, "percent": _percent(used, memory["total"])}}

    # ── the control group ───────────────────────────────────────────────────────────────────────────────────────────

    def _limits(self) -> dict[str, Any]:
        """Return the narrowest limits of this process's control group and those around it (version 2)."""
        own = next((row[3:].decode() for row in _lines(self._proc / "self" / "cgroup") if row.startswith(b"0::")), None)
        if own is None:
            return {}
        folder = self._groups / own.strip().lstrip("/")
        groups = [folder, *(each for each in folder.parents if each.is_relative_to(self._groups))]
        memory = min((limit for group in groups if (limit := _memory_limit(group)) is not None), default=None)
        cpus = min((limit for group in groups if (limit := _processor_limit(group)) is not None), default=None)
        limits: dict[str, Any] = {} if memory is None else {"memory": memory[0], "memory_used": memory[1]}
        limits |= {} if cpus is None else {"cpus": cpus}
        return {"limits": limits} if limits else {}


def _memory_limit(group: Path) -> tuple[int, int] | None:
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    return (int(limit), int(used)) if limit.isdigit() and used.isdigit() else None


def _processor_limit(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(b" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> bytes:
    """Read a file of the kernel's; what is not there, or goes while it is read, is empty."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _lines(path: Path) -> list[bytes]:
    return _read(path).splitlines()


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole > 0 else 0.0


_usage = Usage()


def usage_report() -> dict[str, Any]:
    """Return what this process uses, as `Usage.report` says; the time is counted from the last call."""
    return _usage.report()
