"""The command of a kernelspec, filled in for this machine, and why a process could not be started with it."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cobnut_kernel.errors import KernelStartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PYTHONS = frozenset({"python", f"python{sys.version_info[0]}", f"python{sys.version_info[0]}.{sys.version_info[1]}"})
"""Programs of a kernelspec that mean the interpreter we run on."""

_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument ('\w+')")
_FIELD = re.compile(r"\{([A-Za-z0-9_]+)\}")


def with_our_python(argv: Sequence[str]) -> list[str]:
    """Replace a bare `python` by the interpreter we run on."""
    return [sys.executable if argv[0] in _PYTHONS else argv[0], *argv[1:]] if argv else []


def fill_in(argv: Sequence[str], fields: Mapping[str, object]) -> list[str]:
    """Replace the fields of a command, `{connection_file}` say; one that is not known, or no text, stays as it is.

    Source: "Kernel specs" in the Jupyter client documentation.
    """
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    return [_FIELD.sub(lambda match: texts.get(match[1], match[0]), part) for part in with_our_python(argv)]


def expand_home(cmd: Sequence[str]) -> list[str]:
    """Replace a `~` at the beginning of each argument by the home folder."""
    return [os.path.expanduser(argument) for argument in cmd]  # noqa: PTH111 - an argument need not be a path


def working_folder(cwd: str | os.PathLike[str] | None) -> str:
    """Return the folder to start in: the one given, or ours.

    Raises:
        KernelStartError: ours is gone.
    """
    try:
        return os.fspath(cwd) if cwd else str(Path.cwd())
    except FileNotFoundError as error:
        raise KernelStartError("The folder we are in has been removed: go to another one, or name one.") from error


def explain_failure(cmd: Sequence[str], cwd: str, error: Exception) -> str:
    """Say why a process could not be started, and what to do about it."""
    program = cmd[0] if cmd else ""
    if not Path(cwd).is_dir():
        return f"The kernel cannot start in {cwd}: there is no such folder. Choose another one."
    if (option := _UNKNOWN_OPTION.search(str(error))) is not None:
        return f"{option[1]} is no option of a start: leave it out, or name one that subprocess.Popen takes."
    return f"The kernel's program {program}{_fault(program, cwd, error)}"


def _fault(program: str, cwd: str, error: Exception) -> str:
    match error:
        case FileNotFoundError() if os.sep in program and Path(program).exists():
            return " names an interpreter that is not there: see its first line."
        case FileNotFoundError():
            return " is not there: install it, or correct the argv of its kernelspec."
        case PermissionError():
            return f", or the folder {cwd}, may not be used: see their permissions."
        case OSError(errno=errno.ENOEXEC):
            return " is no program that this machine can run: correct the argv of its kernelspec."
        case _:
            return f" cannot be started: {error}"
