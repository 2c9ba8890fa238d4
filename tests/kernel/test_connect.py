"""The documented functions for connection files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from jupyter_client.connect import ConnectionFileMixin

from cobnut_kernel.connect import find_connection_file, write_connection_file
from cobnut_kernel.errors import ConnectionFileError

PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


def test_file_is_written(tmp_path: Path) -> None:
    """The file is its owner's alone, in a folder that others may enter; ports that nobody chose are free ones."""
    tmp_path.chmod(0o755)
    name = str(tmp_path / "new" / "kernel-1.json")
    written, fields = write_connection_file(name, shell_port=4711, key=b"key", kernel_name="r", jupyter_session="n")
    assert written == name
    assert json.loads(Path(name).read_text()) == fields
    assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    assert (fields["shell_port"], fields["ip"], fields["key"]) == (4711, "127.0.0.1", "key")
    assert (fields["kernel_name"], fields["jupyter_session"]) == ("r", "n")
    assert len({fields[port] for port in PORTS}) == 5
    assert all(fields[port] for port in PORTS)


def test_file_without_a_name() -> None:
    """Without a name a new file is made in the folder for temporary files."""
    written, fields = write_connection_file()
    try:
        assert json.loads(Path(written).read_text()) == fields
    finally:
        Path(written).unlink()


def test_file_for_unix_sockets(tmp_path: Path) -> None:
    """With ipc the numbers are small and different, also from those that were given."""
    _, fields = write_connection_file(str(tmp_path / "k.json"), transport="ipc", stdin_port=2)
    assert sorted(fields[port] for port in PORTS) == [1, 2, 3, 4, 5]
    assert (fields["stdin_port"], fields["ip"]) == (2, f"{tmp_path}/k-ipc")


def test_path_that_is_too_long(tmp_path: Path) -> None:
    """A path that no socket can have is refused, and no file is written."""
    name = tmp_path / ("long" * 40 + ".json")
    with pytest.raises(ConnectionFileError, match="choose a shorter directory"):
        write_connection_file(str(name), transport="ipc")
    assert not list(tmp_path.iterdir())


def test_stock_clients_read_the_file(tmp_path: Path) -> None:
    """jupyter_client reads what we write."""
    name, fields = write_connection_file(str(tmp_path / "k.json"), key=b"key")
    stock = ConnectionFileMixin()
    stock.load_connection_file(name)
    assert {port: getattr(stock, port) for port in PORTS} == {port: fields[port] for port in PORTS}
    assert stock.session.key == b"key"


def test_file_is_found(tmp_path: Path) -> None:
    """A file is found by a part of its name, as text; what is not there is an error that names it."""
    name, _ = write_connection_file(str(tmp_path / "kernel-abc.json"))
    assert find_connection_file("abc", str(tmp_path)) == name
    assert find_connection_file(path=[str(tmp_path)]) == name
    with pytest.raises(ConnectionFileError, match="xyz"):
        find_connection_file("xyz", str(tmp_path))
