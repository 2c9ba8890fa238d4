"""Callers that block and are interrupted by Ctrl-C: a program of its own, where the signal comes from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import processes_knowing, until
from tests.kernel.manager.faults.matrix import DELAYS

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.kernel.manager.conftest import Tiny

PROGRAM = Path(__file__).with_name("blocking_caller.py")
HANGS = 40.0
"""After how many seconds a program that has not ended shows its stacks and ends."""

ROOT = Path(__file__).parents[4]

BLOCKED: dict[str, str] = {
    "start secretive": "up",
    "start_many secretive": "up",
    "restart stubborn": "shutdown_request",
    "shutdown stubborn": "shutdown_request",
    "shutdown_many stubborn": "shutdown_request",
    "shutdown_all stubborn": "shutdown_request",
    "ready mute": "up",
}
"""What blocks for an hour, and what its kernel has noted when it does."""


class Program:
    """A blocking caller, seen from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def begin(self) -> None:
        """Let it block, and wait until it is about to."""
        assert self.process.stdin is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        assert self._line() == "begin"

    def press_ctrl_c(self) -> None:
        """Interrupt it, and it alone."""
        self.process.send_signal(signal.SIGINT)

    def outcome(self) -> str:
        """Return whether it was interrupted in time, and what it has now that it had not before, or the reverse."""
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            _, errors = self.process.communicate()
            pytest.fail(f"The program has ended: {errors}")
        return line


@contextmanager
def program(tiny: Tiny, runtime: Path, wish: str) -> Generator[Program]:
    """Run a blocking caller; in the end it ends by itself, and nothing of it is left."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tiny.log.parent)}
    command = [sys.executable, "-X", "faulthandler", "-W", "error", PROGRAM, str(tiny.log), wish]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:  # type: ignore[call-overload]
        hanging = threading.Timer(HANGS, process.send_signal, [signal.SIGABRT])
        hanging.start()
        try:
            yield Program(process)
            _, errors = process.communicate(timeout=30)
            assert (process.returncode, errors) == (0, "")
        finally:
            hanging.cancel()
            process.kill()
    until(lambda: not processes_knowing(runtime), "the program has left processes")
    until(lambda: not [path for path in runtime.rglob("*") if path.is_file() or path.is_socket()], "or files")


def times(tiny: Tiny, word: str) -> int:
    """Count what the kernels have noted."""
    return sum(line.startswith(word) for line in tiny.lines)


@pytest.mark.parametrize("presses", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("wish", BLOCKED)
def test_ctrl_c_ends_what_blocks(wish: str, presses: int, tiny: Tiny, runtime: Path) -> None:
    """The caller gets KeyboardInterrupt, and all is as it was before, for the impatient too; then it can wish again."""
    with program(tiny, runtime, wish) as caller:
        for _ in range(2):
            seen = times(tiny, BLOCKED[wish])
            caller.begin()
            if wish != "ready mute":  # its kernel was started before
                until(lambda seen=seen: times(tiny, BLOCKED[wish]) > seen)
            caller.press_ctrl_c()
            if presses > 1:
                time.sleep(0.002)  # while the first is being seen to, mostly
                caller.press_ctrl_c()
            assert caller.outcome() == "interrupted"


@pytest.mark.parametrize("wish", ["start own", "start_many own", "restart own", "shutdown own", "ready own"])
def test_ctrl_c_some_time_after_it_was_begun(wish: str, tiny: Tiny, runtime: Path) -> None:
    """Wherever it hits: nothing was begun yet, or what was begun is undone, or it was done; never half of it."""
    with program(tiny, runtime, wish) as caller:
        for delay in DELAYS:
            caller.begin()
            time.sleep(delay)
            caller.press_ctrl_c()
            assert caller.outcome() in ("untouched", "interrupted", "done")
