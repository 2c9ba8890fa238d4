"""Styled lines, wrapped to a width in cells, as strips."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, get_character_cell_size
from rich.color import Color
from rich.segment import Segment
from rich.style import Style as RichStyle
from textual.strip import Strip

from cobnut.model import styles
from cobnut.model.lines import MARK, Line, Piece, join, plain, spans
from cobnut.model.rows import SKIN_TONES
from cobnut.model.styles import Style, StyleCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MINIMUM: Final = 2
"""Cells that text is given however narrow the screen is: enough for a wide character."""

# Terminals disagree about what these do to the width of their neighbours, so they are not sent.
_UNSURE: Final = f"\N{ZERO WIDTH JOINER}{SKIN_TONES}{''.join(map(chr, range(0xFE00, 0xFE10)))}"

# Of two of these some terminals make a flag; by themselves they take a cell or two. Letters say the same everywhere.
_FLAG_LETTERS: Final = {0x1F1E6 + number: chr(ord("A") + number) for number in range(26)}

_SENT: Final = str.maketrans(_FLAG_LETTERS | dict.fromkeys(map(ord, _UNSURE), ""))


def heights(lines: Sequence[Line], width: int) -> list[int]:
    """Count the rows that each line takes; most lines are plain, and their lengths are their widths."""
    return [
        (-(-len(line) // width) or 1) if line.isascii() and MARK not in line else len(wrap(line, width))
        for line in lines
    ]


def wrap(line: Line, width: int, first: int | None = None) -> list[list[Piece]]:
    """Cut a line into rows of at most `width` cells, the first of at most `first`; no wide character is cut in two."""
    rows: list[list[Piece]] = [[]]
    room = width if first is None else first
    for text, style in spans(line):
        for piece, cells in _cut(sent(text), room, width):
            if cells > room:
                rows.append([])
                room = width
            rows[-1].append((piece, style))
            room -= cells
    return rows


def wrap_words(line: Line, width: int) -> list[list[Piece]]:
    """Cut a line into rows at its blanks; only a word that is wider than a row is cut itself."""
    pieces = spans(line)
    rows: list[list[Piece]] = []
    for part in _word_rows(plain(line), width):
        rows += wrap(join(_slice(pieces, part)), width)
    return rows


def _word_rows(text: str, width: int) -> Iterator[slice]:
    """Find the stretches of a text that fill rows with whole words; the blanks between rows belong to none."""
    start = stop = 0
    for word in _WORD.finditer(text):
        if stop > start and cell_len(sent(text[start : word.end()])) > width:
            yield slice(start, stop)
            start = word.start()
        stop = word.end()
    yield slice(start, stop)


_WORD: Final = re.compile("[^ ]+")


def _slice(pieces: list[Piece], part: slice) -> Iterator[Piece]:
    """Give a stretch of a text that is in pieces."""
    offset = 0
    for text, style in pieces:
        yield text[max(0, part.start - offset) : max(0, part.stop - offset)], style
        offset += len(text)


def sent(text: str) -> str:
    """Give what is sent of a text to a terminal: characters whose widths add up whether or not it joins emoji."""
    return text if text.isascii() else text.translate(_SENT)


def _cut(text: str, room: int, width: int) -> Iterator[tuple[str, int]]:
    """Cut text into pieces that fill the room left in a row, and then whole rows; give their widths with them."""
    if text.isascii():
        if room > 0 and text:
            yield text[:room], min(room, len(text))
        for start in range(max(0, room), len(text), width):
            yield text[start : start + width], min(width, len(text) - start)
        return
    start = cells = 0
    for index, character in enumerate(text):
        size = get_character_cell_size(character)
        if cells + size > room:
            if index > start:
                yield text[start:index], cells
            start, cells, room = index, 0, width
        cells += size
    if start < len(text):
        yield text[start:], cells


def strips(line: Line, width: int, indent: int = 0) -> tuple[Strip, ...]:
    """Draw a line as strips of exactly `width` cells, indented; those of the lines drawn last are kept."""
    draw = _strips if len(line) <= _LONG else _strips_of_long_line
    return draw(line, width, indent)


def _draw(line: Line, width: int, indent: int) -> tuple[Strip, ...]:
    return tuple(strip(row, width, indent) for row in wrap(line, max(MINIMUM, width - indent)))


# What is kept is bounded in strips, not only in lines: a strip takes two kilobytes, and a line may have hundreds.
_LONG: Final = 512
_strips = lru_cache(maxsize=512)(_draw)
_strips_of_long_line = lru_cache(maxsize=16)(_draw)


def strip(row: list[Piece], width: int, indent: int = 0) -> Strip:
    """Draw one row as a strip of exactly `width` cells."""
    segments = [Segment(" " * indent)] if indent else []
    segments += [Segment(text, rich_style(style)) for text, style in row]
    missing = width - indent - sum(cell_len(text) for text, _ in row)
    if missing < 0:
        return Strip(segments).adjust_cell_length(width)
    if missing:
        segments.append(Segment(" " * missing))
    return Strip(segments, width)


@lru_cache(maxsize=4096)
def rich_style(code: StyleCode) -> RichStyle:
    """Give the style as Textual draws it."""
    style = Style.from_code(code)
    attributes = style.attributes
    return RichStyle(
        color=_colour(style.foreground),
        bgcolor=_colour(style.background),
        bold=bool(attributes & styles.BOLD) or None,
        dim=bool(attributes & styles.DIM) or None,
        italic=bool(attributes & styles.ITALIC) or None,
        underline=bool(attributes & styles.UNDERLINE) or None,
        reverse=bool(attributes & styles.REVERSE) or None,
        strike=bool(attributes & styles.STRIKE) or None,
        link=style.link or None,
    )


def _colour(colour: int | None) -> Color | None:
    if colour is None:
        return None
    if colour & styles.TRUECOLOR:
        return Color.from_rgb(colour >> 16 & 255, colour >> 8 & 255, colour & 255)
    return Color.from_ansi(colour)
