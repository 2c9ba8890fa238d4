"""One cell's outputs and reply, in every order in which a kernel may send them."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import anyio
import pytest

from cobnut_kernel.errors import KernelDiedError, TransportClosedError

if TYPE_CHECKING:
    from tests.kernel.client.conftest import Ears, KernelDouble

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.client.run import Run
    from cobnut_kernel.protocol.messages import Message

pytestmark = pytest.mark.anyio


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less long for what never comes."""
    monkeypatch.setattr("cobnut_kernel.client.run.GRACE", 0.02)


def said(message: Message) -> str:
    """Name a message by what it says."""
    return str(message.content.get("text") or message.content.get("execution_state") or message.msg_type)


async def everything(run: Run) -> list[str]:
    """Iterate to the end."""
    return [said(message) async for message in run]


async def test_run_gives_outputs_and_reply(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A cell's iopub messages come in order, statuses included, and the reply beside them."""
    run = client.run("code")
    kernel.serve("one", "two")
    assert await everything(run) == ["busy", "one", "two", "idle"]
    assert (await run.reply()).content == {"status": "ok"}
    assert run.complete


async def test_idle_before_the_reply(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A kernel that goes idle before it replies loses no output and no reply."""
    run = client.run("code")
    request = kernel.receive()
    kernel.stream("one", request)
    kernel.status("idle", request)
    await ears.until("status", execution_state="idle")
    kernel.reply(request)
    assert await everything(run) == ["one", "idle"]
    assert run.complete
    assert (await run.reply()).msg_type == "execute_reply"


async def test_reply_before_the_outputs(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A reply that overtakes the outputs ends nothing: they come until idle."""
    run = client.run("code")
    request = kernel.receive()
    kernel.reply(request)
    await ears.until("execute_reply")
    assert (await run.reply()).msg_type == "execute_reply"
    assert not run.complete
    kernel.stream("one", request)
    kernel.stream("two", request)
    kernel.status("idle", request)
    assert await everything(run) == ["one", "two", "idle"]
    assert run.complete


async def test_output_after_idle(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """Output between idle and reply, of a thread say, belongs to the cell."""
    run = client.run("code")
    request = kernel.receive()
    kernel.status("idle", request)
    kernel.stream("late", request)
    await ears.until("stream", text="late")
    kernel.reply(request)
    assert await everything(run) == ["idle", "late"]


async def test_output_after_the_end(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """What comes when reply and idle are here is no part of the run; readers of the channel and listeners get it."""
    run = client.run("code")
    request = kernel.serve()
    assert await everything(run) == ["busy", "idle"]
    kernel.stream("much later", request)
    await ears.until("stream", text="much later")
    assert (await client.iopub_channel.get_msg())["content"]["text"] == "much later"
    assert await everything(run) == []


@pytest.mark.usefixtures("short_grace")
async def test_idle_that_never_comes(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A run whose idle was lost ends some time after the reply, and says that it may not be complete."""
    run = client.run("code")
    request = kernel.receive()
    kernel.stream("one", request)
    kernel.reply(request)
    assert await everything(run) == ["one"]
    assert not run.complete
    assert (await run.reply()).content == {"status": "ok"}


@pytest.mark.usefixtures("short_grace")
async def test_reply_that_never_comes(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A run whose kernel goes idle without a reply ends, and says that it is not complete."""
    run = client.run("code")
    kernel.status("idle", kernel.receive())
    assert await everything(run) == ["idle"]
    assert not run.complete


async def test_repeated_messages(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A message sent twice arrives once; a second reply and a second idle do no harm."""
    run = client.run("code")
    request = kernel.receive()
    frames = kernel.stream("one", request)
    kernel.sockets["iopub"].send_multipart(frames)
    kernel.status("idle", request)
    kernel.status("idle", request)
    kernel.publish("display_data", {}, None)
    await ears.until("display_data")
    kernel.reply(request, {"status": "ok"})
    kernel.reply(request, {"status": "error"})
    assert await everything(run) == ["one", "idle", "idle"]
    assert (await run.reply()).content == {"status": "ok"}


async def test_runs_do_not_mix(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Outputs of cells that run at once, in subshells say, go to their own runs."""
    runs = [client.run(f"code {number}") for number in range(3)]
    requests = [kernel.receive() for _ in runs]
    for number, request in reversed(list(enumerate(requests))):
        kernel.stream(f"output {number}", request)
    for request in requests:
        kernel.status("idle", request)
    for request in reversed(requests):
        kernel.reply(request, {"status": request.content["code"]})
    for number, run in enumerate(runs):
        assert await everything(run) == [f"output {number}", "idle"]
        assert (await run.reply()).content == {"status": f"code {number}"}


async def test_output_of_others_is_not_ours(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Another client's outputs on iopub stay out of the run and are there for the channel's readers."""
    run = client.run("code")
    request = kernel.receive()
    kernel.publish("stream", {"text": "starting"})
    kernel.stream("one", request)
    kernel.reply(request)
    kernel.status("idle", request)
    assert await everything(run) == ["one", "idle"]
    assert (await client.iopub_channel.get_msg())["content"]["text"] == "starting"
    assert not client.iopub_channel.msg_ready()


async def test_iteration_waits_for_what_comes(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Each output is given out as soon as it is here, while the cell still runs."""
    run = client.run("code")
    request = kernel.receive()
    for text in ("one", "two"):
        kernel.stream(text, request)
        assert said(await anext(run)) == text
    kernel.reply(request)
    kernel.status("idle", request)
    assert await everything(run) == ["idle"]


async def test_flood_is_whole(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A reader that sleeps while 20 000 messages come gets all of them, in order."""
    run = client.run("code")
    request = kernel.receive()
    for number in range(20_000):
        kernel.stream(str(number), request)
    kernel.reply(request)
    kernel.status("idle", request)
    await run.reply()
    assert await everything(run) == [*map(str, range(20_000)), "idle"]


async def test_cancelled_iteration_can_be_taken_up(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Cancelling a task that iterates loses no message."""
    run = client.run("code")
    request = kernel.receive()
    with anyio.move_on_after(0.01) as scope:
        await everything(run)
    assert scope.cancelled_caught
    kernel.stream("one", request)
    kernel.reply(request)
    kernel.status("idle", request)
    assert await everything(run) == ["one", "idle"]


async def test_left_run_keeps_nothing(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """A run that is left with `break` is freed at once, takes no more messages, and ends like any other."""
    run = client.run("code")
    request = kernel.receive()
    kernel.stream("one", request)
    async for _ in run:
        break
    dropped = weakref.ref(run)
    del run
    gc.collect()
    assert dropped() is None
    kernel.stream("two", request)
    kernel.reply(request)
    kernel.status("idle", request)
    while client._router.open_requests():
        await ears.inbox.receive()
    assert not client.iopub_channel.msg_ready()


async def test_death_ends_the_iteration_after_the_last_words(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """When the kernel dies, what it had sent is given out, then the error that says how it died."""
    run = client.run("code")
    request = kernel.receive()
    kernel.stream("help", request)
    client.kernel_died("killed by SIGKILL")
    assert said(await anext(run)) == "help"
    with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
        await anext(run)
    with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
        await run.reply()


async def test_stop_ends_iteration_and_reply(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Stopping the client ends those who wait in another task."""
    run = client.run("code")
    ended: list[str] = []

    async def iterate() -> None:
        with pytest.raises(TransportClosedError, match="The client was stopped"):
            await anext(run)
        ended.append("iteration")

    async def reply() -> None:
        with pytest.raises(TransportClosedError, match="The client was stopped"):
            await run.reply()
        ended.append("reply")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        tasks.start_soon(reply)
        await anyio.wait_all_tasks_blocked()
        client.stop_channels()
    assert sorted(ended) == ["iteration", "reply"]
