"""Everything one kernel was asked and said, in order: cells, and notices between them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from cobnut.model.cell import Cell, RunState
from cobnut.model.changes import ChangeLog
from cobnut.model.outputs import data_block, dicts_in, display_id_of, error_block
from cobnut_kernel.protocol.messages import Channel, Message, MessageType


class Level(StrEnum):
    """How much a notice matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Notice:
    """One line about the kernel, such as that it was started, or killed by SIGKILL."""

    text: str
    at: float
    level: Level = Level.INFO


Item = Cell | Notice


class Document:
    """One kernel's cells and notices. It takes any message of that kernel, in any order, and never raises for one."""

    def __init__(self, language: str = "python") -> None:
        self.language: str = language
        """The language of cells that other clients run here."""
        self.items: list[Item] = []
        self.cells: list[Cell] = []
        self.changes: ChangeLog = ChangeLog()
        """Which items changed, by their index in `items`; they are only ever appended."""
        self._indices: dict[Cell, int] = {}
        self._by_msg_id: dict[str, Cell] = {}
        self._displays: dict[str, dict[Cell, None]] = {}
        self._unfinished: dict[Cell, None] = {}

    @property
    def revision(self) -> int:
        """A number that grows whenever anything changes."""
        return self.changes.revision

    @property
    def running(self) -> list[Cell]:
        """The cells that run now, in the order of the document; in different subshells there may be several."""
        return [cell for cell in self._unfinished if cell.state is RunState.RUNNING]

    @property
    def queued(self) -> list[Cell]:
        """The cells that wait for their turn, in the order of the document."""
        return [cell for cell in self._unfinished if cell.state is RunState.QUEUED]

    def index(self, cell: Cell) -> int:
        """Give the place of a cell in `items`."""
        return self._indices[cell]

    # What we do

    def submit(self, code: str, msg_id: str | None, now: float, language: str | None = None) -> Cell:
        """Add a cell that is to run; without a `msg_id` it waits until `sent` gives it one."""
        known = self._by_msg_id.get(msg_id) if msg_id else None
        if known:  # what the kernel says of it was faster
            known.foreign = False
            self._touch(known)
            return known
        return self._add_cell(Cell(code, None, language or self.language, queued_at=now), msg_id)

    def sent(self, cell: Cell, msg_id: str) -> None:
        """Tell under which id a cell that waited was sent to the kernel."""
        cell.msg_id = msg_id
        self._by_msg_id[msg_id] = cell
        self._touch(cell)

    def notice(self, text: str, now: float, level: Level = Level.INFO) -> None:
        """Add a line about the kernel."""
        self.items.append(Notice(text, now, level))
        self.changes.touch(len(self.items) - 1)

    def kernel_died(self, reason: str, now: float, level: Level = Level.ERROR) -> None:
        """Say why the kernel ended, and end what ran and what waited.

        A kernel that a cell kills at once may die before it can say that the cell runs: then the oldest cell that was
        sent is the one that ran.
        """
        suspect = next((cell for cell in self.queued if cell.msg_id), None)
        if suspect and not self.running:
            self._end(suspect, RunState.ERROR, now)
        self.end_runs(now, RunState.ERROR)
        self.notice(reason, now, level)

    def end_runs(self, now: float, state: RunState = RunState.INTERRUPTED) -> None:
        """End the running cells with `state`, and abort those that wait: their kernel is gone, or another one now."""
        for cell in list(self._unfinished):
            self._end(cell, state if cell.state is RunState.RUNNING else RunState.ABORTED, now)

    # What the kernel says

    def fold(self, channel: Channel, message: Message, now: float) -> None:
        """Take in one message of the kernel; `now` is in monotonic seconds."""
        cell = self._by_msg_id.get(message.parent_id or "")
        match channel, message.msg_type:
            case Channel.IOPUB, MessageType.UPDATE_DISPLAY_DATA:
                self._update_display(message.content)
            case Channel.IOPUB, MessageType.EXECUTE_INPUT if message.parent_id:
                self._begin(cell or self._adopt(message, now), message, now)
            case Channel.IOPUB, MessageType.STATUS if cell:
                self._follow_status(cell, message, now)
            case Channel.IOPUB, _ if cell:
                self._fold_output(cell, message)
            case ((Channel.SHELL | Channel.CONTROL), MessageType.EXECUTE_REPLY) if cell:
                self._settle(cell, message, now)
            case _:
                pass  # of requests that are not cells

    def _adopt(self, message: Message, now: float) -> Cell:
        """Make a cell of what another client runs."""
        code = message.content.get("code")
        cell = Cell(code if isinstance(code, str) else "", None, self.language, queued_at=now, foreign=True)
        return self._add_cell(cell, message.parent_id)

    def _begin(self, cell: Cell, message: Message, now: float) -> None:
        """Note that a cell runs; the kernel says so twice, by its status and by repeating the input."""
        count = message.content.get("execution_count")
        if isinstance(count, int):
            cell.execution_count = count
        if cell.started_on is None:
            cell.started_on = _date(message)
        if cell.started_at is None and not cell.state.has_ended:
            cell.started_at = now
        if cell.state is RunState.QUEUED:
            cell.state = RunState.RUNNING
        self._touch(cell)

    def _follow_status(self, cell: Cell, message: Message, now: float) -> None:
        match message.content.get("execution_state"):
            case "busy":
                self._begin(cell, message, now)
            case "idle":
                self._finish(cell, message, now)
            case _:
                pass

    def _finish(self, cell: Cell, idle: Message, now: float) -> None:
        """Note that all outputs have come; it ends the cell where the reply is late or went to another client."""
        if cell.failure and not cell.outputs.error:
            cell.outputs.append(error_block(cell.failure))
        cell.failure = None
        if not cell.is_settled:
            self._end(cell, _outcome(cell), now, idle)
        elif cell.started_at is None and cell.ended_at is not None and cell.state is not RunState.ABORTED:
            cell.started_at = cell.ended_at - _seconds(cell.started_on, _date(idle))  # the reply overtook the outputs
        self._touch(cell)

    def _fold_output(self, cell: Cell, message: Message) -> None:
        if not cell.outputs.fold(message):
            return
        display_id = display_id_of(message.content)
        if display_id is not None:
            self._displays.setdefault(display_id, {})[cell] = None
        self._touch(cell)

    def _update_display(self, content: dict[str, Any]) -> None:
        """Update a display wherever it is shown; it may be in another cell than the one that runs."""
        display_id = display_id_of(content) or ""
        cells = self._displays.get(display_id, {})
        for cell in list(cells):
            if cell.outputs.update_display(display_id, content):
                self._touch(cell)
            else:  # its outputs were cleared
                del cells[cell]

    def _settle(self, cell: Cell, reply: Message, now: float) -> None:
        """End a cell as the reply says; outputs may still come, iopub being another socket."""
        content = reply.content
        match content.get("status"):
            case "ok":
                state = RunState.OK
            case "aborted" | "abort":
                state = RunState.ABORTED
            case _:
                cell.failure = content
                state = _failed(content.get("ename"))
        self._show_pages(cell, content)
        self._end(cell, state, now, reply)
        cell.is_settled = True

    def _show_pages(self, cell: Cell, content: dict[str, Any]) -> None:
        """Show what the kernel wants shown in a pager, as IPython does for `name?`, among the outputs."""
        for page in dicts_in(content, "payload"):
            if page.get("source") == "page":
                cell.outputs.append(data_block(page))

    def _end(self, cell: Cell, state: RunState, now: float, message: Message | None = None) -> None:
        cell.state = state
        if cell.ended_at is None:
            cell.ended_at = now
            if cell.started_at is not None and message and (seconds := _seconds(cell.started_on, _date(message))):
                cell.ended_at = cell.started_at + seconds  # the messages may have waited for us
        if state is RunState.ABORTED:
            cell.started_at = None
        self._unfinished.pop(cell, None)
        self._touch(cell)

    # Bookkeeping

    def _add_cell(self, cell: Cell, msg_id: str | None) -> Cell:
        self._indices[cell] = len(self.items)
        self._unfinished[cell] = None
        self.items.append(cell)
        self.cells.append(cell)
        if msg_id:
            cell.msg_id = msg_id
            self._by_msg_id[msg_id] = cell
        self._touch(cell)
        return cell

    def _touch(self, cell: Cell) -> None:
        cell.revision = self.changes.touch(self._indices[cell])


def _outcome(cell: Cell) -> RunState:
    """Tell how a run ended of which there is no reply; a kernel that skips a cell does not repeat its input."""
    if cell.execution_count is None:
        return RunState.ABORTED
    error = cell.outputs.error
    return RunState.OK if error is None else _failed(error.ename)


def _failed(ename: object) -> RunState:
    return RunState.INTERRUPTED if ename == "KeyboardInterrupt" else RunState.ERROR


def _seconds(start: datetime | None, end: datetime | None) -> float:
    """Give the time between two moments by the kernel's clock; 0 where one is unknown."""
    return max(0.0, (end - start).total_seconds()) if start and end else 0.0


def _date(message: Message) -> datetime | None:
    """Read a message's date; None where it is none, or has no time zone to compare it by."""
    try:
        date = datetime.fromisoformat(message.header.date)
    except ValueError:
        return None
    return date if date.tzinfo else None
