"""The input of a cell: its number, its code, and how its run stands."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from rich.segment import Segment
from textual.strip import Strip

from cobnut.model.cell import Cell, RunState
from cobnut.model.styles import BOLD, DIM, Style, StyleCode
from cobnut.render.clock import duration
from cobnut.render.code import highlighted_lines, plain_lines
from cobnut.render.text import MINIMUM, Piece, rich_style, strip, wrap

if TYPE_CHECKING:
    from cobnut.model.lines import Line
    from cobnut.render.glyphs import Glyphs

WIDE: Final = 72
"""Columns from which on there is room for words beside the signs."""

NARROW: Final = 24
"""Columns below which the code needs all the room."""

_DIM: Final = Style(attributes=DIM).code
_STYLES: Final[dict[RunState, StyleCode]] = {
    RunState.RUNNING: Style(foreground=3, attributes=BOLD).code,
    RunState.ERROR: Style(foreground=1, attributes=BOLD).code,
    RunState.INTERRUPTED: Style(foreground=3).code,
}

_FOREIGN: Final = "from another client"


class InputDrawing:
    """A cell's input: its code, with the time column at the right of the first row."""

    def __init__(self, cell: Cell, width: int, glyphs: Glyphs) -> None:
        self.height: int = 0
        self._cell: Cell = cell
        self._width: int = width
        self._glyphs: Glyphs = glyphs
        self._shown: object = None
        self._code: tuple[str, str] = ("", "")
        self._gutter: str = ""
        self._margin: str = ""
        self._margin_style: StyleCode = ""
        self._reserve: int = 0
        self._ends: list[int] = []

    @property
    def gutter(self) -> int:
        """Cells before the code, which hold the number on the first row; as of the last update."""
        return len(self._gutter)

    def update(self, now: float) -> bool:
        """Look what changed in the cell, and tell whether the input did."""
        cell = self._cell
        shown = (cell.code, cell.language, cell.state, cell.execution_count, cell.foreign)
        if shown == self._shown:
            return self.tick(now)
        self._shown = shown
        self._code = (cell.code, cell.language)
        self._gutter = f"[{_count(cell)}] "
        self._margin_style = _STYLES.get(cell.state, _DIM)
        self._reserve = _reserve(cell, self._width)
        self.tick(now)
        rows = [len(self._wrap(index, line)) for index, line in enumerate(plain_lines(cell.code))]
        self._ends = list(accumulate(rows))
        self.height = self._ends[-1]
        return True

    def tick(self, now: float) -> bool:
        """Bring the time up to date, and tell whether it reads differently."""
        margin = _margin(self._cell, now, self._glyphs, wide=self._width >= WIDE)
        changed, self._margin = margin != self._margin, margin
        return changed

    def row(self, number: int) -> Strip:
        """Draw one row."""
        index = bisect_right(self._ends, number)
        pieces = self._wrap(index, highlighted_lines(*self._code)[index])
        row = pieces[number - (self._ends[index - 1] if index else 0)]
        if number:
            return strip(row, self._width, len(self._gutter))
        head = strip([(self._gutter, _DIM), *row], self._width - self._reserve)
        time = Segment(self._margin.rjust(self._reserve), rich_style(self._margin_style))
        return Strip([*head, time]).adjust_cell_length(self._width)

    def _wrap(self, index: int, line: Line) -> list[list[Piece]]:
        room = max(MINIMUM, self._width - len(self._gutter))
        return wrap(line, room, None if index else max(MINIMUM, room - self._reserve))


def _count(cell: Cell) -> str:
    if cell.execution_count is not None:
        return str(cell.execution_count)
    return "*" if cell.state is RunState.RUNNING else " "


def _reserve(cell: Cell, width: int) -> int:
    """Give the cells of the first row that the code leaves free; they do not depend on the time that is shown there."""
    if width < NARROW:
        return 0
    if width < WIDE:
        return 8
    return 10 + (len(_FOREIGN) + 2 if cell.foreign else 0)


def _margin(cell: Cell, now: float, glyphs: Glyphs, *, wide: bool) -> str:
    """Say how the run stands: a sign where it is not simply well, a word or a time."""
    elapsed = cell.elapsed(now)
    time = ("" if elapsed is None else duration(elapsed)).rjust(6 if wide else 0)
    match cell.state:
        case RunState.QUEUED:
            text = f"{glyphs.queued} queued" if wide else glyphs.queued
        case RunState.ABORTED:
            text = f"{glyphs.interrupted} aborted" if wide else glyphs.interrupted
        case RunState.OK:
            text = time.lstrip()
        case RunState.RUNNING:
            text = f"{glyphs.running} {time}"
        case RunState.ERROR:
            text = f"{glyphs.error} {time}"
        case RunState.INTERRUPTED:
            text = f"{glyphs.interrupted} {time}"
    return f"{_FOREIGN}  {text:>9}" if wide and cell.foreign else text
