"""That a kernel has answered on unix sockets is remembered, forgotten, and never in the way."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.provisioning.placement import Wishes, decide_transport
from cobnut_kernel.provisioning.socket_proof import SocketProof, fingerprint, is_proof, proof_folder

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger("test")


def spec(**fields: Any) -> KernelSpec:
    """Make the spec of a kernel that is not known to take unix sockets."""
    return KernelSpec(**{"argv": ["k", "{connection_file}"], "name": "k", "language": "k", **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the files are; it is not there yet."""
    return tmp_path / "cobnut" / "unix-sockets"


@pytest.fixture
def proof(folder: Path) -> SocketProof:
    """What is known of one kernel."""
    return SocketProof(spec(), LOG, folder)


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wishes", "setting", "prefix", "expected"),
    [
        (Wishes(), "auto", "/p", "ipc"),
        (Wishes(transport="tcp"), "auto", "/p", "tcp"),
        (Wishes(), "tcp", "/p", "tcp"),
        (Wishes(ports=(0, 0, 1234, 0, 0)), "auto", "/p", "tcp"),
        (Wishes(ip="0.0.0.0"), "auto", "/p", "tcp"),
        (Wishes(), "auto", "/" + "p" * 107, "tcp"),
    ],
)
def test_a_proven_kernel_is_treated_as_one_that_is_known(
    wishes: Wishes, setting: str, prefix: str, expected: str
) -> None:
    """It gets unix sockets where nothing else is asked for and they fit; what is not proven gets ports."""
    assert decide_transport(spec(), wishes, setting, prefix, is_proven=True) == expected
    assert decide_transport(spec(), wishes, setting, prefix, is_proven=False) == "tcp"


def test_what_is_run_makes_the_name() -> None:
    """Another command, folder, variable or language is another kernel; what front ends show of it makes no odds."""
    changes: list[dict[str, Any]] = [
        {},
        {"argv": ["k", "-v", "{connection_file}"]},
        {"env": {"A": "1"}},
        {"env": {"A": "2"}},
        {"language": "other"},
        {"resource_dir": "/elsewhere"},
    ]
    assert len({fingerprint(spec(**change)) for change in changes}) == len(changes)
    assert fingerprint(spec(display_name="K", metadata={"a": 1}, name="other")) == fingerprint(spec())


def test_a_file_says_it_or_does_not() -> None:
    """Only an object that names the transport is a proof; what is no object is an error."""
    assert is_proof(b'{"transport": "ipc"}')
    assert not is_proof(b'{"transport": "tcp"}')
    assert not is_proof(b"{}")
    for content in (b"", b"[]", b"\xff", b'{"transport": "ipc"'):
        with pytest.raises(ValueError, match=r"."):
            is_proof(content)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_kept_in_private(proof: SocketProof, caplog: pytest.LogCaptureFixture) -> None:
    """A 0600 file in a 0700 folder, whatever the umask; another object finds it, and it can be taken back."""
    umask = os.umask(0)
    try:
        assert not proof.is_given
        proof.give()
        proof.give()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(proof.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(proof.path.parent.stat().st_mode) == 0o700
    assert list(proof.path.parent.iterdir()) == [proof.path]
    assert SocketProof(spec(name="again"), LOG, proof.path.parent).is_given
    assert not SocketProof(spec(argv=["other"]), LOG, proof.path.parent).is_given
    proof.withdraw()
    proof.withdraw()
    assert not proof.is_given
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "did not answer on unix sockets" in caplog.text


def test_the_place_is_that_of_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the XDG base directory specification, where a relative folder counts for nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert proof_folder() == tmp_path / "cobnut" / "unix-sockets"
    monkeypatch.setenv("HOME", "/home/me")
    for nothing in ("", "here"):
        monkeypatch.setenv("XDG_STATE_HOME", nothing)
        assert proof_folder() == Path("/home/me/.local/state/cobnut/unix-sockets")


def broken(path: Path) -> None:
    """Write half a file."""
    path.write_text('{"transport": "i')
    path.chmod(0o600)


def long(path: Path) -> None:
    """Write far too much."""
    path.write_text('{"transport": "ipc", "more": "' + "x" * 100_000 + '"}')


def folder_instead(path: Path) -> None:
    """Put a folder there."""
    path.mkdir()


def link(path: Path) -> None:
    """Put a link to a proof there."""
    target = path.with_name("target")
    target.write_text('{"transport": "ipc"}')
    path.symlink_to(target)


def pipe(path: Path) -> None:
    """Put a pipe there, that nobody writes to."""
    os.mkfifo(path)


def writable(path: Path) -> None:
    """Let others write it."""
    path.write_text('{"transport": "ipc"}')
    path.chmod(0o666)


def foreign(path: Path) -> None:
    """Give it to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path.write_text('{"transport": "ipc"}')
    os.chown(path, 12345, 12345)


def open_folder(path: Path) -> None:
    """Let others into the folder."""
    path.write_text('{"transport": "ipc"}')
    path.parent.chmod(0o755)


@pytest.mark.parametrize("spoil", [broken, long, folder_instead, link, pipe, writable, foreign, open_folder])
def test_what_is_not_to_be_trusted_is_ignored(
    proof: SocketProof, folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It proves nothing, the log says so, no descriptor stays open, and neither giving nor taking back raises."""
    folder.mkdir(mode=0o700, parents=True)
    spoil(proof.path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert not proof.is_given
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert f"What is known of kernel 'k' and unix sockets is ignored: {proof.path}" in caplog.text
    proof.give()
    assert proof.is_given is (spoil not in (folder_instead, open_folder))
    proof.withdraw()
    assert not proof.is_given
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_place_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is remembered, and nothing is raised."""
    (tmp_path / "file").touch()
    proof = SocketProof(spec(), LOG, tmp_path / "file" / "cobnut")
    proof.give()
    assert not proof.is_given
    assert f"That kernel 'k' can use unix sockets is not remembered: {proof.path}: Not a directory" in caplog.text
    proof.withdraw()


@pytest.mark.parametrize("place", ["~/.local/state", "/proc/none/of/ours"])
def test_nothing_is_made_in_anothers_home(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor in a folder called "~" where there is no home: under sudo the environment may name who called it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    SocketProof(spec(), LOG, Path(place)).give()
    assert "there is no folder of yours for it: set XDG_STATE_HOME to one" in caplog.text
    assert not list(tmp_path.iterdir())


# ── several at once ─────────────────────────────────────────────────────────────────────────────────────────────────

GIVE = """
import logging, sys
from pathlib import Path
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.provisioning.socket_proof import SocketProof
print(flush=True)
sys.stdin.read()
for number in range(20):
    for name in ("ours", sys.argv[2]):
        spec = KernelSpec(argv=[f"{name}-{number}"], name=name, language="k")
        proof = SocketProof(spec, logging.getLogger(), Path(sys.argv[1]))
        proof.give()
        assert proof.is_given
"""


def test_two_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    """Each finds what it wrote whole, and in the end there is all that both wrote, and nothing else."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", GIVE, str(folder), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "other")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    names = {path.name for path in folder.iterdir()}
    specs = [spec(argv=[f"{name}-{number}"]) for name in ("ours", "one", "other") for number in range(20)]
    assert names == {SocketProof(each, LOG, folder).path.name for each in specs}


def test_giving_and_taking_back_at_once_leaves_one_or_the_other(
    proof: SocketProof, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who reads meanwhile sees half a file, and no temporary one stays."""
    over = threading.Event()

    def turn() -> None:
        for _ in range(100):
            proof.give()
            proof.withdraw()
        over.set()

    turning = [threading.Thread(target=turn) for _ in range(2)]
    for thread in turning:
        thread.start()
    while not over.is_set():
        _ = proof.is_given
    for thread in turning:
        thread.join()
    assert "is ignored" not in caplog.text
    assert not [path for path in proof.path.parent.iterdir() if path != proof.path]
