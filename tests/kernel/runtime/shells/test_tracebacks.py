"""Errors as lines of text, whatever they are and whoever drew them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from cobnut_kernel.runtime.shells.tracebacks import holds_group, lines_of, plain_traceback


def error_of(code: str) -> BaseException:
    """Return the error that code ends with, as a cell's, one frame below who runs it."""
    try:
        exec(compile(code, "cell", "exec"), {})
    except BaseException as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 / 0", False),
        ("raise ExceptionGroup('several', [ValueError()])", True),
        ("try: raise ExceptionGroup('several', [ValueError()])\nexcept Exception: 1 / 0", True),
        (
            "error = ValueError(); error.__context__ = KeyError(); error.__context__.__context__ = error\nraise error",
            False,
        ),
    ],
)
def test_a_group_is_found_among_what_an_error_came_of(code: str, expected: bool) -> None:
    """Also where errors came of each other in a ring."""
    assert holds_group(error_of(code)) is expected
    assert not holds_group(None)


@pytest.mark.parametrize(
    ("drawn", "lines"), [("text", ["text"]), (["a", 1], ["a", "1"]), (("a",), ["a"]), (None, []), (7, [])]
)
def test_a_renderer_of_the_users_may_return_anything(drawn: Any, lines: list[str]) -> None:
    """What comes is a list of texts."""
    assert lines_of(drawn) == lines


def test_a_plain_traceback_begins_with_the_cell() -> None:
    """Who ran the cell is not shown; an error that was never raised has no frames at all."""
    text = "".join(plain_traceback(error_of("1 / 0")))
    assert 'File "cell", line 1' in text
    assert sys._getframe().f_code.co_filename not in text
    assert plain_traceback(ValueError("unraised")) == ["ValueError: unraised\n"]
    assert plain_traceback(None) == []
