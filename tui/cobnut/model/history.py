"""What was typed before, and the way back to it with the arrow keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class InputHistory:
    """Inputs in the order they were entered; walking through them keeps the draft that was being typed."""

    def __init__(self, entries: Iterable[str] = (), *, limit: int = 10_000) -> None:
        self.entries: list[str] = []
        self._limit: int = limit
        self._position: int | None = None
        self._draft: str = ""
        self._shown: str = ""
        for entry in entries:
            self.add(entry)

    def add(self, code: str) -> None:
        """Append an input, unless it is blank or equals the last one; a walk ends."""
        self._position = None
        if code.strip() and self.entries[-1:] != [code]:
            self.entries.append(code)
            del self.entries[: -self._limit]

    def older(self, text: str) -> str | None:
        """Go back to the input before that starts with the draft.

        `text` is what the editor holds now: where the last step did not put it there, it is a new draft and a new
        walk begins from it. None means there is no such input, and the walk stays where it is.
        """
        position = self._resume(text)
        for index in range(position - 1, -1, -1):
            if self._fits(self.entries[index], text):
                return self._show(index, self.entries[index])
        return None

    def newer(self, text: str) -> str | None:
        """Go forward again, in the end to the draft; None where there is nothing newer than `text`."""
        position = self._resume(text)
        if self._position is None:
            return None
        for index in range(position + 1, len(self.entries)):
            if self._fits(self.entries[index], text):
                return self._show(index, self.entries[index])
        return self._show(None, self._draft)

    def _resume(self, text: str) -> int:
        """Find where the walk stands, and begin a new one where the text was edited since."""
        if self._position is None or text != self._shown:
            self._position, self._draft = None, text
        return len(self.entries) if self._position is None else self._position

    def _fits(self, entry: str, text: str) -> bool:
        return entry != text and entry.startswith(self._draft)

    def _show(self, position: int | None, text: str) -> str:
        self._position, self._shown = position, text
        return text
