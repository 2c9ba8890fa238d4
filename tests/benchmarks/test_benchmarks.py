"""The benchmarks run, on a small size and with ours alone; nothing is said about time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str
    ours: bool


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as a user does."""
    return subprocess.run(
        [sys.executable, str(HERE / script), *options], capture_output=True, text=True, timeout=55, check=False
    )


def only(*rows: str) -> list[str]:
    """Return the options that choose rows."""
    return [option for row in rows for option in ("--only", row)]


@pytest.mark.parametrize(
    ("script", "options", "works"),
    [
        ("kernels.py", ["--subject", "cobnut"], ["cold start", "pass", "queued", "print", "displays", "interrupt"]),
        (
            "kernels.py",
            ["--subject", "cobnut (ipc)", "--only", "start", "--only", "unread"],
            ["cold start", "displays"],
        ),
        ("managers.py", only("start", "fork", "restart-now", "restart"), ["cold start", "fork server warm", "restart"]),
        ("managers.py", only("stop", "kill", "owner", "owner-sh"), ["asked to end", "stop (now)", "owner killed"]),
        ("managers.py", only("execute", "displays", "descriptors"), ["execute", "30 000 displays", "descriptors"]),
        ("terminals.py", [], ["6*7 answered", "key → echo", "nothing happens", "lines printed", "resize", "quit"]),
    ],
)
def test_every_work_is_done_by_ours(script: str, options: list[str], works: list[str], tmp_path: Path) -> None:
    """Each row of the table has a figure of ours, and the file every sample."""
    samples = tmp_path / "samples.json"
    done = run(script, "--small", "--rounds", "1", "--no-peers", "--json", str(samples), *options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert all(work in done.stdout for work in works)
    written = json.loads(samples.read_text())
    assert len(written) == done.stdout.count("\n| ") - 1
    assert all(isinstance(value, int | float) for row in written.values() for ours in row.values() for value in ours)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--no-peers", "--only", "nonsense"), "choose from"),
        (("--no-peers", "--rounds", "0"), "--rounds must be at least 1"),
        (("--no-peers", "--subject", "nonsense"), "There is no nonsense: choose among cobnut, cobnut (ipc)."),
        (("--peers", "/no/such/folder"), "run tests/benchmarks/peers.py first, or give --no-peers"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(options: tuple[str, ...], said: str) -> None:
    """Nothing is started, and the message names the way out."""
    done = run("kernels.py", *options)
    assert done.returncode != 0
    assert said in done.stderr


def test_peers_are_not_installed_over_something_else(tmp_path: Path) -> None:
    """A folder that is no environment is refused, and what is in it stays."""
    (tmp_path / "thesis.txt").write_text("precious")
    done = run("peers.py", str(tmp_path))
    assert done.returncode == 1
    assert "not a virtual environment" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_table_compares_medians_and_leaves_out_what_lost_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is divided by the best whole peer; a lossy one, a dead one and one that mostly failed are shown as such."""
    monkeypatch.syspath_prepend(HERE)
    table = importlib.import_module("table")
    rounds = {
        "ours": [table.Sample(4.0), table.Sample(6.0), table.Sample(500.0)],
        "whole": [table.Sample(3.0), table.Sample(3.0), table.Sample(None, "never")],
        "lossy": [table.Sample(1.0, "lost 42 %")] * 3,
        "dead": [table.Sample(None, "died (SIGSEGV)")] * 2,
    }
    subjects = [Subject(name, name == "ours") for name in rounds]
    row = table.Row("row", (table.Line("work", "ms", table.Target(2.0, "whole")),), lambda *_: ())
    results = table.Results([row], subjects, {("row", name): [[s] for s in some] for name, some in rounds.items()})
    cells = [cell.strip() for cell in table.table(results).splitlines()[2].strip("|").split("|")]
    assert cells == [
        "work (ms)",
        "6",
        "3 never (1 of 3 failed)",
        "1 lost 42 %",
        "died (SIGSEGV)",
        "2.00",
        "≤ 2 × whole ✓",
    ]
    assert results.failures() == []


def test_a_failing_subject_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a row raises stands in its cell, and is not tried for ever."""
    monkeypatch.syspath_prepend(HERE)
    table = importlib.import_module("table")
    tried: list[str] = []

    def work(subject: Subject, _size: None) -> list[object]:
        tried.append(subject.name)
        if subject.name == "peer":
            raise ZeroDivisionError("oops")
        return [table.Sample(1.0)]

    row = table.Row("row", (table.Line("work", ""),), work)
    results = table.measure([row], [Subject("ours", True), Subject("peer", False)], 4, None)
    assert (tried.count("ours"), tried.count("peer")) == (4, 2)
    assert "failed (ZeroDivisionError: oops)" in table.table(results)
