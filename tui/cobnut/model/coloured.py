"""Text that comes whole, such as results and tracebacks: colours take effect, nothing else moves or erases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cobnut.model.ansi import LONGEST_LINE, SAFE_LINK
from cobnut.model.escapes import SPECIAL, visible
from cobnut.model.lines import Line, join, split_lines
from cobnut.model.rows import width_of
from cobnut.model.styles import StyleCode, relink, restyle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut.model.lines import Piece

_TAB: Final = 8

# SGR, and the beginning or end of a hyperlink (OSC 8).
_STYLING: Final = re.compile(
    r"\x1b\[([0-9:;]{0,64})m | \x1b\]8;[^;\x00-\x1f\x7f-\x9f]{0,256};([!-~]{0,2048})(?:\x07|\x1b\\)", re.VERBOSE
)


def coloured_text(text: str) -> list[Line]:
    """Read a text whose colours and links count; every other control function is shown as characters.

    What an error message quotes must not hide the traceback above it, so nothing here can erase or overwrite.
    """
    if len(text) <= LONGEST_LINE and not SPECIAL.search(text):
        lines = text.split("\n")
    else:
        pieces = _styled(text.replace("\r\n", "\n"))
        lines = [join(part) for line in split_lines(pieces) for part in _broken(_shown(line))]
    return lines if lines[-1] else lines[:-1]


def _styled(text: str) -> Iterator[Piece]:
    """Cut a text where its style changes."""
    style: StyleCode = ""
    position = 0
    for match in _STYLING.finditer(text):
        yield text[position : match.start()], style
        parameters, link = match.groups()
        if parameters is None:
            style = relink(style, link if SAFE_LINK.fullmatch(link) else "")
        else:
            style = restyle(style, parameters)
        position = match.end()
    yield text[position:], style


def _shown(line: list[Piece]) -> Iterator[Piece]:
    """Expand the tabs of a line, and make its controls visible."""
    column = 0
    has_tabs = any("\t" in text for text, _ in line)
    for text, style in line:
        first, *others = text.split("\t")
        yield visible(first), style
        column += width_of(visible(first)) if has_tabs else 0
        for other in others:
            yield " " * (_TAB - column % _TAB), ""
            yield visible(other), style
            column = width_of(visible(other))


def _broken(line: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Break a line that is too long, so that one line can never be the whole text."""
    part: list[Piece] = []
    room = LONGEST_LINE
    for text, style in line:
        start = 0
        while len(text) - start > room:
            part.append((text[start : start + room], style))
            start += room
            yield part
            part, room = [], LONGEST_LINE
        part.append((text[start:], style))
        room -= len(text) - start
    yield part
