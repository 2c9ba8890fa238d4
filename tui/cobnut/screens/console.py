"""The console: the kernels, and one of them in the pane."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen

from cobnut.commands import CELLS_HINTS, IDLE_HINTS, RUNNING_HINTS, Command, EscapeLetters, Unknown, bindings
from cobnut.screens.choices import session_choices, spec_choices
from cobnut.screens.picker import Picker
from cobnut.screens.question import Asked, Question
from cobnut.widgets.frame import Status, StatusLine
from cobnut.widgets.kernel_list import KernelStrip, Sidebar
from cobnut.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult
    from textual.timer import Timer

    from cobnut.commands import Hint
    from cobnut.kernel_status import Status as KernelStatus
    from cobnut.kernels import Kernels
    from cobnut.session import Session
    from cobnut.widgets.prompt import Editor


_WIDTHS: Final = [(0, "-narrow"), (72, "-standard"), (110, "-wide")]
_HEIGHTS: Final = [(0, "-tiny"), (10, "-short"), (16, "-tall")]
"""From how many columns and rows on the screen has these classes; the style sheet says what they are for."""


class Console(Screen[None]):
    """Shows the kernels; keys come in, and the bridge carries out what they ask for."""

    HORIZONTAL_BREAKPOINTS = _WIDTHS
    AUTO_FOCUS = "Editor"
    VERTICAL_BREAKPOINTS = _HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("screen"),
        *bindings("app"),
        Binding("escape", "command_mode", "Make the next keys a command"),
    ]

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.pane: Pane = Pane(kernels.sessions[0], kernels.verdict)
        self.status: StatusLine = StatusLine()
        self.letters: EscapeLetters = EscapeLetters()
        self._kernels = kernels
        self._sidebar = Sidebar([])
        self._strip = KernelStrip([])
        self._clock: Timer | None = None
        self._said_of: tuple[Session, KernelStatus] | None = None

    @property
    def session(self) -> Session:
        """The kernel that is shown."""
        return self.pane.session

    def compose(self) -> ComposeResult:
        """Lay the parts out; the style sheet drops those that have no room."""
        with Horizontal(id="body"):
            yield self._sidebar
            with Vertical():
                yield self._strip
                yield self.pane
        yield self.status

    def on_mount(self) -> None:
        """Show the first kernel."""
        width, height = self.app.size  # Textual sets these classes after the first layout: a second one would follow
        classes = self._get_breakpoint_classes(width, _WIDTHS)
        self.add_class(*classes, *self._get_breakpoint_classes(height, _HEIGHTS))
        self._clock = self.set_interval(1.0, lambda: self._changed(self.session), pause=True)
        self._kernels.on_change = self._changed
        self.show(self.session)

    # ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, session: Session) -> None:
        """Show another kernel, its cells and its prompt."""
        self.pane.attach(session)
        self._update()

    def _changed(self, session: Session) -> None:
        """Draw what has changed in a kernel, and the clocks of what runs."""
        if session is self.session:
            self.pane.cells.update()
        self._update()

    def on_descendant_focus(self) -> None:
        """Say which keys matter now."""
        self._update()

    def _update(self) -> None:
        """Draw what says how the kernels stand, and let the clock go only while something runs."""
        now = time.monotonic()
        rows = self._kernels.rows(self.session, now)
        self._sidebar.show(rows)
        self._strip.show(rows)
        self.pane.update()
        self._hush_when_over()
        self.status.show(Status(rows, *self._mode(), self.session.notice(now)))
        if self._clock is not None:
            ticking = any(session.is_running for session in self._kernels.sessions)
            self._clock.resume() if ticking else self._clock.pause()

    def _hush_when_over(self) -> None:
        """Say no more what was said of another kernel, or of this one in another state."""
        is_of = (self.session, self.session.status)
        if is_of != self._said_of:
            self._said_of = is_of
            self.status.hush()

    def _mode(self) -> tuple[str, Sequence[Hint]]:
        """Say what the next key is for, where it is not for the prompt, and which keys matter now."""
        if self.pane.editor.is_commanding or self.letters.pressed:
            return f"COMMAND Esc {' '.join(self.letters.pressed)}".rstrip(), self.letters.hints
        if self.pane.cells.has_focus:
            return "CELLS", CELLS_HINTS
        return "", RUNNING_HINTS if self.session.is_running else IDLE_HINTS

    # ── commands behind Esc ─────────────────────────────────────────────────────────────────────────────────────────

    def action_command_mode(self) -> None:
        """Make the next printable keys a command."""
        self._command_with("", is_commanding=True)

    def action_leave_command_mode(self) -> None:
        """Let printable keys be text again."""
        self._command_with("", is_commanding=False)

    def _command_with(self, letters: str, *, is_commanding: bool) -> None:
        self.letters.pressed = letters
        self.pane.editor.is_commanding = is_commanding
        self._update()

    async def action_command(self, character: str) -> None:
        """Take a letter of a command, and carry it out when it is complete."""
        outcome = self.letters.press(character)
        self._command_with(self.letters.pressed, is_commanding=outcome is None and self.pane.editor.has_focus)
        match outcome:
            case Unknown(letters):
                self.status.say(f"Esc {' '.join(letters)} is no command: Esc ? shows all of them.", is_warning=True)
            case int(number):
                self.action_show_kernel(number)
            case Command() as command:
                await self.carry_out(command)
            case None:
                pass  # more letters follow

    async def carry_out(self, command: Command) -> None:
        """Do what a command is for."""
        await self.app.run_action(command.action, self.pane)

    # ── what can be asked for ───────────────────────────────────────────────────────────────────────────────────────

    def on_editor_entered(self, message: Editor.Entered) -> None:
        """Run what was entered, and follow it."""
        self._kernels.submit(message.session, message.code)
        if message.session is self.session:
            self.pane.cells.action_stand(None)

    def on_editor_interrupting(self, message: Editor.Interrupting) -> None:
        """Interrupt what runs."""
        if message.session.is_working:
            self._kernels.interrupt(message.session)
        else:
            self.app.notify("Nothing runs here. ^Q quits, F1 shows all keys.")

    def action_interrupt(self) -> None:
        """Interrupt what this kernel runs, or is about to."""
        if self.session.is_working:
            self._kernels.interrupt(self.session)
        else:
            self.status.say("Nothing runs in this kernel.")

    def action_restart(self) -> None:
        """Start this kernel anew; ask first, unless nothing can be lost."""
        self._ask_if_running("restart", self._kernels.restart)

    def action_stop(self) -> None:
        """Stop this kernel, asking first if it runs something; close one that has ended."""
        if self.session.status.has_ended:
            self._close(self.session)
        else:
            self._ask_if_running("stop", self._kernels.stop)

    def _ask_if_running(self, deed: str, do: Callable[[Session], None]) -> None:
        session = self.session
        if not session.document.running:
            do(session)
            return
        text = "It is running: its results and variables are lost."
        asked = Asked(f"{deed.title()} {session.name}?", text, deed[0], deed)
        self.app.push_screen(Question(asked, lambda: do(session)))

    def _close(self, session: Session) -> None:
        if len(self._kernels.sessions) == 1:
            self.status.say("This is the only kernel: Esc 0 0 starts it anew, ^Q quits.", is_warning=True)
            return
        self.action_step(-1)
        self.pane.cells.forget(session)
        self._kernels.dismiss(session)

    def action_new_kernel(self) -> None:
        """Choose a kernel and start it."""
        choices = spec_choices(self._kernels.specs)
        self.app.push_screen(Picker("Start a kernel:", choices, lambda name: self.show(self._kernels.start(name))))

    def action_switch_kernel(self) -> None:
        """Choose among the kernels that are here."""
        sessions = self._kernels.sessions
        choices = session_choices(sessions, self._kernels.rows(self.session, time.monotonic()))
        self.app.push_screen(Picker("Go to kernel:", choices, self.show, index=sessions.index(self.session)))

    def action_show_kernel(self, number: int) -> None:
        """Show the kernel with this number."""
        session = next((session for session in self._kernels.sessions if session.number == number), None)
        if session is not None:
            self.show(session)
        else:
            self.status.say(f"There is no kernel {number}: Esc n starts one.", is_warning=True)

    def action_step(self, by: int) -> None:
        """Show the next or the previous kernel."""
        sessions = self._kernels.sessions
        self.show(sessions[(sessions.index(self.session) + by) % len(sessions)])

    def action_sidebar(self) -> None:
        """Show or hide the list of kernels at the side; where there is no room for it, open it."""
        if self.has_class("-wide"):
            self.toggle_class("-no-sidebar")
        else:
            self.action_switch_kernel()
