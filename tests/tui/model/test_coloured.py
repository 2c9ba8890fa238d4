"""Results and tracebacks: text of which only the colours take effect."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobnut.model.ansi import LONGEST_LINE
from cobnut.model.coloured import coloured_text
from cobnut.model.lines import plain, spans
from cobnut.model.styles import relink, restyle

RED = restyle("", "31")


def shown(text: str) -> list[str]:
    """Give the lines of a text without their styles."""
    return [plain(line) for line in coloured_text(text)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\n\x1b[0m", ["a"]),
        ("a\tb\n\x1b[31mabc\x1b[0m\td\t\te", ["a       b", "abc     d               e"]),
        ("漢\tx", ["漢      x"]),
        ("Trace\nValueError: bad \x1b[2J name", ["Trace", "ValueError: bad ^[[2J name"]),
        ("x" * 500 + "\x1b[2J\x1b]0;evil\x07", ["x" * 500 + "^[[2J^[]0;evil^G"]),
        ("1\n2\n3\n\x1b[3A\x1b[Jend", ["1", "2", "3", "^[[3A^[[Jend"]),
        ("lost\rfound\b", ["lost^Mfound^H"]),
        ("a\x1bPb\x90c\nd\x1b[31", ["a^[Pb<90>c", "d^[[31"]),
        ("a\x1b]8;;javascript:x\x1b\\b\x1b]8;;\x1b\\", ["ab"]),
    ],
)
def test_only_colours_take_effect(text: str, lines: list[str]) -> None:
    """What would move the cursor, erase or begin a control string is shown as characters, and hides nothing."""
    assert shown(text) == lines


def test_colours_go_on_in_the_next_line() -> None:
    """A colour holds until another one, over line feeds and over controls that are shown."""
    assert [spans(line) for line in coloured_text("a\x1b[31mb\x1b[2J\nc\x1b[0md")] == [
        [("a", ""), ("b^[[2J", RED)],
        [("c", RED), ("d", "")],
    ]


def test_links_stay_links() -> None:
    """A hyperlink to the web is a style, as a colour is."""
    (line,) = coloured_text("\x1b[31m\x1b]8;id=1;https://example.org\x1b\\text\x1b]8;;\x07.")
    assert spans(line) == [("text", relink(RED, "https://example.org")), (".", RED)]


@pytest.mark.parametrize("begin", ["", "\x1b[31m"])
def test_very_long_lines_are_broken(begin: str) -> None:
    """No line is longer than what is drawn at once, and together they are the whole."""
    lines = shown(begin + "x" * (2 * LONGEST_LINE) + "\x1b[0m" + "y" * 10)
    assert max(map(len, lines)) == LONGEST_LINE
    assert "".join(lines) == "x" * (2 * LONGEST_LINE) + "y" * 10


@given(st.lists(st.one_of(st.text("ab \t\n\r\x07\x1b[]8;0mAJ\x9d\x90", max_size=20), st.just("\x1b[31m")), max_size=8))
def test_nothing_is_lost(texts: list[str]) -> None:
    """Every letter that is no part of a colour or link is still there, in its order, and no control is."""
    text = "".join(texts)
    lines = shown(text)
    expected = re.sub(r"\x1b\[[0-9:;]*m|\x1b\]8;[^;\x00-\x1f\x7f-\x9f]*;[!-~]*(?:\x07|\x1b\\)", "", text)
    assert re.sub("[^ab]", "", "".join(lines)) == re.sub("[^ab]", "", expected)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines))
