"""How the terminal is held: read by a thread that sleeps while nothing is typed; its loss is noticed and said."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message
from textual.messages import InBandWindowResize

from cobnut.terminal.keys import KeyReader

if TYPE_CHECKING:
    from textual.app import App

_READ_SIZE: Final = 1 << 16


class TerminalLost(Message):
    """The terminal is gone: hung up, or at the end of its input."""


class _Output:
    """The terminal as a file that may vanish: then nothing is written, and no thread dies or waits for it.

    It writes to the descriptor itself: a buffered file that hangs in a write would be waited for when Python ends.
    """

    def __init__(self, file: TextIO) -> None:
        self.lost = False
        self._descriptor = file.fileno()
        self._encoding = file.encoding

    def write(self, text: str) -> None:
        data = text.encode(self._encoding, "replace")
        while data and not self.lost:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:  # EIO after a hangup
                self.lost = True

    def flush(self) -> None:
        """Have nothing to flush."""

    def fileno(self) -> int:
        return self._descriptor


class TerminalDriver(LinuxDriver):
    """Textual's driver with our keys; stock Textual asks ten times a second, and spins at the end of the input."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._output = _Output(cast("TextIO", self._file))
        self._file: Any = self._output  # pyright: ignore[reportIncompatibleVariableOverride] - as much of a file as is used
        self._wake: tuple[int, int] | None = None

    def start_application_mode(self) -> None:
        """Take the terminal, at the start and whenever the program was stopped by the shell and goes on."""
        self._close_wake()
        self._wake = os.pipe()
        super().start_application_mode()

    def _get_terminal_size(self) -> tuple[int, int]:
        """Ask the terminal that we draw on: COLUMNS may be of another, and stdout may be a file."""
        try:
            width, height = os.get_terminal_size(self._output.fileno())
        except OSError:
            return super()._get_terminal_size()
        return (width, height) if width and height else super()._get_terminal_size()

    def write(self, data: str) -> None:
        """Write `data`, unless the terminal is gone: the writing thread's queue would fill, and stop the program."""
        if not self._output.lost:
            super().write(data)

    def process_message(self, message: Message) -> None:
        """Pass an event on; the terminal is never asked to report its size as text, SIGWINCH does it."""
        if not isinstance(message, InBandWindowResize):
            super().process_message(message)

    def run_input_thread(self) -> None:
        """Read until the program stops listening, or the terminal is gone."""
        assert self._wake is not None
        reader, wake = KeyReader(), self._wake[0]
        while True:
            timeout = None if reader.deadline is None else max(0.0, reader.deadline - time.monotonic())
            ready, _, _ = select.select([self.fileno, wake], [], [], timeout)
            if wake in ready:
                return
            data = self._read() if ready else None
            if data == b"":
                self._lose()
                return
            now = time.monotonic()
            for event in reader.tick(now) if data is None else reader.feed(data, now):
                self.process_message(event)

    def _read(self) -> bytes:
        try:
            return os.read(self.fileno, _READ_SIZE)
        except OSError:  # EIO: the terminal has hung up
            return b""

    def _lose(self) -> None:
        self._output.lost = True
        self.send_message(TerminalLost())

    def disable_input(self) -> None:
        """Stop listening at once."""
        if self._wake is not None and not self.exit_event.is_set():
            os.write(self._wake[1], b"x")
        super().disable_input()

    def let_go(self) -> None:
        """Write no more: the terminal takes nothing. Whoever waits to write goes on. May be called in any thread."""
        self._output.lost = True
        if self._writer_thread is not None:
            waiting = self._writer_thread._queue
            with suppress(Empty):
                while True:
                    waiting.get_nowait()

    def close(self) -> None:
        """End the writing, unless it hangs in a terminal that takes nothing."""
        if not self._output.lost:
            super().close()
        self._close_wake()

    def _close_wake(self) -> None:
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
            self._wake = None
