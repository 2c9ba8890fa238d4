"""How a kernel that was launched is heard to answer: it is asked until it does, on both channels."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.portal import Portal
    from cobnut_kernel.protocol.messages import Message

ASK_AGAIN = 1.0
"""After how many seconds without an answer a starting kernel is asked again."""


@contextmanager
def own_client(manager: AsyncKernelManager) -> Generator[AsyncKernelClient]:
    """Talk to a manager's kernel for a while, as a party of our own."""
    client = manager.create_client(AsyncKernelClient)
    client.start_channels()
    try:
        yield client
    finally:
        client.stop_channels()


class Answering:
    """Whether one kernel has answered since it was launched.

    Attributes:
        heard: is set when it has.
    """

    def __init__(self, manager: AsyncKernelManager, portal: Portal) -> None:
        self.heard: asyncio.Event = asyncio.Event()
        self._manager = manager
        self._portal = portal

    async def first(self, ended: asyncio.Task[int | None], timeout: float) -> str:
        """Wait for the first answer, or the end; return why there is none, or nothing.

        Args:
            ended: is done when the process has ended.
            timeout: seconds to wait for the answer.
        """
        try:
            await _until(ended, self._answer(timeout))
        except TimeoutError:
            return f"it did not answer within {timeout:g} seconds"
        except Exception as error:
            self._manager.log.exception("Kernel %s cannot be reached", self._manager.kernel_id)
            return f"it cannot be reached: {error}"
        return ""

    async def within(self, ended: asyncio.Task[int | None], seconds: float) -> bool:
        """Say whether the kernel has answered, or does so soon."""
        heard = asyncio.ensure_future(self.heard.wait())
        try:
            await asyncio.wait({heard, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()
        return self.heard.is_set()

    async def _answer(self, timeout: float) -> None:
        """Ask the kernel until it answers us, or anybody: it may be busy with another client's cell already."""

        def hear(_: Channel, message: Message) -> None:
            if message.parent is not None:  # a welcome, or a status of its own, is no answer
                self._portal.call_soon(self.heard.set)

        with own_client(self._manager) as client:
            client.listen(hear)
            await asyncio.wait_for(self._ask(client), timeout)

    async def _ask(self, client: AsyncKernelClient) -> None:
        for channel in cycle((Channel.SHELL, Channel.CONTROL)):  # who is busy on the one may answer on the other
            asking = asyncio.ensure_future(client.request(MessageType.KERNEL_INFO_REQUEST, {}, channel=channel))
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            try:
                await asyncio.wait_for(self.heard.wait(), ASK_AGAIN)
            except TimeoutError:
                continue
            else:
                return
            finally:
                asking.cancel()
                await asyncio.wait({asking})


async def _until(ended: asyncio.Task[int | None], work: Coroutine[None, None, None]) -> None:
    """Do some work unless the process ends before."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled():
        task.result()
