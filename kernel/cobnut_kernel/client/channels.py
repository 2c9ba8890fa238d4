"""What came on a channel and belongs to no `run` or `request`: kept until it is read with `get_msg`."""

from __future__ import annotations

from collections import deque
from itertools import count
from math import inf
from queue import Empty
from threading import Lock
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from cobnut_kernel.client.waiting import Waiters, again
from cobnut_kernel.errors import TransportClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.messages import Channel, Message

UNREAD_LIMIT = 1000
"""How many messages that answer nothing of ours a channel keeps unread; the oldest go first, and are counted."""


class ChannelQueue:
    """The unread messages of one channel, in the order in which they came.

    Answers to open requests of `execute` and its siblings are kept until they are read, however many they are;
    of all others (other clients' outputs, a thread's prints after its cell has ended) the last `UNREAD_LIMIT`.

    Attributes:
        dropped: how many messages were dropped unread.
        was_read: whether anybody has looked into this queue yet.
        sender: sends a message on this channel; None where nobody can.
    """

    def __init__(self, channel: Channel, limit: int = UNREAD_LIMIT) -> None:
        self.channel = channel
        self.limit = limit
        self.dropped: int = 0
        self.was_read: bool = False
        self.sender: Callable[[Channel, dict[str, Any]], None] | None = None
        self._lock = Lock()
        self._order = count()
        self._answers: deque[tuple[int, Message]] = deque()
        self._others: deque[tuple[int, Message]] = deque()
        self._waiters = Waiters()
        self._is_open: bool = False
        self._failures: int = 0
        self._error: Exception = TransportClosedError(f"The {channel} channel is not open: call start_channels().")

    # ── the side of the I/O thread ──────────────────────────────────────────────────────────────────────────────────

    def put(self, message: Message, *, is_answer: bool) -> None:
        """Add a message; from any thread, at once."""
        with self._lock:
            if is_answer:
                self._answers.append((next(self._order), message))
            else:
                self._others.append((next(self._order), message))
                if len(self._others) > self.limit:
                    self._others.popleft()
                    self.dropped += 1
        self._waiters.wake()

    def open(self) -> None:
        """Let readers wait for messages."""
        self._is_open = True

    def fail(self, error: Exception) -> None:
        """End the wait of all readers; new ones get what is here, and then the error, until `open` is called."""
        self._is_open = False
        self._error = error
        self._failures += 1
        self._waiters.wake()

    # ── the side of the user ──────────────────────────────────────────────────────────────────────────────────────

    def is_alive(self) -> bool:
        """Tell whether the channel is open."""
        return self._is_open

    def send(self, msg: dict[str, Any]) -> None:
        """Send a message as the field's dict, made by the client's `session`; replies are read from this channel.

        Raises:
            TransportClosedError: the channel is not open.
            TypeError: the message has no JSON form.
        """
        if self.sender is None:
            raise again(self._error)
        self.sender(self.channel, msg)

    def msg_ready(self) -> bool:
        """Tell whether `get_msg` would return at once."""
        self.was_read = True
        return bool(self._answers or self._others)

    async def get_msg(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the next message as the field's dict; the headers' dates are datetimes.

        Args:
            timeout: how many seconds to wait; None waits as long as kernel and channel live.

        Raises:
            queue.Empty: nothing came in time.
            KernelDiedError: nothing is here, and the kernel is dead.
            TransportClosedError: nothing is here, and the channel is closed.
        """
        self.was_read = True
        failures = self._failures
        await checkpoint()  # a flood must not starve the loop's other tasks
        with anyio.move_on_after(inf if timeout is None else timeout):
            while (message := self._take()) is None:
                await self._arrival(failures)
            return message.as_dict()
        raise Empty

    async def get_msgs(self) -> list[dict[str, Any]]:
        """Return all messages that are here; waits for none."""
        await checkpoint()
        self.was_read = True
        messages: list[dict[str, Any]] = []
        while (message := self._take()) is not None:
            messages.append(message.as_dict())
        return messages

    async def _arrival(self, failures: int) -> None:
        if not self._is_open or self._failures != failures:
            raise again(self._error)
        await self._waiters.wait(lambda: self.msg_ready() or self._failures != failures)

    def _take(self) -> Message | None:
        with self._lock:
            waiting = [queue for queue in (self._answers, self._others) if queue]
            return min(waiting, key=lambda queue: queue[0][0]).popleft()[1] if waiting else None
