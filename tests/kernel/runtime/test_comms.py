"""Comms as a front end sees them: opened by either side, spoken by, closed, and real widgets on top of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.wire import Exchange, WireClient

    from cobnut_kernel.protocol.messages import Message

ECHO = """
import comm
def echo(opened, message):
    def answer(message):
        opened.send({"said": message["content"]["data"]}, message["metadata"], message["buffers"])
    def leave(message):
        print("closed with", message["content"]["data"])
    opened.on_msg(answer)
    opened.on_close(leave)
    opened.send({"opened": message["content"]["data"]})
comm.get_comm_manager().register_target("echo", echo)
"""

BLOCKING = "import time; print('on'); time.sleep(60)"
WAITING = "import asyncio; print('on'); await asyncio.sleep(60)"


def tell(client: WireClient, msg_type: str, comm_id: str, data: Any = None, **options: Any) -> Exchange:
    """Send a message of a comm, and do not wait for its idle."""
    content = {"comm_id": comm_id, "data": {} if data is None else data}
    if msg_type == MessageType.COMM_OPEN:
        content["target_name"] = options.pop("target", "echo")
    return client.request(msg_type, content, **options)


def done(client: WireClient, exchange: Exchange) -> Exchange:
    """Wait for a comm message's idle: it has no reply."""
    client.wait(lambda: exchange.idle, "idle of the comm's message")
    assert exchange.replies == []
    return exchange


def say(client: WireClient, comm_id: str, data: Any = None, **options: Any) -> Exchange:
    """Send a comm_msg and wait for its end."""
    return done(client, tell(client, MessageType.COMM_MSG, comm_id, data, **options))


def open_comm(client: WireClient, comm_id: str, data: Any = None, **options: Any) -> Exchange:
    """Open a comm and wait for its end."""
    return done(client, tell(client, MessageType.COMM_OPEN, comm_id, data, **options))


def close_comm(client: WireClient, comm_id: str, data: Any = None) -> Exchange:
    """Close a comm and wait for its end."""
    return done(client, tell(client, MessageType.COMM_CLOSE, comm_id, data))


def open_comms(client: WireClient, **content: Any) -> dict[str, Any]:
    """Ask which comms are open."""
    return client.ask(MessageType.COMM_INFO_REQUEST, content).content["comms"]


def messages(exchange: Exchange, msg_type: MessageType = MessageType.COMM_MSG) -> list[Message]:
    """Return the iopub messages of one type, whole."""
    return [message for message in exchange.iopub if message.msg_type == msg_type]


@contextmanager
def running(client: WireClient, code: str) -> Iterator[Exchange]:
    """Let a cell run meanwhile, and interrupt it at the end."""
    cell = client.send_code(code)
    client.wait_for_text(cell, "on")
    try:
        yield cell
        assert not cell.idle
    finally:
        client.control(MessageType.INTERRUPT_REQUEST)
        client.finish(cell)


# ── opened by the front end ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_front_end_opens_speaks_and_closes(client: WireClient) -> None:
    """Each message has its busy and idle and no reply, and what is said because of it names it as its parent (R8)."""
    client.execute(ECHO)
    opened = open_comm(client, "a", {"nut": 1})
    assert opened.types == ["busy", "comm_msg", "idle"]
    assert opened.only(MessageType.COMM_MSG) == {"comm_id": "a", "data": {"opened": {"nut": 1}}}
    said = say(client, "a", [1, None, "ü"])
    assert said.types == ["busy", "comm_msg", "idle"]
    assert said.only(MessageType.COMM_MSG) == {"comm_id": "a", "data": {"said": [1, None, "ü"]}}
    closed = close_comm(client, "a", "bye")
    assert closed.types == ["busy", "stream", "idle"]
    assert closed.text() == "closed with bye\n"
    assert "a" not in open_comms(client)


def test_buffers_and_metadata_go_both_ways(client: WireClient) -> None:
    """As bytes and as they are; a large one too."""
    client.execute(ECHO)
    open_comm(client, "b")
    buffers = (b"", b"\0\xff", bytes(1 << 20))
    [echo] = messages(say(client, "b", metadata={"version": "2.1.0"}, buffers=buffers))
    assert echo.buffers == buffers
    assert echo.metadata["version"] == "2.1.0"
    close_comm(client, "b")


def test_a_target_that_nobody_has_registered_closes(client: WireClient) -> None:
    """The front end hears comm_close, and the comm is not there (specification: "Opening a Comm")."""
    refused = open_comm(client, "c", target="nobody's")
    assert refused.only(MessageType.COMM_CLOSE)["comm_id"] == "c"
    assert "c" not in open_comms(client)


def test_a_target_that_fails_closes_and_says_why(client: WireClient) -> None:
    """The traceback is output of the comm_open."""
    client.execute("import comm\ndef fail(*_): 1 / 0\ncomm.get_comm_manager().register_target('fails', fail)")
    refused = open_comm(client, "d", target="fails")
    assert "ZeroDivisionError" in refused.text("stderr")
    assert refused.only(MessageType.COMM_CLOSE)["comm_id"] == "d"
    assert "d" not in open_comms(client)


def test_an_error_in_a_callback_is_shown_and_the_comm_lives(client: WireClient) -> None:
    """With its traceback, as output of the message that met it."""
    client.execute(
        "import comm\ndef frail(opened, _):\n    def answer(message):\n"
        "        opened.send({'half': 1 / message['content']['data']})\n"
        "    opened.on_msg(answer)\ncomm.get_comm_manager().register_target('frail', frail)"
    )
    open_comm(client, "e", target="frail")
    failed = say(client, "e", 0)
    assert "ZeroDivisionError" in failed.text("stderr")
    assert "answer" in failed.text("stderr")
    assert say(client, "e", 2).only(MessageType.COMM_MSG)["data"] == {"half": 0.5}
    close_comm(client, "e")


@pytest.mark.parametrize("msg_type", [MessageType.COMM_MSG, MessageType.COMM_CLOSE])
def test_a_message_to_no_comm_is_busy_and_idle(client: WireClient, msg_type: str) -> None:
    """It may have been on its way when the comm was closed: nothing is said about it."""
    assert done(client, tell(client, msg_type, "nobody")).types == ["busy", "idle"]


@pytest.mark.parametrize("content", [{}, {"comm_id": 3}, {"comm_id": "f"}, {"comm_id": "f", "target_name": None}])
@pytest.mark.parametrize("msg_type", [MessageType.COMM_OPEN, MessageType.COMM_MSG, MessageType.COMM_CLOSE])
def test_a_comm_message_without_sense_disturbs_nobody(
    client: WireClient, msg_type: MessageType, content: dict[str, Any]
) -> None:
    """It gets its busy and idle, and the next one is served."""
    done(client, client.request(msg_type, content))
    client.execute(ECHO)
    open_comm(client, "g")
    assert say(client, "g", 1).only(MessageType.COMM_MSG)["data"] == {"said": 1}
    close_comm(client, "g")


# ── opened by the kernel ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_opens_speaks_and_closes(client: WireClient) -> None:
    """In its turn among the cell's other output, with the cell as its parent; the topic is the comm's."""
    cell = client.execute(
        "import comm\nprint('before')\n"
        "nut = comm.create_comm(target_name='front', data={'a': 1}, metadata={'m': 2}, buffers=[b'x'])\n"
        "nut.send({'b': 2}, buffers=[memoryview(b'yz')])\nnut.close({'c': 3})\nprint('after')\nnut.comm_id"
    )
    expected = ["stream", "comm_open", "comm_msg", "comm_close", "stream", "execute_result"]
    assert cell.types == ["busy", "execute_input", *expected, "idle"]
    comm_id = cell.result.strip("'")
    [opened] = messages(cell, MessageType.COMM_OPEN)
    assert opened.content["comm_id"] == comm_id
    assert (opened.content["target_name"], opened.content["data"]) == ("front", {"a": 1})
    assert (opened.metadata["m"], opened.buffers) == (2, (b"x",))
    assert cell.only(MessageType.COMM_MSG) == {"comm_id": comm_id, "data": {"b": 2}}
    assert messages(cell)[0].buffers == (b"yz",)
    assert cell.only(MessageType.COMM_CLOSE) == {"comm_id": comm_id, "data": {"c": 3}}


def test_a_buffer_is_sent_as_it_was(client: WireClient) -> None:
    """What the user writes into it afterwards is not in the message."""
    cell = client.execute(
        "import comm\nnut = comm.create_comm(target_name='front')\nbuffer = bytearray(b'before')\n"
        "nut.send({}, buffers=[buffer])\nbuffer[:] = b'after!'\nnut.close()"
    )
    assert messages(cell)[0].buffers == (b"before",)


def test_data_without_a_json_form_are_the_cells_error(client: WireClient) -> None:
    """Nothing half written is sent."""
    cell = client.execute("import comm\nnut = comm.create_comm(target_name='front')\nnut.send({'a': object()})")
    assert cell.error["ename"] == "TypeError"
    assert cell.of_type(MessageType.COMM_MSG) == []
    client.execute("nut.close()")


def test_comm_info_lists_open_comms_by_target(client: WireClient) -> None:
    """All of them, or those of one target; while a cell blocks too."""
    client.execute(ECHO)
    cell = client.execute("nut = comm.create_comm(target_name='front'); nut.comm_id")
    comm_id = cell.result.strip("'")
    open_comm(client, "h")
    both = {comm_id: {"target_name": "front"}, "h": {"target_name": "echo"}}
    assert open_comms(client) == both
    assert open_comms(client, target_name="front") == {comm_id: both[comm_id]}
    assert open_comms(client, target_name="nobody's") == {}
    with running(client, BLOCKING):
        assert open_comms(client) == both
    close_comm(client, "h")
    client.execute("nut.close()")
    assert open_comms(client) == {}


# ── while cells run ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_comm_message_is_answered_while_a_cell_awaits(client: WireClient) -> None:
    """In the same thread; the cell goes on."""
    client.execute(ECHO)
    open_comm(client, "i")
    with running(client, WAITING) as cell:
        assert say(client, "i", 1).types == ["busy", "comm_msg", "idle"]
        assert cell.of_type(MessageType.COMM_MSG) == []
    close_comm(client, "i")


def test_comm_messages_are_handled_in_their_order(client: WireClient) -> None:
    """Also those that wait for a cell that blocks."""
    client.execute(ECHO)
    open_comm(client, "j")
    with running(client, BLOCKING):
        sent = [tell(client, MessageType.COMM_MSG, "j", number) for number in range(50)]
    for exchange in sent:
        done(client, exchange)
    spoken = [message.content["data"].get("said") for _, message in client.messages if message.msg_type == "comm_msg"]
    assert spoken[1:] == list(range(50))
    close_comm(client, "j")


@pytest.mark.parametrize("ways", ["all", "by name"])
@pytest.mark.parametrize("code", ["time.sleep(60)", "threading.Event().wait()", "[None for _ in iter(int, 1)]"])
@pytest.mark.parametrize("where", ["main", "subshell"])
def test_a_callback_that_blocks_can_be_interrupted(client: WireClient, code: str, where: str, ways: str) -> None:
    """The interrupt is shown for the message, and the comm goes on."""
    shell = client.create_subshell() if where == "subshell" else None
    client.execute(
        f"import comm, threading, time\ndef slow(opened, _):\n    def answer(_):\n        print('on')\n        {code}\n"
        "    opened.on_msg(answer)\ncomm.get_comm_manager().register_target('slow', slow)"
    )
    open_comm(client, "k", target="slow", subshell_id=shell)
    asked = tell(client, MessageType.COMM_MSG, "k", subshell_id=shell)
    client.wait_for_text(asked, "on")
    if ways == "all":
        client.control(MessageType.INTERRUPT_REQUEST)
    else:
        client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=[asked.request.msg_id])
    assert done(client, asked).error["ename"] == "KeyboardInterrupt"
    assert client.execute("'fine'", subshell=shell).result == "'fine'"
    assert "k" in open_comms(client)
    close_comm(client, "k")
    if shell is not None:
        client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=shell)


def test_a_comm_message_runs_in_the_subshell_that_its_header_names(client: WireClient) -> None:
    """So it is answered while the main shell blocks; without a name it waits for the main shell."""
    shell = client.create_subshell()
    client.execute(
        "import comm, threading\ndef where(opened, _):\n    def answer(message):\n"
        "        opened.send([get_ipython().subshell_id, threading.current_thread() is threading.main_thread()])\n"
        "    opened.on_msg(answer)\ncomm.get_comm_manager().register_target('where', where)"
    )
    open_comm(client, "l", target="where", subshell_id=shell)
    with running(client, BLOCKING):
        answered = say(client, "l", subshell_id=shell)
        waiting = tell(client, MessageType.COMM_MSG, "l")
    assert answered.only(MessageType.COMM_MSG)["data"] == [shell, False]
    assert done(client, waiting).only(MessageType.COMM_MSG)["data"] == [None, True]
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=shell)
    close_comm(client, "l")


def test_a_comm_message_on_control_is_answered_by_the_same_comm(client: WireClient) -> None:
    """It has a line of its own there."""
    client.execute(ECHO)
    open_comm(client, "m")
    said = done(client, tell(client, MessageType.COMM_MSG, "m", 5, channel=Channel.CONTROL))
    assert said.only(MessageType.COMM_MSG)["data"] == {"said": 5}
    close_comm(client, "m")


def test_a_comm_message_of_an_unknown_subshell_is_busy_and_idle(client: WireClient) -> None:
    """There is no reply that could say why (R40)."""
    assert done(client, tell(client, MessageType.COMM_MSG, "n", subshell_id="nobody")).types == ["busy", "idle"]


# ── widgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_slider_is_observed_from_the_kernel(client: WireClient) -> None:
    """ipywidgets: the front end moves it, the observer runs, and what the kernel sets comes back as an update."""
    cell = client.execute(
        "import ipywidgets\nslider = ipywidgets.IntSlider(min=0, max=10)\n"
        "doubled = ipywidgets.IntText()\n"
        "def moved(change):\n    print('moved to', change['new'])\n    doubled.value = 2 * change['new']\n"
        "slider.observe(moved, 'value')\nslider.comm.comm_id, doubled.comm.comm_id"
    )
    opened = {message["target_name"] for message in cell.of_type(MessageType.COMM_OPEN)}
    assert opened == {"jupyter.widget"}
    slider, doubled = cell.result.strip("()").replace("'", "").split(", ")
    moved = say(client, slider, {"method": "update", "state": {"value": 7}, "buffer_paths": []})
    assert moved.text() == "moved to 7\n"
    updates = {m["comm_id"]: m["data"] for m in moved.of_type(MessageType.COMM_MSG) if m["data"]["method"] == "update"}
    assert updates[doubled]["state"] == {"value": 14}
    assert client.execute("slider.value").result == "7"
    asked = say(client, slider, {"method": "request_state"})
    assert asked.only(MessageType.COMM_MSG)["data"]["state"]["value"] == 7
    closed = client.execute("slider.close_all()")
    assert {message["comm_id"] for message in closed.of_type(MessageType.COMM_CLOSE)} >= {slider, doubled}


def test_a_slider_moves_while_a_cell_awaits(client: WireClient) -> None:
    """So that a cell can wait for what the user does."""
    client.execute("import ipywidgets, asyncio\nslider = ipywidgets.IntSlider()")
    slider = client.execute("slider.comm.comm_id").result.strip("'")
    cell = client.send_code(
        "moved = asyncio.Event()\nslider.observe(lambda _: moved.set(), 'value')\nprint('on')\n"
        "await moved.wait()\nslider.value"
    )
    client.wait_for_text(cell, "on")
    say(client, slider, {"method": "update", "state": {"value": 3}, "buffer_paths": []})
    assert client.finish(cell).result == "3"
    client.execute("slider.close_all()")


def test_an_output_widget_names_the_message_whose_output_it_captures(client: WireClient) -> None:
    """The front end is told before the output, and told that it is over after it."""
    client.execute("import ipywidgets\nout = ipywidgets.Output()")
    cell = client.execute("with out:\n    print('inside')\n    display('shown')\nprint('outside')")
    story = [
        (m.content["data"]["state"]["msg_id"] if m.msg_type == "comm_msg" else m.content.get("text", m.msg_type))
        for m in cell.iopub
        if m.msg_type in {"comm_msg", "stream", "display_data"}
    ]
    assert story == [cell.request.msg_id, "inside\n", "display_data", "", "outside\n"]
    client.execute("out.close()")


def test_an_error_inside_an_output_widget_is_captured(client: WireClient) -> None:
    """It is shown there, and the cell goes on."""
    client.execute("import ipywidgets\nout = ipywidgets.Output()")
    cell = client.execute("with out:\n    1 / 0\nprint('on')")
    assert cell.content["status"] == "ok"
    types = [kind for kind in cell.types if kind in {"comm_msg", "error", "stream"}]
    assert types == ["comm_msg", "error", "comm_msg", "stream"]
    client.execute("out.close()")


def test_interact_runs_a_function_in_the_callback(client: WireClient) -> None:
    """What it prints belongs to the message that moved the slider."""
    cell = client.execute(
        "import ipywidgets\nwork = ipywidgets.interactive(lambda x: print('x is', x), x=(0, 10))\n"
        "work.children[0].comm.comm_id"
    )
    slider = cell.result.strip("'")
    moved = say(client, slider, {"method": "update", "state": {"value": 9}, "buffer_paths": []})
    assert moved.text() == "x is 9\n"
    client.execute("work.close_all()")
