"""The nameless file: a ring of records that nobody else can read and that leaves nothing."""

from __future__ import annotations

import os
import random
import stat
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.runtime.output import spill
from cobnut_kernel.runtime.output.spill import Slot, SpillFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpillFile]:
    """A file of 1000 bytes."""
    file = SpillFile(1000, tmp_path)
    yield file
    file.close()


@pytest.mark.parametrize("seed", range(5))
def test_the_newest_records_are_there_and_the_oldest_gave_way(file: SpillFile, seed: int) -> None:
    """Records of any size: those not said to give way are read as written, and fill no more than the limit."""
    chance = random.Random(seed)
    kept: list[tuple[Slot, bytes]] = []
    for _ in range(500):
        data = chance.randbytes(chance.choice([1, 10, 200, 600, 1000]))
        doomed = file.make_room(len(data))
        assert all(file.read(slot) == data for slot, data in kept)
        del kept[:doomed]
        kept.append((file.write(data), data))
        assert all(file.read(slot) == data for slot, data in kept)
        assert sum(len(data) for _, data in kept) <= 1000
        assert all(slot.offset >= 0 and sum(slot) <= 1000 for slot, _ in kept)


def test_small_records_do_not_give_way_without_need(file: SpillFile) -> None:
    """Ten records of a tenth are there at once, and each new one costs one."""
    for place in range(10):
        assert not file.make_room(100)
        assert file.write(bytes(100)) == Slot(100 * place, 100)
    for _ in range(25):
        assert file.make_room(100) == 1
        file.write(bytes(100))


@pytest.mark.parametrize("nameless", [True, False])
def test_nothing_is_in_the_folder_and_nobody_else_may_read(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has no name and mode 0600, also where the file system has no nameless files; closed, it is gone."""
    if not nameless:
        monkeypatch.setattr(spill, "_NAMELESS", 0)
    file = SpillFile(1000, tmp_path)
    assert list(tmp_path.iterdir()) == []
    file.make_room(4)
    slot = file.write(b"data")
    opened = file._fd
    assert opened is not None
    found = os.fstat(opened)
    assert (found.st_nlink, stat.S_IMODE(found.st_mode)) == (0, 0o600)
    assert not os.get_inheritable(opened)
    assert list(tmp_path.iterdir()) == []
    assert file.read(slot) == b"data"
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened)
    file.close()


def test_the_folder_is_that_of_temporary_files_or_one_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TMPDIR is taken where it can be written to; else /var/tmp, which no system keeps in memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert spill._default_folder() == str(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert spill._default_folder() == "/var/tmp"


@pytest.mark.parametrize("nameless", [True, False])
def test_a_folder_that_is_none_is_the_writers_error(
    tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said when the first record is written, and nothing stays behind."""
    if not nameless:
        monkeypatch.setattr(spill, "_NAMELESS", 0)
    file = SpillFile(1000, tmp_path / "absent")
    file.make_room(4)
    with pytest.raises(OSError, match="absent"):
        file.write(b"data")
    with pytest.raises(OSError, match="closed"):
        file.read(Slot(0, 4))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_its_end_is_an_error(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a record is never given for a whole one."""
    file.make_room(4)
    slot = file.write(b"data")
    monkeypatch.setattr(os, "pread", lambda _fd, _length, _offset: b"")  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType] - os's
    with pytest.raises(OSError, match="shorter"):
        file.read(slot)
