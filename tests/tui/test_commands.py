"""Commands are data that keys, palette and help agree on."""

from __future__ import annotations

import pytest

from cobnut.app import CobnutApp
from cobnut.commands import COMMANDS, DIGITS, Command, EscapeLetters, Unknown, shown
from cobnut.screens.console import Console
from cobnut.widgets.cells import Cells
from cobnut.widgets.pane import Pane
from cobnut.widgets.prompt import Editor

# What no plain xterm inside tmux can send as a key of its own, and what is eaten on the way.
UNSENDABLE = {"ctrl+h", "ctrl+i", "ctrl+m", "ctrl+b", "shift+enter", "ctrl+enter", "f10", "f11"}


def press(letters: str) -> object:
    """Press letters behind Esc, and return what the last one leads to."""
    collected = EscapeLetters()
    outcomes = [collected.press(letter) for letter in letters]
    assert all(outcome is None for outcome in outcomes[:-1])
    return outcomes[-1]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.letters], ids=lambda c: c.title)
def test_letters_lead_to_their_command(command: Command) -> None:
    """The letters of every command lead to it, and no command's letters begin another's."""
    assert press(command.letters) is command


@pytest.mark.parametrize("digit", DIGITS)
def test_digits_lead_to_kernels(digit: str) -> None:
    """A digit is a kernel, and no command begins with one that is."""
    assert press(digit) == int(digit)


def test_unknown_letters() -> None:
    """Letters that lead nowhere are named, and the next letter begins anew."""
    collected = EscapeLetters()
    assert collected.press("z") == Unknown("z")
    assert collected.press("i") is None
    assert collected.press("z") == Unknown("iz")
    assert collected.press("n") is COMMANDS[4]


def test_what_may_follow() -> None:
    """After a first letter, only the commands that it begins are expected."""
    collected = EscapeLetters()
    assert len(collected.hints) == 1 + len([command for command in COMMANDS if command.letters])
    assert collected.hints[:2] == [("1-9", "kernel"), ("n", "new")]
    collected.press("0")
    assert collected.hints == [("0", "restart")]


def test_every_command_has_two_routes_and_an_action() -> None:
    """A command has a key or letters besides its name, and somebody carries it out."""
    for command in COMMANDS:
        owner, _, name = command.action.partition("(")[0].rpartition(".")
        place = {"screen": Console, "app": CobnutApp, "": Pane}[owner]
        assert callable(getattr(place, f"action_{name}")), command
        assert command.keys or command.letters, command


def test_no_command_depends_on_a_key_that_does_not_arrive() -> None:
    """No key is bound that a plain terminal cannot send."""
    keys = {key for command in COMMANDS for key in command.keys.split(",") if key}
    for widget in (Editor, Cells, Pane):
        for binding in widget.BINDINGS:
            keys |= set(binding.key.split(","))
    assert not keys & UNSENDABLE


def test_every_binding_says_what_it_does() -> None:
    """All bindings have a help text."""
    for place in (Console, Pane, Editor, Cells):
        for binding in place.BINDINGS:
            assert binding.description, binding


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("ctrl+t", "^T"),
        ("f1", "F1"),
        ("pageup", "PgUp"),
        ("ctrl+pagedown", "^PgDn"),
        ("alt+enter", "Alt+Enter"),
        ("shift+tab", "Shift+Tab"),
        ("k", "k"),
        ("escape", "Esc"),
        ("ctrl+underscore", "^_"),
    ],
)
def test_keys_are_written_as_they_are_read(key: str, text: str) -> None:
    """A key's name in the help is what stands on the keyboard."""
    assert shown(key) == text
