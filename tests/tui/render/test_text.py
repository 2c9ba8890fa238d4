"""Styled lines, wrapped and drawn as strips."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import Color

from cobnut.model.ansi import AnsiScreen
from cobnut.model.escapes import visible
from cobnut.model.lines import join, plain, spans
from cobnut.model.styles import restyle
from cobnut.render.text import MINIMUM, heights, rich_style, sent, strips, wrap, wrap_words

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202e\u2028]")

TEXTS = st.one_of(
    st.text(max_size=20).map(lambda text: visible(text).replace("\n", "")),
    st.sampled_from(
        [
            "漢字漢字",
            "a漢b字",
            "e\u0301e\u0301",
            "👩\u200d🚀",
            "❤\ufe0f",
            "🇩🇪👍🏽",
            "two words",
            "한국어",
            "\u0301",
            "x" * 50,
        ]
    ),
)
LINES = st.lists(st.tuples(TEXTS, st.sampled_from(["", restyle("", "31"), restyle("", "1;4")])), max_size=5).map(join)


def rows_of(text: str, width: int, first: int | None = None) -> list[str]:
    """Wrap plain text, and give the text of the rows."""
    return ["".join(piece for piece, _ in row) for row in wrap(text, width, first)]


@pytest.mark.parametrize(
    ("text", "width", "rows"),
    [
        ("", 4, [""]),
        ("abcd", 4, ["abcd"]),
        ("abcde", 4, ["abcd", "e"]),
        ("漢字漢", 4, ["漢字", "漢"]),
        ("a漢字", 4, ["a漢", "字"]),
        ("漢字", 3, ["漢", "字"]),
        ("abcde\u0301f", 5, ["abcde\u0301", "f"]),
        ("\u0301abc", 3, ["\u0301abc"]),
        ("👩\u200d🚀", 2, ["👩", "🚀"]),
        ("❤\ufe0f", 2, ["❤"]),
        ("🇩🇪🇫🇷", 3, ["DEF", "R"]),
        ("👍🏽👍🏿", 4, ["👍👍"]),
    ],
)
def test_long_lines_wrap(text: str, width: int, rows: list[str]) -> None:
    """A row takes what fits; a wide character is never cut, a mark stays with its character, nothing joins."""
    assert rows_of(text, width) == rows


def test_the_first_row_may_be_shorter() -> None:
    """The first row can leave room for something beside it."""
    assert rows_of("abcdefgh", 5, 2) == ["ab", "cdefg", "h"]
    assert rows_of("漢字", 4, 1) == ["", "漢字"]


def test_styles_go_on_in_the_next_row() -> None:
    """A piece of text that is cut keeps its style on both sides."""
    red = restyle("", "31")
    assert wrap(join([("ab", ""), ("cdef", red)]), 4) == [[("ab", ""), ("cd", red)], [("ef", red)]]


@settings(deadline=None)
@given(LINES, st.integers(MINIMUM, 30), st.integers(0, 4))
def test_strips_are_exactly_as_wide_as_they_should_be(line: str, width: int, indent: int) -> None:
    """Every strip has the width that was asked for, as Textual measures it, and there are as many as were counted."""
    width += indent
    rows = strips(line, width, indent)
    assert heights([line], width - indent) == [len(rows)]
    for row in rows:
        assert row.cell_length == width
        assert sum(cell_len(segment.text) for segment in row) == width
        assert row.text[:indent] == " " * indent
        assert not CONTROL.search(row.text)


@settings(deadline=None)
@given(LINES, st.integers(MINIMUM, 30))
def test_wrapping_loses_nothing(line: str, width: int) -> None:
    """The rows together hold all of the text, save the joiners that terminals disagree about."""
    text = "".join(piece for row in wrap(line, width) for piece, _ in row)
    assert text == sent(plain(line))


@pytest.mark.parametrize(
    ("text", "width", "rows"),
    [
        ("", 4, [""]),
        ("one two three", 7, ["one two", "three"]),
        ("one two three", 6, ["one", "two", "three"]),
        ("  one   two", 5, ["  one", "two"]),
        ("a abcdefgh b", 5, ["a", "abcde", "fgh", "b"]),
        ("漢字 漢字", 8, ["漢字", "漢字"]),
        ("漢字 漢字", 9, ["漢字 漢字"]),
        ("   ", 2, [""]),
    ],
)
def test_words_wrap_whole(text: str, width: int, rows: list[str]) -> None:
    """Rows end between words; a word that is wider than a row is cut."""
    assert ["".join(piece for piece, _ in row) for row in wrap_words(text, width)] == rows


@settings(deadline=None)
@given(LINES, st.integers(MINIMUM, 30))
def test_wrapping_words_loses_blanks_only(line: str, width: int) -> None:
    """The rows together hold all characters in their styles, save blanks, and none is wider than it should be."""
    rows = wrap_words(line, width)
    assert all(sum(cell_len(text) for text, _ in row) <= width for row in rows)
    pieces = [(character, style) for row in rows for text, style in row for character in text if character != " "]
    assert pieces == [(c, style) for text, style in spans(line) for c in sent(text) if c != " "]


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(1, 12))
def test_no_control_character_is_drawn(output: str, width: int) -> None:
    """Whatever a program writes, what is drawn of it can be sent to a terminal as it is."""
    screen = AnsiScreen()
    screen.feed(output)
    for line in screen:
        for row in strips(line, width):
            assert not CONTROL.search(row.text)
            assert row.cell_length == width


def test_styles_are_drawn() -> None:
    """Colours of all kinds, attributes and links arrive in Textual's styles."""
    style = rich_style(restyle("", "1;2;3;4;7;9;38;5;200;48;2;1;2;3"))
    assert (style.bold, style.dim, style.italic, style.underline, style.reverse, style.strike) == (True,) * 6
    assert style.color == Color.from_ansi(200)
    assert style.bgcolor == Color.from_rgb(1, 2, 3)
    assert not rich_style("")
