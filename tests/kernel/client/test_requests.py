"""What the requests say, and how a client is made."""

from __future__ import annotations

import json
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest
from traitlets.config import Config

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import ConnectionFileError, TransportClosedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.client.conftest import KernelDouble

EXECUTE = {
    "code": "1",
    "silent": False,
    "store_history": True,
    "user_expressions": {},
    "allow_stdin": True,
    "stop_on_error": True,
}
"""The content of an execute_request by default."""

HISTORY = {"raw": True, "output": False, "hist_access_type": "range", "session": 0, "start": 0}
"""The content of a history_request by default."""


@pytest.mark.parametrize(
    ("ask", "channel", "msg_type", "content"),
    [
        (lambda c: c.execute("1"), "shell", "execute_request", EXECUTE),
        (
            lambda c: c.execute("1", True, False, {"a": "b"}, False, False),
            "shell",
            "execute_request",
            {
                "code": "1",
                "silent": True,
                "store_history": False,
                "user_expressions": {"a": "b"},
                "allow_stdin": False,
                "stop_on_error": False,
            },
        ),
        (lambda c: c.run("1", silent=True).msg_id, "shell", "execute_request", {**EXECUTE, "silent": True}),
        (lambda c: c.complete("añb"), "shell", "complete_request", {"code": "añb", "cursor_pos": 3}),
        (lambda c: c.complete("ab", 0), "shell", "complete_request", {"code": "ab", "cursor_pos": 0}),
        (
            lambda c: c.inspect("ab", detail_level=1),
            "shell",
            "inspect_request",
            {"code": "ab", "cursor_pos": 2, "detail_level": 1},
        ),
        (lambda c: c.is_complete("1"), "shell", "is_complete_request", {"code": "1"}),
        (lambda c: c.history(), "shell", "history_request", HISTORY),
        (
            lambda c: c.history(hist_access_type="tail", n=5),
            "shell",
            "history_request",
            {"raw": True, "output": False, "hist_access_type": "tail", "n": 5},
        ),
        (lambda c: c.kernel_info(), "shell", "kernel_info_request", {}),
        (lambda c: c.comm_info(), "shell", "comm_info_request", {}),
        (lambda c: c.comm_info("target"), "shell", "comm_info_request", {"target_name": "target"}),
        (lambda c: c.shutdown(), "control", "shutdown_request", {"restart": False}),
        (lambda c: c.shutdown(restart=True), "control", "shutdown_request", {"restart": True}),
        (lambda c: c.connect_request(), "shell", "connect_request", {}),
        (lambda c: c.interrupt(), "control", "interrupt_request", {}),
        (lambda c: c.interrupt_cells(["a"]), "control", "interrupt_cells_request", {"msg_ids": ["a"]}),
        (lambda c: c.interrupt_cells(subshell_id=None), "control", "interrupt_cells_request", {"subshell_id": None}),
        (
            lambda c: c.interrupt_cells(("a", "b"), "s"),
            "control",
            "interrupt_cells_request",
            {"msg_ids": ["a", "b"], "subshell_id": "s"},
        ),
        (lambda c: c.create_subshell(), "control", "create_subshell_request", {}),
        (lambda c: c.create_subshell("private"), "control", "create_subshell_request", {"namespace": "private"}),
        (lambda c: c.delete_subshell("s"), "control", "delete_subshell_request", {"subshell_id": "s"}),
        (lambda c: c.list_subshells(), "control", "list_subshell_request", {}),
        (lambda c: c.debug({"command": "x"}), "control", "debug_request", {"command": "x"}),
        (lambda c: c.stack(), "control", "stack_request", {}),
        (lambda c: c.variables(), "control", "variables_request", {}),
        (lambda c: c.variables(5, None), "control", "variables_request", {"limit": 5, "subshell_id": None}),
        (lambda c: c.usage(), "control", "usage_request", {}),
        (lambda c: c.journal(3), "control", "journal_request", {"since": 3}),
        (lambda c: c.journal(3, 9, 100), "control", "journal_request", {"since": 3, "until": 9, "limit": 100}),
        (lambda c: c.input("text"), "stdin", "input_reply", {"value": "text"}),
    ],
)
def test_request_says(
    client: AsyncKernelClient,
    kernel: KernelDouble,
    ask: Callable[[AsyncKernelClient], str],
    channel: str,
    msg_type: str,
    content: dict[str, Any],
) -> None:
    """Each request goes on its channel with the specification's content, and returns the id it was sent with."""
    msg_id = ask(client)
    request = kernel.receive(channel)
    assert (request.msg_id, request.msg_type, request.content) == (msg_id, msg_type, content)
    assert request.header.session == client.session_id


def test_subshell_is_named_in_the_header(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """An execution meant for a subshell says so in its header (JEP 91)."""
    client.execute("1", subshell_id="second")
    assert kernel.receive().header.subshell_id == "second"
    client.run("1", subshell_id="third")
    assert kernel.receive().header.subshell_id == "third"


def test_allow_stdin_is_configurable(kernel: KernelDouble) -> None:
    """allow_stdin is a trait: configuration sets what executions allow, and a call overrides it."""
    client = AsyncKernelClient(kernel.info, config=Config({"AsyncKernelClient": {"allow_stdin": False}}))
    client.start_channels()
    try:
        client.execute("1")
        assert kernel.receive().content["allow_stdin"] is False
        client.execute("1", allow_stdin=True)
        assert kernel.receive().content["allow_stdin"] is True
    finally:
        client.stop_channels()


def test_connection_file_is_read(kernel: KernelDouble, tmp_path: Path) -> None:
    """A client can be given a connection file."""
    file = tmp_path / "connection.json"
    file.write_text(json.dumps(kernel.info.as_dict()))
    assert AsyncKernelClient(connection_file=file).connection_info == kernel.info


def test_one_connection_is_enough(kernel: KernelDouble) -> None:
    """With two connections there is no client."""
    with pytest.raises(ConnectionFileError, match="either connection_info or connection_file"):
        AsyncKernelClient(kernel.info, connection_file="file")


def test_connection_is_loaded_later(kernel: KernelDouble, tmp_path: Path) -> None:
    """A client may be made without a connection and load one, from a file or a dict; without it cannot start."""
    client = AsyncKernelClient()
    with pytest.raises(ConnectionFileError, match="has no connection"):
        client.start_channels()
    file = tmp_path / "connection.json"
    file.write_text(json.dumps(kernel.info.as_dict()))
    client.load_connection_file(file)
    assert client.connection_info == kernel.info
    assert client.connection_file == str(file)
    other = AsyncKernelClient()
    other.load_connection_info(kernel.info.as_dict())
    assert other.connection_info == kernel.info
    assert other.get_connection_info() == {**kernel.info.as_dict(), "key": kernel.info.key}
    assert other.get_connection_info(session=True)["session"].key == kernel.info.key
    other.start_channels()
    try:
        msg_id = other.kernel_info()
        assert kernel.receive().msg_id == msg_id
        with pytest.raises(ConnectionFileError, match="stop_channels"):
            other.load_connection_file(file)
    finally:
        other.stop_channels()


def test_file_is_read_again(kernel: KernelDouble, tmp_path: Path) -> None:
    """`load_connection_file` without an argument reads the file that the client was made with, as it is now."""
    file = tmp_path / "connection.json"
    file.write_text(json.dumps(kernel.info.as_dict()))
    client = AsyncKernelClient(connection_file=str(file))
    file.write_text(json.dumps({**kernel.info.as_dict(), "kernel_name": "another"}))
    client.load_connection_file()
    assert client.connection_info.kernel_name == "another"


def test_interrupt_of_nothing_in_particular(client: AsyncKernelClient) -> None:
    """An interrupt of cells names which; `interrupt` is for all."""
    with pytest.raises(ValueError, match=r"interrupt\(\) is for all"):
        client.interrupt_cells()


def test_only_some_channels(kernel: KernelDouble) -> None:
    """`start_channels` opens the channels that are wanted; what is sent on others is refused."""
    client = AsyncKernelClient(kernel.info)
    client.start_channels(stdin=False, control=False)
    try:
        msg_id = client.kernel_info()
        assert kernel.receive().msg_id == msg_id
        with pytest.raises(TransportClosedError):
            client.interrupt()
        with pytest.raises(TransportClosedError):
            client.input("x")
    finally:
        client.stop_channels()


def test_answer_names_its_question(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """`input` may name the request that it answers, as the field's dict or as its header."""
    question = kernel.codec.message("input_request", {}).as_dict()
    for parent in (question, question["header"]):
        client.input("text", parent)
        assert kernel.receive("stdin").parent_id == question["msg_id"]


@pytest.mark.anyio
async def test_reply_is_returned(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """With `reply=True` a request returns its reply, the field's dict; its outputs are read from the channel."""
    for ask, channel in ((client.execute, "shell"), (client.complete, "shell")):
        answer = ask("code", reply=True, timeout=20)
        request = kernel.serve("said", channel=channel)  # it was sent before it is awaited
        reply = await answer
        assert reply["msg_type"] == request.msg_type.replace("request", "reply")
        assert reply["parent_header"]["msg_id"] == request.msg_id
        read = [(await client.get_iopub_msg(20))["msg_type"] for _ in range(3)]
        assert read == ["status", "stream", "status"]
    answer = client.shutdown(reply=True)
    kernel.serve(channel="control")
    assert (await answer)["msg_type"] == "shutdown_reply"
    assert not client.control_channel.msg_ready()


@pytest.mark.anyio
async def test_reply_that_does_not_come(client: AsyncKernelClient) -> None:
    """Without a reply in time there is a TimeoutError that names the request; nothing is open any more."""
    with pytest.raises(TimeoutError, match=r"is_complete_request within 0\.01 seconds"):
        await client.is_complete("1", reply=True, timeout=0.01)
    assert client._router.open_requests() == []


@pytest.mark.anyio
async def test_messages_of_each_channel(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """`get_shell_msg` and its siblings read their channels, and raise Empty when the time is over."""
    client.execute("code")
    request = kernel.serve("text")
    client.interrupt()
    kernel.reply(kernel.receive("control"), channel="control")
    client.input("")
    kernel.send("stdin", "input_request", {"prompt": ""}, kernel.receive("stdin"))
    assert (await client.get_shell_msg(20))["parent_header"]["msg_id"] == request.msg_id
    assert (await client.get_control_msg(20))["msg_type"] == "interrupt_reply"
    assert (await client.get_iopub_msg(timeout=20))["msg_type"] == "status"
    assert (await client.get_stdin_msg(timeout=20))["msg_type"] == "input_request"
    for read in (client.get_shell_msg, client.get_control_msg, client.get_stdin_msg):
        with pytest.raises(Empty):
            await read(timeout=0)


@pytest.mark.anyio
async def test_messages_made_by_the_session(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """The field's way to say anything: a message of the client's session is sent on a channel, its reply read there."""
    message = client.session.msg("comm_msg", {"comm_id": "x", "data": {}})
    client.shell_channel.send({**message, "buffers": [b"buffer"]})
    received = kernel.receive()
    assert (received.msg_id, received.content, received.buffers) == (
        message["msg_id"],
        message["content"],
        (b"buffer",),
    )
    assert received.header.session == client.session_id
    assert client.kernel_info() != message["msg_id"]
    kernel.reply(received)
    assert (await client.get_shell_msg(20))["parent_header"]["msg_id"] == message["msg_id"]
