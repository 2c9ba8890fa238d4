"""The I/O thread and its sockets: used from any thread and any loop, by floods too, and closed without a trace."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import psutil
import pytest
import zmq
from tests.kernel.wire import wait_until

from cobnut_kernel.errors import TransportClosedError
from cobnut_kernel.transport import Endpoint, Inbox, IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Open = Callable[..., Endpoint]
    Peer = Callable[[zmq.SocketType], zmq.Socket[bytes]]

pytestmark = pytest.mark.anyio

WAIT = 20
"""Seconds after which a test gives up; a good one never waits so long."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both loops."""
    return request.param


@pytest.fixture
def url(tmp_path: Path) -> str:
    """An address for one socket."""
    return f"ipc://{os.path.relpath(tmp_path / 's')}"


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Make sockets of the other side, used in the test's own thread, and close them in the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def make(kind: zmq.SocketType) -> zmq.Socket[bytes]:
        sockets.append(context.socket(kind))
        for option, value in ((zmq.RCVTIMEO, WAIT * 1000), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0)):
            sockets[-1].setsockopt(option, value)
        return sockets[-1]

    yield make
    for made in sockets:
        made.close(0)
    context.term()


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open endpoints that the test need not close, and see that no thread is left."""
    endpoints: list[Endpoint] = []

    def open_(spec: SocketSpec, on_frames: Callable[[list[bytes]], None] = lambda _frames: None) -> Endpoint:
        endpoints.append(IOThread.shared().open(spec, on_frames))
        return endpoints[-1]

    yield open_
    for endpoint in endpoints:
        endpoint.close()
    assert "cobnut-io" not in {thread.name for thread in threading.enumerate()}


def drain(inbox: Inbox[Any], count: int) -> list[Any]:
    """Take items without a loop, as the kernel's dispatch does."""
    items: list[Any] = []

    def enough() -> bool:
        items.extend(inbox.drain())
        return len(items) >= count

    wait_until(enough, f"{count} items", WAIT)
    return items


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_requests_and_replies_go_both_ways(opened: Open, url: str) -> None:
    """A bound ROUTER and a connected DEALER, both on the one I/O thread, exchange messages with a loop."""
    requests, replies = Inbox[list[bytes]](), Inbox[list[bytes]]()
    router = opened(SocketSpec(zmq.ROUTER, url, bind=True), requests.put)
    dealer = opened(SocketSpec(zmq.DEALER, url, identity=b"me"), replies.put)
    with anyio.fail_after(WAIT):
        for number in range(100):
            dealer.send([b"question", str(number).encode()])
            identity, *frames = await requests.receive()
            assert (identity, frames) == (b"me", [b"question", str(number).encode()])
            router.send([identity, b"answer"])
            assert await replies.receive() == [b"answer"]


async def test_a_flood_loses_nothing_and_starves_neither_sockets_nor_tasks(opened: Open, peer: Peer, url: str) -> None:
    """Of 100 000 messages none is lost; questions on another socket, and another task, have their turn in between."""
    flood_url, question_url = f"{url}-flood", f"{url}-question"
    inbox, order, turns = Inbox[bytes](), [], 0
    count = 100_000

    def on_flood(frames: list[bytes]) -> None:
        inbox.put(frames[0])
        order.append("flood")

    def on_question(frames: list[bytes]) -> None:
        order.append("question")
        router.send(frames)

    async def another_task() -> None:
        nonlocal turns
        while len(received) < count:
            turns += 1
            await anyio.lowlevel.checkpoint()

    opened(SocketSpec(zmq.PULL, flood_url, bind=True), on_flood)
    router = opened(SocketSpec(zmq.ROUTER, question_url, bind=True), on_question)
    push, dealer = peer(zmq.PUSH), peer(zmq.DEALER)
    gate, received = threading.Event(), []
    IOThread.shared().call_soon(gate.wait, WAIT)  # nothing is handled before all is sent
    dealer.connect(question_url)
    push.connect(flood_url)
    for number in range(count):
        push.send(b"%d" % number)
    for number in range(50):
        dealer.send(str(number).encode())
    gate.set()
    with anyio.fail_after(WAIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(another_task)
            while len(received) < count:
                received.append(await inbox.receive())
    assert received == [b"%d" % number for number in range(count)]
    assert [dealer.recv() for _ in range(50)] == [str(number).encode() for number in range(50)]
    last_question = len(order) - order[::-1].index("question")
    assert order[:last_question].count("flood") < count
    assert turns > 100


def test_many_threads_send_by_one_socket(opened: Open, peer: Peer, url: str) -> None:
    """Each thread's messages arrive whole and in its order."""
    pull = peer(zmq.PULL)
    pull.bind(url)
    endpoint = opened(SocketSpec(zmq.PUSH, url))

    def send(name: int) -> None:
        for number in range(2000):
            endpoint.send([b"%d" % name, b"%d" % number])

    threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    got: dict[bytes, list[bytes]] = {}
    for _ in range(8000):
        name, number = pull.recv_multipart()
        got.setdefault(name, []).append(number)
    for thread in threads:
        thread.join()
    assert got == {b"%d" % name: [b"%d" % number for number in range(2000)] for name in range(4)}


def test_what_is_sent_to_an_absent_peer_waits_for_it(opened: Open, peer: Peer, url: str) -> None:
    """Sending never waits; who binds later gets all of it."""
    endpoint = opened(SocketSpec(zmq.DEALER, url, options={zmq.RECONNECT_IVL: 2}))
    for number in range(1000):
        endpoint.send([b"%d" % number])
    late = peer(zmq.DEALER)
    late.bind(url)
    assert [late.recv() for _ in range(1000)] == [b"%d" % number for number in range(1000)]


def test_a_late_socket_is_connected_when_it_is_asked_to(opened: Open, peer: Peer, url: str) -> None:
    """Before that it is no peer's; what was sent to it waits."""
    listener = peer(zmq.DEALER)
    listener.bind(url)
    endpoint = opened(SocketSpec(zmq.DEALER, url, late=True))
    endpoint.send([b"waits"])
    assert not listener.poll(50)
    IOThread.shared().call_soon(endpoint.connect)
    assert listener.recv() == b"waits"
    endpoint.close()
    endpoint.connect()  # nothing happens to one that is closed


def test_closing_sends_what_is_queued(opened: Open, peer: Peer, url: str) -> None:
    """What was sent before `close` arrives, though the socket is gone at once and the I/O thread was busy."""
    pull = peer(zmq.PULL)
    pull.bind(url)
    endpoint = opened(SocketSpec(zmq.PUSH, url, linger=WAIT * 1000))
    gate = threading.Event()
    IOThread.shared().call_soon(gate.wait, WAIT)
    for number in range(10_000):
        endpoint.send([b"%d" % number])
    gate.set()
    endpoint.close()
    assert [pull.recv() for _ in range(10_000)] == [b"%d" % number for number in range(10_000)]


def test_a_message_that_cannot_be_sent_holds_up_none(opened: Open, peer: Peer, url: str) -> None:
    """A receiver that a ROUTER does not know is an error of that message; the next one is sent."""
    heard = Inbox[list[bytes]]()
    router = opened(SocketSpec(zmq.ROUTER, url, bind=True, options={zmq.ROUTER_MANDATORY: 1}), heard.put)
    known = peer(zmq.DEALER)
    known.setsockopt(zmq.IDENTITY, b"known")
    known.connect(url)
    known.send(b"hello")
    drain(heard, 1)
    router.send([b"stranger", b"lost"])
    router.send([b"known", b"arrives"])
    assert known.recv() == b"arrives"


def test_subscriptions_and_options_reach_the_socket(opened: Open, url: str) -> None:
    """An XPUB hears of a SUB's topic, and sends it what begins so."""
    subscriptions, published = Inbox[list[bytes]](), Inbox[list[bytes]]()
    publisher = opened(SocketSpec(zmq.XPUB, url, bind=True), subscriptions.put)
    opened(SocketSpec(zmq.SUB, url, subscribe=b"a"), published.put)
    assert drain(subscriptions, 1) == [[b"\x01a"]]
    publisher.send([b"b", b"unheard"])
    publisher.send([b"a", b"heard"])
    assert drain(published, 1) == [[b"a", b"heard"]]


# ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_opening_and_closing_leaks_nothing(tmp_path: Path) -> None:
    """50 times a pair of sockets, opened, used and closed: as many threads and descriptors as before."""
    process = psutil.Process()

    def cycle(number: int) -> None:
        address = f"ipc://{os.path.relpath(tmp_path / str(number))}"
        inbox = Inbox[list[bytes]]()
        thread = IOThread.shared()
        bound = thread.open(SocketSpec(zmq.PULL, address, bind=True), inbox.put)
        connected = thread.open(SocketSpec(zmq.PUSH, address), inbox.put)
        connected.send([b"x"])
        drain(inbox, 1)
        bound.close()
        connected.close()

    cycle(0)
    before = process.num_threads(), process.num_fds()
    for number in range(1, 51):
        cycle(number)

    def as_before() -> bool:
        return process.num_threads() <= before[0] and process.num_fds() <= before[1]

    wait_until(as_before, "threads and descriptors as before", WAIT)  # zmq's own threads end a moment later


def test_an_address_in_use_is_the_openers_error(opened: Open, peer: Peer) -> None:
    """The error names what failed, nothing stays open, and the next socket opens."""
    taken = peer(zmq.ROUTER)
    port = taken.bind_to_random_port("tcp://127.0.0.1")
    process = psutil.Process()
    opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True)).close()
    before = process.num_fds()
    with pytest.raises(zmq.ZMQError, match="in use"):
        opened(SocketSpec(zmq.ROUTER, f"tcp://127.0.0.1:{port}", bind=True))
    wait_until(lambda: process.num_fds() <= before, "descriptors as before", WAIT)
    assert "cobnut-io" not in {thread.name for thread in threading.enumerate()}
    opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))


@pytest.mark.parametrize("address", ["nonsense", "tcp://nowhere:0:0", "ipc:///proc/nobody/socket"])
def test_an_address_that_is_none_is_the_openers_error(opened: Open, address: str) -> None:
    """An address that cannot be bound, beside a socket that works, leaves that one working."""
    inbox = Inbox[list[bytes]]()
    working = opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True), inbox.put)
    with pytest.raises(zmq.ZMQError):
        opened(SocketSpec(zmq.ROUTER, address, bind=True))
    opened(SocketSpec(zmq.DEALER, working.url)).send([b"x"])
    assert drain(inbox, 1)[0][1:] == [b"x"]


def test_a_wildcard_becomes_a_port(opened: Open) -> None:
    """The endpoint names the address it was given by the system."""
    endpoint = opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    assert int(endpoint.url.rpartition(":")[2]) > 0


def test_a_monitor_hears_of_connections_made_and_lost(opened: Open, peer: Peer, url: str) -> None:
    """Those that came as soon as the socket was there are among them."""
    events, early = Inbox[list[bytes]](), peer(zmq.DEALER)
    early.connect(url)
    opened(SocketSpec(zmq.PAIR, f"inproc://{url}"), events.put)
    opened(SocketSpec(zmq.ROUTER, url, bind=True, monitor=f"inproc://{url}"))
    late = peer(zmq.DEALER)
    late.connect(url)
    descriptors = {struct.unpack("=hi", event[0]) for event in drain(events, 2)}
    assert {kind for kind, _ in descriptors} == {zmq.EVENT_ACCEPTED}
    assert len(descriptors) == 2
    early.close(0)
    late.close(0)
    lost = {struct.unpack("=hi", event[0]) for event in drain(events, 2)}
    assert lost == {(zmq.EVENT_DISCONNECTED, descriptor) for _, descriptor in descriptors}


def test_who_opens_a_socket_has_its_endpoint_before_the_first_message(peer: Peer, url: str) -> None:
    """A handler that needs the endpoint finds it, however soon a peer sends."""
    sender, endpoints, seen = peer(zmq.PUSH), list[Endpoint](), Inbox[int]()
    sender.connect(url)
    for _ in range(50):
        sender.send(b"x")
    spec = SocketSpec(zmq.PULL, url, bind=True)
    endpoint = IOThread.shared().open(spec, lambda _frames: seen.put(len(endpoints)), endpoints.append)
    assert drain(seen, 50) == [1] * 50
    assert endpoints == [endpoint]
    endpoint.close()


def test_a_handler_that_raises_stops_nothing(opened: Open, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged; later messages, calls and timers are served."""
    inbox = Inbox[list[bytes]]()

    def handler(frames: list[bytes]) -> None:
        if frames == [b"bad"]:
            raise ValueError("on purpose")
        inbox.put(frames)

    opened(SocketSpec(zmq.PULL, url, bind=True), handler)
    sender = opened(SocketSpec(zmq.PUSH, url))
    for frames in ([b"bad"], [b"good"], [b"bad"], [b"better"]):
        sender.send(frames)
    assert drain(inbox, 2) == [[b"good"], [b"better"]]
    thread = IOThread.shared()
    thread.call_soon(lambda: 1 / 0)
    thread.call_soon(thread.call_later, 0.001, lambda: 1 / 0)
    thread.call_soon(thread.call_later, 0.002, inbox.put, [b"served"])
    assert drain(inbox, 1) == [[b"served"]]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ValueError, ValueError, ZeroDivisionError, ZeroDivisionError,
    ]  # fmt: skip


def test_a_handler_cannot_open_or_close(opened: Open) -> None:
    """In the I/O thread both would wait for themselves: they are refused with a sentence."""
    endpoint = opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    errors: SimpleQueue[BaseException] = SimpleQueue()

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
        except RuntimeError as error:
            errors.put(error)

    thread = IOThread.shared()
    thread.call_soon(attempt, endpoint.close)
    thread.call_soon(attempt, lambda: thread.open(endpoint.spec, lambda _frames: None))
    for _ in range(2):
        assert "another thread" in str(errors.get(timeout=WAIT))


def test_a_closed_endpoint_refuses_and_can_be_closed_again(opened: Open) -> None:
    """Sending raises; closing twice, and from several threads at once, is fine."""
    endpoint = opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    closers = [threading.Thread(target=endpoint.close) for _ in range(4)]
    for thread in closers:
        thread.start()
    for thread in closers:
        thread.join(WAIT)
        assert not thread.is_alive()
    with pytest.raises(TransportClosedError, match="closed"):
        endpoint.send([b"x"])
    endpoint.close()


def test_a_handler_may_answer_itself_away(opened: Open, url: str) -> None:
    """A peer closed by another thread, while its messages are handled, ends in peace."""
    inbox = Inbox[list[bytes]]()
    receiver = opened(SocketSpec(zmq.PULL, url, bind=True), inbox.put)
    sender = opened(SocketSpec(zmq.PUSH, url))
    for number in range(20_000):
        sender.send([b"%d" % number])
    drain(inbox, 1)
    receiver.close()
    seen = len(inbox)
    sender.close()
    assert len(inbox) == seen


# ── calls and timers ────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_and_timers_run_in_order_in_the_one_thread(opened: Open) -> None:
    """Calls in the order they were asked for, timers in the order of their times, all in the I/O thread."""
    opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    inbox = Inbox[tuple[str, str]]()
    thread = IOThread.shared()

    def note(name: str) -> None:
        inbox.put((name, threading.current_thread().name))

    def begin() -> None:
        thread.call_later(0.03, note, "last")
        thread.call_later(0.01, note, "first")
        thread.call_later(0.02, note, "second")
        thread.call_soon(note, "now")

    thread.call_soon(begin)
    assert drain(inbox, 4) == [(name, "cobnut-io") for name in ("now", "first", "second", "last")]


def test_a_descriptor_is_watched_once(opened: Open) -> None:
    """What can be read calls back one time; to hear again one asks again."""
    opened(SocketSpec(zmq.ROUTER, "tcp://127.0.0.1:*", bind=True))
    reading, writing = os.pipe()
    inbox = Inbox[bytes]()
    thread = IOThread.shared()
    thread.call_soon(thread.watch_file, reading, lambda: inbox.put(os.read(reading, 10)))
    os.write(writing, b"once")
    assert drain(inbox, 1) == [b"once"]
    os.write(writing, b"twice")
    done = Inbox[bool]()
    thread.call_soon(thread.call_later, 0.01, done.put, True)
    drain(done, 1)
    assert len(inbox) == 0
    os.close(reading)
    os.close(writing)


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────

PROCESS = """
import os, sys, time, zmq
from cobnut_kernel.transport import IOThread, Inbox, SocketSpec

def pair(name):
    inbox = Inbox()
    url = f"ipc://{sys.argv[1]}/{name}"
    bound = IOThread.shared().open(SocketSpec(zmq.PULL, url, bind=True), inbox.put)
    return inbox, bound, IOThread.shared().open(SocketSpec(zmq.PUSH, url), inbox.put)

def exchange(inbox, bound, sender):
    sender.send([b"x"])
    while not len(inbox): time.sleep(0.001)
    inbox.drain()

parents = pair("p")
exchange(*parents)
"""

FORK = """
child = os.fork()
if child == 0:
    childs = pair("c")
    exchange(*childs)
    for endpoint in childs[1:]: endpoint.close()
    sys.exit(7)  # by the interpreter's own end, exit functions and all
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
exchange(*parents)
"""


@pytest.mark.parametrize(("code", "printed"), [(FORK, ""), ("parents[2].send([b'y']); print('end')", "end\n")])
def test_a_process_may_fork_and_may_end_with_sockets_open(tmp_path: Path, code: str, printed: str) -> None:
    """A child opens its own sockets beside its parent's, which go on; and no open socket keeps an interpreter."""
    command = [sys.executable, "-W", "error", "-c", PROCESS + code, os.path.relpath(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, printed, "")
