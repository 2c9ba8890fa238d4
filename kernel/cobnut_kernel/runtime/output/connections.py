"""Who is connected to a socket, as its monitor tells, and who of them takes nothing of what is sent."""

from __future__ import annotations

import struct

import zmq


class Connections:
    """The connections of one socket, by their descriptors, and since when each has taken nothing.

    What a connection was sent and has not taken yet is asked of the system. Where that does not say, or the
    connection was closed meanwhile, it passes for one that takes everything.
    """

    def __init__(self) -> None:
        self._unread: dict[int, tuple[int, float]] = {}  # how much, and since when it is just so much
        self._left_out: set[int] = set()

    def __len__(self) -> int:
        return len(self._unread)

    def on_event(self, frames: list[bytes]) -> None:
        """Take what the monitor tells of a connection."""
        event, descriptor = struct.unpack("=hi", frames[0])
        self._left_out.discard(descriptor)
        if event == zmq.EVENT_ACCEPTED:
            self._unread[descriptor] = 0, 0.0
        else:
            self._unread.pop(descriptor, None)

    def look(self, now: float) -> None:
        """Look how much each connection has not taken yet, at a time of the caller's clock."""
        for descriptor, (before, _) in self._unread.items():
            unread = _unread_bytes(descriptor)
            if unread != before or unread == 0:
                self._unread[descriptor] = unread, now
                self._left_out.discard(descriptor)

    def asleep(self, moment: float) -> bool:
        """Tell whether one that counts has taken nothing since a moment, as far as was looked."""
        return any(since <= moment for unread, since in self._counting() if unread)

    def leave_out(self, moment: float) -> None:
        """Count those that have taken nothing since a moment no more, until they take something."""
        self._left_out.update(fd for fd, (unread, since) in self._unread.items() if unread and since <= moment)

    @property
    def unread(self) -> int:
        """The bytes that those which count had not taken when it was looked last."""
        return sum(unread for unread, _ in self._counting())

    def _counting(self) -> list[tuple[int, float]]:
        return [state for descriptor, state in self._unread.items() if descriptor not in self._left_out]


def _unread_bytes(descriptor: int) -> int:
    # Imported here: while everybody reads nobody asks.
    from fcntl import ioctl
    from termios import TIOCOUTQ

    try:
        return struct.unpack("i", ioctl(descriptor, TIOCOUTQ, b"\0\0\0\0"))[0]
    except OSError:
        return 0
