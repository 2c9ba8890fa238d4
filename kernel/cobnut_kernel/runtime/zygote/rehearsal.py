"""What a kernel does at its start, done before it counts and taken back: the memory that it changes is its own then."""

from __future__ import annotations

import threading
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.codec import Codec
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.runtime.service import Service

_PATIENCE = 1.0
"""Seconds that the threads of a rehearsal have to end."""

_MOMENT = 50
"""Milliseconds that a message takes at most."""


def is_over() -> bool:
    """Wait until nothing of a rehearsal runs any more; False where something does not end."""
    deadline = monotonic() + _PATIENCE
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        thread.join(max(0, deadline - monotonic()))
    return not any(thread.is_alive() for thread in others)


def _parse() -> None:
    from cobnut_kernel.command_line import _parser

    _parser().parse_args(["-f", "file"])


def _run_loop() -> None:
    import anyio

    anyio.run(anyio.lowlevel.checkpoint)


def _serve() -> None:
    """Make a kernel's parts, hear a request, say something, and close all of it.

    It listens on ports: they leave nothing in the file system, whenever the process is killed. Nothing that comes is
    answered.
    """
    from cobnut_kernel.protocol.codec import Codec
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.runtime.output.outbox import Outbox
    from cobnut_kernel.runtime.output.routing import ThreadRouting
    from cobnut_kernel.runtime.output.streams import CapturedStreams
    from cobnut_kernel.runtime.service import Service

    kernel = Kernel(connection_file="file", kernel_name="name")
    Kernel._instance = None
    codec = Codec(token_hex().encode())
    outbox = Outbox(kernel._io_thread, codec)
    service = Service(outbox, kernel._interrupts, kernel._jobs, kernel._loop)
    try:
        connection = ConnectionInfo("tcp", "127.0.0.1", 0, 0, 0, 0, 0, key=codec.key)
        used = service.listen(connection, lambda _channel, _message: None)
        with (
            CapturedStreams(outbox, kernel._jobs, kernel._interrupts),
            ThreadRouting(kernel._jobs, kernel.thread_output),
        ):
            _talk(service, codec, used)
    finally:
        service.close()


def _talk(service: Service, codec: Codec, connection: ConnectionInfo) -> None:
    """Be a client that asks something and hears something."""
    import zmq

    from cobnut_kernel.protocol.messages import Channel, MessageType

    with zmq.Context() as context, context.socket(zmq.SUB) as listener, context.socket(zmq.DEALER) as asker:
        listener.linger = asker.linger = 0
        listener.subscribe(b"")
        listener.connect(connection.url(Channel.IOPUB))
        asker.connect(connection.url(Channel.SHELL))
        asker.send_multipart(codec.encode(codec.message(MessageType.KERNEL_INFO_REQUEST, {})))
        for _ in range(2):
            if listener.poll(_MOMENT):
                listener.recv_multipart()
            service.status.starting()


STEPS: tuple[Callable[[], None], ...] = _parse, _run_loop, _serve
"""In their order; between two of them a request may have come."""
