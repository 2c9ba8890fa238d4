"""AsyncKernelClient: everything one can ask of a kernel, and wait for, under asyncio or trio."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import datetime
from functools import partial
from inspect import isawaitable
from math import inf
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio

from cobnut_kernel.client.asking import Ask, Content
from cobnut_kernel.client.connected import ConnectedClient
from cobnut_kernel.client.requests import ExecuteOptions, input_reply
from cobnut_kernel.client.router import OpenRequest
from cobnut_kernel.client.run import Run
from cobnut_kernel.client.waiting import SharedFuture
from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


_OTHER_KEYS = " Its connection file has CURVE keys: a kernel that was not started with the same ones hears nothing."


class AsyncKernelClient(ConnectedClient[Coroutine[Any, Any, Content]]):
    """A client whose waiting is awaited.

    Two ways to hear what a request brings, over the same router. The field's: `execute` and its siblings return a
    msg_id, and the channels' `get_msg` gives what comes, in order; with `reply=True` they return the reply, to be
    awaited. Ours: `request` returns the reply, `run` the outputs and the reply of a cell, each matched by msg_id,
    however many wait at once.

    Tasks of several loops may use one client. What came before it is awaited is not lost.

    Args:
        connection_info: where the kernel's sockets are.
        connection_file: the file that says so, in place of `connection_info`. Without either one is loaded later.

    Raises:
        ConnectionFileError: both are given, or the file is of no use.
    """

    async def __aenter__(self) -> Self:
        self.start_channels()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_channels()

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

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

    async def is_alive(self) -> bool:
        """Say whether the kernel lives: its process where our parent is its manager, else its heart."""
        asked = getattr(self.parent, "is_alive", None)
        if asked is None:
            return await self.hb_channel.beats()
        alive: Any = asked()
        return bool(await alive if isawaitable(alive) else alive)

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
        ask = Ask(msg_type, content, channel, subshell_id, metadata)
        msg_id = self._connection.send(ask, OpenRequest(reply))
        return await self._reply(ask, msg_id, reply, timeout)

    def run(self, code: str, *, takes_input: bool = False, **options: Unpack[ExecuteOptions]) -> Run:
        """Run code now; iterate over what this returns for the outputs, await its `reply()`.

        Args:
            code: what to run.
            takes_input: give the kernel's `input_request`s among the outputs, to be answered with `input`; without,
                they are read from the stdin channel.
            options: of the execution, as `execute` has them.

        Raises:
            KernelDiedError: the kernel is dead.
            TransportClosedError: the channels are not open.
        """
        send = partial(self._connection.send, self._execution(code, **options))
        return Run(send, takes_input=takes_input, is_behind=lambda: self._connection.journal.is_behind)

    async def execute_interactive(  # noqa: PLR0913, PLR0917 - the field's signature
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        timeout: float | None = None,
        output_hook: Callable[[Content], object] | None = None,
        stdin_hook: Callable[[Content], object] | None = None,
        subshell_id: str | None = None,
    ) -> Content:
        """Run code, show its outputs, ask the user what it asks, and return its reply.

        A question that is open when the cell ends, for it was interrupted say, is called off.

        Args:
            code: what to run.
            silent: without output, history and count.
            store_history: remember the code, and count it.
            user_expressions: expressions by name, evaluated after the code.
            allow_stdin: whether the code may ask for input; by default this client's `allow_stdin`.
            stop_on_error: whether an error aborts what is queued behind.
            timeout: for all of it, in seconds.
            output_hook: is called with every iopub message of the cell; by default they are written to stdout and
                stderr, or in an IPython kernel shown as its own.
            stdin_hook: is called with every `input_request`, and answers with `input`; what it returns is awaited if
                it can be. By default the user is asked on the terminal.
            subshell_id: the subshell that is to run it (JEP 91); None is the main one.

        Raises:
            KernelNotReadyError: it did not end in time; it still runs.
            KernelDiedError: the kernel died, or was restarted.
            TransportClosedError: the channels are not open, or were closed meanwhile.
        """
        from cobnut_kernel.client.interaction import ask_in_thread, converse

        run = self.run(
            code,
            takes_input=True,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=allow_stdin,
            stop_on_error=stop_on_error,
            subshell_id=subshell_id,
        )
        with anyio.move_on_after(inf if timeout is None else timeout):
            await converse(run, output_hook, stdin_hook or partial(ask_in_thread, self))
            return (await run.reply()).as_dict()
        raise KernelNotReadyError(f"The cell did not end within {timeout:g} seconds: interrupt it, or wait longer.")

    async def get_shell_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of shell. Raises what `get_msg` of a channel raises, `queue.Empty` after the time."""
        return await self.shell_channel.get_msg(timeout)

    async def get_iopub_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of iopub. Raises what `get_msg` of a channel raises."""
        return await self.iopub_channel.get_msg(timeout)

    async def get_stdin_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of stdin. Raises what `get_msg` of a channel raises."""
        return await self.stdin_channel.get_msg(timeout)

    async def get_control_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of control. Raises what `get_msg` of a channel raises."""
        return await self.control_channel.get_msg(timeout)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def input(self, string: str, parent: Content | None = None) -> str:
        """Answer the kernel's `input_request`; see `KernelClient.input`."""
        header = None if parent is None else Header.from_dict(_undated(parent.get("header", parent)))
        return self._connection.send(input_reply(string), parent=header)

    def _ask(self, ask: Ask) -> str:
        return self._connection.send(ask, OpenRequest(is_replied=ask.is_told))

    def _answer(self, ask: Ask, timeout: float | None) -> Coroutine[Any, Any, Content]:
        reply = SharedFuture[Message]()
        msg_id = self._connection.send(ask, OpenRequest(reply, shares_outputs=True))  # now, not when it is awaited

        async def wait() -> Content:
            return (await self._reply(ask, msg_id, reply, timeout)).as_dict()

        return wait()

    async def wait_for_answer(self, ask: Ask, timeout: float | None) -> Content:
        """Send a request and return its reply as the field's dict; for the blocking twin."""
        return await self._answer(ask, timeout)

    async def _reply(self, ask: Ask, msg_id: str, reply: SharedFuture[Message], timeout: float | None) -> Message:
        try:
            with anyio.move_on_after(inf if timeout is None else timeout):
                return await reply
        finally:
            if not reply.done():
                self._router.forget(msg_id)
        raise KernelNotReadyError(
            f"The kernel did not answer the {ask.msg_type} within {timeout:g} seconds: it may be busy; "
            "interrupt it, or wait longer."
        )

    async def _first_answer(self) -> Message:
        answer = SharedFuture[Message]()
        patience = 0.1
        while True:
            self._connection.send(Ask(MessageType.KERNEL_INFO_REQUEST, {}), OpenRequest(answer))
            with anyio.move_on_after(patience):
                try:
                    return await answer
                except KernelDiedError:  # ask the one that took its place; where there is none, `send` says so
                    answer = SharedFuture[Message]()
            patience = min(2 * patience, 2)

    async def _hear_iopub(self) -> None:
        # A subscription takes effect some time after the sockets are open. Kernels with an iopub_welcome say when;
        # to others each request is an occasion to publish a status.
        patience = 0.05
        while True:
            with anyio.move_on_after(patience):
                return await self._router.heard
            self._connection.send(Ask(MessageType.KERNEL_INFO_REQUEST, {}), OpenRequest(SharedFuture[Message]()))
            patience = min(2 * patience, 0.5)


def _undated(header: Content) -> Content:
    """Write a header as it stands on the wire."""
    date = header.get("date")
    return {**header, "date": date.isoformat()} if isinstance(date, datetime) else header
