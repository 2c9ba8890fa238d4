"""A block of lines that are drawn as they are; the base of every widget here that is not an editor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from rich.segment import Segment
from rich.text import Text
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from cobnut.kernel_status import GLYPHS

if TYPE_CHECKING:
    from collections.abc import Sequence

Content = TypeVar("Content")

ASCII_TWINS: Final = str.maketrans("─│·…", "-|-~") | str.maketrans(dict(GLYPHS.values()))
"""What is drawn on a terminal that has ASCII only: for each sign another one of the same width."""


def line(*parts: str | tuple[str, str]) -> Text:
    """Join parts into one line; a part is text, or text and a style. No markup, and control characters show as `·`."""
    text = Text(no_wrap=True, end="")
    for part in parts:
        content, style = (part, "") if isinstance(part, str) else part
        text.append("".join(c if c.isprintable() else "·" for c in content), style or None)
    return text


def spread(left: Text, right: Text, width: int) -> Text:
    """Put one text at the left edge and one at the right; the left one gives way where both do not fit."""
    room = width - right.cell_len
    if room < min(12, left.cell_len):
        return shortened(left, width)
    left = shortened(left, max(0, room - 1)) if left.cell_len >= room else left.copy()
    left.pad_right(room - left.cell_len)
    return left.append_text(right)


def shortened(text: Text, width: int) -> Text:
    """Return the text cut to `width` columns, with an ellipsis where something is missing."""
    short = text.copy()
    short.truncate(max(0, width), overflow="ellipsis")
    return short


class Lines(Widget, Generic[Content]):
    """Draws lines that are composed from a content; only those that changed are drawn again.

    Attributes:
        content: what is shown; `show` shows another.
    """

    def __init__(self, content: Content) -> None:
        super().__init__()
        self.content: Content = content
        self._lines: list[Text] = []
        self._composed_for = Size(0, 0)

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Say what to draw in so many columns and rows."""
        raise NotImplementedError

    def show(self, content: Content) -> None:
        """Show another content."""
        if content != self.content:
            self.content = content
            self.update()

    def update(self) -> None:
        """Compose the lines anew, and draw those that differ."""
        before = self._lines
        self._compose_anew()
        for row in range(max(len(before), len(self._lines))):
            if _drawn(before, row) != _drawn(self._lines, row):
                self.refresh(Region(0, row, self.size.width, 1))

    def render_line(self, y: int) -> Strip:
        """Draw one row."""
        if self._composed_for != self.size:
            self._compose_anew()
        style, width = self.rich_style, self.size.width
        if y >= len(self._lines):
            return Strip.blank(width, style)
        segments = self._lines[y].render(self.app.console)
        if self.app.has_class("-ascii"):
            segments = (Segment(segment.text.translate(ASCII_TWINS), segment.style) for segment in segments)
        return Strip(segments).adjust_cell_length(width, style).apply_style(style)

    def _compose_anew(self) -> None:
        self._composed_for = self.size
        self._lines = list(self.compose_lines(*self.size))[: self.size.height]


def _drawn(lines: list[Text], row: int) -> object:
    return (lines[row].plain, lines[row].spans) if row < len(lines) else None
