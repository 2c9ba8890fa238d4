"""The kernel's five sockets on the I/O thread: where they listen, and for whom."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from cobnut_kernel.errors import ConnectionFileError, ProtocolError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Message
from cobnut_kernel.runtime.output.publisher import PIPE
from cobnut_kernel.transport import Endpoint, IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.runtime.output.outbox import Outbox

    Options = dict[zmq.SocketOption, int | bytes]

LINGER = 1000
"""Milliseconds that the end waits for clients to take what zmq has already."""

_REQUESTS = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
_monitors = count()
_log = logging.getLogger(__name__)


class Heartbeat:
    """An echo that runs in C without the GIL, so that code that holds it stops no beat."""

    def __init__(self, url: str, options: Options) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            for option, value in options.items():
                self._socket.setsockopt(option, value)
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
        ConnectionFileError: an address is in use or is none of ours, or the CURVE keys are of no use; nothing stays
            open.
    """

    def __init__(self, connection: ConnectionInfo, outbox: Outbox, receive: Callable[[Channel, Message], None]) -> None:
        self.outbox = outbox
        self._thread = IOThread.shared()
        self._codecs = {channel: Codec(connection.key) for channel in _REQUESTS}
        self._receive = receive
        self._heartbeat: Heartbeat | None = None
        self._monitor: Endpoint | None = None
        options = curve_options(connection)
        try:
            self._heartbeat = Heartbeat(connection.url(Channel.HEARTBEAT), options)
            for channel in _REQUESTS:
                self.outbox.endpoints[channel] = self._open(channel, connection.url(channel), options)
            self.outbox.endpoints[Channel.IOPUB] = self._open_iopub(connection.url(Channel.IOPUB), options)
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
        if self._monitor is not None:
            self._monitor.close()
        if self._heartbeat is not None:
            self._heartbeat.close()
        for url in self._urls().values():
            if url.startswith("ipc://"):
                Path(url.removeprefix("ipc://")).unlink(missing_ok=True)

    def _open(self, channel: Channel, url: str, options: Options) -> Endpoint:
        # ROUTER_HANDOVER: a client that reconnects under its identity gets its replies (ipykernel #270).
        spec = SocketSpec(zmq.ROUTER, url, bind=True, linger=LINGER, options={zmq.ROUTER_HANDOVER: 1, **options})
        return self._thread.open(spec, lambda frames: self._on_request(channel, frames))

    def _open_iopub(self, url: str, options: Options) -> Endpoint:
        publisher, monitor = self.outbox.publisher, f"inproc://cobnut-connections-{next(_monitors)}"
        self._monitor = self._thread.open(SocketSpec(zmq.PAIR, monitor), publisher.connections.on_event)
        options = {zmq.XPUB_MANUAL: 1, zmq.XPUB_NODROP: 1, zmq.SNDHWM: PIPE, **options}
        spec = SocketSpec(zmq.XPUB, url, bind=True, linger=LINGER, options=options, monitor=monitor)
        return self._thread.open(spec, publisher.on_subscription, publisher.open)

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


def curve_options(connection: ConnectionInfo) -> Options:
    """Return what makes a socket a CURVE server with the connection's keys; nothing where it has none (JEP 145).

    Raises:
        ConnectionFileError: the keys are no pair, or this zmq cannot encrypt.
    """
    public, secret = connection.curve_publickey, connection.curve_secretkey
    if not secret:
        return {}
    if not zmq.has("curve"):
        raise ConnectionFileError(
            "The connection has CURVE keys, and this zmq cannot encrypt: install pyzmq with CURVE."
        )
    try:
        of_secret = zmq.curve_public(secret)
    except zmq.ZMQError as error:
        raise ConnectionFileError(f"The 'curve_secretkey' of the connection is no CURVE key: {error}.") from error
    if of_secret != public:
        raise ConnectionFileError("The 'curve_publickey' of the connection is not that of its 'curve_secretkey'.")
    return {zmq.CURVE_SERVER: 1, zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret}


def _with_ports(connection: ConnectionInfo, urls: dict[Channel, str]) -> ConnectionInfo:
    """Fill in the ports that the system has chosen."""
    if connection.transport == "ipc":
        return connection
    return replace(connection, **{f"{channel}_port": int(url.rpartition(":")[2]) for channel, url in urls.items()})
