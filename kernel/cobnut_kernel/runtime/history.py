"""IPython's history, in whose database the cells' inputs are kept."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

from IPython.core.history import HistoryManager

if TYPE_CHECKING:
    import sqlite3


class History(HistoryManager):
    """IPython's history manager, which makes no cell wait for the disk.

    IPython's own holds the lock that the next cell needs while it commits: 2 ms a cell. Here what is to be
    written is taken out first, so that a commit holds up nobody and the next one writes all that has come since.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._one_writer = threading.Lock()
        super().__init__(*args, **kwargs)

    def writeout_cache(self, conn: sqlite3.Connection | None = None) -> None:
        """Write what has come since the last time to the database."""
        if not self.enabled:
            return
        connection = cast("sqlite3.Connection", self.db if conn is None else conn)
        with self._one_writer:
            with self.db_input_cache_lock:
                inputs, self.db_input_cache = self.db_input_cache, []
            with self.db_output_cache_lock:
                outputs, self.db_output_cache = self.db_output_cache, []
            self._insert(connection, "INSERT INTO history VALUES (?, ?, ?, ?)", inputs)
            self._insert(connection, "INSERT INTO output_history VALUES (?, ?, ?)", outputs)

    def _insert(self, connection: sqlite3.Connection, statement: str, rows: list[Any]) -> None:
        if not rows:
            return
        from sqlite3 import IntegrityError

        try:
            with connection:
                connection.executemany(statement, [(self.session_number, *row) for row in rows])
        except IntegrityError:
            # The count began anew (`%reset`), so that session and line are in the database already.
            self.new_session(connection)
            with connection:
                connection.executemany(statement, [(self.session_number, *row) for row in rows])
