"""Whole screens: as text at three sizes beside this file, and the hero screens as pictures in `screenshots/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cobnut.kernel_status import Status
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"
SIZES = [(120, 36), (80, 24), (60, 20)]
UPDATES = "COBNUT_UPDATE_GOLDEN" in os.environ
"""Set it to accept the screens as they are; then read what has changed."""

TRACEBACK = [
    "\x1b[31m---------------------------------------------------------------------------\x1b[39m",
    "\x1b[31mZeroDivisionError\x1b[39m                         Traceback (most recent call last)",
    "\x1b[36mCell\x1b[39m \x1b[32mIn[3]\x1b[39m\x1b[32m, line 2\x1b[39m",
    "\x1b[32m      1\x1b[39m total = \x1b[38;5;28msum\x1b[39m(prices)",
    "\x1b[32m----> 2\x1b[39m total / 0\n",
    "\x1b[31mZeroDivisionError\x1b[39m: division by zero",
]


def compare(terminal: Any, name: str, size: tuple[int, int]) -> None:
    """Compare the screen with the one that was accepted."""
    path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
    assert all(len(row) <= size[0] for row in terminal.lines)
    assert len(terminal.lines) == size[1]
    if UPDATES:
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(terminal.text + "\n")
    assert terminal.text + "\n" == path.read_text()


async def fill(terminal: Any) -> None:
    """Run a few cells: a table, printed lines, an error."""
    kernel = terminal.kernel
    table = "  region  units  price\n0  north    120   9.50\n1  south     98  11.00\n2   east     77   8.75"
    kernel.outputs["df.head(3)"] = [
        ("execute_result", {"data": {"text/plain": table}, "execution_count": 1, "metadata": {}})
    ]
    kernel.outputs["for epoch in range(2):\n    print(train(epoch))"] = [
        ("stream", {"name": "stdout", "text": "epoch 0  loss 0.4312\nepoch 1  loss 0.2871\n"})
    ]
    kernel.outputs["total = sum(prices)\ntotal / 0"] = [
        ("error", {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": TRACEBACK})
    ]
    await terminal.until(lambda: terminal.session.client is not None)
    await terminal.type("df.head(3)\nfor epoch in range(2):\nprint(train(epoch))\n\n")
    await terminal.receive(b"\x1b[200~total = sum(prices)\rtotal / 0\x1b[201~\r")
    await terminal.until(lambda: len(kernel.executed) == 3 and not terminal.session.is_working)
    await terminal.until_shown("division by zero")


async def start_second(terminal: Any, clock: Any) -> None:
    """Start another kernel, with a cell that runs for twelve seconds and one that waits."""
    second = await terminal.open_second_kernel()
    second.outputs["len(rows)"] = [("execute_result", {"data": {"text/plain": "120"}, "execution_count": 1})]
    await terminal.type("rows = load('sales.csv')\nlen(rows)\n")
    await terminal.until(lambda: len(second.executed) == 2)
    second.endless.add("for epoch in range(50): train(epoch)")
    await terminal.type("for epoch in range(50): train(epoch)")
    await terminal.receive(b"\nreport()\r")
    await terminal.until(lambda: terminal.session.status is Status.BUSY and len(second.executed) == 4)
    second.say("stream", {"name": "stdout", "text": "epoch 11  loss 0.4312  acc 0.87\n"})
    await terminal.until_shown("epoch 11")
    clock.now += 12.4
    terminal.app.console_screen._changed(terminal.session)
    await terminal.until_shown("12s")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_first_start(open_terminal: Any, size: tuple[int, int]) -> None:
    """The first screen says what to type and which key comes next."""
    async with open_terminal(*size) as terminal:
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        assert terminal.prompt == ""
        compare(terminal, "first-start", size)
        if size == SIZES[0]:
            terminal.picture("first-start")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_an_error(open_terminal: Any, size: tuple[int, int]) -> None:
    """Output stands under its cell, and a traceback has its colours."""
    async with open_terminal(*size) as terminal:
        await fill(terminal)
        assert [cell.state for cell in terminal.session.document.cells] == ["ok", "ok", "error"]
        compare(terminal, "error", size)
        if size == SIZES[0]:
            terminal.picture("error")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_two_kernels_one_running(open_terminal: Any, clock: Any, size: tuple[int, int]) -> None:
    """Both kernels with their states, the running cell with its time, the one that waits."""
    async with open_terminal(*size) as terminal:
        await fill(terminal)
        await start_second(terminal, clock)
        assert [session.status for session in terminal.sessions] == [Status.IDLE, Status.BUSY]
        await terminal.type("model.sum")
        compare(terminal, "two-kernels", size)
        if size == SIZES[0]:
            terminal.picture("two-kernels")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_help(open_terminal: Any, size: tuple[int, int]) -> None:
    """All keys, those of the prompt first; what does not fit is counted."""
    async with open_terminal(*size) as terminal:
        await terminal.press("f1")
        assert terminal.lines[1].startswith(" In the prompt")
        compare(terminal, "help", size)
        if size == SIZES[0]:
            terminal.picture("help")


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_a_dead_kernel_and_the_list(open_terminal: Any, clock: Any, size: tuple[int, int]) -> None:
    """The list of kernels opens from the bottom, with what killed one of them."""
    async with open_terminal(*size) as terminal:
        await start_second(terminal, clock)
        terminal.kernel.manager.die(DeathReport(None, "SIGKILL", "", KernelState.READY))
        await terminal.until(lambda: terminal.sessions[0].status is Status.DEAD)
        await terminal.press("ctrl+t")
        compare(terminal, "kernels", size)


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_choosing_a_kernel(open_terminal: Any, size: tuple[int, int]) -> None:
    """What can be started, and why the rest cannot."""
    async with open_terminal(*size) as terminal:
        await terminal.press("escape", "n", "down", "down")
        compare(terminal, "new-kernel", size)


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_command_mode(open_terminal: Any, size: tuple[int, int]) -> None:
    """After Esc the status line names the mode and the letters that may follow."""
    async with open_terminal(*size) as terminal:
        await terminal.type("x = 1")
        await terminal.press("escape")
        compare(terminal, "command-mode", size)


@pytest.mark.parametrize(
    ("rows", "title", "status"), [(16, True, True), (15, False, True), (10, False, True), (9, False, False)]
)
async def test_what_is_dropped_where_there_is_no_room(open_terminal: Any, rows: int, title: bool, status: bool) -> None:
    """Under 16 rows the title goes, under 10 the status line; the prompt and the cells stay."""
    async with open_terminal(80, rows) as terminal:
        await fill(terminal)
        assert ("python 3.11 (cobnut)" in terminal.text) is title
        assert ("F1 keys" in terminal.text) is status
        assert "In [4]:" in terminal.text
        assert "division by zero" in terminal.text


async def test_ascii_only(open_terminal: Any, clock: Any) -> None:
    """A terminal without Unicode gets ASCII, and every state still has its sign."""
    async with open_terminal(120, 36, ascii_only=True) as terminal:
        await fill(terminal)
        await start_second(terminal, clock)
        assert terminal.text.isascii()
        assert "* python-2  busy 12s" in terminal.text
        await terminal.press("f1")
        assert terminal.text.isascii()


async def test_resizing(open_terminal: Any) -> None:
    """The layout follows the terminal, and what was typed stays."""
    async with open_terminal(120, 36) as terminal:
        await fill(terminal)
        await terminal.type("draft")
        for size in ((80, 24), (60, 20), (40, 8), (120, 36)):
            await terminal.pilot.resize_terminal(*size)
            await terminal.until(lambda size=size: len(terminal.lines) == size[1])
            assert "draft" in terminal.text
            assert "division by zero" in terminal.text
        assert "KERNELS" in terminal.text
