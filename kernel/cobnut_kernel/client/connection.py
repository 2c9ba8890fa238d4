"""A client's connection to its kernel: sockets, whoever puts in order what comes, and whoever gives it on."""

from __future__ import annotations

from collections import deque
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING

from cobnut_kernel.client.comms import CommListeners
from cobnut_kernel.client.journal import PAGE, JournalReader
from cobnut_kernel.client.router import RESTARTED, OpenRequest, Router
from cobnut_kernel.client.sockets import ClientSockets
from cobnut_kernel.errors import ConnectionFileError, KernelDiedError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from logging import Logger

    from cobnut_kernel.client.asking import Ask, Content
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.session import Session

LAST_WORDS = 0.05
"""Seconds in which what a dead kernel sent still arrives, before those who wait for more are told."""

LAST_READERS = 2.0
"""Seconds after which those are told who read a channel. Programs of the field look once a second whether the kernel is
alive while they read, and then say in their own words that it is not: they must not be overtaken."""

CHANNELS = (Channel.SHELL, Channel.IOPUB, Channel.STDIN, Channel.CONTROL)
"""The channels that messages come on; the heartbeat has a socket of its own."""


class Connection:
    """The party that a client is: it sends, and gives on what comes; from any thread, without waiting.

    Attributes:
        codec: signs and checks; its session is the party's id.
        router: who gets what.
        sockets: the ends of the channels.
    """

    def __init__(self, info: ConnectionInfo | None, log: Logger) -> None:
        self._info: ConnectionInfo | None = info
        self.codec = Codec(info.key if info is not None else b"")
        self.router = Router(log)
        self.sockets = ClientSockets(self._receive, log)
        self.comms = CommListeners(log)
        self.journal = JournalReader(self)
        self._turning = RLock()  # one thread closes while another turns to the next kernel: that must not open again
        self._openings = count(1)
        self._opening: int = 0
        self._channels: Collection[Channel] = CHANNELS
        self._session: Session | None = None
        self._is_ready: bool = False
        self._early: deque[tuple[Channel, Message]] = deque()
        for queue in self.router.queues.values():
            queue.sender = self.send_dict

    @property
    def info(self) -> ConnectionInfo:
        """Where the kernel is.

        Raises:
            ConnectionFileError: nobody has said it yet.
        """
        if self._info is None:
            raise ConnectionFileError(
                "The client has no connection: give it connection_info or connection_file, or load one."
            )
        return self._info

    @property
    def session(self) -> Session:
        """The party that we are, as the field's programs use it."""
        from cobnut_kernel.session import Session

        if self._session is None or self._session.codec is not self.codec:
            self._session = Session(self.codec)
        return self._session

    def load(self, info: ConnectionInfo) -> None:
        """Turn to a kernel, before the channels are open.

        Raises:
            ConnectionFileError: they are open.
        """
        if self.sockets.are_open:
            raise ConnectionFileError(
                "The channels are open: call stop_channels() before another connection is loaded."
            )
        if self._info is None or info.key != self._info.key:
            self.codec = Codec(info.key)
        self._info = info

    def open(self, channels: Collection[Channel] = CHANNELS) -> None:
        """Open the sockets, where none is.

        Raises:
            ConnectionFileError: the kernel's addresses cannot be used.
        """
        with self._turning:
            if not self.sockets.are_open:
                self._channels = channels
                self._open(self.info)
                self.router.open()

    def _open(self, info: ConnectionInfo) -> None:
        """Open the sockets; what comes before the last of them is open waits, for it may have to be answered."""
        self._opening = next(self._openings)
        self._is_ready = False
        self._early.clear()
        self.sockets.open(info, self.codec, self._channels)
        self._is_ready = True
        IOThread.shared().call_soon(self._receive_early)

    def close(self) -> None:
        """Close the sockets, and tell all who wait."""
        with self._turning:
            self.sockets.close()
            self.journal.close()
            self.router.close(TransportClosedError("The client was stopped: call start_channels() and ask again."))

    # ── the kernel's life ───────────────────────────────────────────────────────────────────────────────────────────

    def kernel_died(self, reason: str) -> None:
        """Tell all who wait that the process has ended; what it sent before is still given on."""
        self.router.kernel_died(KernelDiedError(f"The kernel has ended: {reason}. Ask again when there is one."))
        if self.sockets.are_open:
            self.call_later(LAST_WORDS, self._settle)
            self.call_later(LAST_READERS, self.router.fail_queues)
        else:
            self._settle()
            self.router.fail_queues()

    def _settle(self) -> None:
        self.journal.release()
        self.router.settle()

    def kernel_started(self, connection_info: ConnectionInfo | None) -> None:
        """Turn to the kernel that takes the former one's place.

        Raises:
            ConnectionFileError: its addresses cannot be used.
        """
        info = connection_info or self.info
        if self.router.has_heard_successor and info == self._info:
            return  # the kernel was quicker than the news of it, and may have been asked something already
        self.router.kernel_died(KernelDiedError(RESTARTED))
        self.router.settle()
        with self._turning:
            was_open = self.sockets.are_open
            self.sockets.close()
            self.journal.close()
            self.load(info)
            if was_open:
                self._open(info)
        self.router.kernel_started()

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, ask: Ask, request: OpenRequest | None = None, parent: Header | None = None) -> str:
        """Send a message, and expect its answers where it is a request; returns its id.

        Raises:
            KernelDiedError: the kernel is known to be dead.
            TransportClosedError: the channel is not open.
            TypeError: the message has no JSON form.
        """
        message = self.codec.message(
            ask.msg_type,
            ask.content,
            parent=parent,
            metadata=ask.metadata,
            buffers=ask.buffers,
            subshell_id=ask.subshell_id,
        )
        frames = self.codec.encode(message)
        if request is not None:
            self.router.expect(message.msg_id, request)  # before it is sent: the reply may be quicker than we
        try:
            self.sockets.send(ask.channel, frames)
        except BaseException:
            self.router.forget(message.msg_id)
            raise
        return message.msg_id

    def send_dict(self, channel: Channel, message: Content) -> None:
        """Send a message that our session has made.

        Raises:
            TransportClosedError: the channel is not open.
            TypeError: the message has no JSON form.
        """
        self.sockets.send(channel, self.session.frames(message))

    def _receive(self, channel: Channel, message: Message) -> None:
        if self._early or not self._is_ready:
            self._early.append((channel, message))
        else:
            self.journal.deliver(channel, message)

    def _receive_early(self) -> None:
        while self._early and self._is_ready:
            self.journal.deliver(*self._early.popleft())

    # ── for the journal ─────────────────────────────────────────────────────────────────────────────────────────────

    def give(self, channel: Channel, message: Message) -> None:
        """Give a message on to whom it belongs."""
        self.router.deliver(channel, message)
        self.comms.hear(channel, message)

    def give_gap(self, message: Message) -> None:
        """Give on that messages are lost."""
        self.router.deliver_gap(message)

    def ask_journal(self, since: int, until: int | None) -> str:
        """Ask for what was missed; the reply is the journal's reader's alone, no request of anybody waits for it."""
        content = {"since": since, "limit": PAGE, **({} if until is None else {"until": until})}
        message = self.codec.message(MessageType.JOURNAL_REQUEST, content)
        self.sockets.send(Channel.CONTROL, self.codec.encode(message))
        return message.msg_id

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back in the I/O thread, if the sockets are not closed meanwhile."""
        opening = self._opening
        self.sockets.call_later(
            seconds, lambda: callback() if opening == self._opening and self.sockets.are_open else None
        )

    def has_open_requests(self) -> bool:
        """Say whether any request expects answers."""
        return self.router.has_open_requests()

    def lacks_idle(self, msg_id: str) -> bool:
        """Say whether a request has its reply, and not its idle."""
        return self.router.lacks_idle(msg_id)
