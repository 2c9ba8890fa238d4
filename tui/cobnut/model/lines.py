"""Lines of styled text, each one string, and the store of those that no longer change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cobnut.model.styles import StyleCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Line = str
"""A styled line: its text, with `ESC code ESC` wherever the style changes. The text itself holds no control character,
so a plain line is just its text, and costs what its text costs."""

Piece = tuple[str, StyleCode]
"""Text in one style."""

MARK: Final = "\x1b"
"""Stands before and after a style's code inside a line. It never leaves the model: `spans` takes lines apart."""

PAGE: Final = 256
"""Lines to a page of the store."""


def spans(line: Line) -> list[Piece]:
    """Take a line apart into pieces of text, each in one style."""
    if MARK not in line:
        return [(line, "")] if line else []
    first, *rest = line.split(MARK)
    pieces = [(first, ""), *zip(rest[1::2], rest[::2], strict=True)]
    return [piece for piece in pieces if piece[0]]


def join(pieces: Iterable[Piece]) -> Line:
    """Make a line of pieces of text, each in one style; the reverse of `spans`."""
    style = ""
    parts: list[str] = []
    for text, code in pieces:
        if text and code != style:
            parts.append(f"{MARK}{code}{MARK}")
            style = code
        parts.append(text)
    return "".join(parts)


def split_lines(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Sort pieces of a text, line feeds among them, into its lines."""
    line: list[Piece] = []
    for text, style in pieces:
        first, *others = text.split("\n")
        line.append((first, style))
        for other in others:
            yield line
            line = [(other, style)]
    yield line


def plain(line: Line) -> str:
    """Give the text of a line without its styles."""
    return "".join(line.split(MARK)[::2])


class LineLog:
    """Append-only store of lines that costs about one byte a character: full pages are kept as UTF-8."""

    def __init__(self) -> None:
        self.bounds: list[int] = []
        """For each full page: no line of it is wider than this many cells."""
        self._pages: list[bytes] = []
        self._rest: list[Line] = []
        self._opened: tuple[int, list[Line]] = (-1, [])

    def __len__(self) -> int:
        return len(self._pages) * PAGE + len(self._rest)

    @property
    def rest(self) -> list[Line]:
        """The lines after the last full page."""
        return self._rest

    def extend(self, lines: Sequence[Line]) -> None:
        """Append lines."""
        self._rest += lines
        full = len(self._rest) // PAGE * PAGE
        for start in range(0, full, PAGE):
            self._seal(self._rest[start : start + PAGE])
        del self._rest[:full]

    def page(self, number: int) -> list[Line]:
        """Give the lines of a full page."""
        if self._opened[0] != number:
            self._opened = (number, self._pages[number].decode().split("\n"))
        return self._opened[1]

    def __iter__(self) -> Iterator[Line]:
        for number in range(len(self._pages)):
            yield from self.page(number)
        yield from self._rest

    def _seal(self, lines: list[Line]) -> None:
        text = "\n".join(lines)
        self.bounds.append(max(map(len, lines)) * (1 if text.isascii() else 2))
        self._pages.append(text.encode())
