"""The kernel's command line: run a kernel; install, uninstall and list kernelspecs are beside it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cobnut_kernel import __version__
from cobnut_kernel.errors import CobnutError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "cobnut-kernel"
COMMANDS = {
    "install": "install NAME [options]",
    "uninstall": "uninstall NAME",
    "list": "list",
}
"""What the program does besides running a kernel, and how it is asked to."""

REFUSED = 2
"""The exit status when what was asked for makes no sense, as argparse has it; it is 1 when it could not be done."""

_USAGE = "\n       ".join(
    [f"{PROGRAM} -f FILE [--set NAME=VALUE]...", *(f"{PROGRAM} {form}" for form in COMMANDS.values())]
)

_EXAMPLES = f"""\
commands:
  install NAME          tell Jupyter of a kernel with settings of its own
  uninstall NAME        let Jupyter forget it
  list                  show which kernels Jupyter finds
Each has a --help of its own.

examples:
  {PROGRAM} -f .
      run a kernel, and say how to attach to it
  {PROGRAM} install science --display-name "Science" --set quiet=false --env OMP_NUM_THREADS 4
      from now on notebooks and consoles offer "Science"
  {PROGRAM} install science-trio --backend trio --sys-prefix
      the same on trio's event loop, for who uses this Python environment

Front ends run kernels by themselves: they write FILE, which names the sockets to listen on and the key that signs
messages. Where it does not exist it is written, readable for you alone. It is removed when the kernel ends.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for; by default that of the process."""
    arguments = _spelled_out(sys.argv[1:] if arguments is None else arguments)
    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        # Imported here: a kernel that starts installs nothing.
        from cobnut_kernel.installation import run_command

        run_command(first, arguments[1:])
        return
    parser = _parser()
    if first and not first.startswith("-"):
        parser.error(_no_command(first))
    options = parser.parse_args(arguments)
    if options.help_all:
        parser.print_help()
        print(f"\n{_settings_help()}")  # noqa: T201 - it is what was asked for
    elif options.connection_file is None:
        parser.error("say which kernel to run, by -f FILE, or name a command")
    else:
        _run(options.connection_file, _settings(parser, options.set))


def add_settings_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Let a parser take settings."""
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting, quiet=false or shell.timeout=0.1 say; --help-all names them; "
        "--Kernel.quiet=false means the same, --HistoryManager.hist_file=:memory: is IPython's own",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=_USAGE,
        description="Run a Jupyter kernel: the process behind a notebook, which front ends start by themselves.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-f",
        dest="connection_file",
        metavar="FILE",
        help="the connection or registration file; a dot makes one where Jupyter looks, and says how to attach",
    )
    add_settings_option(parser)
    parser.add_argument("--help-all", action="store_true", help="this help, and every setting")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """Write `--Kernel.quiet=false`, as programs of Jupyter have it, as `--set Kernel.quiet=false`."""
    plain: list[str] = []
    for argument in arguments:
        is_dotted = argument.startswith("--") and "." in argument.partition("=")[0]
        plain += ["--set", argument.removeprefix("--")] if is_dotted else [argument]
    return plain


def _no_command(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}; a file is given by -f"
    return f"there is no command {word!r}: {hint}"


def _settings(parser: argparse.ArgumentParser, texts: list[str]) -> dict[str, str]:
    if not texts:
        return {}
    # Imported here: few kernels are given settings.
    from cobnut_kernel.runtime.settings import SettingError, parse_setting

    try:
        return dict(map(parse_setting, texts))
    except SettingError as error:
        parser.error(str(error))


# ── run a kernel ────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(name: str, settings: dict[str, str]) -> None:
    file = _new_file() if name == "." else Path(name)
    if not file.absolute().parent.is_dir() and name != ".":
        fail(f"There is no folder {file.absolute().parent} for the connection file: make it, or name another one.")
    signal.signal(signal.SIGTERM, partial(_end_early, file))
    # Imported here: --help answers at once.
    from cobnut_kernel.runtime import collector

    collector.rest()
    from cobnut_kernel.runtime.process import serve

    try:
        serve(file, settings)
    except CobnutError as error:
        from cobnut_kernel.runtime.settings import SettingError

        fail(str(error), REFUSED if isinstance(error, SettingError) else 1)
    except OSError as error:
        fail(_explanation(error, file))


def _end_early(file: Path, *_: object) -> None:
    """End before there is a kernel; its file would be of no use to anybody."""
    file.unlink(missing_ok=True)
    os._exit(0)


def _new_file() -> Path:
    """Name a connection file where the programs of Jupyter look for it, and say how to attach to its kernel."""
    from jupyter_core.paths import jupyter_runtime_dir

    file = Path(jupyter_runtime_dir()) / f"kernel-{os.getpid()}.json"
    print(  # noqa: T201 - it is what was asked for
        f"A kernel starts; its connection file is {file}\n"
        f"Attach to it by:\n\n    jupyter console --existing {file.name}\n\n"
        f"It ends when a client says quit, or by: kill {os.getpid()}",
        flush=True,
    )
    return file


def _explanation(error: OSError, file: Path) -> str:
    if error.filename is not None and Path(os.fsdecode(error.filename)).parent == file.absolute().parent:
        return f"The connection file {file} cannot be written: {error.strerror}. Name one in a folder of yours."
    return str(error)


def fail(reason: str, status: int = 1) -> NoReturn:
    """End the program, and say why."""
    print(f"{PROGRAM}: {reason}", file=sys.stderr)  # noqa: T201 - a program says what is wrong
    sys.exit(status)


# ── every setting ───────────────────────────────────────────────────────────────────────────────────────────────────


def _settings_help() -> str:
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.runtime.settings import describe_settings
    from cobnut_kernel.runtime.shells.shell import Shell

    return "\n".join(
        [
            "settings of the kernel (--set NAME=VALUE):",
            *describe_settings(Kernel()),
            "",
            "settings of its shells: every trait of IPython's InteractiveShell, as shell.NAME, and of our own:",
            *describe_settings(Shell, prefix="shell."),
        ]
    )
