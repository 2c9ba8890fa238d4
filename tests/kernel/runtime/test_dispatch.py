"""Requests: busy before and idle after each, replies to whoever asked, in order, and nobody waits for a cell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.protocol.codec import DELIMITER, Codec
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from tests.kernel.wire import KernelProcess, WireClient

BOTH = pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])

BLOCK = "import time\nprint('blocking')\ntime.sleep(60)"
"""A cell that says when it blocks; a test that starts it interrupts it."""


def interrupt(client: WireClient) -> None:
    """Stop the cell that blocks."""
    client.ask(MessageType.INTERRUPT_REQUEST, channel=Channel.CONTROL)


# ── busy and idle ───────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize(
    ("request_type", "reply_type"),
    [
        (MessageType.KERNEL_INFO_REQUEST, "kernel_info_reply"),
        (MessageType.COMM_INFO_REQUEST, "comm_info_reply"),
        (MessageType.INTERRUPT_REQUEST, "interrupt_reply"),
    ],
)
def test_a_request_is_answered_between_busy_and_idle(
    client: WireClient, channel: Channel, request_type: MessageType, reply_type: str
) -> None:
    """On both channels: busy, the reply on the same channel, idle, all with the request as parent (R8)."""
    exchange = client.ask(request_type, channel=channel)
    assert exchange.types == ["busy", "idle"]
    assert exchange.reply.msg_type == reply_type
    assert exchange.content["status"] == "ok"


@BOTH
def test_a_cell_is_run_between_busy_and_idle(client: WireClient, channel: Channel) -> None:
    """An execute request is answered on either channel, with all that belongs to a cell."""
    exchange = client.execute("print('a'); 1 + 1", channel=channel)
    assert exchange.types == ["busy", "execute_input", "stream", "execute_result", "idle"]
    assert exchange.content["status"] == "ok"


def test_cells_of_control_and_shell_do_not_run_at_once(client: WireClient) -> None:
    """A cell sent on control waits for the cell of the shell channel: both run in the main thread."""
    first = client.send_code("import time, threading; time.sleep(0.3); order = ['first']")
    second = client.send_code(
        "order.append(threading.current_thread() is threading.main_thread()); order", channel=Channel.CONTROL
    )
    client.finish(first)
    assert client.finish(second).result == "['first', True]"


@BOTH
@pytest.mark.parametrize("msg_type", ["make_coffee_request", "comm_open", "comm_msg", "comm_close", "nonsense"])
def test_a_request_the_kernel_does_not_know_is_busy_and_idle(
    client: WireClient, channel: Channel, msg_type: str
) -> None:
    """What has no reply in the specification gets none, but its sender learns that it is done with (R8)."""
    exchange = client.request(msg_type, {"comm_id": "x", "data": {}}, channel)
    client.wait(lambda: exchange.idle, "idle")
    client.ask(MessageType.KERNEL_INFO_REQUEST, channel=channel)
    assert exchange.types == ["busy", "idle"]
    assert exchange.replies == []


@pytest.mark.parametrize(
    "content", [{}, {"code": None}, {"code": 3}, {"code": "1", "user_expressions": [1]}, {"code": ["1"]}]
)
def test_a_broken_execute_request_gets_an_error_reply(client: WireClient, content: dict[str, Any]) -> None:
    """A content that is none is answered with an error, and the next cell runs."""
    exchange = client.ask(MessageType.EXECUTE_REQUEST, content)
    assert exchange.content["status"] == "error"
    assert exchange.types[0] == "busy"
    assert exchange.types[-1] == "idle"
    assert client.execute("'fine'").result == "'fine'"


def test_input_replies_that_nobody_asked_for_are_ignored(client: WireClient) -> None:
    """What comes on the stdin channel unasked disturbs nothing."""
    client.request(MessageType.INPUT_REPLY, {"value": "surprise"}, Channel.STDIN)
    assert client.execute("'fine'").result == "'fine'"


# ── parents and identities ──────────────────────────────────────────────────────────────────────────────────────────


@BOTH
def test_answers_name_their_parent_byte_for_byte(client: WireClient, channel: Channel) -> None:
    """Reply and iopub carry the request's header as it was written: spacing, order and fields nobody knows."""
    fields = {
        "x-trace": [1, {"é": None}],
        "msg_id": "one-of-mine",
        "msg_type": "execute_request",
        "session": "s",
        "username": "ü",
        "date": "2024-01-01T00:00:00.000001+02:00",
        "version": "5.4",
    }
    header = json.dumps(fields, indent=1, ensure_ascii=False).encode()
    content = json.dumps({"code": "print(1); 2", "silent": False}).encode()
    frames = client.codec.sign((header, b"{}", b"{}", content))
    client.sockets[channel].send_multipart(frames)
    seen = lambda: [m for ms in client.strays.values() for m in ms]  # noqa: E731
    client.wait(lambda: len([m for m in seen() if m.parent_id == "one-of-mine"]) == 6, "six messages")
    for message in seen():
        assert client.parents[message.msg_id] == header, message.msg_type


def test_each_client_gets_its_own_replies_and_all_see_iopub(kernel: KernelProcess, client: WireClient) -> None:
    """Replies go to the asking client alone; outputs go to every one, under the asking one's parent."""
    other = kernel.connect()
    mine, theirs = client.send_code("'mine'"), other.send_code("'theirs'")
    assert client.finish(mine).result == "'mine'"
    assert other.finish(theirs).result == "'theirs'"
    client.ask(MessageType.KERNEL_INFO_REQUEST)
    other.ask(MessageType.KERNEL_INFO_REQUEST)
    assert "execute_reply" not in client.strays
    assert "execute_reply" not in other.strays
    for watcher, asker in ((client, theirs), (other, mine)):
        watcher.wait(lambda: watcher.strays["execute_result"], "the other's result")  # noqa: B023 - at once
        assert [m.parent_id for m in watcher.strays["execute_result"]] == [asker.request.msg_id]


def test_a_client_that_reconnects_under_its_identity_gets_its_replies(kernel: KernelProcess) -> None:
    """The new connection takes the old one's place, while the old one is still open (ipykernel #270)."""
    before = kernel.connect(identity=b"myself", session="myself")
    assert before.execute("1").result == "1"
    after = kernel.connect(identity=b"myself", session="myself")
    assert after.execute("2").result == "2"
    assert after.ask(MessageType.KERNEL_INFO_REQUEST, channel=Channel.CONTROL).content["status"] == "ok"


def test_a_subscriber_without_replies_still_hears_everything(kernel: KernelProcess, client: WireClient) -> None:
    """A client that only listens sees the cells of the others, with their parents."""
    listener = kernel.connect()
    exchange = client.execute("print('for all')")
    listener.wait(lambda: listener.strays["status"][1:], "the other's idle")
    assert {m.parent_id for ms in listener.strays.values() for m in ms} == {exchange.request.msg_id}


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_order_within_a_cell(client: WireClient) -> None:
    """Busy, input, outputs as they came, the reply, idle; and nothing is later than the reply but idle (R9)."""
    code = (
        "import sys\nprint('a')\nprint('b', file=sys.stderr)\ndisplay(1)\nprint('c')\n"
        "get_ipython().displayhook(2)\nprint('d')\n1 / 0"
    )
    exchange = client.execute(code)
    assert exchange.types == [
        "busy", "execute_input", "stream", "stream", "display_data", "stream", "execute_result", "stream", "error",
        "idle",
    ]  # fmt: skip
    dates = [message.header.date for message in (*exchange.iopub[:-1], exchange.reply, exchange.iopub[-1])]
    assert dates == sorted(dates)


def test_queued_cells_run_in_order(client: WireClient) -> None:
    """100 cells sent at once: counts and replies come one after the other (R10)."""
    first = client.execute("turns = []").content["execution_count"]
    cells = [client.send_code(f"turns.append({number}); {number}") for number in range(100)]
    client.finish(cells[-1])
    assert [cell.content["execution_count"] for cell in cells] == list(range(first + 1, first + 101))
    assert [cell.result for cell in cells] == [str(number) for number in range(100)]
    replies = [m.parent_id for channel, m in client.messages if channel is Channel.SHELL]
    assert replies[1:] == [cell.request.msg_id for cell in cells]
    assert client.execute("turns == list(range(100))").result == "True"


def test_no_cell_begins_before_the_last_one_is_idle(client: WireClient) -> None:
    """On iopub the messages of queued cells do not mix."""
    cells = [client.send_code(f"print({number})") for number in range(20)]
    client.finish(cells[-1])
    parents = [m.parent_id for channel, m in client.messages if channel is Channel.IOPUB and m.parent_id]
    assert parents == [cell.request.msg_id for cell in cells for _ in cell.iopub]


@BOTH
def test_questions_are_answered_while_a_cell_blocks(client: WireClient, channel: Channel) -> None:
    """kernel_info and comm_info get reply and idle on both channels while the main thread sleeps."""
    cell = client.send_code(BLOCK)
    client.wait_for_text(cell, "blocking")
    assert client.ask(MessageType.KERNEL_INFO_REQUEST, channel=channel).content["status"] == "ok"
    assert client.ask(MessageType.COMM_INFO_REQUEST, channel=channel).content["comms"] == {}
    assert cell.replies == []
    interrupt(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


# ── aborts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_aborts_the_cells_that_wait(client: WireClient) -> None:
    """Those queued at the error are refused with busy, an aborted reply and idle; later ones run (R16)."""
    failing = client.send_code("import time; time.sleep(0.2); 1 / 0")
    waiting = [client.send_code(f"print({number})") for number in range(3)]
    question = client.request(MessageType.KERNEL_INFO_REQUEST)
    assert client.finish(failing).content["ename"] == "ZeroDivisionError"
    later = client.send_code("'ran'")
    for cell in waiting:
        assert client.finish(cell).content == {"status": "aborted"}
        assert cell.types == ["busy", "idle"]
    assert client.finish(question).content["status"] == "ok"
    assert client.finish(later).result == "'ran'"


def test_an_error_aborts_nothing_where_the_request_says_so(client: WireClient) -> None:
    """With stop_on_error off the waiting cells run."""
    client.send_code("1 / 0", stop_on_error=False)
    assert client.execute("'ran'").result == "'ran'"


def test_a_silent_error_aborts_nothing(client: WireClient) -> None:
    """A front end's own silent request, failed, costs the user nothing."""
    failing = client.send_code("1 / 0", silent=True)
    assert client.execute("'ran'").result == "'ran'"
    client.finish(failing)


def test_an_interrupt_aborts_the_cells_that_wait(client: WireClient) -> None:
    """An interrupted cell is an error like any other to those queued behind it."""
    cell = client.send_code(BLOCK)
    waiting = client.send_code("print('ran')")
    client.wait_for_text(cell, "blocking")
    interrupt(client)
    assert client.finish(cell).content["status"] == "error"
    assert client.finish(waiting).content == {"status": "aborted"}


# ── what is no request ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL, Channel.STDIN])
def test_frames_that_are_no_message_of_ours_are_ignored(client: WireClient, channel: Channel) -> None:
    """Garbage, truncated, unsigned, wrongly signed and repeated frames cause nothing, and the kernel goes on."""
    good = client.codec.encode(client.codec.message("kernel_info_request", {}))
    stranger = Codec(b"another key")
    unsigned = [DELIMITER, b"", *good[2:]]
    forged = stranger.encode(stranger.message("execute_request", {"code": "import os; os._exit(1)"}))
    changed = [*good[:-1], b'{"x":1}']
    not_json = client.codec.sign((b"{", b"}", b"[]", b"\xff"))
    no_object = client.codec.sign((b"[]", b"1", b'"a"', b"null"))
    no_type = client.codec.sign((b'{"msg_id": "1"}', b"{}", b"{}", b"{}"))
    broken = [
        [b""],
        [b"garbage"],
        [DELIMITER],
        [DELIMITER] * 9,
        good[:-1],
        good[:3],
        good[1:],
        unsigned,
        forged,
        changed,
        not_json,
        no_object,
        no_type,
        [b"\0" * 1000] * 50,
    ]
    for frames in broken:
        client.sockets[channel].send_multipart(frames)
    exchange = client.ask(MessageType.KERNEL_INFO_REQUEST, channel=channel if channel != "stdin" else Channel.SHELL)
    assert exchange.content["status"] == "ok"
    assert client.execute("'fine'").result == "'fine'"
    assert dict(client.strays) == {}


def test_a_repeated_message_is_taken_once(client: WireClient) -> None:
    """A recorded execute request, sent again, does not run again."""
    client.execute("runs = 0")
    message = client.codec.message("execute_request", {"code": "runs += 1"})
    for _ in range(3):
        client.sockets[Channel.SHELL].send_multipart(client.codec.encode(message))
    assert client.execute("runs").result == "1"


def test_an_expression_that_cannot_be_sent_fails_alone(client: WireClient) -> None:
    """A user expression whose value has no JSON form is an error in the reply; the cell and the others are well."""
    client.execute("class Odd:\n    def _repr_mimebundle_(self, **_):\n        return {'text/plain': object()}\n")
    content = client.execute("1", user_expressions={"odd": "Odd()", "even": "2"}).content
    assert content["status"] == "ok"
    assert content["user_expressions"]["odd"]["ename"] == "TypeError"
    assert content["user_expressions"]["even"]["data"] == {"text/plain": "2"}
