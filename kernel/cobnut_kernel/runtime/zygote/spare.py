"""A kernel that is forked before anybody asks for it: what every kernel does first is done when its request comes."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from select import select
from typing import TYPE_CHECKING

from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.protocol.fork import MAX_PACKET, MAX_STREAMS, Fork, decode_request
from cobnut_kernel.runtime.zygote.child import NewKernel
from cobnut_kernel.runtime.zygote.rehearsal import STEPS, is_over
from cobnut_kernel.runtime.zygote.template import touch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cobnut_kernel.runtime.zygote.template import Template

PAUSE = 0.02
"""Seconds without a request after which one is forked: a kernel that was just started has the machine for itself."""

UNFIT = 1
"""The exit code of one that cannot become a kernel; the next could not either."""


class Spare:
    """A child that waits for what it is to become.

    Args:
        pid: its process.
        connected: our end of the socket to it; its end is the child's end too.
    """

    def __init__(self, pid: int, connected: socket.socket) -> None:
        self.pid = pid
        self._socket = connected

    def give(self, data: bytes, descriptors: Sequence[int]) -> bool:
        """Hand a request over; False where the child has ended."""
        try:
            socket.send_fds(self._socket, [data], descriptors)
        except OSError:
            return False
        finally:
            self.close()
        return True

    def close(self) -> None:
        """Let go of it; without a request it ends."""
        self._socket.close()


def await_request(connected: socket.socket, template: Template) -> NewKernel:
    """Wait in the child for what it is to become; without a request the process ends."""
    for step in (*STEPS, lambda: touch(template.shell)):
        if select([connected], [], [], 0)[0]:
            break
        with suppress(Exception):  # what is done in advance may fail again when it counts
            step()
    if not is_over():
        os._exit(UNFIT)
    with suppress(OSError, MalformedMessageError):
        data, descriptors, _, _ = socket.recv_fds(connected, MAX_PACKET, MAX_STREAMS, socket.MSG_CMSG_CLOEXEC)
        connected.close()
        request = decode_request(data)
        if isinstance(request, Fork):
            os.chdir(request.cwd)
            return NewKernel(request, descriptors)
    os._exit(0)
