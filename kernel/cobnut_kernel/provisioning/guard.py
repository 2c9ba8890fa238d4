"""The owner's end of the guard: tells it which kernels to end when this process ends without doing so."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cobnut_kernel.connection_files import OwnerDirectory, sweep
from cobnut_kernel.provisioning.per_process import PerProcess
from cobnut_kernel.provisioning.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from cobnut_kernel.connection_files import ProcessIdentity

    class Warden(Protocol):
        """A process that guards, beside what else it does: a fork server."""

        def guard(self, identity: ProcessIdentity, files: Sequence[str]) -> None:
            """End a process group, and remove its files, when the owner has ended."""
            ...

        def unguard(self, pid: int) -> None:
            """Guard a process group no longer."""
            ...

        def guard_folder(self, path: str) -> None:
            """Remove the owner's folder after everything else."""
            ...


READ_TIME = 0.5
"""How long a guard may take to read, in seconds; after that it is taken for dead."""

END_TIME = 2.0
"""How long a guard may take to end its kernels and itself before nobody waits for it, in seconds."""

_SCRIPT = Path(__file__).with_name("guard_process.py")
_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A process group to end, the files to remove then, and the warden whose own child it is, if any."""

    identity: ProcessIdentity
    files: tuple[str, ...]
    keeper: Warden | None = None

    @property
    def line(self) -> str:
        """What the guard's process is told."""
        return " ".join(("add", str(self.identity.pid), str(self.identity.start_time), *map(_hex, self.files)))


class Guard(PerProcess):
    """One process per owner that ends his kernels when he has ended: by SIGKILL of him, by a crash, or quietly.

    It is a fork server as soon as one runs, which guards its own kernels anyway. Without one it is a small process
    of its own, which starts with the first kernel, after that one's process, and is told of it through a pipe: what
    it has not read yet when the owner ends it reads then. Nobody else has the pipe's writing end: it is closed on
    exec, and in forked children by hand.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._child: ChildProcess | None = None
        self._warden: Warden | None = None

    @property
    def pid(self) -> int | None:
        """The id of the guard's own process, while there is one."""
        return self._child.pid if self._child is not None else None

    def add(
        self,
        identity: ProcessIdentity,
        files: Iterable[str | os.PathLike[str]],
        keeper: Warden | None = None,
    ) -> None:
        """Guard a process group: end it, and remove its files, when this process has ended.

        Args:
            identity: of the group's leader.
            files: what to remove.
            keeper: the warden who knows of it already, because it is his child.
        """
        entry = self._entries[identity.pid] = Entry(identity, tuple(os.fspath(file) for file in files), keeper)
        if keeper is None:
            self._guard(entry)

    def remove(self, pid: int) -> None:
        """Guard a process group no longer: it has ended, and its files are gone."""
        entry = self._entries.pop(pid, None)
        if entry is None or entry.keeper is not None:
            return
        if self._warden is not None:
            self._warden.unguard(pid)
        elif self._child is not None:
            self._tell(f"remove {pid}")

    def _release(self) -> None:
        """Let the guard end, and remove this process's folder; what it still guards it ends before."""
        child, self._child = self._child, None
        if not self._entries:
            OwnerDirectory.remove()
        if child is not None:
            child.close_stdin()
            child.reap(END_TIME)
            if child.poll() is None and not self._entries:  # it hangs, and has nothing to do
                child.kill()
                child.reap()

    def disown(self) -> None:
        """Let go of the pipe in a forked child, so that only the owner's end is an end."""
        child, self._child = self._child, None
        if child is not None:
            child.disown()

    # ── wardens ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hire(self, warden: Warden) -> None:
        """Let a fork server guard from now on; the one before, or the guard's own process, does no longer."""
        before, self._warden = self._warden, warden
        warden.guard_folder(str(OwnerDirectory.shared().path))
        for entry in self._unkept():
            warden.guard(entry.identity, entry.files)
            if before is not None:
                before.unguard(entry.identity.pid)
        child, self._child = self._child, None
        if child is None:
            sweep()
        else:
            child.kill()  # not by the end of its stdin, which would be the owner's

    def dismiss(self, warden: Warden) -> None:
        """Do without a fork server that has ended; what it guarded, its own children too, is guarded at once."""
        lost: list[Entry] = []
        for pid, entry in self._entries.items():
            if entry.keeper is warden:
                self._entries[pid] = entry._replace(keeper=None)
                lost.append(self._entries[pid])
        if self._warden is warden:
            self._warden = None
            lost = self._unkept()
        for entry in lost:
            self._guard(entry)

    def _unkept(self) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.keeper is None]

    def _guard(self, entry: Entry) -> None:
        if self._warden is not None:
            self._warden.guard(entry.identity, entry.files)
        else:
            self._tell(entry.line)

    # ── the guard's own process ─────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, line: str) -> None:
        if self._child is None:
            self._start()
        elif not self._write(line):  # somebody killed it
            self._child.kill()
            self._start()

    def _start(self) -> None:
        folder = OwnerDirectory.shared().path
        try:
            self._child = ChildProcess.spawn(
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                env=os.environ,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
        except OSError as error:
            _log.warning("No guard could be started (%s): kernels may outlive a crash of this process.", error)
            return
        self._child.when_ended(self._on_end)
        if not self._write("\n".join((f"folder {_hex(folder)}", *(entry.line for entry in self._unkept())))):
            self._child.kill()  # it hangs, or has ended: the next kernel gets another one
        sweep()  # what those before us left whose guard was killed too

    def _write(self, line: str) -> bool:
        """Write into the pipe; False where nobody reads it."""
        pipe = self._child.stdin if self._child is not None else None
        left = memoryview(f"{line}\n".encode())
        try:
            while pipe is not None and left:
                left = left[_write_some(pipe.fileno(), left) :]
        except (OSError, ValueError):
            return False
        return not left

    def _on_end(self, child: ChildProcess) -> None:
        if self._child is not child:
            return
        self._child = None
        _log.warning("The guard of the kernels has ended (%s): %s", child.poll(), child.errors.text())
        if self._unkept() and child.lived_for > 1.0:  # one that cannot run at all is not tried for ever
            self._start()


def _write_some(pipe: int, data: memoryview) -> int:
    """Write into a pipe; wait a little where it is full, as it is for a moment when a guard begins.

    Raises:
        BlockingIOError: its reader hangs.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    poll.poll(READ_TIME * 1000)
    return os.write(pipe, data)


def _hex(path: str | os.PathLike[str]) -> str:
    return os.fsencode(path).hex()
