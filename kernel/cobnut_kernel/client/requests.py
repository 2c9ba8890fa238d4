"""What every client does without waiting: connect to a kernel, send it requests, listen to it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from traitlets import Bool
from traitlets.config import LoggingConfigurable

from cobnut_kernel.client.router import RESTARTED, Listener, OpenRequest, Router
from cobnut_kernel.client.sockets import ClientSockets
from cobnut_kernel.errors import ConnectionFileError, KernelDiedError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from cobnut_kernel.protocol.connection import ConnectionInfo

LAST_WORDS = 0.05
"""Seconds in which what a dead kernel sent still arrives, before those who wait for more are told."""


class ExecuteOptions(TypedDict, total=False):
    """What can be said about an execution besides its code; the names of the specification's `execute_request`."""

    silent: bool
    store_history: bool
    user_expressions: dict[str, str] | None
    allow_stdin: bool | None
    stop_on_error: bool
    subshell_id: str | None


class Finished:
    """Something to await that is there already, in every loop and as often as one likes."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


class KernelClient(LoggingConfigurable):
    """One party that talks to a kernel: the part that is the same with and without an event loop.

    Each client is a party of its own, with a session that no other has: two clients of one kernel both get what
    they asked for. All methods here return at once and may be called from any thread; a kernel that hangs, or
    is not there yet, delays none of them.

    Args:
        connection_info: where the kernel's sockets are.
        connection_file: the file that says so, in place of `connection_info`.

    Raises:
        ConnectionFileError: neither or both are given, or the file is of no use.
    """

    allow_stdin = Bool(True, help="Whether the kernel may ask this client for input while it executes.").tag(
        config=True
    )

    def __init__(
        self,
        connection_info: ConnectionInfo | None = None,
        *,
        connection_file: str | Path | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(**traits)
        self.connection_info: ConnectionInfo = _connection(connection_info, connection_file)
        self._codec = Codec(self.connection_info.key)
        self._router = Router(self.log)
        self._sockets = ClientSockets(self._router.deliver, self.log)

    @property
    def session_id(self) -> str:
        """The session that our messages carry, and the identity that the kernel knows us by."""
        return self._codec.session

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start_channels(self) -> Finished:
        """Open the sockets, now; awaiting what this returns is allowed, and not needed.

        Where they are open nothing happens. Not to be called by a listener.

        Raises:
            ConnectionFileError: the kernel's addresses cannot be used.
        """
        if not self._sockets.are_open:
            self._sockets.open(self.connection_info, self._codec)
            self._router.open()
        return Finished()

    def stop_channels(self) -> Finished:
        """Close the sockets, now, and tell all who wait (`TransportClosedError`); awaiting is allowed, not needed.

        They can be opened again. Not to be called by a listener.
        """
        self._sockets.close()
        self._router.close(TransportClosedError("The client was stopped: call start_channels() and ask again."))
        return Finished()

    @property
    def channels_running(self) -> bool:
        """Whether the sockets are open; that a kernel is at their other end is `wait_for_ready`'s to say."""
        return self._sockets.are_open

    @property
    def refused(self) -> dict[str, int]:
        """How many messages could not be trusted, and were dropped, by the name of the error."""
        return dict(self._sockets.refused)

    def kernel_died(self, reason: str) -> None:
        """Say that the kernel's process has ended: all who wait get a `KernelDiedError`, and so do new requests.

        For whoever watches the process. What the kernel sent before its death is still delivered.

        Args:
            reason: what is known of it, as in "killed by SIGKILL".
        """
        self._router.kernel_died(KernelDiedError(f"The kernel has ended: {reason}. Ask again when there is one."))
        if self._sockets.are_open:
            self._sockets.call_later(LAST_WORDS, self._router.settle)
        else:
            self._router.settle()

    def kernel_started(self, connection_info: ConnectionInfo | None = None) -> None:
        """Say that another kernel takes the former one's place: the sockets turn to it, requests go to it.

        Said before it listens, it makes sure that nothing the former one was asked reaches it.

        Args:
            connection_info: where it is, if it is not where the former one was. With another key comes another
                session.

        Raises:
            ConnectionFileError: its addresses cannot be used.
        """
        info = connection_info or self.connection_info
        if self._router.has_heard_successor and info == self.connection_info:
            return  # the kernel was quicker than the news of it, and may have been asked something already
        self._router.kernel_died(KernelDiedError(RESTARTED))
        self._router.settle()
        if info.key != self.connection_info.key:
            self._codec = Codec(info.key)
        self.connection_info = info
        if self._sockets.are_open:
            self._sockets.close()
            self._sockets.open(self.connection_info, self._codec)
        self._router.kernel_started()

    def __del__(self) -> None:
        sockets: ClientSockets | None = self.__dict__.get("_sockets")  # none where the construction failed
        if sockets is not None and sockets.are_open:
            text = "A kernel client was dropped with its channels open: call stop_channels()."
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call back with every message that comes, on whatever channel and for whomever; returns the undo.

        The call comes in the I/O thread and must not wait: hand over and return. What a callback raises is logged.
        """
        return self._router.listen(callback)

    # ── requests; each returns the id of its message ────────────────────────────────────────────────────────────────
    # All raise TransportClosedError where the channels are not open, and KernelDiedError where the kernel is dead.

    def execute(  # noqa: PLR0913, PLR0917 - the field's signature
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        subshell_id: str | None = None,
    ) -> str:
        """Ask to run code; reply and outputs are read with `get_msg`.

        Args:
            code: what to run.
            silent: without output, history and count.
            store_history: remember the code, and count it.
            user_expressions: expressions by name, evaluated after the code; their results are in the reply.
            allow_stdin: whether the code may ask for input; by default this client's `allow_stdin`.
            stop_on_error: whether an error aborts what is queued behind.
            subshell_id: the subshell that is to run it (JEP 91); None is the main one.
        """
        return self._execute(
            OpenRequest(),
            code,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=allow_stdin,
            stop_on_error=stop_on_error,
            subshell_id=subshell_id,
        )

    def complete(self, code: str, cursor_pos: int | None = None) -> str:
        """Ask how the code at the cursor may go on; the position counts characters, and is the end by default."""
        return self._ask(MessageType.COMPLETE_REQUEST, {"code": code, "cursor_pos": _position(code, cursor_pos)})

    def inspect(self, code: str, cursor_pos: int | None = None, detail_level: int = 0) -> str:
        """Ask what the thing at the cursor is; detail level 1 asks for more, its source say."""
        content = {"code": code, "cursor_pos": _position(code, cursor_pos), "detail_level": detail_level}
        return self._ask(MessageType.INSPECT_REQUEST, content)

    def is_complete(self, code: str) -> str:
        """Ask whether the code can run as it stands."""
        return self._ask(MessageType.IS_COMPLETE_REQUEST, {"code": code})

    def history(self, raw: bool = True, output: bool = False, hist_access_type: str = "range", **kwargs: Any) -> str:
        """Ask for former inputs; `kwargs` are the specification's fields for the type of access."""
        if hist_access_type == "range":
            kwargs = {"session": 0, "start": 0, **kwargs}
        content = {"raw": raw, "output": output, "hist_access_type": hist_access_type, **kwargs}
        return self._ask(MessageType.HISTORY_REQUEST, content)

    def kernel_info(self) -> str:
        """Ask what kernel this is."""
        return self._ask(MessageType.KERNEL_INFO_REQUEST, {})

    def comm_info(self, target_name: str | None = None) -> str:
        """Ask which comms are open, all or those of one target."""
        content = {} if target_name is None else {"target_name": target_name}
        return self._ask(MessageType.COMM_INFO_REQUEST, content)

    def shutdown(self, restart: bool = False) -> str:
        """Ask the kernel to end; `restart` tells it that another will follow."""
        return self._ask(MessageType.SHUTDOWN_REQUEST, {"restart": restart}, Channel.CONTROL)

    def interrupt(self) -> str:
        """Ask the kernel to interrupt what it runs; it needs a kernel whose spec has interrupt mode "message"."""
        return self._ask(MessageType.INTERRUPT_REQUEST, {}, Channel.CONTROL)

    def input(self, string: str) -> str:
        """Answer the kernel's `input_request`."""
        message = self._codec.message(MessageType.INPUT_REPLY, {"value": string})
        self._sockets.send(Channel.STDIN, self._codec.encode(message))
        return message.msg_id

    def _execute(self, request: OpenRequest, code: str, **options: Unpack[ExecuteOptions]) -> str:
        allow_stdin = options.get("allow_stdin")
        content = {
            "code": code,
            "silent": options.get("silent", False),
            "store_history": options.get("store_history", True),
            "user_expressions": options.get("user_expressions") or {},
            "allow_stdin": self.allow_stdin if allow_stdin is None else allow_stdin,
            "stop_on_error": options.get("stop_on_error", True),
        }
        return self._send(request, MessageType.EXECUTE_REQUEST, content, subshell_id=options.get("subshell_id"))

    def _ask(self, msg_type: str, content: dict[str, Any], channel: Channel = Channel.SHELL) -> str:
        return self._send(OpenRequest(), msg_type, content, channel=channel)

    def _send(
        self,
        request: OpenRequest,
        msg_type: str,
        content: dict[str, Any],
        *,
        channel: Channel = Channel.SHELL,
        metadata: dict[str, Any] | None = None,
        subshell_id: str | None = None,
    ) -> str:
        message = self._codec.message(msg_type, content, metadata=metadata, subshell_id=subshell_id)
        frames = self._codec.encode(message)
        self._router.expect(message.msg_id, request)  # before it is sent: the reply may be quicker than we
        try:
            self._sockets.send(channel, frames)
        except BaseException:
            self._router.forget(message.msg_id)
            raise
        return message.msg_id


def _connection(info: ConnectionInfo | None, file: str | Path | None) -> ConnectionInfo:
    if info is not None and file is None:
        return info
    if info is not None or file is None:
        raise ConnectionFileError("A client needs either connection_info or connection_file, and not both.")
    from cobnut_kernel.connection_files import load_connection_file

    return load_connection_file(file)


def _position(code: str, cursor_pos: int | None) -> int:
    return len(code) if cursor_pos is None else cursor_pos
