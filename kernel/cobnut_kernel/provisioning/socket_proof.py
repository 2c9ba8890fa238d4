"""Which kernels have answered on unix sockets: kept for the user, a small file per kernelspec.

The name of a file is made of what is run, so a kernelspec that changes has shown nothing yet. A file is written whole
or removed, never changed: any number of processes may do that at once.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.connection_files import _write_whole, require_private, secure_directory
from cobnut_kernel.errors import ConnectionFileError

if TYPE_CHECKING:
    from logging import Logger

    from cobnut_kernel.kernelspec import KernelSpec

_MOST_BYTES = 4096
"""A file that is longer is none of ours."""


def fingerprint(spec: KernelSpec) -> str:
    """Name what a kernelspec runs: another command, folder, variable or language is another name."""
    command: list[object] = [spec.argv, spec.resource_dir, spec.env, spec.language.lower()]
    return sha256(json.dumps(command, sort_keys=True, default=str).encode()).hexdigest()[:32]


def is_proof(content: bytes) -> bool:
    """Say whether a file says that a kernel has answered on unix sockets.

    Raises:
        ValueError: it says nothing that could be understood.
    """
    fields: Any = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("it holds no object")  # noqa: TRY004 - it is data
    return cast("dict[str, object]", fields).get("transport") == "ipc"


def proof_folder() -> Path:
    """Return where the files are, by the XDG base directory specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    return (Path(state) if state.startswith("/") else Path(home, ".local", "state")) / "cobnut" / "unix-sockets"


class SocketProof:
    """Whether the kernel of one kernelspec has shown that it can be reached by unix sockets.

    What cannot be read, or is not ours alone, proves nothing, and what cannot be written is not remembered: that is
    logged, and no start fails for it.

    Args:
        spec: of the kernel.
        log: for what is remembered, forgotten or ignored.
        folder: where the files are; by default the user's.

    Attributes:
        path: of the file.
    """

    def __init__(self, spec: KernelSpec, log: Logger, folder: Path | None = None) -> None:
        self.path: Path = (folder or proof_folder()) / f"{fingerprint(spec)}.json"
        self._name = spec.name
        self._log = log

    @property
    def is_given(self) -> bool:
        """Whether the kernel has answered on unix sockets, and has not been silent on them since."""
        try:
            return is_proof(_read_private(self.path))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, ConnectionFileError) as error:
            self._log.warning("What is known of kernel %r and unix sockets is ignored: %s: %s", *self._names(error))
            return False

    def give(self) -> None:
        """Remember that the kernel has answered on unix sockets."""
        if self.is_given:
            return
        try:
            _require_own_place(self.path.parent)
            secure_directory(self.path.parent)
            _write_whole(self.path, json.dumps({"kernel_name": self._name, "transport": "ipc"}).encode())
        except (OSError, ConnectionFileError) as error:
            self._log.warning("That kernel %r can use unix sockets is not remembered: %s: %s", *self._names(error))
        else:
            self._log.info("Kernel %r has answered on unix sockets: it gets them from now on.", self._name)

    def withdraw(self) -> None:
        """Forget it: the kernel was silent, or has ended, before it answered on unix sockets."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.warning("That kernel %r can use unix sockets is not forgotten: %s: %s", *self._names(error))
        else:
            self._log.warning("Kernel %r did not answer on unix sockets: it gets ports from now on.", self._name)

    def _names(self, error: Exception) -> tuple[str, Path, str]:
        return self._name, self.path, getattr(error, "strerror", None) or str(error)


def _read_private(path: Path) -> bytes:
    """Read a file that only we could have written.

    Raises:
        ConnectionFileError: its folder, or the file itself, is not ours alone.
        OSError: it cannot be read.
    """
    require_private(path.parent)
    # Not to wait for a writer where somebody has put a pipe there.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ConnectionFileError("it is no file, belongs to another user, or others may write it")
        return os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)


def _require_own_place(folder: Path) -> None:
    """Refuse a home that is not there, or another's: under sudo the environment may still name it.

    Raises:
        ConnectionFileError: it is so.
    """
    if folder.is_absolute():
        for place in (folder, *folder.parents):
            with suppress(FileNotFoundError):
                if place.stat().st_uid == os.geteuid():
                    return
                break
    raise ConnectionFileError("there is no folder of yours for it: set XDG_STATE_HOME to one")
