"""What the requests say, and how a client is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from traitlets.config import Config

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import ConnectionFileError

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
        (lambda c: c.interrupt(), "control", "interrupt_request", {}),
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


def test_one_connection_is_needed(kernel: KernelDouble) -> None:
    """Without a connection, or with two, there is no client."""
    with pytest.raises(ConnectionFileError, match="either connection_info or connection_file"):
        AsyncKernelClient()
    with pytest.raises(ConnectionFileError, match="either connection_info or connection_file"):
        AsyncKernelClient(kernel.info, connection_file="file")
