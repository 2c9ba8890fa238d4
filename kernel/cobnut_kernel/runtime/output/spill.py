"""A nameless file for what memory has no room for: a ring of records."""

from __future__ import annotations

import os
from collections import deque
from secrets import token_hex
from typing import NamedTuple

_FLAGS = os.O_RDWR | os.O_CLOEXEC
_NAMELESS: int = getattr(os, "O_TMPFILE", 0)


class Slot(NamedTuple):
    """Where a record is, in bytes from the beginning of the file."""

    offset: int
    length: int


class SpillFile:
    """Records in the order they were written; when the file is full, the oldest give way.

    The file is 0600 and has no name, so that nothing is left of it however the process ends. It is made by the
    first record.

    Args:
        limit: the most bytes that the file may have.
        folder: where it is made; by default `TMPDIR`, else /var/tmp: on a disk, and on this machine's own.
    """

    def __init__(self, limit: int, folder: str | os.PathLike[str] | None = None) -> None:
        self.limit = limit
        self._folder = folder
        self._fd: int | None = None
        self._end: int = 0
        self._records: deque[Slot] = deque()

    def make_room(self, length: int) -> int:
        """Choose the place of the next record; return how many of the oldest records give way to it.

        They can be read until the next record is written.
        """
        records, before = self._records, len(self._records)
        if self._end + length > self.limit:
            while records and records[0].offset >= self._end:  # the end of the last round is older than its beginning
                records.popleft()
            self._end = 0
        while records and self._end < sum(records[0]) and records[0].offset < self._end + length:
            records.popleft()
        return before - len(records)

    def write(self, data: bytes) -> Slot:
        """Write a record where room was made for it.

        Raises:
            OSError: the file cannot be made, or the disk is full; no record was added.
        """
        if self._fd is None:
            self._fd = _open_nameless(self._folder or _default_folder())
        slot = Slot(self._end, len(data))
        rest, offset = memoryview(data), self._end
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[written:], offset + written
        self._end = offset
        self._records.append(slot)
        return slot

    def read(self, slot: Slot) -> bytes:
        """Read a record.

        Raises:
            OSError: it cannot be read, or the file is closed.
        """
        if self._fd is None:
            raise OSError("The file is closed.")
        parts: list[bytes] = []
        offset, stop = slot.offset, sum(slot)
        while offset < stop:
            part = os.pread(self._fd, stop - offset, offset)
            if not part:
                raise OSError("The file is shorter than what was written.")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Forget the records; the system frees their room when no process has the file open."""
        fd, self._fd = self._fd, None
        self._records.clear()
        self._end = 0
        if fd is not None:
            os.close(fd)


def _default_folder() -> str:
    for folder in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return os.curdir


def _open_nameless(folder: str | os.PathLike[str]) -> int:
    if _NAMELESS:
        try:
            return os.open(folder, _NAMELESS | _FLAGS, 0o600)
        except OSError:  # the file system has no nameless files: NFS, for one
            pass
    private = os.path.join(folder, f"cobnut-{token_hex(8)}")  # noqa: PTH118 - pathlib is not needed for one name
    os.mkdir(private, 0o700)  # noqa: PTH102
    name = f"{private}/journal"
    try:
        fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(name)  # noqa: PTH108
    finally:
        os.rmdir(private)  # noqa: PTH106
    return fd
