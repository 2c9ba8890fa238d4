"""The child processes that a cell has started, and how they are interrupted with it.

They are remembered where `subprocess` starts them, for the cell that the running context belongs to. Audit hooks tell
no process id, cannot be taken off again, and are called for every import and compilation too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import weakref
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.interruption.running import CELL, HERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cobnut_kernel.runtime.interruption.running import RunningCell

_TICKS = os.sysconf("SC_CLK_TCK")

Child = weakref.ref[Any]
"""A `subprocess.Popen` as long as somebody has it; asyncio's processes are made of these too."""

_children: dict[int, Child] = {}
"""Those of all cells, by process id."""


def remember_children() -> None:
    """Remember from now on which cell starts which process; once is enough."""
    popen: Any = subprocess.Popen
    original = popen._execute_child
    if getattr(original, "__wrapped__", None) is not None:
        return

    @wraps(original)
    def execute_child(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        cell = CELL.get()
        if cell is not None:
            _remember(cell, self)
        _strike(self)

    popen._execute_child = execute_child


def _strike(process: Any) -> None:
    """Let an interrupt have its way that came while a child was started: whoever looked for it did not find it yet.

    Raises:
        KeyboardInterrupt: one was due.
    """
    if HERE.thread is not None:
        try:
            HERE.thread.strike()
        except KeyboardInterrupt:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGINT)
            raise


def _remember(cell: RunningCell, process: Any) -> None:
    pid: int = process.pid

    def forget(gone: Child) -> None:
        if _children.get(pid) is gone:
            del _children[pid]

    child = _children[pid] = weakref.ref(process, forget)
    if cell.children is None:
        cell.children = []
    cell.children.append(child)


def children_of(cells: Iterable[RunningCell]) -> set[int]:
    """Name the processes that these cells have started, and theirs."""
    begun = {pid for cell in cells for pid in (*_remembered(cell), *_begun_in_thread(cell))}
    return {relative for first in begun for relative in _family(first)}


def interrupt_children(pids: Iterable[int]) -> None:
    """Send SIGINT to child processes; those that have left our process group are left alone, as with Ctrl-C."""
    group = os.getpgrp()
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == group:
                os.kill(pid, signal.SIGINT)


def _remembered(cell: RunningCell) -> Iterator[int]:
    for child in list(cell.children or ()):
        process = child()
        # A process that somebody has waited for has a return code, and its id may be another's by now. To poll here
        # would take the exit status from those who wait for it.
        if process is not None and process.returncode is None:
            yield process.pid


def _begun_in_thread(cell: RunningCell) -> Iterator[int]:
    """Name the processes that the cell's thread has started since the cell began, if it executes it now (Linux).

    So those are found too that were not started by `subprocess`: by `os.system`, by a fork.
    """
    if cell.thread.current is not cell:
        return
    with suppress(OSError):
        text = Path(f"/proc/self/task/{cell.thread.thread.native_id}/children").read_text()
        if cell.thread.current is not cell:  # another cell's may be among them by now
            return
        for pid in {int(number) for number in text.split()}.difference(_children):
            with suppress(OSError):
                if _age(pid) <= time.monotonic() - cell.started + 1 / _TICKS:
                    yield pid


def _age(pid: int) -> float:
    """Return for how many seconds a process has been there, to a tick of the system's clock (proc(5), starttime)."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS


def _family(pid: int) -> Iterator[int]:
    """Name a process and what it has started in its turn, where the system tells (Linux)."""
    yield pid
    for task in _tasks(pid):
        with suppress(OSError):
            for child in task.joinpath("children").read_text().split():
                yield from _family(int(child))


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it has ended
        return []
