"""The kernel's voice as clients hear it: nothing is lost, for whoever sleeps, forks, or comes late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.wire import KEY, KernelProcess, WireClient, wait_until

from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.output.journal import Journal
from cobnut_kernel.runtime.output.outbox import CROWD_OF_MESSAGES, Outbox, Outgoing
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[..., KernelProcess]

WAIT = 20
"""Seconds after which a test gives up; a good one never waits so long."""

PARENT = dumps({"msg_id": "request"})


def numbers(metadata: dict[str, Any]) -> range:
    """Return the numbers that a message stands for."""
    return range(metadata.get("first_seq", metadata["seq"]), metadata["seq"] + 1)


def heard_by(client: WireClient) -> list[int]:
    """Return the numbers that a client has heard, in their order."""
    iopub = [message for channel, message in client.messages if channel is Channel.IOPUB]
    return [number for message in iopub if "seq" in message.metadata for number in numbers(message.metadata)]


def journal_of(client: WireClient, since: int, **asked: Any) -> list[dict[str, Any]]:
    """Ask for page after page of the journal, and return all messages."""
    messages: list[dict[str, Any]] = []
    following: int | None = since
    while following is not None:
        content = client.ask("journal_request", {"since": following, **asked}, Channel.CONTROL).content
        assert (content["status"], content["cut"]) == ("ok", [])
        messages += content["messages"]
        following = content["next"]
    return messages


# ── the outbox alone ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox without clients: what is said is in its journal."""
    thread = IOThread.shared()
    endpoint = thread.open(SocketSpec(zmq.XPUB, f"ipc://{os.path.relpath(tmp_path / 's')}", bind=True), lambda _: None)
    outbox = Outbox(thread, Codec(KEY), Journal(folder=tmp_path))
    outbox.publisher.open(endpoint)
    yield outbox
    outbox.close()
    endpoint.close()


def said(outbox: Outbox, count: int) -> list[tuple[str, Any]]:
    """Return what was said as soon as it is so much: of which cell, and the text or the value."""
    wait_until(lambda: outbox.journal.last >= count, f"{count} messages", WAIT)
    content = json.loads(dumps(outbox.journal.page({"since": 0, "limit": 16 << 20}).content))
    return [
        (message["parent_header"].get("msg_id", ""), message["content"].get("text", message["content"].get("value")))
        for message in content["messages"]
    ]


def test_a_cells_text_goes_before_what_it_says_next(outbox: Outbox) -> None:
    """Texts written in turns by two cells become one message each, before anything else of the same cell (R9)."""
    gate, parents = threading.Event(), [dumps({"msg_id": name}) for name in "ab"]
    outbox._thread.call_soon(gate.wait, WAIT)
    for turn in range(3):
        for parent in parents:
            outbox.write(parent, "stdout", f"{turn} ")
    outbox.post(Outgoing(Channel.IOPUB, "display_data", dumps({"value": 1}), parents[0]))
    outbox.write(parents[1], "stdout", "end\n")
    gate.set()
    assert said(outbox, 3) == [("a", "0 1 2 "), ("a", 1), ("b", "0 1 2 end\n")]


def test_a_line_waits_for_its_end_one_look_long(outbox: Outbox) -> None:
    """Where `print` loses the processor before its line end, that is one message all the same; a prompt has no end."""

    def write_and_look(*texts: str) -> list[int]:
        counts: list[int] = []
        for text in texts:
            outbox.write(PARENT, "stdout", text, 1)
            outbox._send_all()
            counts.append(outbox.journal.last)
        return counts

    assert outbox._thread._call(lambda: write_and_look("hazel", "\n")) == [0, 1]
    assert outbox._thread._call(lambda: write_and_look("name", "?", " ")) == [1, 2, 3]
    assert "".join(text for _, text in said(outbox, 3)) == "hazel\nname? "


def test_a_writer_in_a_flood_waits_for_the_thread_that_sends(outbox: Outbox) -> None:
    """Messages do not heap up before the I/O thread while that does not run."""
    gate, posted = threading.Event(), 0
    outbox._thread.call_soon(gate.wait, WAIT)

    def flood() -> None:
        nonlocal posted
        for posted in range(3 * CROWD_OF_MESSAGES):
            outbox.post(Outgoing(Channel.IOPUB, "display_data", dumps({"value": posted}), PARENT))

    flooding = threading.Thread(target=flood)
    flooding.start()
    wait_until(lambda: len(outbox._items) > CROWD_OF_MESSAGES, "the crowd", WAIT)
    flooding.join(0.05)
    assert posted <= CROWD_OF_MESSAGES
    gate.set()
    flooding.join()
    assert [value for _, value in said(outbox, 3 * CROWD_OF_MESSAGES)] == list(range(3 * CROWD_OF_MESSAGES))


def test_a_forked_child_says_nothing_and_its_parent_goes_on(outbox: Outbox) -> None:
    """After `abandon` nothing is kept or sent in the child; the parent's journal is as it was."""
    outbox.post(Outgoing(Channel.IOPUB, "display_data", dumps({"value": "parent"}), PARENT))
    assert said(outbox, 1) == [("request", "parent")]
    child = os.fork()
    if child == 0:
        outbox.abandon()
        outbox.post(Outgoing(Channel.IOPUB, "display_data", b"{}", PARENT))
        outbox.write(PARENT, "stdout", "x" * 2_000_000)
        os._exit(0 if not outbox._items else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    outbox.write(PARENT, "stdout", "goes on")
    assert said(outbox, 2) == [("request", "parent"), ("request", "goes on")]


# ── a kernel and its clients ────────────────────────────────────────────────────────────────────────────────────────

OTHER_CLIENT = """
import json, sys
from tests.kernel.wire import KernelProcess, WireClient
from tests.kernel.runtime.output.test_outbox import heard_by, journal_of
from cobnut_kernel.protocol.connection import ConnectionInfo

class Kernel:  # as much of one as a client needs that did not start it
    info = ConnectionInfo.from_dict(json.loads(sys.argv[1]))
    class process:
        poll = staticmethod(lambda: None)
    describe = staticmethod(lambda: "")

client = WireClient(Kernel)
client.wait(lambda: client.welcomes, "the welcome")
print("ready", flush=True)
sys.stdin.readline()
while client.receive(0.5):
    pass
heard = heard_by(client)
values = [m.content["data"]["text/plain"] for _, m in client.messages if m.msg_type == "display_data"]
missed, states = [], [m.content["execution_state"] for _, m in client.messages if m.msg_type == "status"]
since = heard[0] - 1
gaps = [(a, b) for a, b in zip([since, *heard], heard) if b != a + 1] + [(heard[-1], 1 << 60)]
for before, after in gaps:
    for message in journal_of(client, before, until=after - 1, limit=100_000):
        if message["msg_type"] == "display_data":
            missed.append(message["content"]["data"]["text/plain"])
        elif message["msg_type"] == "status":
            states.append(message["content"]["execution_state"])
print(json.dumps({"heard": values, "missed": missed, "states": states, "gaps": gaps}), flush=True)
client.close()
"""


def test_a_client_stopped_in_a_flood_of_displays_holds_up_nobody_and_finds_the_rest(start_kernel: Start) -> None:
    """Of two clients one is stopped by SIGSTOP during 20 000 displays: the other has every output and idle.

    The one that slept hears what was sent to it before, and gets the rest from the journal.
    """
    kernel = start_kernel()
    client = kernel.connect()
    command = [sys.executable, "-c", OTHER_CLIENT, json.dumps(kernel.info.as_dict())]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.send_signal(signal.SIGSTOP)
        cell = client.execute("for i in range(20_000): display({'text/plain': str(i)}, raw=True)")
        expected = [str(number) for number in range(20_000)]
        assert [content["data"]["text/plain"] for content in cell.of_type(MessageType.DISPLAY_DATA)] == expected
        assert (cell.types[0], cell.types[-1]) == ("busy", "idle")
        other.send_signal(signal.SIGCONT)
        print("go on", file=other.stdin, flush=True)
        found = json.loads(other.stdout.readline())
    assert found["heard"] == expected[: len(found["heard"])]
    assert found["missed"] == expected[len(found["heard"]) :]
    assert len(found["missed"]) > 10_000
    assert "idle" in found["states"]


def test_a_late_client_finds_all_in_the_journal(start_kernel: Start) -> None:
    """What was said before it came is what the first client heard, text joined, numbers without a gap."""
    kernel = start_kernel()
    first = kernel.connect()
    cell = first.execute("import sys\nfor i in range(3000): print(i)\nprint('!', file=sys.stderr)\ndisplay(1)\n1/0")
    late = kernel.connect()
    messages = journal_of(late, 0, limit=5000)
    mine = [m for m in messages if m["parent_header"].get("msg_id") == cell.request.msg_id]
    assert "".join(
        m["content"]["text"] for m in mine if m["msg_type"] == "stream" and m["content"]["name"] == "stdout"
    ) == ("".join(f"{number}\n" for number in range(3000)))
    kinds = [m["msg_type"] for m in mine]
    assert [kind for kind in kinds if kind != "stream"] == [
        "status",
        "execute_input",
        "display_data",
        "error",
        "status",
    ]
    told = [number for message in messages for number in numbers(message["metadata"])]
    assert told == list(range(1, told[-1] + 1))
    assert set(heard_by(first)) <= set(told) | set(range(told[-1], told[-1] + 20))
    assert mine[-1]["header"]["msg_type"] == "status"
    assert late.welcomes[0].metadata["last_seq"] < told[-1]


def test_a_kernel_that_is_killed_leaves_no_journal(start_kernel: Start, tmp_path: Path) -> None:
    """More than memory takes lies in a file that has no name, and is gone with the process, however that ends."""
    kernel = start_kernel(env={"TMPDIR": str(tmp_path)})
    client = kernel.connect()
    client.execute("text = 'x' * 1_000_000\nfor i in range(60): print(text)")
    files = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{kernel.process.pid}/fd").iterdir()]
    [spilled] = [name for name in files if name.startswith(str(tmp_path))]
    assert spilled.endswith("(deleted)")
    assert list(tmp_path.iterdir()) == []
    kernel.process.kill()
    kernel.process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_lone_client_that_sleeps_loses_nothing(start_kernel: Start) -> None:
    """30 000 displays while it reads nothing: it finds all of them, and idle, and the numbers have no gap."""
    kernel = start_kernel()
    client = kernel.connect()
    watcher = client.send_code("for i in range(30_000): display({'text/plain': str(i)}, raw=True)\nprint('end')")
    wait_until(lambda: client.sockets[Channel.SHELL].poll(0), "the reply", WAIT)
    client.finish(watcher)
    shown = [content["data"]["text/plain"] for content in watcher.of_type(MessageType.DISPLAY_DATA)]
    assert shown == [str(number) for number in range(30_000)]
    heard = heard_by(client)
    assert heard == list(range(heard[0], heard[-1] + 1))
