"""A plain xterm as data: bytes in, a screen (pyte's) and the answers to the program's questions out."""

from __future__ import annotations

import codecs
import copy
import re
import unicodedata
from typing import TYPE_CHECKING

import pyte
from wcwidth import wcwidth

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f]+)"
    r"|\x1b\[(?P<prefix>[<-?]?)(?P<params>[0-9;:]*)(?P<final>[ -/]*[@-~])"
    r"|\x1b(?P<kind>[\]P_^X])(?P<body>[^\x07\x1b]*)(?:\x07|\x1b\\)"
    r"|\x1b(?P<charset>[ -/]+)[0-~]"
    r"|\x1b(?P<escape>[0-OQ-WYZ\\`-~])"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f\x7f])"
)
"""One thing that a terminal understands: text, a CSI, a string (OSC, DCS, APC, PM, SOS), another escape, a control."""
_CUT = re.compile(r"\x1b(?:\[[<-?]?[0-9;:]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)\Z")
"""The beginning of a sequence whose rest is still to come."""
_QUESTION = re.compile(rb"\x1b\[[<-?]?[0-9;]*(?:[cntq]|\$p)|\x1b[\]P]")
"""What may want an answer: a report, a mode, a size, or any OSC and DCS."""
_LONGEST_QUESTION = 32

_CELL = (16, 8)  # pixels, high and wide
_ALTERNATE = frozenset({47, 1047, 1049})
_PYTE_MODES = frozenset({5, 6, 7, 25})  # not 3, which resizes pyte's screen: an xterm ignores it by default
_XTERM_MODES = frozenset({1, 3, 4, 5, 6, 7, 9, 12, 25, 40, 45, 47, 66, 67, 69, 2004}) | frozenset(
    {1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1015, 1016, 1034, 1035, 1036, 1039, 1047, 1048, 1049}
)
_CSI = {
    **pyte.Stream.csi,
    "S": "scroll_up",
    "T": "scroll_down",
    "b": "repeat",
    "s": "save_cursor",
    "u": "restore_cursor",
}
_PARAMETERS = {"H": 2, "f": 2, "r": 2, "m": None, "h": None, "l": None, "s": 0, "u": 0}
"""How many parameters a CSI takes; one where it is not named."""


class Screen(pyte.Screen):
    """pyte's screen with what full-screen programs use beside: the other screen, scrolling, repetition."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines)
        self._main: tuple[dict[int, object], pyte.screens.Cursor] | None = None
        self._last = ""

    @property
    def text_lines(self) -> list[str]:
        """Return the text of each line without the blanks at its end; `display`, ten times faster."""
        rows = [self.buffer[y] for y in range(self.lines)]
        return ["".join([row[x].data for x in range(self.columns)]).rstrip() for row in rows]

    def draw(self, data: str) -> None:
        """Draw text; what has no width and combines with nothing is left out, where pyte drops all that follows."""
        if not data.isascii():
            data = "".join(char for char in data if wcwidth(char) > 0 or unicodedata.combining(char))
        super().draw(data)
        self._last = data[-1:]

    def repeat(self, count: int = 1) -> None:
        """Draw the last character again (REP)."""
        self.draw(self._last * (count or 1))

    def scroll_up(self, count: int = 1) -> None:
        """Scroll the region between the margins up (SU); the cursor stays."""
        self._scroll(count, self.delete_lines)

    def scroll_down(self, count: int = 1) -> None:
        """Scroll the region between the margins down (SD); the cursor stays."""
        self._scroll(count, self.insert_lines)

    def _scroll(self, count: int, shift: Callable[[int], None]) -> None:
        column, line = self.cursor.x, self.cursor.y
        self.cursor.y = self.margins.top if self.margins else 0
        shift(count or 1)
        self.cursor.x, self.cursor.y = column, line

    def show_alternate(self, on: bool) -> None:
        """Change to the alternate screen, which is empty then, or back to the main one as it was left."""
        if on and self._main is None:
            self._main = (dict(self.buffer), copy.copy(self.cursor))
            self.buffer.clear()
        elif not on and self._main is not None:
            self.buffer.clear()
            self.buffer.update(self._main[0])
            self.cursor, self._main = self._main[1], None
            self.ensure_hbounds()
            self.ensure_vbounds()


class Emulator:
    """Show on a screen what a program writes, and answer its questions as a plain xterm does.

    Bytes are kept until somebody looks at the screen or the program asks something, so a flood costs the program
    under test no waiting for pyte. Sequences may be cut anywhere. What a plain xterm does not know (synchronised
    output, the kitty keyboard) is swallowed and not answered.

    Source: "XTerm Control Sequences" by Moy, Gildea and Dickey.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self._screen = Screen(columns, lines)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._backlog = bytearray()
        self._cut = ""
        self._answers = bytearray()
        self._modes = {7, 25}

    @property
    def screen(self) -> Screen:
        """Return the screen with everything on it that was fed."""
        self._catch_up()
        return self._screen

    @property
    def modes(self) -> frozenset[int]:
        """Return the private modes that are set: 7 and 25 at the start; 1049 the other screen, 2004 bracketed paste."""
        self._catch_up()
        return frozenset(self._modes)

    def feed(self, data: bytes) -> bytes:
        """Take what the program wrote and return what the terminal answers at once."""
        seen = len(self._backlog)
        self._backlog += data
        if self._cut or _QUESTION.search(self._backlog, max(0, seen - _LONGEST_QUESTION)):
            self._catch_up()
        answers = bytes(self._answers)
        self._answers.clear()
        return answers

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the screen, as a user does who drags the window's corner."""
        self.screen.resize(lines, columns)

    def _catch_up(self) -> None:
        if not self._backlog:
            return
        text = self._cut + self._decoder.decode(self._backlog)
        self._backlog.clear()
        position = 0
        while position < len(text) and not (text[position] == "\x1b" and _CUT.match(text, position)):
            token = _TOKEN.match(text, position)
            position = token.end() if token else position + 1
            if token:
                self._take(token)
        self._cut = text[position:]

    def _take(self, token: re.Match[str]) -> None:
        if token["text"]:
            self._screen.draw(token["text"])
        elif token["control"]:
            self._call(pyte.Stream.basic.get(token["control"]))
        elif token["final"]:
            self._csi(token["prefix"], token["params"], token["final"])
        elif token["kind"]:
            self._string(token["kind"], token["body"])
        elif token["escape"]:
            if token["escape"] == "c":
                self._modes = {7, 25}
            self._call(pyte.Stream.escape.get(token["escape"]))

    def _call(self, name: str | None, *params: int) -> None:
        if name not in (None, "shift_in", "shift_out"):  # character sets are not changed in UTF-8
            getattr(self._screen, name)(*params)

    def _csi(self, prefix: str, params: str, final: str) -> None:
        numbers = [min(int(number or 0), 9999) for number in re.split("[;:]", params)]
        if final in _ANSWERS:
            self._answer(_ANSWERS[final](self, prefix, numbers[0]))
        elif prefix == "?" and final in "hl":
            self._set_modes(numbers, final == "h")
        elif prefix:
            pass  # the keyboard protocols and other private things of some terminals
        elif final == "m":
            self._screen.select_graphic_rendition(*_rendition(params))
        else:
            self._call(_CSI.get(final), *numbers[: _PARAMETERS.get(final, 1)])

    def _set_modes(self, numbers: list[int], on: bool) -> None:
        for number in numbers:
            (self._modes.add if on else self._modes.discard)(number)
            if number in _PYTE_MODES:
                (self._screen.set_mode if on else self._screen.reset_mode)(number, private=True)
            elif number in _ALTERNATE:
                self._screen.show_alternate(on)

    def _string(self, kind: str, body: str) -> None:
        number, _, rest = body.partition(";")
        if kind == "]" and number in ("0", "2"):
            self._screen.set_title(rest)
        elif kind == "]" and number in ("10", "11", "12") and rest == "?":
            self._answer(f"\x1b]{number};rgb:{'0000/0000/0000' if number == '11' else 'e5e5/e5e5/e5e5'}\x1b\\")
        elif kind == "P" and body.startswith("$q"):
            self._answer("\x1bP0$r\x1b\\")

    def _answer(self, text: str) -> None:
        self._answers += text.encode()

    def _device_attributes(self, prefix: str, number: int) -> str:
        attributes = {"": "\x1b[?64;1;2;6;9;15;16;17;18;21;22;28c", ">": "\x1b[>41;370;0c"}
        return attributes.get(prefix, "") if number == 0 else ""

    def _status(self, prefix: str, number: int) -> str:
        cursor = self._screen.cursor
        position = f"\x1b[{prefix}{cursor.y + 1};{min(cursor.x + 1, self._screen.columns)}R"
        return {5: "\x1b[0n", 6: position}.get(number, "") if prefix in ("", "?") else ""

    def _mode_state(self, prefix: str, number: int) -> str:
        state = 0 if number not in _XTERM_MODES else 1 if number in self._modes else 2
        return f"\x1b[?{number};{state}$y" if prefix == "?" else f"\x1b[{number};0$y"

    def _version(self, prefix: str, number: int) -> str:
        return "\x1bP>|XTerm(370)\x1b\\" if (prefix, number) == (">", 0) else ""

    def _size(self, _prefix: str, number: int) -> str:
        lines, columns = self._screen.lines, self._screen.columns
        pixels, cell = f"\x1b[4;{lines * _CELL[0]};{columns * _CELL[1]}t", f"\x1b[6;{_CELL[0]};{_CELL[1]}t"
        return {14: pixels, 16: cell, 18: f"\x1b[8;{lines};{columns}t"}.get(number, "")


_ANSWERS: dict[str, Callable[[Emulator, str, int], str]] = {
    "c": Emulator._device_attributes,
    "n": Emulator._status,
    "$p": Emulator._mode_state,
    "q": Emulator._version,
    "t": Emulator._size,
}


def _rendition(params: str) -> list[int]:
    """Return SGR parameters as pyte reads them: no colons, no colour of the underline."""
    fields = params.replace("::", ":").split(";")
    numbers: list[int] = []
    while fields:
        number, *details = [int(part or 0) for part in fields.pop(0).split(":")]
        if number in (38, 48, 58) and not details:
            length = 2 if fields[:1] == ["5"] else 4
            details, fields = [int(part or 0) for part in fields[:length]], fields[length:]
        if number in (38, 48):
            numbers += [number, *details]
        elif number != 58:
            numbers.append(24 if number == 4 and details == [0] else number)
    return numbers
