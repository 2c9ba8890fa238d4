"""The kernel benchmark: `python tests/benchmarks/kernels.py [--rounds N] [--small] [--only ROW]`."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from concurrency import ROWS as CONCURRENCY
from kernel_client import Cell, ForkServer, KernelRecipe, RunningKernel, our_kernels, peer_kernels
from table import Line, Row, Sample, Target, WorkFailed, arguments, chosen, compile_ours, measure, percentile, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPT_LIMIT = 5.0
SHUTDOWN_LIMIT = 5.0


@dataclass(frozen=True)
class Size:
    """How much of everything, times in seconds; the defaults are those of the figures."""

    trips: int = 300
    queued: int = 1000
    prints: int = 100_000
    flushed: int = 20_000
    flood: int = 100_000
    asleep: float = 3.0
    displays: int = 5000
    blocked: float = 2.0
    settle: float = 0.4
    limit: float = 60.0


SMALL = Size(5, 20, prints=1000, flushed=200, flood=1000, asleep=0.1, displays=50, blocked=0.3, settle=0.1, limit=20)


def warmed(kernel: RunningKernel) -> RunningKernel:
    """Run the first cells, which are slower than all others."""
    for code in ("pass", "1", "pass"):
        kernel.run(code)
    return kernel


def cold_start(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Start a process, and run its first cell when it answers."""
    return _start(RunningKernel(recipe), size)


def _start(starting: RunningKernel, size: Size) -> Sequence[Sample]:
    with starting as kernel:
        answered = time.perf_counter() - kernel.started
        cell = kernel.run("6*7", size.limit)
        if cell.result != "42":
            raise WorkFailed("no result")
        return [_ms(answered), _ms(cell.last - kernel.started)]


def forked_start(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Start a kernel when the fork server is ready, and run its first cell; who has none starts cold."""
    if not recipe.ours:
        answered, first = cold_start(recipe, size)
        return [answered, first, first]
    with ForkServer(recipe) as server:
        answered, first = _start(RunningKernel(recipe, server), size)
        return [answered, first, first]


def round_trip(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Run `pass` again and again, each when the last is done."""
    with RunningKernel(recipe) as kernel:
        warmed(kernel)
        times = [kernel.run("pass").seconds * 1e6 for _ in range(size.trips)]
        return [Sample(percentile(times, 50)), Sample(percentile(times, 99))]


def queued(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Send many cells at once."""
    with RunningKernel(recipe) as kernel:
        warmed(kernel)
        cells = [kernel.client.execute("pass") for _ in range(size.queued)]
        kernel.follow(*cells, limit=size.limit)
        seconds = max(cell.last for cell in cells) - cells[0].sent
        ended = sum(cell.done for cell in cells)
        return [Sample(ended / seconds if ended else None, _lost(ended, size.queued, "idle"))]


def prints(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Print many short lines."""
    cell, whole = _flood(recipe, f"for i in range({size.prints}): print(i)", size)
    messages = Sample(cell.counts["stream"])
    return [_seconds(cell, whole), messages, Sample(cell.lines, _lost(cell.lines, size.prints))]


def flushed_prints(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Flush after every line."""
    cell, whole = _flood(recipe, f"for i in range({size.flushed}): print(i, flush=True)", size)
    return [_seconds(cell, whole), Sample(cell.lines, _lost(cell.lines, size.flushed))]


def displays_unread(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Display much to a client that reads nothing for some seconds."""
    code = "from IPython.display import display\n"
    code += f"for i in range({size.flood}): display({{'text/plain': str(i)}}, raw=True)"
    with RunningKernel(recipe) as kernel:
        warmed(kernel)
        before = kernel.rss()
        cell = kernel.client.execute(code)
        time.sleep(size.asleep)
        kernel.follow(cell, limit=size.limit)
        received = cell.counts["display_data"]
        note = _lost(received, size.flood) or ("" if cell.idle else "no idle")
        return [Sample(received, note), Sample(kernel.peak_rss() - before)]


def display_rate(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Display Markdown objects one after the other."""
    code = "from IPython.display import Markdown, display\n"
    cell, _whole = _flood(recipe, code + f"for i in range({size.displays}): display(Markdown('x'))", size)
    received = cell.counts["display_data"]
    return [Sample(received / cell.seconds if received else None, _lost(received, size.displays))]


def info_while_blocked(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Ask for kernel_info on shell while a cell sleeps; who answers at once is asked five times."""
    with RunningKernel(recipe) as kernel:
        kernel.begin(f"import time; time.sleep({size.blocked})", size.settle / 4)
        times: list[float] = []
        while len(times) < 5 and sum(times) < size.blocked / 4:
            asked = kernel.client.send("kernel_info_request", {})
            times.append(kernel.wait_for_reply(asked, size.blocked + 5) - asked.sent)
        waited = "after the cell" if max(times) > size.blocked / 2 else ""
        return [Sample(percentile(times, 50) * 1000, waited)]


def interrupt(recipe: KernelRecipe, size: Size, *, code: str) -> Sequence[Sample]:
    """Interrupt a running cell; the time ends with its reply."""
    with RunningKernel(recipe) as kernel:
        kernel.run("1/0")  # the first traceback imports what formats it
        cell = kernel.begin(code, size.settle)
        sent = time.perf_counter()
        kernel.interrupt()
        replied = kernel.wait_for_reply(cell, INTERRUPT_LIMIT)
        return [_ms(replied - sent, "" if cell.reply.get("status") == "error" else "without an error")]


def shutdown(recipe: KernelRecipe, size: Size, *, code: str = "") -> Sequence[Sample]:
    """Ask for shutdown; the time ends when the process is gone."""
    with RunningKernel(recipe) as kernel:
        if code:
            kernel.begin(code, size.settle)
        else:
            warmed(kernel)
        sent = time.perf_counter()
        kernel.client.send("shutdown_request", {"restart": False}, control=True)
        return [_ms(kernel.wait_for_exit(SHUTDOWN_LIMIT) - sent)]


def memory(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Start a second kernel beside a first one: what both take more than the first alone."""
    with RunningKernel(recipe) as first:
        warmed(first)
        alone = first.pss()
        with RunningKernel(recipe) as second:
            warmed(second)
            time.sleep(size.settle)
            return [Sample(first.pss() + second.pss() - alone)]


def forked_memory(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Fork a second kernel beside a first one: what both, template and spare kernel take more than before."""
    if not recipe.ours:
        raise WorkFailed("no fork server")
    with ForkServer(recipe) as server, RunningKernel(recipe, server) as first:
        warmed(first)
        time.sleep(size.settle)
        alone = server.pss()
        with RunningKernel(recipe, server) as second:
            warmed(second)
            time.sleep(size.settle)
            return [Sample(server.pss() - alone)]


def _flood(recipe: KernelRecipe, code: str, size: Size) -> tuple[Cell, bool]:
    with RunningKernel(recipe) as kernel:
        warmed(kernel)
        cell = kernel.client.execute(code)
        return cell, kernel.follow(cell, limit=size.limit)


def _ms(seconds: float, note: str = "") -> Sample:
    return Sample(seconds * 1000, note)


def _seconds(cell: Cell, whole: bool) -> Sample:
    if cell.replied is None:
        return Sample(None, "never")
    return Sample(cell.seconds, "" if whole else "no idle")


def _lost(received: int, expected: int, what: str = "") -> str:
    if received >= expected:
        return ""
    return " ".join(("lost", f"{100 * (expected - received) / expected:.2g} %", *([what] if what else [])))


_AWAIT = "import asyncio; await asyncio.sleep(30)"
_INTERRUPTED = {
    "loop": ("a bytecode loop", "while True: pass"),
    "sleep": ("time.sleep", "import time; time.sleep(30)"),
    "await": ("await asyncio.sleep", _AWAIT),
    "after-await": ("time.sleep after an await", "import asyncio, time; await asyncio.sleep(.05); time.sleep(30)"),
    "child": ("a child process", "import subprocess; subprocess.run(['sleep', '30'])"),
}


def _row(key: str, measure: Callable[[KernelRecipe, Size], Sequence[Sample]], *lines: Line) -> Row[KernelRecipe, Size]:
    return Row(key, lines, measure)


ROWS = [
    _row(
        "start",
        cold_start,
        Line("cold start → kernel_info", "ms"),
        Line("cold start → first result", "ms", Target(1.15, "xeus-python")),
    ),
    _row(
        "fork",
        forked_start,
        Line("start, fork server warm (peers: cold) → kernel_info", "ms"),
        Line("start, fork server warm (peers: cold) → first result", "ms", Target(25)),
        Line("… beside the best peer's", "ms", Target(0.2, "xeus-python")),
    ),
    _row(
        "pass",
        round_trip,
        Line("execute pass → reply and idle, p50", "µs", Target(1.0, "xeus-python")),
        Line("the same, p99", "µs"),
    ),
    _row("queued", queued, Line("queued executes", "per s", Target(1.0, "xeus-python"), more_is_better=True)),
    _row(
        "prints",
        prints,
        Line("100 000 × print", "s", Target(0.5, "ipykernel")),
        Line("… stream messages", ""),
        Line("… lines received", "", Target(Size.prints), more_is_better=True),
    ),
    _row(
        "flushed",
        flushed_prints,
        Line("20 000 × print(flush=True)", "s", Target(0.3)),
        Line("… lines received", "", Target(Size.flushed), more_is_better=True),
    ),
    _row(
        "unread",
        displays_unread,
        Line("100 000 displays, client asleep: received", "", Target(Size.flood), more_is_better=True),
        Line("… the kernel's memory grew by", "MB"),
    ),
    _row("displays", display_rate, Line("displays", "per s", Target(1.0, "xeus-python"), more_is_better=True)),
    _row("blocked", info_while_blocked, Line("kernel_info while a cell blocks", "ms", Target(10))),
    *(
        _row(f"interrupt-{key}", partial(interrupt, code=code), Line(f"interrupt: {label}", "ms", Target(30)))
        for key, (label, code) in _INTERRUPTED.items()
    ),
    *CONCURRENCY,
    _row("shutdown", shutdown, Line("shutdown, idle", "ms", Target(50))),
    _row(
        "shutdown-blocked",
        partial(shutdown, code="import time; time.sleep(30)"),
        Line("shutdown while a cell blocks", "ms", Target(300)),
    ),
    _row("memory", memory, Line("memory of one more kernel (PSS)", "MB", Target(30))),
    _row("memory-fork", forked_memory, Line("memory of one more forked kernel (PSS)", "MB", Target(15))),
]


def main() -> int:
    """Measure, print the table; return 1 where our kernel could not do a row."""
    compile_ours()
    options = arguments("Our kernel beside its peers, by one bare client.", ROWS)
    rows = [row for row in ROWS if not options.only or row.key in options.only]
    with tempfile.TemporaryDirectory(prefix="cobnut-", ignore_cleanup_errors=True) as folder:
        peers = [] if options.no_peers else peer_kernels(options.peers, Path(folder))
        kernels = chosen(our_kernels(Path(folder)) + peers, options)
        results = measure(rows, kernels, options.rounds, SMALL if options.small else Size())
    return report(results, options)


if __name__ == "__main__":
    sys.exit(main())
