"""The blocking client: the same as the asynchronous one, for those who cannot await."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest
import trio

from cobnut_kernel.client.blocking import BlockingChannel, BlockingHeartbeat, BlockingKernelClient, BlockingRun
from cobnut_kernel.client.channels import ChannelQueue
from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.heartbeat import Heartbeat
from cobnut_kernel.client.requests import KernelClient
from cobnut_kernel.client.run import Run
from cobnut_kernel.errors import ConnectionFileError, KernelDiedError, KernelNotReadyError, TransportClosedError
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.client.conftest import KernelDouble, RealKernel

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""


@pytest.fixture
def blocking(kernel: KernelDouble) -> Iterator[BlockingKernelClient]:
    """Be a blocking client of the kernel double."""
    with BlockingKernelClient(kernel.info) as client:
        kernel.await_subscriber()
        yield client


@pytest.fixture
def real(real_kernel: RealKernel) -> Iterator[BlockingKernelClient]:
    """Be a blocking client of a real kernel that is ready."""
    with BlockingKernelClient(real_kernel.info) as client:
        client.wait_for_ready(LIMIT)
        yield client


def text(messages: Any) -> str:
    """Join the streams of a cell."""
    return "".join(message.content["text"] for message in messages if message.msg_type == "stream")


# ── parity ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def public(kind: type) -> dict[str, Any]:
    """List what a class offers, less what every traitlets class has."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("cobnut_kernel.client")]
    names = {name for base in own for name in vars(base) if not name.startswith("_")}
    return {name: inspect.getattr_static(kind, name) for name in names}


@pytest.mark.parametrize(
    ("asynchronous", "blocking", "only_asynchronous", "only_blocking"),
    [
        (AsyncKernelClient, BlockingKernelClient, {"wait_for_answer"}, {"asynchronous"}),
        (ChannelQueue, BlockingChannel, {"put", "open", "fail"}, set()),
        (Heartbeat, BlockingHeartbeat, {"forget"}, {"time_to_dead"}),
        (Run, BlockingRun, {"put", "wake"}, {"msg_id", "next", "when_replied"}),
    ],
)
def test_parity(asynchronous: type, blocking: type, only_asynchronous: set[str], only_blocking: set[str]) -> None:
    """Both colours offer the same names with the same parameters, in the same order and with the same defaults."""
    ours, theirs = public(asynchronous), public(blocking)
    if blocking is BlockingKernelClient:
        only_blocking = only_blocking | {"connection_file"}  # an attribute of the other
    if blocking is BlockingChannel:
        only_blocking = only_blocking | {"dropped"}
    assert set(ours) - set(theirs) == only_asynchronous
    assert set(theirs) - set(ours) == only_blocking
    for name in set(ours) & set(theirs):
        if callable(ours[name]):
            assert _parameters(ours[name]) == _parameters(theirs[name]), name
            assert not inspect.iscoroutinefunction(theirs[name]), name


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


def test_both_are_kernel_clients() -> None:
    """Both colours are `KernelClient`s: so they are told apart from other things, and so they are configured."""
    assert issubclass(BlockingKernelClient, KernelClient)
    assert issubclass(AsyncKernelClient, KernelClient)
    assert BlockingKernelClient.section_names()[-2:] == ["KernelClient", "BlockingKernelClient"]


def test_a_colour_says_how_it_asks() -> None:
    """A client that does not say how it asks cannot be made, and is told what it lacks."""
    with pytest.raises(TypeError, match=r"_answer.*_ask.*input"):
        KernelClient[Any]()  # pyright: ignore[reportAbstractUsage] - the claim


# ── with a double ───────────────────────────────────────────────────────────────────────────────────────────────────


def answering(kernel: KernelDouble, **options: Any) -> threading.Thread:
    """Serve the next request in another thread."""
    thread = threading.Thread(target=kernel.serve, args=("text",), kwargs=options)
    thread.start()
    return thread


def test_requests_and_channels(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """A request returns its id, and the channels give what comes for it."""
    msg_id = blocking.execute("code")
    request = kernel.serve("text")
    assert request.msg_id == msg_id
    assert blocking.get_shell_msg(LIMIT)["parent_header"]["msg_id"] == msg_id
    assert [blocking.get_iopub_msg(LIMIT)["msg_type"] for _ in range(3)] == ["status", "stream", "status"]
    assert not blocking.iopub_channel.msg_ready()
    assert blocking.iopub_channel.get_msgs() == []
    for read in (blocking.get_control_msg, blocking.get_stdin_msg, blocking.shell_channel.get_msg):
        with pytest.raises(Empty):
            read(timeout=0)


def test_replies(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """With `reply=True` the reply is returned, on shell and on control; without one in time it is a TimeoutError."""
    thread = answering(kernel)
    reply = blocking.is_complete("1", reply=True, timeout=LIMIT)
    thread.join()
    assert reply["msg_type"] == "is_complete_reply"
    thread = answering(kernel, channel="control")
    assert blocking.interrupt(reply=True)["msg_type"] == "interrupt_reply"
    thread.join()
    with pytest.raises(TimeoutError, match="history_request"):
        blocking.history(reply=True, timeout=0.01)
    kernel.receive()  # the one that was given up
    thread = answering(kernel)
    assert blocking.request("x_request", {}, timeout=LIMIT).msg_type == "x_reply"
    thread.join()


def test_allow_stdin_may_be_changed(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """What the trait says when a request is made counts, for `execute` and for `run`."""
    blocking.allow_stdin = False
    blocking.execute("1")
    assert kernel.receive().content["allow_stdin"] is False
    blocking.run("1")
    assert kernel.receive().content["allow_stdin"] is False
    blocking.run("1", allow_stdin=True)
    assert kernel.receive().content["allow_stdin"] is True


def test_death_ends_the_waiting(blocking: BlockingKernelClient) -> None:
    """Who blocks when the kernel dies, or the client is stopped, gets the error."""
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(blocking.kernel_info, reply=True)
        time.sleep(0.01)
        blocking.kernel_died("of boredom")
        with pytest.raises(KernelDiedError, match="boredom"):
            waiting.result(LIMIT)
        blocking.kernel_started()
        reading = threads.submit(blocking.shell_channel.get_msg)
        while not blocking.asynchronous.shell_channel._waiters._bells:
            time.sleep(0.001)
        blocking.stop_channels()
        with pytest.raises(TransportClosedError):
            reading.result(LIMIT)


@pytest.mark.parametrize("loop", [lambda function: asyncio.run(function()), trio.run], ids=["asyncio", "trio"])
def test_inside_a_running_loop(
    blocking: BlockingKernelClient, kernel: KernelDouble, loop: Callable[..., object]
) -> None:
    """A program whose loop runs may block on it: nothing is started inside that loop."""

    async def program() -> None:
        thread = answering(kernel)
        assert blocking.kernel_info(reply=True, timeout=LIMIT)["msg_type"] == "kernel_info_reply"
        thread.join()

    loop(program)


def test_on_the_portal(blocking: BlockingKernelClient) -> None:
    """The portal's own thread cannot wait for itself: that is said, not tried."""

    async def wait() -> None:
        blocking.get_shell_msg()

    with pytest.raises(RuntimeError, match="portal"):
        Portal.shared().call(wait)


def test_ctrl_c_ends_the_waiting(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """Ctrl-C ends what blocks, and loses no message: the next reader gets what comes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            blocking.get_iopub_msg()
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    kernel.stream("afterwards")
    assert blocking.get_iopub_msg(LIMIT)["content"]["text"] == "afterwards"


def test_run(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """A run is iterated over, and its reply waited for; a wait may be limited."""
    run = blocking.run("code")
    with pytest.raises(KernelNotReadyError):
        run.next(0.01)
    request = kernel.serve("one", "two")
    assert run.msg_id == request.msg_id
    assert text(run) == "onetwo"
    assert run.next() is None
    assert run.complete
    assert run.reply().msg_type == "execute_reply"


def test_connection(kernel: KernelDouble) -> None:
    """Connections are loaded and told as by the other colour."""
    client = BlockingKernelClient()
    with pytest.raises(ConnectionFileError):
        client.start_channels()
    client.load_connection_info(kernel.info.as_dict())
    assert client.connection_info == kernel.info
    assert client.get_connection_info()["key"] == kernel.info.key
    assert client.session.key == kernel.info.key
    client.connection_file = "gone.json"
    with pytest.raises(ConnectionFileError, match=r"gone\.json"):
        client.load_connection_file()
    assert not client.channels_running
    assert client.refused == {}


def test_listening_and_heart(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """Listeners are called, comms too; a heart that does not beat is seen not to."""
    heard: list[str] = []
    undo = [
        blocking.listen(lambda _, message: heard.append(message.msg_type)),
        blocking.listen_to_comm("a", lambda message: heard.append("of a")),
        blocking.listen_to_target("t", lambda message: heard.append("for t")),
    ]
    kernel.publish("comm_open", {"comm_id": "a", "target_name": "t"})
    assert blocking.get_iopub_msg(LIMIT)["msg_type"] == "comm_open"
    kernel.stream("done")
    blocking.get_iopub_msg(LIMIT)
    for each in undo:
        each()
    assert heard[:3] == ["comm_open", "for t", "of a"]
    blocking.hb_channel.time_to_dead = 0.01
    assert blocking.hb_channel.time_to_dead == 0.01
    assert not blocking.is_alive()
    blocking.hb_channel.start()
    assert blocking.hb_channel.is_alive()
    assert (blocking.hb_channel.is_beating(), blocking.hb_channel.since) == (False, None)
    blocking.hb_channel.pause()
    blocking.hb_channel.unpause()
    assert not blocking.hb_channel.beats(0.01)
    blocking.hb_channel.stop()


@pytest.mark.parametrize("alive", [True, False])
def test_client_of_a_manager(kernel: KernelDouble, alive: bool) -> None:
    """A client of a manager of either colour is alive if the manager's process is."""

    async def later() -> bool:
        return alive

    answers: list[Callable[[], object]] = [lambda: alive, later]
    for answer in answers:
        client = BlockingKernelClient(kernel.info)
        client.parent = type("Manager", (BlockingKernelClient,), {"is_alive": staticmethod(answer)})(kernel.info)
        assert client.is_alive() is alive


def test_messages_made_by_the_session(blocking: BlockingKernelClient, kernel: KernelDouble) -> None:
    """The field's way to say anything works here too."""
    message = blocking.session.msg("comm_msg", {"comm_id": "x"})
    blocking.shell_channel.send(message)
    assert kernel.receive().msg_id == message["msg_id"]
    assert blocking.shell_channel.is_alive()
    assert blocking.iopub_channel.dropped == 0


# ── with kernels ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_program(real: BlockingKernelClient) -> None:
    """Execute, read the outputs, ask for completions: a program as the field writes it."""
    msg_id = real.execute("nut = 'hazel'; print(nut)")
    said = ""
    while True:
        message = real.get_iopub_msg(timeout=LIMIT)
        if message["parent_header"].get("msg_id") == msg_id:
            said += message["content"].get("text", "")
            if message["content"].get("execution_state") == "idle":
                break
    assert said == "hazel\n"
    assert real.get_shell_msg(timeout=LIMIT)["content"]["status"] == "ok"
    assert "nut" in real.complete("nu", reply=True, timeout=LIMIT)["content"]["matches"]
    assert real.is_complete("if x:", reply=True, timeout=LIMIT)["content"]["status"] == "incomplete"
    assert real.history(hist_access_type="tail", n=1, reply=True, timeout=LIMIT)["content"]["status"] == "ok"
    assert real.is_alive()
    assert real.kernel_info(reply=True)["content"]["language_info"]["name"] == "python"


def test_several_threads(real: BlockingKernelClient) -> None:
    """Threads that use one client each get what they asked for."""

    def cell(number: int) -> str:
        return text(real.run(f"print({number})"))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(cell, range(40))) == [f"{number}\n" for number in range(40)]
