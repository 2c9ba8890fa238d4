"""The items of a document, cells and notices, each with its height and its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cobnut.model.coloured import coloured_text
from cobnut.model.document import Level, Notice
from cobnut.model.lines import join, spans
from cobnut.model.styles import BOLD, DIM, Style, StyleCode
from cobnut.render.blocks import Drawing, drawing_of
from cobnut.render.input import InputDrawing
from cobnut.render.offsets import Offsets
from cobnut.render.text import MINIMUM, strip, wrap_words

if TYPE_CHECKING:
    from textual.strip import Strip

    from cobnut.model.cell import Cell
    from cobnut.render.glyphs import Glyphs

_NOTICES: Final[dict[Level, StyleCode]] = {
    Level.INFO: Style(attributes=DIM).code,
    Level.WARNING: Style(foreground=3).code,
    Level.ERROR: Style(foreground=1, attributes=BOLD).code,
}


@dataclass(frozen=True, slots=True)
class Change:
    """The rows of an item that may be others now; where it `moves` what follows, up to its end."""

    start: int
    stop: int
    moves: bool


class CellDrawing:
    """A cell: its input, and under it its outputs, which begin in the column where the code does."""

    def __init__(self, cell: Cell, width: int, glyphs: Glyphs) -> None:
        self._cell: Cell = cell
        self._width: int = width
        self._glyphs: Glyphs = glyphs
        self._input: InputDrawing = InputDrawing(cell, width, glyphs)
        self._outputs: list[Drawing] = []
        self._offsets: Offsets = Offsets()
        self._shape: tuple[int, int] = (cell.outputs.generation, 0)
        """The generation of outputs that are drawn, and how far they are indented."""
        self._seen: int = -1

    @property
    def height(self) -> int:
        """Rows, as of the last update."""
        return self._offsets.total

    def update(self, now: float) -> Change:
        """Look what changed in the cell."""
        before = self.height
        spans = [self._update_input(now), *self._update_outputs()]
        start = min((span.start for span in spans if span), default=0)
        stop = max((span.stop for span in spans), default=0)
        return Change(start, stop, self.height != before)

    def tick(self, now: float) -> bool:
        """Let the clock go on, and tell whether it reads differently."""
        return self._input.tick(now)

    def row(self, number: int) -> Strip:
        """Draw one row."""
        index, row = self._offsets.find(number)
        return self._outputs[index - 1].row(row) if index else self._input.row(row)

    def _update_input(self, now: float) -> range:
        before, changed = self._input.height, self._input.update(now)
        self._offsets.set(0, self._input.height)
        return range(max(before, self._input.height) if changed else 0)

    def _update_outputs(self) -> list[range]:
        outputs = self._cell.outputs
        rows: list[range] = []
        shape = (outputs.generation, self._input.gutter)
        if shape != self._shape:
            self._shape = shape
            self._seen = -1
            rows.append(range(self._input.height, self._offsets.total))
            self._outputs.clear()
            self._offsets.cut(1)
        changed = [(index + 1, self._update_output(index)) for index in sorted(outputs.changes.since(self._seen))]
        self._seen = outputs.revision
        rows += [range(self._offsets.start(part) + first, self._offsets.start(part + 1)) for part, first in changed]
        return rows

    def _update_output(self, index: int) -> int:
        if index == len(self._outputs):
            block = self._cell.outputs.blocks[index]
            self._outputs.append(drawing_of(block, self._width, self._input.gutter, self._glyphs))
        first = self._outputs[index].update()
        self._offsets.set(index + 1, self._outputs[index].height)
        return first


class NoticeDrawing:
    """A notice: a line, or more where it has more to say, wrapped between its words; it never changes."""

    def __init__(self, notice: Notice, width: int, glyphs: Glyphs) -> None:
        style = _NOTICES[notice.level]
        sign = glyphs.error if notice.level is Level.ERROR else glyphs.rule * 2
        indent = len(sign) + 1
        lines = [join((text, code or style) for text, code in spans(line)) for line in coloured_text(notice.text)]
        first, *others = [row for line in lines for row in wrap_words(line, max(MINIMUM, width - indent))] or [[]]
        self._rows: list[Strip] = [strip([(f"{sign} ", style), *first], width)]
        self._rows += [strip(row, width, indent) for row in others]

    @property
    def height(self) -> int:
        """Rows."""
        return len(self._rows)

    def update(self, _now: float) -> Change:
        """Say that it is new."""
        return Change(0, self.height, moves=True)

    def row(self, number: int) -> Strip:
        """Draw one row."""
        return self._rows[number]
