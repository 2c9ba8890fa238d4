"""How text looks: colours and attributes, and what a terminal's SGR sequence changes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

TRUECOLOR: Final = 1 << 24
"""Set in a colour that is red, green and blue; without it a colour is an index of the terminal's 256."""

BOLD: Final = 1
DIM: Final = 2
ITALIC: Final = 4
UNDERLINE: Final = 8
REVERSE: Final = 16
STRIKE: Final = 32

StyleCode = str
"""A style written small: `attributes;foreground;background;link`, and nothing at all for the default style."""

_SET: Final = {1: BOLD, 2: DIM, 3: ITALIC, 4: UNDERLINE, 7: REVERSE, 9: STRIKE, 21: UNDERLINE}
_UNSET: Final = {22: BOLD | DIM, 23: ITALIC, 24: UNDERLINE, 27: REVERSE, 29: STRIKE}


@dataclass(frozen=True, slots=True)
class Style:
    """One way to show text; a colour is an index of the terminal's 256, or `TRUECOLOR | 0xRRGGBB`."""

    foreground: int | None = None
    background: int | None = None
    attributes: int = 0
    link: str = ""

    @property
    def code(self) -> StyleCode:
        """The style written small."""
        if self == _DEFAULT:
            return ""
        colours = ("" if colour is None else str(colour) for colour in (self.foreground, self.background))
        return ";".join((str(self.attributes), *colours, self.link))

    @classmethod
    def from_code(cls, code: StyleCode) -> Style:
        """Read a style that `code` wrote."""
        if not code:
            return _DEFAULT
        attributes, *colours, link = code.split(";", 3)
        foreground, background = (int(colour) if colour else None for colour in colours)
        return cls(foreground, background, int(attributes), link)


_DEFAULT: Final = Style()


@lru_cache(maxsize=4096)
def restyle(code: StyleCode, parameters: str) -> StyleCode:
    """Apply the parameters of an SGR sequence, such as `1;38;5;208`, to a style (ECMA-48 8.3.117, ISO 8613-6)."""
    style = Style.from_code(code)
    fields = (parameters or "0").split(";")
    while fields:
        style = _apply(style, fields)
    return style.code


@lru_cache(maxsize=1024)
def relink(code: StyleCode, link: str) -> StyleCode:
    """Give a style another link, or none."""
    return replace(Style.from_code(code), link=link).code


def _apply(style: Style, fields: list[str]) -> Style:
    """Take one attribute from the front of `fields` and apply it."""
    number, *subfields = (_number(field) for field in fields.pop(0).split(":"))
    match number:
        case 0:
            return Style(link=style.link)
        case 4 if subfields and subfields[0] == 0:
            return replace(style, attributes=style.attributes & ~UNDERLINE)
        case _ if number in _SET:
            return replace(style, attributes=style.attributes | _SET[number])
        case _ if number in _UNSET:
            return replace(style, attributes=style.attributes & ~_UNSET[number])
        case 38 | 48:
            return _coloured(style, number, _colour(subfields) if subfields else _colour_in(fields))
        case _:
            return _basic_colour(style, number)


def _basic_colour(style: Style, number: int) -> Style:
    """Apply one of the sixteen colours, or the default colour."""
    base, index = number // 10 * 10, number % 10
    match base:
        case 30 | 40 if index == 9:
            return _coloured(style, base, None)
        case 30 | 40 if index < 8:
            return _coloured(style, base, index)
        case 90 | 100 if index < 8:
            return _coloured(style, base - 60, index + 8)
        case _:
            return style


def _coloured(style: Style, number: int, colour: int | None) -> Style:
    return replace(style, foreground=colour) if number < 40 else replace(style, background=colour)


def _colour_in(fields: list[str]) -> int | None:
    """Take `5;n` or `2;r;g;b` from the front of `fields`: xterm's spelling, with semicolons."""
    count = {"5": 2, "2": 4}.get(fields[0], 1) if fields else 0
    taken, fields[:] = fields[:count], fields[count:]
    return _colour([_number(field) for field in taken])


def _colour(numbers: list[int]) -> int | None:
    """Read `5:n`, `2:r:g:b` or `2:space:r:g:b`; None where it is none of these."""
    match numbers:
        case [5, index] if index < 256:
            return index
        case [2, red, green, blue] | [2, _, red, green, blue, *_] if max(red, green, blue) < 256:
            return TRUECOLOR | red << 16 | green << 8 | blue
        case _:
            return None


def _number(field: str) -> int:
    return int(field) if field.isdecimal() else 0
