"""The sending end of iopub: every subscriber gets every message, and none can hold up user code or another for long.

Laws of the file (libzmq 4.3.5):

* The socket refuses a message, rather than drop it, when the pipe of any subscriber is full (XPUB_NODROP). It is
  ready for writing all the same (POLLOUT), so a refused message is tried again by a timer.
* A lone subscriber may sleep as long as the journal has room. Among several, one that takes nothing for `PATIENCE`,
  or too little for `LONG_PATIENCE`, is left out: for one message NODROP is off, libzmq drops it where the pipe is
  full, does not count that pipe until half of it was read, and serves the others.
* libzmq learns only at every half of a pipe that something was read, so a slow reader would be taken for a sleeper:
  the system is asked too (`Connections`).
* SNDHWM never changes once there are subscribers: one that goes away meanwhile takes the process with it (SIGSEGV).
  It counts messages, so bytes are counted here.
* A subscription takes effect when the welcome is about to go out, not before (XPUB_MANUAL): so the welcome is what a
  new subscriber hears first, whatever is being sent meanwhile (JEP 65).
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import zmq

from cobnut_kernel.protocol.codec import EMPTY, Codec
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.output.connections import Connections
from cobnut_kernel.runtime.output.journal import Journal, numbered, text_content

if TYPE_CHECKING:
    from cobnut_kernel.runtime.output.outbox import Outgoing
    from cobnut_kernel.transport import Endpoint, IOThread

PIPE = 2000
"""Messages in the pipe of one subscriber: so many may come while it sleeps, among others who read."""

PIPE_BYTES = 16 << 20
"""Bytes that are sent before it is seen to that they were taken."""

PATIENCE = 0.25
"""Seconds that several subscribers wait for one of them that takes nothing."""

LONG_PATIENCE = 1.0
"""Seconds that they wait for one that takes little."""

_RETRY = 0.001, 0.02
"""Seconds until a refused message is tried again: the first time, and at most."""

_TURN = 200
"""How many messages are sent before other sockets have their turn."""


class _Kind(NamedTuple):
    """What the messages of one type have in common; `header` is a template for the id's end and the date."""

    msg_type: str
    topic: bytes
    header: bytes


class Publisher:
    """Sends what the journal has; all of it only in the I/O thread, but for `close`."""

    def __init__(self, thread: IOThread, codec: Codec, journal: Journal) -> None:
        self.waiting: bool = False
        self._thread = thread
        self._codec = codec
        self._journal = journal
        self._endpoint: Endpoint | None = None
        self.connections = Connections()
        self._welcomes: deque[bytes] = deque()
        self._refused: tuple[int, list[bytes]] | None = None
        self._refused_since: float = 0.0
        self._delay: float = 0.0
        self._timed: bool = False
        self._kinds: dict[str, _Kind] = {}
        self._ids = count()
        self._sent_bytes: int = 0

    def open(self, endpoint: Endpoint) -> None:
        """Take the socket, before it is bound."""
        self._endpoint = endpoint

    def close(self) -> None:
        """Send no more."""
        self._endpoint = None

    # ── what is said ────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, message: Outgoing) -> None:
        """Say a message."""
        kind, header = self._header(message.msg_type)
        header = message.header or header
        parent, metadata, content, buffers = message.parent, message.metadata, message.content, message.buffers
        number = self._journal.append(kind.msg_type, header, parent, metadata, content, buffers)
        if not self.waiting:
            signed = self._codec.sign((header, parent, numbered(metadata, number, number), content))
            self._send_or_wait(number, [kind.topic, *signed, *buffers])

    def publish_text(self, parent: bytes, stream: str, text: str) -> None:
        """Say text of a stream."""
        kind, header = self._header(MessageType.STREAM)
        number = self._journal.append_text(header, parent, stream, text)
        if not self.waiting:
            parts = header, parent, numbered(EMPTY, number, number), text_content(stream, text)
            self._send_or_wait(number, [kind.topic, *self._codec.sign(parts)])

    # ── who hears it ────────────────────────────────────────────────────────────────────────────────────────────────

    def on_subscription(self, frames: list[bytes]) -> None:
        """Take a subscription and welcome the subscriber with the topic it asked for, or end a subscription.

        Whatever else a subscriber sends is ignored, a topic that is no text among it.
        """
        kind, subscription = frames[0][:1], frames[0][1:]
        if self._endpoint is None or kind not in (b"\x00", b"\x01") or not _is_text(subscription):
            return
        self._endpoint.set_option(zmq.SUBSCRIBE if kind == b"\x01" else zmq.UNSUBSCRIBE, subscription)
        if kind == b"\x01":
            self._welcomes.append(subscription)
            if not self.waiting:
                self._wait()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send_waiting(self) -> bool:
        """Send what waits; True where nothing is left that could be sent, otherwise it goes on by itself."""
        for _ in range(_TURN):
            if self._welcomes:
                sent = self._send_welcome()
            elif self._refused is not None or self._take_next():
                sent = self._send_refused()
            else:
                self.waiting = False
                return True
            if not sent:
                break
        if self._endpoint is None:
            return True
        if not self._timed:
            self._timed = True
            self._thread.call_later(self._delay, self._try_again)
        return False

    def count_left(self) -> tuple[int, int]:
        """Return how many messages are not sent, and how many bytes the subscribers have not taken."""
        self.connections.look(monotonic())
        return self._journal.last - self._journal.sent if self._endpoint else 0, self.connections.unread

    def _try_again(self) -> None:
        self._timed = False
        if self.waiting:
            self.send_waiting()

    def _wait(self) -> None:
        self.waiting = True
        self.send_waiting()

    def _send_or_wait(self, number: int, frames: list[bytes]) -> None:
        if self._send(frames):
            self._journal.sent = number
        else:
            self._refused = number, frames
            self._wait()

    def _take_next(self) -> bool:
        entry = self._journal.unsent()
        if entry is None:
            return False
        parts = entry.header, entry.parent, entry.metadata_json(), entry.content_json()
        topic = self._kind(entry.msg_type).topic
        self._refused = entry.last, [topic, *self._codec.sign(parts), *entry.buffers]
        return True

    def _send_refused(self) -> bool:
        assert self._refused is not None
        number, frames = self._refused
        if not self._send(frames):
            return False
        self._journal.sent = number
        self._refused = None
        return True

    def _send_welcome(self) -> bool:
        """Welcome a subscriber, and say which number was the last before it listened."""
        subscription = self._welcomes[0]
        kind, header = self._header(MessageType.IOPUB_WELCOME)
        content = dumps({"subscription": subscription.decode()})
        parts = header, EMPTY, b'{"last_seq":%d}' % self._journal.sent, content
        if not self._send([subscription or kind.topic, *self._codec.sign(parts)]):
            return False
        self._welcomes.popleft()
        return True

    def _send(self, frames: list[bytes]) -> bool:
        endpoint = self._endpoint
        if endpoint is None:
            return False
        if (self._sent_bytes < PIPE_BYTES and endpoint.try_send(frames)) or self._insist(endpoint, frames):
            self._sent_bytes += len(frames[6]) if len(frames) == 7 else sum(map(len, frames))
            self._refused_since = self._delay = 0.0
            return True
        self._delay = min(2 * self._delay, _RETRY[1]) or _RETRY[0]
        return False

    def _insist(self, endpoint: Endpoint, frames: list[bytes]) -> bool:
        """Look who has taken what; then send a message that was refused, or would be too much, if it is time."""
        now = monotonic()
        self._refused_since = self._refused_since or now
        self.connections.look(now)
        if not self.connections.unread:
            self._sent_bytes = 0
            return endpoint.try_send(frames)
        waited, enough = now - self._refused_since, now - PATIENCE
        if len(self.connections) < 2 or waited < PATIENCE:
            return False
        return (waited >= LONG_PATIENCE or self.connections.asleep(enough)) and self._send_past(
            endpoint, frames, enough
        )

    def _send_past(self, endpoint: Endpoint, frames: list[bytes], enough: float) -> bool:
        """Send a message to those subscribers who have room for it."""
        self.connections.leave_out(enough)
        self._journal.note_gap()
        self._sent_bytes = 0
        endpoint.set_option(zmq.XPUB_NODROP, 0)
        try:
            return endpoint.try_send(frames)
        finally:
            endpoint.set_option(zmq.XPUB_NODROP, 1)

    def _header(self, msg_type: str) -> tuple[_Kind, bytes]:
        """Write the header of a new message: only its id and the time are not those of its kind."""
        kind = self._kinds.get(msg_type) or self._kind(msg_type)
        return kind, kind.header % (next(self._ids), datetime.now(UTC).isoformat().encode())

    def _kind(self, msg_type: str) -> _Kind:
        kind = self._kinds.get(msg_type)
        if kind is None:
            header, number, date = self._codec.header(msg_type), token_hex(8), token_hex(8)
            fields = {**header.as_dict(), "msg_id": f"{header.msg_id}_{number}", "date": date}
            template = dumps(fields).replace(b"%", b"%%")
            template = template.replace(number.encode(), b"%d").replace(date.encode(), b"%b")
            topic = f"kernel.{self._codec.session}.{msg_type}".encode()
            kind = self._kinds[msg_type] = _Kind(header.msg_type, topic, template)
        return kind


def _is_text(topic: bytes) -> bool:
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True
