"""Comms from the client's end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.transport import Inbox

if TYPE_CHECKING:
    from tests.kernel.client.conftest import Ears, KernelDouble, RealKernel

    from cobnut_kernel.protocol.messages import Message

pytestmark = pytest.mark.anyio

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""

TARGET = """
import comm
def opened(c, message):
    c.send({"opened": message["content"]["data"]})
    c.on_msg(lambda m: c.send({"got": m["content"]["data"]}, buffers=m["buffers"]))
comm.get_comm_manager().register_target("hazel", opened)
"""


def test_messages(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Open, message and close go on shell with the specification's content, buffers and metadata."""
    comm_id = client.comm_open("target", {"a": 1}, metadata={"m": 1}, target_module="module")
    opened = kernel.receive()
    assert opened.msg_type == "comm_open"
    expected = {"comm_id": comm_id, "target_name": "target", "data": {"a": 1}, "target_module": "module"}
    assert (opened.content, opened.metadata) == (expected, {"m": 1})
    msg_id = client.comm_msg(comm_id, {"b": 2}, buffers=[b"x", memoryview(b"yz")])
    said = kernel.receive()
    assert (said.msg_id, said.msg_type, said.buffers) == (msg_id, "comm_msg", (b"x", b"yz"))
    assert said.content == {"comm_id": comm_id, "data": {"b": 2}}
    client.comm_close(comm_id)
    assert kernel.receive().content == {"comm_id": comm_id, "data": {}}
    assert client.comm_open("target", comm_id="mine") == "mine"


async def test_told_is_over_with_idle(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A comm message has no reply: it is open no more when the kernel is idle again."""
    client.comm_msg("x", {})
    message = kernel.receive()
    kernel.status("busy", message)
    kernel.status("idle", message)
    await ears.until("status", execution_state="idle")
    assert client._router.open_requests() == []


async def test_listeners(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A comm's listener gets its messages, a target's the comms that are opened for it, each until it is undone."""
    heard: list[tuple[str, str]] = []

    def note(name: str, message: Message) -> None:
        heard.append((name, message.msg_type))

    def on_open(message: Message) -> None:
        note("target", message)
        client.listen_to_comm(message.content["comm_id"], lambda message: note("inner", message))

    def fail(_message: Message) -> None:
        raise ValueError("a listener's own business")

    client.listen_to_comm("a", fail)
    undo = client.listen_to_comm("a", lambda message: note("a", message))
    client.listen_to_target("target", on_open)
    kernel.publish("comm_msg", {"comm_id": "a", "data": {}})
    kernel.publish("comm_msg", {"comm_id": "b", "data": {}})
    kernel.publish("comm_open", {"comm_id": "c", "target_name": "target", "data": {}})
    kernel.publish("comm_close", {"comm_id": "c", "data": {}})
    kernel.publish("comm_msg", {"comm_id": ["no", "text"]})
    await ears.until("comm_close")
    undo()
    undo()
    kernel.publish("comm_msg", {"comm_id": "a", "data": {}})
    kernel.stream("end")
    await ears.until("stream")
    assert heard == [("a", "comm_msg"), ("target", "comm_open"), ("inner", "comm_open"), ("inner", "comm_close")]


async def test_comm_with_a_kernel(real_kernel: RealKernel) -> None:
    """A comm is opened, talked over with buffers, listed and closed, with ipykernel and with ours."""
    async with AsyncKernelClient(real_kernel.info) as client:
        await client.wait_for_ready(LIMIT)
        assert (await client.execute(TARGET, reply=True, timeout=LIMIT))["content"]["status"] == "ok"
        inbox: Inbox[Message] = Inbox()
        client.listen_to_comm("nut", inbox.put)
        client.comm_open("hazel", {"hello": 1}, comm_id="nut")
        assert (await inbox.receive()).content["data"] == {"opened": {"hello": 1}}
        client.comm_msg("nut", {"n": 2}, buffers=[b"\0\1"])
        answer = await inbox.receive()
        assert (answer.content["data"], answer.buffers) == ({"got": {"n": 2}}, (b"\0\1",))
        listed = await client.comm_info("hazel", reply=True, timeout=LIMIT)
        assert listed["content"]["comms"] == {"nut": {"target_name": "hazel"}}
        client.comm_close("nut")
        with anyio.fail_after(LIMIT):  # our kernel answers comm_info at once, beside its comms
            while "nut" in (await client.comm_info(reply=True, timeout=LIMIT))["content"]["comms"]:
                pass
