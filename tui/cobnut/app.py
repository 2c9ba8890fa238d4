"""The program on the screen: it composes the console, the bridge and the terminal, and ends in one way."""

from __future__ import annotations

import logging
import signal
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from textual import events, on
from textual.app import App
from textual.message import Message

from cobnut.screens.choices import command_choices
from cobnut.screens.console import Console
from cobnut.screens.help import Help, binding_section, command_section
from cobnut.screens.picker import Picker
from cobnut.screens.question import Asked, Question, Waiting
from cobnut.terminal.driver import TerminalDriver, TerminalLost
from cobnut.widgets.cells import Cells
from cobnut.widgets.pane import Pane
from cobnut.widgets.prompt import Editor

if TYPE_CHECKING:
    from rich.console import RenderableType
    from textual.driver import Driver
    from textual.notifications import SeverityLevel
    from textual.screen import Screen
    from textual.strip import Strip

    from cobnut.kernels import Kernels

HANGUP: Final = 128 + signal.SIGHUP
"""The exit status when the terminal is gone."""

UNNOTICED: Final = 0.3
"""Seconds that stopping the kernels may take before the screen changes for it."""

_log = logging.getLogger(__name__)


class EndRequested(Message):
    """The process was asked to end, by a signal."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status: int = status


class CobnutApp(App[int]):
    """Runs until it is left, and returns the exit status.

    Attributes:
        crash: the error that ended it, if one did.
        is_leaving: whether it stops the kernels, to end then.
    """

    CSS_PATH = "app.tcss"
    TITLE = "cobnut"
    ENABLE_COMMAND_PALETTE = False  # ours is a list like the others, and costs a line a row

    def __init__(self, kernels: Kernels, *, ascii_only: bool = False) -> None:
        super().__init__(ansi_color=True)  # or else NO_COLOR would mean greys to Textual, and black on black for ours
        self.kernels: Kernels = kernels
        self.console_screen: Console = Console(kernels)
        self.crash: Exception | None = None
        self.is_leaving: bool = False
        self._takes_keys: bool = False
        self._typed_early: deque[events.Event] = deque()
        self._first_frame: list[Strip] | None = None
        self._is_settled: bool = False
        self.set_class(ascii_only, "-ascii")
        self.theme = "ansi-dark"
        self.animation_level = "none"

    # ── the terminal ────────────────────────────────────────────────────────────────────────────────────────────────

    def get_driver_class(self) -> type[Driver]:
        """Read keys in our own way."""
        return TerminalDriver

    def get_default_screen(self) -> Screen[Any]:
        """Begin with the console."""
        return self.console_screen

    async def on_event(self, event: events.Event) -> None:
        """Let events in: the one place where keys enter. What is typed before there is a prompt waits for it."""
        if isinstance(event, events.Key | events.Paste) and not self._takes_keys:
            self._typed_early.append(event)
        else:
            await super().on_event(event)

    async def on_descendant_focus(self) -> None:
        """Let in what was typed before the prompt was there; what comes later comes behind it."""
        while self._typed_early:
            await super().on_event(self._typed_early.popleft())
        self._takes_keys = True

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Send a frame: the one place where frames leave. The terminal's own cursor stands in the prompt."""
        is_first = self._first_frame is None
        if self._driver is None or renderable is None or self._batch_count or not self._may_draw():
            return
        if is_first:
            renderable = self.screen._compositor.render_full_update()
        self._driver.write("\x1b[?25l")
        editor = self.focused if isinstance(self.focused, Editor) else None
        if editor is not None:
            self.cursor_position = editor.cursor_screen_offset  # Textual asked for it before the editor had its place
        super()._display(screen, renderable)
        if editor is not None:
            self._driver.write("\x1b[?25h")

    def _may_draw(self) -> bool:
        """Let the first frame pass when all parts have their places, and then none until Textual has settled.

        It lays out several times at its start, and would send the same whole screen as often.
        """
        if self._first_frame is None and self.console_screen.pane.cells.size:
            self.console_screen.pane.cells.lay_out()
            self._first_frame = self.screen._compositor.render_strips()
            self.call_after_refresh(self._settle)
            return True
        return self._is_settled

    def _settle(self) -> None:
        self._is_settled = True
        if self._first_frame != self.screen._compositor.render_strips():
            self.screen.refresh()

    def action_redraw(self) -> None:
        """Draw the whole screen again."""
        self.screen.refresh(layout=True)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_mount(self) -> None:
        """Let messages of the kernels in, after the first frame: what that imports can wait so long."""
        self.console_screen.pane.editor.set_class(self.is_headless, "-painted-cursor")
        # The shell has stopped us, and now goes on: its screen is where ours was.
        self.app_resume_signal.subscribe(self, self._redraw_when_resumed)
        self.call_after_refresh(self._let_messages_in)

    def _let_messages_in(self) -> None:
        self.run_worker(self.kernels.run(), name="kernels")

    def end(self, status: int) -> None:
        """Leave with this exit status; for signal handlers, so it wakes a loop that sleeps.

        Raises:
            SystemExit: the screen is not there yet, or not any more.
        """
        if self._loop is None:
            raise SystemExit(status)
        self._loop.call_soon_threadsafe(self.post_message, EndRequested(status))

    def let_go_of_terminal(self) -> None:
        """Go on without the terminal."""
        if isinstance(self._driver, TerminalDriver):
            self._driver.let_go()

    def _redraw_when_resumed(self, _: App[Any]) -> None:
        self.action_redraw()

    @on(EndRequested)
    def _end(self, message: EndRequested) -> None:
        self.leave(message.status)

    @on(TerminalLost)
    def _end_without_terminal(self) -> None:
        self.leave(HANGUP)

    async def action_quit(self) -> None:
        """Leave; ask first when something runs, and do not wait when asked again."""
        sessions = self.kernels.sessions
        running = sum(len(session.document.running) + len(session.document.queued) for session in sessions)
        if self.is_leaving or not running:
            self.leave()
            return
        cells = "1 cell runs" if running == 1 else f"{running} cells run or wait"
        asked = Asked("Quit?", f"{cells}. Quitting stops all kernels.", "s", "stop and quit")
        self.push_screen(Question(asked, self.leave))

    def leave(self, status: int = 0) -> None:
        """Stop all kernels and end with this exit status; asked again, do not wait for them."""
        again, self.is_leaving = self.is_leaving, True
        if not again:
            self.console_screen.status.say("Stopping the kernels.")
            self.set_timer(UNNOTICED, lambda: self.push_screen(Waiting(self.leave)))
        self.run_worker(self._leave(status, now=again), name="leave", exit_on_error=False)

    async def _leave(self, status: int, *, now: bool) -> None:
        try:
            await self.kernels.stop_all(now=now)
        except Exception:
            _log.exception("stopping the kernels failed")
        self.exit(status)

    def _handle_exception(self, error: Exception) -> None:
        self.crash = self.crash or error
        super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """End; whoever started us writes the traceback to the log, and says where."""
        self._close_messages_no_wait()

    # ── what can be asked for ───────────────────────────────────────────────────────────────────────────────────────

    async def run_action(self, action: Any, *arguments: Any, **options: Any) -> bool:
        """Carry out an action; one that fails is said and logged, and everything goes on.

        What was said before is no longer about what is done now.
        """
        self.console_screen.status.hush()
        try:
            return await super().run_action(action, *arguments, **options)
        except Exception as error:
            _log.exception("the action %s failed", action)
            self.console_screen.status.say(f"That failed: {error or type(error).__name__}", is_warning=True)
            return True

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Say something in the status line: one row, and nothing that covers the cells."""
        text = f"{title}: {message}" if title else message
        self.console_screen.status.say(text, is_warning=severity != "information")

    def action_palette(self) -> None:
        """Find a command by its name."""
        self.push_screen(Picker("Command:", command_choices(), partial(self.call_next, self.console_screen.carry_out)))

    def action_help(self) -> None:
        """Show the keys, those for what has the focus first."""
        prompt = binding_section("In the prompt", [*Editor.ENTERING, *Pane.SCROLLING])
        cells = binding_section("In the cells", Cells.BINDINGS)
        editing = binding_section("Editing", Editor.EDITING)
        is_in_cells = isinstance(self.focused, Cells)
        first, others = (cells, [prompt, editing]) if is_in_cells else (prompt, [editing, cells])
        self.push_screen(Help([first, command_section(), *others]))
