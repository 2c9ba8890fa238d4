"""Rounds in turns, medians, and the table with the peers beside ours."""

from __future__ import annotations

import argparse
import compileall
import itertools
import json
import signal
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENOUGH_FAILURES = 2
"""What failed so often in the same row, and never worked, is not tried in its other rounds."""


class Subject(Protocol):
    """What is measured: one of ours or a peer."""

    @property
    def name(self) -> str:
        """Return the name over its column."""
        ...

    @property
    def ours(self) -> bool:
        """Return whether it is ours."""
        ...


S = TypeVar("S", bound=Subject)
Z = TypeVar("Z")


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one round; without a value, the note says what happened instead ("never", "died")."""

    value: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What ours must reach: `limit`, or so many times what the peer `of` has."""

    limit: float
    of: str = ""

    def __str__(self) -> str:
        return f"{self.limit:g} × {self.of}" if self.of else f"{self.limit:g}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    label: str
    unit: str
    target: Target | None = None
    more_is_better: bool = False

    def reached(self, medians: dict[str, float | None], value: float | None) -> bool | None:
        """Return whether the target is reached; None where that cannot be said."""
        if self.target is None or value is None:
            return None if self.target is None else False
        reference = medians.get(self.target.of) if self.target.of else 1.0
        if reference is None:
            return None
        limit = self.target.limit * reference
        return value >= limit if self.more_is_better else value <= limit


@dataclass(frozen=True, slots=True)
class Row(Generic[S, Z]):
    """A piece of work: `measure` does it once with a subject, and returns a sample per line."""

    key: str
    lines: tuple[Line, ...]
    measure: Callable[[S, Z], Sequence[Sample]]


class WorkFailed(Exception):  # noqa: N818
    """The subject did not do the work; the message, in few words, stands in the table."""


@dataclass
class Results(Generic[S, Z]):
    """All samples: per row and subject, a sequence per round with one sample per line."""

    rows: Sequence[Row[S, Z]]
    subjects: Sequence[S]
    samples: dict[tuple[str, str], list[Sequence[Sample]]] = field(default_factory=dict)

    def of(self, row: Row[S, Z], index: int, subject: S) -> list[Sample]:
        """Return a line's samples of all rounds."""
        return [samples[index] for samples in self.samples.get((row.key, subject.name), [])]

    def failures(self) -> list[str]:
        """Return which of our own lines have no value, with the reason."""
        return [
            f"{subject.name}: {row.key}: {line.label}: {cell(samples)}"
            for row in self.rows
            for index, line in enumerate(row.lines)
            for subject in self.subjects
            if subject.ours and median(samples := self.of(row, index, subject)) is None
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return everything that was measured, for a file."""
        return {
            f"{row.key}: {line.label} ({line.unit})": {
                subject.name: [sample.value if sample.value is not None else sample.note for sample in samples]
                for subject in self.subjects
                if (samples := self.of(row, index, subject))
            }
            for row in self.rows
            for index, line in enumerate(row.lines)
        }


def measure(rows: Sequence[Row[S, Z]], subjects: Sequence[S], rounds: int, size: Z) -> Results[S, Z]:
    """Do each row's work in rounds, every subject in turn, another one first each time; Ctrl-C ends it early."""
    results = Results(rows, subjects)
    try:
        for row, number in itertools.product(rows, range(rounds)):
            shift = number % len(subjects)
            for subject in (*subjects[shift:], *subjects[:shift]):
                _round(results, row, subject, size)
    except KeyboardInterrupt:
        print("Stopped: the table shows what was measured.", file=sys.stderr)
    return results


def _round(results: Results[S, Z], row: Row[S, Z], subject: S, size: Z) -> None:
    """Add a sample, unless the subject has failed often enough."""
    done = results.samples.setdefault((row.key, subject.name), [])
    if len(done) >= ENOUGH_FAILURES and all(sample.value is None for samples in done for sample in samples):
        return
    done.append(_once(row, subject, size))
    figures = ", ".join(f"{number_text(sample.value)} {sample.note}".strip() for sample in done[-1])
    print(f"{row.key} {len(done)}: {subject.name}: {figures}", file=sys.stderr, flush=True)


def _once(row: Row[S, Z], subject: S, size: Z) -> Sequence[Sample]:
    """Do the work once; whatever happens, the run goes on."""
    try:
        return row.measure(subject, size)
    except WorkFailed as error:
        return [Sample(None, str(error))] * len(row.lines)
    except Exception as error:  # a peer may fail in any way
        first, *_ = f"{type(error).__name__}: {error}".splitlines()
        print(f"{row.key} {subject.name}: {error}", file=sys.stderr)
        return [Sample(None, f"failed ({first[:60]})")] * len(row.lines)


def median(samples: Sequence[Sample]) -> float | None:
    """Return the median of what worked; None where most did not."""
    values = [sample.value for sample in samples if sample.value is not None]
    return statistics.median(values) if values and 2 * len(values) >= len(samples) else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def cell(samples: Sequence[Sample]) -> str:
    """Return a cell of the table: the median, and the commonest note."""
    if not samples:
        return "–"
    notes = Counter(sample.note for sample in samples if sample.note)
    failed = sum(sample.value is None for sample in samples)
    parts = [number_text(value)] if (value := median(samples)) is not None else []
    parts += [note for note, _ in notes.most_common(1)]
    if parts and 0 < failed < len(samples):
        parts.append(f"({failed} of {len(samples)} failed)")
    return " ".join(parts)


def number_text(value: float | None) -> str:
    """Return a figure with about three digits."""
    if value is None:
        return ""
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(results: Results[Any, Any], *, judged: bool = True) -> str:
    """Return the table in Markdown: a column per subject, and ours ÷ the best peer that lost nothing, the target."""
    subjects = results.subjects
    body = [["work", *(subject.name for subject in subjects), *(("ours ÷ best peer", "must reach") * judged)]]
    for row in results.rows:
        for index, line in enumerate(row.lines):
            samples = {subject.name: results.of(row, index, subject) for subject in subjects}
            label = f"{line.label} ({line.unit})" if line.unit else line.label
            body.append([label, *map(cell, samples.values()), *(_judgement(line, samples, subjects) * judged)])
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    body.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in body)


def _judgement(line: Line, samples: dict[str, list[Sample]], subjects: Sequence[Subject]) -> tuple[str, str]:
    """Return the last two cells of a line; the first of ours is judged."""
    ours = next(subject.name for subject in subjects if subject.ours)
    medians = {name: median(those) for name, those in samples.items()}
    whole = [
        value
        for subject in subjects
        if not subject.ours and not any(sample.note for sample in samples[subject.name] if sample.value is not None)
        if (value := medians[subject.name]) is not None
    ]
    best = (max if line.more_is_better else min)(whole, default=None)
    own = medians[ours]
    ratio = f"{own / best:.2f}" if own is not None and best else "–"
    if line.target is None:
        return ratio, ""
    mark = {True: "✓", False: "✗", None: "?"}[line.reached(medians, own)]
    return ratio, f"{'≥' if line.more_is_better else '≤'} {line.target} {mark}"


def compile_ours() -> None:
    """Compile our packages, as an installation does: an editable one may be read anew at every start."""
    for name in ("cobnut", "cobnut_kernel"):
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            compileall.compile_dir(folder, quiet=1)


def arguments(description: str, rows: Sequence[Row[Any, Any]]) -> argparse.Namespace:
    """Read the command line that both benchmarks share, and make signals end a run with everything killed."""
    keys = [row.key for row in rows]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="how often each work is done (default: 5)")
    parser.add_argument("--small", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("--only", action="append", choices=keys, metavar="ROW", help=f"repeatable: {', '.join(keys)}")
    parser.add_argument("--peers", type=Path, default=peers.default_folder(), help="default: %(default)s")
    parser.add_argument("--subject", action="append", metavar="NAME", help="only this one, ours or a peer (repeatable)")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1.")
    if not options.no_peers and not peers.is_complete(options.peers):
        parser.error(f"no peers in {options.peers}: run tests/benchmarks/peers.py first, or give --no-peers.")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    return options


def chosen(subjects: Sequence[S], options: argparse.Namespace) -> list[S]:
    """Return the subjects that the command line asks for, at least one of ours among them."""
    names = [subject.name for subject in subjects]
    if unknown := set(options.subject or ()) - set(names):
        raise SystemExit(f"There is no {', '.join(unknown)}: choose among {', '.join(names)}.")
    found = [subject for subject in subjects if not options.subject or subject.name in options.subject]
    if not any(subject.ours for subject in found):
        raise SystemExit("The table compares with ours: name one of ours too.")
    return found


def report(results: Results[Any, Any], options: argparse.Namespace) -> int:
    """Print the table, write the file; return 1 where one of ours could not do its work."""
    print(table(results, judged=not options.small))
    if options.small:
        print("\nSmall sizes: this shows that the work is done; the figures say nothing.")
    if options.json:
        options.json.write_text(json.dumps(results.as_dict(), indent=1, ensure_ascii=False) + "\n")
    for failure in results.failures():
        print(f"Failed: {failure}", file=sys.stderr)
    return 1 if results.failures() else 0
