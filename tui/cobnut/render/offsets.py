"""Things of different heights on top of each other, and which of them a row falls in."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import accumulate


class Offsets:
    """Heights in rows; where each thing ends is added up when asked, from the first one that changed."""

    def __init__(self) -> None:
        self._heights: array[int] = array("q")
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._heights)

    @property
    def total(self) -> int:
        """Rows of all things together."""
        self._add_up()
        return self._ends[-1] if self._ends else 0

    def height(self, index: int) -> int:
        """Rows of one thing."""
        return self._heights[index]

    def start(self, index: int) -> int:
        """The first row of one thing; for the index after the last, the total."""
        self._add_up()
        return self._ends[index - 1] if index else 0

    def set(self, index: int, height: int) -> None:
        """Give a thing its height; the index after the last appends one."""
        if index == len(self._heights):
            self._heights.append(height)
        elif self._heights[index] != height:
            self._heights[index] = height
            del self._ends[index:]

    def cut(self, count: int) -> None:
        """Keep the first `count` things only."""
        del self._heights[count:]
        del self._ends[count:]

    def find(self, row: int) -> tuple[int, int]:
        """Give the thing that a row falls in, and which of its rows it is.

        Raises:
            IndexError: for a row that is in none of them.
        """
        if not 0 <= row < self.total:
            raise IndexError(f"row {row} of {self.total}")
        index = bisect_right(self._ends, row)
        return index, row - self.start(index)

    def _add_up(self) -> None:
        known = len(self._ends)
        if known < len(self._heights):
            initial = self._ends[-1] if known else 0
            self._ends += list(accumulate(self._heights[known:], initial=initial))[1:]
