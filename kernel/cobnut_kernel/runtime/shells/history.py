"""IPython's history, in whose database the cells' inputs are kept."""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from IPython.core.history import HistoryManager, HistorySavingThread
from traitlets import default

if TYPE_CHECKING:
    import sqlite3

with suppress(ImportError):  # a Python may be without it; now, while no file of the user's can be found instead
    import_module("sqlite3")

_log = logging.getLogger(__name__)


class History(HistoryManager):
    """IPython's history manager, which makes no cell wait for the disk.

    Nothing is opened before the first input is to be kept or the first question is asked, and then the thread that
    writes does it: a home folder on a slow disk costs no cell anything, and a process that was never asked to keep
    anything can be forked.

    IPython's own holds the lock that the next cell needs while it commits: 2 ms a cell. Here what is to be
    written is taken out first, so that a commit holds up nobody and the next one writes all that has come since.
    """

    _one_writer: ClassVar[threading.Lock] = threading.Lock()
    """Held by whoever writes: the shells of a process share the database, and locked out of it they would give up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._opening = threading.RLock()
        self._is_open: bool = True  # so that IPython's own start opens nothing
        super().__init__(*args, **kwargs, enabled=False)
        self._is_open = False

    def open(self) -> None:
        """Connect to the database and begin a session in it, once; from any thread."""
        with self._opening:
            if self._is_open:
                return
            self._is_open = True
            self.enabled = self._enabled_default()
            self._load_config(self.config)  # which may switch it off again
            if not self.enabled:
                return
            from sqlite3 import OperationalError

            self.init_db()
            try:
                self.new_session()
            except OperationalError as error:
                _log.warning("The history is kept in memory only: %s cannot be written (%s).", self.hist_file, error)
                self._switch_to_memory_history()

    def init_db(self) -> None:
        """Connect to the database; the end of the process does not close it.

        The thread of a subshell may be writing still, and to close it then would crash the process, in sqlite.
        """
        super().init_db()
        finalizer = vars(self).get("_finalizer")
        if isinstance(finalizer, weakref.finalize):
            finalizer.atexit = False

    @default("session_number")
    def _begun_session(self) -> int:
        self.open()
        return self._trait_values.get("session_number", 0)

    def store_inputs(self, line_num: int, source: str, source_raw: str | None = None) -> None:
        """Keep a cell's input at its place: of cells that begin at once the later may be here first."""
        if not (self._is_open or self.using_thread):
            self.using_thread = True
            self.save_thread = writer = _Writer(self)
            writer.start()
        inputs = self.input_hist_parsed, self.input_hist_raw
        for kept in inputs:
            kept.extend([""] * (line_num - len(kept)))
        super().store_inputs(line_num, source, source_raw)
        for kept in inputs:
            if len(kept) - 1 > line_num:
                kept[line_num] = kept.pop()

    def get_range(self, session: int = 0, *args: Any, **kwargs: Any) -> Any:
        """Return the inputs of a session; those of the present one are in memory."""
        if session != 0:
            self.open()
        return super().get_range(session, *args, **kwargs)

    def new_session(self, conn: sqlite3.Connection | None = None) -> None:
        """Begin another session in the database; the first one begins when it is opened."""
        with self._opening:
            if self._is_open:
                super().new_session(conn)

    def end_session(self) -> None:
        """Write what is left, and how many inputs the session had."""
        if (self._is_open or self.using_thread) and self.session_number:
            super().end_session()

    def writeout_cache(self, conn: sqlite3.Connection | None = None) -> None:
        """Write what has come since the last time to the database; every question to it begins with this."""
        if conn is None:
            self.open()
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


class _Writer(HistorySavingThread):
    """IPython's thread that writes, which opens the database first."""

    def run(self) -> None:
        manager = self.history_manager()
        if not isinstance(manager, History):
            return
        manager.open()
        self.enabled = manager.using_thread = manager.enabled and manager.hist_file != ":memory:"
        del manager  # the thread ends with it
        super().run()
