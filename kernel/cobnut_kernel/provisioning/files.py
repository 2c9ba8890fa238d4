"""The files that a kernel needs to be reached: its connection file, and the folders for it and for unix sockets."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cobnut_kernel.connection_files import (
    OwnerDirectory,
    _write_whole,
    runtime_directories,
    secure_directory,
    write_connection_file,
)
from cobnut_kernel.errors import ConnectionFileError, KernelStartError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.protocol.registration import RegistrationInfo


def write_file(path: Path, info: ConnectionInfo | RegistrationInfo, *, private: bool) -> None:
    """Write a kernel's connection or registration file, 0600.

    Args:
        path: where.
        info: what it says.
        private: whether its folder must be ours alone; else it is the user's choice.

    Raises:
        KernelStartError: it cannot be written; nothing is left of the attempt.
        ConnectionFileError: the folder is open to others.
    """
    try:
        if private:
            write_connection_file(path, info)
        else:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, json.dumps(info.as_dict(), indent=1).encode())
    except OSError as error:
        _cannot_be_written(path, error)


def own_folder() -> Path:
    """Return the private folder of our process.

    Raises:
        KernelStartError: it cannot be made.
        ConnectionFileError: there is no private place for it.
    """
    try:
        return OwnerDirectory.shared().path
    except OSError as error:
        _cannot_be_written(Path(error.filename or _place_of_folders()), error)


def _place_of_folders() -> str:
    return str(next(iter(runtime_directories()), "in our folder"))


def _cannot_be_written(path: Path, error: OSError) -> NoReturn:
    raise KernelStartError(
        f"The connection file {path} cannot be written: {error.strerror or error}: free some space there, or set"
        " XDG_RUNTIME_DIR or TMPDIR to another folder."
    ) from error


def is_private(folder: Path) -> bool:
    """Say whether a folder is ours alone; one that is missing is made so."""
    try:
        secure_directory(folder)
    except (OSError, ConnectionFileError):
        return False
    return True


def remove(paths: Iterable[str]) -> None:
    """Remove files and, after what is in them, folders."""
    for path in map(Path, paths):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
