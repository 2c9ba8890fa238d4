"""Styled lines, and the store of those that no longer change."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cobnut.model.lines import PAGE, LineLog, join, plain, spans
from cobnut.model.styles import BOLD, STRIKE, TRUECOLOR, Style, restyle

COLOURS = st.none() | st.integers(0, 255) | st.integers(TRUECOLOR, 2 * TRUECOLOR - 1)
STYLES = st.builds(
    Style, COLOURS, COLOURS, st.integers(0, 2 * STRIKE - 1), st.sampled_from(["", "https://a.b/?c;d", "mailto:a@b"])
)
TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=8)


@settings(deadline=None)
@given(STYLES)
def test_a_style_is_read_as_it_was_written(style: Style) -> None:
    """The small form of a style holds all of it, and the default style is nothing."""
    assert Style.from_code(style.code) == style
    assert (style.code == "") == (style == Style())


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, STYLES.map(lambda style: style.code)), max_size=6))
def test_a_line_is_its_pieces(pieces: list[tuple[str, str]]) -> None:
    """Taking a line apart gives the text and the styles that it was made of."""
    line = join(pieces)
    assert plain(line) == "".join(text for text, _ in pieces)
    assert [(character, code) for text, code in spans(line) for character in text] == [
        (character, code) for text, code in pieces for character in text
    ]
    assert join(spans(line)) == line


@settings(deadline=None)
@given(st.lists(st.lists(TEXTS, max_size=2 * PAGE), max_size=5))
def test_the_store_gives_back_what_it_was_given(batches: list[list[str]]) -> None:
    """Lines come back in order and whole, in whatever batches they were stored."""
    log = LineLog()
    for batch in batches:
        log.extend(batch)
    lines = [line for batch in batches for line in batch]
    assert list(log) == lines
    assert len(log) == len(lines)
    assert [line for number in range(len(log.bounds)) for line in log.page(number)] + log.rest == lines
    assert len(log.rest) < PAGE


def test_pages_hold_many_lines() -> None:
    """Full pages come back as they were, with any character, and with empty lines at their ends."""
    log = LineLog()
    lines = ["", *(f"{'漢é' * (n % 7)}{n}" for n in range(10 * PAGE)), ""]
    log.extend(lines)
    assert list(log) == lines
    assert [log.page(n)[0] for n in (9, 0, 9)] == [lines[9 * PAGE], "", lines[9 * PAGE]]


def test_resetting_a_style_gives_the_default() -> None:
    """A style that was set and reset is the same as none, so that plain lines stay plain."""
    code = restyle("", "1;31")
    assert Style.from_code(code) == Style(foreground=1, attributes=BOLD)
    assert restyle(code, "0") == ""
    assert restyle(code, "22;39") == ""
