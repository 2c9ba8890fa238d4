"""The benchmark of callers: `python tests/benchmarks/callers.py [--rounds N] [--small] [--only ROW]`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from caller_work import WORKS
from table import Line, Row, Sample, Target, WorkFailed, arguments, chosen, measure, report

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Library:
    """What calls functions in other tasks and threads, and the interpreter that has it."""

    name: str
    python: str
    ours: bool = False


@dataclass(frozen=True)
class Size:
    """How often each work is done for one sample, in thousandths of what is usual for it."""

    permille: int = 1000


def time_per_call(library: Library, size: Size, *, work: str) -> Sequence[Sample]:
    """Do a work again and again in a fresh process, and return the time of one."""
    script = str(Path(__file__).with_name("caller_work.py"))
    command = [library.python, script, library.name, work, str(size.permille)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise WorkFailed(done.stderr.strip().splitlines()[-1][:60])
    seconds = json.loads(done.stdout)
    return [Sample(None, "has none") if seconds is None else Sample(seconds * 1e6)]


_LABELS = {
    "call_soon": ("call_soon, awaited one by one (asyncio: create_task)", Target(2.0, "asyncio")),
    "burst": ("call_soon, many at once", None),
    "to_thread": ("to_thread", Target(1.0, "asyncio")),
    "hop": ("call in another thread's loop (asyncio: run_coroutine_threadsafe)", Target(1.0, "asyncio")),
    "hop_burst": ("the same, many at once", None),
    "wait_sync": ("call from a thread without a loop, which blocks (asyncio: Future.result)", Target(1.0, "asyncio")),
    "queue_call": ("queue_call", None),
    "child": ("new thread with a loop → its first result", None),
}
ROWS = [
    Row(key, (Line(label, "µs", target),), partial(time_per_call, work=key))
    for key, (label, target) in _LABELS.items()
    if key in WORKS
]


def main() -> int:
    """Measure, print the table; return 1 where ours could not do a row."""
    options = arguments("Callers beside what asyncio has, and async-kernel's.", ROWS)
    rows = [row for row in ROWS if not options.only or row.key in options.only]
    ours = [Library(name, sys.executable, ours=True) for name in ("cobnut", "cobnut (trio)")]
    peer = [] if options.no_peers else [Library("async-kernel", str(options.peers / "bin" / "python"))]
    libraries = chosen([*ours, Library("asyncio", sys.executable), *peer], options)
    return report(measure(rows, libraries, options.rounds, Size(20) if options.small else Size()), options)


if __name__ == "__main__":
    sys.exit(main())
