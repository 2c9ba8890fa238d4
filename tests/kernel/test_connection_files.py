"""Connection files and their folders: private, whole, and swept when their owner is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel import connection_files
from cobnut_kernel.connection_files import (
    SOCKET_PATH_LIMIT,
    OwnerDirectory,
    ProcessIdentity,
    find_connection_file,
    load_connection_file,
    load_kernel_file,
    runtime_directory,
    secure_directory,
    start_time,
    sweep,
    write_connection_file,
)
from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.registration import RegistrationInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

INFO = ConnectionInfo("tcp", "127.0.0.1", 1001, 1002, 1003, 1004, 1005, key=b"secret", kernel_name="k")

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder that is the login's runtime folder; this process has none in it yet."""
    OwnerDirectory.remove()
    folder = Path(tempfile.mkdtemp(prefix="cob-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.delenv("TMPDIR", raising=False)
    yield folder
    OwnerDirectory.remove()
    shutil.rmtree(folder)


def mode(path: Path) -> int:
    """The permissions of a file or folder."""
    return stat.S_IMODE(path.lstat().st_mode)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The file has mode 0600 and its new folder 0700, whatever the umask says."""
    for umask in (0, 0o277):
        previous = os.umask(umask)
        try:
            path = write_connection_file(tmp_path / str(umask) / "kernel-1.json", INFO)
        finally:
            os.umask(previous)
            (tmp_path / str(umask)).chmod(0o700)
        assert mode(path) == 0o600
        assert path.stat().st_uid == os.geteuid()


def test_a_connection_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """All fields survive, unknown ones too."""
    info = ConnectionInfo("ipc", "/run/k", 1, 2, 3, 4, 5, key=b"k", kernel_name="n", extra={"jupyter_session": "s"})
    tmp_path.chmod(0o700)
    assert load_connection_file(write_connection_file(tmp_path / "kernel.json", info)) == info


def test_a_connection_file_is_never_seen_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file takes its name when it is whole; a failed writing leaves the former one, and nothing else."""
    tmp_path.chmod(0o700)
    path = write_connection_file(tmp_path / "kernel.json", INFO)
    before = path.read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(connection_files.os, "fchmod", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_connection_file(path, ConnectionInfo("tcp", "127.0.0.1", key=b"other"))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    """Whoever put a link there does not get the key."""
    tmp_path.chmod(0o700)
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "kernel.json").symlink_to(victim)
    path = write_connection_file(tmp_path / "kernel.json", INFO)
    assert victim.read_text() == "untouched"
    assert not path.is_symlink()


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    """Nothing is written into a folder that others can enter; the error says what to do."""
    tmp_path.chmod(0o755)
    with pytest.raises(ConnectionFileError, match=r"open to others \(mode 755\): chmod 700"):
        write_connection_file(tmp_path / "kernel.json", INFO)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder is what it says it is, not a link to another's."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ConnectionFileError, match="a link"):
        secure_directory(tmp_path / "link")


def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private folder that belongs to somebody else is not ours."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(connection_files.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConnectionFileError, match="belongs to another user"):
        secure_directory(tmp_path)


def test_a_registration_file_is_a_kernels_alone(tmp_path: Path) -> None:
    """A kernel reads it as what it is; a client is told that there is nothing to connect to yet."""
    info = RegistrationInfo("k", "127.0.0.1", 5000, ConnectionInfo("tcp", "127.0.0.1", key=b"secret"))
    tmp_path.chmod(0o700)
    path = write_connection_file(tmp_path / "kernel-k.json", info)
    assert mode(path) == 0o600
    assert load_kernel_file(path) == info
    with pytest.raises(ConnectionFileError, match=r"kernel-k.json is a registration file: .*not said yet"):
        load_connection_file(path)
    assert load_kernel_file(write_connection_file(path, INFO)) == load_connection_file(path) == INFO
    path.write_text(json.dumps({**info.as_dict(), "kernel_id": "a/b"}))
    with pytest.raises(ConnectionFileError, match=r"kernel-k.json is of no use: The kernel_id"):
        load_kernel_file(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[1]", "holds a list"),
        ("{}", "names no 'ip'"),
        (json.dumps({**INFO.as_dict(), "shell_port": "x"}), "of no use"),
    ],
)
def test_a_connection_file_of_no_use_says_why(tmp_path: Path, content: str | None, reason: str) -> None:
    """The error names the file and what is wrong with it."""
    path = tmp_path / "kernel.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConnectionFileError, match=reason) as caught:
        load_connection_file(path)
    assert str(path) in str(caught.value)


def test_connection_files_are_found_by_path_name_glob_and_part(tmp_path: Path) -> None:
    """Of several that match, the one used last is taken; where none does, the error says where it looked."""
    for number, name in enumerate(("kernel-abc.json", "kernel-abd.json", "other.json")):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (number, number))
    assert find_connection_file(str(tmp_path / "other.json")) == tmp_path / "other.json"
    assert find_connection_file("kernel-abc.json", tmp_path) == tmp_path / "kernel-abc.json"
    assert find_connection_file(path=[tmp_path]) == tmp_path / "kernel-abd.json"
    assert find_connection_file("abc", [str(tmp_path)]) == tmp_path / "kernel-abc.json"
    with pytest.raises(ConnectionFileError, match=f"'nothing' .looked in {tmp_path}"):
        find_connection_file("nothing", tmp_path)


def test_our_own_connection_files_are_found(session: Path) -> None:
    """Without a folder named, the files of running kernels are looked at."""
    path = write_connection_file(OwnerDirectory.shared().path / "kernel-quite-unlikely.json", INFO)
    assert find_connection_file("quite-unlikely") == path
    assert path.is_relative_to(session)


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_runtime_folder_is_private_and_in_the_logins_own(session: Path) -> None:
    """Our folder lies in XDG_RUNTIME_DIR, with mode 0700, and leaves room for the names of sockets."""
    folder = runtime_directory()
    assert folder == session / "cobnut"
    assert mode(folder) == 0o700
    assert len(f"{OwnerDirectory.shared().path}/12345-5") <= SOCKET_PATH_LIMIT


def test_without_a_login_the_folder_for_temporary_files_is_used(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XDG_RUNTIME_DIR is missing, or another user's, our folder lies below TMPDIR, named by our user."""
    monkeypatch.setenv("TMPDIR", str(session))
    for missing in ("", str(session / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", missing)
        assert runtime_directory() == session / f"cobnut-{os.geteuid()}"


def test_a_name_that_somebody_else_took_is_not_used(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes our folder before us, open or as a link, only makes us take another name, and keep to it."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(session))
    (session / f"cobnut-{os.geteuid()}").symlink_to("/")
    folder = runtime_directory()
    assert folder.name.startswith(f"cobnut-{os.geteuid()}-")
    assert mode(folder) == 0o700
    assert runtime_directory() == folder


def test_a_folder_in_which_others_could_rename_ours_is_not_used(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files must be closed to others, or sticky."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", str(session))
    session.chmod(0o777)
    assert session not in runtime_directory().parents
    session.chmod(0o1777)
    assert session in runtime_directory().parents


def test_a_path_too_long_for_a_socket_is_not_used(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime folder is only used where the path of a socket in it can be bound."""
    deep = session / ("x" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert deep not in runtime_directory().parents


def test_where_there_is_no_place_the_error_says_what_is_wrong(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for each place is in the error, and what to do."""
    (session / "cobnut").mkdir()
    (session / "cobnut").chmod(0o755)
    deep = session / ("x" * 80)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(connection_files, "_keeps_names", lambda path: path != Path("/tmp"))
    monkeypatch.setattr(connection_files.os, "urandom", lambda size: b"\0" * size)
    (session / "cobnut-00000000").write_text("in the way")
    with pytest.raises(ConnectionFileError, match="set TMPDIR") as caught:
        runtime_directory()
    for reason in ("(mode 755)", "cobnut-00000000 is no folder", f"{deep} is too long"):
        assert reason in str(caught.value)


# ── owners ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_process_has_one_folder_with_its_record(session: Path) -> None:
    """The record says which process it is; a folder that somebody removed is made again."""
    folder = OwnerDirectory.shared().path
    assert OwnerDirectory.shared().path == folder
    assert mode(folder) == 0o700
    record = folder / "owner.json"
    assert mode(record) == 0o600
    assert ProcessIdentity(**json.loads(record.read_text())) == ProcessIdentity.of(os.getpid())
    shutil.rmtree(folder)
    assert OwnerDirectory.shared().path == folder
    assert record.exists()
    OwnerDirectory.remove()
    assert list((session / "cobnut").iterdir()) == []


@needs_proc
def test_a_process_is_known_by_its_start_too() -> None:
    """The same number with another start, or of another boot, is another process; in another namespace it may live."""
    ours = ProcessIdentity.of(os.getpid())
    assert not ours.is_gone
    assert ProcessIdentity(ours.pid, ours.start_time + 1, ours.boot_id, ours.namespace).is_gone
    assert ProcessIdentity(ours.pid, ours.start_time, "another boot", ours.namespace).is_gone
    assert not ProcessIdentity(ours.pid, ours.start_time + 1, ours.boot_id, ours.namespace + 1).is_gone


@needs_proc
def test_a_process_that_waits_to_be_reaped_is_gone() -> None:
    """A zombie owns nothing any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = ProcessIdentity.of(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    assert identity.is_gone
    child.wait()


def test_without_proc_a_process_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system tells no start times, a number that is in use counts as alive."""
    monkeypatch.setattr(connection_files, "_has_proc", lambda: False)
    assert not ProcessIdentity.of(os.getpid()).is_gone
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = ProcessIdentity.of(child.pid)
    child.wait()
    assert identity.is_gone


OWNER = """
from cobnut_kernel.connection_files import OwnerDirectory, write_connection_file
from cobnut_kernel.protocol.connection import ConnectionInfo
folder = OwnerDirectory.shared().path
write_connection_file(folder / "kernel-1.json", ConnectionInfo("ipc", f"{folder}/1", 1, 2, 3, 4, 5, key=b"k"))
(folder / "1-1").touch()
print(folder, flush=True)
input()
"""


def test_the_folder_of_a_killed_owner_is_swept_and_that_of_a_living_one_is_not(session: Path) -> None:
    """Only the death of its owner removes a folder."""
    own = OwnerDirectory.shared().path
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        os.utime(folder, (0, 0))  # age proves nothing
        assert folder.parent == session / "cobnut"
        assert sweep(session / "cobnut") == []
        owner.send_signal(signal.SIGKILL)
    assert folder in sweep()
    assert not folder.exists()
    assert own.exists()


def test_a_folder_whose_record_was_never_written_is_judged_by_its_name(session: Path) -> None:
    """An owner that died between two steps is swept too; one that lives is not."""
    ours = ProcessIdentity.of(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = session / "cobnut" / f"{child.pid}-12345"
    alive = session / "cobnut" / f"{ours.pid}-{ours.start_time}"
    for folder in (dead, alive):
        secure_directory(folder.parent)
        secure_directory(folder)
    (dead / "owner.json").write_text('{"pid": 1}')
    assert sweep(session / "cobnut") == [dead]
    assert alive.exists()


def test_sweeping_touches_nothing_but_owners_folders(session: Path) -> None:
    """Links, files, other names and folders open to others stay."""
    base = secure_directory(session / "cobnut")
    outside = session / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (base / "1-1").symlink_to(outside)
    (base / "2-2").touch()
    (base / "keep").mkdir()
    assert sweep(base) == []
    assert (outside / "precious").exists()
    assert sorted(path.name for path in base.iterdir()) == ["1-1", "2-2", "keep"]
    (base / "999999999-1").mkdir()
    base.chmod(0o755)
    assert sweep(base) == []
    assert sweep(session / "nothing") == []


def test_a_link_in_a_swept_folder_is_not_followed(session: Path) -> None:
    """What a dead owner's folder links to stays."""
    outside = session / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    stale = secure_directory(secure_directory(session / "cobnut") / "999999999-1")
    (stale / "link").symlink_to(outside)
    assert sweep(session / "cobnut") == [stale]
    assert (outside / "precious").exists()


def test_a_forked_child_has_a_folder_of_its_own(session: Path) -> None:
    """The child neither uses nor removes its parent's."""
    folder = OwnerDirectory.shared().path
    script = """
import os
from cobnut_kernel.connection_files import OwnerDirectory
folder = OwnerDirectory.shared().path
child = os.fork()
if not child:
    OwnerDirectory.remove()
    assert OwnerDirectory.shared().path != folder
    OwnerDirectory.remove()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert folder.exists()
OwnerDirectory.remove()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert list((session / "cobnut").iterdir()) == [folder]
