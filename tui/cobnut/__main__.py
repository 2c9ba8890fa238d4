"""The command line: `cobnut` starts a kernel at once, then the screen, and ends with nothing left behind."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cobnut.ending import Ending
    from cobnut.scratch import Scratch
    from cobnut_kernel.manager.multi import AsyncMultiKernelManager

REFUSED: Final = 2
"""The exit status when the program was not started at all."""

_EPILOG: Final = """
The first kernel is: the one that --kernel names; else that of the active environment (VIRTUAL_ENV, CONDA_PREFIX,
or .venv in this folder), if cobnut or ipykernel is installed in it; else cobnut's own. F1 shows all keys.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    if sys.platform == "win32":
        return _refuse("it needs a POSIX terminal, which Windows has not: run it inside WSL.")
    options = _parser().parse_args(arguments)
    if reason := _unfit_terminal():
        return _refuse(reason)

    from cobnut.ending import Ending
    from cobnut.log import start_logging

    start_logging()
    ending = Ending()
    ending.watch_signals()
    return ending.guard(lambda: _start(ending, options.kernel))


def _start(ending: Ending, kernel_name: str | None) -> int:
    """Start the first kernel before anything heavy is imported: it comes up while the screen does."""
    from cobnut.scratch import choose_scratch
    from cobnut_kernel.connection_files import sweep
    from cobnut_kernel.errors import NoSuchKernel
    from cobnut_kernel.kernelspec import KernelSpecManager
    from cobnut_kernel.manager.multi import AsyncMultiKernelManager
    from cobnut_kernel.portal import Portal

    specs = KernelSpecManager(find_environments=True)
    try:
        scratch = choose_scratch(specs, kernel_name)
    except NoSuchKernel as error:
        return _refuse(str(error))
    manager = AsyncMultiKernelManager(
        kernel_spec_manager=specs, use_pending_kernels=True, pending_shutdown="cancel", autorestart=False
    )
    try:
        Portal.shared().call_soon(_prepare_forks, specs.get_kernel_spec(scratch.spec_name).argv)
        kernel_id = manager.start_soon(kernel_name=scratch.spec_name)
        sweep()
        return _show(ending, manager, kernel_id, scratch)
    finally:
        Portal.shared().call(manager.shutdown_all)  # finds nothing to do, unless something went wrong


def _prepare_forks(argv: Sequence[str]) -> None:
    """Have kernels forked by a template: the first one too, where it is our own; else after that has come up.

    A template takes longer than a cold kernel, but with it the processors have one interpreter less to start beside
    the screen: the first prompt comes sooner, and the first result not later.
    """
    # Imported here, on the thread of the kernels: nothing on the way to the screen waits for it.
    from cobnut_kernel.provisioning.templates import Templates, is_forkable

    Templates.warm(soon=not is_forkable(argv))


def _show(ending: Ending, manager: AsyncMultiKernelManager, kernel_id: str, scratch: Scratch) -> int:
    """Show the screen until it is left."""
    from cobnut.app import CobnutApp
    from cobnut.kernels import Kernels

    kernels = Kernels(manager)
    session = kernels.add(kernel_id, scratch.spec_name, "scratch")
    if scratch.note:
        kernels.note(session, scratch.note)
    app = CobnutApp(kernels, ascii_only=not _has_unicode())
    ending.leave, ending.let_go = app.end, app.let_go_of_terminal
    status = app.run(mouse=not _is_remote())
    if app.crash is not None:
        raise app.crash
    return status or 0


def _parser() -> argparse.ArgumentParser:
    from cobnut_kernel import __version__

    parser = argparse.ArgumentParser(
        prog="cobnut", description="A notebook console for the terminal: kernels in a shell.", epilog=_EPILOG
    )
    parser.add_argument("--kernel", metavar="NAME", help="begin with this kernel; `jupyter kernelspec list` names them")
    parser.add_argument("--version", action="version", version=f"cobnut {__version__}")
    return parser


def _refuse(reason: str) -> int:
    print(f"cobnut: {reason}", file=sys.stderr)  # noqa: T201 - nothing else is on the screen yet
    return REFUSED


def _unfit_terminal() -> str:
    """Say why there can be no screen here; nothing where there can."""
    streams = {"standard input": sys.stdin, "standard error": sys.stderr}
    if elsewhere := " and ".join(name for name, stream in streams.items() if not stream.isatty()):
        return f"it needs a terminal for its keys and its screen: run it without redirecting {elsewhere}."
    if os.environ.get("TERM", "") in ("", "dumb"):
        return f"the terminal (TERM={os.environ.get('TERM', '')!r}) cannot place its cursor: set TERM to what it is."
    return ""


def _has_unicode() -> bool:
    """Whether the terminal's characters are Unicode's; the Linux console has too few of them."""
    return (sys.stderr.encoding or "").lower().replace("-", "") == "utf8" and os.environ.get("TERM") != "linux"


def _is_remote() -> bool:
    """Whether the terminal is elsewhere: there the mouse is left to it, for its own selecting and pasting."""
    return any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY"))


if __name__ == "__main__":
    sys.exit(main())
