"""The terminal is read without a poll, and its loss is noticed; Textual still has the shape that this relies on."""

from __future__ import annotations

import inspect
import os
import pty
import threading
from typing import TYPE_CHECKING, Any

import pytest
from textual import events
from textual._compositor import Compositor
from textual._parser import Parser
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.screen import Screen
from textual.widgets import TextArea

from cobnut.terminal.driver import TerminalDriver, TerminalLost

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Read(TerminalDriver):
    """The driver's reading part on a terminal of our own, without a program."""

    def __init__(self, descriptor: int) -> None:
        self.fileno = descriptor
        self.exit_event = threading.Event()
        self.messages: list[Any] = []
        self.arrived = threading.Semaphore(0)
        self._key_thread = None
        self._wake = os.pipe()
        self._output = type("Output", (), {"lost": False})()

    def send_message(self, message: Any) -> None:
        self.messages.append(message)
        self.arrived.release()

    def process_message(self, message: Any) -> None:
        self.send_message(message)

    def wait_for(self, count: int) -> list[str]:
        for _ in range(count):
            assert self.arrived.acquire(timeout=10)
        return [m.key if isinstance(m, events.Key) else type(m).__name__ for m in self.messages]


@pytest.fixture
def terminal() -> Iterator[tuple[_Read, int, threading.Thread]]:
    """A driver that reads in a thread, and the other end of its terminal."""
    master, slave = pty.openpty()
    import tty

    tty.setraw(slave)
    driver = _Read(slave)
    thread = threading.Thread(target=driver.run_input_thread)
    thread.start()
    yield driver, master, thread
    if thread.is_alive() and driver._wake:
        os.write(driver._wake[1], b"x")
    thread.join(10)
    driver._close_wake()
    os.close(slave)


def test_bytes_become_events(terminal: Any) -> None:
    """Keys arrive as they are typed, and a lone Esc after its delay."""
    driver, master, _ = terminal
    os.write(master, b"a\x1b1")
    assert driver.wait_for(2) == ["a", "alt+1"]
    os.write(master, b"\x1b")
    assert driver.wait_for(1)[-1] == "escape"
    os.close(master)


def test_the_end_of_the_terminal_is_said_once(terminal: Any) -> None:
    """At the end of the input the thread says so and ends: stock Textual spins."""
    driver, master, thread = terminal
    os.close(master)
    driver.wait_for(1)
    thread.join(10)
    assert not thread.is_alive()
    assert [type(message) for message in driver.messages] == [TerminalLost]
    assert driver._output.lost


def test_stopping_wakes_the_thread(terminal: Any) -> None:
    """The thread sleeps without a timeout, and ends as soon as it is told to."""
    driver, master, thread = terminal
    driver.disable_input()
    thread.join(10)
    assert not thread.is_alive()
    os.close(master)


def test_textual_has_the_shape_that_we_rely_on() -> None:
    """What we override or call inside Textual is there; if this fails, see `terminal/`, `app.py` and `prompt.py`."""
    assert list(inspect.signature(App._display).parameters) == ["self", "screen", "renderable"]
    assert list(inspect.signature(LinuxDriver.run_input_thread).parameters) == ["self"]
    assert list(inspect.signature(LinuxDriver.disable_input).parameters) == ["self"]
    assert list(inspect.signature(LinuxDriver._get_terminal_size).parameters) == ["self"]
    assert list(inspect.signature(Parser.feed).parameters) == ["self", "data"]
    source = inspect.getsource(LinuxDriver)
    for used in (
        "self._file = ",
        "self.exit_event",
        "self._key_thread",
        "target=self._run_input_thread",
        "self._writer_thread",
    ):
        assert used in source, used
    assert {"last_x", "last_y"} <= vars(XTermParser()).keys()
    assert Screen._get_breakpoint_classes(Screen(), 80, [(0, "a"), (72, "b"), (110, "c")]) == {"b"}
    assert "render_strips" in vars(Compositor)
    assert "self._build_highlight_map()" in inspect.getsource(TextArea.edit)
    assert "self.get_line(" in inspect.getsource(TextArea._render_line)


@pytest.mark.parametrize(
    ("sequence", "key"), [("\x1b[A", "up"), ("\x1bOP", "f1"), ("\x1b[1;5C", "ctrl+right"), ("x", "x")]
)
def test_textual_names_whole_sequences_at_once(sequence: str, key: str) -> None:
    """Given a whole sequence, Textual's parser gives its event without waiting for more."""
    (event,) = XTermParser().feed(sequence)
    assert isinstance(event, events.Key)
    assert event.key == key
