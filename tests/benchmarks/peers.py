"""Make the environment that the peers run in: `python tests/benchmarks/peers.py [FOLDER] [--python PYTHON]`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = (
    "ipykernel==7.4.*",
    "jupyter-client==8.10.*",
    "async-kernel==0.23.*",
    "xeus-python==0.19.*",
    "ipython",
    "jupyter-console",
    "euporie",
)
_DONE = "cobnut-peers.json"


def default_folder() -> Path:
    """Return $COBNUT_PEERS, or cobnut/peers in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("COBNUT_PEERS") or cache / "cobnut" / "peers")


def is_complete(folder: Path) -> bool:
    """Return whether the folder holds an environment with all that is required today."""
    try:
        return json.loads((folder / _DONE).read_text()) == list(REQUIREMENTS)
    except (OSError, ValueError):
        return False


def make(folder: Path, python: str) -> None:
    """Make the environment anew and install the peers from PyPI; a broken-off one is never taken for complete.

    Raises:
        FileExistsError: where the folder holds something else.
        CalledProcessError: where venv or pip fails; they have said why.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise FileExistsError(f"{folder} is not a virtual environment: name a new or empty folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    (folder / _DONE).write_text(json.dumps(REQUIREMENTS))


def main() -> int:
    """Make the environment, unless it is there already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="default: %(default)s")
    parser.add_argument("--python", default=sys.executable, help="the interpreter; default: this one")
    options = parser.parse_args()
    try:
        if not is_complete(options.folder):
            make(options.folder, options.python)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"The peers could not be installed: {error}", file=sys.stderr)
        return 1
    print(f"The peers are in {options.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
