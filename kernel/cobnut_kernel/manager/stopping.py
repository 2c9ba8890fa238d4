"""How the process of a kernel is ended: it is asked first, then told (SIGTERM), then killed, with its whole group."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cobnut_kernel.manager.answering import meanwhile, own_client
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Generator

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.answering import Answering
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

KILL_TIME = 5.0
"""How long a killed process may take to end, in seconds: it may hang in the system."""

ANSWER_TIME = 0.1
"""How long a kernel that is stopped while it starts may take to show that it is up, in seconds."""

HEARING_TIME = 1.0
"""How long a kernel may take to confirm that it was asked to end, in seconds: it has ended by then, or it is busy."""


@contextmanager
def going_on(manager: AsyncKernelManager, purpose: str) -> Generator[None]:
    """Log an error and go on: whatever fails, an end must come to its end."""
    try:
        yield
    except Exception:
        manager.log.exception("Kernel %s: failed to %s", manager.kernel_id, purpose)


class Stopping:
    """The way down of one kernel's processes; every step gives way to the next after half of the time.

    Somebody in a hurry cuts all waiting short, but for that for the kill. A step that fails is logged, and the next
    one follows.
    """

    def __init__(self, manager: AsyncKernelManager, answering: Answering) -> None:
        self._manager = manager
        self._answering = answering
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Go on to the kill, in the stop that runs or in the next one."""
        self._hurried.set()

    def calm(self) -> None:
        """Take the usual time again: the kernel that was in question has ended."""
        self._hurried.clear()

    async def end(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], *, now: bool, restart: bool
    ) -> None:
        """End the process: by kindness first, unless it shall happen now."""
        if now:
            await self._kill(provisioner, ended, restart=restart)
            return
        patience = self._patience(provisioner, None)
        if await self.lets_go(provisioner, restart=restart):
            is_over = await self._ended_within(ended, patience)
        else:
            asks = await self._answering.within(ended, ANSWER_TIME)  # one that is still importing has nothing to save
            is_over = asks and await self._ask_and_wait(provisioner, ended, patience, restart=restart)
        if not is_over:
            await self._insist(provisioner, ended, patience, restart=restart)

    async def lets_go(self, provisioner: KernelProvisionerBase, *, restart: bool) -> bool:
        """Let the provisioner leave its kernel alone, if it wants to keep it; False where that is to end."""
        with going_on(self._manager, "ask whether it is to be kept"):
            if await provisioner.keeps_kernel(restart):
                await provisioner.shutdown_requested(restart)
                return True
        return False

    async def request(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], *, restart: bool
    ) -> None:
        """Ask the kernel to end, and see that it has heard it; do not wait for the end."""
        if await self.lets_go(provisioner, restart=restart):
            return
        with own_client(self._manager) as client:
            await self._interrupt(client, provisioner)
            asked = client.request(MessageType.SHUTDOWN_REQUEST, {"restart": restart}, channel=Channel.CONTROL)
            async with meanwhile(asked) as heard:
                await asyncio.sleep(0)  # with its first step it is sent
                await provisioner.shutdown_requested(restart)
                await asyncio.wait({heard, ended}, timeout=HEARING_TIME, return_when=asyncio.FIRST_COMPLETED)

    async def finish(
        self,
        provisioner: KernelProvisionerBase,
        ended: asyncio.Task[int | None],
        waittime: float | None,
        *,
        restart: bool,
    ) -> None:
        """Wait until a kernel that was asked to end has ended, and end it by force if it has not in time."""
        patience = self._patience(provisioner, waittime)
        if not await self._ended_within(ended, patience):
            await self._insist(provisioner, ended, patience, restart=restart)

    def _patience(self, provisioner: KernelProvisionerBase, waittime: float | None) -> float:
        """Return how long each of the two steps before the kill may take, in seconds."""
        recommended = max(self._manager.shutdown_wait_time if waittime is None else waittime, 0)
        with going_on(self._manager, "ask how long it may take to end"):
            return provisioner.get_shutdown_wait_time(recommended) / 2
        return recommended / 2

    async def _ask_and_wait(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], patience: float, *, restart: bool
    ) -> bool:
        """Interrupt the kernel and ask it to end; False where it has not in time, or is in no state to be asked."""
        with going_on(self._manager, "ask it to end"), own_client(self._manager) as client:
            await self._interrupt(client, provisioner)
            client.shutdown(restart=restart)
            await provisioner.shutdown_requested(restart)
            return await self._ended_within(ended, patience)
        return False

    async def _interrupt(self, client: AsyncKernelClient, provisioner: KernelProvisionerBase) -> None:
        """Interrupt what runs, so that the request is heard."""
        if self._manager.kernel_spec.interrupt_mode == "signal":
            await provisioner.send_signal(signal.SIGINT)
        else:
            client.interrupt()

    async def _insist(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], patience: float, *, restart: bool
    ) -> None:
        with going_on(self._manager, "terminate it"):
            await provisioner.terminate(restart)
        if not await self._ended_within(ended, patience):
            await self._kill(provisioner, ended, restart=restart)

    async def _kill(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], *, restart: bool
    ) -> None:
        with going_on(self._manager, "kill it"):
            await provisioner.kill(restart)
        if not (await asyncio.wait({ended}, timeout=KILL_TIME))[0]:
            self._manager.log.warning("Kernel %s does not end although it was killed", self._manager.kernel_id)
            ended.cancel()  # nobody waits for it any longer

    async def _ended_within(self, ended: asyncio.Task[int | None], seconds: float) -> bool:
        """Wait for the end of the process; not for so long when there is a hurry."""
        async with meanwhile(self._hurried.wait()) as hurry:
            await asyncio.wait({ended, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return ended.done()
