"""A process that is a kernel: from the file that its launcher gives it to its end."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.connection_files import load_kernel_file
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.runtime.ending.lifetime import run_process
from cobnut_kernel.runtime.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cobnut_kernel.protocol.registration import RegistrationInfo


def serve(connection_file: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Be a kernel until it is asked to stop.

    Args:
        connection_file: the file of the launcher, a connection or a registration file; a connection file is written
            where there is none. It is removed when the kernel ends.
        settings: what to set before it starts, by dotted name; see `cobnut_kernel.runtime.settings`.

    Raises:
        CobnutError: file or settings are of no use, or the kernel cannot listen; the text says what to do.
        OSError: the connection file cannot be written.
    """
    _log_to_stderr()
    _close_stdin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for cells: while the process starts and ends it means nothing
    kernel = _kernel(connection_file.absolute())
    if settings:
        kernel.load_settings(dict(settings))
    run_process(kernel, kernel.budget)


def _kernel(file: Path) -> Kernel:
    given = load_kernel_file(file) if file.exists() else None
    if given is None:
        return Kernel(connection_file=str(file))
    if isinstance(given, ConnectionInfo):
        return _connected(given, file)
    # Imported here: most launchers choose the ports themselves.
    from cobnut_kernel.runtime.registration import Registration

    kernel = _connected(given.wanted, _file_of(given))
    kernel.registration = Registration(given)
    return kernel


def _connected(connection: ConnectionInfo, file: Path) -> Kernel:
    name = {"kernel_name": connection.kernel_name} if connection.kernel_name else {}
    kernel = Kernel(connection_file=str(file), **name)
    kernel.load_connection_info(connection.as_dict())
    return kernel


def _file_of(registration: RegistrationInfo) -> Path:
    """Name the connection file of a kernel that registers; by default it is where Jupyter's programs look for it."""
    if registration.connection_file:
        return Path(registration.connection_file).absolute()
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir()) / f"kernel-{registration.kernel_id}.json"


def _log_to_stderr() -> None:
    """Report our own troubles on the process's stderr; the root logger is left to the user's code."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    log = logging.getLogger("cobnut_kernel")
    log.addHandler(handler)
    log.propagate = False


def _close_stdin() -> None:
    """Let code that reads what nobody types, a child process too, find the end instead of waiting for ever."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing != 0:
        os.dup2(nothing, 0)
        os.close(nothing)
