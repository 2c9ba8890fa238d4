"""Process groups that end with an owner, and the files that they would leave."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

from cobnut_kernel.connection_files import start_time

if TYPE_CHECKING:
    from collections.abc import Iterable

GRACE = 0.75
"""Seconds between SIGTERM and SIGKILL: a kernel shall be gone a second after its owner, whatever it has still to do."""


@dataclass(frozen=True)
class Ward:
    """A process group.

    Attributes:
        pid: its leader's.
        start_time: when the leader started, in clock ticks since boot; 0 where that is not known.
        files: what to remove after it.
        outlives: whether it goes on when the owner has ended.
    """

    pid: int
    start_time: int
    files: tuple[str, ...] = ()
    outlives: bool = False

    def send(self, signum: int) -> bool:
        """Send a signal to the group; False where there is none any more."""
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            return self._send_before_it_leads(signum)
        except PermissionError:
            pass
        return True

    def _send_before_it_leads(self, signum: int) -> bool:
        """Send a signal to a process that was forked a moment ago and leads no group yet."""
        if not _is_child(self.pid):
            return False
        os.kill(self.pid, signum)
        return True

    @property
    def is_same(self) -> bool:
        """Whether the number is still the group's: its leader may have ended, but is nobody else."""
        return not self.start_time or start_time(self.pid) in (None, self.start_time)


class Wards:
    """The kernels that were forked here, which are our children, and what others have started."""

    def __init__(self) -> None:
        self.children: dict[int, Ward] = {}
        self.others: dict[int, Ward] = {}
        self.folder: str = ""
        self._ownerless: bool = False

    def reap(self) -> dict[int, int]:
        """Kill what is left of the groups whose leaders have ended, then give their numbers back.

        Returns:
            The exit code of each, or the negative number of the signal that ended it.
        """
        ended: dict[int, int] = {}
        while (pid := _ended_child()) is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            ended[pid] = os.waitstatus_to_exitcode(status)
            ward = self.children.pop(pid, None)
            if self._ownerless and ward is not None:
                remove(ward.files)
                self._remove_folder()
        return ended

    def end(self) -> None:
        """End all that must not outlive the owner, and remove its files: SIGTERM, a time of grace, SIGKILL.

        What goes on without him leaves its files when it is reaped.
        """
        self._ownerless = True
        every = [*self.children.values(), *self.others.values()]
        ending = [ward for ward in every if not ward.outlives and ward.is_same]
        for ward in ending:
            ward.send(signal.SIGTERM)
        deadline = monotonic() + GRACE
        while any(ward.send(0) for ward in ending) and monotonic() < deadline:
            self.reap()
            sleep(0.01)
        for ward in ending:
            ward.send(signal.SIGKILL)
        self.others.clear()
        remove(path for ward in every if not ward.outlives for path in ward.files)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the owner's folder and what lies in it, but for the files of those who go on."""
        if not self.folder:
            return
        kept = {path for ward in self.children.values() if ward.outlives for path in ward.files}
        with suppress(OSError):
            remove(path for path in map(str, Path(self.folder).iterdir()) if path not in kept)
        with suppress(OSError):
            Path(self.folder).rmdir()


def remove(paths: Iterable[str]) -> None:
    """Remove files and empty folders; what is not there, or cannot be removed, is left."""
    for path in map(Path, paths):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _ended_child() -> int | None:
    """Return the number of a child that has ended; it stays taken."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


def _is_child(pid: int) -> bool:
    """Say whether a number is that of a child of ours that was not reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
