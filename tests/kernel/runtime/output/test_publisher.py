"""The sending end of iopub over real sockets: readers, sleepers and leavers, and what each of them hears."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.wire import KEY, wait_until

from cobnut_kernel.protocol.codec import DELIMITER, Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.runtime.output import publisher as module
from cobnut_kernel.runtime.output.journal import Journal
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing
from cobnut_kernel.runtime.sockets import KernelSockets
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT = 20
"""Seconds after which a test gives up; a good one never waits so long."""

PARENTS = [dumps({"msg_id": f"request-{number}", "msg_type": "execute_request"}) for number in range(3)]


@dataclass
class Subscriber:
    """A client of iopub, and all that it has heard."""

    socket: zmq.Socket[bytes]
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def hear(self) -> int:
        """Take in what is there; return the number of messages."""
        count = 0
        while self.socket.poll(0):
            self.understand(self.socket.recv_multipart())
            count += 1
        return count

    def understand(self, frames: list[bytes]) -> None:
        """Take a message in as it came."""
        parts = [json.loads(part) for part in frames[frames.index(DELIMITER) + 2 :][:4]]
        names = ("header", "parent_header", "metadata", "content")
        self.messages.append(dict(zip(names, parts, strict=True)))

    def hear_until(self, condition: Callable[[], object], what: str) -> None:
        """Take in messages until a condition holds."""
        wait_until(lambda: (self.hear(), condition())[1], what, WAIT)

    @property
    def numbers(self) -> list[int]:
        """All numbers that the messages stand for, in the order they came."""
        heard: list[int] = []
        for metadata in (message["metadata"] for message in self.messages):
            if "seq" in metadata:
                heard += range(metadata.get("first_seq", metadata["seq"]), metadata["seq"] + 1)
        return heard

    @property
    def values(self) -> list[Any]:
        """What the displays were."""
        return [message["content"]["value"] for message in self.messages if "value" in message["content"]]

    def text(self, parent: bytes) -> str:
        """Return the text of one cell."""
        mine = json.loads(parent)
        return "".join(m["content"].get("text", "") for m in self.messages if m["parent_header"] == mine)


@dataclass
class Kernel:
    """An outbox with its sockets, and the clients of its iopub."""

    outbox: Outbox
    sockets: KernelSockets
    context: zmq.Context[zmq.Socket[bytes]]
    subscribers: list[zmq.Socket[bytes]] = field(default_factory=list[zmq.Socket[bytes]])

    @property
    def url(self) -> str:
        """Where iopub is."""
        return self.sockets.connection.url(Channel.IOPUB)

    def connect(self, topic: bytes = b"", hwm: int = 1000) -> Subscriber:
        """Subscribe, and do not wait for the welcome."""
        socket = self.context.socket(zmq.SUB)
        self.subscribers.append(socket)
        socket.setsockopt(zmq.RCVHWM, hwm)
        socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(self.url)
        return Subscriber(socket)

    def subscribe(self, topic: bytes = b"", hwm: int = 1000) -> Subscriber:
        """Subscribe, and wait for the welcome."""
        subscriber = self.connect(topic, hwm)
        subscriber.hear_until(lambda: subscriber.messages, "the welcome")
        return subscriber

    def display(self, *values: Any, parent: bytes = PARENTS[0]) -> None:
        """Say messages."""
        for value in values:
            self.outbox.post(Outgoing(Channel.IOPUB, "display_data", dumps({"value": value}), parent))

    def settle(self) -> None:
        """Wait until the I/O thread has taken all that was said."""
        wait_until(lambda: not self.outbox._items, "the I/O thread", WAIT)

    @property
    def last(self) -> int:
        """The number of what was said last."""
        return self.outbox.journal.last

    def missed(self, since: int, until: int) -> tuple[list[int], list[Any]]:
        """Return what the journal has in a gap: the numbers, and the values."""
        numbers: list[int] = []
        values: list[Any] = []
        following: int | None = since
        while following is not None:
            content = json.loads(dumps(self.outbox.journal.page({"since": following, "until": until}).content))
            assert content["cut"] == []
            numbers += [message["metadata"]["seq"] for message in content["messages"]]
            values += [message["content"]["value"] for message in content["messages"]]
            following = content["next"]
        return numbers, values


@pytest.fixture(params=["ipc"])
def kernel(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """A kernel's voice, with little memory and a file."""
    outbox = Outbox(IOThread.shared(), Codec(KEY), Journal(1 << 20, 200 << 20, tmp_path))
    info = ConnectionInfo("ipc", str(tmp_path / "s"), *range(1, 6), key=KEY)
    if request.param == "tcp":
        info = ConnectionInfo("tcp", "127.0.0.1", key=KEY)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    kernel = Kernel(outbox, KernelSockets(info, outbox, lambda _channel, _message: None), context)
    yield kernel
    kernel.sockets.close()
    for subscriber in kernel.subscribers:
        subscriber.close(0)
    context.term()
    assert "cobnut-io" not in {thread.name for thread in threading.enumerate()}


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_message_is_numbered_without_gaps(kernel: Kernel) -> None:
    """Messages, texts and all: the numbers rise by one, the signature holds, and ids are never used twice."""
    listener = kernel.subscribe()
    for number in range(100):
        kernel.display(number)
        kernel.outbox.write(PARENTS[0], "stdout", "text")
    kernel.display("end")
    listener.hear_until(lambda: "end" in listener.values, "all messages")
    assert listener.numbers == list(range(1, kernel.last + 1))
    ids = [message["header"]["msg_id"] for message in listener.messages]
    assert len(set(ids)) == len(ids)
    assert listener.text(PARENTS[0]) == "text" * 100


def test_messages_are_signed_and_their_headers_whole(kernel: Kernel) -> None:
    """A client's codec takes each kind: messages, texts, the welcome; topics name their types."""
    listener = kernel.connect()
    assert listener.socket.poll(WAIT * 1000)
    kernel.display("é % \\")
    kernel.outbox.write(PARENTS[0], "stderr", "100 %")
    codec, seen = Codec(KEY), dict[str, Any]()
    while len(seen) < 3:
        assert listener.socket.poll(WAIT * 1000)
        frames = listener.socket.recv_multipart()
        message = codec.decode(frames)
        seen[message.msg_type] = message.content
        header = message.header
        assert frames[0].decode() == f"kernel.{header.session}.{message.msg_type}"
        assert header.session == kernel.outbox.codec.session
        assert header.date.endswith("+00:00")
        assert header.username == kernel.outbox.codec.username
    assert seen == {
        "iopub_welcome": {"subscription": ""},
        "display_data": {"value": "é % \\"},
        "stream": {"name": "stderr", "text": "100 %"},
    }


def test_a_user_whose_name_has_signs_of_its_own_is_named(tmp_path: Path) -> None:
    """Percent signs, quotes and controls in the user's name are in the headers as they are."""
    codec = Codec(b"", username='100 % "\\u0000"\n')
    publisher = module.Publisher(IOThread.shared(), codec, Journal(folder=tmp_path))
    for _ in range(2):
        _, header = publisher._header("status")
        assert json.loads(header)["username"] == codec.username


def test_a_new_subscriber_hears_the_welcome_first_in_a_flood_too(kernel: Kernel) -> None:
    """It names the last number before; what comes then is that number and one, whoever floods (JEP 65)."""
    listener, done = kernel.subscribe(), threading.Event()

    def flood() -> None:
        number = 0
        while not done.is_set():
            kernel.display(*range(number, number + 20))
            number += 20
            time.sleep(0.002)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for _ in range(20):
            late = kernel.connect(hwm=0)
            late.hear_until(lambda late=late: len(late.messages) > 10, "messages after the welcome")
            late.socket.close(0)
            welcome, *others = late.messages
            assert welcome["content"] == {"subscription": ""}
            assert "seq" not in welcome["metadata"]
            first = welcome["metadata"]["last_seq"] + 1
            late.messages = others
            assert late.numbers == list(range(first, first + len(late.numbers)))
            listener.hear()
    finally:
        done.set()
        flooding.join()


# ── sleepers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lone_sleeper_finds_everything_when_it_wakes(kernel: Kernel) -> None:
    """20 000 messages while it takes none, in a journal of 1 MB: all come, in order; user code waited for nobody."""
    sleeper = kernel.subscribe()
    kernel.display(*range(20_000))
    kernel.settle()
    publisher = kernel.outbox.publisher
    wait_until(lambda: time.monotonic() - publisher._refused_since > 5 * module.PATIENCE, "impatience", WAIT)
    assert kernel.outbox.journal._size < 2 << 20
    assert kernel.outbox.journal.sent < 10_000
    sleeper.hear_until(lambda: len(sleeper.values) == 20_000, "all messages")
    assert sleeper.values == list(range(20_000))
    assert sleeper.numbers == list(range(1, kernel.last + 1))
    assert json.loads(dumps(kernel.outbox.journal.page({"since": 0}).content))["gaps"] == []


def test_large_messages_for_a_lone_sleeper_wait_in_the_journal(kernel: Kernel) -> None:
    """Of 100 MB little more than the pipe's bytes is with zmq; the rest comes when the sleeper wakes."""
    sleeper, value = kernel.subscribe(hwm=1), "x" * (1 << 20)
    kernel.display(*[value] * 100)
    kernel.settle()
    assert kernel.outbox.journal.sent < 2 * module.PIPE_BYTES >> 20
    sleeper.hear_until(lambda: len(sleeper.values) == 100, "all messages")
    assert sleeper.values == [value] * 100


def test_a_sleeper_holds_up_no_reader(kernel: Kernel) -> None:
    """Two clients, one asleep: the other hears all; the sleeper hears on when it wakes, and the journal has its gap."""
    reader, sleeper = kernel.subscribe(), kernel.subscribe()
    kernel.display(*range(8000))
    reader.hear_until(lambda: len(reader.values) == 8000, "all messages for the reader")
    assert reader.values == list(range(8000))
    sleeper.hear()
    time.sleep(0.1)  # zmq fills the place again
    sleeper.hear()
    kernel.display(*range(8000, 8100))
    sleeper.hear_until(lambda: 8099 in sleeper.values, "what is said after it woke")
    reader.hear_until(lambda: 8099 in reader.values, "the same for the reader")
    assert reader.numbers == list(range(1, kernel.last + 1))
    heard = sleeper.numbers
    assert heard == sorted(set(heard))
    [(before, after)] = [pair for pair in pairwise(heard) if pair[1] != pair[0] + 1]
    numbers, values = kernel.missed(before, after - 1)
    assert numbers == list(range(before + 1, after))
    assert sorted(values + sleeper.values) == list(range(8100))
    gaps = json.loads(dumps(kernel.outbox.journal.page({"since": 0}).content))["gaps"]
    assert before + 1 in gaps


SLOW_READER = """
import sys, zmq, time
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 1)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect(sys.argv[1])
socket.recv_multipart()
print("welcomed", flush=True)
for number in range(1, 5001):
    if number % 20 == 0:
        time.sleep(0.006)  # half a pipe takes it longer than the patience of the others
    metadata = socket.recv_multipart()[5]
    assert metadata == b'{"seq":%d}' % number, (number, metadata)
print("all", flush=True)
"""


@pytest.mark.parametrize("kernel", ["tcp"], indirect=True)
def test_a_slow_reader_is_not_taken_for_a_sleeper(kernel: Kernel) -> None:
    """Two clients, one slower than libzmq tells of in the time of patience: both hear everything."""
    reader, command = kernel.subscribe(), [sys.executable, "-c", SLOW_READER, kernel.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "welcomed\n"
        kernel.display(*(f"{number:2000}" for number in range(5000)))
        reader.hear_until(lambda: len(reader.values) == 5000, "all messages for the reader")
        assert slow.stdout.readline() == "all\n"
    assert json.loads(dumps(kernel.outbox.journal.page({"since": 0}).content))["gaps"] == []


def test_texts_of_cells_are_put_together_while_they_wait(kernel: Kernel) -> None:
    """Two cells write in turns to a sleeper: few messages, each cell's text whole and before what it says next."""
    sleeper = kernel.subscribe()
    kernel.display(*range(12_000))
    wait_until(lambda: kernel.outbox.publisher.waiting, "the pipe to be full", WAIT)
    kernel.settle()
    before = kernel.last
    for number in range(1000):
        for parent in PARENTS[1:]:
            kernel.outbox.write(parent, "stdout", f"{number}\n")
        if number % 100 == 0:
            time.sleep(0.03)  # more than the pace
    kernel.display("one", parent=PARENTS[1])
    kernel.outbox.write(PARENTS[1], "stdout", "after")
    kernel.settle()
    kernel.display("two", parent=PARENTS[2])
    sleeper.hear_until(lambda: "two" in sleeper.values and sleeper.text(PARENTS[1]).endswith("after"), "all of it")
    assert kernel.last - before < 12
    text = "".join(f"{number}\n" for number in range(1000))
    assert sleeper.text(PARENTS[1]) == text + "after"
    assert sleeper.text(PARENTS[2]) == text
    place = [m["content"].get("value") for m in sleeper.messages].index("one")
    heard = Subscriber(sleeper.socket, sleeper.messages[:place])
    assert heard.text(PARENTS[1]) == text


# ── leavers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SLEEPER = """
import sys, zmq, time
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.SUBSCRIBE, b"")
socket.connect(sys.argv[1])
socket.recv_multipart()
print("welcomed", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("among_others", [False, True])
def test_sleepers_that_die_disturb_nobody(kernel: Kernel, among_others: bool) -> None:
    """Killed while messages wait for it, alone or among others, a sleeper is forgotten, and those who read go on."""
    readers = [kernel.subscribe()] if among_others else []
    for turn in range(4):
        command = [sys.executable, "-c", SLEEPER, kernel.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sleeper:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "welcomed\n"
            kernel.display(*range(5000 * turn, 5000 * turn + 5000))
            kernel.settle()
            assert among_others or kernel.outbox.publisher.waiting
            sleeper.send_signal(signal.SIGKILL)
        wait_until(lambda: ([r.hear() for r in readers], kernel.outbox.journal.unsent())[1] is None, "sending", WAIT)
    readers += [kernel.subscribe()]
    kernel.display("end")
    for reader in readers:
        reader.hear_until(lambda reader=reader: "end" in reader.values, "what was said last")
    assert readers[0].values == [*range(20_000 if among_others else 0), "end"]
    assert len(kernel.outbox.publisher.connections) == len(readers)


def test_whatever_else_a_subscriber_sends_hurts_nobody(kernel: Kernel) -> None:
    """Frames that are no subscription, topics that are no text, unsubscribing from what it never asked for."""
    talker = kernel.context.socket(zmq.XSUB)
    kernel.subscribers.append(talker)
    talker.connect(kernel.url)
    for frame in (b"\x00", b"\x00never", b"", b"\x02what", b"garbage", b"\x01\xff\xfe", b"\x00\xff\xfe", b"\x01"):
        talker.send(frame)
    assert talker.poll(WAIT * 1000)
    listener = kernel.subscribe()
    kernel.display("fine")
    listener.hear_until(lambda: "fine" in listener.values, "a message")


def test_who_unsubscribes_hears_no_more(kernel: Kernel) -> None:
    """Of two topics one is given up: its messages come no more, the other's do."""
    listener = kernel.subscribe(b"kernel.")
    listener.socket.setsockopt(zmq.SUBSCRIBE, f"kernel.{kernel.outbox.codec.session}.stream".encode())
    listener.hear_until(lambda: len(listener.messages) == 2, "both welcomes")
    listener.socket.setsockopt(zmq.UNSUBSCRIBE, b"kernel.")
    other = kernel.subscribe()
    kernel.display("not heard")
    kernel.outbox.write(PARENTS[0], "stdout", "heard")
    listener.hear_until(lambda: listener.text(PARENTS[0]), "the text")
    other.hear_until(lambda: other.text(PARENTS[0]), "the text")
    assert (listener.values, other.values) == ([], ["not heard"])


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_gives_readers_what_is_left(kernel: Kernel) -> None:
    """A client that reads while the kernel closes hears everything to the last message."""
    reader = kernel.subscribe()
    kernel.display(*range(4000))
    for number in range(5000):
        kernel.outbox.write(PARENTS[0], "stdout", f"{number}\n")
    closing = threading.Thread(target=kernel.sockets.close)
    closing.start()
    taken = [
        reader.socket.recv_multipart()
    ]  # understood later: who closes waits as long as more is taken, not for ever
    while b"4999\\n" not in taken[-1][-1]:
        assert reader.socket.poll(WAIT * 1000), "The last text did not come."
        taken.append(reader.socket.recv_multipart())
    closing.join()
    for frames in taken:
        reader.understand(frames)
    assert reader.values == list(range(4000))
    assert reader.text(PARENTS[0]) == "".join(f"{number}\n" for number in range(5000))


def test_the_end_does_not_wait_for_sleepers(kernel: Kernel) -> None:
    """With far more than fits into the pipe, closing ends; what is said then is dropped without a sound."""
    kernel.subscribe()
    kernel.display(*range(20_000))
    kernel.sockets.close()
    assert not kernel.outbox.publisher.send_waiting() or kernel.outbox._closed
    kernel.display("late")
    kernel.outbox.write(PARENTS[0], "stdout", "late")
    assert len(kernel.outbox._items) == 0
