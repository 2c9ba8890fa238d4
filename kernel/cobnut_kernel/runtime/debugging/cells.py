"""The files that cells have for a debugger: their names, and the folder that they are in.

A front end computes a cell's name itself, from what `debugInfo` says, so that it can show a breakpoint in the right
cell. So every cell is compiled under that name, whether a debugger is there or not: a function may be defined long
before somebody wants to see into it. The file itself is written when a front end asks for it (`dumpCell`).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

HASH_METHOD = "Murmur2"
HASH_SEED = 0xC70F6907
SUFFIX = ".py"

_WORD = 0xFFFFFFFF
_FACTOR = 0x5BD1E995


def murmur2(data: bytes, seed: int = HASH_SEED) -> int:
    """Return the 32-bit MurmurHash2 of some bytes, as front ends compute it of a cell's UTF-8."""
    count = len(data) >> 2
    value = seed ^ len(data)
    for word in unpack_from(f"<{count}I", data):
        mixed = word * _FACTOR & _WORD
        value = (value * _FACTOR ^ (mixed ^ mixed >> 24) * _FACTOR) & _WORD
    if rest := data[4 * count :]:
        value = (value ^ int.from_bytes(rest, "little")) * _FACTOR & _WORD
    value = (value ^ value >> 13) * _FACTOR & _WORD
    return value ^ value >> 15


class CellFiles:
    """The folder of this process's cell files; its name cannot be guessed, and it is made with the first file.

    `modules_before` names the modules that were there before the first cell: no user has asked for them. While there is
    a debugger, `before_cell` is called before each cell, `after_error` with each error before it is shown; both in the
    cell's thread.
    """

    def __init__(self) -> None:
        self.modules_before: frozenset[str] = frozenset()
        self.before_cell: Callable[[], object] | None = None
        self.after_error: Callable[[BaseException], object] | None = None
        self._prefix: str = ""
        self._made: bool = False

    @property
    def prefix(self) -> str:
        """What every cell's path begins with, the separator at its end."""
        if not self._prefix:
            # A link on the way would be resolved by the debugger, and the front end would not know the path again.
            folder = os.path.realpath(_temporary_folder())
            self._prefix = os.path.join(folder, f"cobnut-{os.getpid()}-{token_hex(8)}", "")  # noqa: PTH118
        return self._prefix

    def path_of(self, code: str) -> str:
        """Return the path of a cell's file, by the code as the front end has sent it."""
        return f"{self._prefix or self.prefix}{murmur2(code.encode('utf-8', 'surrogatepass'))}{SUFFIX}"

    def note_modules(self) -> None:
        """Take note of the modules that are there, the first time."""
        if not self.modules_before:
            self.modules_before = frozenset(sys.modules)

    def begin_cell(self) -> None:
        """Take note that a cell is about to run."""
        self.note_modules()
        if self.before_cell is not None:
            self.before_cell()

    def dump(self, code: str) -> str:
        """Write a cell's file, which nobody else can read, and return its path.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path_of(code)
        try:
            file = _open(path)
        except FileNotFoundError:
            Path(self.prefix).mkdir(mode=0o700)  # an existing one, whosoever, is refused
            self._made = True
            file = _open(path)
        with file:
            file.write(code)
        return path

    def remove(self) -> None:
        """Remove the folder and what is in it, if it was made."""
        if self._made:
            self._made = False
            folder = Path(self.prefix)
            with suppress(OSError):
                for path in folder.iterdir():
                    path.unlink(missing_ok=True)
                folder.rmdir()

    def leave(self) -> None:
        """Leave the folder to the process that this one was forked from."""
        self._prefix, self._made = "", False
        self.before_cell = self.after_error = None


CELL_FILES = CellFiles()
"""The cell files of this process."""

os.register_at_fork(after_in_child=CELL_FILES.leave)


def leading_blank_lines(code: str) -> str:
    """Return the empty lines that a cell begins with, which IPython takes away: the lines below them would move."""
    if not code[:1].isspace():
        return ""
    before = code[: len(code) - len(code.lstrip())]
    return "\n" * before.count("\n") if len(before) < len(code) else ""


def _temporary_folder() -> str:
    """Return the folder for temporary files, as `tempfile` chooses it; to import that takes longer than a cell."""
    wanted = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return next((folder for folder in (*wanted, "/tmp") if folder and Path(folder).is_dir()), str(Path.cwd()))


def _open(path: str) -> TextIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass", newline="")
