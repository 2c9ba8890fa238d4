"""What a cell put out, folded from the messages on iopub. Pure: no input or output, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from cobnut.model.ansi import AnsiScreen
from cobnut.model.changes import ChangeLog
from cobnut_kernel.protocol.messages import Message, MessageType

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(eq=False, slots=True)
class StreamBlock:
    """Text from stdout or stderr, as a terminal would show it."""

    name: str
    screen: AnsiScreen = field(default_factory=AnsiScreen)


@dataclass(eq=False, slots=True)
class DataBlock:
    """A result or a display: the same thing in several formats, by mime type."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None = None
    execution_count: int | None = None


@dataclass(eq=False, slots=True)
class ErrorBlock:
    """An exception as the kernel told it; the traceback's lines hold escape sequences."""

    ename: str
    evalue: str
    traceback: list[str]


Block = StreamBlock | DataBlock | ErrorBlock


class Outputs:
    """The outputs of one cell, in order. Content that is not as specified is taken as far as it makes sense."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.changes: ChangeLog = ChangeLog()
        """Which blocks changed, by their index; cleared when they are."""
        self.generation: int = 0
        """How often the outputs were cleared: within one, blocks are only appended and changed."""
        self._displays: dict[str, list[int]] = {}
        self._clears_first: bool = False

    @property
    def revision(self) -> int:
        """A number that grows whenever anything changes."""
        return self.changes.revision

    @property
    def error(self) -> ErrorBlock | None:
        """The exception that ended the cell, if one did."""
        return next((block for block in reversed(self.blocks) if isinstance(block, ErrorBlock)), None)

    def fold(self, message: Message) -> bool:
        """Take in a message, and tell whether it was an output of this cell."""
        content = message.content
        match message.msg_type:
            case MessageType.STREAM:
                self._write(_text(content, "name", "stdout"), _text(content, "text"))
            case MessageType.DISPLAY_DATA | MessageType.EXECUTE_RESULT:
                self.append(data_block(content))
            case MessageType.ERROR:
                self.append(error_block(content))
            case MessageType.CLEAR_OUTPUT:
                self._clears_first = bool(content.get("wait"))
                if not self._clears_first:
                    self.clear()
            case _:
                return False
        return True

    def append(self, block: Block) -> None:
        """Add a block at the end."""
        self._clear_if_asked()
        if isinstance(block, DataBlock) and block.display_id is not None:
            self._displays.setdefault(block.display_id, []).append(len(self.blocks))
        self.changes.touch(len(self.blocks))
        self.blocks.append(block)

    def update_display(self, display_id: str, content: Mapping[str, Any]) -> bool:
        """Give the displays of that id new content, and tell whether there are any."""
        update = data_block(content)
        indices = self._displays.get(display_id, ())
        for index in indices:
            block = self.blocks[index]
            if isinstance(block, DataBlock):
                block.data, block.metadata = update.data, update.metadata
                self.changes.touch(index)
        return bool(indices)

    def clear(self) -> None:
        """Drop all blocks."""
        self._clears_first = False
        if self.blocks:
            self.generation += 1
            self.blocks.clear()
            self._displays.clear()
            self.changes.clear()

    def _write(self, name: str, text: str) -> None:
        if not text:
            return
        self._clear_if_asked()
        last = self.blocks[-1] if self.blocks else None
        if not isinstance(last, StreamBlock) or last.name != name:
            last = StreamBlock(name)
            self.append(last)
        last.screen.feed(text)
        self.changes.touch(len(self.blocks) - 1)

    def _clear_if_asked(self) -> None:
        """Do the clearing that waited for the next output (clear_output with wait)."""
        if self._clears_first:
            self.clear()


def display_id_of(content: Mapping[str, Any]) -> str | None:
    """Give the id under which a display can be updated, if it has one."""
    identifier = _mapping(content, "transient").get("display_id")
    return identifier if isinstance(identifier, str) else None


def error_block(content: Mapping[str, Any]) -> ErrorBlock:
    """Read an error, from a message on iopub or from a reply; they have the same content."""
    ename, evalue = _text(content, "ename", "Error"), _text(content, "evalue")
    traceback = [line for line in _list(content, "traceback") if isinstance(line, str)]
    return ErrorBlock(ename, evalue, traceback or [f"{ename}: {evalue}" if evalue else ename])


def data_block(content: Mapping[str, Any]) -> DataBlock:
    """Read a result or a display."""
    count = content.get("execution_count")
    return DataBlock(
        _mapping(content, "data"),
        _mapping(content, "metadata"),
        display_id_of(content),
        count if isinstance(count, int) else None,
    )


def dicts_in(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Give the dicts of a list, if it is one."""
    return [cast("dict[str, Any]", item) for item in _list(content, key) if isinstance(item, dict)]


def _text(content: Mapping[str, Any], key: str, default: str = "") -> str:
    value = content.get(key, default)
    return value if isinstance(value, str) else default


def _mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(content: Mapping[str, Any], key: str) -> list[object]:
    value = content.get(key)
    return cast("list[object]", value) if isinstance(value, list) else []
