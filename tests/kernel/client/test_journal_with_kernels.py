"""Nothing of our kernel's iopub is lost: with a lossy way in between, a reader that sleeps, a client that was away."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import zmq
from tests.kernel.client.conftest import Ears, RealKernel, running_kernel

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.journal import GAP
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Message
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

pytestmark = pytest.mark.anyio

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""

PROXY_PORT = 77
"""The number at the end of the path where the proxy stands in for the kernel's iopub."""

DISPLAYS = "from IPython.display import display\nfor number in range({}): display(number)"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    """Run a kernel of ours that the tests share."""
    with running_kernel("cobnut_kernel", tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


class Proxy:
    """Stands between a kernel's iopub and a client, and drops what a test wants to be dropped."""

    def __init__(self, kernel: RealKernel) -> None:
        self.info = replace(kernel.info, iopub_port=PROXY_PORT)
        self.drops: Callable[[int, Message], bool] = lambda _number, _message: False
        self.dropped = 0
        self._seen = 0
        self._codec = Codec(kernel.info.key)
        self._context = zmq.Context()
        self._kernel_side = self._context.socket(zmq.XSUB)
        self._client_side = self._context.socket(zmq.XPUB)
        self._ending = threading.Event()
        for side in (self._kernel_side, self._client_side):
            side.setsockopt(zmq.SNDHWM, 0)
            side.setsockopt(zmq.RCVHWM, 0)
        self._kernel_side.connect(kernel.info.url(Channel.IOPUB))
        self._client_side.bind(self.info.url(Channel.IOPUB))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._ending.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._kernel_side, zmq.POLLIN)
        poller.register(self._client_side, zmq.POLLIN)
        while not self._ending.is_set():
            ready = dict(poller.poll(20))
            if self._client_side in ready:
                self._kernel_side.send_multipart(self._client_side.recv_multipart())
            if self._kernel_side in ready:
                frames = self._kernel_side.recv_multipart()
                self._seen += 1
                if self.drops(self._seen, self._codec.decode(frames)):
                    self.dropped += 1
                else:
                    self._client_side.send_multipart(frames)


@pytest.fixture
def proxy(kernel: RealKernel) -> Iterator[Proxy]:
    """Stand between the kernel and a client."""
    proxy = Proxy(kernel)
    yield proxy
    proxy.close()


def texts(messages: list[Message]) -> list[str]:
    """Name what was displayed."""
    return [message.content["data"]["text/plain"] for message in messages if message.msg_type == "display_data"]


def numbers(count: int) -> list[str]:
    """Name what `DISPLAYS` shows."""
    return [str(number) for number in range(count)]


async def outputs(client: AsyncKernelClient, code: str) -> list[Message]:
    """Run a cell to its end."""
    run = client.run(code)
    messages = [message async for message in run]
    assert run.complete
    return messages


# ── a lossy way ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_lossy_way(proxy: Proxy) -> None:
    """Every third message is dropped on the way, idle too: the cell has all of its outputs, in order, once."""
    async with AsyncKernelClient(proxy.info) as client:
        await client.wait_for_ready(LIMIT)
        proxy.drops = lambda number, _: number % 3 == 0
        with anyio.fail_after(LIMIT):
            assert texts(await outputs(client, DISPLAYS.format(300))) == numbers(300)
        assert proxy.dropped > 90


async def test_lost_tail(proxy: Proxy) -> None:
    """Everything behind the reply is dropped, and nothing more comes: the outputs and idle are there nevertheless."""
    async with AsyncKernelClient(proxy.info) as client:
        await client.wait_for_ready(LIMIT)
        proxy.drops = lambda _number, message: message.msg_type != "iopub_welcome"
        with anyio.fail_after(LIMIT):
            messages = await outputs(client, DISPLAYS.format(50))
        assert texts(messages) == numbers(50)
        assert messages[-1].content == {"execution_state": "idle"}


async def test_lost_for_the_fields_readers(proxy: Proxy) -> None:
    """Who reads with `get_msg` and who listens have what was dropped too."""
    async with AsyncKernelClient(proxy.info) as client:
        ears: list[Message] = []
        client.listen(lambda channel, message: ears.append(message) if channel is Channel.IOPUB else None)
        await client.wait_for_ready(LIMIT)
        proxy.drops = lambda number, _: number % 2 == 0
        msg_id = client.execute(DISPLAYS.format(100))
        read: list[dict[str, Any]] = []
        while not read or read[-1]["content"] != {"execution_state": "idle"}:
            message = await client.get_iopub_msg(LIMIT)
            if message["parent_header"].get("msg_id") == msg_id:
                read.append(message)
        shown = [message["content"]["data"]["text/plain"] for message in read if message["msg_type"] == "display_data"]
        assert shown == numbers(100)
        assert texts([message for message in ears if message.parent_id == msg_id]) == numbers(100)


# ── a reader that sleeps ────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def another_reader(info: Any) -> Generator[Callable[[str], None]]:
    """Subscribe, and read until a request's idle: so the kernel does not wait for its only subscriber."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.subscribe(b"")
    socket.connect(info.url(Channel.IOPUB))
    codec = Codec(info.key)

    def read_until_idle(msg_id: str) -> None:
        while True:
            assert socket.poll(LIMIT * 1000), "the kernel says nothing any more"
            message = codec.decode(socket.recv_multipart())
            if message.parent_id == msg_id and message.content.get("execution_state") == "idle":
                return

    try:
        assert socket.poll(LIMIT * 1000)
        yield read_until_idle
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sleeping_reader(kernel: RealKernel, anyio_backend: str) -> None:
    """30 000 displays to a client that takes nothing meanwhile, while another reads: it has all of them, and idle."""
    async with AsyncKernelClient(kernel.info) as client:
        await client.wait_for_ready(LIMIT)
        with another_reader(kernel.info) as read_until_idle:
            gate = threading.Event()
            run = client.run("input_file = None\n" + DISPLAYS.format(30_000))
            assert (await anext(run)).content == {"execution_state": "busy"}
            IOThread.shared().call_soon(gate.wait)
            try:
                await anyio.to_thread.run_sync(read_until_idle, run.msg_id)
            finally:
                gate.set()
            messages = [message async for message in run]
        assert texts(messages) == numbers(30_000)
        assert run.complete


# ── a client that was away ──────────────────────────────────────────────────────────────────────────────────────────


async def say_meanwhile(kernel: RealKernel, code: str) -> None:
    """Let another client run a cell to its end."""
    async with AsyncKernelClient(kernel.info) as other:
        await other.wait_for_ready(LIMIT)
        await outputs(other, code)


@pytest.mark.parametrize("way", ["channels", "started"])
async def test_what_was_said_while_away(kernel: RealKernel, way: str) -> None:
    """A client that connects again hears what was said meanwhile, before what is said then."""
    client = AsyncKernelClient(kernel.info)
    ears = Ears(client)
    client.start_channels()
    try:
        await client.wait_for_ready(LIMIT)
        client.stop_channels()
        await say_meanwhile(kernel, "print('meanwhile')")
        if way == "started":
            client.kernel_started()
        client.start_channels()
        await outputs(client, "print('afterwards')")
        heard = await ears.until("stream")
        assert heard.content["text"] == "meanwhile\n"
        assert (await ears.until("stream")).content["text"] == "afterwards\n"
    finally:
        client.stop_channels()


async def test_what_was_said_to_closed_sockets(kernel: RealKernel) -> None:
    """`kernel_started` for a kernel that is still the same one costs none of its outputs."""
    async with AsyncKernelClient(kernel.info) as client:
        ears = Ears(client)
        await client.wait_for_ready(LIMIT)
        thread = "import threading, time\ndef talk():\n  for i in range(60): print(i); time.sleep(0.005)\n"
        await outputs(client, thread + "talker = threading.Thread(target=talk); talker.start()")
        client.kernel_started()
        await outputs(client, "talker.join()")
        said = ""
        while not said.endswith("59\n"):
            said += (await ears.until("stream")).content["text"]
        assert said == "".join(f"{number}\n" for number in range(60))


# ── what is gone ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_the_kernel_has_forgotten(tmp_path: Any, anyio_backend: str) -> None:
    """What is older than the journal is a `cobnut.gap` in its place, for listeners and for the channel's readers."""
    settings = ["--Kernel.journal_memory=1000000", "--Kernel.journal_file=0"]
    with running_kernel("cobnut_kernel", tmp_path, *settings) as kernel:
        client = AsyncKernelClient(kernel.info)
        ears = Ears(client)
        client.start_channels()
        try:
            await client.wait_for_ready(LIMIT)
            client.stop_channels()
            await say_meanwhile(kernel, "for _ in range(40): display('x' * 100_000)")
            client.start_channels()
            lost = await ears.until(GAP)
            assert lost.content["count"] == lost.content["last"] - lost.content["first"] + 1 > 10
            assert "journal" in lost.content["reason"]
            shown = (await ears.until("display_data")).metadata["seq"]
            assert shown > lost.content["last"]
            read = [message["msg_type"] for message in await client.iopub_channel.get_msgs()]
            assert GAP in read
        finally:
            client.stop_channels()
