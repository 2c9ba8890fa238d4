"""Connection files and the folders they lie in: written whole, seen by their owner alone, swept when he is gone.

Each process that starts kernels has one folder of its own, `<runtime folder>/<pid>-<start time>`, with a record of
the process in it. Connection files and unix sockets lie there. Who finds the folder of a process that is no more
removes it; age proves nothing (a laptop sleeps for days).
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from cobnut_kernel.protocol.registration import RegistrationInfo

SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107
"""How many bytes the path of a unix socket may have (`sun_path`, less its final zero)."""

_RECORD = "owner.json"
_OWNER_NAME = re.compile(r"(\d+)-(\d+)")
_ROOM = len("/4194304-18446744073709551615/12345-5")
"""What an owner's folder and a socket's name add to the path of the runtime folder."""


# ── connection files ────────────────────────────────────────────────────────────────────────────────────────────────


def write_connection_file(path: str | os.PathLike[str], info: ConnectionInfo | RegistrationInfo) -> Path:
    """Write a connection or registration file that only its owner can read (0600), whole before anyone can see it.

    Raises:
        ConnectionFileError: its folder belongs to somebody else or is open to others.
        OSError: it cannot be written; nothing is left of the attempt.
    """
    path = Path(path)
    secure_directory(path.parent)
    _write_whole(path, json.dumps(info.as_dict(), indent=1).encode())
    return path


def write_anywhere(path: str | os.PathLike[str], info: ConnectionInfo) -> Path:
    """Write a connection file (0600), whole, into a folder of the user's choice, which others may enter.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    path = Path(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_whole(path, json.dumps(info.as_dict(), indent=1).encode())
    return path


def load_connection_file(path: str | os.PathLike[str]) -> ConnectionInfo:
    """Read a connection file.

    Raises:
        ConnectionFileError: it is missing, unreadable or incomplete; the text says which and where.
    """
    fields = _load(path)
    if _is_registration(fields):
        raise ConnectionFileError(
            f"The file {path} is a registration file: its kernel has not said yet where it listens. Try again soon."
        )
    with _naming(path):
        return ConnectionInfo.from_dict(fields)


def load_kernel_file(path: str | os.PathLike[str]) -> ConnectionInfo | RegistrationInfo:
    """Read the file that a launcher gives to a kernel: a connection file, or a registration file (JEP 66).

    Raises:
        ConnectionFileError: it is missing, unreadable or incomplete; the text says which and where.
    """
    fields = _load(path)
    with _naming(path):
        if not _is_registration(fields):
            return ConnectionInfo.from_dict(fields)
        # Imported here: most launchers choose the ports themselves.
        from cobnut_kernel.protocol.registration import RegistrationInfo

        return RegistrationInfo.from_dict(fields)


def _load(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        fields = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConnectionFileError(f"The connection file {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConnectionFileError(f"The connection file {path} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ConnectionFileError(f"The connection file {path} holds a {type(fields).__name__}, not an object.")
    return cast("dict[str, Any]", fields)


def _is_registration(fields: dict[str, Any]) -> bool:
    return "registration_port" in fields


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Generator[None]:
    """Name the file in what is wrong with its content."""
    try:
        yield
    except ConnectionFileError as error:
        raise ConnectionFileError(f"The connection file {path} is of no use: {error}") from error


def find_connection_file(
    filename: str = "kernel-*.json", path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None
) -> Path:
    """Find a connection file by its path, its name, a glob, or a part of its name; the one used last if several.

    Args:
        filename: what to look for, as `jupyter console --existing` takes it.
        path: a folder, or folders, to look in; by default here, ours, and Jupyter's runtime folder.

    Raises:
        ConnectionFileError: there is none.
    """
    if Path(filename).is_file():
        return Path(filename).resolve()
    folders = [Path(), *default_folders()] if path is None else _as_paths(path)
    for pattern in (filename, f"*{filename}*"):
        found = [file for folder in folders for file in _matching(folder, pattern)]
        if found:
            return max(found, key=lambda file: file.stat().st_atime)
    looked = ", ".join(str(folder) for folder in folders) or "no folder"
    raise ConnectionFileError(f"There is no connection file {filename!r} (looked in {looked}).")


def _as_paths(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    return [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(folder) for folder in path]


def default_folders() -> list[Path]:
    """List the folders in which this user's connection files lie: those of our processes, and Jupyter's."""
    from jupyter_core.paths import jupyter_runtime_dir

    owners = [folder for base in runtime_directories() for folder in _owner_folders(base)]
    return [*owners, Path(jupyter_runtime_dir())]


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return [file for file in folder.glob(pattern) if file.is_file()]
    except (ValueError, NotImplementedError):  # an absolute or empty pattern matches nothing in a folder
        return []


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - it is a descriptor
            os.fchmod(descriptor, 0o600)  # whatever the umask took away
            file.write(content)
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # a full disk, which write() does not name
            error.filename = os.fspath(path)
        with suppress(OSError):
            temporary.unlink()
        raise


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def secure_directory(path: Path) -> Path:
    """Make a folder that only we can enter (0700), or see that it is one.

    Raises:
        ConnectionFileError: it is a link, no folder, another user's, or open to others.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    require_private(path)
    return path


def require_private(path: Path) -> None:
    """See that a folder is one that only we can enter.

    Raises:
        ConnectionFileError: it is a link, no folder, another user's, or open to others.
        OSError: it is not there, or cannot be looked at.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ConnectionFileError(f"{path} is no folder, or a link to one: remove it, or choose another place.")
    if found.st_uid != os.geteuid():
        raise ConnectionFileError(f"The folder {path} belongs to another user (id {found.st_uid}): choose another.")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ConnectionFileError(f"The folder {path} is open to others (mode {mode:o}): chmod 700 it.")


def runtime_directories() -> list[Path]:
    """List the folders, existing or not, in which processes of this user may keep theirs; the best place first."""
    return [place for parent, name in _parents().items() for place in _places(parent, name)]


def runtime_directory() -> Path:
    """Return the folder in which the processes of this user keep theirs, 0700, made where it is missing.

    It is short, because the path of a socket may not be long. Where somebody else holds our name, in the folder for
    temporary files, another name is taken.

    Raises:
        ConnectionFileError: there is no place; the text says what is wrong with each.
    """
    reasons: list[str] = []
    for parent, name in _parents().items():
        other = parent / f"{name}-{os.urandom(4).hex()}"
        if len(os.fsencode(other)) + _ROOM > SOCKET_PATH_LIMIT:
            reasons.append(f"{parent} is too long for the path of a socket.")
            continue
        for place in (*_places(parent, name), other):
            try:
                return secure_directory(place)
            except (OSError, ConnectionFileError) as error:
                reasons.append(str(error))
    raise ConnectionFileError(
        "There is no private folder for connection files: set TMPDIR to a short path of yours. " + " ".join(reasons)
    )


def _parents() -> dict[Path, str]:
    """List the folders that may hold ours, the best first, and its name in each."""
    user = os.geteuid()
    session = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    parents = {session: "cobnut"} if _belongs_to(session, user) else {}
    for temporary in (os.environ.get("TMPDIR", ""), "/tmp"):
        parents.setdefault(Path(temporary), f"cobnut-{user}")
    return {parent: name for parent, name in parents.items() if parent.is_absolute() and _keeps_names(parent)}


def _places(parent: Path, name: str) -> list[Path]:
    """List the usual place, and those that were taken instead."""
    return [parent / name, *sorted(parent.glob(f"{name}-{'[0-9a-f]' * 8}"))]


def _belongs_to(path: Path, user: int) -> bool:
    """Say whether a folder is the user's own: under sudo the environment may still name another's."""
    try:
        return path.stat().st_uid == user
    except OSError:
        return False


def _keeps_names(path: Path) -> bool:
    """Say whether others cannot rename what we put into the folder: it is closed to them, or sticky."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not mode & 0o022 or bool(mode & stat.S_ISVTX)


# ── owners ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ProcessIdentity:
    """Which process it was, although process ids come round again.

    Attributes:
        pid: the process id.
        start_time: in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 where the system does not tell.
        boot_id: names the boot; empty where the system does not tell.
        namespace: the namespace that the id counts in: containers that share a folder do not share ids.
    """

    pid: int
    start_time: int
    boot_id: str
    namespace: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identify a process that lives."""
        return cls(pid, start_time(pid) or 0, _boot_id(), _namespace())

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False where that cannot be seen from here."""
        if self.boot_id != _boot_id():
            return True
        if self.namespace != _namespace():
            return False
        if not _has_proc():
            return not _exists(self.pid)
        return start_time(self.pid) != self.start_time


def start_time(pid: int) -> int | None:
    """Tell when a process started, in clock ticks since boot; None where it has ended or the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name, in parentheses, may hold anything
    return None if fields[0] in b"ZX" else int(fields[19])


class OwnerDirectory:
    """The folder of this process, with the record by which others see whether it is still alive."""

    _process_directory: OwnerDirectory | None = None

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def shared(cls) -> OwnerDirectory:
        """Return this process's folder, made again where somebody removed it (a logout may).

        Raises:
            ConnectionFileError: there is no private place for it.
            OSError: it cannot be made.
        """
        known = cls._process_directory
        if known is None or not (known.path / _RECORD).exists():
            cls._process_directory = known = cls._make()
        return known

    @classmethod
    def _make(cls) -> OwnerDirectory:
        identity = ProcessIdentity.of(os.getpid())
        path = secure_directory(runtime_directory() / f"{identity.pid}-{identity.start_time}")
        _write_whole(path / _RECORD, json.dumps(asdict(identity)).encode())
        return cls(path)

    @classmethod
    def remove_empty(cls) -> None:
        """Remove this process's folder where nothing but the record is in it."""
        known = cls._process_directory
        with suppress(FileNotFoundError):
            if known is not None and [path.name for path in known.path.iterdir()] == [_RECORD]:
                cls.remove()

    @classmethod
    def remove(cls) -> None:
        """Remove this process's folder, if it has one, with all that is in it."""
        known, cls._process_directory = cls._process_directory, None
        if known is not None:
            _remove(known.path)


def sweep(directory: Path | None = None) -> list[Path]:
    """Remove the folders of owners that have ended, and return them.

    Args:
        directory: the runtime folder to sweep; by default all of this user's.
    """
    folders = [directory] if directory is not None else runtime_directories()
    stale = [owner for folder in folders for owner in _owner_folders(folder) if _identity(owner).is_gone]
    for owner in stale:
        _remove(owner)
    return stale


def _owner_folders(directory: Path) -> Iterator[Path]:
    """Find the owners' folders in a runtime folder, which must be ours and closed to others."""
    try:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            return
        entries = list(os.scandir(directory))
    except OSError:
        return
    for entry in entries:
        if _OWNER_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _identity(owner: Path) -> ProcessIdentity:
    """Read an owner's record; its folder's name tells the rest of one that was never written."""
    pid, start = (int(part) for part in owner.name.split("-"))
    with suppress(OSError, ValueError, TypeError):
        return ProcessIdentity(**json.loads((owner / _RECORD).read_bytes()))
    return ProcessIdentity(pid, start, _boot_id(), _namespace())


def _remove(path: Path) -> None:
    from shutil import rmtree  # ends links, does not follow them

    rmtree(path, ignore_errors=True)


def _has_proc() -> bool:
    return Path("/proc/self/stat").exists()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _after_fork() -> None:
    # The folder stays the parent's.
    OwnerDirectory._process_directory = None


os.register_at_fork(after_in_child=_after_fork)
