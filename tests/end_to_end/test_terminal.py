"""The pseudo-terminal runs programs as a user's terminal does, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from .terminal import ScreenError, Terminal, key_sequence

if TYPE_CHECKING:
    from pathlib import Path

RAW = "import os, sys, tty; tty.setraw(0); w = lambda s: (sys.stdout.write(s), sys.stdout.flush()); "


def python(code: str, **options: object) -> Terminal:
    """Return a terminal in which Python runs the code."""
    return Terminal([sys.executable, "-S", "-c", code], **options)  # type: ignore[arg-type]


def test_the_program_has_a_controlling_terminal_of_the_size_asked_for() -> None:
    """It leads a session, is in the foreground, and opens /dev/tty."""
    code = "import os; tty = open('/dev/tty'); print(os.getsid(0) == os.tcgetpgrp(0) == os.getpid(), "
    with python(code + "os.get_terminal_size(), os.environ['TERM'])", columns=90, lines=20) as terminal:
        terminal.wait_for("True os.terminal_size(columns=90, lines=20) xterm-256color")
        assert terminal.wait_for_exit() == 0


def test_keys_and_answers_reach_the_program() -> None:
    """A key pressed and the terminal's own answer come in the order in which they were caused."""
    code = RAW + "w('ready\\r\\n'); print(os.read(0, 9)); w('\\r\\x1b[6n'); print(os.read(0, 9))"
    with python(code) as terminal:
        terminal.wait_for("ready")
        terminal.press("ctrl+x")
        terminal.wait_for(r"b'\x18'")
        terminal.wait_for(r"b'\x1b[3;1R'")
        assert bytes(terminal.received).startswith(b"ready\r\n")


def test_paste_is_bracketed_where_the_program_asked() -> None:
    """Line ends become returns, and the brackets come only with mode 2004."""
    code = RAW + "w('A'); print(os.read(0, 99)); w('\\r\\x1b[?2004hB'); print(os.read(0, 99))"
    with python(code) as terminal:
        for ready in "AB":
            terminal.wait_for(ready)
            terminal.paste("1\n2")
        terminal.wait_for(r"b'1\r2'")
        terminal.wait_for(r"b'\x1b[200~1\r2\x1b[201~'")


def test_more_can_be_sent_than_the_program_takes_at_once() -> None:
    """A paste far larger than the terminal's buffer arrives whole while we wait."""
    code = RAW + "w('A'); n = 0\nwhile n < 300000: n += len(os.read(0, 65536))\nw(f'got {n}')"
    with python(code) as terminal:
        terminal.wait_for("A")
        terminal.send("x" * 300_000)
        terminal.wait_for("got 300000", timeout=30)


def test_resize_reaches_the_program() -> None:
    """SIGWINCH comes, and the new size is seen."""
    code = "import os, signal; signal.signal(28, lambda *_: print(os.get_terminal_size(), flush=True)); print('A')\n"
    with python(code + "while True: signal.pause()") as terminal:
        terminal.wait_for("A")
        terminal.resize(70, 10)
        terminal.wait_for("columns=70, lines=10")
        assert len(terminal.lines) == 10


def test_a_timeout_shows_the_screen() -> None:
    """The error says what was missing, whether the program runs, and what stands on the screen."""
    with python("print('hello'); input()") as terminal:
        terminal.wait_for("hello")
        with pytest.raises(ScreenError, match=r"(?s)Not within 0.1 s: 'bye'.*running.*line 2, column 1.*\nhello\n"):
            terminal.wait_for("bye", timeout=0.1)


def test_a_program_that_ends_is_not_waited_for() -> None:
    """The error comes at once, with its last words on the screen and its exit code."""
    with python("print('last words'); raise SystemExit(3)") as terminal:
        with pytest.raises(ScreenError, match=r"(?s)ended before 'more'.*ended with 3.*\nlast words\n"):
            terminal.wait_for("more", timeout=1000)
        assert terminal.wait_for_exit() == 3


def test_a_signal_ends_the_program_with_its_number() -> None:
    """As subprocess does: the exit code is the negative signal."""
    with python("print('A'); input()") as terminal:
        terminal.wait_for("A")
        terminal.signal(signal.SIGTERM)
        assert terminal.wait_for_exit() == -signal.SIGTERM


def test_hanging_up_sends_sighup() -> None:
    """The program ends by the signal that a closed window sends."""
    with python("print('A'); input()") as terminal:
        terminal.wait_for("A")
        terminal.hang_up()
        assert terminal.wait_for_exit() == -signal.SIGHUP


def test_ctrl_c_interrupts_the_foreground() -> None:
    """In a cooked terminal the line discipline makes a signal of it."""
    with python(
        "import time\ntry:\n print('A', flush=True); time.sleep(99)\nexcept KeyboardInterrupt: print('B')"
    ) as terminal:
        terminal.wait_for("A")
        terminal.press("ctrl+c")
        terminal.wait_for("B")


def test_settling_counts_the_bytes_until_the_program_is_quiet() -> None:
    """Bytes are those on the wire, escape sequences included."""
    with python(RAW + "w('A'); os.read(0, 1); w('\\x1b[1mé\\x1b[0m'); os.read(0, 1)") as terminal:
        terminal.wait_for("A")
        terminal.send("x")
        terminal.wait_until(lambda: len(terminal.received) == 1 + 4 + 2 + 4)
        assert terminal.settle() == 0
        assert terminal.lines[0] == "Aé"


def test_an_unquiet_program_is_named() -> None:
    """A program that always writes makes settling fail instead of hanging."""
    with python("import time\nwhile True: print('x', flush=True); time.sleep(.01)") as terminal:
        terminal.wait_for("x")
        with pytest.raises(ScreenError, match="never quiet"):
            terminal.settle(timeout=0.5)


def test_closing_kills_everything_that_was_started() -> None:
    """A child in the group, one in a session of its own and an orphan are found, and gone after close."""
    child = "import time; print('child', flush=True); time.sleep(99)"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    code = f"""
import subprocess, sys, signal
subprocess.Popen([sys.executable, '-c', {child!r}])
subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)
subprocess.run([sys.executable, '-c', {orphan!r}])
signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.pause()
"""
    with python(code) as terminal:
        terminal.wait_until(lambda: terminal.text.count("child") == 3)
        running = terminal.processes()
        assert len(running) == 4
    assert terminal.processes() == []
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)


def test_closing_gives_the_descriptors_back() -> None:
    """Opening and closing leaves as many open as before, and a second close is harmless."""
    with python("input()"):
        pass
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        with python("input()") as terminal:
            terminal.hang_up()
        terminal.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_program_that_cannot_start_leaves_no_descriptor() -> None:
    """The error is the system's, and the terminal is closed again."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        Terminal(["/no/such/program"])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_environment_and_the_folder_are_the_callers(tmp_path: Path) -> None:
    """Variables are added and taken away, and our own folder is as before."""
    here = os.getcwd()  # noqa: PTH109
    code = "import os; print(os.getcwd(), os.environ.get('HOME'), os.environ['EXTRA'])"
    with python(code, cwd=tmp_path, env={"HOME": None, "EXTRA": "x"}, columns=200) as terminal:
        terminal.wait_for(f"{tmp_path} None x")
    assert os.getcwd() == here  # noqa: PTH109


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("a", "a"), ("enter", "\r"), ("ctrl+c", "\x03"), ("ctrl+space", "\x00"), ("alt+x", "\x1bx"), ("up", "\x1b[A"),
        ("alt+enter", "\x1b\r"), ("ctrl+right", "\x1b[1;5C"), ("f1", "\x1bOP"), ("shift+tab", "\x1b[Z"), ("é", "é"),
    ],
)  # fmt: skip
def test_keys_are_sent_as_a_plain_xterm_sends_them(key: str, sent: str) -> None:
    """Letters, control, alt, function and cursor keys."""
    assert key_sequence(key) == sent


def test_cursor_keys_follow_the_mode() -> None:
    """A program that set application mode gets the other spelling."""
    assert key_sequence("up", application=True) == "\x1bOA"


@pytest.mark.parametrize("key", ["shift+enter", "ctrl+enter", "ctrl+1", "nonsense", ""])
def test_keys_that_a_plain_terminal_lacks_are_refused(key: str) -> None:
    """A test cannot press what no user of such a terminal could."""
    with pytest.raises(ValueError, match="has no key"):
        key_sequence(key)
