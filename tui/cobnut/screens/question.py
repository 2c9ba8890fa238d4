"""Ask before something is lost, and while one waits for the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding, BindingType

from cobnut.screens.popup import Popup
from cobnut.widgets.frame import heading_rule
from cobnut.widgets.lines import Lines, line, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.text import Text
    from textual.app import ComposeResult


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that can be answered by doing it or not."""

    heading: str
    text: str
    letter: str
    """What is pressed to do it."""
    deed: str
    """What is done then, in a word or two."""
    can_cancel: bool = True


class QuestionView(Lines[Asked]):
    """The question and its answers."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the question."""
        asked = self.content
        answers = line(" ", (asked.letter, "bold"), f" {asked.deed}   ")
        if asked.can_cancel:
            answers.append_text(line(("Esc", "bold"), " cancel"))
        return [
            heading_rule(asked.heading, width),
            shortened(line(f" {asked.text}"), width),
            shortened(answers, width),
        ]


class Question(Popup[None]):
    """Asks whether to do something; only its letter does it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c,n,q", "cancel", "Cancel")]

    def __init__(self, asked: Asked, then: Callable[[], None]) -> None:
        super().__init__(lambda _: then())
        self.asked: Asked = asked

    def compose(self) -> ComposeResult:
        """Show the question."""
        yield QuestionView(self.asked)

    def type(self, character: str) -> None:
        """Do it, if this is its letter; else say which letters there are."""
        if character.lower() == self.asked.letter:
            self.finish(None)
        else:
            self.app.bell()


class Waiting(Popup[None]):
    """Shows that the kernels are being stopped; ctrl+c and ctrl+q do not wait for them."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c,ctrl+q", "hurry", "Do not wait")]

    def __init__(self, hurry: Callable[[], None]) -> None:
        super().__init__(lambda _: hurry())

    def compose(self) -> ComposeResult:
        """Show what is waited for."""
        text = "They were asked to end, and are given a few seconds."
        yield QuestionView(Asked("Stopping the kernels", text, "^C", "do not wait", can_cancel=False))

    def action_hurry(self) -> None:
        """Wait no longer."""
        self.finish(None)
