"""The programs of the terminal benchmark as data: how each is started, used and left."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """One program; the patterns are searched in the text of the screen."""

    name: str
    argv: tuple[str, ...]
    folder: Path
    ready: str
    """The whole screen is painted and its prompt is there."""
    answer: str
    """6*7 is answered."""
    leave: tuple[str, ...]
    """The keys that end it, where nothing runs."""
    types_while_running: bool = True
    """The prompt stays while a cell runs."""
    ours: bool = False

    def environment(self) -> dict[str, str | None]:
        """Return a home of its own, the programs beside it, and nothing that an active environment or Jupyter set."""
        jupyter = dict.fromkeys(name for name in os.environ if name.startswith(("JUPYTER_", "IPYTHON", "XDG_")))
        path = f"{Path(self.argv[0]).parent}{os.pathsep}{os.environ['PATH']}"
        return {**jupyter, "HOME": str(self.folder), "PATH": path, "VIRTUAL_ENV": None, "CONDA_PREFIX": None}


def our_program(folder: Path) -> Program:
    """Return cobnut as it is installed beside this interpreter."""
    return Program(
        "cobnut",
        (str(Path(sys.executable).parent / "cobnut"),),
        folder,
        ready=r"(?s)In \[1\]:.*F1 keys",
        answer=r"│ +42$",
        leave=("ctrl+q",),
        ours=True,
    )


def peer_programs(environment: Path, folder: Path) -> list[Program]:
    """Return the peers with their defaults, IPython's banner left out."""
    programs = environment / "bin"
    return [
        Program(
            "IPython",
            (str(programs / "ipython"), "--no-banner", "--no-confirm-exit"),
            folder,
            ready=r"In \[1\]:",
            answer=r"Out\[1\]: 42",
            leave=("ctrl+d",),
            types_while_running=False,
        ),
        Program(
            "jupyter-console",
            (str(programs / "jupyter-console"), "--no-confirm-exit"),
            folder,
            ready=r"In \[1\]:",
            answer=r"Out\[1\]: 42",
            leave=("ctrl+d",),
            types_while_running=False,
        ),
        Program(
            "euporie-console",
            (str(programs / "euporie-console"), "--kernel-name=python3"),
            folder,
            ready=r"(?s)In \[1\]:.*Python 3",
            answer=r"Out\[1\]: 42",
            leave=("ctrl+q",),
        ),
    ]
