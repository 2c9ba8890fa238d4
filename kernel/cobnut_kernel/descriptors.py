"""Room for descriptors, looked for before libzmq needs it: where it finds none it ends the process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from zmq import Context, Socket, SocketType

ROOM = 10
"""Descriptors that the first socket of a context may take: its own, and those of the context's threads."""


def open_socket(context: Context[Socket[bytes]], kind: SocketType) -> Socket[bytes]:
    """Make a socket.

    Raises:
        zmq.ZMQError: it cannot be made; with too few descriptors left this says so, where libzmq would abort.
    """
    taken: list[int] = []
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
        while len(taken) < ROOM:
            taken.append(os.dup(taken[0]))
    except OSError as error:
        raise zmq.ZMQError(error.errno) from error
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return context.socket(kind)
