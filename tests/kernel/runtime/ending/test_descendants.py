"""The end of what user code has left: found, asked, killed; zombies and others' left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.kernel.leftovers import is_running, until

from cobnut_kernel.runtime.ending import descendants as module
from cobnut_kernel.runtime.ending.descendants import Descendants, Process, descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[[str], int]

FOR_EVER = 600.0
"""A grace that no test lives to see the end of."""

REFUSES = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that run Python code, print a line, and have children; return their ids. They are ended last."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> int:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            each.kill()
        process.communicate()


@pytest.fixture(params=["pidfd", "no pidfd"])
def _with_and_without_pidfd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no pidfd":
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def parent_of(*commands: list[str], then: str = "") -> str:
    """Return the code of a process that starts some others and stays."""
    return (
        "import subprocess, time\n"
        f"children = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in {list(commands)!r}]\n"
        f"{then}\nprint(1, flush=True)\ntime.sleep(600)"
    )


def test_descendants_are_found_in_every_generation_group_and_session(start: Start) -> None:
    """Who is parented to a descendant is one, whatever group or session it has made for itself."""
    parent = start(parent_of(["setsid", "sh", "-c", "echo; sleep 600; true"], then="children[0].stdout.readline()"))
    until(lambda: len(descendants(parent)) == 2, "child and grandchild")
    assert set(descendants(parent)) == {child.pid for child in psutil.Process(parent).children(recursive=True)}


def test_children_of_every_thread_are_found(start: Start) -> None:
    """The system lists the children of each thread for itself."""
    parent = start(
        "import subprocess, threading, time\n"
        "def begin():\n    subprocess.Popen(['sleep', '600']); print(1, flush=True); time.sleep(600)\n"
        "threading.Thread(target=begin).start()"
    )
    assert len(descendants(parent)) == 1


def test_the_table_of_processes_tells_the_same(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system keeps no list of children, as on macOS, `ps` does."""
    parent = start(parent_of(["sleep", "600"], ["sh", "-c", "sleep 600; true"]))
    until(lambda: len(descendants(parent)) == 3, "children and grandchild")
    found = descendants(parent)
    monkeypatch.setattr(module, "_PROC", module._PROC / "nowhere")
    assert sorted(descendants(parent)) == sorted(found)
    assert module._command(found[0]) == "sleep 600"
    assert module._state(found[0]) == "S"


@pytest.mark.usefixtures("_with_and_without_pidfd")
def test_those_who_end_when_asked_are_not_killed(start: Start) -> None:
    """SIGTERM is enough for most, also for one that is stopped, and nobody waits longer than they take."""
    parent = start(parent_of(["sleep", "600"], ["sh", "-c", "sleep 600; true"], then="children[0].send_signal(19)"))
    until(lambda: len(descendants(parent)) == 3, "children and grandchild")
    found = descendants(parent)
    with Descendants(parent) as those:
        assert those.end(FOR_EVER) == []
    assert not any(map(is_running, found))
    assert is_running(parent)


@pytest.mark.usefixtures("_with_and_without_pidfd")
def test_those_who_refuse_are_killed_and_named(start: Start) -> None:
    """When the grace is over SIGKILL ends them, and the caller learns which."""
    refuses = [sys.executable, "-c", REFUSES]
    parent = start(parent_of(["sleep", "600"], refuses, then="children[1].stdout.readline()"))
    with Descendants(parent) as those:
        [killed] = those.end(0.1)
    number, _, command = killed.partition(" ")
    assert command == f"({' '.join(refuses)})"
    assert not is_running(int(number))


@pytest.mark.usefixtures("_with_and_without_pidfd")
def test_an_unreaped_child_is_not_waited_for(start: Start) -> None:
    """A zombie has ended: it is neither asked nor waited for."""
    parent = start(
        parent_of(["true"], then="while open(f'/proc/{children[0].pid}/stat').read().split()[2] != 'Z': pass")
    )
    assert len(descendants(parent)) == 1
    with Descendants(parent) as those:
        assert those.end(FOR_EVER) == []


def test_who_is_started_meanwhile_ends_too(start: Start) -> None:
    """A process that answers SIGTERM by starting another one does not save it."""
    again = (
        "import signal, subprocess, sys, time\n"
        "def on_term(*_):\n    subprocess.Popen(['sleep', '600'])\n"
        "signal.signal(signal.SIGTERM, on_term)\nprint(1, flush=True)\nwhile True: time.sleep(600)"
    )
    parent = start(parent_of([sys.executable, "-c", again], then="children[0].stdout.readline()"))
    with Descendants(parent) as those:
        assert len(those.end(0.3)) >= 1
    until(lambda: not any(map(is_running, descendants(parent))), "the end of all")


def test_multiprocessings_own_process_is_left_alone(start: Start) -> None:
    """It refuses SIGTERM, ends with us, and removes what we leave: killed, it could not."""
    parent = start(
        "import time\nfrom multiprocessing import resource_tracker\n"
        "resource_tracker.ensure_running()\nprint(1, flush=True)\ntime.sleep(600)"
    )
    [tracker] = descendants(parent)
    with Descendants(parent) as those:
        assert those.end(FOR_EVER) == []
        assert those.kill() == []
    assert is_running(tracker)


def test_somebody_elses_process_is_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that we may send no signal to, as `sudo` starts them, is not waited for."""
    parent = start(parent_of(["sleep", "600"]))
    [child] = descendants(parent)

    def refused(_pid: int, _signum: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refused)
        with Descendants(parent) as those:
            assert those.end(FOR_EVER) == []
    assert is_running(child)


def test_a_number_that_is_gone_is_nobody() -> None:
    """A process that has ended cannot be held, and one that ends while it is held gets no signal."""
    process = subprocess.Popen(["sleep", "600"])
    held = Process.hold(process.pid)
    process.kill()
    process.wait()
    held.send(signal.SIGTERM)
    assert not held.running
    held.release()
    with pytest.raises(ProcessLookupError):
        Process.hold(process.pid)
