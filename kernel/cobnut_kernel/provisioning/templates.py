"""The fork servers of this process: one for each environment that its kernels need, started before they are needed."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.fork import kernel_arguments, start_variables
from cobnut_kernel.provisioning.command import with_our_python
from cobnut_kernel.provisioning.fork_server import ForkServer
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.per_process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST = 3
"""How many fork servers there are at most: each takes as much memory as a kernel."""

PAUSE = 1.0
"""Seconds between a cold start and that of a fork server for the next one: both at once, on two processors, would make
the first result of a program that starts with its kernel a tenth of a second later."""

BOOT_TIME = 2.0
"""How long a kernel waits for a fork server that is not ready, in seconds, before it is started cold beside it."""

_log = logging.getLogger(__name__)


class Templates(PerProcess):
    """The process's fork servers; they end with the portal, and all methods are for its thread."""

    def __init__(self) -> None:
        Guard.shared()  # it is there first, and so ends after them
        self._is_closed: bool = False
        self._servers: list[ForkServer] = []
        self._hopeless: list[dict[str, str]] = []
        self._wanted: list[dict[str, str]] = []

    @classmethod
    def warm(cls, env: Mapping[str, str] | None = None, *, soon: bool = False) -> None:
        """Have a fork server started for kernels of an environment; from any thread.

        Args:
            env: ours by default.
            soon: do it when what starts now has come up, see `PAUSE`. Otherwise it is done at once, and kernels that
                are launched until it is ready wait for it: two interpreters at once would take longer than one.
        """

        def prepare() -> None:
            (cls.shared().prepare_soon if soon else cls.shared().prepare)(kernel_environment(env))

        if can_fork():
            portal = Portal.shared()
            prepare() if portal.is_here else portal.call_soon(prepare)

    async def find(self, env: Mapping[str, str]) -> ForkServer | None:
        """Return a fork server that can be asked for a kernel of an environment; None where that is to start cold."""
        fitting = [server for server in self._servers if server.fits(env)]
        coming = next((server for server in fitting if server.is_awaited), None)
        if coming is not None and not any(server.is_ready for server in fitting):
            await coming.settle(BOOT_TIME)
        return next((server for server in fitting if server.is_ready and server.fits(env)), None)

    def prepare(self, env: Mapping[str, str], *, is_awaited: bool = True) -> None:
        """Start a fork server for an environment, unless there is one, or one could not run, or there are too many."""
        if self._is_closed:  # a loop that ends still runs the timers that are due
            return
        running = [server for server in self._servers if not server.is_retired]
        if len(running) >= MOST or start_variables(env) in self._hopeless or any(each.fits(env) for each in running):
            return
        try:
            server = ForkServer.start(env, self._on_state, self._on_end)
        except OSError as error:
            _log.debug("No fork server could be started: %s", error)
        else:
            server.is_awaited = is_awaited
            self._servers.append(server)

    def prepare_soon(self, env: Mapping[str, str]) -> None:
        """Do that when what starts now has come up, see `PAUSE`; at once where it is not the first that asks for it."""
        variables = start_variables(env)
        if variables in self._wanted:
            self.prepare(env, is_awaited=False)
        else:
            self._wanted.append(variables)
            asyncio.get_running_loop().call_later(PAUSE, partial(self.prepare, env, is_awaited=False))

    def renew(self, server: ForkServer, env: Mapping[str, str]) -> None:
        """Replace a fork server that is older than what it was made of."""
        server.retire()
        self.prepare(env, is_awaited=False)

    def _release(self) -> None:
        """End them all, and what they have forked or guard."""
        self._is_closed = True
        while self._servers:
            self._servers.pop().close()

    def disown(self) -> None:
        """Let go of them in a forked child."""
        while self._servers:
            self._servers.pop().disown()

    def _on_state(self, server: ForkServer) -> None:
        Guard.shared().hire(server)

    def _on_end(self, server: ForkServer) -> None:
        self._servers.remove(server)
        if server.state is None:
            self._hopeless.append(server.start_variables)
        if (another := next((each for each in self._servers if each.is_ready), None)) is not None:
            Guard.shared().hire(another)
        Guard.shared().dismiss(server)


def can_fork() -> bool:
    """Say whether this system has what a fork server needs."""
    return sys.platform == "linux" and bool(sys.executable)


def is_forkable(cmd: Sequence[str]) -> bool:
    """Say whether a command, of a kernelspec say, is one that a fork could stand for here."""
    return can_fork() and kernel_arguments(with_our_python(cmd), sys.executable) is not None


def kernel_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a kernel that is ours and whose kernelspec has no variables."""
    given = dict(os.environ if env is None else env)
    given.pop("PYTHONEXECUTABLE", None)
    return {**given, "JPY_PARENT_PID": str(os.getpid())}
