"""A row of a screen while it is being written."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from unicodedata import category, east_asian_width

from cobnut.model.lines import MARK, Line, join, plain, spans
from cobnut.model.styles import StyleCode

MOST_COMBINING: Final = 8
"""Marks that one character can carry, once the cursor went back into its row."""

NARROW: Final = re.compile(r"[ -~\xa0-\xac\xae-\u02ff\u2190-\u22ff\u2500-\u25fc\u2800-\u28ff]*")
"""Text whose every character is one cell wide, seen quickly: Latin, arrows, mathematics, boxes, blocks, Braille."""

SKIN_TONES: Final = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
"""Modifiers of the emoji before them; they are not drawn, terminals giving them no cells or two."""

_Cell = tuple[str, StyleCode]
_BLANK: Final[_Cell] = (" ", "")


class OpenLine:
    """A line that is being written: pieces while it only grows, cells once the cursor went back into it."""

    __slots__ = ("_parts", "_style", "cells", "length")

    def __init__(self, line: Line) -> None:
        pieces = spans(line) if line else []
        self._parts: list[str] = [line]
        self._style: StyleCode = pieces[-1][1] if pieces else ""
        self.length: int = sum([len(text) for text, _ in pieces])
        """Characters while it only grows, then cells."""
        self.cells: list[_Cell] | None = None

    @property
    def line(self) -> Line:
        """The line as it stands; blanks that were left where something was overwritten are cut off the end."""
        if self.cells is None:
            if len(self._parts) > 1:
                self._parts = ["".join(self._parts)]
            return self._parts[0]
        end = len(self.cells)
        while end and self.cells[end - 1] == _BLANK:
            end -= 1
        return join(self.cells[:end])

    @property
    def width(self) -> int:
        """How many cells the line takes."""
        if self.cells is not None:
            return len(self.cells)
        return width_of(plain(self.line))

    def append(self, text: str, style: StyleCode) -> None:
        """Write at the end of a line that only grows."""
        if style != self._style:
            self._parts.append(f"{MARK}{style}{MARK}")
            self._style = style
        self._parts.append(text)
        self.length += len(text)

    def put(self, column: int, text: str, style: StyleCode) -> int:
        """Write over what is at `column`, and give the column after the text."""
        cells = self._as_cells()
        cells += [_BLANK] * (column - len(cells))
        if NARROW.fullmatch(text):
            new = [(character, style) for character in text]
        else:
            new = _cells(text, style, cells, column)
        self._replace(column, column + len(new), new)
        return column + len(new)

    def erase(self, start: int, end: int | None) -> None:
        """Blank the cells from `start` to before `end`; None is the end of the line, which is cut off."""
        width = self.width
        if start >= width:
            return
        self._as_cells()
        self._replace(start, width if end is None else min(end, width), [] if end is None else None)

    def _replace(self, start: int, end: int, new: list[_Cell] | None) -> None:
        """Put cells in the place of others, None being blanks; half of a wide character left over becomes a blank."""
        cells = self._as_cells()
        if start == end:
            return
        if start < len(cells) and not cells[start][0]:
            cells[start - 1] = (" ", cells[start - 1][1])
            cells[start] = (" ", cells[start][1])
        if end < len(cells) and not cells[end][0]:
            cells[end - 1 : end + 1] = [(" ", cells[end][1])] * 2
        cells[start:end] = [_BLANK] * (end - start) if new is None else new
        self.length = len(cells)

    def _as_cells(self) -> list[_Cell]:
        if self.cells is None:
            cells: list[_Cell] = []
            for text, style in spans(self.line):
                if NARROW.fullmatch(text):
                    cells += [(character, style) for character in text]
                else:
                    cells += _cells(text, style, cells, len(cells))
            self.cells, self.length = cells, len(cells)
        return self.cells


def _cells(text: str, style: StyleCode, before: list[_Cell], column: int) -> list[_Cell]:
    """Make cells of text: a wide character and an empty cell, a character with the marks that combine with it.

    Marks at the beginning of the text join the cell before `column`.
    """
    new: list[_Cell] = []
    for character in text:
        match _width(character):
            case 0:
                if new:
                    _combine(new, len(new), character)
                else:
                    _combine(before, column, character)
            case 1:
                new.append((character, style))
            case _:
                new += [(character, style), ("", style)]
    return new


def _combine(cells: list[_Cell], column: int, mark: str) -> None:
    """Add a mark to the character before `column`, if there is one and it has not had enough of them."""
    index = column - 1
    if index > 0 and not cells[index][0]:
        index -= 1
    if index >= 0 and len(cells[index][0]) <= MOST_COMBINING:
        cells[index] = (cells[index][0] + mark, cells[index][1])


def width_of(text: str) -> int:
    """Give how many cells a text takes."""
    return len(text) if NARROW.fullmatch(text) else sum(map(_width, text))


@lru_cache(maxsize=4096)
def _width(character: str) -> int:
    """Give how many cells a character takes on most terminals."""
    if category(character) in ("Mn", "Me", "Cf") or character in SKIN_TONES:
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
