"""The cells of one kernel: a view that draws lines of its document, and no widget for any of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cobnut.render.glyphs import ASCII, UNICODE
from cobnut.render.layout import Layout
from cobnut.terminal.keys import escaped_character
from cobnut.widgets.frame import Position
from cobnut.widgets.lines import line

if TYPE_CHECKING:
    from textual import events

    from cobnut.session import Session

WELCOME: Final = (
    "Type code and press Enter: it runs once it is complete.",
    "Esc n starts another kernel, Esc 1 to Esc 9 switch.",
    "F1 shows all keys.",
)
"""What a document without cells says."""


@dataclass(slots=True)
class _View:
    """Where one stands in a document."""

    session: Session
    layout: Layout
    top: int | None = None
    """The first row that is shown; None while the end is followed."""
    known: int = 0
    """How many rows there were when the end was left."""
    welcomes: bool = True
    """Whether it says what to type: while there is no cell yet, and a kernel."""


class Cells(ScrollView, can_focus=True):
    """Draws the document of the kernel that is shown; follows its end only from its end."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_rows(-1)", "One line up"),
        Binding("down,j", "scroll_rows(1)", "One line down"),
        Binding("pageup", "scroll_pages(-1)", "One page up"),
        Binding("pagedown,space", "scroll_pages(1)", "One page down"),
        Binding("home", "stand(0)", "To the first line"),
        Binding("end", "stand(None)", "To the last line, and follow it"),
        Binding("enter,escape", "leave", "Back to the prompt"),
    ]

    class Left(Message):
        """One wants to be in the prompt again."""

    @dataclass
    class Moved(Message):
        """What is in sight has changed."""

        position: Position

    def __init__(self) -> None:
        super().__init__()
        self.session: Session | None = None
        self._views: dict[Session, _View] = {}
        self._position = Position()

    # ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, session: Session) -> None:
        """Show the document of another kernel, where one stood in it."""
        if session is not self.session:
            self.session = session
            glyphs = ASCII if self.app.has_class("-ascii") else UNICODE
            self._views.setdefault(session, _View(session, Layout(session.document, self._columns, glyphs)))
            self.update()
            self.refresh()

    def lay_out(self) -> None:
        """Take the place on the screen that there is now, before Textual tells of it; for the first frame."""
        self.update()
        self.refresh()

    def forget(self, session: Session) -> None:
        """Drop what was kept of a kernel that is closed."""
        self._views.pop(session, None)

    def update(self) -> None:
        """Draw what has changed in the document, and the clocks of what runs."""
        view = self._view
        if view is None or not self.is_attached:
            return
        before, welcomed = round(self.scroll_y), view.welcomes
        view.layout.resize(self._columns)
        changed = view.layout.update(time.monotonic())
        # Not by assignment: that would lay the whole screen out again, for a scroll bar that is not there.
        size = Size(self._columns, view.layout.height)
        self.set_reactive(Cells.virtual_size, size)  # pyright: ignore[reportArgumentType] - it is the reactive itself
        self._scroll(view)
        view.welcomes = not view.layout.document.cells and not view.session.status.has_ended
        if view.welcomes != welcomed or (welcomed and changed):
            self.refresh()
        elif round(self.scroll_y) == before:
            self._refresh_rows(changed)

    @property
    def _view(self) -> _View | None:
        return self._views.get(self.session) if self.session else None

    @property
    def _columns(self) -> int:
        return max(10, self.size.width)

    @property
    def _last_top(self) -> int:
        height = self._view.layout.height if self._view else 0
        return max(0, height - self.size.height)

    def _refresh_rows(self, changed: list[range]) -> None:
        top, height, width = round(self.scroll_y), self.size.height, self.size.width
        for rows in changed:
            start, stop = max(rows.start - top, 0), min(rows.stop - top, height)
            if start < stop:
                self.refresh(Region(0, start, width, stop - start))

    def _scroll(self, view: _View) -> None:
        """Go where one stands, and say what is in sight."""
        top = self._last_top if view.top is None else min(view.top, self._last_top)
        self.scroll_to(y=top, animate=False, immediate=True, force=True)
        height = view.layout.height
        below = max(0, height - top - self.size.height)
        position = Position(top, below, max(0, height - view.known) if below and view.top is not None else 0)
        if position != self._position:
            self._position = position
            self.post_message(self.Moved(position))

    # ── where one stands ────────────────────────────────────────────────────────────────────────────────────────────

    def action_stand(self, top: int | None) -> None:
        """Show the document from this row on; None follows its end."""
        view = self._view
        if view is not None:
            if top is not None and top >= self._last_top:
                top = None
            if view.top is None and top is not None:
                view.known = view.layout.height
            view.top = None if top is None else max(0, top)
            self._scroll(view)

    def action_scroll_rows(self, rows: int) -> None:
        """Move by so many rows."""
        self.action_stand(round(self.scroll_y) + rows)

    def action_scroll_pages(self, pages: int) -> None:
        """Move by so many screens, keeping one row in sight."""
        self.action_stand(round(self.scroll_y) + pages * max(1, self.size.height - 1))

    def action_leave(self) -> None:
        """Go back to the prompt."""
        self.post_message(self.Left())

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.prevent_default()
        event.stop()
        self.action_scroll_rows(-3)

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.prevent_default()
        event.stop()
        self.action_scroll_rows(3)

    async def on_key(self, event: events.Key) -> None:
        """Printable keys are commands here, as they are behind Esc."""
        character = event.character if event.is_printable else escaped_character(event.key)
        bound = event.key in self.screen.active_bindings
        if character and not bound:
            event.stop()
            await self.run_action(f"screen.command({character!r})")

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_resize(self, _: events.Resize) -> None:
        """Lay out anew."""
        self.update()

    def render_line(self, y: int) -> Strip:
        """Draw one row of the screen."""
        view, width, style = self._view, self.size.width, self.rich_style
        row = round(self.scroll_y) + y
        if view is None:
            return Strip.blank(width, style)
        if view.welcomes and row >= view.layout.height:
            return self._welcome(y).adjust_cell_length(width, style).apply_style(style)
        return view.layout.line(row).adjust_cell_length(width, style).apply_style(style)

    def _welcome(self, y: int) -> Strip:
        row = y - (self.size.height - len(WELCOME) - 1)
        text = WELCOME[row] if 0 <= row < len(WELCOME) else ""
        return Strip(line((text, "dim")).render(self.app.console))
