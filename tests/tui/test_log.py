"""The log is for its owner alone, and begins with the first thing to say."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from cobnut.log import LIMIT, start_logging
from cobnut.places import log_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Leave the logging of the tests as it was."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()


def test_the_file_is_private_and_made_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file without a record; then one that only its owner can read."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    start_logging()
    assert not log_path().exists()
    logging.getLogger("cobnut.test").error("it failed")
    assert log_path() == tmp_path / "state" / "cobnut" / "cobnut.log"
    assert "it failed" in log_path().read_text()
    assert log_path().stat().st_mode & 0o777 == 0o600


def test_a_large_file_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of former times does not grow for ever."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    log_path().parent.mkdir()
    log_path().write_bytes(b"x" * (LIMIT + 1))
    start_logging()
    logging.getLogger("cobnut.test").error("new")
    assert log_path().stat().st_size < 1000
    assert log_path().with_suffix(".log.1").stat().st_size == LIMIT + 1


def test_without_a_place_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no file can be written, logging neither fails nor writes to the screen."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    start_logging()
    logging.getLogger("cobnut.test").error("lost")
    assert capsys.readouterr().err == ""


def test_a_relative_state_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The specification says that a relative XDG_STATE_HOME is invalid."""
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert log_path() == tmp_path / ".local" / "state" / "cobnut" / "cobnut.log"
