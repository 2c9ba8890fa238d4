"""The guard: kernels end with their owner, however he ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import is_running, until

from cobnut_kernel.connection_files import OwnerDirectory, ProcessIdentity
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning import guard_process
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("runtime")

OWNER = """
import asyncio, os, sys
from cobnut_kernel.kernelspec import KernelSpec, native_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner

DEAF = (
    "import signal, time\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\n"
    "print('up', flush=True)\\ntime.sleep(60)"
)
SPECS = [
    native_spec(),
    KernelSpec(argv=[sys.executable, "-c", DEAF], language="R"),
    KernelSpec(argv=["sh", "-c", '"$0" -c "$1" & wait', sys.executable, DEAF]),
]

async def start(number):
    kernel = LocalProvisioner(kernel_id=str(number), kernel_spec=SPECS[number])
    arguments = await kernel.pre_launch()
    await kernel.launch_kernel(arguments.pop("cmd"), **arguments)
    if number:
        while "up" not in kernel.output_tail():
            await asyncio.sleep(0.005)
    else:
        while not os.path.exists(f"{kernel.connection_info['ip']}-1"):
            await asyncio.sleep(0.005)
    return kernel

kernels = [Portal.shared().call(start, number) for number in range(len(SPECS))]
print(*(kernel.pid for kernel in kernels), Guard.shared().pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def owner(runtime: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], int, Path]]:
    """A process that owns an ipykernel, a kernel deaf to all signals, and one behind a shell: it, they, its guard."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        *kernels, guard = map(int, process.stdout.readline().split())
        kernels += [child.pid for child in psutil.Process(kernels[2]).children()]
        assert len(kernels) == 4
        yield process, kernels, guard, runtime / "cobnut"
        process.kill()


def test_kernels_of_any_make_end_with_an_owner_who_is_killed(
    owner: tuple[subprocess.Popen[str], list[int], int, Path],
) -> None:
    """After a SIGKILL of the owner nothing of his is left: no kernel, no guard, no file, no socket."""
    process, kernels, guard, folder = owner
    assert len(list(folder.glob("*/*"))) >= 9
    process.kill()
    until(lambda: not any(map(is_running, [*kernels, guard])), f"still there: {kernels} {guard}")
    assert list(folder.iterdir()) == []


def test_a_guard_is_deaf_to_signals_that_are_meant_for_its_owner(
    owner: tuple[subprocess.Popen[str], list[int], int, Path],
) -> None:
    """A closed terminal, Ctrl-C and a polite end of everything do not end it before its work is done."""
    process, kernels, guard, folder = owner
    assert os.getsid(guard) == guard
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(guard, signum)
    process.kill()
    until(lambda: not any(map(is_running, [*kernels, guard])), f"still there: {kernels} {guard}")
    assert list(folder.iterdir()) == []


def test_an_owner_who_ends_quietly_takes_his_kernels_along(
    owner: tuple[subprocess.Popen[str], list[int], int, Path],
) -> None:
    """The end of the program, without a word to its kernels, ends them too."""
    process, kernels, guard, folder = owner
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    until(lambda: not any(map(is_running, [*kernels, guard])), f"still there: {kernels} {guard}")
    assert list(folder.iterdir()) == []


def test_where_the_guard_was_killed_too_the_next_owner_sweeps(
    owner: tuple[subprocess.Popen[str], list[int], int, Path],
) -> None:
    """Files that even the guard could not remove go when the next guard starts."""
    process, kernels, guard, folder = owner
    for pid in (guard, process.pid, *kernels):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    (stale,) = folder.iterdir()
    guarded(lambda: None)
    assert not stale.exists()


# ── the owner's end of it ───────────────────────────────────────────────────────────────────────────────────────────


def guarded(then: Callable[[], object], *files: str) -> ProcessIdentity:
    """Start a process, have it and some files guarded, and do something else on the portal."""

    async def begin() -> ProcessIdentity:
        child = ChildProcess.spawn([sys.executable, "-c", "import signal; signal.pause()"], env=os.environ)
        Guard.shared().add(child.identity, [OwnerDirectory.shared().path / "file", *files])
        then()
        Portal.shared().at_end(lambda: (child.kill(), child.reap(), Guard.shared().remove(child.pid)))
        return child.identity

    return Portal.shared().call(begin)


def guard_pid() -> int:
    """The id of the guard, which runs."""
    assert Guard.shared().pid is not None
    return Guard.shared().pid or 0


def test_the_guard_ends_with_the_portal_and_takes_the_folder_along(runtime: Path) -> None:
    """When all kernels have ended before, the end of the portal leaves no guard and no folder."""
    kernel = guarded(lambda: None)
    pid = guard_pid()
    assert is_running(pid)

    async def forget() -> None:
        Guard.shared().remove(kernel.pid)
        Guard.shared().remove(12345)

    Portal.shared().call(forget)
    Portal.shared().stop()
    assert not psutil.pid_exists(pid)
    assert list((runtime / "cobnut").iterdir()) == []


def test_a_guard_that_hangs_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing left to guard it is ended, if it does not end by itself in time."""
    monkeypatch.setattr("cobnut_kernel.provisioning.guard.END_TIME", 0.05)
    guarded(lambda: None)
    pid = guard_pid()
    os.kill(pid, signal.SIGSTOP)
    Portal.shared().stop()
    assert not psutil.pid_exists(pid)


def test_a_guard_that_was_killed_is_replaced() -> None:
    """The next one knows all kernels of the one before; the killed one is reaped."""
    kernel = guarded(lambda: None)
    first = guard_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(first))
    another = guarded(lambda: None)
    second = guard_pid()
    assert second != first
    child = Guard.shared()._child
    assert child is not None
    assert child.stdin is not None
    os.close(os.dup(child.stdin.fileno()))
    child.stdin.close()  # for the guard this is the end of its owner
    until(lambda: not any(map(is_running, (kernel.pid, another.pid, second))))


def test_a_guard_that_does_not_read_is_replaced() -> None:
    """Where a line cannot be written the guard is ended, and another one told everything."""
    kernel = guarded(lambda: None)
    first = Guard.shared()._child
    assert first is not None
    assert first.stdin is not None
    os.kill(first.pid, signal.SIGSTOP)
    with suppress(BlockingIOError):
        while True:
            os.write(first.stdin.fileno(), b"\n")
    guarded(lambda: None)
    assert guard_pid() != first.pid
    until(lambda: not psutil.pid_exists(first.pid))
    assert len(Guard.shared()._entries) == 2
    assert is_running(kernel.pid)


def test_a_guard_that_never_reads_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that does not take the first line, either, is not kept; the next kernel's guard is told of both."""
    deaf = tmp_path / "deaf.py"
    deaf.write_text("import signal; signal.pause()")
    with monkeypatch.context() as patch:
        patch.setattr("cobnut_kernel.provisioning.guard._SCRIPT", deaf)
        patch.setattr("cobnut_kernel.provisioning.guard.READ_TIME", 0.05)
        kernel = guarded(lambda: None, "x" * 100_000)  # more than a pipe holds
        until(lambda: Guard.shared().pid is None)
    another = guarded(lambda: None)
    child = Guard.shared()._child
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()  # for the guard this is the end of its owner
    until(lambda: not any(map(is_running, (kernel.pid, another.pid))))


def test_a_guard_that_dies_while_it_guards_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to start another kernel for the others to be guarded again."""
    monkeypatch.setattr(ChildProcess, "lived_for", 2.0)
    guarded(lambda: None)
    first = guard_pid()
    os.kill(first, signal.SIGKILL)
    until(lambda: Guard.shared().pid not in (None, first))


def test_a_guard_that_cannot_run_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without an interpreter kernels start all the same, with a warning; one that ends at once is not tried again."""
    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "spawn", refuse_guards(ChildProcess.spawn))
        guarded(lambda: None)
        assert Guard.shared().pid is None
    assert "No guard could be started" in caplog.text
    monkeypatch.setattr("cobnut_kernel.provisioning.guard._SCRIPT", Path("/no/such"))
    guarded(lambda: None)
    until(lambda: Guard.shared().pid is None)
    assert "can't open file" in caplog.text


def refuse_guards(spawn: Callable[..., ChildProcess]) -> Callable[..., ChildProcess]:
    """Let every process be started but guards."""

    def refuse(argv: list[str], **options: Any) -> ChildProcess:
        if "-I" in argv:
            raise FileNotFoundError(2, "No such file or directory")
        return spawn(argv, **options)

    return refuse


def test_a_forked_child_does_not_keep_the_guard_waiting(runtime: Path) -> None:
    """A child that outlives its parent without exec is not taken for the owner."""
    script = (
        OWNER
        + """
if not os.fork():
    import signal
    print(os.getpid(), flush=True)
    signal.pause()
sys.stdin.readline()
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        *kernels, guard = map(int, process.stdout.readline().split())
        process.stdin.write("\n")
        process.stdin.flush()
        fork = int(process.stdout.readline())
        process.kill()
    try:
        until(lambda: not any(map(is_running, [*kernels, guard])), f"still there: {kernels} {guard}")
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_no_kernel_has_the_guards_pipe() -> None:
    """The writing end is in no other process: a kernel that outlived its owner would keep the guard waiting."""
    kernel = guarded(lambda: guarded_pipe.append(Guard.shared()._child))
    child = guarded_pipe.pop()
    assert child is not None
    assert child.stdin is not None
    pipe = str(Path(f"/proc/self/fd/{child.stdin.fileno()}").readlink())
    for pid in (kernel.pid, guarded(lambda: None).pid):
        assert pipe not in held_by(pid)
    assert pipe in held_by(os.getpid())


guarded_pipe: list[ChildProcess | None] = []


def held_by(pid: int) -> list[str]:
    """What a process has open."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return found


# ── the guard itself ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_number_that_came_round_again_is_spared() -> None:
    """A group whose leader started at another time is somebody else's, and gets no signal."""
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    start = ProcessIdentity.of(other.pid).start_time
    assert not guard_process.is_same(other.pid, start + 1)
    assert guard_process.is_same(other.pid, start)
    assert guard_process.is_same(other.pid, 0)
    guard_process.end_groups({other.pid: start + 1})
    assert other.poll() is None
    guard_process.end_groups({other.pid: start})
    assert other.wait() == -signal.SIGTERM
    assert guard_process.is_same(other.pid, start)  # nobody has the number
    guard_process.end_groups({other.pid: start})


def test_a_deaf_group_is_killed_after_a_moment_of_grace() -> None:
    """Who does not heed SIGTERM gets SIGKILL."""
    script = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"
    deaf = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    with deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        before = time.monotonic()
        guard_process.end_groups({deaf.pid: 0})
        assert time.monotonic() - before >= guard_process.GRACE
        assert deaf.wait() == -signal.SIGKILL


def test_only_what_is_there_is_removed(tmp_path: Path) -> None:
    """Files that are gone, and names as odd as can be, are no trouble; the owner's folder goes last."""
    folder = tmp_path / "owner"
    folder.mkdir()
    odd = folder / os.fsdecode(b"odd \xff\n name")
    odd.touch()
    (folder / "left").touch()
    outside = tmp_path / "outside"
    outside.touch()
    guard_process.remove_files([os.fsencode(odd), b"/no/such", os.fsencode(outside)], os.fsencode(folder))
    assert list(tmp_path.iterdir()) == []
    guard_process.remove_files([], b"")


def test_it_imports_next_to_nothing() -> None:
    """The guard starts quickly: it imports no package and hardly any module."""
    script = Path(guard_process.__file__)
    code = f"""
import sys
before, __name__ = {{*sys.modules}}, "guard"
exec(open({str(script)!r}).read())
print(*{{*sys.modules}} - before)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "signal" in done.stdout.split()
    assert not {"pathlib", "subprocess", "asyncio", "json", "re", "contextlib", "typing"} & set(done.stdout.split())
