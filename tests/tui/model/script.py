"""A kernel that says what a test tells it to say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType

if TYPE_CHECKING:
    from cobnut.model.document import Document

START = datetime(2024, 5, 17, 12, 0, tzinfo=UTC)


class ScriptedKernel:
    """Tells a document messages; each is folded at `now`, and dated by the kernel's own `clock`, both in seconds."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.now = 100.0
        self.clock = 0.0
        self._ids = count()

    def submit(self, code: str = "pass") -> Any:
        """Enter a cell; its message id is its code's place in the document."""
        return self.document.submit(code, f"run-{next(self._ids)}", self.now)

    def say(self, parent: str | None, msg_type: str, channel: Channel = Channel.IOPUB, **content: Any) -> None:
        """Send one message."""
        date = (START + timedelta(seconds=self.clock)).isoformat().replace("+00:00", "Z")
        header = Header(f"message-{next(self._ids)}", msg_type, date=date)
        parent_header = Header(parent, MessageType.EXECUTE_REQUEST) if parent else None
        self.document.fold(channel, Message(header, parent_header, {}, content), self.now)

    def begin(self, cell: Any, number: int = 1) -> None:
        """Begin to run a cell."""
        self.say(cell.msg_id, MessageType.STATUS, execution_state="busy")
        self.say(cell.msg_id, MessageType.EXECUTE_INPUT, code=cell.code, execution_count=number)

    def write(self, cell: Any, text: str, name: str = "stdout") -> None:
        """Write text to a stream."""
        self.say(cell.msg_id, MessageType.STREAM, name=name, text=text)

    def display(self, cell: Any, text: str, display_id: str | None = None, msg_type: str = "display_data") -> None:
        """Display text."""
        transient = {"display_id": display_id} if display_id else {}
        self.say(cell.msg_id, msg_type, data={"text/plain": text}, metadata={}, transient=transient)

    def fail(self, cell: Any, ename: str = "ValueError", evalue: str = "no") -> None:
        """Raise an exception."""
        self.say(cell.msg_id, MessageType.ERROR, ename=ename, evalue=evalue, traceback=[f"{ename}: {evalue}"])

    def clear(self, cell: Any, *, wait: bool = False) -> None:
        """Clear the output."""
        self.say(cell.msg_id, MessageType.CLEAR_OUTPUT, wait=wait)

    def reply(self, cell: Any, status: str = "ok", **content: Any) -> None:
        """Answer the request."""
        self.say(cell.msg_id, MessageType.EXECUTE_REPLY, Channel.SHELL, status=status, **content)

    def idle(self, cell: Any) -> None:
        """Say that all output of the cell is out."""
        self.say(cell.msg_id, MessageType.STATUS, execution_state="idle")

    def end(self, cell: Any) -> None:
        """End a cell well."""
        self.reply(cell)
        self.idle(cell)
