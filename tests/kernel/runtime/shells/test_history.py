"""The history: opened when it is needed, by a thread of its own, and whole at the end."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShellABC
from tests.kernel.leftovers import until
from traitlets.config import Config

from cobnut_kernel.runtime.shells.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    MakeHistory = Callable[..., History]


class ShellOf:
    """What a history needs of a shell."""

    def __init__(self, folder: Path) -> None:
        self.profile_dir = SimpleNamespace(location=str(folder))
        self.namespace: dict[str, Any] = {}

    def push(self, variables: dict[str, Any], interactive: bool = True) -> None:
        """Set variables of the user's."""
        self.namespace |= variables


InteractiveShellABC.register(ShellOf)


@pytest.fixture
def make_history(tmp_path: Path) -> Iterator[MakeHistory]:
    """Make histories whose database is in the test's folder, or the one given, and close them."""
    made: list[History] = []

    def make(folder: Path = tmp_path, **settings: Any) -> History:
        made.append(History(shell=ShellOf(folder), config=Config({"HistoryManager": settings})))
        return made[-1]

    yield make
    for history in made:
        history.close()


def sources(folder: Path) -> list[tuple[int, str]]:
    """Return lines and inputs that are in the database; nothing where it is being made."""
    with closing(sqlite3.connect(folder / "history.sqlite")) as database, suppress(sqlite3.OperationalError):
        return database.execute("SELECT line, source_raw FROM history ORDER BY session, line").fetchall()
    return []


def test_nothing_is_opened_before_the_first_input(make_history: MakeHistory, tmp_path: Path) -> None:
    """No file, no thread: such a process can be forked."""
    before = threading.active_count()
    history = make_history()
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before
    history.end_session()
    history.reset(new_session=False)
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_kept_without_waiting(make_history: MakeHistory, tmp_path: Path) -> None:
    """The thread opens the database and writes; the next process finds what was kept."""
    history = make_history()
    for line in range(1, 4):
        history.store_inputs(line, f"x = {line}")
    until(lambda: (tmp_path / "history.sqlite").exists() and len(sources(tmp_path)) == 3)
    assert [row[2] for row in make_history().get_tail(2, include_latest=True)] == ["x = 2", "x = 3"]


def test_an_input_right_before_the_end_is_kept(make_history: MakeHistory, tmp_path: Path) -> None:
    """Who ends the session waits for what is being opened."""
    for turn in range(10):
        history = make_history()
        history.store_inputs(1, f"x = {turn}")
        history.end_session()
        history.close()
    assert [source for _, source in sources(tmp_path)] == [f"x = {turn}" for turn in range(10)]


def test_a_question_before_the_first_input_is_answered(make_history: MakeHistory) -> None:
    """Front ends ask for the last inputs when they connect, and users for a session before."""
    first = make_history()
    first.store_inputs(1, "old = 1")
    number = first.session_number
    first.end_session()
    assert [row[2] for row in make_history().get_tail(include_latest=True)] == ["old = 1"]
    assert [row[2] for row in make_history().search("o*")] == ["old = 1"]
    assert [row[2] for row in make_history().get_range(number)] == ["old = 1"]
    assert [row[2] for row in make_history().get_range(-4)] == ["old = 1"]
    assert make_history().session_number == number + 5


def test_a_question_while_the_thread_opens_waits_for_it(make_history: MakeHistory) -> None:
    """The running cell's own input is the latest, whoever was first at the database."""
    for _ in range(10):
        history = make_history()
        history.store_inputs(1, "%history")
        *_, (session, line, source) = history.get_tail(include_latest=True)
        assert (session, line, source) == (history.session_number, 1, "%history")


def test_a_history_that_was_switched_off_stays_so(make_history: MakeHistory, tmp_path: Path) -> None:
    """The user's setting holds: inputs are in memory, and nowhere else."""
    history = make_history(enabled=False)
    history.store_inputs(1, "secret = 1")
    history.end_session()
    assert list(tmp_path.iterdir()) == []
    assert history.input_hist_raw == ["", "secret = 1"]


def test_a_database_in_memory_is_no_file(make_history: MakeHistory, tmp_path: Path) -> None:
    """IPython's setting for no file; questions are answered all the same."""
    history = make_history(hist_file=":memory:")
    history.store_inputs(1, "x = 1")
    assert [row[2] for row in history.get_tail(include_latest=True)] == ["x = 1"]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_costs_the_history_alone(make_history: MakeHistory, tmp_path: Path) -> None:
    """Inputs are in memory, nothing is raised."""
    history = make_history(tmp_path / "not" / "there")
    history.store_inputs(1, "x = 1")
    history.end_session()
    assert history.input_hist_raw == ["", "x = 1"]


def test_a_count_that_begins_anew_loses_no_input(make_history: MakeHistory, tmp_path: Path) -> None:
    """After `%reset` the first line comes again: it is kept in a session of its own."""
    history = make_history()
    history.store_inputs(1, "before")
    history.end_session()
    history.reset()
    history.store_inputs(1, "after")
    history.end_session()
    assert [source for _, source in sources(tmp_path)] == ["before", "after"]


AT_EXIT = """
import atexit
atexit.register(lambda: print(history.db.execute("SELECT 42").fetchone()))  # the last to run

from types import SimpleNamespace
from IPython.core.interactiveshell import InteractiveShellABC
from cobnut_kernel.runtime.shells.history import History

class ShellOf:
    profile_dir = SimpleNamespace(location=FOLDER)

InteractiveShellABC.register(ShellOf)
history = History(shell=ShellOf())
history.open()
"""


def test_the_end_of_the_process_closes_no_database(tmp_path: Path) -> None:
    """A thread that was not waited for may be writing to it: closed meanwhile, sqlite would crash the process."""
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT.replace("FOLDER", repr(str(tmp_path)))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("(42,)\n", 0), ended.stderr
