"""One cell being run: its outputs as they come, and its reply."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import NoReturn
from weakref import ref

import anyio
from anyio.lowlevel import checkpoint

from cobnut_kernel.client.router import OpenRequest
from cobnut_kernel.client.waiting import SharedFuture, Waiters, again
from cobnut_kernel.protocol.messages import Message

GRACE = 1.0
"""Seconds of silence after which a run with a reply and no idle (or an idle and no reply) is over."""

_BATCH = 50
"""How many messages that are here already are handed out before the loop's other tasks have their turn."""


class Run(AsyncIterator[Message]):
    """What comes back for one `execute_request`: iterate over its iopub messages, await its reply.

    Every iopub message of the cell comes, statuses included, in order, until both reply and idle are here, whichever
    is the first. The iteration may be left and taken up again; what nobody holds any more is dropped.

    Args:
        send: sends the request.
        takes_input: whether the kernel's `input_request`s come too, in their place among the outputs.
        is_behind: says whether outputs are on their way although it is silent: the journal is being read.

    Attributes:
        msg_id: the id of the request, the parent of all that comes.
    """

    def __init__(
        self,
        send: Callable[[OpenRequest], str],
        *,
        takes_input: bool = False,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        self._messages: deque[Message] = deque()
        self._waiters = Waiters()
        self._reply: SharedFuture[Message] = SharedFuture()
        self._request = OpenRequest(self._reply, ref(self), takes_input=takes_input)
        self._is_behind = is_behind
        self._is_given_up: bool = False
        self._taken: int = 0
        self.msg_id: str = send(self._request)

    @property
    def complete(self) -> bool:
        """Whether reply and idle are here, and so every output; False at the end if one of them never came."""
        return self._request.is_finished

    async def reply(self) -> Message:
        """Wait for the `execute_reply`; no need to iterate for it.

        Raises:
            KernelDiedError: the kernel died, or was restarted, before it replied.
            TransportClosedError: the client was stopped before.
        """
        return await self._reply

    async def __anext__(self) -> Message:
        """Wait for the next message of the cell.

        Raises:
            KernelDiedError: the kernel died, or was restarted, and all that it had sent was given out.
            TransportClosedError: the client was stopped, likewise.
        """
        await self._give_way()
        while not self._messages:
            if not self._is_over():
                await self._news()
            elif not self._messages:  # the last may have come between the two questions
                self._end()
        return self._messages.popleft()

    def _is_over(self) -> bool:
        return self._request.is_finished or self._request.failure is not None or self._is_given_up

    def _end(self) -> NoReturn:
        if self._request.failure is not None:
            raise again(self._request.failure)
        raise StopAsyncIteration

    async def _give_way(self) -> None:
        self._taken += 1
        if self._taken % _BATCH == 0:
            await checkpoint()

    async def _news(self) -> None:
        request = self._request
        before = (request.is_replied, request.is_idle)
        with anyio.move_on_after(GRACE if any(before) else inf) as waiting:
            await self._waiters.wait(
                lambda: self._messages or request.failure or before != (request.is_replied, request.is_idle)
            )
        self._is_given_up = waiting.cancelled_caught and not self._messages and not self._is_behind()

    # ── the side of the I/O thread ──────────────────────────────────────────────────────────────────────────────────

    def put(self, message: Message) -> None:
        """Take an iopub message of the cell."""
        self._messages.append(message)

    def wake(self) -> None:
        """Let those who iterate look again."""
        self._waiters.wake()
