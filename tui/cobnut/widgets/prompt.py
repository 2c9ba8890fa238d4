"""Where code is typed: the one editor, and the number of the next cell before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import TextArea

from cobnut.completeness import INDENT, Verdict, next_indent
from cobnut.model.lines import spans
from cobnut.render.code import highlighted_lines
from cobnut.render.text import rich_style
from cobnut.terminal.keys import escaped_character
from cobnut.widgets.lines import Lines, line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rich.text import Text
    from textual import events
    from textual.app import ComposeResult
    from textual.geometry import Size

    from cobnut.session import Session

AGAIN: Final = 1.0
"""Seconds in which ctrl+c after an interrupt is about the kernel still, and never clears the input."""
_COLOURED: Final = 200
"""Lines above and below the screen that are lexed with what is on it, so that a string begins where it begins."""


class Editor(TextArea, inherit_bindings=False):
    """The editor of the prompt; `is_commanding` is set from above while printable keys are commands.

    Keys are carried out here, in the order in which they came: Textual passes those that are no text to the program,
    and what is typed behind them would overtake them where a line delivers several at once.
    """

    ENTERING: ClassVar[list[BindingType]] = [
        Binding("enter", "enter", "Run if complete, else add a line"),
        Binding("ctrl+o,alt+enter", "newline", "Add a line"),
        Binding("ctrl+c", "interrupt", "Copy, interrupt, or clear the input"),
        Binding("up", "older", "Line above, or older input"),
        Binding("down", "newer", "Line below, or newer input"),
    ]
    EDITING: ClassVar[list[BindingType]] = [
        Binding("tab", "indent", "Indent"),
        Binding("shift+tab", "dedent", "Take indentation back"),
        Binding("left", "cursor_left", "Character left"),
        Binding("right", "cursor_right", "Character right"),
        Binding("ctrl+left", "cursor_word_left", "Word left"),
        Binding("ctrl+right", "cursor_word_right", "Word right"),
        Binding("home,ctrl+a", "cursor_line_start", "Beginning of the line"),
        Binding("end,ctrl+e", "cursor_line_end", "End of the line"),
        Binding("shift+left", "cursor_left(True)", "Select", key_display="Shift+arrows"),
        Binding("shift+right", "cursor_right(True)", "Select right", show=False),
        Binding("shift+up", "cursor_up(True)", "Select up", show=False),
        Binding("shift+down", "cursor_down(True)", "Select down", show=False),
        Binding("shift+home", "cursor_line_start(True)", "Select to the beginning of the line", show=False),
        Binding("shift+end", "cursor_line_end(True)", "Select to the end of the line", show=False),
        Binding("backspace", "delete_left", "Delete to the left"),
        Binding("delete,ctrl+d", "delete_right", "Delete to the right"),
        Binding("ctrl+w,alt+backspace", "delete_word_left", "Delete the word to the left"),
        Binding("ctrl+u", "delete_to_start_of_line", "Delete to the beginning of the line"),
        Binding("ctrl+k", "delete_to_end_of_line_or_delete_line", "Delete to the end of the line"),
        Binding("ctrl+x", "cut", "Cut"),
        Binding("ctrl+v", "paste", "Paste what was cut or copied here"),
        Binding("ctrl+z,ctrl+underscore", "undo", "Undo"),
        Binding("ctrl+y", "redo", "Redo"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [*ENTERING, *EDITING]

    @dataclass
    class Entered(Message):
        """Code is to be run in a kernel."""

        session: Session
        code: str

    @dataclass
    class Interrupting(Message):
        """What runs in a kernel is to be interrupted; it goes the way of what was entered before, and comes after."""

        session: Session

    def __init__(self, verdict: Callable[[Session, str], Awaitable[Verdict]]) -> None:
        super().__init__(soft_wrap=True, compact=True, highlight_cursor_line=False)
        self.cursor_blink = False
        self.session: Session | None = None
        self.is_commanding: bool = False
        self._verdict = verdict
        self._interrupted_at = float("-inf")
        self._colours: tuple[int, Sequence[str]] | None = None

    def on_mount(self) -> None:
        """Make the lexer ready, beside the first frames, before the first key needs it."""
        language = self.session.language if self.session else "python"
        self.set_timer(0.1, lambda: self.run_worker(partial(highlighted_lines, "pass", language), thread=True))

    # ── whose input it is ───────────────────────────────────────────────────────────────────────────────────────────

    def attach(self, session: Session) -> None:
        """Edit the input of another kernel; what stands here is kept with the one before."""
        if session is not self.session:
            if self.session is not None:
                self.session.draft = self.text
            self.session = session
            self._load(session.draft)

    def _load(self, text: str) -> None:
        self.load_text(text)
        self.move_cursor(self.document.end)

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _on_key(self, event: events.Key) -> None:
        """Carry out one key: what is typed is inserted, what is bound runs, what follows Esc is a command."""
        event.prevent_default()
        event.stop()
        if self.app.focused is not self:  # the focus went elsewhere meanwhile, and this was typed for that
            self.app.post_message(type(event)(event.key, event.character))
            return
        if self.is_commanding:
            if event.is_printable:
                await self._command(event.character or "")
                return
            await self.run_action("screen.leave_command_mode")
            if event.key in ("escape", "enter"):
                return
        if self.check_consume_key(event.key, event.character):
            await super()._on_key(event)
        elif not await self._run_binding(event.key) and (character := escaped_character(event.key)):
            await self._command(character)

    async def _run_binding(self, key: str) -> bool:
        active = self.screen.active_bindings.get(key)
        if active is not None:
            await self.app.run_action(active.binding.action, active.node)
        return active is not None

    async def _command(self, character: str) -> None:
        await self.run_action(f"screen.command({character!r})")

    async def _on_paste(self, event: events.Paste) -> None:
        """Insert what is pasted, as text: nothing in it runs, and no control character comes along."""
        event.prevent_default()
        event.stop()
        if self.is_commanding:
            await self.run_action("screen.leave_command_mode")
        text = "".join(c for c in event.text if c.isprintable() or c in "\n\t")
        self.replace(text, *self.selection, maintain_selection_offset=False)

    async def action_enter(self) -> None:
        """Run the input if it is complete; else, or with the cursor above the last line, add a line."""
        code = self.text
        if self.session is None or not code.strip():
            return
        if self.cursor_location[0] == self.document.line_count - 1 and (await self._verdict(self.session, code)).runs:
            self.action_run()
        else:
            self.action_newline()

    def action_run(self) -> None:
        """Run the input as it is."""
        code = self.text.strip("\n").rstrip()
        if self.session is None or not code:
            return
        if self.session.status.has_ended:
            self.app.notify("This kernel has ended, and the input is kept. Esc 0 0 starts it anew.", severity="warning")
            return
        self.post_message(self.Entered(self.session, code))
        self._load("")

    def action_newline(self) -> None:
        """Add a line, indented as Python would have it."""
        before = self.get_text_range((0, 0), self.selection.start)
        self.replace("\n" + next_indent(before), *self.selection, maintain_selection_offset=False)

    def action_interrupt(self) -> None:
        """Copy a selection, or interrupt what runs, or clear the input, whatever there is first."""
        is_again = time.monotonic() - self._interrupted_at < AGAIN
        is_wanted = is_again or (self.session is not None and self.session.is_working)
        if self.selected_text:
            self.action_copy()
        elif self.text and not is_wanted:
            self.clear()
        elif self.session is not None:
            self._interrupted_at = time.monotonic() if is_wanted else self._interrupted_at
            self.post_message(self.Interrupting(self.session))

    def action_delete_right(self) -> None:
        """Delete what is selected, or a character; where there is none, say how to leave, as ctrl+d does elsewhere."""
        if self.text:
            super().action_delete_right()
        else:
            self.app.notify("^Q quits and stops the kernels.")

    # ── history and indentation ─────────────────────────────────────────────────────────────────────────────────────

    def action_older(self) -> None:
        """Go up; from the first line, back to the input before."""
        place = self.cursor_location
        if place[0] > 0 or not self.navigator.is_first_wrapped_line(place) or self.session is None:
            self.action_cursor_up()
        elif (text := self.session.history.older(self.text)) is not None:
            self._load(text)
            self.move_cursor((0, len(self.document.get_line(0))))

    def action_newer(self) -> None:
        """Go down; from the last line, on to the input after."""
        place = self.cursor_location
        is_last = place[0] == self.document.line_count - 1 and self.navigator.is_last_wrapped_line(place)
        if not is_last or self.session is None:
            self.action_cursor_down()
        elif (text := self.session.history.newer(self.text)) is not None:
            self._load(text)

    def action_indent(self) -> None:
        """Insert spaces up to the next step of indentation."""
        column = self.cursor_location[1]
        self.replace(" " * (len(INDENT) - column % len(INDENT)), *self.selection, maintain_selection_offset=False)

    def action_dedent(self) -> None:
        """Take one step of indentation off the line."""
        row = self.cursor_location[0]
        text = self.document.get_line(row)
        blanks = min(len(INDENT), len(text) - len(text.lstrip(" ")))
        self.delete((row, 0), (row, blanks))

    def action_delete_left(self) -> None:
        """Delete what is selected, a step of indentation, or a character."""
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        if self.selection.is_empty and before and not before.strip(" "):
            self.delete((row, (column - 1) // len(INDENT) * len(INDENT)), (row, column))
        else:
            super().action_delete_left()

    # ── colours ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _build_highlight_map(self) -> None:
        super()._build_highlight_map()
        self._colours = None

    def get_line(self, line_index: int) -> Text:
        """Return a line with its colours."""
        text = super().get_line(line_index)
        if not text.plain.strip():  # an empty prompt needs no lexer, and the first screen does not wait for one
            return text
        first, lines = self._lexed(line_index)
        if 0 <= line_index - first < len(lines):
            column = 0
            for piece, style in spans(lines[line_index - first]):
                if style:
                    text.stylize(rich_style(style), column, column + len(piece))
                column += len(piece)
        return text

    def _lexed(self, line_index: int) -> tuple[int, Sequence[str]]:
        """Colour the lines around one, and keep them until the text changes."""
        if self._colours is None or not 0 <= line_index - self._colours[0] < max(1, len(self._colours[1])):
            first = max(0, line_index - _COLOURED)
            lines = self.document.lines[first : line_index + _COLOURED]
            language = self.session.language if self.session else "python"
            code = "\n".join(text.replace("\t", " ") for text in lines)
            self._colours = (first, highlighted_lines(code, language))
        return self._colours


class PromptLabel(Lines[int]):
    """`In [10]: ` before the first line of the input."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the label."""
        return [line((f"In [{self.content}]: ", "green"))]

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """As wide as the label."""
        return len(f"In [{self.content}]: ")


class Prompt(Horizontal):
    """The label and the editor."""

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.editor: Editor = editor
        self.label: PromptLabel = PromptLabel(1)

    def compose(self) -> ComposeResult:
        """Put the label before the editor."""
        yield self.label
        yield self.editor

    def show_number(self, number: int) -> None:
        """Show the number that the next cell will have."""
        if number != self.label.content:
            resized = len(str(number)) != len(str(self.label.content))
            self.label.show(number)
            self.label.refresh(layout=resized)
