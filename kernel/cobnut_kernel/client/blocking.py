"""BlockingKernelClient: the client for programs without a loop, or whose loop is busy with them."""

from __future__ import annotations

from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from cobnut_kernel.client.asking import Ask, Content
from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.requests import ExecuteOptions, KernelClient
from cobnut_kernel.errors import KernelNotReadyError
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.messages import Channel, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from pathlib import Path
    from types import TracebackType

    from cobnut_kernel.client.channels import ChannelQueue
    from cobnut_kernel.client.comms import CommListener
    from cobnut_kernel.client.heartbeat import Heartbeat
    from cobnut_kernel.client.router import Listener
    from cobnut_kernel.client.run import Run
    from cobnut_kernel.client.waiting import Finished
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.session import Session

T = TypeVar("T")


class BlockingChannel:
    """A channel whose reading blocks; everything is that of the `ChannelQueue` inside."""

    def __init__(self, queue: ChannelQueue) -> None:
        self._queue = queue

    @property
    def dropped(self) -> int:
        """How many messages were dropped unread."""
        return self._queue.dropped

    def is_alive(self) -> bool:
        """Tell whether the channel is open."""
        return self._queue.is_alive()

    def send(self, msg: Content) -> None:
        """Send a message as the field's dict. Raises as `ChannelQueue.send` does."""
        self._queue.send(msg)

    def msg_ready(self) -> bool:
        """Tell whether `get_msg` would return at once."""
        return self._queue.msg_ready()

    def get_msg(self, timeout: float | None = None) -> Content:
        """Return the next message as the field's dict. Raises as `ChannelQueue.get_msg` does."""
        return wait_for(self._queue.get_msg, timeout)

    def get_msgs(self) -> list[Content]:
        """Return all messages that are here; waits for none."""
        return wait_for(self._queue.get_msgs)


class BlockingHeartbeat:
    """A heart whose asking blocks; everything is that of the `Heartbeat` inside."""

    def __init__(self, heart: Heartbeat) -> None:
        self._heart = heart

    @property
    def time_to_dead(self) -> float:
        """Seconds from one beat to the next, and in which its echo has to come."""
        return self._heart.time_to_dead

    @time_to_dead.setter
    def time_to_dead(self, seconds: float) -> None:
        self._heart.time_to_dead = seconds

    @property
    def since(self) -> float | None:
        """Seconds since the last echo; None where none has come yet."""
        return self._heart.since

    def start(self) -> None:
        """Begin to beat."""
        self._heart.start()

    def stop(self) -> None:
        """End, and close the socket."""
        self._heart.stop()

    def pause(self) -> None:
        """Beat no more until `unpause`."""
        self._heart.pause()

    def unpause(self) -> None:
        """Begin to beat. Raises as `Heartbeat.unpause` does."""
        self._heart.unpause()

    def is_alive(self) -> bool:
        """Say whether it was begun, and not paused."""
        return self._heart.is_alive()

    def is_beating(self) -> bool:
        """Say whether an echo came within the time."""
        return self._heart.is_beating()

    def beats(self, timeout: float | None = None) -> bool:
        """Send a beat, and wait for the echo of any."""
        return wait_for(self._heart.beats, timeout)


class BlockingRun:
    """A cell being run, whose reading blocks; everything is that of the `Run` inside."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def msg_id(self) -> str:
        """The id of the request, the parent of all that comes."""
        return self._run.msg_id

    @property
    def complete(self) -> bool:
        """Whether reply and idle are here, and so every output."""
        return self._run.complete

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """Wait for the next message of the cell. Raises as `Run` does."""
        message = self.next()
        if message is None:
            raise StopIteration
        return message

    def next(self, timeout: float | None = None) -> Message | None:
        """Wait for the next message of the cell; None where there is none any more.

        Raises:
            KernelNotReadyError: none came within so many seconds.
            Exception: what `Run` raises.
        """
        return wait_for(_next, self._run, timeout)

    def reply(self) -> Message:
        """Wait for the `execute_reply`. Raises as `Run.reply` does."""
        return wait_for(self._run.reply)

    def when_replied(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back, in another thread, when the reply is here, or will not come; returns the undo."""
        waiting = Portal.shared().start_soon(self._run.reply)
        waiting.add_done_callback(lambda task: task.cancelled() or task.exception() or callback())

        def undo() -> None:
            waiting.cancel()

        return undo


class BlockingKernelClient(KernelClient[Content]):
    """The blocking twin of `AsyncKernelClient`, which does everything and waits on the process's portal.

    It may be used from several threads, and in a program whose event loop runs: that stands still meanwhile. What
    blocks can be ended by Ctrl-C, and loses nothing.

    Args:
        connection_info: where the kernel's sockets are.
        connection_file: the file that says so, in place of `connection_info`. Without either one is loaded later.

    Raises:
        ConnectionFileError: both are given, or the file is of no use.
    """

    def __init__(
        self,
        connection_info: ConnectionInfo | None = None,
        *,
        connection_file: str | Path | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(**traits)
        self._client = AsyncKernelClient(connection_info, connection_file=connection_file, log=self.log)
        self.shell_channel: BlockingChannel = BlockingChannel(self._client.shell_channel)
        self.iopub_channel: BlockingChannel = BlockingChannel(self._client.iopub_channel)
        self.control_channel: BlockingChannel = BlockingChannel(self._client.control_channel)
        self.stdin_channel: BlockingChannel = BlockingChannel(self._client.stdin_channel)
        self.hb_channel: BlockingHeartbeat = BlockingHeartbeat(self._client.hb_channel)

    @property
    def asynchronous(self) -> AsyncKernelClient:
        """The same party for those who can await."""
        return self._client

    def __enter__(self) -> Self:
        self.start_channels()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_channels()

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def connection_info(self) -> ConnectionInfo:
        """Where the kernel is. Raises ConnectionFileError where nobody has said it yet."""
        return self._client.connection_info

    @property
    def connection_file(self) -> str:
        """The connection file that was given or loaded."""
        return self._client.connection_file

    @connection_file.setter
    def connection_file(self, file: str) -> None:
        self._client.connection_file = file

    @property
    def session_id(self) -> str:
        """The session that our messages carry, and the identity that the kernel knows us by."""
        return self._client.session_id

    @property
    def session(self) -> Session:
        """The party that we are, as the field's programs use it."""
        return self._client.session

    def get_connection_info(self, session: bool = False) -> Content:
        """Return the dict that a connection file holds; with `session` our Session in place of key and scheme."""
        return self._client.get_connection_info(session)

    def load_connection_info(self, info: Mapping[str, Any]) -> None:
        """Turn to the kernel that the dict of a connection file describes. Raises as its twin does."""
        self._client.load_connection_info(info)

    def load_connection_file(self, connection_file: str | Path | None = None) -> None:
        """Turn to the kernel that a connection file describes. Raises as its twin does."""
        self._client.load_connection_file(connection_file)

    def start_channels(
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> Finished:
        """Open the sockets. Raises as its twin does."""
        return self._client.start_channels(shell, iopub, stdin, hb, control)

    def stop_channels(self) -> Finished:
        """Close the sockets, and tell all who wait in other threads (`TransportClosedError`)."""
        return self._client.stop_channels()

    @property
    def channels_running(self) -> bool:
        """Whether the sockets are open."""
        return self._client.channels_running

    @property
    def refused(self) -> dict[str, int]:
        """How many messages could not be trusted, and were dropped, by the name of the error."""
        return self._client.refused

    def kernel_died(self, reason: str) -> None:
        """Say that the kernel's process has ended, as its twin has it."""
        self._client.kernel_died(reason)

    def kernel_started(self, connection_info: ConnectionInfo | None = None) -> None:
        """Say that another kernel takes the former one's place, as its twin has it."""
        self._client.kernel_started(connection_info)

    # ── listeners ───────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call back with every message that comes, in the I/O thread; returns the undo."""
        return self._client.listen(callback)

    def listen_to_comm(self, comm_id: str, callback: CommListener) -> Callable[[], None]:
        """Call back with every message of a comm, like `listen`; returns the undo."""
        return self._client.listen_to_comm(comm_id, callback)

    def listen_to_target(self, target_name: str, callback: CommListener) -> Callable[[], None]:
        """Call back with every comm that the kernel opens for a target, like `listen`; returns the undo."""
        return self._client.listen_to_target(target_name, callback)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def wait_for_ready(self, timeout: float | None = 60) -> Message:
        """Wait until the kernel answers us and we hear its iopub. Raises as its twin does."""
        return wait_for(self._client.wait_for_ready, timeout)

    def is_alive(self) -> bool:
        """Say whether the kernel lives: its process where our parent is its manager, else its heart."""
        asked = getattr(self.parent, "is_alive", None)
        if asked is None:
            return wait_for(self._client.is_alive)
        alive: Any = asked()
        return bool(wait_for(_awaited, alive) if isawaitable(alive) else alive)

    def request(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        channel: Channel = Channel.SHELL,
        timeout: float | None = None,
        metadata: dict[str, Any] | None = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Send a request and wait for its reply. Raises as its twin does."""
        ask = partial(
            self._client.request, channel=channel, timeout=timeout, metadata=metadata, subshell_id=subshell_id
        )
        return wait_for(ask, msg_type, content)

    def run(self, code: str, *, takes_input: bool = False, **options: Unpack[ExecuteOptions]) -> BlockingRun:
        """Run code now; iterate over what this returns for the outputs. Raises as its twin does."""
        if options.get("allow_stdin") is None:
            options["allow_stdin"] = self.allow_stdin
        return BlockingRun(self._client.run(code, takes_input=takes_input, **options))

    def execute_interactive(  # noqa: PLR0913, PLR0917 - the field's signature
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
        """Run code, show its outputs, ask the user what it asks, and return its reply, as its twin has it.

        The hooks are called in this thread. Ctrl-C at a question interrupts the cell.
        """
        from cobnut_kernel.client.interaction import ask_here, redisplay

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
        show = output_hook or redisplay
        ask = stdin_hook or partial(ask_here, self, until=run.when_replied)
        deadline = None if timeout is None else monotonic() + timeout
        while (message := run.next(None if deadline is None else max(0.0, deadline - monotonic()))) is not None:
            (ask if message.msg_type == MessageType.INPUT_REQUEST else show)(message.as_dict())
        return run.reply().as_dict()

    def get_shell_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of shell. Raises what `get_msg` of a channel raises, `queue.Empty` after the time."""
        return self.shell_channel.get_msg(timeout)

    def get_iopub_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of iopub. Raises what `get_msg` of a channel raises."""
        return self.iopub_channel.get_msg(timeout)

    def get_stdin_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of stdin. Raises what `get_msg` of a channel raises."""
        return self.stdin_channel.get_msg(timeout)

    def get_control_msg(self, timeout: float | None = None) -> Content:
        """Return the next message of control. Raises what `get_msg` of a channel raises."""
        return self.control_channel.get_msg(timeout)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def input(self, string: str, parent: Content | None = None) -> str:
        """Answer the kernel's `input_request`; see `KernelClient.input`."""
        return self._client.input(string, parent)

    def _ask(self, ask: Ask) -> str:
        return self._client._ask(ask)

    def _answer(self, ask: Ask, timeout: float | None) -> Content:
        return wait_for(self._client.wait_for_answer, ask, timeout)


def wait_for(function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
    """Run a coroutine function on the process's portal and block until it has ended."""
    return Portal.shared().call(function, *arguments)


async def _awaited(answer: Coroutine[Any, Any, T]) -> T:
    return await answer


async def _next(run: Run, timeout: float | None) -> Message | None:
    import anyio

    with anyio.move_on_after(timeout):
        return await anext(run, None)
    raise KernelNotReadyError("The cell did not end in time, and still runs: interrupt it, or wait longer.")
