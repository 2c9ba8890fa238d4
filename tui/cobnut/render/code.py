"""Code, coloured by Pygments with the terminal's own sixteen colours, as styled lines."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cobnut.model.escapes import visible
from cobnut.model.lines import Line, join, split_lines
from cobnut.model.styles import BOLD, DIM, ITALIC, Style, StyleCode

if TYPE_CHECKING:
    from pygments.lexer import Lexer

LONGEST: Final = 100_000
"""Characters of code beyond which it is shown without colours."""

_TAB: Final = 4

# By the beginning of the token type's name; the longest one holds. Words and layout carry the meaning: a terminal
# without colours loses nothing.
_STYLES: Final[dict[str, StyleCode]] = {
    "Comment": Style(attributes=DIM | ITALIC).code,
    "Keyword": Style(foreground=5, attributes=BOLD).code,
    "Keyword.Constant": Style(foreground=6).code,
    "Literal.Number": Style(foreground=6).code,
    "Literal.String": Style(foreground=2).code,
    "Literal.String.Doc": Style(foreground=2, attributes=ITALIC).code,
    "Literal.String.Interpol": Style(foreground=6).code,
    "Name.Builtin": Style(foreground=6).code,
    "Name.Class": Style(foreground=4, attributes=BOLD).code,
    "Name.Decorator": Style(foreground=5).code,
    "Name.Exception": Style(foreground=6).code,
    "Name.Function": Style(foreground=4).code,
    "Operator.Word": Style(foreground=5, attributes=BOLD).code,
}


@lru_cache(maxsize=256)
def plain_lines(code: str) -> tuple[Line, ...]:
    """Split code into lines as they are shown: controls made visible, tabs expanded."""
    return tuple(visible(line.expandtabs(_TAB)) for line in code.rstrip("\n").replace("\r\n", "\n").split("\n"))


@lru_cache(maxsize=256)
def highlighted_lines(code: str, language: str) -> tuple[Line, ...]:
    """Colour the lines that `plain_lines` gives; their text stays the same."""
    lines = plain_lines(code)
    lexer = _lexer(language) if len(code) <= LONGEST else None
    if lexer is None:
        return lines
    text = "\n".join(lines)
    tokens = [(value, _style(str(kind).removeprefix("Token."))) for kind, value in lexer.get_tokens(text)]
    if "".join(value for value, _ in tokens) != text:
        return lines  # a lexer that changes the text must not change what is shown
    return tuple(join(pieces) for pieces in split_lines(tokens))


@lru_cache(maxsize=64)
def _lexer(language: str) -> Lexer | None:
    """Find the lexer of a language; importing Pygments waits until the first code is drawn."""
    from pygments.lexers import get_lexer_by_name  # pyright: ignore[reportUnknownVariableType]  # options are untyped
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


@lru_cache(maxsize=512)
def _style(kind: str) -> StyleCode:
    while kind:
        if kind in _STYLES:
            return _STYLES[kind]
        kind = kind.rpartition(".")[0]
    return ""
