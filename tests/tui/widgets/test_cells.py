"""The view of the cells: where one stands in it, and what is drawn again."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.anyio


async def flood(terminal: Any, lines: int) -> None:
    """Run a cell that prints so many lines."""
    text = "".join(f"line {number}\n" for number in range(lines))
    terminal.kernel.outputs["flood()"] = [("stream", {"name": "stdout", "text": text})]
    await terminal.type("flood()\n")
    await terminal.until_shown(f"line {lines - 1}\n")


async def test_the_end_is_followed_only_from_the_end(open_terminal: Any) -> None:
    """At the end new lines scroll the view; elsewhere it stands, and says how many there are."""
    async with open_terminal(80, 24) as terminal:
        await flood(terminal, 100)
        assert "lines above ─" in terminal.text
        await terminal.press("pageup")
        shown = terminal.lines[3]
        assert "^End follows" in terminal.text
        terminal.kernel.endless.add("more()")
        terminal.kernel.execute("more()")
        terminal.kernel.say("stream", {"name": "stdout", "text": "one more\nand one\n"})
        await terminal.until_shown(r"below: \^End follows")
        await terminal.until_shown(r"\(3 new\)|\(4 new\)")
        assert terminal.lines[3] == shown
        await terminal.press("ctrl+end")
        assert "and one" in terminal.text
        terminal.kernel.say("stream", {"name": "stdout", "text": "followed again\n"})
        await terminal.until_shown("followed again")


async def test_running_a_cell_goes_to_the_end(open_terminal: Any) -> None:
    """Who runs something sees it."""
    async with open_terminal(80, 24) as terminal:
        await flood(terminal, 100)
        await terminal.press("ctrl+home")
        assert "line 0" in terminal.text
        await terminal.type("x\n")
        await terminal.until_shown(r"\[2\] x")


async def test_every_kernel_keeps_its_place(open_terminal: Any) -> None:
    """Switching there and back shows the same lines."""
    async with open_terminal(80, 24) as terminal:
        await flood(terminal, 100)
        await terminal.press("pageup", "pageup")
        shown = terminal.lines[3:20]
        await terminal.open_second_kernel()
        assert "line" not in "\n".join(terminal.lines[3:18])
        await terminal.press("escape", "1")
        await terminal.until(lambda: terminal.lines[3:20] == shown)


async def test_keys_in_the_cells(open_terminal: Any) -> None:
    """F6 goes to the cells, arrows and letters scroll, Enter and Esc go back; the mode is named."""
    async with open_terminal(80, 24) as terminal:
        await flood(terminal, 100)
        await terminal.press("f6")
        assert " CELLS " in terminal.lines[-1]
        cells = terminal.app.console_screen.pane.cells
        end = cells.scroll_y
        await terminal.press("up", "k", "k", "j")
        assert cells.scroll_y == end - 2
        await terminal.press("home")
        assert cells.scroll_y == 0
        await terminal.press("end", "pageup", "space")
        assert cells.scroll_y == end
        await terminal.press("enter")
        await terminal.type("typed")
        assert terminal.prompt == "typed"
        await terminal.press("f6", "escape")
        await terminal.type("!")
        assert terminal.prompt == "typed!"


async def test_letters_in_the_cells_are_commands(open_terminal: Any) -> None:
    """A letter there is what it is behind Esc, one that means nothing says so, and the second letter is waited for."""
    async with open_terminal(80, 24) as terminal:
        await terminal.press("f6", "z")
        assert "Esc z is no command" in terminal.text
        await terminal.press("i")
        assert "COMMAND Esc i" in terminal.text
        await terminal.press("i")
        assert "Nothing runs in this kernel." in terminal.text


async def test_scrolling_with_the_wheel(open_terminal: Any) -> None:
    """A mouse report scrolls the cells, whatever has the focus."""
    async with open_terminal(80, 24) as terminal:
        await flood(terminal, 100)
        cells = terminal.app.console_screen.pane.cells
        end = cells.scroll_y
        await terminal.receive(b"\x1b[<64;10;10M")
        await terminal.until(lambda: cells.scroll_y == end - 3)
        await terminal.receive(b"\x1b[<65;10;10M")
        await terminal.until(lambda: cells.scroll_y == end)


async def test_only_what_has_changed_is_drawn_again(open_terminal: Any, clock: Any, monkeypatch: Any) -> None:
    """A tick of the clock draws one row of the cells, and no row while nothing has changed."""
    async with open_terminal(80, 24) as terminal:
        terminal.kernel.endless.add("loop()")
        await flood(terminal, 5)
        await terminal.type("loop()\n")
        await terminal.until_shown("▶")
        console = terminal.app.console_screen
        drawn: list[Any] = []
        monkeypatch.setattr(console.pane.cells, "refresh", lambda *regions, **_: drawn.extend(regions))
        clock.now += 1.0
        console._changed(terminal.session)
        assert [region.height for region in drawn] == [1]
        drawn.clear()
        console._changed(terminal.session)
        assert drawn == []


async def test_the_sidebar_can_be_hidden(open_terminal: Any) -> None:
    """F8 hides the list where it has a place, and opens it where it has none."""
    async with open_terminal(120, 36) as terminal:
        await terminal.press("f8")
        assert "KERNELS" not in terminal.text
        await terminal.press("f8")
        assert "KERNELS" in terminal.text
        await terminal.pilot.resize_terminal(80, 24)
        await terminal.press("f8")
        assert "Go to kernel:" in terminal.text
