"""The one place where a terminal's bytes become keys.

Bytes are cut into whole tokens here, and only whole sequences are handed to Textual's parser, which knows their names.
So no sequence is lost where a slow line splits it, no reply of the terminal is typed into the prompt, and Esc followed
by a character is `alt+` that character whenever both arrive together: `Alt+1` and `Esc 1` are the same bytes.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from typing import TYPE_CHECKING, Final

from textual import constants, events
from textual._xterm_parser import XTermParser
from textual.keys import REPLACED_KEYS, key_to_character

if TYPE_CHECKING:
    from textual.message import Message

ESC: Final = "\x1b"
PASTE_START: Final = "\x1b[200~"
PASTE_END: Final = "\x1b[201~"

ESCAPE_DELAY: Final = constants.ESCAPE_DELAY
"""Seconds until an Esc with nothing behind it is the key Esc; the environment's ESCDELAY sets it, in milliseconds."""
SEQUENCE_DELAY: Final = 0.5
"""Seconds that the rest of a sequence that has begun may take: nobody types `Esc [` as fast as a line splits it."""

_SEQUENCE: Final = re.compile(
    r"\x1b(?:"
    r"\[(?:\[[\s\S]|M[\s\S]{3}|(?![\[M])[0-?]*[ -/]*[@-~])"  # CSI; the Linux console's F1, a mouse report of 1981
    r"|O[0-9;]*[@-~]"  # SS3
    r"|(?:\][0-9]|P[0-9>!$+]|_G)[^\x07\x1b]*(?:\x07|\x1b\\)"  # replies in strings: OSC, DCS, kitty's graphics
    r")"
)
_UNFINISHED: Final = re.compile(
    r"\x1b(?:\[(?:\[|M[\s\S]{0,2}|[0-?]*[ -/]*)?|O[0-9;]*|[\]P_]|(?:\][0-9]|P[0-9>!$+]|_G)[^\x07\x1b]*\x1b?)?\Z"
)
_ALTERED: Final = "\r\b"
"""Control characters that mean something of their own behind Esc: Alt+Enter, and Alt+Backspace of some terminals."""
_STRING: Final = re.compile(r"\x1b[\]P_]")
_BEGUN: Final = re.compile(r"\x1b(?:\[[0-?]+[ -/]*|O[0-9;]+|(?:\][0-9]|P[0-9>!$+]|_G)[^\x07\x1b]*)")
_LATE: Final = re.compile(r"\[[0-?]*[ -/]*[@-~]")


def escaped_character(key: str) -> str | None:
    """Return the character behind the Esc of a key such as `alt+1` or `alt+shift+a`; None for other keys."""
    if not key.startswith("alt+"):
        return None
    name = key.removeprefix("alt+")
    if name.startswith("shift+") and len(name) == len("shift+a"):
        return name[-1].upper()
    return key_to_character(REPLACED_KEYS.get(name, name)) if "+" not in name else None


class KeyReader:
    """Turns what a terminal sends into Textual's events; it reads no clock and no file."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        """When `tick` must be called if nothing arrives before; None while nothing is pending."""
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._names = XTermParser()
        self._rest = ""
        self._paste: list[str] | None = None
        self._escaped_at = float("-inf")

    def feed(self, data: bytes, now: float) -> list[Message]:
        """Return the events that are complete with `data`; `now` is a monotonic time in seconds."""
        text = self._decode(data)
        if not self._rest and now - self._escaped_at < SEQUENCE_DELAY and _LATE.fullmatch(text):
            text = ESC + text  # the line has torn an arrow key off its Esc: better an Esc too many than `[A` typed
        held, self._rest = self._rest, ""
        text = held + text
        found: list[Message] = []
        while text:
            text = self._take_paste(text, found) if self._paste is not None else self._take(text, found)
        self._set_deadline(held, now)
        return found

    def tick(self, now: float) -> list[Message]:
        """Return the events of a sequence that did not go on: the key Esc, or Esc and a character."""
        if self.deadline is None or now < self.deadline:
            return []
        rest, self._rest, self.deadline = self._rest, "", None
        if rest == ESC:
            self._escaped_at = now
            return [events.Key("escape", ESC)]
        return [] if _BEGUN.match(rest) else self._alt(rest[1])

    def _set_deadline(self, held: str, now: float) -> None:
        """Set how long to wait; what was `held` before does not get more time by going on and on."""
        if not self._rest or self._paste is not None:
            self.deadline = None
        elif self.deadline is None or held == ESC or not self._rest.startswith(held):
            self.deadline = now + (ESCAPE_DELAY if self._rest == ESC else SEQUENCE_DELAY)

    def _take(self, text: str, found: list[Message]) -> str:
        """Take the first token off `text`; what is not complete waits in the rest."""
        before, escape, _ = text.partition(ESC)
        if before or not escape:
            found += self._names.feed(before)
            return text[len(before) :]
        if match := _SEQUENCE.match(text):
            self._take_sequence(match[0], found)
            return text[match.end() :]
        if _UNFINISHED.match(text):
            self._rest = text
            return ""
        if match := _BEGUN.match(text):
            return text[match.end() :]  # broken off in the middle: noise, and no key of anybody
        if text[1] < " " and text[1] not in _ALTERED:  # Esc and then a key such as ^Q, which has no `alt+` name
            found.append(events.Key("escape", ESC))
            return text[1:]
        found += self._alt(text[1])
        return text[2:]

    def _take_sequence(self, sequence: str, found: list[Message]) -> None:
        if sequence == PASTE_START:
            self._paste = []
        elif sequence != PASTE_END and not _STRING.match(sequence):
            named = list(self._names.feed(sequence))
            if not named:  # a reply that Textual does not know: its parser would wait for more, and take the next keys
                self._names = _renewed(self._names)
            found += named

    def _take_paste(self, text: str, found: list[Message]) -> str:
        """Collect pasted text; its end may be split over two reads."""
        assert self._paste is not None
        pasted, end, after = text.partition(PASTE_END)
        if end:
            whole = "".join([*self._paste, pasted]).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
            self._paste = None
            found.append(events.Paste(whole))
            return after
        held = next((size for size in range(len(PASTE_END) - 1, 0, -1) if pasted.endswith(PASTE_END[:size])), 0)
        self._paste.append(pasted[: len(pasted) - held])
        self._rest = pasted[len(pasted) - held :]
        return ""

    def _alt(self, character: str) -> list[Message]:
        """Name a character that came behind Esc."""
        if character.isupper():
            return [events.Key(f"alt+shift+{character.lower()}", None)]
        keys = [event for event in self._names.feed(character) if isinstance(event, events.Key)]
        return [events.Key(f"alt+{key.key}", None) for key in keys]


def _renewed(parser: XTermParser) -> XTermParser:
    """Return a parser that waits for nothing, and knows where the mouse was."""
    fresh = XTermParser()
    fresh.last_x, fresh.last_y = parser.last_x, parser.last_y
    return fresh
