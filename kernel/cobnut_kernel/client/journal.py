"""iopub without gaps: what a client has missed is asked for, and given on in its place.

Our kernel numbers what it says on iopub (`seq` in the metadata; `first_seq` too where one message stands for
several), tells a new subscriber the number before (`last_seq` in the welcome's), and keeps a journal. A client that
sees a number left out holds back what comes after it, asks `journal_request` on control for what is between, and
gives on both in order, each message once: to the same queues, runs and listeners.

What the kernel does not have any more is not passed over in silence: in its place comes a message of the type
`cobnut.gap` on iopub, made here, with the content `{"first", "last", "count", "reason"}`: numbers, and a sentence. Runs
that are under way get it too: what is lost may have been theirs.

Kernels without a journal are untouched. A kernel is known to have one by its welcome or its `supported_features`.

Where nothing comes any more there is no number to miss. Then the client asks by itself: when a reply has come and its
idle has not, and when its own I/O thread has stood still while requests were open.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from cobnut_kernel.errors import CobnutError, MalformedMessageError
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GAP = "cobnut.gap"
"""The type of the message that stands where messages are lost."""

FEATURE = "cobnut.journal"
"""How a kernel that has a journal says so, in the `supported_features` of its kernel_info."""

PAGE = 256 << 10
"""Bytes to ask for at once: not so many that the first of them are waited for on a slow line."""

PATIENCE = 10.0
"""Seconds that a kernel may take for a page, before what was held back is given on without."""

TAIL = 0.2
"""Seconds after a reply in which its idle is not missed yet."""

TAIL_TRIES = 6
"""How often in a row a kernel is asked for a tail that it does not have; each time after twice as long."""

PULSE = 0.5
"""Seconds between two looks at the clock, while requests are open."""

STANDSTILL = 0.2
"""How late such a look may be: kernels leave out a subscriber that takes nothing for 0.25 s."""

_ENDED = "The kernel has ended, or its channels were closed, before it could tell them again."
_SILENT = f"The kernel did not tell them again within {PATIENCE:g} seconds."
_GONE = "The kernel does not have them any more."


# ── deciding ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Numbers(NamedTuple):
    """The numbers that a message stands for."""

    first: int
    last: int

    @classmethod
    def of(cls, message: Message) -> Numbers | None:
        """Read the numbers of a message; None where it has none, or they make no sense."""
        last = whole(message.metadata.get("seq"))
        first = whole(message.metadata.get("first_seq", last))
        return None if last is None or first is None or not 0 < first <= last else cls(first, last)


class Place(Enum):
    """Where a message stands behind those that were given on."""

    NEXT = auto()
    SEEN = auto()
    AHEAD = auto()
    """There are others in between."""
    ACROSS = auto()
    """A part of it was seen."""


@dataclass(slots=True)
class Sequence:
    """How far the messages of one kernel were given on.

    Attributes:
        session: the kernel's.
        last: the number of the last one; None before the first.
        known: the last number that is known to exist.
    """

    session: str
    last: int | None = None
    known: int = 0

    def place(self, numbers: Numbers) -> Place:
        """Say where a message stands."""
        if self.last is None or numbers.first == self.last + 1:
            return Place.NEXT
        if numbers.first > self.last:
            return Place.AHEAD
        return Place.ACROSS if numbers.last > self.last else Place.SEEN


class Cut(NamedTuple):
    """Numbers that a kernel has not any more, and why."""

    first: int
    last: int
    reason: str


class Page(NamedTuple):
    """What a journal_reply says.

    Attributes:
        messages: what is there, in order.
        is_last: whether all that was asked for is here.
        last: the number of the last message that there was when the kernel wrote this.
        cuts: what is gone.
    """

    messages: list[Message]
    is_last: bool
    last: int
    cuts: list[Cut]

    @classmethod
    def of(cls, reply: Message) -> Page:
        """Read a reply.

        Raises:
            MalformedMessageError: it is an error, or no page.
        """
        content = reply.content
        if content.get("status") != "ok":
            raise MalformedMessageError(f"The kernel has no journal: {content.get('evalue')}")
        last = whole(content.get("last"))
        if last is None:
            raise MalformedMessageError("The page of the journal has no 'last'.")
        cuts = [_cut(cut) for cut in _dicts(content.get("cut"))]
        return cls(_messages(reply), content.get("next") is None, last, cuts)

    def reason(self, first: int, last: int) -> str:
        """Say why some numbers are missing."""
        reasons = [cut.reason for cut in self.cuts if cut.first <= last and first <= cut.last and cut.reason]
        return " ".join(dict.fromkeys(reasons)) or _GONE


def whole(value: object) -> int | None:
    """Return a whole number from 0; None for anything else: what a kernel says may be anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def gap(session: str, first: int, last: int, reason: str) -> Message:
    """Make the message that stands for lost ones."""
    header = Header(f"{session}_gap_{first}_{last}", GAP, session)
    content = {"first": first, "last": last, "count": last - first + 1, "reason": reason}
    return Message(header, None, {}, content)


def _messages(reply: Message) -> list[Message]:
    messages: list[Message] = []
    buffers = deque(reply.buffers)
    for fields in _dicts(reply.content.get("messages")):
        count = whole(fields.get("buffers")) or 0
        own = tuple(buffers.popleft() for _ in range(min(count, len(buffers))))
        parent = _dict(fields.get("parent_header"))
        messages.append(
            Message(
                Header.from_dict(_dict(fields.get("header"))),
                Header.from_dict({"msg_type": "", **parent}) if parent.get("msg_id") else None,
                _dict(fields.get("metadata")),
                _dict(fields.get("content")),
                own,
            )
        )
    return messages


def _cut(fields: dict[str, Any]) -> Cut:
    return Cut(whole(fields.get("first")) or 0, whole(fields.get("last")) or 0, str(fields.get("reason") or ""))


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return (_dict(item) for item in cast("list[object]", value)) if isinstance(value, list) else ()


# ── doing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Wire(Protocol):
    """What the reader of the journal needs of its client."""

    def give(self, channel: Channel, message: Message) -> None:
        """Give a message on to whom it belongs."""
        ...

    def give_gap(self, message: Message) -> None:
        """Give on that messages are lost."""
        ...

    def ask_journal(self, since: int, until: int | None) -> str:
        """Send a journal_request; return its id."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back in the I/O thread, while the sockets are open."""
        ...

    def has_open_requests(self) -> bool:
        """Say whether any request expects answers."""
        ...

    def lacks_idle(self, msg_id: str) -> bool:
        """Say whether a request has its reply, and not its idle."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A journal_request that is on its way; `until` is None where it is for a tail that may not exist."""

    msg_id: str
    sequence: Sequence
    until: int | None


class JournalReader:
    """Stands between a client's sockets and its router; all of it in the I/O thread, or while there are no sockets."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sequences: dict[str, Sequence] = {}
        self._current: Sequence | None = None
        self._held: deque[Message] = deque()
        self._question: Question | None = None
        self._pulse: float | None = None

    @property
    def is_behind(self) -> bool:
        """Whether messages are held back until those before them have come."""
        return self._question is not None

    def deliver(self, channel: Channel, message: Message) -> None:
        """Give a message on, in its turn."""
        if channel is not Channel.IOPUB:
            self._deliver_answer(channel, message)
        else:
            self._held.append(message)
            if self._question is None:
                self._give_held()
            elif self._is_successors(message):
                self.release()
        if self._current is not None and self._pulse is None:
            self._feel_pulse()

    def release(self, reason: str = _ENDED) -> None:
        """Give on what is held back, and say what is missing: it will not come."""
        question, self._question = self._question, None
        if question is not None and question.until is not None:
            self._lose_until(question.sequence, question.until, reason)
        self._give_held()

    def close(self) -> None:
        """End with the sockets. What is missing then is asked for when they are open again."""
        for numbers in filter(None, map(Numbers.of, self._held)):
            if self._current is not None:
                self._current.known = max(self._current.known, numbers.last)
        self._held.clear()
        self._question = self._pulse = None

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _deliver_answer(self, channel: Channel, message: Message) -> None:
        question = self._question
        if question is not None and message.parent_id == question.msg_id:
            self._take_reply(message, question)
            return
        self._wire.give(channel, message)
        if message.msg_type == MessageType.KERNEL_INFO_REPLY and FEATURE in _features(message):
            self._begin(message.header.session)
        if self._current is not None and message.parent_id:
            self._time_tail(message.parent_id, 0)

    def _give_held(self) -> None:
        while self._held and self._question is None:
            self._take(self._held.popleft())

    def _take(self, message: Message) -> None:
        """Give a message on if it is the next one, or see to what comes before it."""
        if message.msg_type == MessageType.IOPUB_WELCOME:
            self._wire.give(Channel.IOPUB, message)
            self._hear_welcome(message.header.session, whole(message.metadata.get("last_seq")))
            return
        sequence, numbers = self._current, Numbers.of(message)
        if sequence is None or numbers is None or message.header.session != sequence.session:
            self._wire.give(Channel.IOPUB, message)
            return
        place = sequence.place(numbers)
        if place is Place.NEXT:
            sequence.last = numbers.last
            self._wire.give(Channel.IOPUB, message)
        elif place is Place.AHEAD:
            self._held.appendleft(message)
            self._ask(sequence, numbers.first - 1)
        elif place is Place.ACROSS:
            self._ask(sequence, numbers.last)

    def _hear_welcome(self, session: str, last: int | None) -> None:
        """Ask for what was said while nobody listened; of a kernel that is heard for the first time nothing."""
        if last is None:
            return
        sequence = self._begin(session)
        if sequence.last is None:
            sequence.last = last
        if last > sequence.last:
            self._ask(sequence, last)

    def _begin(self, session: str) -> Sequence:
        """Know that a kernel has a journal; what a successor has said since its first breath is ours to hear."""
        known = self._sequences.get(session)
        if known is not None:
            return known
        before = self._current
        if self._question is not None:
            self.release()
        if before is not None:
            self._lose_until(before, before.known, _ENDED)
        sequence = self._current = self._sequences[session] = Sequence(session, None if before is None else 0)
        return sequence

    def _is_successors(self, message: Message) -> bool:
        """Say whether another kernel speaks than the one that was asked."""
        is_numbered = message.msg_type == MessageType.IOPUB_WELCOME or Numbers.of(message) is not None
        return is_numbered and message.header.session not in self._sequences

    # ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, sequence: Sequence, until: int | None) -> None:
        """Ask for what comes after the last message that was given on; what comes meanwhile is held back."""
        sequence.known = max(sequence.known, until or 0)
        try:
            msg_id = self._wire.ask_journal(sequence.last or 0, until)
        except CobnutError:  # the kernel has ended, or the channels are closed
            self._lose_until(sequence, until or 0, _ENDED)
            return
        question = self._question = Question(msg_id, sequence, until)
        self._wire.call_later(PATIENCE, lambda: self._give_up(question))

    def _give_up(self, question: Question) -> None:
        if self._question is question:
            self.release(_SILENT)

    def _take_reply(self, reply: Message, question: Question) -> None:
        sequence = question.sequence
        if reply.header.session != sequence.session:  # it was left to a successor
            self.release()
            return
        try:
            page = Page.of(reply)
        except MalformedMessageError as error:
            self.release(str(error))
            return
        self._question = None
        before, until = sequence.last, page.last if question.until is None else question.until
        for message in page.messages:
            self._take_again(sequence, message, page)
        if not page.is_last and sequence.last != before:
            self._ask(sequence, until)
        else:
            self._lose_until(sequence, until, page)
        self._give_held()

    def _take_again(self, sequence: Sequence, message: Message, page: Page) -> None:
        """Give on a message of a page, and say what is missing before it."""
        numbers = Numbers.of(message)
        if numbers is None or numbers.last <= (sequence.last or 0):
            return
        self._lose_until(sequence, numbers.first - 1, page)
        sequence.last = numbers.last
        self._wire.give(Channel.IOPUB, message)

    def _lose_until(self, sequence: Sequence, last: int, why: Page | str) -> None:
        """Say which messages are lost, up to a number."""
        first = (sequence.last or 0) + 1
        if first <= last:
            sequence.last = last
            reason = why if isinstance(why, str) else why.reason(first, last)
            self._wire.give_gap(gap(sequence.session, first, last, reason))

    # ── where nothing comes ─────────────────────────────────────────────────────────────────────────────────────────

    def _time_tail(self, msg_id: str, tries: int) -> None:
        """Ask for the end of what a request has caused, if its idle does not follow its reply soon."""

        def look() -> None:
            if self._wire.lacks_idle(msg_id) and tries < TAIL_TRIES:
                self._ask_for_tail()
                self._time_tail(msg_id, tries + 1)

        if self._wire.lacks_idle(msg_id):
            self._wire.call_later(TAIL * 2**tries, look)

    def _feel_pulse(self) -> None:
        """While requests are open, notice when this thread has stood still: kernels may have left us out."""
        now, due = monotonic(), self._pulse
        self._pulse = None
        if not self._wire.has_open_requests():
            return
        self._pulse = now + PULSE
        self._wire.call_later(PULSE, self._feel_pulse)
        if due is not None and now - due > STANDSTILL:
            self._ask_for_tail()

    def _ask_for_tail(self) -> None:
        sequence = self._current
        if self._question is None and sequence is not None and sequence.last is not None:
            self._ask(sequence, None)


def _features(reply: Message) -> list[object]:
    features = reply.content.get("supported_features")
    return cast("list[object]", features) if isinstance(features, list) else []
