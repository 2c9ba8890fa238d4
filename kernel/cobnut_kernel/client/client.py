"""AsyncKernelClient: everything one can ask of a kernel, and wait for, under asyncio or trio."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio

from cobnut_kernel.client.requests import ExecuteOptions, KernelClient
from cobnut_kernel.client.router import OpenRequest
from cobnut_kernel.client.run import Run
from cobnut_kernel.client.waiting import SharedFuture
from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError
from cobnut_kernel.protocol.messages import Channel, Message, MessageType

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from cobnut_kernel.client.channels import ChannelQueue
    from cobnut_kernel.protocol.connection import ConnectionInfo

_OTHER_KEYS = " Its connection file has CURVE keys: a kernel that was not started with the same ones hears nothing."


class AsyncKernelClient(KernelClient):
    """A client whose waiting is awaited.

    Two ways to hear what a request brings, over the same router. The field's: `execute` and its siblings return a
    msg_id, and the channels' `get_msg` gives what comes, in order. Ours: `request` returns the reply, `run` the
    outputs and the reply of a cell, each matched by msg_id, however many wait at once.

    Tasks of several loops may use one client. What came before it is awaited is not lost.
    """

    def __init__(
        self,
        connection_info: ConnectionInfo | None = None,
        *,
        connection_file: str | Path | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(connection_info, connection_file=connection_file, **traits)
        self.shell_channel: ChannelQueue = self._router.queues[Channel.SHELL]
        self.iopub_channel: ChannelQueue = self._router.queues[Channel.IOPUB]
        self.control_channel: ChannelQueue = self._router.queues[Channel.CONTROL]
        self.stdin_channel: ChannelQueue = self._router.queues[Channel.STDIN]

    async def __aenter__(self) -> Self:
        self.start_channels()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_channels()

    async def wait_for_ready(self, timeout: float | None = 60) -> Message:
        """Wait until the kernel answers us and we hear its iopub; returns its `kernel_info_reply`.

        It may be called before there is a kernel at the other end. No message of anybody else is touched.

        Args:
            timeout: in seconds; None waits as long as the kernel lives.

        Raises:
            KernelNotReadyError: not within the time.
            KernelDiedError: it is dead.
            TransportClosedError: the channels are not open, or were closed meanwhile.
        """
        with anyio.move_on_after(inf if timeout is None else timeout):
            reply = await self._first_answer()
            await self._hear_iopub()
            return reply
        raise KernelNotReadyError(
            f"The kernel did not answer the kernel_info_request within {timeout:g} seconds, or its iopub was "
            "not heard: see what it wrote when it started, or wait longer."
            + (_OTHER_KEYS if self.connection_info.is_encrypted else "")
        )

    async def request(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        channel: Channel = Channel.SHELL,
        timeout: float | None = None,
        metadata: dict[str, Any] | None = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Send a request and wait for its reply.

        Args:
            msg_type: of the request.
            content: of the request.
            channel: `Channel.SHELL` or `Channel.CONTROL`.
            timeout: in seconds; None waits as long as the kernel lives.
            metadata: of the request.
            subshell_id: the subshell that is to answer (JEP 91); None is the main one.

        Raises:
            KernelNotReadyError: no reply came in time.
            KernelDiedError: the kernel died, or was restarted, before it replied.
            TransportClosedError: the channels are not open, or were closed meanwhile.
        """
        reply = SharedFuture[Message]()
        request = OpenRequest(reply)
        msg_id = self._send(request, msg_type, content, channel=channel, metadata=metadata, subshell_id=subshell_id)
        try:
            with anyio.move_on_after(inf if timeout is None else timeout):
                return await reply
        finally:
            if not reply.done():
                self._router.forget(msg_id)
        raise KernelNotReadyError(
            f"The kernel did not answer the {msg_type} within {timeout:g} seconds: it may be busy; "
            "interrupt it, or wait longer."
        )

    def run(self, code: str, **options: Unpack[ExecuteOptions]) -> Run:
        """Run code now; iterate over what this returns for the outputs, await its `reply()`.

        Raises:
            KernelDiedError: the kernel is dead.
            TransportClosedError: the channels are not open.
        """
        return Run(partial(self._execute, code=code, **options))

    async def _first_answer(self) -> Message:
        answer = SharedFuture[Message]()
        patience = 0.1
        while True:
            self._send(OpenRequest(answer), MessageType.KERNEL_INFO_REQUEST, {})
            with anyio.move_on_after(patience):
                try:
                    return await answer
                except KernelDiedError:  # ask the one that took its place; where there is none, `_send` says so
                    answer = SharedFuture[Message]()
            patience = min(2 * patience, 2)

    async def _hear_iopub(self) -> None:
        # A subscription takes effect some time after the sockets are open. Kernels with an iopub_welcome say when;
        # to others each request is an occasion to publish a status.
        patience = 0.05
        while True:
            with anyio.move_on_after(patience):
                return await self._router.heard
            self._send(OpenRequest(SharedFuture[Message]()), MessageType.KERNEL_INFO_REQUEST, {})
            patience = min(2 * patience, 0.5)
