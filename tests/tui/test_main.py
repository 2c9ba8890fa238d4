"""The command line, and the ends of the program, in a terminal of its own with a kernel of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from cobnut.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Pty:
    """cobnut in a pseudo-terminal."""

    def __init__(self, arguments: list[str], environment: dict[str, str], *, ignores_hangup: bool = False) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.slave = slave
        self.attributes = termios.tcgetattr(slave)
        self.output = b""

        def prepare() -> None:
            os.setsid()
            import fcntl

            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores_hangup else signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=prepare
        )
        self.children: list[psutil.Process] = []
        self.files: list[Path] = []
        self.runtime = Path(environment["XDG_RUNTIME_DIR"])

    def pump(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            try:
                self.output += os.read(self.master, 1 << 16)
            except OSError:
                time.sleep(seconds)

    def until(self, pattern: str) -> None:
        end = time.monotonic() + 30
        while not re.search(pattern.encode(), self.output):
            assert time.monotonic() < end, self.output[-2000:]
            assert self.process.poll() is None, self.output[-2000:]
            self.pump(0.05)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        self.files = files(self.runtime)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ended(self, *, reads: bool = True) -> int:
        end = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < end, self.output[-2000:]
            self.pump(0.05) if reads else time.sleep(0.05)
        if reads:
            self.pump(0)
        return self.process.returncode

    def assert_nothing_is_left(self, runtime: Path) -> None:
        """No kernel, no guard, no file of a kernel."""
        assert self.children, "the kernel was never there"
        _, alive = psutil.wait_procs(self.children, timeout=10)
        assert alive == []
        assert self.files, "the kernel's files were somewhere else"
        assert files(runtime) == []


def files(folder: Path) -> list[Path]:
    """List all that is in a folder and is no folder."""
    return [path for path in folder.rglob("*") if not path.is_dir()]


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for the kernels' files; a short one, for the paths of sockets may not be long."""
    with tempfile.TemporaryDirectory(prefix="cob", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def environment(tmp_path: Path, runtime: Path) -> dict[str, str]:
    """Variables of a person with an empty home and no active environment."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    for folder in ("home", "state"):
        (tmp_path / folder).mkdir(mode=0o700)
    return kept | {
        "TERM": "xterm-256color",
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHONUTF8": "1",
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., _Pty]]:
    """Start cobnut in a terminal."""
    started: list[_Pty] = []

    def start_it(*arguments: str, code: str = "", ignores_hangup: bool = False, **variables: str) -> _Pty:
        command = ["-c", code] if code else ["-m", "cobnut"]
        started.append(_Pty([*command, *arguments], environment | variables, ignores_hangup=ignores_hangup))
        return started[-1]

    yield start_it
    for terminal in started:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()
        for descriptor in (terminal.master, terminal.slave):
            with suppress(OSError):
                os.close(descriptor)


def test_without_a_terminal_it_is_refused(environment: dict[str, str]) -> None:
    """In a pipe there is no screen: a sentence, and status 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "cobnut"], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        "cobnut: it needs a terminal for its keys and its screen: run it without redirecting"
    )
    assert "standard input and standard error" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_is_refused(start: Callable[..., _Pty], term: str) -> None:
    """A terminal that cannot place its cursor gets a sentence and not one escape sequence."""
    terminal = start(TERM=term)
    assert terminal.ended() == 2
    assert b"cannot place its cursor" in terminal.output
    assert b"\x1b" not in terminal.output


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On Windows there is a sentence that says where it would work."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert main([]) == 2
    assert "WSL" in capsys.readouterr().err


def test_an_unknown_kernel_is_refused_with_those_there_are(start: Callable[..., _Pty]) -> None:
    """The names of all kernels, before the screen is touched."""
    terminal = start("--kernel", "pyhton")
    assert terminal.ended() == 2
    assert b"There is no kernel named 'pyhton'" in terminal.output
    assert b"cobnut" in terminal.output.partition(b"There are: ")[2]
    assert b"\x1b" not in terminal.output


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Both say what they should, and end with status 0."""
    for option, expected in (("--version", r"cobnut \d+\.\d+"), ("--help", r"(?s)--kernel NAME.*VIRTUAL_ENV.*F1")):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 0
        assert re.search(expected, capsys.readouterr().out)


def test_the_kernel_starts_before_the_screen_is_imported(environment: dict[str, str]) -> None:
    """When the first kernel is started, neither Textual nor IPython has been imported."""
    code = """
import sys
import cobnut.__main__ as program
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
def start(self, **options):
    print(sorted({"textual", "rich", "IPython", "pygments"} & set(sys.modules)))
    sys.exit()
AsyncMultiKernelManager.start_soon = start
program._unfit_terminal = lambda: ""
program.main([])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_the_cursor_begins_in_the_prompt(start: Callable[..., _Pty]) -> None:
    """Wherever the terminal's cursor is shown, from the first frame on, it stands behind the prompt."""
    terminal = start()
    terminal.until("idle")
    places = re.findall(rb"\x1b\[(\d+);(\d+)H(?:\x1b\[\?2026l)?\x1b\[\?25h", terminal.output)
    assert places
    assert set(places) == {(b"23", b"9")}


def test_the_first_frame_is_laid_out_for_its_width(start: Callable[..., _Pty], tmp_path: Path) -> None:
    """What is to be said at the start stands in lines as wide as the screen, in the first frame already."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch(0o755)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    terminal = start(VIRTUAL_ENV=str(tmp_path / "venv"))
    terminal.until("idle")
    first = re.sub(rb"\x1b\[[\d;]*m", b"", terminal.output.partition(b"\x1b[?25h")[0])
    assert b"No kernel is installed in" in first
    assert [int(row) for row in re.findall(rb"\x1b\[(\d+);1H", first)] == list(range(1, 25)), "it is all of the screen"


def test_no_color_means_the_colours_of_the_terminal(start: Callable[..., _Pty]) -> None:
    """With NO_COLOR no colour is set but the default ones; what is bold or reverse stays so."""
    terminal = start(NO_COLOR="1")
    terminal.until("idle")
    terminal.type("1/0\r")
    terminal.until("division by zero")
    terminal.type("\x1b")
    terminal.until("COMMAND")
    codes = {int(code or 0) for found in re.findall(rb"\x1b\[([\d;]*)m", terminal.output) for code in found.split(b";")}
    assert codes & {1, 7} == {1, 7}
    assert codes <= {*range(10), 39, 49}


def test_quit(start: Callable[..., _Pty], tmp_path: Path, runtime: Path) -> None:
    """ctrl+q ends it with status 0, the terminal as it was, and nothing left."""
    terminal = start()
    terminal.until("idle")
    terminal.type("\x11")
    assert terminal.ended() == 0
    assert b"\x1b[?25h" in terminal.output.rpartition(b"\x1b[?1049l")[2], "the cursor is there again"
    assert termios.tcgetattr(terminal.slave) == terminal.attributes
    terminal.assert_nothing_is_left(runtime)
    assert not list((tmp_path / "state").rglob("*.log"))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=lambda number: number.name)
def test_signals_end_it_as_quitting_does(start: Callable[..., _Pty], runtime: Path, number: signal.Signals) -> None:
    """A signal ends it although a cell runs: kernels stopped, terminal restored, the status says which signal."""
    terminal = start()
    terminal.until("idle")
    terminal.type("import time; time.sleep(1000)\r")
    terminal.until("interrupt")
    terminal.process.send_signal(number)
    assert terminal.ended() == 128 + number
    assert b"\x1b[?1049l" in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.attributes
    terminal.assert_nothing_is_left(runtime)


def test_the_end_of_the_terminal_ends_it(start: Callable[..., _Pty], runtime: Path) -> None:
    """Where SIGHUP is ignored, the end of the input ends it; stock Textual would spin for ever."""
    terminal = start(ignores_hangup=True)
    terminal.until("idle")
    os.close(terminal.slave)
    os.close(terminal.master)
    assert terminal.ended(reads=False) == 128 + signal.SIGHUP
    terminal.assert_nothing_is_left(runtime)


def test_a_terminal_that_takes_nothing_does_not_hold_it(start: Callable[..., _Pty], runtime: Path) -> None:
    """SIGTERM ends it although its output hangs in a terminal that nobody reads."""
    terminal = start()
    terminal.until("idle")
    terminal.type("import time\nwhile not time.sleep(0.01): print('x' * 1000)\n")
    terminal.until("xxxxx")
    time.sleep(1)  # nobody reads: what the terminal takes is full by then
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.ended(reads=False) == 128 + signal.SIGTERM
    terminal.assert_nothing_is_left(runtime)


def test_a_crash_ends_it_as_quitting_does(start: Callable[..., _Pty], tmp_path: Path, runtime: Path) -> None:
    """The terminal is restored, the kernels are stopped, and the traceback is in a private file that is named."""
    code = (
        "import sys; from cobnut.screens.console import Console\n"
        "def fail(self, message): raise ZeroDivisionError('on purpose')\n"
        "Console.on_editor_entered = fail\n"
        "from cobnut.__main__ import main; sys.exit(main())"
    )
    terminal = start(code=code)
    terminal.until("idle")
    terminal.type("x\r")
    assert terminal.ended() == 1
    log = tmp_path / "state" / "cobnut" / "cobnut.log"
    said = terminal.output.partition(b"\x1b[?1049l")[2]
    assert b"cobnut ended because of an error: ZeroDivisionError: on purpose" in said
    assert f"The details are in {log}".encode() in said
    assert b"Traceback" not in said
    assert "line 2, in fail" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert termios.tcgetattr(terminal.slave) == terminal.attributes
    terminal.assert_nothing_is_left(runtime)


def test_stale_files_are_swept(start: Callable[..., _Pty], runtime: Path) -> None:
    """What a cobnut that was killed has left goes with the next start, if its guard has not removed it before."""
    first = start()
    first.until("idle")
    guards = [child for child in first.children if re.search("guard|zygote", " ".join(child.cmdline()))]
    for process in (*guards, psutil.Process(first.process.pid)):
        process.kill()
    first.process.wait()
    psutil.wait_procs(guards, timeout=10)
    assert files(runtime)
    second = start()
    second.until("idle")
    second.type("\x11")
    assert second.ended() == 0
    assert files(runtime) == []
    for child in first.children:
        if child.is_running():
            child.kill()
