"""What opens over the console, from the bottom of the screen; the base of every question and list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from textual.screen import ModalScreen

from cobnut.terminal.keys import escaped_character

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual import events

Result = TypeVar("Result")


class Popup(ModalScreen[None], Generic[Result]):
    """Asks for something, and hands over the answer.

    Keys are carried out in the order in which they came, as in the prompt: an answer and what is typed behind it may
    arrive together, and the rest is for the prompt. Therefore the answer is handed over at once, by a callback.
    """

    def __init__(self, then: Callable[[Result], None]) -> None:
        super().__init__()
        self._then = then

    async def on_key(self, event: events.Key) -> None:
        """Carry out one key: what is bound runs, what is printable is typed."""
        event.stop()
        if not self.is_active:
            self.app.post_message(type(event)(event.key, event.character))
        elif event.key in self.active_bindings:
            active = self.active_bindings[event.key]
            await self.app.run_action(active.binding.action, active.node)
        elif character := escaped_character(event.key):
            self._take_escaped(event, character)
        elif event.is_printable and event.character:
            self.type(event.character)

    def _take_escaped(self, event: events.Key, character: str) -> None:
        """Take Esc and a character that came in one: where Esc closes this, the character is for what is behind."""
        if character.isprintable() and "escape" in self.active_bindings:
            self.action_cancel()
            key = character if character.isalnum() else event.key.removeprefix("alt+")
            self.app.post_message(type(event)(key, character))

    def type(self, character: str) -> None:
        """Take a printable character that is not bound."""

    def finish(self, result: Result) -> None:
        """Close, and hand over the answer."""
        self.dismiss()
        self._then(result)

    def action_cancel(self) -> None:
        """Close without an answer."""
        self.dismiss()
