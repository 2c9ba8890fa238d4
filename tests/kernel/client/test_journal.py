"""Gaps in iopub: found by numbers, asked for, and filled in order, or said."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.client import journal
from cobnut_kernel.client.journal import GAP, JournalReader, Numbers, Page, Place, Sequence
from cobnut_kernel.errors import MalformedMessageError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Message

if TYPE_CHECKING:
    from collections.abc import Callable

ours = Codec(b"")


class Kernel:
    """What a kernel says, numbered, and what it can say again."""

    def __init__(self) -> None:
        self.codec = Codec(b"")
        self.last = 0
        self.said: dict[int, Message] = {}
        self.cut: set[int] = set()
        self.page = 1000

    def say(self, text: str = "", **metadata: Any) -> Message:
        """Say something on iopub."""
        self.last += 1
        content = {"name": "stdout", "text": text or str(self.last)}
        message = self.codec.message("stream", content, metadata={"seq": self.last, **metadata})
        self.said[self.last] = message
        return message

    def welcome(self, **metadata: Any) -> Message:
        """Welcome a subscriber."""
        fields = {"last_seq": self.last, **metadata}
        return self.codec.message("iopub_welcome", {"subscription": ""}, metadata=fields)

    def info(self) -> Message:
        """Say what can be done."""
        return self.codec.message("kernel_info_reply", {"supported_features": ["cobnut.journal"]})

    def reply(self, msg_id: str, since: int, until: int | None, **fields: Any) -> Message:
        """Answer a journal_request, as the kernel does."""
        end = self.last if until is None else min(until, self.last)
        there = [number for number in range(since + 1, end + 1) if number not in self.cut]
        given = there[: self.page]
        is_last = given == there
        seen = end if is_last else given[-1]
        content = {
            "status": "ok",
            "messages": [_as_dict(self.said[number]) for number in given],
            "next": None if is_last else seen,
            "last": self.last,
            "cut": [{"first": n, "last": n, "reason": "It was cut."} for n in sorted(self.cut) if since < n <= seen],
            "gaps": [],
            **fields,
        }
        request = ours.header("journal_request")._replace(msg_id=msg_id)
        return self.codec.message("journal_reply", content, parent=request)


def _as_dict(message: Message) -> dict[str, Any]:
    fields = {"header": message.header.as_dict(), "parent_header": {}, "metadata": message.metadata}
    return {**fields, "content": message.content, "msg_type": message.msg_type, "buffers": 0}


class Client:
    """A client without sockets: it notes what is given on, and what is asked."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.given: list[Message] = []
        self.asked: list[tuple[str, int, int | None]] = []
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.lacking: set[str] = set()
        self.is_open = True
        self.has_open = False
        self.reader = JournalReader(self)

    def give(self, channel: Channel, message: Message) -> None:
        """Note what is given on."""
        if channel is Channel.IOPUB:
            self.given.append(message)

    def give_gap(self, message: Message) -> None:
        """Note what is lost."""
        self.given.append(message)

    def ask_journal(self, since: int, until: int | None) -> str:
        """Note a question."""
        if not self.is_open:
            raise TransportClosedError("closed")
        self.asked.append((f"question {len(self.asked)}", since, until))
        return self.asked[-1][0]

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Keep a timer."""
        self.timers.append((seconds, callback))

    def has_open_requests(self) -> bool:
        """Say what the test says."""
        return self.has_open

    def lacks_idle(self, msg_id: str) -> bool:
        """Say what the test says."""
        return msg_id in self.lacking

    # ── the test's side ─────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, *messages: Message) -> None:
        """Receive on iopub."""
        for message in messages:
            self.reader.deliver(Channel.IOPUB, message)

    def answer(self, **fields: Any) -> None:
        """Receive the kernel's answer to the last question."""
        msg_id, since, until = self.asked[-1]
        self.reader.deliver(Channel.CONTROL, self.kernel.reply(msg_id, since, until, **fields))

    def time(self, seconds: float) -> None:
        """Let the timers of so many seconds come."""
        due = [callback for delay, callback in self.timers if delay == seconds]
        self.timers = [timer for timer in self.timers if timer[0] != seconds]
        for callback in due:
            callback()

    @property
    def texts(self) -> list[str]:
        """What was given on, in order: texts, and numbers of what is lost."""
        return [_text(message) for message in self.given if message.msg_type in ("stream", GAP)]


def _text(message: Message) -> str:
    if message.msg_type == GAP:
        return f"lost {message.content['first']}-{message.content['last']}"
    return message.content["text"]


@pytest.fixture
def kernel() -> Kernel:
    """Be a kernel with a journal."""
    return Kernel()


@pytest.fixture
def client(kernel: Kernel) -> Client:
    """Be a client that has heard the welcome, and nothing before."""
    client = Client(kernel)
    client.hear(kernel.welcome())
    return client


# ── deciding ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("last", "first", "number", "place"),
    [
        (None, 7, 7, Place.NEXT),
        (3, 4, 4, Place.NEXT),
        (3, 4, 9, Place.NEXT),
        (3, 3, 3, Place.SEEN),
        (3, 1, 2, Place.SEEN),
        (3, 5, 5, Place.AHEAD),
        (3, 3, 5, Place.ACROSS),
    ],
)
def test_place(last: int | None, first: int, number: int, place: Place) -> None:
    """A message is the next one, was seen, is ahead of others, or was seen in part."""
    assert Sequence("s", last).place(Numbers(first, number)) is place


@pytest.mark.parametrize(
    "metadata",
    [{}, {"seq": "1"}, {"seq": True}, {"seq": 0}, {"seq": -1}, {"seq": 1.0}, {"seq": 3, "first_seq": 4}, {"seq": None}],
)
def test_what_is_no_number(metadata: dict[str, Any]) -> None:
    """Metadata that make no sense as numbers are none."""
    assert Numbers.of(ours.message("stream", {}, metadata=metadata)) is None


@pytest.mark.parametrize(
    "content",
    [{}, {"status": "error", "evalue": "no"}, {"status": "ok"}, {"status": "ok", "last": "1"}],
)
def test_what_is_no_page(content: dict[str, Any]) -> None:
    """A reply that is none of a journal is said to be malformed."""
    with pytest.raises(MalformedMessageError):
        Page.of(ours.message("journal_reply", content))


def test_page_gives_buffers_to_their_messages() -> None:
    """The buffers of a page follow one another; each message says how many are its own."""
    header = ours.header("display_data").as_dict()
    messages = [{"header": header, "content": {}, "metadata": {}, "buffers": count} for count in (1, 0, 2)]
    content = {"status": "ok", "last": 3, "messages": messages}
    page = Page.of(ours.message("journal_reply", content, buffers=[b"a", b"b", b"c"]))
    assert [message.buffers for message in page.messages] == [(b"a",), (), (b"b", b"c")]


# ── filling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_in_order_nothing_is_asked(client: Client, kernel: Kernel) -> None:
    """Messages that follow one another are given on at once."""
    client.hear(*(kernel.say() for _ in range(5)))
    assert client.texts == ["1", "2", "3", "4", "5"]
    assert client.asked == []


def test_gap_is_filled_in_order(client: Client, kernel: Kernel) -> None:
    """What was missed comes before what came after it, each message once."""
    said = [kernel.say() for _ in range(8)]
    client.hear(*said[:2], *said[5:])
    assert client.texts == ["1", "2"]
    assert client.asked == [("question 0", 2, 5)]
    assert client.reader.is_behind
    client.answer()
    assert client.texts == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert not client.reader.is_behind


def test_gap_in_pages(client: Client, kernel: Kernel) -> None:
    """A gap larger than a page is asked for page by page."""
    kernel.page = 3
    said = [kernel.say() for _ in range(10)]
    client.hear(said[9])
    for _ in range(3):
        client.answer()
    assert [question[1:] for question in client.asked] == [(0, 9), (3, 9), (6, 9)]
    assert client.texts == [str(number) for number in range(1, 11)]


def test_several_gaps(client: Client, kernel: Kernel) -> None:
    """A gap behind a gap is asked for after the first is filled."""
    said = [kernel.say() for _ in range(9)]
    client.hear(said[2], said[5], said[8])
    for _ in range(3):
        client.answer()
    assert client.texts == [str(number) for number in range(1, 10)]


def test_what_came_twice_is_given_once(client: Client, kernel: Kernel) -> None:
    """A message that is in the page and on its way too is given on once."""
    said = [kernel.say() for _ in range(6)]
    client.hear(said[0], said[3])
    client.hear(said[1], said[2], said[4])
    client.answer()
    client.hear(said[4], said[5])
    assert client.texts == ["1", "2", "3", "4", "5", "6"]


def test_texts_seen_in_part(client: Client, kernel: Kernel) -> None:
    """Of a message that stands for several, the part that was not seen is asked for."""
    client.hear(kernel.say(), kernel.say())
    kernel.say()
    joined = kernel.codec.message("stream", {"name": "stdout", "text": "23"}, metadata={"seq": 3, "first_seq": 2})
    client.hear(joined)
    assert client.asked == [("question 0", 2, 3)]
    client.answer()
    assert client.texts == ["1", "2", "3"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_comes(kernel: Kernel, seed: int) -> None:
    """However messages are lost and doubled on the way, all are given on, in order, once."""
    chance = random.Random(seed)
    client = Client(kernel)
    kernel.page = chance.randint(1, 7)
    client.hear(kernel.welcome())
    for _ in range(200):
        message = kernel.say()
        if chance.random() < 0.7:
            client.hear(message)
        if chance.random() < 0.1:
            client.hear(message)
        if client.reader.is_behind and chance.random() < 0.5:
            client.answer()
    client.hear(kernel.say())
    while client.reader.is_behind:
        client.answer()
    assert client.texts == [str(number) for number in range(1, 202)]


# ── what is gone ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_cut_is_said(client: Client, kernel: Kernel) -> None:
    """In the place of what the kernel has cut stands a message that says so, with the kernel's reason."""
    said = [kernel.say() for _ in range(6)]
    kernel.cut = {2, 3}
    client.hear(said[5])
    client.answer()
    assert client.texts == ["1", "lost 2-3", "4", "5", "6"]
    [lost] = [message for message in client.given if message.msg_type == GAP]
    assert lost.content == {"first": 2, "last": 3, "count": 2, "reason": "It was cut."}
    assert lost.header.session == kernel.codec.session


def test_cut_at_the_end(client: Client, kernel: Kernel) -> None:
    """What is missing at the end of a page is said too."""
    said = [kernel.say() for _ in range(4)]
    kernel.cut = {2, 3}
    client.hear(said[0], said[3])
    client.answer()
    assert client.texts == ["1", "lost 2-3", "4"]


@pytest.mark.parametrize("fields", [{"status": "error", "evalue": "no"}, {"last": None}, {"messages": 7}])
def test_answer_that_is_of_no_use(client: Client, kernel: Kernel, fields: dict[str, Any]) -> None:
    """An answer that cannot be read leaves a gap that is said, and what was held back comes."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    client.answer(**fields)
    assert client.texts == ["1", "lost 2-2", "3"]


def test_no_answer(client: Client, kernel: Kernel) -> None:
    """A kernel that does not answer in time leaves a gap that is said; a late answer is nobody's."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    client.time(journal.PATIENCE)
    assert client.texts == ["1", "lost 2-2", "3"]
    client.answer()
    assert client.texts == ["1", "lost 2-2", "3"]


def test_closed_while_it_is_found(client: Client, kernel: Kernel) -> None:
    """A gap that cannot be asked for is said."""
    client.hear(kernel.say())
    kernel.say()
    client.is_open = False
    client.hear(kernel.say())
    assert client.texts == ["1", "lost 2-2", "3"]


def test_many_gaps_that_cannot_be_asked_for(client: Client, kernel: Kernel) -> None:
    """A thousand gaps behind each other are no deep recursion."""
    said = [kernel.say() for _ in range(3001)]
    client.hear(*said[::2])
    client.is_open = False
    client.reader.release()
    assert client.texts[-3:] == ["2999", "lost 3000-3000", "3001"]


# ── the kernel's life, and the client's ─────────────────────────────────────────────────────────────────────────────


def test_who_comes_late_asks_for_nothing(kernel: Kernel) -> None:
    """A new client of an old kernel begins with what is said from now on."""
    for _ in range(5):
        kernel.say()
    client = Client(kernel)
    client.hear(kernel.welcome(), kernel.say())
    assert client.texts == ["6"]
    assert client.asked == []


def test_who_was_away_asks(client: Client, kernel: Kernel) -> None:
    """The welcome of a connection made again says what was missed meanwhile."""
    client.hear(kernel.say())
    client.reader.close()
    kernel.say()
    kernel.say()
    client.hear(kernel.welcome())
    client.answer()
    client.hear(kernel.say())
    assert client.texts == ["1", "2", "3", "4"]


def test_closed_in_between(client: Client, kernel: Kernel) -> None:
    """What was held back when the sockets were closed comes, in its place, when they are open again."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    client.reader.close()
    client.hear(kernel.welcome())
    client.answer()
    assert client.texts == ["1", "2", "3"]


def test_another_kernel_has_its_own_numbers(client: Client, kernel: Kernel) -> None:
    """A successor's numbers begin anew; what it has said before its welcome is asked for."""
    client.hear(*(kernel.say() for _ in range(3)))
    successor = client.kernel = Kernel()
    successor.say("starting")
    client.hear(successor.welcome())
    client.answer()
    client.hear(successor.say("first"))
    assert client.texts == ["1", "2", "3", "starting", "first"]


@pytest.mark.parametrize("news", ["welcome", "info"])
def test_kernel_that_ends_before_it_answers(client: Client, kernel: Kernel, news: str) -> None:
    """When a successor speaks, what the former kernel still owed is said to be lost."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    successor = client.kernel = Kernel()
    if news == "info":
        client.reader.deliver(Channel.SHELL, successor.info())
    client.hear(successor.welcome(), successor.say("anew"))
    assert client.texts == ["1", "lost 2-2", "3", "anew"]


def test_owed_by_a_kernel_that_was_replaced(client: Client, kernel: Kernel) -> None:
    """What was not asked for before the sockets turned to a successor is said to be lost."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    client.reader.close()
    successor = client.kernel = Kernel()
    client.hear(successor.welcome())
    assert client.texts == ["1", "lost 2-3"]


def test_answered_by_a_successor(client: Client, kernel: Kernel) -> None:
    """An answer of another process than the one that was asked is none."""
    client.hear(kernel.say())
    kernel.say()
    client.hear(kernel.say())
    client.kernel = Kernel()
    client.answer()
    assert client.texts == ["1", "lost 2-2", "3"]


def test_numbers_of_kernels_without_a_journal_mean_nothing(kernel: Kernel) -> None:
    """Without a welcome that has a number, and without the feature, numbers are not looked at."""
    client = Client(kernel)
    said = [kernel.say() for _ in range(5)]
    client.hear(kernel.codec.message("iopub_welcome", {}), said[4], said[0], said[0])
    assert client.texts == ["5", "1", "1"]


def test_a_journal_is_known_by_the_feature(kernel: Kernel) -> None:
    """Where no welcome was heard, kernel_info says that there is a journal."""
    client = Client(kernel)
    client.reader.deliver(Channel.SHELL, kernel.info())
    said = [kernel.say() for _ in range(5)]
    client.hear(said[1], said[4])
    client.answer()
    assert client.texts == ["2", "3", "4", "5"]


# ── where nothing comes ─────────────────────────────────────────────────────────────────────────────────────────────


def test_tail_is_asked_for_after_the_reply(client: Client, kernel: Kernel) -> None:
    """A reply whose idle does not follow is a reason to ask for what comes after the last number."""
    client.hear(kernel.say())
    kernel.say("idle")
    request = ours.header("execute_request")
    client.lacking = {request.msg_id}
    client.reader.deliver(Channel.SHELL, kernel.codec.message("execute_reply", {}, parent=request))
    client.time(journal.TAIL)
    assert [question[1:] for question in client.asked] == [(1, None)]
    client.answer()
    assert client.texts == ["1", "idle"]


def test_tail_that_does_not_exist(client: Client, kernel: Kernel) -> None:
    """An idle that the kernel does not have is asked for a few times, ever more seldom."""
    request = ours.header("execute_request")
    client.lacking = {request.msg_id}
    client.reader.deliver(Channel.SHELL, kernel.codec.message("execute_reply", {}, parent=request))
    for tries in range(journal.TAIL_TRIES + 1):
        client.time(journal.TAIL * 2**tries)
        if client.reader.is_behind:
            client.answer()
    assert len(client.asked) == journal.TAIL_TRIES
    assert client.texts == []


def test_idle_that_follows_is_not_asked_for(client: Client, kernel: Kernel) -> None:
    """A reply with its idle is no reason to ask."""
    request = ours.header("execute_request")
    client.reader.deliver(Channel.SHELL, kernel.codec.message("execute_reply", {}, parent=request))
    client.time(journal.TAIL)
    assert client.asked == []


def test_standstill_is_a_reason_to_ask(client: Client, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stood still while a request was open asks for what it may have missed."""
    now = 100.0
    monkeypatch.setattr(journal, "monotonic", lambda: now)
    client.has_open = True
    client.hear(kernel.say())
    now += journal.PULSE
    client.time(journal.PULSE)
    assert client.asked == []
    kernel.say()
    now += 5
    client.time(journal.PULSE)
    client.answer()
    assert client.texts == ["1", "2"]
    client.has_open = False
    client.time(journal.PULSE)
    assert client.timers == [timer for timer in client.timers if timer[0] == journal.PATIENCE]
