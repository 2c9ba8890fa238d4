"""The socket between a fork server and its owner."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections import deque
from contextlib import suppress
from select import POLLIN, POLLOUT
from typing import TYPE_CHECKING

from cobnut_kernel.protocol.fork import MAX_PACKET, MAX_STREAMS, Packet

if TYPE_CHECKING:
    from collections.abc import Sequence


class Owner:
    """The socket to the owner; nothing that is said there makes us wait for him."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.is_gone: bool = False

    @classmethod
    def at(cls, descriptor: int) -> Owner:
        """Take the socket that was inherited under a number.

        Raises:
            SystemExit: it is no socket of the right kind, or its other end belongs to another user.
        """
        try:
            connected = socket.socket(fileno=descriptor)
        except OSError as error:
            sys.exit(f"The descriptor {descriptor} is no socket ({error}): give the end of a socket pair.")
        if (connected.family, connected.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            sys.exit(f"The socket {descriptor} is not of the family AF_UNIX and the type SOCK_SEQPACKET.")
        _pid, user, _group = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.geteuid():
            sys.exit(f"The socket's other end belongs to another user (id {user}).")
        connected.setblocking(False)
        connected.set_inheritable(False)
        return cls(connected)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def wanted(self) -> int:
        """The events to wait for."""
        return POLLIN | POLLOUT if self._waiting else POLLIN

    def receive(self) -> tuple[bytes, list[int]] | None:
        """Return a packet and the descriptors that came with it; None where there is none, or no owner any more.

        A packet that is too large has lost its end, and cannot be read.
        """
        try:
            data, descriptors, _flags, _address = socket.recv_fds(
                self._socket, MAX_PACKET, MAX_STREAMS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            data, descriptors = b"", []
        self.is_gone = not data
        return None if self.is_gone else (data, descriptors)

    def send(self, packet: Packet, *descriptors: int) -> None:
        """Say something; descriptors are closed when they were sent."""
        self._waiting.append((packet.encode(), descriptors))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it; where nobody hears it, it is dropped."""
        while self._waiting:
            data, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._socket, [data], descriptors)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._waiting.popleft()
            close(descriptors)

    def close(self) -> None:
        """Close our end."""
        self._socket.close()

    def disown(self) -> None:
        """Forget the descriptor in a child, so that nothing closes what has its number later."""
        self._socket.detach()


def close(descriptors: Sequence[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
