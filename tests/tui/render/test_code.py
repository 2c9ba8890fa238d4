"""Code, coloured."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygments.lexers.python import PythonLexer

from cobnut.model.lines import plain, spans
from cobnut.model.styles import TRUECOLOR, Style
from cobnut.render.code import LONGEST, highlighted_lines, plain_lines


def test_python_is_coloured() -> None:
    """Keywords, strings, numbers and comments differ, in the terminal's own sixteen colours."""
    lines = highlighted_lines("def f(x):  # why\n    return 'text' + str(1)", "python")
    styles = {text: Style.from_code(code) for line in lines for text, code in spans(line)}
    different = {styles["def"], styles["f"], styles["# why"], styles["'text'"], styles["1"]}
    assert len(different) == 5
    assert styles["def"] == styles["return"]
    assert all(style.foreground is None or style.foreground < 16 for style in styles.values())
    assert all(style.background is None for style in styles.values())
    assert TRUECOLOR > 16


@pytest.mark.parametrize("language", ["python", "r", "julia", "no-such-language", ""])
@settings(deadline=None)
@given(
    code=st.text(max_size=40) | st.sampled_from(["%timeit x", "!ls", "x?", "'''\n'''", "\tif x:\r\n\t\ty", "\n\nx\n\n"])
)
def test_colours_change_no_text(language: str, code: str) -> None:
    """Colouring, in any language and of any nonsense, leaves the lines as they are without it."""
    assert [plain(line) for line in highlighted_lines(code, language)] == list(plain_lines(code))


def test_a_lexer_that_changes_the_text_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown is what is run, also where a lexer would show it otherwise."""
    monkeypatch.setattr("cobnut.render.code._lexer", lambda _: PythonLexer(stripall=True))
    assert highlighted_lines("  x  \n\ny ", "python with its blanks cut") == ("  x  ", "", "y ")


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("", [""]),
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("\n\na", ["", "", "a"]),
        ("if x:\n\ty", ["if x:", "    y"]),
        ("'\x1b[31m'", ["'^[[31m'"]),
        ("x\x00\x9b\u202e", ["x^@<9b><U+202E>"]),
        ("a\x0cb\x0b\x85\u2028c", ["a^Lb^K<85><U+2028>c"]),
    ],
)
def test_lines_of_code(code: str, lines: list[str]) -> None:
    """Lines end at line feeds only, tabs become blanks, and characters that hide something are made visible."""
    assert list(plain_lines(code)) == lines
    assert [plain(line) for line in highlighted_lines(code, "python")] == lines


def test_code_of_excessive_length_is_plain() -> None:
    """A file pasted into a cell does not stop the screen to be coloured."""
    code = "x = 1\n" * (LONGEST // 6 + 1)
    assert highlighted_lines(code, "python") is plain_lines(code)


def test_no_code_line_holds_a_control_character() -> None:
    """All control characters are written out."""
    code = "".join(map(chr, [*range(32), *range(127, 160)]))
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f]", plain(line)) for line in highlighted_lines(code, "python"))
