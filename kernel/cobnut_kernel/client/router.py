"""Decide who gets a message: the request it answers, the run it belongs to, a channel's readers, the listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from cobnut_kernel.client.channels import ChannelQueue
from cobnut_kernel.client.waiting import SharedFuture, again
from cobnut_kernel.errors import KernelDiedError
from cobnut_kernel.protocol.messages import Channel, Message, MessageType

if TYPE_CHECKING:
    from logging import Logger
    from weakref import ReferenceType

Listener = Callable[[Channel, Message], None]
"""Is called with every message, in the I/O thread; it must not wait."""

REPLIES = (Channel.SHELL, Channel.CONTROL)
"""The channels on which replies come."""

RESTARTED = "The kernel was restarted: the former one left this unanswered. Ask again."
"""What those are told who waited for a kernel that was replaced."""


class Outputs(Protocol):
    """Whoever takes the iopub messages of one request."""

    def put(self, message: Message) -> None:
        """Take a message."""
        ...

    def wake(self) -> None:
        """Look at the request again: its reply, its idle or its failure has come."""
        ...


@dataclass(eq=False, slots=True)
class OpenRequest:
    """A request of ours, until its reply and its idle have come.

    Attributes:
        reply: who waits for the reply; None where reply and outputs are read from the channels.
        shares_outputs: whether the outputs are read from the channel although somebody waits for the reply.
        outputs: who takes the outputs, as long as anybody holds him; without him only the listeners get them.
        takes_input: whether whoever takes the outputs takes the kernel's questions to the user too.
        served_by: the session of the kernel that was heard to work on it.
        failure: why nothing more will come.
    """

    reply: SharedFuture[Message] | None = None
    outputs: ReferenceType[Outputs] | None = None
    shares_outputs: bool = False
    takes_input: bool = False
    is_replied: bool = False
    is_idle: bool = False
    served_by: str = ""
    failure: Exception | None = None

    @property
    def is_finished(self) -> bool:
        """Whether reply and idle have come."""
        return self.is_replied and self.is_idle

    def take(self, channel: Channel, message: Message) -> bool:
        """Take an answer; False if it is for the readers of the channel."""
        if channel is Channel.IOPUB:
            self._take_output(message)
            return self.reply is not None and not self.shares_outputs
        if channel in REPLIES and not self.is_replied:
            self._take_reply(message)
            return self.reply is not None
        return channel is Channel.STDIN and self.takes_input and self.take_aside(message)

    def take_aside(self, message: Message) -> bool:
        """Give a message that is no output to whoever takes the outputs; False where nobody does any more."""
        outputs = self._outputs()
        if outputs is None:
            return False
        outputs.put(message)
        outputs.wake()
        return True

    def _take_output(self, message: Message) -> None:
        outputs = self._outputs()
        if outputs is not None:
            outputs.put(message)
        self.is_idle |= _is_idle(message)  # only now: whoever sees that it is finished has all of its outputs
        if outputs is not None:
            outputs.wake()

    def _take_reply(self, message: Message) -> None:
        self.is_replied = True
        if self.reply is not None:
            self.reply.set_result(message)
        outputs = self._outputs()
        if outputs is not None:
            outputs.wake()

    def fail(self, error: Exception) -> None:
        """Tell all who wait that nothing more will come."""
        self.failure = error
        if self.reply is not None:
            self.reply.set_error(error)
        outputs = self._outputs()
        if outputs is not None:
            outputs.wake()

    def _outputs(self) -> Outputs | None:
        return self.outputs() if self.outputs is not None else None


@dataclass(slots=True)
class KernelSession:
    """Which kernel process speaks, judged by the session id in its headers.

    Kernels that write the session of whom they answer, or a new one each time, cannot be judged by it.
    """

    current: str = ""
    is_reliable: bool = True
    _known: set[str] = field(default_factory=set[str])

    def hear(self, message: Message, request: OpenRequest | None) -> bool:
        """Note who sent a message; True where it is another process than those heard before."""
        session = _own_session(message)
        if request is not None and session:
            # One request is served by one process: a second session for it means nothing.
            self.is_reliable &= request.served_by in ("", session)
            request.served_by = session
        if not session or not self.is_reliable or session in self._known:
            return False
        is_first = not self._known
        self._known.add(session)
        self.current = session
        return not is_first

    def is_former(self, message: Message) -> bool:
        """Tell whether a message is a late one, from a process that is gone."""
        session = _own_session(message)
        return self.is_reliable and session in self._known and session != self.current

    def bury(self) -> None:
        """Expect another process."""
        self.current = ""


class Router:
    """Knows the open requests of one client, and gives every message to whom it belongs.

    `deliver` runs in the I/O thread, all else in any thread.

    Attributes:
        queues: what is for the readers of the channels.
        heard: done when something has come on iopub from the kernel that is there now.
        has_heard_successor: whether the death that was announced last was ended by the next kernel's own voice.
    """

    def __init__(self, log: Logger) -> None:
        self.queues: dict[Channel, ChannelQueue] = {
            channel: ChannelQueue(channel) for channel in (*REPLIES, Channel.IOPUB, Channel.STDIN)
        }
        self.heard: SharedFuture[None] = SharedFuture()
        self.has_heard_successor: bool = False
        self._log = log
        self._lock = Lock()
        self._is_open: bool = False
        self._open: dict[str, OpenRequest] = {}
        self._listeners: tuple[Listener, ...] = ()
        self._kernel = KernelSession()
        self._death: KernelDiedError | None = None
        self._unsettled: KernelDiedError | None = None
        self._doomed: list[str] = []

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def expect(self, msg_id: str, request: OpenRequest) -> None:
        """Expect answers to a request that is about to be sent.

        Raises:
            KernelDiedError: the kernel is known to be dead.
        """
        with self._lock:
            if self._death is not None:
                raise again(self._death)
            self._open[msg_id] = request

    def forget(self, msg_id: str) -> None:
        """Expect no more answers: what still comes is for the channel's readers."""
        with self._lock:
            self._open.pop(msg_id, None)

    def open_requests(self) -> list[str]:
        """List the ids of the requests that expect answers."""
        with self._lock:
            return list(self._open)

    def has_open_requests(self) -> bool:
        """Say whether any request expects answers."""
        return bool(self._open)

    def lacks_idle(self, msg_id: str) -> bool:
        """Say whether a request has its reply, and not its idle."""
        request = self._open.get(msg_id)
        return request is not None and request.is_replied and not request.is_idle

    def fail(self, msg_ids: Iterable[str], error: Exception) -> None:
        """Tell those who still wait for these requests that nothing more will come."""
        with self._lock:
            requests = [self._open.pop(msg_id) for msg_id in msg_ids if msg_id in self._open]
        for request in requests:
            request.fail(error)

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Give a callback every message from now on; returns the undo."""

        def undo() -> None:
            with self._lock:
                self._listeners = tuple(listener for listener in self._listeners if listener is not entry)

        def entry(channel: Channel, message: Message) -> None:
            callback(channel, message)

        with self._lock:
            self._listeners += (entry,)
        return undo

    def deliver(self, channel: Channel, message: Message) -> None:
        """Give a message to whom it belongs."""
        parent_id = message.parent_id or ""
        with self._lock:
            request = self._open.get(parent_id)
            lost = self._hear(channel, message, request)
            if request is None or not request.take(channel, message):
                self._queue(channel, message, is_answer=request is not None)
            if request is not None and request.is_finished:
                del self._open[parent_id]
        if lost is not None:
            self._begin_anew(lost)
        self._tell(channel, message)

    def deliver_gap(self, message: Message) -> None:
        """Give everybody the news that messages of iopub were lost."""
        with self._lock:
            for request in self._open.values():
                request.take_aside(message)
            self._queue(Channel.IOPUB, message, is_answer=False)
        self._tell(Channel.IOPUB, message)

    def _hear(self, channel: Channel, message: Message, request: OpenRequest | None) -> list[str] | None:
        """Note which kernel speaks; where it has taken another's place, list what that one left open."""
        was_alive = bool(self._kernel.current)
        is_another = self._kernel.hear(message, request)
        if is_another and self.heard.done():
            self.heard = SharedFuture()
        if channel is Channel.IOPUB and not self._kernel.is_former(message):
            self.heard.set_result(None)
        if not is_another:
            return None
        return [msg_id for msg_id in self._open if msg_id != message.parent_id] if was_alive else []

    def _begin_anew(self, lost: list[str]) -> None:
        if self._death is not None:
            self._end_death()
            self.has_heard_successor = True
        self.fail(lost, KernelDiedError(RESTARTED))

    def _queue(self, channel: Channel, message: Message, *, is_answer: bool) -> None:
        queue = self.queues[channel]
        # Where a listener has it and nobody reads the channel, the copy here must not grow for ever.
        queue.put(message, is_answer=is_answer and (queue.was_read or not self._listeners))

    def _tell(self, channel: Channel, message: Message) -> None:
        for listener in self._listeners:
            try:
                listener(channel, message)
            except Exception:  # the others get it nevertheless
                self._log.exception("A listener failed on a %s message", message.msg_type)

    # ── the kernel's life ───────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Begin: there are sockets."""
        self._is_open = True
        self._update_queues()

    def close(self, error: Exception) -> None:
        """Tell everybody who waits that nothing more will come."""
        self._is_open = False
        self._kernel = KernelSession()
        self.fail(self.open_requests(), error)
        self._hear_nothing(error)
        for queue in self.queues.values():
            queue.fail(error)

    def kernel_died(self, error: KernelDiedError) -> None:
        """Refuse requests from now on; those that are open may get what is on its way, until `settle`."""
        with self._lock:
            if self._death is not None:
                return
            self._death = self._unsettled = error
            self._doomed = list(self._open)
            self.has_heard_successor = False
            self._kernel.bury()
            self._hear_nothing(error)

    def settle(self) -> None:
        """Tell everybody who waited when the kernel died."""
        with self._lock:
            error, self._unsettled = self._unsettled, None
            doomed, self._doomed = self._doomed, []
        if error is not None:
            self.fail(doomed, error)

    def fail_queues(self) -> None:
        """Tell the readers of the channels, if no other kernel has come meanwhile."""
        self._update_queues()

    def kernel_started(self) -> None:
        """Take requests again: nothing of the former kernel comes any more, its sockets are closed."""
        self._kernel = KernelSession()
        self._end_death()

    def _end_death(self) -> None:
        self.settle()
        self._death = None
        self._update_queues()

    def _hear_nothing(self, error: Exception) -> None:
        self.heard.set_error(error)
        self.heard = SharedFuture()

    def _update_queues(self) -> None:
        for queue in self.queues.values() if self._is_open else ():
            if self._death is None:
                queue.open()
            else:
                queue.fail(self._death)


def _own_session(message: Message) -> str:
    """The session in a header, where it is not that of the message answered."""
    session = message.header.session
    return "" if message.parent is not None and message.parent.session == session else session


def _is_idle(message: Message) -> bool:
    return message.msg_type == MessageType.STATUS and message.content.get("execution_state") == "idle"
