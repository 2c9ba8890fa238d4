"""Where interpreters are: those of the project at hand, those that conda and uv know, those on PATH. Nothing is run."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_PYTHON_NAME = re.compile(r"python3\.\d+")


class Place(NamedTuple):
    """The folder of an interpreter's environment, and why it is looked at.

    Attributes:
        prefix: the folder; it need not be there.
        origin: who names it, for a message where it is broken; empty for one that nobody has asked for.
    """

    prefix: Path
    origin: str = ""


def places(folder: Path) -> Iterator[Place]:
    """Find the environments of a folder, the nearest first; one may come more than once."""
    yield from _activated(folder)
    yield from _of_project(folder)
    yield from map(Place, _known_to_conda())
    yield from map(Place, _managed_by_uv())
    yield from map(Place, _on_path())


def _activated(folder: Path) -> Iterator[Place]:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT"):
        if value := os.environ.get(name):
            yield Place(folder / Path(value).expanduser(), name)


def _of_project(folder: Path) -> Iterator[Place]:
    """Find `.venv` in a folder, or in the nearest one above that has it."""
    for each in (folder, *folder.parents):
        if os.path.lexists(each / ".venv"):
            yield Place(each / ".venv", f"{each}")
            return


def _known_to_conda() -> Iterator[Path]:
    with suppress(OSError, UnicodeDecodeError, RuntimeError):
        lines = Path("~/.conda/environments.txt").expanduser().read_text("utf-8").splitlines()
        yield from (Path(line.strip()) for line in lines if line.strip())
    if active := os.environ.get("CONDA_PREFIX"):
        prefix = Path(active)
        base = prefix.parent.parent if prefix.parent.name == "envs" else prefix
        yield base
        yield from _folders(base / "envs")


def _managed_by_uv() -> Iterator[Path]:
    given = os.environ.get("UV_PYTHON_INSTALL_DIR")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    with suppress(RuntimeError):  # there is no home
        yield from _folders(Path(given or f"{data}/uv/python").expanduser())


def _on_path() -> Iterator[Path]:
    for folder in dict.fromkeys(os.environ.get("PATH", "").split(os.pathsep)):
        for python in _pythons(folder) if folder else ():
            if (prefix := prefix_of(python)) is not None:
                yield prefix


def _pythons(folder: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if _PYTHON_NAME.fullmatch(entry.name))
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError:
        return []


def prefix_of(python: Path) -> Path | None:
    """Find the folder of an interpreter's environment as the interpreter would; None for what is none, a shim say.

    Source: "The initialization of the sys.path module search path" in Python's documentation.
    """
    for prefix in (python.parent, python.parent.parent):
        if (prefix / "pyvenv.cfg").is_file():
            return prefix
    with suppress(OSError, RuntimeError):
        prefix = python.resolve(strict=True).parent.parent
        if (prefix / "lib" / python.name / "os.py").is_file():
            return prefix
    return None
