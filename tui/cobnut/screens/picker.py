"""Choose one of several things: kernels that run, kernels to start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from textual.binding import Binding, BindingType

from cobnut.screens.popup import Popup
from cobnut.widgets.frame import heading_rule
from cobnut.widgets.lines import Lines, line, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.text import Text
    from textual.app import ComposeResult
    from textual.geometry import Size

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Choice(Generic[Value]):
    """Something to choose: what stands for it, and what more there is to say of it."""

    value: Value
    label: Text
    """In columns, as all labels of one list."""
    note: str = ""
    is_possible: bool = True
    """Whether it can be chosen; if not, the note says why."""

    def rank(self, words: Sequence[str]) -> int | None:
        """Say how well all the words fit: 0 for the label, 1 with the help of the note; None if they do not."""
        label = self.label.plain.lower()
        if all(word in label for word in words):
            return 0
        return 1 if all(word in f"{label} {self.note.lower()}" for word in words) else None


@dataclass(frozen=True, slots=True)
class Listing:
    """A list to choose from, as it is drawn."""

    heading: str
    choices: Sequence[Choice[Any]]
    index: int = 0
    filter_text: str = ""

    @property
    def fitting(self) -> Sequence[Choice[Any]]:
        """The choices that the filter leaves, those first whose label it fits."""
        words = self.filter_text.lower().split()
        ranked = [(choice.rank(words), choice) for choice in self.choices]
        return [choice for wanted in (0, 1) for rank, choice in ranked if rank == wanted]


class ListingView(Lines[Listing]):
    """The list: a rule with its heading, a line for each choice, the keys."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the list, scrolled so that the chosen line is in sight."""
        listing, room = self.content, max(1, height - 3)
        fitting = listing.fitting
        first = max(0, listing.index - room + 1)
        rows = [
            _row(choice, width, is_chosen=number == listing.index)
            for number, choice in list(enumerate(fitting))[first : first + room]
        ]
        rows = rows or [line((f"  Nothing here is called {listing.filter_text!r}.", "dim"))]
        heading = f"{listing.heading} {listing.filter_text}".strip()
        hint = line((" Enter", "bold"), " chooses  ", ("Esc", "bold"), " cancels  ", "type to narrow the list")
        blank = [line()] * (room - len(rows))
        chosen = fitting[listing.index : listing.index + 1]
        note = shortened(line((f"  {chosen[0].note}", "dim")), width) if _is_cut(chosen, width) else line()
        return [heading_rule(heading, width), *rows, *blank, note, shortened(hint, width)]

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As high as the list is long."""
        return max(1, len(self.content.choices)) + 3


class Picker(Popup[Value]):
    """Asks for one of several choices; typing narrows them down."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up"),
        Binding("down", "move(1)", "Down"),
        Binding("pageup", "move(-10)", "Ten up"),
        Binding("pagedown", "move(10)", "Ten down"),
        Binding("enter,ctrl+j", "choose", "Choose"),
        Binding("backspace", "erase", "Take a letter back"),
        Binding("ctrl+u", "erase_all", "Show all again"),
        Binding("escape,ctrl+c,ctrl+q,ctrl+t", "cancel", "Cancel"),
    ]

    def __init__(
        self,
        heading: str,
        choices: Sequence[Choice[Value]],
        then: Callable[[Value], None],
        *,
        index: int = 0,
    ) -> None:
        super().__init__(then)
        self.view: ListingView = ListingView(Listing(heading, choices, index))

    def compose(self) -> ComposeResult:
        """Show the list."""
        yield self.view

    def type(self, character: str) -> None:
        """Narrow the list."""
        self._filter(self.view.content.filter_text + character)

    def action_move(self, rows: int) -> None:
        """Go up or down."""
        listing = self.view.content
        last = max(0, len(listing.fitting) - 1)
        self.view.show(replace(listing, index=max(0, min(last, listing.index + rows))))

    def action_erase(self) -> None:
        """Take the last letter of the filter back."""
        self._filter(self.view.content.filter_text[:-1])

    def action_erase_all(self) -> None:
        """Drop the filter."""
        self._filter("")

    def action_choose(self) -> None:
        """Hand over what is chosen, if it can be."""
        listing = self.view.content
        for choice in listing.fitting[listing.index : listing.index + 1]:
            if choice.is_possible:
                self.finish(choice.value)
            else:
                self.app.bell()

    def _filter(self, text: str) -> None:
        self.view.show(replace(self.view.content, filter_text=text, index=0))


def _is_cut(choices: Sequence[Choice[Any]], width: int) -> bool:
    """Whether a choice's note does not fit behind its label: then it has a line of its own, while it is chosen."""
    return any(choice.label.cell_len + len(choice.note) + 4 > width for choice in choices)


def _row(choice: Choice[Any], width: int, *, is_chosen: bool) -> Text:
    text = line(("> " if is_chosen else "  ", "bold")).append_text(choice.label)
    if choice.note:
        text.append_text(line((f"  {choice.note}", "dim")))
    text = shortened(text, width)
    if not choice.is_possible:
        text.stylize("dim")
    elif is_chosen:
        text.stylize("bold")
    return text
