"""The heart of a kernel: an echo from a thread of its own, which beats while cells run and while Python is locked."""

from __future__ import annotations

from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

import anyio
import zmq

from cobnut_kernel.client.sockets import socket_options
from cobnut_kernel.client.waiting import Waiters
from cobnut_kernel.errors import ConnectionFileError, TransportClosedError
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.transport import Endpoint, IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.connection import ConnectionInfo

TIME_TO_DEAD = 1.0
"""Seconds from one beat to the next, and in which its echo has to come."""

_BEAT = [b"", b"ping"]
"""What a REQ socket would send. Ours is a DEALER: it may send the next beat although the last has no echo."""


class Heartbeat:
    """One socket of the process's I/O thread, open while somebody wants to know; by default nobody does.

    `unpause` begins to beat and `pause` ends it; in between `is_beating` tells at once whether the last echo came in
    time. `beats` asks once. The names are the field's, whose programs begin with `start` and end with `stop`.

    Args:
        connection: tells where the kernel is; asked when the socket is opened.
        time_to_dead: seconds from one beat to the next, and in which its echo has to come.
    """

    def __init__(self, connection: Callable[[], ConnectionInfo], time_to_dead: float = TIME_TO_DEAD) -> None:
        self.time_to_dead = time_to_dead
        self._connection = connection
        self._lock = Lock()
        self._endpoint: Endpoint | None = None
        self._runs: bool = False
        self._askers: int = 0
        self._echo_at: float | None = None
        self._waiters = Waiters()

    # ── beating all the time ────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin to beat, as `unpause` does."""
        self.unpause()

    def stop(self) -> None:
        """End, and close the socket; who waits for an echo gets none."""
        with self._lock:
            self._runs = False
            self._close()
        self._waiters.wake()

    def unpause(self) -> None:
        """Begin to beat.

        Raises:
            ConnectionFileError: the kernel's address is not known, or cannot be used.
        """
        with self._lock:
            self._unpause()

    def _unpause(self) -> None:
        if not self._runs:
            self._open()
            self._runs = True
            thread = IOThread.shared()
            thread.call_soon(self._tick, self._endpoint)

    def pause(self) -> None:
        """Beat no more until `unpause`."""
        with self._lock:
            self._runs = False
            if not self._askers:
                self._close()

    def forget(self) -> None:
        """Beat for another kernel from now on: the former one's echoes say nothing of it."""
        with self._lock:  # all the time: who stops it meanwhile must not be overtaken
            runs, self._runs = self._runs, False
            self._close()
            if runs:
                self._unpause()

    def is_alive(self) -> bool:
        """Say whether it was begun, and not paused; that the kernel lives is `is_beating`'s to say."""
        return self._runs

    def is_beating(self) -> bool:
        """Say whether an echo came within the time; False while nothing beats."""
        return self._runs and self.since is not None and self.since < 2 * self.time_to_dead

    @property
    def since(self) -> float | None:
        """Seconds since the last echo; None where none has come yet."""
        at = self._echo_at
        return None if at is None else monotonic() - at

    # ── asking once ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def beats(self, timeout: float | None = None) -> bool:
        """Send a beat, and wait for the echo of any.

        Args:
            timeout: in seconds, by default `time_to_dead`.

        Raises:
            ConnectionFileError: the kernel's address is not known, or cannot be used.
        """
        asked_at = monotonic()
        with self._lock:
            self._open()
            self._askers += 1
            endpoint = self._endpoint
        assert endpoint is not None
        try:
            with suppress(TransportClosedError), anyio.move_on_after(self.time_to_dead if timeout is None else timeout):
                endpoint.send(_BEAT)
                await self._waiters.wait(lambda: self._is_over(endpoint, asked_at))
            return self._has_echo_after(asked_at)
        finally:
            with self._lock:
                self._askers -= 1
                if not self._askers and not self._runs and endpoint is self._endpoint:
                    self._close()

    def _is_over(self, endpoint: Endpoint, asked_at: float) -> bool:
        return self._has_echo_after(asked_at) or endpoint is not self._endpoint

    def _has_echo_after(self, moment: float) -> bool:
        return self._echo_at is not None and self._echo_at >= moment

    # ── the socket ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        if self._endpoint is not None:
            return
        info = self._connection()
        if not info.port(Channel.HEARTBEAT):
            raise ConnectionFileError("The connection names no port for the heartbeat.")
        spec = SocketSpec(zmq.SocketType.DEALER, info.url(Channel.HEARTBEAT), linger=0, options=socket_options(info))
        try:
            self._endpoint = IOThread.shared().open(spec, self._hear)
        except zmq.ZMQError as error:
            raise ConnectionFileError(f"The heartbeat cannot connect to {spec.url}: {error.strerror}.") from error

    def _close(self) -> None:
        endpoint, self._endpoint = self._endpoint, None
        self._echo_at = None
        if endpoint is not None:
            endpoint.close()

    def _hear(self, _: list[bytes]) -> None:
        self._echo_at = monotonic()
        self._waiters.wake()

    def _tick(self, endpoint: Endpoint) -> None:
        """Send a beat, in the I/O thread, and come again."""
        if self._runs and endpoint is self._endpoint:
            endpoint.send(_BEAT)
            IOThread.shared().call_later(self.time_to_dead, self._tick, endpoint)
