"""The owner's end of the guard: tells it which kernels to end when this process ends without doing so."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cobnut_kernel.connection_files import OwnerDirectory, sweep
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cobnut_kernel.connection_files import ProcessIdentity

READ_TIME = 0.5
"""How long a guard may take to read, in seconds; after that it is taken for dead."""

END_TIME = 2.0
"""How long a guard may take to end its kernels and itself before nobody waits for it, in seconds."""

_SCRIPT = Path(__file__).with_name("guard_process.py")
_log = logging.getLogger(__name__)


class Guard:
    """One small process per owner, which ends with him: by SIGKILL of him, by a crash, or quietly by his own end.

    It starts with the first kernel, after that one's process, and is told of it through a pipe: what it has not
    read yet when the owner ends it reads then. Nobody else has the pipe's writing end: it is closed on exec, and
    in forked children by hand. All methods are for the portal's thread.
    """

    _process_guard: Guard | None = None

    def __init__(self) -> None:
        self._entries: dict[int, str] = {}
        self._child: ChildProcess | None = None

    @classmethod
    def shared(cls) -> Guard:
        """Return this process's guard; it ends with the portal."""
        if cls._process_guard is None:
            cls._process_guard = cls()
            Portal.shared().at_end(cls._process_guard.close)
        return cls._process_guard

    @property
    def pid(self) -> int | None:
        """The id of the guard's process, while it runs."""
        return self._child.pid if self._child is not None else None

    def add(self, identity: ProcessIdentity, files: Iterable[str | os.PathLike[str]]) -> None:
        """Guard a process group: end it, and remove its files, when this process has ended."""
        line = " ".join(("add", str(identity.pid), str(identity.start_time), *map(_hex, files)))
        self._entries[identity.pid] = line
        self._tell(line)

    def remove(self, pid: int) -> None:
        """Guard a process group no longer: it has ended, and its files are gone."""
        if self._entries.pop(pid, None) is not None:
            self._tell(f"remove {pid}")

    def close(self) -> None:
        """Let the guard end, and remove this process's folder; what it still guards it ends before."""
        child, self._child = self._child, None
        if Guard._process_guard is self:
            Guard._process_guard = None
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
        sweep()  # what those before us left whose guard was killed too
        self._write("\n".join((f"folder {_hex(folder)}", *self._entries.values())))

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
        if self._entries and child.lived_for > 1.0:  # one that cannot run at all is not tried for ever
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


def _after_fork() -> None:
    guard, Guard._process_guard = Guard._process_guard, None
    if guard is not None:
        guard.disown()


os.register_at_fork(after_in_child=_after_fork)
