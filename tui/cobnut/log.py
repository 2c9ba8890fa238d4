"""The log file: what went wrong, for whoever wants to know; nothing is ever logged to the screen."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from cobnut.places import log_path

LIMIT: Final = 1 << 20
"""Bytes after which the file of the last time is put aside."""


class _PrivateFile(logging.FileHandler):
    """Makes its file, for its owner alone, when there is something to write; where it cannot, it says nothing."""

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > LIMIT:
            path.replace(path.with_suffix(".log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(descriptor, 0o600)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if the file can be made."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: a full disk must not end what is on the screen."""


def start_logging() -> None:
    """Write warnings and errors of the whole program to the log file."""
    handler = _PrivateFile(log_path(), delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s: %(message)s"))
    logging.getLogger().addHandler(handler)
