"""How the program ends: by a signal, by a crash, or by being left; always with the terminal as it was."""

from __future__ import annotations

import logging
import os
import signal
import sys
import termios
import threading
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cobnut.places import log_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

SLOW: Final = 2.0
"""Seconds after which the end goes on without the terminal: it may be one that takes nothing any more."""
PATIENCE: Final = 15.0
"""Seconds that an ordered end may take once a signal has come; then the process ends whatever hangs.

Kernels that are left then are ended by their guard."""

_SIGNALS: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
_RESET: Final = "\x1b[<u\x1b[?2004l\x1b[?1003l\x1b[?1006l\x1b[?1000l\x1b[?1004l\x1b[?1049l\x1b[?25h"
"""Leaves what the screen has switched on: keyboard protocol, paste, mouse, focus, second screen, hidden cursor."""

_log = logging.getLogger(__name__)


class Ending:
    """Ends the program when a signal asks for it, and reports a crash.

    Attributes:
        leave: ends the screen in an ordered way, in any thread; None while there is no screen.
        let_go: ends it without writing to the terminal, which may be why nothing happens.
    """

    def __init__(self) -> None:
        self.leave: Callable[[int], object] | None = None
        self.let_go: Callable[[], object] = lambda: None
        self._terminal: list[Any] | None = None
        with suppress(termios.error):
            self._terminal = termios.tcgetattr(sys.stdin.fileno())

    def watch_signals(self) -> None:
        """Let SIGHUP, SIGTERM and SIGINT end the program as quitting does."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def guard(self, work: Callable[[], int]) -> int:
        """Do the program's work; a crash goes to the log, and where that is to the terminal."""
        try:
            return work()
        except Exception as error:
            _log.critical("cobnut crashed", exc_info=error)
            self._restore_terminal()
            with suppress(OSError):
                print(_obituary(error), file=sys.stderr)  # noqa: T201 - the screen is gone
            return 1

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        status = 128 + number
        _later(SLOW, self.let_go)
        _later(PATIENCE, lambda: self._abandon(status))
        if self.leave is None:
            raise SystemExit(status)
        self.leave(status)

    def _abandon(self, status: int) -> None:
        _log.critical("the end took more than %g seconds: something hangs", PATIENCE)
        self._restore_terminal(_RESET)
        os._exit(status)

    def _restore_terminal(self, reset: str = "") -> None:
        if self._terminal is not None:
            with suppress(termios.error, OSError):
                if reset:
                    os.set_blocking(sys.stderr.fileno(), False)
                    os.write(sys.stderr.fileno(), reset.encode())
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._terminal)


def _later(seconds: float, work: Callable[[], object]) -> None:
    """Do something after a while, whatever the other threads do."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()


def _obituary(error: Exception) -> str:
    """Say what has happened, and where the details are; they follow where no log could be written."""
    text = f"cobnut ended because of an error: {type(error).__name__}: {error}"
    if log_path().exists():
        return f"{text}\nThe details are in {log_path()}"
    return "".join([*traceback.format_exception(error), text])
