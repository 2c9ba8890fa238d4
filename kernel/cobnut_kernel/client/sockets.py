"""The four sockets of a client: opened and closed together, signed on the way out, checked on the way in."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import zmq

from cobnut_kernel.errors import ConnectionFileError, ProtocolError, TransportClosedError
from cobnut_kernel.protocol.messages import Channel, Message
from cobnut_kernel.transport import Endpoint, IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from logging import Logger

    from cobnut_kernel.protocol.codec import Codec
    from cobnut_kernel.protocol.connection import ConnectionInfo

RECONNECT_MS = 2
"""How soon a lost connection is tried again; each further try waits twice as long."""

RECONNECT_MAX_MS = 100
"""How long at most a kernel that came back waits for its clients."""

ARRIVAL_SHARE = 1 / 32
"""The part of its time by which a kernel that starts waits, at most, for clients to see that its sockets are there."""

ARRIVAL_MAX = 1.0
"""Seconds that a kernel waits at most for that, however long it was awaited."""

# RCVBUF is left alone. A kernel that drops what its clients do not take (ipykernel, beyond 1000 messages) does so when
# our process gets no processor for some tenths of a second, and a larger buffer would bridge that. But between unix
# sockets there is the sender's buffer only, and one of TCP grows by itself to more than most systems let anybody set.
_OPTIONS: dict[zmq.SocketOption, int | bytes] = {
    zmq.SocketOption.RECONNECT_IVL: RECONNECT_MS,
    zmq.SocketOption.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
}

# In this order: iopub first, for the sooner it subscribes the less it misses; stdin before shell, for a kernel that is
# asked something may ask back at once, and what its ROUTER has no connection for it drops.
_TYPES = {
    Channel.IOPUB: zmq.SocketType.SUB,
    Channel.STDIN: zmq.SocketType.DEALER,
    Channel.SHELL: zmq.SocketType.DEALER,
    Channel.CONTROL: zmq.SocketType.DEALER,
}


class ClientSockets:
    """A client's ends of the connection to a kernel.

    Attributes:
        refused: how many messages could not be trusted, by the name of the error.
    """

    def __init__(self, deliver: Callable[[Channel, Message], None], log: Logger) -> None:
        self.refused: Counter[str] = Counter()
        self._deliver = deliver
        self._log = log
        self._openings = count()
        self._endpoints: dict[Channel, Endpoint] = {}

    @property
    def are_open(self) -> bool:
        """Whether messages can be sent."""
        return bool(self._endpoints)

    def open(self, info: ConnectionInfo, codec: Codec, channels: Collection[Channel] = tuple(_TYPES)) -> None:
        """Open the sockets of some channels, where none is; not from the I/O thread.

        Raises:
            ConnectionFileError: no socket can be connected to an address.
        """
        opened: dict[Channel, Endpoint] = {}
        identity = self._identity(codec)
        try:
            for channel in filter(channels.__contains__, _TYPES):
                opened[channel] = self._connect(channel, info, codec, identity)
        except BaseException:
            _close(opened)
            raise
        self._endpoints = opened
        if awaited := [endpoint for endpoint in opened.values() if endpoint.spec.late]:
            IOThread.shared().call_soon(_connect_when_made, awaited, monotonic())

    def send(self, channel: Channel, frames: list[bytes]) -> None:
        """Send a message; from any thread, at once.

        Raises:
            TransportClosedError: the sockets are not open.
        """
        endpoint = self._endpoints.get(channel)
        if endpoint is None:
            raise TransportClosedError("The client's channels are not open: call start_channels().")
        endpoint.send(frames)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back in the I/O thread, if the sockets are still open then."""
        thread = IOThread.shared()
        thread.call_soon(thread.call_later, seconds, callback)

    def close(self) -> None:
        """Close all sockets and wait until they are closed; not from the I/O thread."""
        _close(self._endpoints)
        self._endpoints = {}

    def _identity(self, codec: Codec) -> bytes:
        # The session is the identity, as the field has it. Opened again it needs another: the kernel's ROUTER may
        # still hold the first for the connection that has just been closed, and would never hear the new one.
        opening = next(self._openings)
        return f"{codec.session}-{opening}".encode() if opening else codec.session.encode()

    def _connect(self, channel: Channel, info: ConnectionInfo, codec: Codec, identity: bytes) -> Endpoint:
        url = info.url(channel)
        if not info.port(channel):
            raise ConnectionFileError(f"The connection names no port for {channel}: has the kernel not told it yet?")
        is_iopub = channel is Channel.IOPUB
        spec = SocketSpec(
            _TYPES[channel],
            url,
            identity=b"" if is_iopub else identity,
            subscribe=b"" if is_iopub else None,
            linger=0,  # what a dead kernel was asked must not reach the next one
            options=socket_options(info),
            late=not _is_made(url),
        )
        try:
            return IOThread.shared().open(spec, partial(self._on_frames, channel, codec))
        except zmq.ZMQError as error:
            raise ConnectionFileError(f"The {channel} socket cannot connect to {url}: {error.strerror}.") from error

    def _on_frames(self, channel: Channel, codec: Codec, frames: list[bytes]) -> None:
        try:
            message = codec.decode(frames)
        except ProtocolError as error:
            self._refuse(channel, error)
        else:
            self._deliver(channel, message)

    def _refuse(self, channel: Channel, error: ProtocolError) -> None:
        kind = type(error).__name__
        self.refused[kind] += 1
        times = self.refused[kind]
        if str(times).strip("0") == "1":  # the first, the 10th, the 100th: a flood of them is no flood in the log
            self._log.warning("A message on %s was dropped (%s, number %d): %s", channel, kind, times, error)


def _is_made(url: str) -> bool:
    """Say whether a kernel has made a socket, as far as that can be seen without knocking."""
    path = url.removeprefix("ipc://")
    return path == url or path.startswith("@") or Path(path).exists()


def _connect_when_made(endpoints: list[Endpoint], since: float) -> None:
    """Connect those whose file the kernel has made; called in the I/O thread, again and again until all are.

    zmq by itself tries after 2, 4, 8 ... 64, 100, 100 ms: a kernel that needs 130 ms is heard after 230. It cannot be
    told to try often during the start and seldom in the hours for which a kernel may be gone: what is connected keeps
    the RECONNECT_IVL_MAX that it was connected with.
    """
    left: list[Endpoint] = []
    for endpoint in endpoints:
        if not endpoint.closed:
            endpoint.connect() if _is_made(endpoint.url) else left.append(endpoint)
    if left:
        IOThread.shared().call_later(_pause(monotonic() - since), _connect_when_made, left, since)


def _pause(waited: float) -> float:
    """Say when to look again for what has not been there for so long; in seconds."""
    return min(max(waited * ARRIVAL_SHARE, RECONNECT_MS / 1000), ARRIVAL_MAX)


def socket_options(info: ConnectionInfo) -> dict[zmq.SocketOption, int | bytes]:
    """Return the options of every socket of a client: how soon it connects again, and what encrypts it."""
    return {**_OPTIONS, **_curve_options(info)}


def _curve_options(info: ConnectionInfo) -> dict[zmq.SocketOption, int | bytes]:
    """Return what encrypts a client's socket; the pair of keys in the file is the kernel's, and the client's too."""
    if not info.is_encrypted:
        return {}
    if not zmq.has("curve"):
        raise ConnectionFileError("The kernel's sockets are encrypted, and this zmq cannot: install pyzmq with CURVE.")
    return {
        zmq.SocketOption.CURVE_SECRETKEY: info.curve_secretkey,
        zmq.SocketOption.CURVE_PUBLICKEY: info.curve_publickey,
        zmq.SocketOption.CURVE_SERVERKEY: info.curve_publickey,
    }


def _close(endpoints: dict[Channel, Endpoint]) -> None:
    for endpoint in endpoints.values():
        endpoint.close()
