"""What the client's tests share: a kernel that does what a test says, real kernels, clients of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, Message
from cobnut_kernel.transport import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY = b"a key of the tests"

LIMIT_MS = 20_000
"""How long the double waits for a message before the test has failed, in milliseconds."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run async tests under both loops."""
    return request.param


def connection(folder: Path) -> ConnectionInfo:
    """Describe unix sockets in a folder."""
    return ConnectionInfo("ipc", str(folder / "k"), 1, 2, 3, 4, 5, key=KEY)


class KernelDouble:
    """A kernel's sockets, and nobody behind them but the test: it says what is sent, when, and in which order."""

    def __init__(self, info: ConnectionInfo) -> None:
        self.info = info
        self.codec = Codec(info.key)
        self.context = zmq.Context()
        self.sockets = {channel: self.context.socket(zmq.ROUTER) for channel in ("shell", "control", "stdin")}
        self.sockets["iopub"] = self.context.socket(zmq.XPUB)
        self.sockets["iopub"].setsockopt(zmq.XPUB_VERBOSE, 1)
        for channel, socket in self.sockets.items():
            socket.setsockopt(zmq.SNDHWM, 0)
            if info.is_encrypted:
                socket.curve_server, socket.curve_secretkey = True, info.curve_secretkey
                socket.curve_publickey = info.curve_publickey
            socket.bind(info.url(Channel(channel)))

    def await_subscriber(self) -> None:
        """Wait until a client's subscription has come."""
        assert self.sockets["iopub"].poll(LIMIT_MS), "nobody subscribed"
        assert self.sockets["iopub"].recv() == b"\x01"

    def receive(self, channel: str = "shell") -> Message:
        """Wait for a client's message."""
        assert self.sockets[channel].poll(LIMIT_MS), f"nothing came on {channel}"
        return self.codec.decode(self.sockets[channel].recv_multipart())

    def reply(self, request: Message, content: dict[str, Any] | None = None, channel: str = "shell") -> list[bytes]:
        """Answer a request; returns the frames."""
        msg_type = request.msg_type.replace("_request", "_reply")
        return self.send(channel, msg_type, content or {"status": "ok"}, request)

    def send(self, channel: str, msg_type: str, content: dict[str, Any], request: Message) -> list[bytes]:
        """Send a message to the client that sent a request; returns the frames."""
        message = self.codec.message(msg_type, content, parent=request.header, identities=request.identities)
        frames = self.codec.encode(message)
        self.sockets[channel].send_multipart(frames)
        return frames

    def publish(self, msg_type: str, content: dict[str, Any], request: Message | None = None) -> list[bytes]:
        """Send a message to all clients; returns the frames."""
        message = self.codec.message(
            msg_type, content, parent=request.header if request else None, identities=[msg_type.encode()]
        )
        frames = self.codec.encode(message)
        self.sockets["iopub"].send_multipart(frames)
        return frames

    def status(self, state: str, request: Message | None = None) -> list[bytes]:
        """Publish that the kernel is busy or idle."""
        return self.publish("status", {"execution_state": state}, request)

    def stream(self, text: str, request: Message | None = None) -> list[bytes]:
        """Publish output."""
        return self.publish("stream", {"name": "stdout", "text": text}, request)

    def serve(self, *texts: str, channel: str = "shell") -> Message:
        """Do with the next request what kernels do: busy, outputs, reply, idle."""
        request = self.receive(channel)
        self.status("busy", request)
        for text in texts:
            self.stream(text, request)
        self.reply(request, channel=channel)
        self.status("idle", request)
        return request

    def close(self) -> None:
        """End, as a process does: nothing lingers."""
        self.context.destroy(linger=0)


class Ears:
    """Every message that a client receives, in order, to be awaited."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self.inbox: Inbox[tuple[Channel, Message]] = Inbox()
        self.undo = client.listen(lambda channel, message: self.inbox.put((channel, message)))

    async def until(self, msg_type: str, **content: Any) -> Message:
        """Wait until the client has received such a message."""
        while True:
            _, message = await self.inbox.receive()
            if message.msg_type == msg_type and content.items() <= message.content.items():
                return message


class RealKernel:
    """A kernel process."""

    def __init__(self, module: str, folder: Path, *arguments: str) -> None:
        self.module = module
        self.arguments = arguments
        self.folder = folder
        self.info = connection(folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it may take a while until it answers."""
        file = self.folder / "connection.json"
        file.write_text(json.dumps(self.info.as_dict()))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module, "-f", str(file), *self.arguments],
                env={**os.environ, "JPY_PARENT_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Kill the process and reap it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_kernel(module: str, folder: Path, *arguments: str) -> Iterator[RealKernel]:
    """Run a kernel process."""
    kernel = RealKernel(module, folder, *arguments)
    try:
        kernel.start()
        yield kernel
    finally:
        kernel.stop()


@pytest.fixture
def make_double(tmp_path: Path) -> Iterator[Callable[[], KernelDouble]]:
    """Make kernel doubles at one address, one after the other."""
    doubles: list[KernelDouble] = []

    def make() -> KernelDouble:
        doubles.append(KernelDouble(connection(tmp_path)))
        return doubles[-1]

    yield make
    for double in doubles:
        double.close()


@pytest.fixture
def kernel(make_double: Callable[[], KernelDouble]) -> KernelDouble:
    """Be a kernel."""
    return make_double()


@pytest.fixture
def client(kernel: KernelDouble) -> Iterator[AsyncKernelClient]:
    """Be a client of the kernel double, subscribed to its iopub."""
    client = AsyncKernelClient(kernel.info)
    client.start_channels()
    kernel.await_subscriber()
    yield client
    client.stop_channels()


@pytest.fixture
def ears(client: AsyncKernelClient) -> Ears:
    """Hear what the client receives."""
    return Ears(client)


@pytest.fixture(scope="module", params=["ipykernel_launcher", "cobnut_kernel"], ids=["ipykernel", "cobnut"])
def real_kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    """Run a kernel process that the tests share."""
    with running_kernel(request.param, tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


@pytest.fixture
def ipykernel(tmp_path: Path) -> Iterator[RealKernel]:
    """Be an ipykernel of one test, not started yet."""
    kernel = RealKernel("ipykernel_launcher", tmp_path)
    yield kernel
    kernel.stop()
