"""Cells' files: a front end finds the name that a cell is compiled under, and nobody else finds the file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ipykernel.compiler import murmur2_x86

from cobnut_kernel.runtime.debugging.cells import (
    CELL_FILES,
    HASH_SEED,
    CellFiles,
    leading_blank_lines,
    murmur2,
)
from cobnut_kernel.runtime.debugging.compiling import CellCompiler

CODES = ["", "a", "ab", "abc", "abcd", "x = 1\n", "é€🐍" * 7, "for i in range(3):\n    print(i)\n" * 40]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CellFiles:
    """Cell files in a folder of their own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return CellFiles()


@pytest.mark.parametrize("code", CODES)
def test_the_hash_is_the_one_that_front_ends_compute(code: str) -> None:
    """The hash of a cell is ipykernel's, whose names front ends can compute."""
    assert murmur2(code.encode()) == murmur2_x86(code, HASH_SEED)


def test_a_lone_surrogate_has_a_name_too(files: CellFiles) -> None:
    """A cell that is no valid text is compiled under some name, and can be written."""
    assert Path(files.dump("'\udcff'")).read_bytes() == b"'\xed\xb3\xbf'"


def test_nothing_is_made_before_the_first_file(files: CellFiles, tmp_path: Path) -> None:
    """Cells have names without a folder: most kernels are never debugged."""
    assert files.path_of("x").startswith(files.prefix)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_its_owners_alone(files: CellFiles) -> None:
    """Folder and file can be read by their owner only."""
    path = Path(files.dump("x = 1\r\n"))
    assert path.read_bytes() == b"x = 1\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_folder_cannot_be_guessed_nor_prepared(files: CellFiles, tmp_path: Path) -> None:
    """The name is another one each time, and a folder that somebody else has made is refused."""
    assert files.prefix != CellFiles().prefix
    Path(files.prefix).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.dump("x")


def test_removing_leaves_nothing_behind(files: CellFiles, tmp_path: Path) -> None:
    """After the end there is no folder, and a file that is asked for then makes a new one."""
    files.dump("x")
    files.remove()
    files.remove()
    assert list(tmp_path.iterdir()) == []
    assert Path(files.dump("x")).exists()


def test_a_link_on_the_way_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is the real one: a debugger reports no other."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "link"))
    assert CellFiles().prefix.startswith(str(tmp_path / "real") + os.sep)


def test_a_compiler_knows_the_cells_of_the_others() -> None:
    """A name that one shell has compiled is a numbered cell in another one's tracebacks too."""
    name = CellCompiler().cache("y = 1\n", 7, raw_code="y = 1")
    assert name == CELL_FILES.path_of("y = 1")
    assert CellCompiler().format_code_name(name) == ("Cell", "In[7]")


@pytest.mark.parametrize(
    ("code", "lines"),
    [("", 0), ("x", 0), ("\n\nx", 2), ("  \n\t\n  x", 2), ("  x", 0), ("\n \n", 0), ("\r\nx", 1)],
)
def test_the_empty_lines_at_the_beginning_are_kept(code: str, lines: int) -> None:
    """Just the empty lines before the first line with code are counted; an empty cell has none."""
    assert leading_blank_lines(code) == "\n" * lines


def test_a_forked_child_has_a_folder_of_its_own() -> None:
    """A child neither writes into its parent's folder nor removes it."""
    path = Path(CELL_FILES.dump("parent"))

    try:
        child = os.fork()
        if child == 0:
            CELL_FILES.remove()
            os._exit(0 if path.exists() and not CELL_FILES.prefix.startswith(str(path.parent)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert path.exists()
    finally:
        CELL_FILES.remove()
