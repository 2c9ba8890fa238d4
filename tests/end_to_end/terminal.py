"""A program in a real pseudo-terminal, with an xterm's screen to look at and keys to press."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
import uuid
from typing import TYPE_CHECKING, Self

import psutil

from .emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .emulator import Screen

_MARK = "COBNUT_TEST_TERMINAL"
"""The variable by which every process that the program started is known, whatever session it moved to."""
_NOT_A_PLAIN_XTERM = ("COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "STY", "TERM_PROGRAM", "TMUX", "VTE_VERSION")
_READ = 1 << 16
_NAMED_KEYS = {
    "enter": "\r", "tab": "\t", "escape": "\x1b", "backspace": "\x7f", "space": " ", "shift+tab": "\x1b[Z",
    "delete": "\x1b[3~", "insert": "\x1b[2~", "pageup": "\x1b[5~", "pagedown": "\x1b[6~",
    "f1": "\x1bOP", "f2": "\x1bOQ", "f3": "\x1bOR", "f4": "\x1bOS", "f5": "\x1b[15~", "f6": "\x1b[17~",
    "f7": "\x1b[18~", "f8": "\x1b[19~", "f9": "\x1b[20~", "f10": "\x1b[21~", "f11": "\x1b[23~", "f12": "\x1b[24~",
    "ctrl+space": "\x00", "ctrl+backslash": "\x1c",
}  # fmt: skip
_CURSOR_KEYS = {"up": "A", "down": "B", "right": "C", "left": "D", "home": "H", "end": "F"}
_MODIFIERS = {"shift": 2, "alt": 3, "ctrl": 5}
_DEFAULT_SIGNALS = [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM]


class ScreenError(AssertionError):
    """The screen did not become what was waited for; the message shows it."""


class Terminal:
    """Run a program in a pseudo-terminal of its own session, as a user sees it in a plain xterm.

    Nothing is read behind the caller's back: what the program writes is taken, and its questions are answered, in
    the methods that wait. Leaving the context kills the program and everything that it started. Linux only.

    Example: `with Terminal(["cobnut"]) as terminal: terminal.wait_for("In [1]"); terminal.press("6", "enter")`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        columns: int = 120,
        lines: int = 36,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start the program; `env` is added to our environment, and None takes a variable away."""
        self.received = bytearray()
        self.exit_code: int | None = None
        self._emulator = Emulator(columns, lines)
        self._unsent = bytearray()
        self._mark = uuid.uuid4().hex
        self._environment = _environment({**(env or {}), _MARK: self._mark})
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self._open = True
        self._set_size(columns, lines)
        self.started = self.last_read = time.perf_counter()
        try:
            self.pid = self._spawn(argv, os.ttyname(slave), cwd)
        except OSError:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        self._ended = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- look ---

    @property
    def screen(self) -> Screen:
        """Return pyte's screen as it stands after what was read: buffer, cursor, title, colours."""
        return self._emulator.screen

    @property
    def lines(self) -> list[str]:
        """Return the text of the screen, a string per line without blanks at its end."""
        return self.screen.text_lines

    @property
    def text(self) -> str:
        """Return the text of the screen."""
        return "\n".join(self.lines)

    @property
    def modes(self) -> frozenset[int]:
        """Return the private modes that are set; {7, 25} is a terminal that was left as it was found."""
        return self._emulator.modes

    def processes(self) -> list[psutil.Process]:
        """Return what runs of all that the program started, itself included, whoever is its parent by now."""
        return [process for process in psutil.process_iter() if self._started(process)]

    # --- act ---

    def send(self, data: str | bytes) -> None:
        """Send bytes as they are; what the program does not read yet is sent while we wait for something."""
        self._unsent += data.encode() if isinstance(data, str) else data
        self._write()

    def press(self, *keys: str) -> None:
        """Press keys one after the other: characters, or names as in Textual ("enter", "ctrl+c", "alt+x", "f1")."""
        for key in keys:
            self.send(key_sequence(key, application=1 in self.modes))

    def paste(self, text: str) -> None:
        """Paste text: in brackets where the program asked for them, with returns for line ends, as an xterm does."""
        text = text.replace("\n", "\r")
        self.send(f"\x1b[200~{text}\x1b[201~" if 2004 in self.modes else text)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size; the program gets SIGWINCH."""
        self._emulator.resize(columns, lines)
        self._set_size(columns, lines)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the terminal under the program, which gets SIGHUP and then ends of file."""
        if self._open:
            self._open = False
            os.close(self._master)

    def close(self) -> None:
        """Kill the program and everything that it started, and give the terminal back."""
        while found := self.processes():
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._reap()
            time.sleep(0.005)  # the system is ending them
        self.hang_up()
        self._reap(0)
        if self._ended >= 0:
            os.close(self._ended)
            self._ended = -1

    # --- wait ---

    def wait_until(self, condition: Callable[[], object], timeout: float = 10, what: str = "") -> float:
        """Wait until the condition holds, and return the time (perf_counter) of the read that made it so.

        Raises:
            ScreenError: after `timeout` seconds, or at once where the program has ended without it.
        """
        deadline = time.perf_counter() + timeout
        what = what or getattr(condition, "__name__", "the condition")
        while not condition():
            remaining = deadline - time.perf_counter()
            if self.exit_code is not None and not self.pump(0):
                raise self._error(f"The program ended before {what}")
            if remaining <= 0:
                raise self._error(f"Not within {timeout} s: {what}")
            self.pump(min(remaining, 0.05))
        return self.last_read

    def wait_for(self, text: str, timeout: float = 10) -> float:
        """Wait until the text stands somewhere in a line of the screen; times and errors as `wait_until`."""
        return self.wait_until(lambda: any(text in line for line in self.lines), timeout, f"{text!r} on the screen")

    def wait_for_exit(self, timeout: float = 10) -> int:
        """Wait until the program has ended; return its exit code, negative for a signal.

        Raises:
            ScreenError: after `timeout` seconds.
        """
        deadline = time.perf_counter() + timeout
        while self.exit_code is None:
            if (remaining := deadline - time.perf_counter()) <= 0:
                raise self._error(f"The program has not ended within {timeout} s")
            self.pump(min(remaining, 0.05))
        while self.pump(0):
            pass
        return self.exit_code

    def watch(self, seconds: float) -> int:
        """Let time pass; return how many bytes came."""
        before, deadline = len(self.received), time.perf_counter() + seconds
        while (remaining := deadline - time.perf_counter()) > 0:
            self.pump(remaining)
        return len(self.received) - before

    def settle(self, quiet: float = 0.2, timeout: float = 10) -> int:
        """Wait until nothing came for `quiet` seconds; return how many bytes came.

        Raises:
            ScreenError: where the program is never quiet.
        """
        before, deadline = len(self.received), time.perf_counter() + timeout
        while self.watch(quiet):
            if time.perf_counter() > deadline:
                raise self._error(f"The program was never quiet for {quiet} s within {timeout} s")
        return len(self.received) - before

    def pump(self, seconds: float) -> bool:
        """Read once what the program writes within so many seconds, answer it; return whether something came."""
        poll = select.poll()
        if self._open:
            poll.register(self._master, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if self.exit_code is None:
            poll.register(self._ended, select.POLLIN)
        events = dict(poll.poll(max(0, seconds) * 1000))
        if self._ended in events:
            self._reap()
        if events.get(self._master, 0) & select.POLLOUT:
            self._write()
        return bool(events.get(self._master, 0) & ~select.POLLOUT) and self._read()

    # --- inside ---

    def _spawn(self, argv: Sequence[str], tty: str, cwd: Path | None) -> int:
        """Start the program in a session of its own, whose terminal is the first that it opens.

        Not by `pty.fork`: Python refuses to fork quietly where threads run, and a test's timeout is a thread.
        """
        actions = [(os.POSIX_SPAWN_OPEN, 0, tty, os.O_RDWR, 0), *((os.POSIX_SPAWN_DUP2, 0, fd) for fd in (1, 2))]
        with contextlib.chdir(cwd or "."):
            return os.posix_spawnp(
                argv[0], list(argv), self._environment, file_actions=actions, setsid=True, setsigdef=_DEFAULT_SIGNALS
            )

    def _set_size(self, columns: int, lines: int) -> None:
        if self._open:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while self._unsent and self._open:
                del self._unsent[: os.write(self._master, self._unsent)]

    def _read(self) -> bool:
        try:
            data = os.read(self._master, _READ)
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self.hang_up()
            return False
        self.last_read = time.perf_counter()
        self.received += data
        if answer := self._emulator.feed(data):
            self.send(answer)
        return True

    def _reap(self, options: int = os.WNOHANG) -> None:
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)

    def _started(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get(_MARK) == self._mark
        return False

    def _error(self, message: str) -> ScreenError:
        state = "running" if self.exit_code is None else f"ended with {self.exit_code}"
        screen, rule = self.screen, "-" * self.screen.columns
        place = f"cursor in line {screen.cursor.y + 1}, column {screen.cursor.x + 1}"
        return ScreenError(f"{message}.\nThe program is {state}; {place}:\n{rule}\n{self.text}\n{rule}")


def key_sequence(key: str, *, application: bool = False) -> str:
    """Return what a plain xterm sends for a key; `application` is its mode for the cursor keys.

    Raises:
        ValueError: for a key that such a terminal does not have.
    """
    if len(key) == 1:
        return key
    if key in _NAMED_KEYS:
        return _NAMED_KEYS[key]
    if key in _CURSOR_KEYS:
        return ("\x1bO" if application else "\x1b[") + _CURSOR_KEYS[key]
    modifier, _, rest = key.partition("+")
    if rest in _CURSOR_KEYS and modifier in _MODIFIERS:
        return f"\x1b[1;{_MODIFIERS[modifier]}{_CURSOR_KEYS[rest]}"
    if modifier == "alt" and rest:
        return "\x1b" + key_sequence(rest)
    if modifier == "ctrl" and len(rest) == 1 and "@" <= rest.upper() <= "_":
        return chr(ord(rest.upper()) & 0x1F)
    raise ValueError(f"A plain xterm has no key {key!r}.")


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return our environment with a plain xterm in it, and the changes."""
    plain = {**dict.fromkeys(_NOT_A_PLAIN_XTERM), "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    return {name: value for name, value in {**os.environ, **plain, **changes}.items() if value is not None}
