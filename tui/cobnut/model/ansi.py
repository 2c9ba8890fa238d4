"""A small terminal for each stream: chunks of output in, styled lines out."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cobnut.model.escapes import SPECIAL, EscapeParser, Kind
from cobnut.model.lines import MARK, Line, LineLog, plain
from cobnut.model.rows import NARROW, OpenLine
from cobnut.model.styles import StyleCode, relink, restyle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REACH: Final = 200
"""Rows of the screen: how far up from the last line the cursor can go."""

LONGEST_LINE: Final = 1 << 14
"""Characters after which a line is broken, so that one line can never be the whole output."""

LAST_COLUMN: Final = 1000
"""How far right the cursor can be sent where there is no text."""

_TAB: Final = 8
SAFE_LINK: Final = re.compile(r"(?:https?://|mailto:)[!-~]+")
"""Links that are worth following: to the web and to mail."""

_SGR: Final = re.compile(r"\x1b\[([0-9:;]{0,64})m")
_TABBED: Final = re.compile(NARROW.pattern.replace("[", r"[\n\t", 1))


class AnsiScreen:
    """A terminal of `REACH` rows, without a right margin, and with a memory.

    Lines that the cursor can no longer reach go to `finished` and stay as they are; `live` are the others.
    """

    def __init__(self) -> None:
        self.finished: LineLog = LineLog()
        self._parser: EscapeParser = EscapeParser()
        self._rows: list[Line] = [""]
        self._top: int = 0
        """The first row that the cursor can reach."""
        self._row: int = 0
        """The cursor's row; it may lie below the last until something is written there."""
        self._column: int | None = None
        """The cursor's column; None is the end of its row."""
        self._open: OpenLine = OpenLine("")
        """The cursor's row, as it is being written."""
        self._style: StyleCode = ""
        self._saved: tuple[int, int, StyleCode] = (0, 0, "")

    def __iter__(self) -> Iterator[Line]:
        yield from self.finished
        yield from self.live

    @property
    def live(self) -> list[Line]:
        """The lines after the finished ones; the last is left out while it is empty."""
        if self._row < len(self._rows):
            self._rows[self._row] = self._open.line
        return self._rows if self._rows and self._rows[-1] else self._rows[:-1]

    def feed(self, text: str) -> None:
        """Take one chunk of output."""
        text = text.replace("\r\n", "\n")
        if "\t" in text:
            text = self._expand_tabs(text)
        if not self._parser.waits and not SPECIAL.search(text):
            self._text(text)
        elif "\x1b[" in text and text.count("\n") > 2:
            self._coloured_text(text)
        else:
            self._tokens(text)
        self._settle()

    def _tokens(self, text: str) -> None:
        for kind, content in self._parser.feed(text):
            if kind is Kind.TEXT:
                self._text(content)
            else:
                _TAKE[kind](self, content)

    def _coloured_text(self, text: str) -> None:
        """Take the whole lines in the middle of a chunk at once where colours are all that they tell the terminal."""
        first, _, rest = text.partition("\n")
        middle, _, last = rest.rpartition("\n")
        self._tokens(f"{first}\n")
        pieces = _SGR.split(middle)
        simple = self._is_at_new_row and not self._parser.waits and not SPECIAL.search("".join(pieces[::2]))
        rows, style = coloured_lines(pieces, self._style) if simple else ([], "")
        if rows and max(map(len, rows)) <= LONGEST_LINE:
            self._append_rows(rows)
            self._style = style
            self._tokens(last)
        else:
            self._tokens(f"{middle}\n{last}")

    # What the tokens do

    def _text(self, text: str) -> None:
        if "\n" not in text:
            self._write(text)
            return
        first, *middle, last = text.split("\n")
        self._write(first)
        self._newline()
        if middle and self._is_at_new_row and max(map(len, middle)) <= LONGEST_LINE:
            prefix = f"{MARK}{self._style}{MARK}" if self._style else ""
            self._append_rows([prefix + line if line else "" for line in middle] if prefix else middle)
        else:
            for line in middle:
                self._write(line)
                self._newline()
        self._write(last)

    def _control(self, character: str) -> None:
        match character:
            case "\r":
                self._column = 0 if self._open.length else None
            case "\b":
                self._column = max(0, self._column_number() - 1)
            case "\t":
                self._tab()
            case "\v" | "\f" | "\x84" | "\x85":
                self._newline()
            case "\x8d":
                self._go(self._row - 1, self._column_number())
            case _:
                pass  # a terminal ignores them or rings

    def _escape(self, sequence: str) -> None:
        match sequence:
            case "7":
                self._save()
            case "8":
                self._restore()
            case "D" | "E":
                self._newline()
            case "M":
                self._go(self._row - 1, self._column_number())
            case "c":
                self._style = ""
                self._erase_display(2)
                self._go(self._top, 0)
            case _:
                pass  # character sets, keypad modes: nothing to see

    def _command(self, payload: str) -> None:
        """Follow a hyperlink's beginning or end (OSC 8); only links to the web and to mail are kept."""
        if payload.startswith("8;"):
            link = payload.split(";", 2)[-1]
            self._style = relink(self._style, link if SAFE_LINK.fullmatch(link) else "")

    def _csi(self, body: str) -> None:
        final, parameters = body[-1], body[:-1]
        numbers = _numbers(parameters)
        if numbers is None:
            return  # a private mode, or one with intermediate characters
        if final == "m":
            self._style = restyle(self._style, parameters)
        elif final in "ABCDEFGHadefjk`":
            self._move(final, *numbers)
        elif action := _ACTIONS.get(final):
            action(self, numbers[0])

    # The cursor

    def _move(self, final: str, first: int, second: int = 0) -> None:
        count, row, column = max(1, first), self._row, self._column_number()
        match final:
            case "A" | "k" | "B" | "e":
                self._go(row + (count if final in "Be" else -count), column)
            case "C" | "a" | "D" | "j":
                self._go(row, column + (count if final in "Ca" else -count))
            case "E" | "F":
                self._go(row + (count if final == "E" else -count), 0)
            case "G" | "`":
                self._go(row, count - 1)
            case _:  # d, H, f
                self._go(self._top + count - 1, column if final == "d" else max(1, second) - 1)

    def _go(self, row: int, column: int) -> None:
        row = min(max(row, self._top), self._top + REACH - 1)
        if row != self._row:
            self._close()
            self._row = row
            self._open = OpenLine(self._rows[row] if row < len(self._rows) else "")
        width = self._open.width
        column = max(0, min(column, max(LAST_COLUMN, width)))
        self._column = None if column == width else column

    def _column_number(self) -> int:
        return self._open.width if self._column is None else self._column

    def _save(self, _number: int = 0) -> None:
        self._saved = (self._row - self._top, self._column_number(), self._style)

    def _restore(self, _number: int = 0) -> None:
        row, column, self._style = self._saved
        self._go(self._top + row, column)

    # Writing and erasing

    def _write(self, text: str) -> None:
        """Write text without line feeds at the cursor."""
        while text:
            self._extend_to_cursor()
            room = LONGEST_LINE - (self._open.length if self._column is None else self._column)
            if room <= 0:
                self._newline()
                continue
            if self._column is None and self._open.cells is None:
                piece, text = text[:room], text[room:]
                self._open.append(piece, self._style)
            else:
                room = max(1, room // 2)  # each character may take two columns
                piece, text = text[:room], text[room:]
                self._column = self._open.put(self._column_number(), piece, self._style)

    def _newline(self) -> None:
        self._extend_to_cursor()
        self._close()
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append("")
            self._raise_top()
        self._open = OpenLine(self._rows[self._row])
        self._column = 0 if self._open.length else None

    @property
    def _is_at_new_row(self) -> bool:
        """Whether the cursor is on the last row, and nothing is written there."""
        return self._column is None and self._row == len(self._rows) - 1 and not self._open.length

    def _append_rows(self, lines: list[Line]) -> None:
        """Append whole lines, the cursor being on the last row, which is empty."""
        self._rows[-1:] = [*lines, ""]
        self._row = len(self._rows) - 1
        self._raise_top()

    def _extend_to_cursor(self) -> None:
        if self._row >= len(self._rows):
            self._rows += [""] * (self._row + 1 - len(self._rows))

    def _close(self) -> None:
        if self._row < len(self._rows):
            self._rows[self._row] = self._open.line

    def _raise_top(self) -> None:
        self._top = max(self._top, len(self._rows) - REACH)

    def _settle(self) -> None:
        """Hand over the rows that the cursor cannot reach any more, many at a time."""
        if self._top >= REACH:
            self.finished.extend(self._rows[: self._top])
            del self._rows[: self._top]
            self._row -= self._top
            self._top = 0

    def _tab(self) -> None:
        """Go to the next tab stop; at the end of a row with spaces, so that the text keeps its columns when copied."""
        column = self._column_number()
        stop = (column // _TAB + 1) * _TAB
        if self._column is not None:
            self._go(self._row, stop)
            return
        style, self._style = self._style, ""
        self._write(" " * (stop - column))
        self._style = style

    def _expand_tabs(self, text: str) -> str:
        """Do what `_tab` would, for many at once, where the text is as simple as tables are."""
        simple = self._column is None and not self._style and not self._parser.waits
        if not (simple and _TABBED.fullmatch(text) and NARROW.fullmatch(plain(self._open.line))):
            return text
        offset = self._open.length % _TAB
        return (" " * offset + text).expandtabs(_TAB)[offset:]

    def _erase_line(self, part: int) -> None:
        column = self._column_number()
        match part:
            case 0:
                self._open.erase(column, None)
            case 1:
                self._open.erase(0, column + 1)
            case 2:
                self._open = OpenLine("")
            case _:
                return
        self._column = None if column == self._open.width else column

    def _erase_display(self, part: int) -> None:
        match part:
            case 0:
                self._erase_line(0)
                del self._rows[self._row + 1 :]
            case 1:
                self._rows[self._top : self._row] = [""] * len(self._rows[self._top : self._row])
                self._erase_line(1)
            case 2:
                self._erase_line(2)
                del self._rows[self._top :]
            case _:
                pass  # 3 would forget what scrolled out: a notebook remembers


def coloured_lines(pieces: list[str], style: StyleCode) -> tuple[list[Line], StyleCode]:
    """Make lines of text between which SGR parameters stand, and give the style at the end with them."""
    rows: list[Line] = []
    row = written = ""
    for index in range(0, len(pieces), 2):
        if index:
            style = restyle(style, pieces[index - 1])
        first, *others = pieces[index].split("\n")
        if first:
            row += first if style == written else f"{MARK}{style}{MARK}{first}"
            written = style
        if others:
            prefix = f"{MARK}{style}{MARK}" if style else ""
            *whole, last = (prefix + line if line else "" for line in others)
            rows += [row, *whole]
            row, written = last, style if last else ""
    return [*rows, row], style


@lru_cache(maxsize=4096)
def _numbers(parameters: str) -> tuple[int, ...] | None:
    """Read the parameters of a control sequence, an absent one as 0; None where they are private ones."""
    if not _PARAMETERS.fullmatch(parameters):
        return None
    return tuple(int(field) if field.isdecimal() else 0 for field in parameters.split(";"))[:2]


_PARAMETERS: Final = re.compile("[0-9;:]*")

_TAKE: Final[dict[Kind, Callable[[AnsiScreen, str], None]]] = {
    Kind.CONTROL: AnsiScreen._control,
    Kind.CSI: AnsiScreen._csi,
    Kind.ESCAPE: AnsiScreen._escape,
    Kind.COMMAND: AnsiScreen._command,
}

_ACTIONS: Final[dict[str, Callable[[AnsiScreen, int], None]]] = {
    "J": AnsiScreen._erase_display,
    "K": AnsiScreen._erase_line,
    "s": AnsiScreen._save,
    "u": AnsiScreen._restore,
}
