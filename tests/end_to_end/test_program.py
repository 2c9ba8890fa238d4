"""The installed `cobnut` in a real pseudo-terminal, by keyboard alone, from the first key to nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

COBNUT = str(Path(sys.executable).with_name("cobnut"))
TIMEOUT = 30
RESTORED = {7, 25}
"""The private modes of a terminal that was left as it was found: lines wrap, the cursor shows."""


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a folder that is all the program knows of this machine; its path is short, for sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="cobnut-"))
    (folder / "run").mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def environment(home: Path) -> dict[str, str | None]:
    """Return a user's environment without an active environment, with all folders below `home`."""
    return {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_STATE_HOME": None,
        "XDG_DATA_HOME": None,
        "JUPYTER_RUNTIME_DIR": None,
        "IPYTHONDIR": None,
        "VIRTUAL_ENV": None,
        "CONDA_PREFIX": None,
        "SSH_CONNECTION": None,
        "SSH_TTY": None,
    }


def start(home: Path, *arguments: str, columns: int = 120, lines: int = 36) -> Terminal:
    """Start the program and wait for its prompt."""
    terminal = Terminal([COBNUT, *arguments], env=environment(home), cwd=home, columns=columns, lines=lines)
    terminal.wait_for("In [1]:", TIMEOUT)
    return terminal


def run(terminal: Terminal, *lines: str) -> None:
    """Type lines of code, each ended by Enter."""
    for line in lines:
        terminal.send(line + "\r")


def leave(terminal: Terminal) -> None:
    """Quit when nothing runs any more, and find the terminal as it was."""
    terminal.wait_until(lambda: "running" not in terminal.text, TIMEOUT, "the end of the cell")
    terminal.press("ctrl+q")
    assert terminal.wait_for_exit(TIMEOUT) == 0
    assert terminal.modes == RESTORED


def left_in(home: Path) -> list[Path]:
    """List the files and sockets of kernels below the runtime folder."""
    return [path for path in (home / "run").rglob("*") if not path.is_dir()]


def kernel_pid(terminal: Terminal) -> int:
    """Return the process of the kernel that is shown, as it says itself."""
    run(terminal, "import os; print(f'process <{os.getpid()}>')")
    said = re.compile(r"^\W*process <(\d+)>", re.MULTILINE)
    terminal.wait_until(lambda: said.search(right_of_the_list(terminal)), TIMEOUT, "the process of the kernel")
    return int(said.findall(right_of_the_list(terminal))[-1])


def right_of_the_list(terminal: Terminal) -> str:
    """Return the text of the cells, without the list of kernels."""
    return "\n".join(line.rpartition("│")[2] for line in terminal.lines)


def assert_nothing_is_left(terminal: Terminal, home: Path) -> None:
    """Wait for the last process of the program, the guard say; then no file remains."""
    _, alive = psutil.wait_procs(terminal.processes(), timeout=TIMEOUT)
    assert alive == []
    assert left_in(home) == []


def test_the_whole_way_from_a_key_to_an_output(home: Path) -> None:
    """Arithmetic, output while the cell runs, an error, an interrupt, a second kernel, a killed one, quit."""
    with start(home) as terminal:
        run(terminal, "6*7")
        terminal.wait_for("42", TIMEOUT)

        run(terminal, "import time", "for i in range(3): print('line', i); time.sleep(0.7)", "")
        terminal.wait_for("line 1", TIMEOUT)
        assert "line 2" not in terminal.text, "output must appear while the cell runs"
        terminal.wait_for("line 2", TIMEOUT)

        run(terminal, "1/0")
        terminal.wait_for("ZeroDivisionError: division by zero", TIMEOUT)

        run(terminal, "time.sleep(1000)")
        terminal.wait_for("1 running", TIMEOUT)
        terminal.press("ctrl+c")
        terminal.wait_for("KeyboardInterrupt", TIMEOUT)

        run(terminal, "mine = 'of the first'")
        terminal.press("escape", "n")
        terminal.wait_for("Start a kernel", TIMEOUT)
        terminal.press("enter")
        terminal.wait_for("python-2 ·", TIMEOUT)
        run(terminal, "mine")
        terminal.wait_for("NameError: name 'mine' is not defined", TIMEOUT)

        os.kill(kernel_pid(terminal), signal.SIGKILL)
        terminal.wait_for("SIGKILL", TIMEOUT)
        terminal.press("escape", "1")
        terminal.wait_for("scratch ·", TIMEOUT)
        run(terminal, "mine.upper()")
        terminal.wait_for("OF THE FIRST", TIMEOUT)

        leave(terminal)
        assert_nothing_is_left(terminal, home)


@pytest.mark.parametrize(("columns", "lines"), [(120, 36), (80, 24), (60, 20)])
def test_it_is_usable_at_every_size(home: Path, columns: int, lines: int) -> None:
    """A cell runs, the help opens and closes, and the program ends, in wide, standard and narrow terminals."""
    with start(home, columns=columns, lines=lines) as terminal:
        run(terminal, "print('x' * 3)")
        terminal.wait_for("xxx", TIMEOUT)
        terminal.press("f1")
        terminal.wait_for("Esc back", TIMEOUT)
        terminal.press("escape")
        terminal.wait_until(lambda: "Esc back" not in terminal.text and "In [2]:" in terminal.text, TIMEOUT)
        leave(terminal)
        assert_nothing_is_left(terminal, home)


@pytest.mark.parametrize("ending", ["hang up", "SIGTERM", "SIGHUP"])
def test_a_closed_terminal_and_a_signal_end_like_quit(home: Path, ending: str) -> None:
    """While a cell runs, the terminal is closed or the program is told to end: kernels stopped, nothing left."""
    with start(home) as terminal:
        run(terminal, "import time; time.sleep(1000)")
        terminal.wait_for("1 running", TIMEOUT)
        if ending == "hang up":
            terminal.hang_up()
        else:
            terminal.signal(signal.Signals[ending])
        terminal.wait_for_exit(TIMEOUT)
        assert_nothing_is_left(terminal, home)
        if ending != "hang up":
            assert terminal.modes == RESTORED


@pytest.mark.parametrize("kernel", ["cobnut", "python3"])
def test_no_kernel_outlives_a_program_that_is_killed(home: Path, kernel: str) -> None:
    """After SIGKILL of the program its kernels, ours and ipykernel, are gone, busy or not, and no file is left."""
    with start(home, "--kernel", kernel) as terminal:
        running = psutil.Process(kernel_pid(terminal))
        run(terminal, "import time; print('begun'); time.sleep(1000)")
        terminal.wait_for("begun", TIMEOUT)
        terminal.signal(signal.SIGKILL)
        terminal.wait_for_exit(TIMEOUT)
        psutil.wait_procs([running], timeout=TIMEOUT)
        assert not running.is_running()
        assert_nothing_is_left(terminal, home)


def test_what_is_typed_early_is_kept_and_runs(home: Path) -> None:
    """Code entered the moment the program starts runs, in order, once its kernel is there."""
    with Terminal([COBNUT], env=environment(home), cwd=home) as terminal:
        terminal.wait_until(lambda: b"\x1b[?1049h" in terminal.received, TIMEOUT, "the screen")
        run(terminal, "early = 20", "early + 1")
        terminal.wait_for("21", TIMEOUT)
        leave(terminal)


def test_a_paste_of_two_thousand_lines_is_one_cell(home: Path) -> None:
    """A bracketed paste runs nothing by itself; Enter on the complete text runs it as one cell."""
    with start(home) as terminal:
        terminal.paste("\n".join(["total = 0", *(f"total += {number}" for number in range(2000)), "total"]))
        terminal.wait_for("total += 1999", TIMEOUT)
        terminal.press("ctrl+j")
        terminal.wait_for(str(sum(range(2000))), TIMEOUT)
        assert "In [2]:" in terminal.text
        leave(terminal)


def test_input_is_refused_with_a_sentence(home: Path) -> None:
    """`input()` ends at once with an error that says what to do."""
    with start(home) as terminal:
        run(terminal, "input('name? ')")
        terminal.wait_for("put the value into the code", TIMEOUT)
        leave(terminal)


def test_an_unknown_kernel_is_refused_before_the_screen_is_touched(home: Path) -> None:
    """`--kernel` with a wrong name says which names there are, and the exit status is 2."""
    with Terminal([COBNUT, "--kernel", "nope"], env=environment(home), cwd=home) as terminal:
        assert terminal.wait_for_exit(TIMEOUT) == 2
        assert "nope" in terminal.text
        assert "cobnut" in terminal.text
        assert b"\x1b[?1049h" not in terminal.received
