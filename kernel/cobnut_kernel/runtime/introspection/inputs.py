"""The inputs of this and of earlier sessions, as a history request asks for them.

Those of this session are in memory, all of them; the others in IPython's database, which is read through a connection
of its own for each request: the one that writes belongs to another thread, and need not be waited for.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cobnut_kernel.runtime.imports import without_user_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from sqlite3 import Connection

    from IPython.core.history import HistoryManager

    Row = tuple[int, int, Any]
    """Session, line, and the input, or the pair of input and output."""

_TAIL = 10
"""How many inputs a request gets that does not say how many it wants, as in IPython."""

_BUSY = 0.2
"""Seconds to wait for a database that somebody writes to."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HistoryRequest:
    """What a history request asks for.

    Source: "History" in the Jupyter messaging specification.
    """

    access: str
    output: bool
    raw: bool
    session: int
    start: int
    stop: int | None
    n: int | None
    pattern: str
    unique: bool

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> HistoryRequest:
        """Read the request.

        Raises:
            ValueError: it asks in no known way.
            TypeError: a number is none.
        """
        access = content.get("hist_access_type", "tail")
        if access not in {"tail", "range", "search"}:
            raise ValueError(f"The 'hist_access_type' {access!r} is unknown: ask for 'tail', 'range' or 'search'.")
        return cls(
            access,
            bool(content.get("output", False)),
            bool(content.get("raw", True)),
            _number(content, "session") or 0,
            _number(content, "start") or 0,
            _number(content, "stop"),
            _number(content, "n"),
            str(content.get("pattern") or "*"),
            bool(content.get("unique", False)),
        )


def _number(content: dict[str, Any], name: str) -> int | None:
    value = content.get(name)
    if value is not None and not isinstance(value, int):
        raise TypeError(f"A history request's {name!r} must be a whole number, not {value!r}.")
    return value


class _Input(NamedTuple):
    line: int
    source: str
    raw: str
    output: str | None


class Inputs:
    """The inputs that a shell's history knows."""

    def __init__(self, manager: HistoryManager) -> None:
        self._manager = manager

    def find(self, request: HistoryRequest) -> list[Row]:
        """Return what a request asks for; the newest comes last.

        A database that is missing or broken holds nothing.
        """
        if request.access == "range" and self._means_present(request.session):
            return self._present_range(request)
        self._open()
        try:
            with closing(self._connect()) as connection:
                return self._query(connection, request)
        except Exception as error:  # sqlite's own errors, which need not be importable here
            _log.debug("The history's database cannot be read", exc_info=error)
            return self.find_present(request)

    def find_present(self, request: HistoryRequest) -> list[Row]:
        """Return what of this session a request asks for, from memory."""
        if request.access == "range":
            return self._present_range(request) if self._means_present(request.session) else []
        found = [given for given in self._present() if fnmatchcase(given.raw, request.pattern)]
        if request.unique:
            found = sorted({given.raw: given for given in found}.values(), key=lambda given: given.line)
        rows = [self._row(request, given) for given in found]
        wanted = _TAIL if request.n is None and request.access == "tail" else request.n
        return rows if wanted is None else rows[max(0, len(rows) - max(0, wanted)) :]

    # ── this session ────────────────────────────────────────────────────────────────────────────────────────────────

    def _means_present(self, session: int) -> bool:
        return session in {0, self._manager.session_number}

    def _present(self) -> list[_Input]:
        outputs = self._manager.output_hist_reprs
        pairs = zip(list(self._manager.input_hist_parsed), list(self._manager.input_hist_raw), strict=False)
        return [_Input(line, str(source), str(raw), outputs.get(line)) for line, (source, raw) in enumerate(pairs)][1:]

    def _present_range(self, request: HistoryRequest) -> list[Row]:
        inputs = self._present()
        count = len(inputs) + 1  # as IPython counts them, whose lists begin with an empty one
        start = request.start + count if request.start < 0 else request.start
        stop = count if not request.stop else request.stop + count if request.stop < 0 else request.stop
        named = request.session  # as it was asked for: 0, or its number
        return [(named, *self._row(request, given)[1:]) for given in inputs if start <= given.line < stop]

    def _row(self, request: HistoryRequest, given: _Input) -> Row:
        text = given.raw if request.raw else given.source
        return self._manager.session_number, given.line, (text, given.output) if request.output else text

    # ── the database ────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        """Let a history that has not begun its session do so: its number tells it from the others."""
        begin = getattr(self._manager, "open", None)
        if begin is not None:
            begin()

    def _connect(self) -> Connection:
        with without_user_folder():
            import sqlite3
        file = str(self._manager.hist_file)
        if not self._manager.enabled or file == ":memory:":
            raise FileNotFoundError("This history is on no disk.")
        return sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY)

    def _query(self, connection: Connection, request: HistoryRequest) -> list[Row]:
        if request.access == "range":
            return self._range(connection, request)
        return self._tail(connection, request) if request.access == "tail" else self._search(connection, request)

    def _range(self, connection: Connection, request: HistoryRequest) -> list[Row]:
        number = request.session if request.session > 0 else request.session + self._manager.session_number
        where = "WHERE session = ? AND line >= ? AND line < ? ORDER BY line"
        found = connection.execute(_select(request) + where, (number, request.start, request.stop or 2**62))
        return _rows(request, found)

    def _tail(self, connection: Connection, request: HistoryRequest) -> list[Row]:
        wanted = _TAIL if request.n is None else max(0, request.n)
        where = "WHERE session != ? ORDER BY session DESC, line DESC LIMIT ?"
        found = connection.execute(_select(request) + where, (self._manager.session_number, wanted))
        others = _rows(request, found)[::-1]
        rows = [*others, *(self._row(request, given) for given in self._present())]
        return rows[max(0, len(rows) - wanted) :]

    def _search(self, connection: Connection, request: HistoryRequest) -> list[Row]:
        """Search what was typed, as IPython does; this session's part of the database is put in from memory."""
        number = self._manager.session_number
        connection.execute("CREATE TEMP TABLE present (session, line, source, source_raw, output)")
        connection.executemany(f"INSERT INTO present VALUES ({number}, ?, ?, ?, ?)", self._present())
        others = f"SELECT session, line, source, source_raw, output FROM ({_joined(request)}) WHERE session != {number}"
        newest = f"MAX((session = {number}) * 1099511627776 + session * 131072 + line)"
        found = connection.execute(
            f"SELECT session, line, {_column(request)}, output{', ' + newest if request.unique else ''} "
            f"FROM ({others} UNION ALL SELECT * FROM present) WHERE source_raw GLOB ? "
            f"{'GROUP BY source_raw ' if request.unique else ''}"
            f"ORDER BY session = {number} DESC, session DESC, line DESC LIMIT ?",
            (request.pattern, -1 if request.n is None else max(0, request.n)),
        )
        return _rows(request, (row[:4] for row in found))[::-1]


def _joined(request: HistoryRequest) -> str:
    if request.output:
        return "SELECT * FROM history LEFT JOIN output_history USING (session, line)"
    return "SELECT *, NULL AS output FROM history"


def _column(request: HistoryRequest) -> str:
    return "source_raw" if request.raw else "source"


def _select(request: HistoryRequest) -> str:
    return f"SELECT session, line, {_column(request)}, output FROM ({_joined(request)}) "


def _rows(request: HistoryRequest, found: Iterable[Sequence[Any]]) -> list[Row]:
    return [(row[0], row[1], (row[2], row[3]) if request.output else row[2]) for row in found]
