"""The client against a kernel that does whatever a kernel, or somebody else, may do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.kernel.client.conftest import Ears, KernelDouble

pytestmark = pytest.mark.anyio


async def at_once(*functions: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await several things at once; returns their results in order."""
    results: dict[int, Any] = {}

    async def one(number: int, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        results[number] = await function()

    async with anyio.create_task_group() as tasks:
        for number, function in enumerate(functions):
            tasks.start_soon(one, number, function)
    return [results[number] for number in range(len(functions))]


@pytest.fixture
def nervous_threads() -> Iterator[None]:
    """Let threads take turns as often as can be, so that they meet in the worst places."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


# ── requests and replies ────────────────────────────────────────────────────────────────────────────────────────────


async def test_replies_out_of_order(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Each request gets its own reply although the kernel answers the last first."""

    async def ask(number: int) -> int:
        return (await client.request("complete_request", {"number": number})).content["number"]

    async def answer() -> None:
        await anyio.wait_all_tasks_blocked()
        for request in reversed([kernel.receive() for _ in range(5)]):
            kernel.reply(request, {"number": request.content["number"]})

    replies = await at_once(*(partial(ask, number) for number in range(5)), answer)
    assert replies == [0, 1, 2, 3, 4, None]


async def test_request_steals_no_message(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A reply awaited by `request` is not what a reader of the channel gets, nor the other way round."""
    msg_id = client.execute("code")
    executing = kernel.receive()
    async with anyio.create_task_group() as tasks:

        async def complete() -> None:
            assert (await client.request("complete_request", {})).msg_type == "complete_reply"

        tasks.start_soon(complete)
        await anyio.wait_all_tasks_blocked()
        completing = kernel.receive()
        kernel.reply(executing)
        kernel.reply(completing)
    reply = await client.shell_channel.get_msg()
    assert reply["parent_header"]["msg_id"] == msg_id
    assert not client.shell_channel.msg_ready()


async def test_request_on_control(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A request on the control channel goes there, and its reply is found there."""

    async def answer() -> Message:
        await anyio.wait_all_tasks_blocked()
        return kernel.serve(channel="control")

    ask = partial(client.request, "interrupt_request", {}, channel=Channel.CONTROL, metadata={"a": 1}, subshell_id="s")
    reply, request = await at_once(ask, answer)
    assert reply.msg_type == "interrupt_reply"
    assert request.metadata == {"a": 1}
    assert request.header.subshell_id == "s"


async def test_request_names_itself_when_it_times_out(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Without a reply in time the error says which request it was; the late reply is for nobody in particular."""
    with pytest.raises(KernelNotReadyError, match=r"did not answer the is_complete_request within 0\.01 seconds"):
        await client.request("is_complete_request", {}, timeout=0.01)
    assert client._router.open_requests() == []
    kernel.reply(kernel.receive())
    assert (await client.shell_channel.get_msg())["msg_type"] == "is_complete_reply"


async def test_cancelled_request_leaves_nothing(client: AsyncKernelClient) -> None:
    """A cancelled request is open no more."""
    with anyio.move_on_after(0.01):
        await client.request("is_complete_request", {})
    assert client._router.open_requests() == []


async def test_request_that_cannot_be_written_leaves_nothing(client: AsyncKernelClient) -> None:
    """Content without a JSON form is refused before anything is sent or expected."""
    with pytest.raises(TypeError, match="JSON"):
        await client.request("x_request", {"what": object()})
    assert client._router.open_requests() == []


async def test_fields_way(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """`execute` returns a msg_id; the channels' get_msg gives reply and outputs, each with that parent."""
    msg_id = client.execute("code")
    kernel.serve("one")
    reply = await client.shell_channel.get_msg(timeout=10)
    outputs = [await client.iopub_channel.get_msg(timeout=10) for _ in range(3)]
    assert [message["parent_header"]["msg_id"] for message in (reply, *outputs)] == [msg_id] * 4
    assert [message["msg_type"] for message in outputs] == ["status", "stream", "status"]
    with pytest.raises(Empty):
        await client.control_channel.get_msg(timeout=0)


async def test_many_unread_answers(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """30 000 outputs of an execute that nobody reads meanwhile are all there when somebody does (P1)."""
    ears.undo()
    client.execute("code")
    request = kernel.receive()
    for number in range(30_000):
        kernel.stream(str(number), request)
    texts = [(await client.iopub_channel.get_msg())["content"]["text"] for _ in range(30_000)]
    assert texts == [*map(str, range(30_000))]


async def test_two_clients_are_both_served(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """Each client is a party of its own: the second takes nothing from the first (P4)."""
    async with AsyncKernelClient(kernel.info) as other:
        kernel.await_subscriber()
        assert other.session_id != client.session_id
        runs = [one.run("code") for one in (client, other)]
        for request in [kernel.receive() for _ in runs]:
            kernel.stream(request.header.session, request)
            kernel.reply(request)
            kernel.status("idle", request)
        for one, run in zip((client, other), runs, strict=True):
            assert [message.content.get("text") async for message in run] == [one.session_id, None]
            assert (await run.reply()).parent_id == run.msg_id
        assert not client.shell_channel.msg_ready()


async def test_session_is_the_identity(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """The kernel's sockets know the client by its session, on all channels: so input requests find it."""
    client.execute("code")
    client.interrupt()
    client.input("text")
    identities = {kernel.receive(channel).identities for channel in ("shell", "control", "stdin")}
    assert identities == {(client.session_id.encode(),)}


async def test_input_is_asked_and_answered(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """An input request is read from the stdin channel, and the answer goes back there."""
    client.input("so that the kernel's socket knows ours")
    kernel.receive("stdin")
    client.execute("input()")
    kernel.send("stdin", "input_request", {"prompt": "name: "}, kernel.receive())
    assert (await client.stdin_channel.get_msg())["content"] == {"prompt": "name: "}
    client.input("cob")
    assert kernel.receive("stdin").content == {"value": "cob"}


async def test_sending_never_waits(client: AsyncKernelClient) -> None:
    """A kernel that reads nothing delays no caller: more requests than any socket holds are taken (P30)."""
    for _ in range(5000):
        client.execute("x" * 100)
    assert len(client._router.open_requests()) == 5000


def test_requests_from_many_threads_all_arrive(
    client: AsyncKernelClient, kernel: KernelDouble, nervous_threads: None
) -> None:
    """Requests are thread-safe: none is lost, none stays behind."""
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(100):
            client.kernel_info()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({kernel.receive().msg_id for _ in range(800)}) == 800


# ── bad messages ────────────────────────────────────────────────────────────────────────────────────────────────────


def poison(kernel: KernelDouble) -> list[list[bytes]]:
    """Make frames that no client should trust, five of each of four kinds."""
    foreign = Codec(b"another key")
    unsigned = Codec(b"")
    bad: list[list[bytes]] = []
    for number in range(5):
        content = {"name": "stdout", "text": f"poison {number}"}
        good = kernel.codec.encode(kernel.codec.message("stream", content))
        bad.append(foreign.encode(foreign.message("stream", content)))
        bad.append(unsigned.encode(unsigned.message("stream", content)))
        bad.append(good[:3])
        bad.append([b"\xff" * number, b"no delimiter"])
        bad.append(kernel.codec.sign((b"{", b"{}", b"\xff\xfe", b"[]")))
        bad.append(kernel.codec.sign((b'{"msg_id": 1}', b"[]", b"{}", b"null")))
    return bad


async def test_poison_on_iopub_stops_nobody(
    client: AsyncKernelClient, kernel: KernelDouble, ears: Ears, caplog: pytest.LogCaptureFixture
) -> None:
    """Unsigned, foreign, truncated and unreadable frames are dropped, logged once per kind and counted."""
    run = client.run("code")
    request = kernel.receive()
    for frames in poison(kernel):
        kernel.sockets["iopub"].send_multipart(frames)
    kernel.stream("clean", request)
    kernel.reply(request)
    kernel.status("idle", request)
    assert [message.content.get("text") async for message in run] == ["clean", None]
    refused = client.refused
    assert refused["SignatureError"] == 10
    assert refused["MalformedMessageError"] + refused["ReplayedMessageError"] == 20
    assert caplog.text.count("MalformedMessageError, number 1)") == 1
    assert not client.iopub_channel.msg_ready()


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
async def test_poison_on_a_reply_channel_stops_nobody(
    client: AsyncKernelClient, kernel: KernelDouble, channel: str
) -> None:
    """Bad frames on any channel leave the next good message readable."""
    client.execute("code")
    client.interrupt()
    client.input("text")
    request = kernel.receive(channel)
    for frames in poison(kernel):
        kernel.sockets[channel].send_multipart([*request.identities, *frames])
    kernel.reply(request, channel=channel)
    queue = {"shell": client.shell_channel, "control": client.control_channel, "stdin": client.stdin_channel}[channel]
    assert (await queue.get_msg())["parent_header"]["msg_id"] == request.msg_id


async def test_surprising_content_stops_nobody(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A well-signed status with a state of any kind is handed on like any message."""
    run = client.run("code")
    request = kernel.receive()
    for state in ({}, [], None, 7, "unheard of"):
        kernel.publish("status", {"execution_state": state}, request)
    kernel.publish("status", {}, request)
    kernel.reply(request)
    kernel.status("idle", request)
    assert len([message async for message in run]) == 7


async def test_replayed_message_arrives_once(client: AsyncKernelClient, kernel: KernelDouble, ears: Ears) -> None:
    """Frames that were recorded and sent again are dropped and counted (P7)."""
    for _ in range(3):
        frames = kernel.stream("once")
        kernel.sockets["iopub"].send_multipart(frames)
    kernel.publish("display_data", {})
    await ears.until("display_data")
    assert client.refused == {"ReplayedMessageError": 3}
    assert len(await client.iopub_channel.get_msgs()) == 4


# ── ready ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ready_with_reply_and_status(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """The kernel is ready when it has answered and its iopub was heard; the reply is returned."""

    async def answer() -> None:
        await anyio.wait_all_tasks_blocked()
        kernel.serve()

    reply, _ = await at_once(partial(client.wait_for_ready, timeout=20), answer)
    assert reply.msg_type == "kernel_info_reply"
    assert not client.iopub_channel.msg_ready()
    assert not client.shell_channel.msg_ready()


async def test_ready_asks_again_until_iopub_is_heard(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A reply alone is not enough: statuses may be lost before the subscription works, so there is another (P2)."""
    ready: list[Message] = []

    async def wait() -> None:
        ready.append(await client.wait_for_ready(timeout=20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        kernel.reply(kernel.receive())
        second = await anyio.to_thread.run_sync(kernel.receive)
        assert not ready
        kernel.status("busy", second)
    assert ready[0].msg_type == "kernel_info_reply"


async def test_ready_with_a_welcome(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A kernel's iopub_welcome shows that iopub is heard; one question is enough then (JEP 65)."""
    kernel.publish("iopub_welcome", {})

    async def answer() -> None:
        await anyio.wait_all_tasks_blocked()
        kernel.reply(kernel.receive())

    await at_once(partial(client.wait_for_ready, timeout=20), answer)
    assert (await client.iopub_channel.get_msg())["msg_type"] == "iopub_welcome"


async def test_ready_touches_no_message_of_others(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A chatty kernel delays nothing, and nothing is drained (P3)."""

    async def answer() -> None:
        await anyio.wait_all_tasks_blocked()
        kernel.stream("before")
        kernel.serve()
        kernel.stream("after")

    await at_once(partial(client.wait_for_ready, timeout=20), answer)
    texts = [(await client.iopub_channel.get_msg())["content"]["text"] for _ in range(2)]
    assert texts == ["before", "after"]


async def test_ready_times_out(client: AsyncKernelClient) -> None:
    """A kernel that never answers is an error that says what was asked and for how long."""
    with pytest.raises(KernelNotReadyError, match=r"kernel_info_request within 0\.05 seconds"):
        await client.wait_for_ready(timeout=0.05)


async def test_ready_ends_with_death(client: AsyncKernelClient) -> None:
    """A kernel that dies before it is ready ends the wait, and how it died is said."""

    async def die() -> None:
        await anyio.wait_all_tasks_blocked()
        client.kernel_died("exit code 3")

    async def wait() -> None:
        with pytest.raises(KernelDiedError, match="exit code 3"):
            await client.wait_for_ready()

    await at_once(wait, die)


@pytest.mark.parametrize("heard", [False, True])
async def test_ready_ends_with_stop(client: AsyncKernelClient, kernel: KernelDouble, heard: bool) -> None:
    """A client that is stopped while it waits says so, whatever it waits for."""

    async def stop() -> None:
        await anyio.wait_all_tasks_blocked()
        if heard:
            kernel.reply(kernel.receive())
            await anyio.to_thread.run_sync(kernel.receive)
        client.stop_channels()

    async def wait() -> None:
        with pytest.raises(TransportClosedError, match="start_channels"):
            await client.wait_for_ready()

    await at_once(wait, stop)


async def test_ready_survives_a_restart(
    client: AsyncKernelClient, kernel: KernelDouble, make_double: Callable[[], KernelDouble]
) -> None:
    """A kernel that is restarted while one waits is asked again."""
    kernel.status("starting")

    async def restart() -> None:
        await anyio.wait_all_tasks_blocked()
        kernel.receive()
        kernel.close()
        another = make_double()
        await anyio.to_thread.run_sync(another.await_subscriber)
        another.status("starting")
        await anyio.to_thread.run_sync(another.serve)

    reply, _ = await at_once(partial(client.wait_for_ready, timeout=20), restart)
    assert reply.msg_type == "kernel_info_reply"


# ── death, restart, stop ────────────────────────────────────────────────────────────────────────────────────────────


async def test_death_reaches_every_waiter(client: AsyncKernelClient) -> None:
    """Requests, runs and channel readers all learn that the kernel died, and new requests are refused."""

    async def expect_death(function: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
        with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
            await function()
        return True

    async def die() -> None:
        await anyio.wait_all_tasks_blocked()
        client.kernel_died("killed by SIGKILL")

    run = client.run("code")
    waits: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        partial(client.request, "x_request", {}),
        partial(client.wait_for_ready, timeout=None),
        run.__anext__,
        run.reply,
        client.shell_channel.get_msg,
        partial(client.iopub_channel.get_msg, 30),
    ]
    await at_once(*(partial(expect_death, wait) for wait in waits), die)
    for ask in (client.kernel_info, partial(client.run, "code")):
        with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
            ask()


async def test_announced_restart(
    client: AsyncKernelClient, kernel: KernelDouble, make_double: Callable[[], KernelDouble]
) -> None:
    """After kernel_started the client talks to the next kernel, and what the dead one was asked is not run by it."""
    session = client.session_id
    kernel.status("idle")
    kernel.close()
    lost = client.run("lost")
    client.kernel_died("exit code 1")
    client.kernel_started()
    with pytest.raises(KernelDiedError, match="exit code 1"):
        await lost.reply()
    another = make_double()
    another.await_subscriber()
    run = client.run("code")
    assert another.serve("one").content["code"] == "code"
    assert [message.content.get("text") async for message in run] == [None, "one", None]
    assert client.session_id == session


async def test_restart_elsewhere(
    client: AsyncKernelClient, kernel: KernelDouble, ears: Ears, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A kernel that comes back at other addresses with another key is followed there; listeners stay."""
    elsewhere = type(kernel)(
        type(kernel.info)("ipc", str(tmp_path_factory.mktemp("elsewhere") / "k"), 1, 2, 3, 4, 5, key=b"another")
    )
    try:
        client.kernel_died("exit code 1")
        client.kernel_started(elsewhere.info)
        elsewhere.await_subscriber()
        run = client.run("code")
        elsewhere.serve()
        assert (await run.reply()).content == {"status": "ok"}
        assert (await ears.until("execute_reply")).parent_id == run.msg_id
    finally:
        elsewhere.close()


async def test_heart_of_a_kernel_that_comes_back_elsewhere(client: AsyncKernelClient) -> None:
    """The heart that is listened to is the next kernel's, too."""
    client.hb_channel.unpause()
    info = dataclasses.replace(client.connection_info, hb_port=client.connection_info.hb_port + 100)
    client.kernel_started(info)
    endpoint = client.hb_channel._endpoint
    assert endpoint is not None
    assert endpoint.url == info.url(Channel.HEARTBEAT)


async def test_stopped_while_the_next_kernel_is_announced(
    client: AsyncKernelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that one thread stops in the moment in which another tells it of the next kernel stays closed."""
    close, stopping = client._connection.journal.close, threading.Thread(target=client.stop_channels)

    def stop_meanwhile() -> None:
        if stopping.ident is None:
            stopping.start()
            stopping.join(0.2)  # it gets no further before the sockets have turned
        close()

    monkeypatch.setattr(client._connection.journal, "close", stop_meanwhile)
    client.kernel_started()
    stopping.join()
    assert not client.channels_running


async def test_news_of_a_restart_that_comes_late(
    client: AsyncKernelClient, kernel: KernelDouble, ears: Ears, make_double: Callable[[], KernelDouble]
) -> None:
    """A kernel that is heard before its start is announced keeps what it was asked meanwhile."""
    kernel.status("idle")
    await ears.until("status")
    client.kernel_died("exit code 1")
    kernel.close()
    another = make_double()
    await anyio.to_thread.run_sync(another.await_subscriber)
    another.status("starting")
    await ears.until("status", execution_state="starting")
    run = client.run("code")
    client.kernel_started()
    another.serve()
    assert (await run.reply()).content == {"status": "ok"}


async def test_unannounced_restart(
    client: AsyncKernelClient, kernel: KernelDouble, make_double: Callable[[], KernelDouble]
) -> None:
    """When somebody else restarts the kernel its new session ends what was open, and the sockets reconnect."""
    run = client.run("code")
    kernel.status("busy", kernel.receive())
    assert (await anext(run)).content == {"execution_state": "busy"}
    kernel.close()
    another = make_double()
    await anyio.to_thread.run_sync(another.await_subscriber)
    another.status("starting")
    with pytest.raises(KernelDiedError, match="restarted"):
        await anext(run)
    run = client.run("code")
    another.serve()
    assert (await run.reply()).content == {"status": "ok"}


async def test_stop_reaches_every_waiter(client: AsyncKernelClient) -> None:
    """Requests and channel readers learn that the client was stopped, and new requests are refused."""

    async def expect_stop(function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        with pytest.raises(TransportClosedError, match="start_channels"):
            await function()

    async def stop() -> None:
        await anyio.wait_all_tasks_blocked()
        client.stop_channels()

    waits = [partial(client.request, "x_request", {}), client.shell_channel.get_msg, client.iopub_channel.get_msg]
    await at_once(*(partial(expect_stop, wait) for wait in waits), stop)
    with pytest.raises(TransportClosedError, match="start_channels"):
        client.kernel_info()
    await client.stop_channels()


async def test_stopped_client_stays_stopped(client: AsyncKernelClient) -> None:
    """Word of a new kernel opens no channel of a client that was stopped."""
    client.stop_channels()
    client.kernel_died("exit code 1")
    client.kernel_started()
    assert not client.channels_running
    with pytest.raises(TransportClosedError):
        client.kernel_info()
    with pytest.raises(TransportClosedError):
        await client.shell_channel.get_msg()


async def test_client_can_be_started_again(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """After stop and start the same session is served again, though the kernel may still hold its old connection."""
    session = client.session_id
    for _ in range(5):
        client.stop_channels()
        assert not client.channels_running
        client.start_channels()
        assert client.channels_running
        while kernel.sockets["iopub"].recv() != b"\x01":
            ...
        run = client.run("code")
        kernel.serve()
        assert (await run.reply()).content == {"status": "ok"}
    assert client.session_id == session


async def test_starting_twice_is_starting_once(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """start_channels on a running client changes nothing."""
    run = client.run("code")
    client.start_channels()
    kernel.serve()
    assert (await run.reply()).content == {"status": "ok"}


# ── loops, threads, resources ───────────────────────────────────────────────────────────────────────────────────────


def test_channels_start_and_stop_without_a_loop(kernel: KernelDouble) -> None:
    """start_channels and stop_channels do their work in the call; nobody needs to await them."""
    client = AsyncKernelClient(kernel.info)
    client.start_channels()
    client.kernel_info()
    assert kernel.receive().msg_type == "kernel_info_request"
    client.stop_channels()
    assert not client.channels_running


async def test_channels_may_be_awaited(kernel: KernelDouble) -> None:
    """What start_channels and stop_channels return can be awaited, more than once."""
    client = AsyncKernelClient(kernel.info)
    started = client.start_channels()
    await started
    await started
    await client.stop_channels()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_client_serves_loops_of_two_kinds(client: AsyncKernelClient, kernel: KernelDouble, anyio_backend: str) -> None:
    """Tasks under asyncio and under trio, in two threads, run cells over one client at once."""
    outputs: dict[str, list[str]] = {}

    async def cell(name: str) -> None:
        outputs[name] = [m.content["text"] async for m in client.run(name) if m.msg_type == "stream"]

    names = ("asyncio", "trio")
    threads = [threading.Thread(target=partial(anyio.run, cell, name, backend=name)) for name in names]
    for thread in threads:
        thread.start()
    for _ in names:
        request = kernel.receive()
        kernel.stream(f"for {request.content['code']}", request)
        kernel.reply(request)
        kernel.status("idle", request)
    for thread in threads:
        thread.join()
    assert outputs == {"asyncio": ["for asyncio"], "trio": ["for trio"]}


async def test_open_and_close_leak_nothing(kernel: KernelDouble) -> None:
    """After 50 clients there are no more threads and descriptors than before."""
    process = psutil.Process()

    def resources() -> tuple[int, int, int]:
        return threading.active_count(), process.num_threads(), process.num_fds()

    async def cycle() -> None:
        async with AsyncKernelClient(kernel.info) as client:
            run = client.run("code")
            kernel.serve()
            await run.reply()

    await cycle()
    before = resources()
    for _ in range(50):
        await cycle()
    with anyio.fail_after(20):
        # Nothing tells when libzmq has closed the double's ends, or the system has buried a joined thread.
        while any(now > then for now, then in zip(resources(), before, strict=True)):  # noqa: ASYNC110
            await anyio.sleep(0.01)


def test_dropped_client_is_reported(kernel: KernelDouble) -> None:
    """A client that is dropped with its channels open is a ResourceWarning that says what to call; they are closed."""
    client = AsyncKernelClient(kernel.info)
    client.start_channels()
    sockets = client._connection.sockets
    with pytest.warns(ResourceWarning, match="stop_channels"):
        del client
    until(lambda: not sockets.are_open)


def test_import_is_light() -> None:
    """The client brings neither IPython nor Jupyter's packages nor a second event loop with it."""
    code = "import sys, cobnut_kernel.client.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert {"IPython", "jupyter_core", "jupyter_client", "trio", "tornado", "textual"}.isdisjoint(loaded)
