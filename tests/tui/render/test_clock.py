"""Times, in few characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobnut.render.clock import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "<1ms"),
        (0.0004, "<1ms"),
        (0.014, "14ms"),
        (0.9994, "999ms"),
        (0.9996, "1.0s"),
        (12.44, "12.4s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (187, "3m07s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (3725, "1h02m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (8_000_000, "92d14h"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    """A time has the two units that matter, and never reads 60 of one of them."""
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.floats(0, 8_000_000))
def test_times_fit_their_column(seconds: float) -> None:
    """No time below a hundred days is longer than six characters."""
    assert len(duration(seconds)) <= 6
