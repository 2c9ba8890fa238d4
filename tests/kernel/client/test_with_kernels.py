"""The client with real kernels: ipykernel and ours."""

from __future__ import annotations

import os
import signal
from itertools import groupby
from typing import TYPE_CHECKING

import anyio
import pytest

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tests.kernel.client.conftest import RealKernel

    from cobnut_kernel.protocol.messages import Message

pytestmark = pytest.mark.anyio

LIMIT = 40
"""How many seconds a kernel may take to start on a busy machine."""


@pytest.fixture
async def client(real_kernel: RealKernel) -> AsyncIterator[AsyncKernelClient]:
    """Be a client of a kernel that is ready."""
    async with AsyncKernelClient(real_kernel.info) as client:
        await client.wait_for_ready(LIMIT)
        yield client


def text(messages: list[Message]) -> str:
    """Join the streams of a cell."""
    return "".join(message.content["text"] for message in messages if message.msg_type == "stream")


def kinds(messages: Iterable[str]) -> list[str]:
    """Name the types of a cell's messages; a stream may come in pieces."""
    return [kind for kind, _ in groupby(messages)]


async def test_execute_and_get_msg(client: AsyncKernelClient) -> None:
    """The field's way: execute, then read the channels until idle and for the reply."""
    msg_id = client.execute("print('hazel'); 6 * 7")
    outputs: list[dict[str, object]] = []
    while not outputs or outputs[-1]["content"] != {"execution_state": "idle"}:
        message = await client.iopub_channel.get_msg(timeout=LIMIT)
        if message["parent_header"].get("msg_id") == msg_id:
            outputs.append(message)
    reply = await client.shell_channel.get_msg(timeout=LIMIT)
    assert reply["parent_header"]["msg_id"] == msg_id
    assert reply["content"]["status"] == "ok"
    assert kinds(message["msg_type"] for message in outputs) == [
        "status",
        "execute_input",
        "stream",
        "execute_result",
        "status",
    ]


async def test_run_gives_every_kind_of_output(client: AsyncKernelClient) -> None:
    """Prints, displays, results and errors of a cell come in order, between busy and idle."""
    code = "from IPython.display import display\nprint('one')\ndisplay('two')\n'three'"
    messages = [message async for message in client.run(code)]
    assert kinds(message.msg_type for message in messages) == [
        "status",
        "execute_input",
        "stream",
        "display_data",
        "execute_result",
        "status",
    ]
    assert text(messages) == "one\n"
    assert messages[-3].content["data"]["text/plain"] == "'two'"
    assert messages[-2].content["data"]["text/plain"] == "'three'"


async def test_run_gives_errors(client: AsyncKernelClient) -> None:
    """An error is an output and makes the reply one of status error; the next cell runs."""
    run = client.run("1 / 0")
    messages = [message async for message in run]
    assert "error" in [message.msg_type for message in messages]
    reply = await run.reply()
    assert (reply.content["status"], reply.content["ename"]) == ("error", "ZeroDivisionError")
    assert (await client.run("1").reply()).content["status"] == "ok"


async def test_thirty_runs_at_once(client: AsyncKernelClient) -> None:
    """Thirty tasks run a cell each at once; each gets its own outputs, whole, and its own reply."""
    results: dict[int, tuple[str, str, bool]] = {}

    async def cell(number: int) -> None:
        run = client.run(f"for i in range(20): print({number}, i)")
        messages = [message async for message in run]
        results[number] = (text(messages), (await run.reply()).content["status"], run.complete)

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(cell, number)
    for number in range(30):
        assert results[number] == ("".join(f"{number} {i}\n" for i in range(20)), "ok", True)


async def test_requests_during_a_cell(client: AsyncKernelClient) -> None:
    """Requests of several kinds wait at once, each for its own reply."""
    replies: dict[str, str] = {}

    async def ask(msg_type: str, channel: Channel = Channel.SHELL) -> None:
        content = {"code": "pri", "cursor_pos": 3}
        reply = await client.request(msg_type, content, channel=channel, timeout=LIMIT)
        replies[msg_type] = reply.msg_type

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run("sum(range(1_000_000))").reply)
        tasks.start_soon(ask, "kernel_info_request")
        tasks.start_soon(ask, "comm_info_request")
        tasks.start_soon(ask, "kernel_info_request", Channel.CONTROL)
    assert replies == {"kernel_info_request": "kernel_info_reply", "comm_info_request": "comm_info_reply"}


async def test_two_clients_of_one_kernel(client: AsyncKernelClient, real_kernel: RealKernel) -> None:
    """A second client makes the first neither deaf nor slow; each gets its replies, both hear iopub (P4)."""
    async with AsyncKernelClient(real_kernel.info) as other:
        await other.wait_for_ready(LIMIT)
        for _ in range(3):
            for one in (client, other):
                run = one.run("print('both')")
                assert text([message async for message in run]) == "both\n"
                assert (await run.reply()).content["status"] == "ok"
    run = client.run("print('still here')")
    assert text([message async for message in run]) == "still here\n"


async def test_leaving_a_run_lets_the_cell_go_on(client: AsyncKernelClient) -> None:
    """A cell whose outputs are left is not stopped, and the next run gets only its own."""
    async for message in client.run("for i in range(100): print(i)\nleft = 'done'"):
        if message.msg_type == "stream":
            break
    messages = [message async for message in client.run("print(left)")]
    assert text(messages) == "done\n"


async def test_ready_is_quick_on_a_running_kernel(client: AsyncKernelClient, real_kernel: RealKernel) -> None:
    """A kernel that prints all the time is ready at once for another client (P3)."""
    noise = client.run("import time\nfor i in range(50): print(i); time.sleep(0.001)")
    async with AsyncKernelClient(real_kernel.info) as other:
        await other.wait_for_ready(LIMIT)
    assert (await noise.reply()).content["status"] == "ok"


async def test_client_before_the_kernel(ipykernel: RealKernel) -> None:
    """A client may wait for a kernel that is started later; the first cell's outputs are whole."""
    async with AsyncKernelClient(ipykernel.info) as client:
        with pytest.raises(KernelNotReadyError):
            await client.wait_for_ready(timeout=0.05)
        ipykernel.start()
        await client.wait_for_ready(LIMIT)
        run = client.run("print('first')")
        kind = kinds([message.msg_type async for message in run])
        assert kind == ["status", "execute_input", "stream", "status"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_killed_and_started_again(ipykernel: RealKernel, anyio_backend: str) -> None:
    """A killed kernel's cell ends with the announced reason; the next kernel at the address is talked to."""
    ipykernel.start()
    async with AsyncKernelClient(ipykernel.info) as client:
        await client.wait_for_ready(LIMIT)
        run = client.run("print('before', flush=True)\nimport time; time.sleep(600)")
        async for message in run:
            if message.msg_type == "stream":
                break
        assert ipykernel.process is not None
        os.kill(ipykernel.process.pid, signal.SIGKILL)
        ipykernel.stop()
        client.kernel_died("killed by SIGKILL")
        with pytest.raises(KernelDiedError, match="SIGKILL"):
            await run.reply()
        ipykernel.start()
        client.kernel_started()
        await client.wait_for_ready(LIMIT)
        assert text([message async for message in client.run("print('after')")]) == "after\n"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_restarted_by_somebody_else(ipykernel: RealKernel, anyio_backend: str) -> None:
    """A kernel that others restart ends our cell by its new session, and serves the next."""
    ipykernel.start()
    async with AsyncKernelClient(ipykernel.info) as client:
        await client.wait_for_ready(LIMIT)
        run = client.run("import time; time.sleep(600)")
        assert (await anext(run)).content == {"execution_state": "busy"}
        ipykernel.stop()
        ipykernel.start()
        with pytest.raises(KernelDiedError, match="restarted"):
            await run.reply()
        await client.wait_for_ready(LIMIT)
        assert text([message async for message in client.run("print('after')")]) == "after\n"
