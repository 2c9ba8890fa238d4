"""Kernels of this machine that are not our children: which process it is, its end, and signals to it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from cobnut_kernel.connection_files import ProcessIdentity, start_time
from cobnut_kernel.errors import KernelError
from cobnut_kernel.provisioning.process import Exit, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

LOOK = 0.1
"""Seconds between two looks at a process where the system has no pidfd."""


def read_identity(fields: Mapping[str, Any]) -> ProcessIdentity:
    """Read which process it was from what another process has written, as JSON.

    Raises:
        KernelError: a field is missing or of no use.
    """
    try:
        identity = ProcessIdentity(**fields)
        numbers = (identity.pid, identity.start_time, identity.namespace)
        if all(type(number) is int and number >= 0 for number in numbers) and identity.pid > 1:
            return identity
    except TypeError:
        pass
    raise KernelError(f"This names no kernel's process: {fields!r}. Take what get_provisioner_info has returned.")


def require_running(identity: ProcessIdentity) -> None:
    """See that a process still runs, and is the same that it was.

    Raises:
        KernelError: it is not; the text says what is different.
    """
    here = ProcessIdentity.of(os.getpid())
    pid = identity.pid
    if identity.boot_id != here.boot_id:
        raise KernelError(f"The kernel's process {pid} ran before this machine was started anew: start the kernel.")
    if identity.namespace != here.namespace:
        raise KernelError(f"The kernel's process {pid} counts in another pid namespace: adopt it in its container.")
    if identity.is_gone:
        now = start_time(pid)
        if now is None:
            raise KernelError(f"The kernel's process {pid} has ended: start the kernel.")
        raise KernelError(
            f"The process {pid} is not the kernel's: it started at {now}, the kernel at {identity.start_time} (clock"
            " ticks since boot). The kernel has ended: start it."
        )


class AdoptedProcess:
    """A process whose parent is somebody else; it belongs to the loop that adopts it.

    Its end is seen by its pidfd, or by looking where there is none. Its exit code is its parent's to know. What it
    writes is not ours to read.

    Args:
        identity: which process it is; whoever asks knows that it runs.
        pidfd: its pidfd, which is ours from now on; opened where it is not given.
    """

    def __init__(self, identity: ProcessIdentity, pidfd: int | None = None) -> None:
        self.pid: int = identity.pid
        self.identity: ProcessIdentity = identity
        self.output: Tail = Tail()
        self.errors: Tail = Tail()
        self._loop = asyncio.get_running_loop()
        self._exit = Exit()
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd: int | None = _opened(identity) if pidfd is None else pidfd
        if self._pidfd is None:
            self._look()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def poll(self) -> int | None:
        """Return None while it runs, then 0: its exit code is not known."""
        return self._exit.poll()

    async def wait(self) -> int | None:
        """Wait until it has ended; several may wait at once, and give up. Its exit code is not known: None."""
        return await self._exit.wait()

    def when_ended(self, callback: Callable[[int | None], object]) -> None:
        """Call back on the loop when it has ended."""
        self._exit.when_told(callback)

    def send_signal(self, signum: int) -> None:
        """Send a signal to its process group, or to it alone where it leads none; not to who has its number next."""
        if self._exit.has_come or not self._is_there():
            return
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signum)
            elif self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signum)
            else:
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End it, and its process group, by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def release(self) -> None:
        """Watch it no longer; it may go on."""
        if self._timer is not None:
            self._timer.cancel()
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def _is_there(self) -> bool:
        """Say whether it, or what is left of it before it is reaped, still has its number."""
        if self._pidfd is None:
            return start_time(self.pid) in (None, self.identity.start_time)
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _look(self) -> None:
        if self.identity.is_gone:
            self._on_exit()
        else:
            self._timer = self._loop.call_later(LOOK, self._look)

    def _on_exit(self) -> None:
        # What it left running in its group: the group has the number, or nobody.
        if start_time(self.pid) in (None, self.identity.start_time):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.release()
        self._exit.tell(None)


def _opened(identity: ProcessIdentity) -> int | None:
    """Open the pidfd of a process; None where there is none, or the number is somebody else's by now."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except (AttributeError, OSError):  # another system, an old one, or a sandbox that forbids it
        return None
    if not identity.is_gone:
        return pidfd
    os.close(pidfd)
    return None
