"""Comms from a client's end: messages to objects of the user's code, and what those say."""

from __future__ import annotations

from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cobnut_kernel.client.asking import Answer, Ask, Asking, Buffer, Content
from cobnut_kernel.protocol.messages import Channel, Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from logging import Logger

    CommListener = Callable[[Message], None]

_COMM_TYPES = frozenset({MessageType.COMM_OPEN.value, MessageType.COMM_MSG.value, MessageType.COMM_CLOSE.value})


class CommMessages(Asking[Answer]):
    """Sends comm messages; they have no reply, and what they cause comes on iopub."""

    def comm_open(
        self,
        target_name: str,
        data: Content | None = None,
        *,
        comm_id: str | None = None,
        metadata: Content | None = None,
        buffers: Iterable[Buffer] = (),
        target_module: str | None = None,
    ) -> str:
        """Open a comm with a target of the kernel's code; returns the id of the comm, not of the message.

        Listen to the id before, to miss nothing: `comm_id` may be any text that no other comm has.
        """
        comm_id = comm_id or uuid4().hex
        content: Content = {"comm_id": comm_id, "target_name": target_name, "data": data or {}}
        if target_module is not None:
            content["target_module"] = target_module
        self._tell(MessageType.COMM_OPEN, content, metadata, buffers)
        return comm_id

    def comm_msg(
        self, comm_id: str, data: Content, *, metadata: Content | None = None, buffers: Iterable[Buffer] = ()
    ) -> str:
        """Send data to the other end of a comm; returns the id of the message."""
        return self._tell(MessageType.COMM_MSG, {"comm_id": comm_id, "data": data}, metadata, buffers)

    def comm_close(
        self,
        comm_id: str,
        data: Content | None = None,
        *,
        metadata: Content | None = None,
        buffers: Iterable[Buffer] = (),
    ) -> str:
        """Close a comm; returns the id of the message."""
        return self._tell(MessageType.COMM_CLOSE, {"comm_id": comm_id, "data": data or {}}, metadata, buffers)

    def _tell(self, msg_type: str, content: Content, metadata: Content | None, buffers: Iterable[Buffer]) -> str:
        return self._ask(Ask(msg_type, content, metadata=metadata, buffers=buffers, is_told=True))


class CommListeners:
    """Who is called back with the messages of which comm, or with the comms that are opened for which target."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._lock = Lock()
        self._of_comms: dict[str, tuple[CommListener, ...]] = {}
        self._of_targets: dict[str, tuple[CommListener, ...]] = {}

    def add(self, comm_id: str, callback: CommListener) -> Callable[[], None]:
        """Call back with all messages of a comm; returns the undo."""
        return self._add(self._of_comms, comm_id, callback)

    def add_target(self, target_name: str, callback: CommListener) -> Callable[[], None]:
        """Call back with each comm_open of the kernel that names a target; returns the undo."""
        return self._add(self._of_targets, target_name, callback)

    def hear(self, channel: Channel, message: Message) -> None:
        """Give a message to those it is for; called with every message, in the I/O thread."""
        if channel is not Channel.IOPUB or message.msg_type not in _COMM_TYPES:
            return
        if message.msg_type == MessageType.COMM_OPEN:  # first, for it may want to listen to the comm
            self._call(self._of_targets, message.content.get("target_name"), message)
        self._call(self._of_comms, message.content.get("comm_id"), message)

    def _call(self, listeners: dict[str, tuple[CommListener, ...]], name: Any, message: Message) -> None:
        for listener in listeners.get(name, ()) if isinstance(name, str) else ():
            try:
                listener(message)
            except Exception:  # the others get it nevertheless
                self._log.exception("A listener failed on a %s of %s", message.msg_type, name)

    def _add(
        self, listeners: dict[str, tuple[CommListener, ...]], name: str, callback: CommListener
    ) -> Callable[[], None]:
        entry = partial(callback)
        with self._lock:
            listeners[name] = (*listeners.get(name, ()), entry)

        def undo() -> None:
            with self._lock:
                left = tuple(listener for listener in listeners.get(name, ()) if listener is not entry)
                if left:
                    listeners[name] = left
                else:
                    listeners.pop(name, None)

        return undo
