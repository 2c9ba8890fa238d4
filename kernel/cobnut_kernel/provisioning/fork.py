"""Kernels of our own make that a fork server has ready, and that are started cold wherever there is any doubt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cobnut_kernel.protocol.fork import RefusalReason, kernel_arguments
from cobnut_kernel.provisioning.fork_server import ForkedProcess
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner
from cobnut_kernel.provisioning.templates import Templates, is_forkable

if TYPE_CHECKING:
    from cobnut_kernel.provisioning.process import KernelProcess


class ForkProvisioner(LocalProvisioner):
    """A kernel that a fork server forks, in some ten milliseconds; else one that is started as any other.

    It is started cold where the command is not that of our own kernel and interpreter, where `subprocess.Popen` was
    given something to do, where the kernel is to outlive us, where its environment is not that of a fork server, and
    where there is none yet. Then one is started, for the next kernel and for the restart of this one.
    """

    async def _spawn(self, cmd: list[str], env: dict[str, str], cwd: str, options: dict[str, Any]) -> KernelProcess:
        if is_forkable(cmd) and not options and not self.independent:
            process = await self._fork(cmd, env, cwd)
            if process is not None:
                return process
        return await super()._spawn(cmd, env, cwd, options)

    async def _fork(self, cmd: list[str], env: dict[str, str], cwd: str) -> ForkedProcess | None:
        """Return a forked kernel, or None where it is to be started cold."""
        templates = Templates.shared()
        server = await templates.find(env)
        if server is None:
            templates.prepare_soon(env)
            return None
        answer = await server.fork(kernel_arguments(cmd, sys.executable) or (), env, cwd, self._files())
        if isinstance(answer, ForkedProcess):
            return answer
        self.log.debug("Kernel %s is started cold, it was not forked: %s", self.kernel_id, answer.text)
        if answer.reason is RefusalReason.STALE:
            templates.renew(server, env)
        return None

    def _guard(self, process: KernelProcess) -> None:
        if isinstance(process, ForkedProcess) and not process.server.is_gone:
            Guard.shared().add(process.identity, self._files(), keeper=process.server)
        else:
            super()._guard(process)
