"""Which keys there are, and what they do: first those for what has the focus."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType

from cobnut.commands import COMMANDS, shown
from cobnut.screens.popup import Popup
from cobnut.widgets.frame import heading_rule
from cobnut.widgets.lines import Lines, line, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.text import Text
    from textual.app import ComposeResult

_TWO_COLUMNS = 110
_KEYS = 17


@dataclass(frozen=True, slots=True)
class Section:
    """Keys that work in one place: each with what it does."""

    heading: str
    keys: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """The help, scrolled to a row."""

    sections: Sequence[Section]
    top: int = 0


class HelpView(Lines[Page]):
    """The help as lines; in two columns where there is room."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the part that is in sight."""
        rows = self.rows(width)
        room = max(1, height - 3)
        top = min(self.content.top, max(0, len(rows) - room))
        seen = rows[top : top + room]
        more = f"{len(rows) - top - len(seen)} more lines: PgDn  " if top + room < len(rows) else ""
        hint = line((" Esc", "bold"), " back  ", (more, ""))
        heading = heading_rule("Keys", width)
        return [heading, *seen, *[line()] * (room - len(seen)), line(), shortened(hint, width)]

    def rows(self, width: int) -> list[Text]:
        """Write all of it; of two columns, the shorter one takes the next section."""
        sections = self.content.sections
        if width < _TWO_COLUMNS:
            return [row for section in sections for row in _section(section, width)]
        columns: tuple[list[Text], list[Text]] = [], []
        for section in sections:
            min(columns, key=len).extend(_section(section, width // 2))
        return [_beside(*pair, width // 2) for pair in zip_longest(*columns, fillvalue=line())]


class Help(Popup[None]):
    """Shows the help until it is closed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll(-1)", "One line up"),
        Binding("down,j", "scroll(1)", "One line down"),
        Binding("pageup", "scroll(-10)", "Ten lines up"),
        Binding("pagedown,space", "scroll(10)", "Ten lines down"),
        Binding("escape,enter,q,f1,question_mark,ctrl+c,ctrl+q", "cancel", "Close"),
    ]

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__(lambda _: None)
        self.view: HelpView = HelpView(Page(sections))

    def compose(self) -> ComposeResult:
        """Show the help."""
        yield self.view

    def action_scroll(self, rows: int) -> None:
        """Move up or down."""
        last = max(0, len(self.view.rows(self.size.width)) - (self.size.height - 3))
        self.view.show(replace(self.view.content, top=max(0, min(last, self.view.content.top + rows))))


def command_section() -> Section:
    """List the commands, with their letters behind Esc."""
    keys = [(command.shown_keys, command.help) for command in COMMANDS]
    return Section("Everywhere", [*keys, ("Esc 1 to Esc 9", "Show the kernel with that number")])


def binding_section(heading: str, bindings: Iterable[BindingType]) -> Section:
    """List the bindings of a widget."""
    keys = [
        (binding.key_display or ", ".join(shown(key) for key in binding.key.split(",")), binding.description)
        for binding in bindings
        if isinstance(binding, Binding) and binding.show
    ]
    return Section(heading, keys)


def _section(section: Section, width: int) -> list[Text]:
    rows = [shortened(line("   ", (f"{keys:<{_KEYS}} ", "bold"), meaning), width - 1) for keys, meaning in section.keys]
    return [line((f" {section.heading}", "bold underline")), *rows, line()]


def _beside(left: Text, right: Text, width: int) -> Text:
    padded = left.copy()
    padded.pad_right(width - left.cell_len)
    return padded.append_text(right)
