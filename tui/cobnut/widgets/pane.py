"""One kernel on the screen: its title, its cells, its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from cobnut.commands import bindings
from cobnut.widgets.cells import Cells
from cobnut.widgets.frame import Position, PositionRule, Title, TitleLine
from cobnut.widgets.prompt import Editor, Prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from textual.app import ComposeResult
    from textual.widget import Widget

    from cobnut.completeness import Verdict
    from cobnut.session import Session


class Pane(Vertical):
    """Shows one kernel at a time, and keeps nothing of it that the session could keep."""

    SCROLLING: ClassVar[list[BindingType]] = [
        Binding("pageup", "scroll_cells(-1)", "Scroll the cells up"),
        Binding("pagedown", "scroll_cells(1)", "Scroll the cells down"),
    ]
    """What can be done with the cells while one types."""
    BINDINGS: ClassVar[list[BindingType]] = [*bindings(""), *SCROLLING]

    def __init__(self, session: Session, verdict: Callable[[Session, str], Awaitable[Verdict]]) -> None:
        super().__init__()
        self.session: Session = session
        self.cells: Cells = Cells()
        self.editor: Editor = Editor(verdict)
        self._title = TitleLine(Title())
        self._rule = PositionRule(Position())
        self._prompt = Prompt(self.editor)

    def compose(self) -> ComposeResult:
        """Put the cells between the title and the prompt."""
        yield self._title
        yield self.cells
        yield self._rule
        yield self._prompt

    def attach(self, session: Session) -> None:
        """Show another kernel."""
        self.session = session
        self.editor.attach(session)
        self.cells.attach(session)
        self.update()

    def update(self) -> None:
        """Draw what has changed around the cells."""
        session = self.session
        running, queued = len(session.document.running), len(session.document.queued)
        self._title.show(Title(session.name, session.interpreter, session.folder, running, queued))
        self._prompt.show_number(session.next_number)

    def on_cells_moved(self, message: Cells.Moved) -> None:
        """Say what is out of sight."""
        self._rule.show(message.position)

    def on_cells_left(self) -> None:
        """Go back to the prompt."""
        self.screen.set_focus(self.editor)

    def on_paste(self, event: events.Paste) -> None:
        """Take what is pasted into the prompt, wherever the focus is."""
        self.screen.set_focus(self.editor)
        self.editor.post_message(events.Paste(event.text))

    # ── what can be asked for ───────────────────────────────────────────────────────────────────────────────────────

    def action_run_now(self) -> None:
        """Run the input as it is."""
        self.editor.action_run()

    def action_next_pane(self) -> None:
        """Go from the prompt to the cells, or back."""
        target: Widget = self.cells if self.editor.has_focus else self.editor
        self.screen.set_focus(target)  # at once: the next key is for it

    def action_scroll_cells(self, to: str | int) -> None:
        """Scroll the cells by pages, or to the first or last line."""
        if isinstance(to, int):
            self.cells.action_scroll_pages(to)
        else:
            self.cells.action_stand(0 if to == "first" else None)
