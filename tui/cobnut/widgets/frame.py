"""The lines around the cells: the title above, the rule above the prompt, the status line at the bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cobnut.commands import HELP_LABEL
from cobnut.kernel_status import GLYPHS, STYLES, KernelRow
from cobnut.widgets.kernel_list import counts, kernel_strip
from cobnut.widgets.lines import Lines, line, shortened, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text
    from textual.timer import Timer

    from cobnut.commands import Hint

MESSAGE_SECONDS: Final = 5.0
"""How long the status line says what has happened."""
NARROW: Final = 72
"""Below so many columns there is one column, and the kernels share the status line."""


@dataclass(frozen=True, slots=True)
class Title:
    """What the title says: the kernel, its interpreter, its folder, and how many cells run and wait in it."""

    name: str = ""
    interpreter: str = ""
    folder: str = ""
    running: int = 0
    queued: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """How many lines there are above and below those that are shown, and how many came while one looked elsewhere."""

    above: int = 0
    below: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """What the status line says."""

    kernels: Sequence[KernelRow] = ()
    mode: str = ""
    """What the next key is for, where it is not for the prompt."""
    hints: Sequence[Hint] = ()
    """The keys that matter now, the most useful first."""
    notice: str = ""
    """What holds as long as the state does, and is more urgent than it."""


class TitleLine(Lines[Title]):
    """Names what is shown: `scratch · python 3.11 (cobnut) · ~/proj`."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the title, and a rule under it."""
        title = self.content
        parts = [part for part in (title.interpreter, title.folder) if part]
        left = line((title.name, "bold"), "".join(f" · {part}" for part in parts))
        return [spread(left, counts(title.running, title.queued), width), rule(width)]


class PositionRule(Lines[Position]):
    """The rule between cells and prompt; it says what is out of sight."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the rule."""
        return [rule(width, position_text(self.content))]


class StatusLine(Lines[Status]):
    """The line at the bottom: what the kernel does or what has just happened, and the keys that matter now."""

    def __init__(self) -> None:
        super().__init__(Status())
        self._message = line()
        self._timer: Timer | None = None

    def say(self, text: str, *, is_warning: bool = False) -> None:
        """Say what has happened, in place of the state, for a while."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(MESSAGE_SECONDS, self.hush)
        self._message = line((text, "yellow" if is_warning else ""))
        self.update()

    def hush(self) -> None:
        """Say no more what has happened."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if self._message:
            self._message = line()
            self.update()

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the line: the left part as far as it reaches, then as many keys as fit."""
        left = self._left(width)
        return [spread(left, _hints(self.content.hints, width - left.cell_len - 2), width)]

    def _left(self, width: int) -> Text:
        if self.content.mode:
            return shortened(line((f" {self.content.mode} ", "reverse"), " ").append_text(self._message), width)
        if self._message:
            return shortened(self._message, width)
        if self.content.notice:
            return shortened(line((self.content.notice, "yellow")), width)
        room = width - _help_width(self.content.hints) - 2
        return kernel_strip(self.content.kernels, room) if width < NARROW else shortened(self._state(), room)

    def _state(self) -> Text:
        row = next((row for row in self.content.kernels if row.selected), None)
        if row is None:
            return line()
        glyph, style = GLYPHS[row.status][0], STYLES[row.status]
        return line((f"{row.name} ", "bold"), (f"{glyph} {row.state_text}", style))


def position_text(position: Position) -> str:
    """Say what is out of sight; nothing where all is in sight."""
    above = _lines(position.above, " above")
    if not position.below:
        return above if position.above else ""
    new = f" ({position.new} new)" if position.new else ""
    below = f"{position.below}{new} below" if position.above else _lines(position.below, f"{new} below")
    return f"{above}, {below}: ^End follows" if position.above else f"{below}: ^End follows"


def _lines(count: int, where: str) -> str:
    return f"{count} {'line' if count == 1 else 'lines'}{where}"


def rule(width: int, text: str = "") -> Text:
    """Draw a horizontal rule with a text near its right end."""
    if not text or width < len(text) + 6:
        return line(("─" * width, "dim"))
    return line((f"{'─' * (width - len(text) - 3)} {text} ─", "dim"))


def _hints(hints: Sequence[Hint], width: int) -> Text:
    """Write as many hints as fit, from the first one on; the way to the help is the last to go."""
    shown = line()
    room = width - _help_width(hints)
    for key, label in hints:
        text = line((key, "bold"), (f" {label}  ", ""))
        if label == HELP_LABEL:
            fits = text.cell_len <= width
        else:
            room -= text.cell_len
            fits = room >= 0
        if fits:
            shown.append_text(text)
    shown.right_crop(1) if shown.cell_len else None
    return shown


def _help_width(hints: Sequence[Hint]) -> int:
    """Say how many columns the way to the help takes."""
    return sum(len(f"{key} {label}  ") for key, label in hints if label == HELP_LABEL)


def heading_rule(heading: str, width: int) -> Text:
    """Draw a horizontal rule with a heading near its left end."""
    text = line(("─ ", "dim"), (heading, "bold"), " ")
    return shortened(text.append_text(rule(max(0, width - text.cell_len))), width)
