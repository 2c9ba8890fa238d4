"""Take chunks of a program's output apart into text and control functions, however the chunks cut it (ECMA-48)."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final
from unicodedata import category

LONGEST_STRING: Final = 1 << 23
"""Characters after which a control string that nobody ends is given up: more than any picture sent this way."""

LONGEST_PAYLOAD: Final = 4096
"""Characters of a control string that are kept; a longer one is not for us."""

# Characters that a terminal must not be given as they are: controls, halves of surrogate pairs, marks that turn the
# direction of a whole line around, line separators, and what should never be seen. Joiners stay: scripts need them.
_CONTROLS: Final = r"\x00-\x09\x0b-\x1f\x7f-\x9f"
_UNSAFE: Final = (
    r"\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e0fff"
)

SPECIAL: Final = re.compile(f"[{_CONTROLS}{_UNSAFE}]")
"""Finds what is not text; line feeds count as text."""

_TOKEN: Final = re.compile(
    rf"""
    (?P<text>    [^{_CONTROLS}{_UNSAFE}]+ )
  | (?P<csi>     (?: \x1b\[ | \x9b ) (?P<body> [0-?]{{0,64}} [\ -/]{{0,4}} [@-~] ) )
  | (?P<string>  \x1b[\]PX^_] | [\x9d\x90\x98\x9e\x9f] )
  | (?P<escape>  \x1b [\ -/]{{0,4}} [0-OQ-WYZ\\`-~] )
  | (?P<partial> (?: \x1b | (?: \x1b\[ | \x9b ) [0-?]{{0,64}} [\ -/]{{0,4}} | \x1b [\ -/]{{0,4}} ) \Z )
  | (?P<control> [{_CONTROLS}] )
  | (?P<unsafe>  . )
    """,
    re.VERBOSE | re.DOTALL,
)

# What ends a control string: ST, of which ESC is the first half, and CAN and SUB, which call it off. A command ends at
# BEL too, as xterm has it, and a line feed calls it off: a stray introducer swallows one line, not all that follows.
_STRING_END: Final = re.compile(r"[\x9c\x18\x1a]|(?=\x1b)")
_COMMAND_END: Final = re.compile(r"[\x07\x9c\x18\x1a]|(?=[\x1b\n])")


class Kind(Enum):
    """What a piece of output is."""

    TEXT = auto()
    """Text that can be shown as it is, line feeds among it."""

    CONTROL = auto()
    """One control character."""

    CSI = auto()
    """A control sequence: what follows `ESC [`, the final character last."""

    ESCAPE = auto()
    """An escape sequence: what follows ESC."""

    COMMAND = auto()
    """An operating system command (OSC): its payload."""


Token = tuple[Kind, str]


class EscapeParser:
    """Cuts output into tokens. What a chunk leaves unfinished waits for the next; pictures and the like are dropped."""

    def __init__(self) -> None:
        self._pending: str = ""
        self._string: _ControlString | None = None

    @property
    def waits(self) -> bool:
        """Whether the next chunk continues something that is not text."""
        return bool(self._pending) or self._string is not None

    def feed(self, text: str) -> list[Token]:
        """Cut one chunk into tokens."""
        text, self._pending = self._pending + text, ""
        tokens: list[Token] = []
        position = 0
        while position < len(text):
            if self._string is None:
                position = self._outside(text, position, tokens)
            else:
                position = self._inside(self._string, text, position, tokens)
        return tokens

    def _outside(self, text: str, position: int, tokens: list[Token]) -> int:
        """Cut up to the next control string, and give where its content begins."""
        for match in _TOKEN.finditer(text, position):
            kind = match.lastgroup
            if kind == "text":
                tokens.append((Kind.TEXT, match[0]))
            elif kind == "csi":
                tokens.append((Kind.CSI, match["body"]))
            elif kind == "string":
                self._string = _ControlString(is_command=match[0] in ("\x1b]", "\x9d"))
                return match.end()
            else:
                self._rare(kind, match[0], tokens)
        return len(text)

    def _rare(self, kind: str | None, text: str, tokens: list[Token]) -> None:
        match kind:
            case "escape":
                tokens.append((Kind.ESCAPE, text[1:]))
            case "partial":
                self._pending = text
            case "control":
                tokens.append((Kind.CONTROL, text))
            case _:
                tokens.append((Kind.TEXT, visible(text)))

    def _inside(self, string: _ControlString, text: str, position: int, tokens: list[Token]) -> int:
        position = string.feed(text, position)
        if string.ended:
            self._string = None
            if string.payload is not None:
                tokens.append((Kind.COMMAND, string.payload))
        return position


class _ControlString:
    """A string between its introducer and its end."""

    def __init__(self, *, is_command: bool) -> None:
        self.ended: bool = False
        self.payload: str | None = None
        """A command's content, once it has ended as it should and was not too long."""
        self._is_command: bool = is_command
        self._end: re.Pattern[str] = _COMMAND_END if is_command else _STRING_END
        self._kept: str = ""
        self._length: int = 0

    def feed(self, text: str, position: int) -> int:
        """Take what belongs to the string, and give the position behind it."""
        limit = position + LONGEST_STRING - self._length
        end = self._end.search(text, position, limit)
        stop = end.start() if end else min(limit, len(text))
        if self._is_command and self._length <= LONGEST_PAYLOAD:
            self._kept += text[position:stop]
        self._length += stop - position
        self.ended = end is not None or self._length >= LONGEST_STRING
        if end and self._is_command and self._length <= LONGEST_PAYLOAD and text[stop] in "\x07\x1b\x9c":
            self.payload = self._kept
        return end.end() if end else stop


def visible(text: str) -> str:
    """Write characters that a terminal must not be given as they are in such a way that they can be seen.

    Controls become `^[` or `<9b>`, direction marks `<U+202E>`, halves of surrogate pairs the replacement character;
    what has neither width nor meaning is left out.
    """
    return SPECIAL.sub(lambda match: _visible(match[0]), text)


def _visible(character: str) -> str:
    number = ord(character)
    if number < 0x20 or number == 0x7F:
        return f"^{chr(number ^ 0x40)}"
    match category(character):
        case "Cc":
            return f"<{number:02x}>"
        case "Cs":
            return "\N{REPLACEMENT CHARACTER}"
        case "Zl" | "Zp":
            return f"<U+{number:04X}>"
        case _:
            return f"<U+{number:04X}>" if number in _DIRECTIONS else ""


_DIRECTIONS: Final = frozenset((0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
