"""How a kernel that was launched is heard to answer: it is asked until it does, on both channels."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator

    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.portal import Portal
    from cobnut_kernel.protocol.messages import Message

T = TypeVar("T")

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


@asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T]]:
    """Do some work beside what follows, and no longer; that it fails is for who looks at its task."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio would complain of it
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


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
        async with meanwhile(self.heard.wait()) as heard:
            await asyncio.wait({heard, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
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
            async with meanwhile(client.request(MessageType.KERNEL_INFO_REQUEST, {}, channel=channel)):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.heard.wait(), ASK_AGAIN)
                    return


async def _until(ended: asyncio.Task[int | None], work: Coroutine[None, None, None]) -> None:
    """Do some work unless the process ends before."""
    async with meanwhile(work) as task:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not task.cancelled():
        task.result()
