"""A kernel process and its clients as the wire shows them: sockets and signed messages, no class of the client package.

Every wait has a limit, and its error says what was waited for, what was seen instead, and how the kernel is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from cobnut_kernel.protocol.codec import DELIMITER, Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TIMEOUT = 25.0
"""Seconds that a wait may take on a machine that is busy with other things; a good one ends at once."""

KEY = b"a key that signs the messages of these tests"


class WireError(AssertionError):
    """What was waited for did not come."""


def wait_until(condition: Callable[[], object], what: str, timeout: float = TIMEOUT) -> None:
    """Look again and again until a condition holds.

    Raises:
        WireError: it did not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise WireError(f"Waited {timeout:g} s for {what}.")
        time.sleep(0.005)


class KernelProcess:
    """A kernel's process, leader of its own group, in a folder of its own that goes with it."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        transport: str = "ipc",
        info: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cobnut-test-"))
        self.connection_file = self.folder / "kernel.json"
        self.clients: list[WireClient] = []
        ports = range(1, 6) if transport == "ipc" else [0] * 5
        address = str(self.folder / "socket") if transport == "ipc" else "127.0.0.1"
        self.info = ConnectionInfo.from_dict(info) if info else ConnectionInfo(transport, address, *ports, key=KEY)
        self.connection_file.write_text(json.dumps(self.info.as_dict()))
        self.connection_file.chmod(0o600)
        # The folder of the tests is not the kernel's: it would find the tests there.
        cwd = cwd or self.folder
        with (self.folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [*(command or (sys.executable, "-P", "-m", "cobnut_kernel", "-f")), str(self.connection_file)],
                env={**os.environ, "JPY_PARENT_PID": str(os.getpid()), **(env or {})},
                cwd=cwd,
                stdin=stdin,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )

    def connect(self, **options: Any) -> WireClient:
        """Return a new client, welcomed by iopub; where the kernel chooses its ports, wait until it has."""
        if not self.info.hb_port:
            wait_until(self._has_ports, "the kernel to write its ports")
        client = WireClient(self, **options)
        self.clients.append(client)
        client.wait(lambda: client.welcomes, "the iopub_welcome")
        return client

    def interrupt(self) -> None:
        """Send SIGINT to the kernel's process group, as Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the process's end and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise WireError(f"Waited {timeout:g} s for the kernel's process to end. {self.describe()}") from None

    def end(self) -> None:
        """Close the clients, stop the process if it runs, and remove the folder; once is enough."""
        self.disconnect()
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(10)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and what its cells have left behind
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def disconnect(self) -> None:
        """Close the clients."""
        while self.clients:
            self.clients.pop().close()

    @property
    def stderr(self) -> str:
        """What the process has written outside its cells."""
        with suppress(FileNotFoundError):
            return (self.folder / "stderr").read_text(errors="replace")
        return ""

    @property
    def left_over(self) -> list[str]:
        """The files that the kernel still has in its folder: connection file and sockets."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(("kernel", "socket")))

    def describe(self) -> str:
        """Say how the process is."""
        code = self.process.poll()
        state = "The kernel runs." if code is None else f"The kernel has ended with code {code}."
        return f"{state} Its stderr:\n{self.stderr[-3000:] or '(nothing)'}"

    def _has_ports(self) -> bool:
        if self.process.poll() is not None:
            raise WireError(self.describe())
        self.info = ConnectionInfo.from_dict(json.loads(self.connection_file.read_text()))
        return self.info.hb_port != 0


@dataclass
class Exchange:
    """A request and what came back because of it; it grows while its client receives."""

    request: Message
    channel: Channel
    replies: list[tuple[Channel, Message]] = field(default_factory=list)
    iopub: list[Message] = field(default_factory=list)

    @property
    def reply(self) -> Message:
        """The one reply, from the channel of the request."""
        [(channel, reply)] = self.replies
        assert channel == self.channel
        return reply

    @property
    def content(self) -> dict[str, Any]:
        """The content of the reply."""
        return self.reply.content

    @property
    def idle(self) -> bool:
        """Whether the kernel said that it has done with this request."""
        return any(m.msg_type == MessageType.STATUS and m.content["execution_state"] == "idle" for m in self.iopub)

    @property
    def types(self) -> list[str]:
        """The types of the iopub messages, in their order; for a status the state, neighbours of one stream as one."""
        kinds = [(m.msg_type, m.content.get("execution_state") or m.content.get("name")) for m in self.iopub]
        streams = MessageType.STREAM
        kept = [
            kind for before, kind in zip([None, *kinds], kinds, strict=False) if kind != before or kind[0] != streams
        ]
        return [state if msg_type == MessageType.STATUS else msg_type for msg_type, state in kept]

    def of_type(self, msg_type: MessageType) -> list[dict[str, Any]]:
        """Return the contents of the iopub messages of one type."""
        return [message.content for message in self.iopub if message.msg_type == msg_type]

    def text(self, name: str = "stdout") -> str:
        """Return the text of a stream, joined."""
        return "".join(content["text"] for content in self.of_type(MessageType.STREAM) if content["name"] == name)

    @property
    def result(self) -> str:
        """The text of the one result."""
        return self.only(MessageType.EXECUTE_RESULT)["data"]["text/plain"]

    @property
    def error(self) -> dict[str, Any]:
        """The one error shown."""
        return self.only(MessageType.ERROR)

    def only(self, msg_type: MessageType) -> dict[str, Any]:
        """Return the content of the one iopub message of a type.

        Raises:
            WireError: there is none, or another one.
        """
        contents = self.of_type(msg_type)
        if len(contents) != 1:
            seen = "\n".join(f"  {message.msg_type} {str(message.content)[:300]}" for message in self.iopub)
            raise WireError(f"{len(contents)} messages of type {msg_type} came, not one:\n{seen}")
        return contents[0]


class WireClient:
    """One client of a kernel: sockets of its own, and all that came in by them."""

    def __init__(self, kernel: KernelProcess, *, identity: bytes = b"", session: str | None = None) -> None:
        self.kernel = kernel
        self.codec = Codec(kernel.info.key, session=session)
        self.exchanges: dict[str | None, Exchange] = {}
        self.welcomes: list[Message] = []
        self.messages: list[tuple[Channel, Message]] = []
        self.parents: dict[str, bytes] = {}
        self.strays: dict[str, list[Message]] = defaultdict(list)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._others: list[zmq.Socket[bytes]] = []
        self.sockets = {channel: self._open(channel, identity) for channel in Channel}

    def _open(self, channel: Channel, identity: bytes) -> zmq.Socket[bytes]:
        opened = self._context.socket(zmq.SUB if channel is Channel.IOPUB else zmq.DEALER)
        opened.linger = 0
        opened.setsockopt(zmq.RECONNECT_IVL, 5)
        if channel is Channel.IOPUB:
            opened.setsockopt(zmq.SUBSCRIBE, b"")
        elif identity:
            opened.setsockopt(zmq.IDENTITY, identity)
        opened.connect(self.kernel.info.url(channel))
        if channel is not Channel.HEARTBEAT:
            self._poller.register(opened, zmq.POLLIN)
        return opened

    def close(self) -> None:
        """Close the sockets, those of `another_socket` too."""
        for opened in (*self.sockets.values(), *self._others):
            opened.close(0)
        self._context.term()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, msg_type: str, content: dict[str, Any] | None = None, channel: Channel = Channel.SHELL, **options: Any
    ) -> Exchange:
        """Send a request; what comes back is in the exchange as soon as this client has waited for it."""
        message = self.codec.message(msg_type, content or {}, **options)
        exchange = self.exchanges[message.msg_id] = Exchange(message, channel)
        self.sockets[channel].send_multipart(self.codec.encode(message))
        return exchange

    def send_code(
        self,
        code: str,
        *,
        channel: Channel = Channel.SHELL,
        subshell: str | None = None,
        tags: list[str] | None = None,
        **content: Any,
    ) -> Exchange:
        """Send a cell and do not wait for it."""
        defaults = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        content = {"code": code, **defaults, "stop_on_error": True, **content}
        options = {"subshell_id": subshell, "metadata": {"tags": tags} if tags is not None else {}}
        return self.request(MessageType.EXECUTE_REQUEST, content, channel, **options)

    @property
    def waits(self) -> bool:
        """Whether a cell of this client still runs, as far as it has heard."""
        execute = MessageType.EXECUTE_REQUEST
        return any(e.request.msg_type == execute and not e.idle for e in self.exchanges.values())

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def execute(self, code: str, *, timeout: float = TIMEOUT, **content: Any) -> Exchange:
        """Run a cell to its end: the reply and idle are there."""
        return self.finish(self.send_code(code, **content), timeout=timeout)

    def ask(self, msg_type: str, content: dict[str, Any] | None = None, channel: Channel = Channel.SHELL) -> Exchange:
        """Send a request and wait for its reply and idle."""
        return self.finish(self.request(msg_type, content, channel))

    def control(self, msg_type: str, **content: Any) -> dict[str, Any]:
        """Ask something on the control channel and return the content of the reply."""
        return self.ask(msg_type, content, Channel.CONTROL).content

    def create_subshell(self, **content: Any) -> str:
        """Start a subshell and return its id."""
        return self.control(MessageType.CREATE_SUBSHELL_REQUEST, **content)["subshell_id"]

    def finish(self, exchange: Exchange, *, timeout: float = TIMEOUT) -> Exchange:
        """Wait for the reply to a request and for idle."""
        what = f"reply and idle of {exchange.request.msg_type} {exchange.request.content}"
        self.wait(lambda: exchange.replies and exchange.idle, what, timeout)
        return exchange

    def wait_for_text(self, exchange: Exchange, text: str) -> None:
        """Wait until a cell has printed something."""
        self.wait(lambda: text in exchange.text(), f"the text {text!r}")

    def wait(self, condition: Callable[[], object], what: str, timeout: float = TIMEOUT) -> None:
        """Receive until a condition holds.

        Raises:
            WireError: it did not hold in time, or the kernel has ended.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.receive(0.05) and self.kernel.process.poll() is not None and not self.receive(0.2):
                raise WireError(self._complaint(what, "The kernel has ended"))
            if time.monotonic() > deadline:
                raise WireError(self._complaint(what, f"{timeout:g} s have passed"))

    def receive(self, timeout: float) -> int:
        """Take in what arrives within some seconds, or what is there; return the number of messages."""
        count = 0
        for opened, _ in self._poller.poll(timeout * 1000):
            channel = next(channel for channel, candidate in self.sockets.items() if candidate is opened)
            with suppress(zmq.Again):
                for _ in range(100):
                    self._take(channel, opened.recv_multipart(zmq.NOBLOCK))
                    count += 1
        return count

    def _take(self, channel: Channel, frames: list[bytes]) -> None:
        message = self.codec.decode(frames)
        self.messages.append((channel, message))
        self.parents[message.msg_id] = frames[frames.index(DELIMITER) + 3]
        if message.msg_type == MessageType.IOPUB_WELCOME:
            self.welcomes.append(message)
        elif (exchange := self.exchanges.get(message.parent_id)) is None:
            self.strays[message.msg_type].append(message)
        elif channel is Channel.IOPUB:
            exchange.iopub.append(message)
        else:
            exchange.replies.append((channel, message))

    def _complaint(self, what: str, why: str) -> str:
        seen = [f"  {channel}: {m.msg_type} {str(m.content)[:200]}" for channel, m in self.messages[-12:]]
        lines = "\n".join(seen) or "  (nothing)"
        return f"{why}, still waiting for {what}.\nSeen last:\n{lines}\n{self.kernel.describe()}"

    # ── beside the protocol ──────────────────────────────────────────────────────────────────────────────────────────

    def another_socket(self, kind: zmq.SocketType, channel: Channel) -> zmq.Socket[bytes]:
        """Connect one more socket to a channel, for what no client of ours would do."""
        opened = self._context.socket(kind)
        opened.setsockopt(zmq.RCVTIMEO, int(TIMEOUT * 1000))
        opened.connect(self.kernel.info.url(channel))
        self._others.append(opened)
        return opened

    def beat(self, timeout: float = TIMEOUT) -> None:
        """Send a heartbeat and wait for its echo."""
        heart = self.sockets[Channel.HEARTBEAT]
        heart.send_multipart([b"", b"beat"])
        if not heart.poll(int(timeout * 1000)):
            raise WireError(self._complaint("the heartbeat's echo", f"{timeout:g} s have passed"))
        assert heart.recv_multipart() == [b"", b"beat"]
