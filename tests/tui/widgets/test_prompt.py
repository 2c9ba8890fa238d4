"""The prompt: editing, pasting, history, colours."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def test_a_paste_of_two_thousand_lines_is_kept_and_does_not_run(open_terminal: Any) -> None:
    """Bracketed paste of any size is text: nothing runs, and Enter then runs all of it."""
    text = "\n".join(f"value_{number} = {number}" for number in range(2000))
    async with open_terminal() as terminal:
        await terminal.receive(b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~")
        await terminal.until(lambda: terminal.prompt == text)
        assert terminal.kernel.executed == []
        assert "value_1999" in terminal.text
        await terminal.press("enter")
        await terminal.until(lambda: terminal.kernel.executed == [text])


async def test_control_characters_are_not_pasted(open_terminal: Any) -> None:
    """An escape sequence in a paste never reaches the terminal; tabs and lines stay."""
    async with open_terminal() as terminal:
        await terminal.receive(b"\x1b[200~a\x1b]0;title\x07\tb\rc\x1b[201~")
        await terminal.until(lambda: terminal.prompt == "a]0;title\tb\nc")


async def test_a_paste_is_for_the_prompt_wherever_the_focus_is(open_terminal: Any) -> None:
    """With the focus in the cells, or behind Esc, a paste is text for the prompt."""
    async with open_terminal() as terminal:
        await terminal.press("f6")
        await terminal.receive(b"\x1b[200~one\x1b[201~")
        await terminal.until(lambda: terminal.prompt == "one")
        await terminal.press("escape")
        await terminal.receive(b"\x1b[200~ two\x1b[201~")
        await terminal.until(lambda: terminal.prompt == "one two")
        assert "COMMAND" not in terminal.text


async def test_the_prompt_grows_to_a_third_of_the_screen(open_terminal: Any) -> None:
    """A long input gets more rows, and leaves two thirds to the cells."""
    async with open_terminal(80, 24) as terminal:
        await terminal.receive(b"\x1b[200~" + b"\r".join(b"line %d" % number for number in range(30)) + b"\x1b[201~")
        await terminal.until_shown("line 29")
        assert 6 <= terminal.app.console_screen.pane.editor.size.height <= 8
        assert terminal.app.console_screen.pane.cells.size.height >= 8


async def test_history(open_terminal: Any) -> None:
    """Up on the first line and down on the last go through the inputs; inside the input they move the cursor."""
    async with open_terminal() as terminal:
        await terminal.type("a = 1\nb = 2\n")
        await terminal.type("draft")
        await terminal.press("up")
        assert terminal.prompt == "draft", "no input begins with what is typed"
        await terminal.press("ctrl+u", "up", "up")
        assert terminal.prompt == "a = 1"
        await terminal.press("down", "down")
        assert terminal.prompt == ""
        await terminal.receive(b"\x1b[200~if x:\r    y\x1b[201~")
        await terminal.press("up")
        assert terminal.prompt == "if x:\n    y"
        await terminal.press("up")
        assert terminal.prompt == "if x:\n    y"


async def test_indentation(open_terminal: Any) -> None:
    """Tab and shift+tab indent by four, backspace takes a step back, Enter indents behind a colon."""
    async with open_terminal() as terminal:
        await terminal.type("def f():\nif x:\nreturn 1\n")
        assert terminal.prompt == "def f():\n    if x:\n        return 1\n    "
        await terminal.press("backspace")
        await terminal.type("y")
        await terminal.press("home", "tab")
        assert terminal.prompt.endswith("\n    y")
        await terminal.press("shift+tab")
        assert terminal.prompt.endswith("\ny")


async def test_enter_above_the_last_line_adds_a_line(open_terminal: Any) -> None:
    """With the cursor inside a longer input Enter never runs it."""
    async with open_terminal() as terminal:
        await terminal.receive(b"\x1b[200~a = 1\rb = 2\x1b[201~")
        await terminal.press("up", "enter")
        assert terminal.kernel.executed == []
        assert terminal.prompt.count("\n") == 2


async def test_empty_input_is_not_run(open_terminal: Any) -> None:
    """Enter and ctrl+j on nothing do nothing; ctrl+d says how to leave."""
    async with open_terminal() as terminal:
        await terminal.type("   ")
        await terminal.press("enter", "ctrl+j", "ctrl+u")
        assert terminal.kernel.executed == []
        await terminal.press("ctrl+d")
        assert "^Q quits and stops the kernels." in terminal.text


async def test_code_is_coloured(open_terminal: Any) -> None:
    """A keyword has another colour than a name, in a pasted text of any length too."""
    async with open_terminal() as terminal:
        await terminal.receive(b"\x1b[200~" + b"x = 1\r" * 1000 + b"import os\x1b[201~")
        await terminal.until_shown("import os")
        editor = terminal.app.console_screen.pane.editor
        styles = {str(span.style) for span in editor.get_line(1000).spans}
        assert any("color(5)" in style for style in styles), styles


async def test_what_no_key_is_bound_to_does_nothing(open_terminal: Any) -> None:
    """Keys without a meaning leave the input as it is."""
    async with open_terminal() as terminal:
        await terminal.type("x")
        await terminal.press("f12", "alt+enter", "insert")
        assert terminal.prompt == "x\n"
