"""The terminal benchmark: `python tests/benchmarks/terminals.py [--rounds N] [--small] [--only ROW]`."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from programs import Program, our_program, peer_programs
from table import Line, Row, Sample, Target, WorkFailed, arguments, chosen, compile_ours, measure, percentile, report

sys.path.insert(0, str(Path(__file__).parents[1]))  # the terminal of the end-to-end tests
from end_to_end.terminal import ScreenError, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COLUMNS, LINES = 120, 36
START_LIMIT = 20.0
ECHO_LIMIT = 20.0


@dataclass(frozen=True)
class Size:
    """How much of everything; the defaults are those of the figures. Times in seconds."""

    keys: int = 60
    idle: float = 5.0
    clock: float = 3.0
    printed: int = 100_000
    typing: float = 5.0
    warm: float = 1.0
    quiet: float = 0.5
    limit: float = 60.0


SMALL = Size(keys=3, idle=0.3, clock=0.6, printed=500, typing=0.3, warm=0.1, quiet=0.05, limit=20)


class Session:
    """A program in a terminal, used by its recipe."""

    def __init__(self, program: Program, terminal: Terminal, quiet: float) -> None:
        self.program = program
        self._quiet = quiet
        self.terminal = terminal
        self.front_end = psutil.Process(terminal.pid)

    def shows(self, pattern: str, limit: float) -> float:
        """Return when the screen matched, as perf_counter has it.

        Raises:
            WorkFailed: where it does not within so many seconds.
        """
        found = re.compile(pattern, re.MULTILINE)
        return self.until(lambda: found.search(self.terminal.text), limit, pattern)

    def until(self, condition: Callable[[], object], limit: float, what: str) -> float:
        """Return when the condition held, as perf_counter has it.

        Raises:
            WorkFailed: where it does not within so many seconds, or the program ends.
        """
        try:
            return self.terminal.wait_until(condition, limit, what)
        except ScreenError as error:
            print(error, file=sys.stderr)
            code = self.terminal.exit_code
            raise WorkFailed("never" if code is None else f"ended ({code})") from error

    def ready(self) -> float:
        """Return when the program was ready."""
        return self.shows(self.program.ready, START_LIMIT)

    def answered(self) -> None:
        """Wait until the program is ready and its kernel has run a first cell."""
        self.ready()
        self.terminal.send("6*7")
        self.shows(r"6\*7", START_LIMIT)
        self.terminal.press("enter")
        self.shows(self.program.answer, START_LIMIT)
        self.settle()

    def settle(self) -> int:
        """Wait until nothing more comes; return how many bytes came."""
        return self.terminal.settle(self._quiet)

    def run(self, code: str) -> float:
        """Paste a cell and run it; return when it was sent."""
        self.terminal.paste(code)
        self.settle()
        sent = time.perf_counter()
        self.terminal.press("enter")
        return sent

    def rss(self) -> float:
        """Return the memory of the program without its kernels, in MB."""
        return self.front_end.memory_info().rss / 1e6

    def cpu(self) -> float:
        """Return the processor time that the program's threads have used, in seconds."""
        tasks = Path(f"/proc/{self.terminal.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextlib.contextmanager
def opened(program: Program, size: Size) -> Iterator[Session]:
    """Start a program; everything that it started is killed at the end."""
    with Terminal(program.argv, columns=COLUMNS, lines=LINES, env=program.environment()) as terminal:
        yield Session(program, terminal, size.quiet)


def start(program: Program, size: Size) -> Sequence[Sample]:
    """Start, type 6*7 as soon as the screen is painted, run it as soon as it is echoed."""
    with opened(program, size) as session:
        terminal = session.terminal
        painted = session.ready()
        sent = len(terminal.received)
        terminal.send("6*7")
        echoed = session.shows(r"6\*7", START_LIMIT)
        terminal.press("enter")
        answered = session.shows(program.answer, START_LIMIT)
        session.settle()
        times = [Sample((moment - terminal.started) * 1000) for moment in (painted, echoed, answered)]
        return [times[0], Sample(sent), times[1], times[2], Sample(session.rss())]


def keys(program: Program, size: Size) -> Sequence[Sample]:
    """Type one key after the other, each when the terminal is quiet."""
    with opened(program, size) as session:
        session.answered()
        typed = "zq="
        session.terminal.send(typed)
        session.shows(typed, 5)
        session.settle()
        before, times = len(session.terminal.received), list[float]()
        for key in itertools.islice(itertools.cycle("12345+67890-"), size.keys):
            typed += key
            times.append(_echo(session, typed))
            session.terminal.settle(0.06)
        sent = len(session.terminal.received) - before
        return [Sample(percentile(times, 50)), Sample(percentile(times, 99)), Sample(sent / size.keys)]


def _echo(session: Session, typed: str) -> float:
    """Type the last character of what then stands in the prompt; return the milliseconds until it does."""
    sent = time.perf_counter()
    session.terminal.send(typed[-1])
    return (session.until(lambda: typed in session.terminal.text, ECHO_LIMIT, f"{typed!r} on the screen") - sent) * 1000


def idle(program: Program, size: Size) -> Sequence[Sample]:
    """Let nothing happen."""
    with opened(program, size) as session:
        session.answered()
        session.terminal.watch(size.warm)
        before = session.cpu()
        sent = session.terminal.watch(size.idle)
        used = session.cpu() - before
        return [Sample(sent / size.idle), Sample(100 * used / size.idle)]


def running(program: Program, size: Size) -> Sequence[Sample]:
    """Let a cell sleep, watch its clock, and press Ctrl-C."""
    with opened(program, size) as session:
        session.answered()
        session.run("import time; time.sleep(600)")
        session.terminal.watch(size.warm)
        sent = session.terminal.watch(size.clock)
        pressed = time.perf_counter()
        session.terminal.press("ctrl+c")
        clock = Sample(sent / size.clock)
        try:
            return [clock, Sample((session.shows("KeyboardInterrupt", 10) - pressed) * 1000)]
        except WorkFailed as error:
            return [clock, Sample(None, str(error))]


def flood(program: Program, size: Size) -> Sequence[Sample]:
    """Print many lines; the time ends when the line after them is sent to the terminal."""
    with opened(program, size) as session:
        session.answered()
        before, sent = session.rss(), len(session.terminal.received)
        begun = session.run(_flooding(size.printed))
        ended = session.until(lambda: _FLOODED in session.terminal.received[-65536:], size.limit, "the last line")
        session.settle()
        written = len(session.terminal.received) - sent
        return [Sample(ended - begun), Sample(written / 1000), Sample(session.rss() - before)]


def keys_in_flood(program: Program, size: Size) -> Sequence[Sample]:
    """Type while lines are printed: one key at least, until 60 keys, the last line or some seconds."""
    if not program.types_while_running:
        return [Sample(None, "no prompt")] * 2
    with opened(program, size) as session:
        session.answered()
        session.run(_flooding(4 * size.printed).replace("(i)", "('line', i)"))
        session.shows(r"\bline \d+$", size.limit)
        deadline = time.perf_counter() + size.typing
        times = [_echo(session, "z")]
        while len(times) < 60 and time.perf_counter() < deadline and _FLOODED not in session.terminal.received:
            session.terminal.watch(0.03)
            times.append(_echo(session, "z" * (len(times) + 1)))
        return [Sample(percentile(times, 50)), Sample(max(times))]


_FLOODED = b"end 42"


def _flooding(lines: int) -> str:
    return f"""exec("for i in range({lines}): print(i)"); print("end", 6*7)"""


def resize(program: Program, size: Size) -> Sequence[Sample]:
    """Make the terminal smaller, and as large as before."""
    with opened(program, size) as session:
        session.answered()
        sent = 0
        for columns, lines in ((100, 30), (COLUMNS, LINES)):
            session.terminal.resize(columns, lines)
            sent += session.settle()
        return [Sample(sent / 2)]


def leave(program: Program, size: Size) -> Sequence[Sample]:
    """Quit; a kernel that still runs two seconds later was left behind."""
    with opened(program, size) as session:
        session.answered()
        pressed = time.perf_counter()
        session.terminal.press(*program.leave)
        try:
            session.terminal.wait_for_exit(10)
        except ScreenError as error:
            print(error, file=sys.stderr)
            raise WorkFailed("never") from error
        gone = Sample((time.perf_counter() - pressed) * 1000)
        deadline = time.perf_counter() + 2
        while (left := session.terminal.processes()) and time.perf_counter() < deadline:
            time.sleep(0.02)
        return [gone, Sample(len(left))]


ROWS = [
    Row(
        "start",
        (
            Line("start → whole screen painted", "ms", Target(300)),
            Line("… bytes", "", Target(10_000)),
            Line("start → typed text echoed", "ms"),
            Line("start → 6*7 answered", "ms", Target(1.3, "IPython")),
            Line("memory of the front end", "MB", Target(75)),
        ),
        start,
    ),
    Row(
        "keys",
        (
            Line("key → echo, p50", "ms", Target(8)),
            Line("… p99", "ms"),
            Line("… bytes per key", "", Target(100)),
        ),
        keys,
    ),
    Row("idle", (Line("nothing happens", "B/s", Target(0)), Line("… processor", "%", Target(0.05))), idle),
    Row(
        "running",
        (Line("one running cell's clock", "B/s", Target(60)), Line("Ctrl-C → KeyboardInterrupt shown", "ms")),
        running,
    ),
    Row(
        "flood",
        (
            Line("100 000 lines printed", "s", Target(1.0, "IPython")),
            Line("… sent", "kB", Target(100)),
            Line("… the front end's memory grew by", "MB", Target(40)),
        ),
        flood,
    ),
    Row(
        "flood-keys",
        (Line("key → echo while they are printed, p50", "ms", Target(50)), Line("… worst", "ms")),
        keys_in_flood,
    ),
    Row("resize", (Line("resize", "B", Target(6000)),), resize),
    Row("quit", (Line("quit → gone", "ms"), Line("… processes left behind", "", Target(0))), leave),
]


def main() -> int:
    """Measure, print the table; return 1 where cobnut could not do a row."""
    compile_ours()
    options = arguments(f"cobnut beside its peers, in a terminal of {COLUMNS}×{LINES}.", ROWS)
    rows = [row for row in ROWS if not options.only or row.key in options.only]
    with tempfile.TemporaryDirectory(prefix="cobnut-", ignore_cleanup_errors=True) as folder:
        peers = [] if options.no_peers else peer_programs(options.peers, Path(folder))
        programs = chosen([our_program(Path(folder)), *peers], options)
        results = measure(rows, programs, options.rounds, SMALL if options.small else Size())
    return report(results, options)


if __name__ == "__main__":
    sys.exit(main())
