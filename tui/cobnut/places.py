"""Where things are, and how a person reads it."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return the home directory, also where there is none."""
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises then


def log_path() -> Path:
    """Return where the log is, by the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else home() / ".local" / "state") / "cobnut" / "cobnut.log"


def short_path(path: Path) -> str:
    """Write a path with `~` for the home directory."""
    return f"~/{path.relative_to(home())}".removesuffix("/.") if path.is_relative_to(home()) else str(path)
