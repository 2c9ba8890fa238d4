"""The kernel's command line."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from cobnut_kernel import __version__
from cobnut_kernel.errors import CobnutError


def main(arguments: list[str] | None = None) -> None:
    """Run a kernel until it is asked to stop."""
    parser = argparse.ArgumentParser(
        prog="cobnut-kernel",
        description="Run a Jupyter kernel: the process behind a notebook, which front ends start by themselves.",
        epilog="The file names the sockets to listen on and the key that signs messages. Where it does not exist it is "
        "written, readable for you alone; a front end connects with it, and it is removed when the kernel ends.",
    )
    parser.add_argument("-f", dest="connection_file", metavar="FILE", required=True, help="the connection file")
    parser.add_argument("--version", action="version", version=f"cobnut-kernel {__version__}")
    options = parser.parse_args(arguments)
    _log_to_stderr()
    _run(Path(options.connection_file))


def _run(connection_file: Path) -> None:
    # Imported here: --help answers at once.
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.runtime.lifetime import Watchdog

    _close_stdin()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for cells: while the process starts and ends it means nothing
    kernel = Kernel(connection_file=str(connection_file.absolute()))
    Watchdog(kernel).start()
    try:
        kernel.run()
    except (CobnutError, OSError) as error:
        sys.exit(f"cobnut-kernel: {error}")


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


if __name__ == "__main__":
    main()
