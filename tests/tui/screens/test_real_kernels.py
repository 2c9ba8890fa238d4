"""The way of a cell with real kernels, ours and ipykernel: from the keys to the screen."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from cobnut.kernel_status import Status
from cobnut.model.cell import RunState

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["cobnut", "python3"])
def spec_name(request: pytest.FixtureRequest) -> str:
    """Our kernel, and ipykernel."""
    return request.param


async def test_the_way_of_a_cell(open_real_terminal: Any, spec_name: str) -> None:
    """Typed before the kernel is up: a result, output while it runs, an error, an interrupt; then its neighbour."""
    async with open_real_terminal(spec_name) as terminal:
        await terminal.type("6*7\nfor part in 'ab':\nprint(part * 3)\n\n")
        await terminal.until_shown(r"\n    42\n")
        await terminal.until_shown(r"\n    aaa\n    bbb\n")
        await terminal.type("1/0\n")
        await terminal.until_shown("ZeroDivisionError: division by zero")
        await terminal.type("print('begun', flush=True); import time; time.sleep(1000)\n")
        await terminal.until_shown(r"\n    begun")
        assert terminal.session.status is Status.BUSY
        await terminal.press("ctrl+c")
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        states = [cell.state for cell in terminal.session.document.cells]
        assert states == [RunState.OK, RunState.OK, RunState.ERROR, RunState.INTERRUPTED]
        assert terminal.session.interpreter.startswith("python 3.")


async def test_two_kernels_and_a_murder(open_real_terminal: Any, spec_name: str) -> None:
    """Variables are each kernel's own; one that is killed from outside says so, and starts anew; the other goes on."""
    async with open_real_terminal(spec_name) as terminal:
        await terminal.type("x = 'of the first'\n")
        await terminal.press("escape", "n")
        await terminal.type(f"{spec_name}\n")
        await terminal.until(lambda: len(terminal.sessions) == 2)
        await terminal.type("x\n")
        await terminal.until_shown("NameError: name 'x' is not defined")
        await terminal.type("import os; print('pid', os.getpid())\n")
        await terminal.until_shown(r"\n    pid \d+")
        pid = int(terminal.text.partition("    pid ")[2].split()[0])
        os.kill(pid, signal.SIGKILL)
        await terminal.until_shown(r"2✗(python-2|python3) SIGKILL")
        assert "killed by SIGKILL" in terminal.text
        await terminal.press("escape", "1")
        await terminal.type("print(x)\n")
        await terminal.until_shown(r"\n    of the first")
        await terminal.press("escape", "2", "escape", "0", "0")
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        await terminal.type("1 + 1\n")
        await terminal.until_shown(r"\n    2\n")


async def test_restart_and_stop(open_real_terminal: Any, spec_name: str) -> None:
    """A restarted kernel has forgotten its variables and counts from one; a stopped one can be started again."""
    async with open_real_terminal(spec_name) as terminal:
        await terminal.type("y = 1\n")
        await terminal.until(lambda: terminal.session.document.cells and not terminal.session.is_working)
        await terminal.press("escape", "0", "0")
        await terminal.type("y\n")
        await terminal.until_shown("NameError: name 'y' is not defined")
        await terminal.press("escape", "S", "S")
        await terminal.until(lambda: terminal.session.status is Status.STOPPED)
        await terminal.press("escape", "0", "0")
        await terminal.type("2 + 2\n")
        await terminal.until_shown(r"\n    4\n")
        assert terminal.session.document.cells[-1].execution_count == 1
