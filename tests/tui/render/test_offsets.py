"""Where things of different heights begin and end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobnut.render.offsets import Offsets


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=40), st.integers(0, 20))
def test_every_row_is_found(changes: list[tuple[int, int]], kept: int) -> None:
    """After any changes of heights, each row is in the thing that a simple count puts it in."""
    offsets, heights = Offsets(), list[int]()
    for index, height in changes:
        index = min(index, len(heights))
        heights[index : index + 1] = [height]
        offsets.set(index, height)
    offsets.cut(kept)
    del heights[kept:]
    rows = [(index, row) for index, height in enumerate(heights) for row in range(height)]
    assert [offsets.find(row) for row in range(offsets.total)] == rows
    assert [offsets.start(index) for index in range(len(heights) + 1)] == [
        sum(heights[:n]) for n in range(len(heights) + 1)
    ]
    assert [offsets.height(index) for index in range(len(offsets))] == heights


@pytest.mark.parametrize("row", [-1, 3, 99])
def test_a_row_that_is_in_nothing_is_refused(row: int) -> None:
    """Rows before the first and after the last are an error, not the last thing."""
    offsets = Offsets()
    offsets.set(0, 3)
    with pytest.raises(IndexError):
        offsets.find(row)
