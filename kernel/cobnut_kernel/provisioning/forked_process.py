"""A kernel's process that a fork server is the parent of: it tells its end and passes signals on, while it lives."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from cobnut_kernel.provisioning.adoption import AdoptedProcess
from cobnut_kernel.provisioning.process import Exit, Outputs, Tail

if TYPE_CHECKING:
    from cobnut_kernel.connection_files import ProcessIdentity
    from cobnut_kernel.provisioning.fork_server import ForkServer

PATIENCE = 1.0
"""How long a fork server may take to tell the end of a kernel, in seconds; then it is taken for dead."""


class ForkedProcess:
    """A kernel's process that is a child of a fork server.

    Attributes:
        identity: which process it is.
        output: the end of its stdout and stderr, as they came.
        errors: the end of its stderr.
        server: its parent.
    """

    def __init__(self, server: ForkServer, identity: ProcessIdentity, pidfd: int | None, outputs: Outputs) -> None:
        self.pid: int = identity.pid
        self.identity: ProcessIdentity = identity
        self.output: Tail = outputs.output
        self.errors: Tail = outputs.errors
        self.server: ForkServer = server
        self._outputs = outputs
        self._loop = asyncio.get_running_loop()
        self._exit = Exit()
        self._pidfd = pidfd
        self._adopted: AdoptedProcess | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killed: bool = False
        if pidfd is not None:
            self._loop.add_reader(pidfd, self._expect_end)

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code, or the negative number of the signal that ended it.

        It is 0 where the fork server has ended before it could tell.
        """
        return self._exit.poll()

    async def wait(self) -> int | None:
        """Wait until it has ended and is reaped, as `poll` says; None in place of 0 where the code is not known."""
        return await self._exit.wait()

    def send_signal(self, signum: int) -> None:
        """Send a signal to its process group; nothing happens when it has ended."""
        if self._exit.has_come:
            return
        if self._adopted is not None:
            self._adopted.send_signal(signum)
            return
        self.server.signal(self.pid, signum)
        if signum == signal.SIGKILL:
            self._killed = True
            self._expect_end()

    def kill(self) -> None:
        """End its process group by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    # ── for its parent ──────────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, status: int | None) -> None:
        """Take note of its end."""
        self._outputs.drain()
        self.release()
        self._exit.tell(status)

    def orphaned(self) -> None:
        """Do without the parent, who has ended."""
        pidfd = self._let_go_of_pidfd()
        self._cancel_timer()
        self._adopted = AdoptedProcess(self.identity, pidfd)
        self._adopted.when_ended(self.ended)
        if self._killed:
            self._adopted.kill()

    def release(self) -> None:
        """Watch it no longer."""
        self._cancel_timer()
        if self._adopted is not None:
            self._adopted.release()
        if (pidfd := self._let_go_of_pidfd()) is not None:
            os.close(pidfd)
        self._outputs.close()

    def _expect_end(self) -> None:
        """Wait to be told of its end, but not for ever."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
        if self._timer is None:
            reason = f"it does not tell of the end of its kernel {self.pid}"
            self._timer = self._loop.call_later(PATIENCE, self.server.end, reason)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _let_go_of_pidfd(self) -> int | None:
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
        return pidfd
