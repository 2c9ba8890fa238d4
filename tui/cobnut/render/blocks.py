"""The blocks of a cell, each with its height and its rows."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from cobnut.model.coloured import coloured_text
from cobnut.model.lines import PAGE, Line
from cobnut.model.outputs import Block, DataBlock, ErrorBlock, StreamBlock
from cobnut.render.mime import text_of
from cobnut.render.offsets import Offsets
from cobnut.render.text import MINIMUM, heights, strips

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.strip import Strip

    from cobnut.model.ansi import AnsiScreen
    from cobnut.render.glyphs import Glyphs


class Drawing(Protocol):
    """What is drawn of one block, at one width."""

    height: int
    """Rows, as of the last update."""

    def update(self) -> int:
        """Look what changed in the block, and give the first row that may be another one now."""
        ...

    def row(self, number: int) -> Strip:
        """Draw one row."""
        ...


def drawing_of(block: Block, width: int, indent: int, glyphs: Glyphs) -> Drawing:
    """Choose how to draw a block in `width` cells, of which the first `indent` are blank."""
    match block:
        case StreamBlock():
            return StreamDrawing(block.screen, width, indent)
        case DataBlock() | ErrorBlock():
            return TextDrawing(block, width, indent, glyphs)


class StreamDrawing:
    """A stream: whole pages of finished lines are measured once, and only what follows them again."""

    def __init__(self, screen: AnsiScreen, width: int, indent: int) -> None:
        self.height: int = 0
        self._screen: AnsiScreen = screen
        self._width: int = width
        self._indent: int = indent
        self._inner: int = max(MINIMUM, width - indent)
        self._pages: Offsets = Offsets()
        self._rest: list[Line] = []
        self._rest_ends: list[int] = []
        self._page_ends: tuple[int, list[int]] = (-1, [])

    def update(self) -> int:
        """Measure what came since the last time."""
        log = self._screen.finished
        unchanged = self._pages.total
        for number in range(len(self._pages), len(log.bounds)):
            fits = log.bounds[number] <= self._inner
            self._pages.set(number, PAGE if fits else sum(heights(log.page(number), self._inner)))
        self._rest = [*log.rest, *self._screen.live]
        self._rest_ends = _ends(self._rest, self._inner)
        self.height = self._pages.total + (self._rest_ends[-1] if self._rest_ends else 0)
        return unchanged

    def row(self, number: int) -> Strip:
        """Draw one row."""
        if number >= self._pages.total:
            return row_of(self._rest, self._rest_ends, number - self._pages.total, self._width, self._indent)
        page, row = self._pages.find(number)
        lines = self._screen.finished.page(page)
        if self._page_ends[0] != page:
            self._page_ends = (page, _ends(lines, self._inner))
        return row_of(lines, self._page_ends[1], row, self._width, self._indent)


class TextDrawing:
    """A result, a display or an error: its lines are kept only while they are on the screen."""

    def __init__(self, block: DataBlock | ErrorBlock, width: int, indent: int, glyphs: Glyphs) -> None:
        self.height: int = 0
        self._block: DataBlock | ErrorBlock = block
        self._width: int = width
        self._indent: int = indent
        self._glyphs: Glyphs = glyphs
        self._text: str = ""

    def update(self) -> int:
        """Measure the block."""
        block = self._block
        self._text = text_of(block.data, self._glyphs) if isinstance(block, DataBlock) else "\n".join(block.traceback)
        self.height = self._measured()[1][-1]
        return 0

    def row(self, number: int) -> Strip:
        """Draw one row."""
        lines, ends = self._measured()
        return row_of(lines, ends, number, self._width, self._indent)

    def _measured(self) -> tuple[list[Line], list[int]]:
        measure = _measure_short if len(self._text) <= _LONG else _measure_long
        return measure(self._text, max(MINIMUM, self._width - self._indent))


def row_of(lines: Sequence[Line], ends: list[int], number: int, width: int, indent: int) -> Strip:
    """Draw one row of lines of which `ends` tells where each one ends."""
    index = bisect_right(ends, number)
    return strips(lines[index], width, indent)[number - (ends[index - 1] if index else 0)]


def _measure(text: str, width: int) -> tuple[list[Line], list[int]]:
    """Give the lines of a text, at least one, and where each ends."""
    lines = coloured_text(text) or [""]
    return lines, _ends(lines, width)


# Lines that are out of sight are not worth their memory: they are made again from the text, which the model keeps.
_LONG: Final = 1 << 16
_measure_short = lru_cache(maxsize=128)(_measure)
_measure_long = lru_cache(maxsize=2)(_measure)


def _ends(lines: list[Line], width: int) -> list[int]:
    """Give for each line the row after its last."""
    return list(accumulate(heights(lines, width)))
