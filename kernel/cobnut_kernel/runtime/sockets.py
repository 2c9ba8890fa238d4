"""The kernel's five sockets on the I/O thread: requests come in, replies and output go out in order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from cobnut_kernel.errors import ConnectionFileError, ProtocolError
from cobnut_kernel.protocol.codec import EMPTY, Codec
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, Message, MessageType
from cobnut_kernel.transport import Endpoint, IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.connection import ConnectionInfo

PACE = 0.02
"""Seconds between two messages of one stream while it keeps writing."""

FIRST = 0.001
"""Seconds that the first text waits for more: `print` writes its line and the line's end one after the other."""

CROWD = 20_000
"""How many items may wait for the I/O thread before a writer waits for it."""

LARGE = 1 << 20
"""Characters in the largest text that goes out as one message; who writes as much at once waits for it to go."""

_REQUESTS = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message of the kernel whose content is JSON already: what user code changes later is not in it."""

    channel: Channel
    msg_type: MessageType
    content: bytes
    parent: bytes = EMPTY
    metadata: bytes = EMPTY
    identities: tuple[bytes, ...] = ()
    buffers: tuple[bytes, ...] = ()


class Outbox:
    """All that the kernel says, in the order it was said, from any thread and without waiting.

    Text of one stream that lies together becomes one message. The high-water marks are off, so that a slow
    reader costs memory but loses nothing and holds up nobody. A writer who is faster than the I/O thread waits
    for that, never for a reader.
    """

    def __init__(self, thread: IOThread, codec: Codec) -> None:
        self.codec = codec
        self.endpoints: dict[Channel, Endpoint] = {}
        self._thread = thread
        self._items: deque[Outgoing | tuple[bytes, str, str]] = deque()
        self._asked: bool = False
        self._pacing: bool = False
        self._texts: list[str] = []
        self._text_of: tuple[bytes, str] = EMPTY, ""
        self._size: int = 0
        self._closed: bool = False

    def post(self, message: Outgoing, *, soon: bool = True) -> None:
        """Send a message; with `soon` off it may wait for the next one."""
        self._items.append(message)
        if soon and not self._asked:
            self._asked = True
            self._thread.call_soon(self._drain)

    def write(self, parent: bytes, stream: str, text: str) -> None:
        """Send text of a stream, within `FIRST` or, while text flows, within `PACE`."""
        self._items.append((parent, stream, text))
        if not self._pacing:
            self._pacing = True
            self._thread.call_soon(self._thread.call_later, FIRST, self._keep_pace)
        if len(text) > LARGE:
            self._wait_for(0)
        elif len(self._items) > CROWD:
            self._wait_for(CROWD // 2)

    def _wait_for(self, left: int) -> None:
        """Wait until the I/O thread has taken all but so many items; it need not keep its pace for that."""
        self._thread.call_soon(self._drain)
        while len(self._items) > left and not self._thread.is_current():
            if self._closed:
                self._items.clear()
            time.sleep(0.001)

    def close(self) -> None:
        """Send what was said until now, and wait for that; what is said later is dropped."""
        if self.endpoints:
            self._thread._call(self._drain)
        self.abandon()

    def abandon(self) -> None:
        """Drop what is said from now on."""
        self._closed = True

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        self._asked = False
        self._send_all()

    def _keep_pace(self) -> None:
        self._pacing = self._send_all()
        if self._items:  # written before the line above was done: its writer saw us pacing and did not ask
            self._pacing = True
        if self._pacing:
            self._thread.call_later(PACE, self._keep_pace)

    def _send_all(self) -> bool:
        """Send what is there; True if text was in it."""
        wrote = False
        for _ in range(len(self._items)):  # what is written meanwhile waits for the next turn
            item = self._items.popleft()
            if isinstance(item, Outgoing):
                self._send_text()
                self._send(item)
            else:
                self._add_text(*item)
                wrote = True
        self._send_text()
        return wrote

    def _add_text(self, parent: bytes, stream: str, text: str) -> None:
        if self._text_of != (parent, stream) or self._size > LARGE:
            self._send_text()
        self._text_of = parent, stream
        self._texts.append(text)
        self._size += len(text)

    def _send_text(self) -> None:
        if self._texts:
            parent, stream = self._text_of
            content = dumps({"name": stream, "text": "".join(self._texts)})
            self._texts, self._size = [], 0
            self._send(Outgoing(Channel.IOPUB, MessageType.STREAM, content, parent))

    def _send(self, message: Outgoing) -> None:
        if self._closed:
            return
        header = dumps(self.codec.header(message.msg_type).as_dict())
        signed = self.codec.sign((header, message.parent, message.metadata, message.content))
        identities = message.identities or (topic(message.msg_type, self.codec.session),)
        self.endpoints[message.channel].send([*identities, *signed, *message.buffers])


def topic(msg_type: str, session: str) -> bytes:
    """Name the iopub topic of a message type."""
    return f"kernel.{session}.{msg_type}".encode()


class Heartbeat:
    """An echo that runs in C without the GIL, so that code that holds it stops no beat."""

    def __init__(self, url: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(url)
        except BaseException:
            self._context.destroy(0)
            raise
        self.url = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._thread = threading.Thread(target=self._echo, name="cobnut-heartbeat", daemon=True)
        self._thread.start()

    def _echo(self) -> None:
        try:
            zmq.proxy(self._socket, self._socket)
        except zmq.ContextTerminated:
            self._socket.close(0)

    def close(self) -> None:
        """Stop the echo."""
        self._context.term()
        self._thread.join()


class KernelSockets:
    """The five sockets, from binding to closing.

    Args:
        connection: where to bind; ports of 0 are chosen by the system, see `connection` afterwards.
        outbox: what the kernel says; it gets its sockets here.
        receive: called with every request, in the I/O thread.

    Raises:
        ConnectionFileError: an address is in use or is none of ours; nothing stays open.
    """

    def __init__(self, connection: ConnectionInfo, outbox: Outbox, receive: Callable[[Channel, Message], None]) -> None:
        self.outbox = outbox
        self._thread = IOThread.shared()
        self._codecs = {channel: Codec(connection.key) for channel in _REQUESTS}
        self._receive = receive
        self._heartbeat: Heartbeat | None = None
        try:
            self._heartbeat = Heartbeat(connection.url(Channel.HEARTBEAT))
            for channel in (*_REQUESTS, Channel.IOPUB):
                self.outbox.endpoints[channel] = self._open(channel, connection.url(channel))
        except zmq.ZMQError as error:
            self.close()
            raise ConnectionFileError(
                f"The kernel cannot listen where its connection says: {error}. "
                "Give it other ports, or stop what uses them."
            ) from error
        self.connection = _with_ports(connection, self._urls())
        for path in self.connection.ipc_paths():
            Path(path).chmod(0o600)

    def close(self) -> None:
        """Send what is left, then close all; zmq leaves the files of unix sockets to us."""
        self.outbox.close()
        for endpoint in self.outbox.endpoints.values():
            endpoint.close()
        if self._heartbeat is not None:
            self._heartbeat.close()
        for url in self._urls().values():
            if url.startswith("ipc://"):
                Path(url.removeprefix("ipc://")).unlink(missing_ok=True)

    def _open(self, channel: Channel, url: str) -> Endpoint:
        if channel is Channel.IOPUB:
            # XPUB_VERBOSE: without it only the first subscriber of a topic is welcomed (JEP 65).
            spec = SocketSpec(zmq.XPUB, url, bind=True, linger=1000, options={zmq.XPUB_VERBOSE: 1})
            return self._thread.open(spec, self._on_subscription)
        # ROUTER_HANDOVER: a client that reconnects under its identity gets its replies (ipykernel #270).
        spec = SocketSpec(zmq.ROUTER, url, bind=True, linger=1000, options={zmq.ROUTER_HANDOVER: 1})
        return self._thread.open(spec, lambda frames: self._on_request(channel, frames))

    def _urls(self) -> dict[Channel, str]:
        urls = {channel: endpoint.url for channel, endpoint in self.outbox.endpoints.items()}
        return urls if self._heartbeat is None else {**urls, Channel.HEARTBEAT: self._heartbeat.url}

    def _on_request(self, channel: Channel, frames: list[bytes]) -> None:
        try:
            message = self._codecs[channel].decode(frames)
        except ProtocolError as error:
            _log.warning("A request on %s was refused: %s", channel, error)
            return
        self._receive(channel, message)

    def _on_subscription(self, frames: list[bytes]) -> None:
        """Welcome a new subscriber with the topic it asked for (JEP 65)."""
        subscribed, subscription = frames[0][:1] == b"\x01", frames[0][1:]
        if not subscribed:
            return
        try:
            content = dumps({"subscription": subscription.decode()})
        except UnicodeDecodeError:
            return
        self.outbox.post(
            Outgoing(Channel.IOPUB, MessageType.IOPUB_WELCOME, content, identities=(subscription,))
            if subscription
            else Outgoing(Channel.IOPUB, MessageType.IOPUB_WELCOME, content)
        )


def _with_ports(connection: ConnectionInfo, urls: dict[Channel, str]) -> ConnectionInfo:
    """Fill in the ports that the system has chosen."""
    if connection.transport == "ipc":
        return connection
    return replace(connection, **{f"{channel}_port": int(url.rpartition(":")[2]) for channel, url in urls.items()})
