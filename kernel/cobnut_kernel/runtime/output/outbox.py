"""What the kernel says: from any thread, without waiting, in the order it was said."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cobnut_kernel.protocol.codec import EMPTY, Codec
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.output.journal import Journal
from cobnut_kernel.runtime.output.publisher import Publisher

if TYPE_CHECKING:
    from cobnut_kernel.transport import Endpoint, IOThread

PACE = 0.02
"""Seconds between two messages of one stream while it keeps writing."""

FIRST = 0.001
"""Seconds that the first text waits for more; a line without its end, which `print` writes by itself, waits for `PACE`
besides: a thread may lose the processor between the two."""

GATHER = 0.004
"""Seconds that displays wait for more of their kind, when some have just gone: waking the I/O thread takes long."""

PATIENT = frozenset({MessageType.DISPLAY_DATA, MessageType.UPDATE_DISPLAY_DATA})
"""What is gathered so."""

CROWD = 20_000
"""How many texts may wait for the I/O thread before a writer waits for it."""

CROWD_OF_MESSAGES = 2000
"""How many items may wait for it before one who sends a message waits."""

LARGE = 1 << 20
"""Characters in the largest text that goes out as one message; who writes as much at once waits for it to go."""

_TORN = 0.25
"""Seconds that other threads wait for the end of a line, whose writer may be waiting for the interpreter."""

FAREWELL = 2.0
"""Seconds that `close` gives subscribers who read to take what is left; a manager waits 2.5 s before it signals."""

_STANDSTILL = 0.5
"""Seconds after which `close` gives up on subscribers who take nothing: a slow reader is seen at every 500 messages."""

_LOOKS = 10
"""How often in a row nothing must be left before a subscriber who had to be waited for has taken all."""


class Outgoing(NamedTuple):
    """A message of the kernel whose content is JSON already: what user code changes later is not in it."""

    channel: Channel
    msg_type: str
    content: bytes
    parent: bytes = EMPTY
    metadata: bytes = EMPTY
    identities: tuple[bytes, ...] = ()
    buffers: tuple[bytes, ...] = ()
    header: bytes = b""
    """The header as JSON, where it was made before: who sends it wants to know its id."""


@dataclass(slots=True, eq=False)
class _Text:
    """What one cell has written to one of its streams, not yet a message.

    `print` writes its line in parts, between which another thread may write: what that one says is put `aside` until
    the line of the first `writer` has its end, which is waited for `since` then. `last` is the last part sent; while
    it `is_new`, nobody has looked at it yet.
    """

    stream: str
    writer: int
    pieces: list[str] = field(default_factory=list[str])
    size: int = 0
    last: str = ""
    aside: deque[tuple[str, str, int]] = field(default_factory=deque[tuple[str, str, int]])
    since: float = 0.0
    is_new: bool = True

    @property
    def is_open(self) -> bool:
        """Whether a thread has begun a line and not ended it."""
        return self.writer != 0 and not (self.pieces[-1] if self.pieces else self.last).endswith("\n")

    def goes_on(self, stream: str, text: str) -> bool:
        """Say whether this is how `print` goes on: by its separator, its end, or what comes after a separator."""
        last = self.pieces[-1] if self.pieces else self.last
        return stream == self.stream and (text in {"\n", " "} or last == " ")

    def add(self, text: str, writer: int) -> None:
        """Add a part."""
        self.pieces.append(text)
        self.size += len(text)
        self.writer = writer
        self.since = 0.0

    def take(self) -> str:
        """Take out all parts."""
        text = "".join(self.pieces)
        if text:
            self.last, self.pieces, self.size = self.pieces[-1], [], 0
        return text


class Outbox:
    """All that the kernel says, in the order it was said, from any thread and without waiting.

    What a cell writes to one stream becomes one message until anything else is said for that cell, or the time is up.
    A writer who is faster than the I/O thread waits for that, never for a reader: what readers do not take is in the
    journal.
    """

    def __init__(self, thread: IOThread, codec: Codec, journal: Journal | None = None) -> None:
        self.codec = codec
        self.journal: Journal = journal or Journal()
        self.publisher = Publisher(thread, codec, self.journal)
        self.endpoints: dict[Channel, Endpoint] = {}
        self._thread = thread
        self._items: deque[Outgoing | tuple[bytes, str, str, int]] = deque()
        self._asked: bool = False
        self._pacing: bool = False
        self._gathering: bool = False
        self._shows: bool = False
        self._texts: dict[bytes, _Text] = {}
        self._closed: bool = False

    def post(self, message: Outgoing, *, soon: bool = True) -> None:
        """Send a message; with `soon` off it may wait for the next one, and in a flood of displays a moment."""
        if self._closed:
            return
        self._items.append(message)
        shows = message.msg_type in PATIENT
        if shows and self._gathering:
            soon = False
        if soon and not self._asked:
            self._asked = True
            self._shows = shows
            self._thread.call_soon(self._drain)
        if len(message.content) > LARGE:
            self._wait_for(0)
        elif len(self._items) > CROWD_OF_MESSAGES:
            self._wait_for(CROWD_OF_MESSAGES // 2)

    def write(self, parent: bytes, stream: str, text: str, writer: int = 0) -> None:
        """Send text of a stream, within `FIRST` or, while text flows, within `PACE`; a line without its end later.

        `writer` is the thread: the lines of several are not torn by each other, as far as they have an end in time.
        """
        if self._closed:
            return
        self._items.append((parent, stream, text, writer))
        if not self._pacing:
            self._pacing = True
            self._thread.call_soon(self._thread.call_later, FIRST, self._keep_pace)
        if len(text) > LARGE:
            self._wait_for(0)
        elif len(self._items) > CROWD:
            self._wait_for(CROWD // 2)

    def _wait_for(self, left: int) -> None:
        """Wait until the I/O thread has taken all but so many items; it need not keep its pace for that."""
        self._thread.call_soon(self._drain)
        while len(self._items) > left and not self._thread.is_current():
            if self._closed:
                self._items.clear()
            time.sleep(0.001)

    def close(self) -> None:
        """Send what was said until now, wait for that, and forget the journal; what is said later is dropped."""
        if self.endpoints and not self._closed:
            self._take_leave()
        self._closed = True
        self.publisher.close()
        self.journal.close()

    def abandon(self) -> None:
        """Drop what is said from now on, in a forked child: sockets and journal are its parent's."""
        self._closed = True
        self.journal.forget()

    def _take_leave(self) -> None:
        """Send what is left, as long as it is taken.

        Who has waited for a subscriber looks again when all seems to be taken: libzmq may just have more for it.
        """
        now = time.monotonic()
        end, patience, before, looks = now + FAREWELL, now + _STANDSTILL, (-1, -1), 1
        while looks and time.monotonic() < min(end, patience):
            left = self._thread._call(self._what_is_left)
            if left != before:
                before, patience = left, time.monotonic() + _STANDSTILL
            looks = _LOOKS if left != (0, 0) else looks - 1
            if looks:
                time.sleep(0.002)

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def _what_is_left(self) -> tuple[int, int]:
        """Send what is there; return how many messages are not sent, and bytes not taken: libzmq may lose those."""
        self._send_all()
        for parent in list(self._texts):
            self._send_text(parent)
        self.publisher.send_waiting()
        return self.publisher.count_left()

    def _drain(self) -> None:
        self._asked = False
        if self._shows and not self._gathering:
            self._gathering, self._shows = True, False
            self._thread.call_later(GATHER, self._gather)
        self._send_all()

    def _gather(self) -> None:
        """Send what has come since the last time, until nothing comes any more."""
        self._gathering = bool(self._items)
        self._send_all()
        if self._items:  # posted before the first line was done: whoever did so saw us gathering and did not ask
            self._gathering = True
        if self._gathering:
            self._thread.call_later(GATHER, self._gather)

    def _keep_pace(self) -> None:
        self._pacing = self._send_all()
        if self._items:  # written before the line above was done: its writer saw us pacing and did not ask
            self._pacing = True
        if self._pacing:
            self._thread.call_later(PACE, self._keep_pace)

    def _send_all(self) -> bool:
        """Send what is there; True if text was in it, or waits for subscribers with room."""
        wrote = False
        for _ in range(len(self._items)):  # what is written meanwhile waits for the next turn
            item = self._items.popleft()
            if isinstance(item, Outgoing):
                if self._texts:
                    self._send_text(item.parent)
                self._send(item)
                continue
            parent, stream, text, writer = item
            held = self._texts.get(parent)
            if held is None or held.writer != writer or held.stream != stream or held.aside or held.size > LARGE:
                self._add_text(parent, stream, text, writer)
            else:
                held.add(text, writer)
            wrote = True
        if self._texts and not self.publisher.waiting:
            self._send_texts()
        return wrote or bool(self._texts)

    def _add_text(self, parent: bytes, stream: str, text: str, writer: int) -> None:
        held = self._texts.get(parent)
        if held is None:
            held = self._texts[parent] = _Text(stream, writer)
        elif held.writer != writer != 0 and held.is_open:
            held.since = held.since or time.monotonic()
            held.aside.append((stream, text, writer))
            return
        elif held.aside and not held.goes_on(stream, text):
            self._bring_back(parent, held)
            self._add_text(parent, stream, text, writer)
            return
        elif held.stream != stream or held.size > LARGE:
            self._publish(parent, held)
            held.stream = stream
        held.add(text, writer)
        if held.aside:
            if text.endswith("\n"):
                self._bring_back(parent, held)
            else:
                held.since = time.monotonic()

    def _bring_back(self, parent: bytes, held: _Text) -> None:
        """Add what was put aside: the line that was not to be torn has its end, or is no line of a `print`."""
        aside, held.aside = held.aside, deque()
        held.writer = aside[0][2]
        for item in aside:
            self._add_text(parent, *item)

    def _send_texts(self) -> None:
        """Send what is held, but for what waits for the end of its line or another thread's, and not for too long."""
        now = time.monotonic()
        for parent, held in list(self._texts.items()):
            was_new, held.is_new = held.is_new, False
            if was_new and held.is_open:
                continue
            self._publish(parent, held)
            held.since = held.since or now
            if not held.is_open or now - held.since > _TORN:
                self._send_text(parent)

    def _send_text(self, parent: bytes) -> None:
        """Send all that is held of a cell, also what was put aside."""
        held = self._texts.get(parent)
        while held is not None:
            self._publish(parent, held)
            if not held.aside:
                del self._texts[parent]
                return
            self._bring_back(parent, held)

    def _publish(self, parent: bytes, held: _Text) -> None:
        text = held.take()
        if text and not self._closed:
            self.publisher.publish_text(parent, held.stream, text)

    def _send(self, message: Outgoing) -> None:
        if self._closed:
            return
        if message.channel is Channel.IOPUB:
            self.publisher.publish(message)
            return
        header = message.header or dumps(self.codec.header(message.msg_type).as_dict())
        signed = self.codec.sign((header, message.parent, message.metadata, message.content))
        self.endpoints[message.channel].send([*message.identities, *signed, *message.buffers])
