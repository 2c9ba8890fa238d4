"""A document at one width: how many rows it has, and what each row shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip

from cobnut.model.cell import Cell
from cobnut.render.glyphs import UNICODE, Glyphs
from cobnut.render.items import CellDrawing, Change, NoticeDrawing
from cobnut.render.offsets import Offsets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut.model.document import Document, Item


class Layout:
    """The rows of a document. `update` looks what changed; rows are drawn when asked for."""

    def __init__(self, document: Document, width: int, glyphs: Glyphs = UNICODE) -> None:
        self.document: Document = document
        self._width: int = width
        self._glyphs: Glyphs = glyphs
        self._seen: int = -1
        self._drawings: list[CellDrawing | NoticeDrawing] = []
        self._offsets: Offsets = Offsets()

    @property
    def width(self) -> int:
        """Columns of the screen that the document has."""
        return self._width

    @property
    def height(self) -> int:
        """Rows of the whole document, as of the last update."""
        return self._offsets.total

    def resize(self, width: int) -> None:
        """Take another width; the next update lays out anew."""
        if width != self._width:
            self._width = width
            self._seen = -1
            self._drawings.clear()
            self._offsets = Offsets()

    def update(self, now: float) -> list[range]:
        """Lay out what changed since the last time, and give the rows that may show something else now.

        `now` is in monotonic seconds, for the clocks of running cells. Where rows came or went, all below moved: then
        the last range reaches to the old end or the new one, whichever is further down.
        """
        before = self.height
        touched = sorted(self.document.changes.since(self._seen))
        self._seen = self.document.revision
        changes = [(index, self._update_item(index, now)) for index in touched]
        return list(self._rows(changes, before)) + self._ticks(now, set(touched))

    def line(self, y: int) -> Strip:
        """Draw one row, exactly `width` cells wide; below the last it is blank."""
        if not 0 <= y < self.height:
            return Strip.blank(self._width)
        index, row = self._offsets.find(y)
        return self._drawings[index].row(row)

    def cell_at(self, y: int) -> Cell | None:
        """Give the cell that a row belongs to; None for notices, and below the last row."""
        if not 0 <= y < self.height:
            return None
        item = self.document.items[self._offsets.find(y)[0]]
        return item if isinstance(item, Cell) else None

    def rows_of(self, cell: Cell) -> range:
        """Give the rows of a cell, its outputs among them."""
        index = self.document.index(cell)
        return range(self._offsets.start(index), self._offsets.start(index + 1))

    def _update_item(self, index: int, now: float) -> Change:
        if index == len(self._drawings):
            self._drawings.append(_drawing(self.document.items[index], self._width, self._glyphs))
        change = self._drawings[index].update(now)
        self._offsets.set(index, self._drawings[index].height)
        return change

    def _rows(self, changes: list[tuple[int, Change]], before: int) -> Iterator[range]:
        """Turn changes of items into rows of the document."""
        for index, change in changes:
            start = self._offsets.start(index)
            if change.moves:
                yield range(start + change.start, max(before, self.height))
                return
            yield range(start + change.start, start + change.stop)

    def _ticks(self, now: float, updated: set[int]) -> list[range]:
        """Let the clocks of the running cells go on."""
        rows: list[range] = []
        for index in map(self.document.index, self.document.running):
            drawing = self._drawings[index]
            if index not in updated and isinstance(drawing, CellDrawing) and drawing.tick(now):
                start = self._offsets.start(index)
                rows.append(range(start, start + 1))
        return rows


def _drawing(item: Item, width: int, glyphs: Glyphs) -> CellDrawing | NoticeDrawing:
    return CellDrawing(item, width, glyphs) if isinstance(item, Cell) else NoticeDrawing(item, width, glyphs)
