"""A child process: its session, its output, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import is_running, processes_of_group, until

from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.process import TAIL_SIZE, ChildProcess, Tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("runtime")


def python(script: str, **popen: Any) -> ChildProcess:
    """Run a script; on the portal."""
    return ChildProcess.spawn([sys.executable, "-c", script], env=os.environ, **popen)


def run(script: str, **popen: Any) -> tuple[int, ChildProcess]:
    """Run a script to its end."""

    async def to_the_end() -> tuple[int, ChildProcess]:
        child = python(script, **popen)
        return await child.wait(), child

    return Portal.shared().call(to_the_end)


def start(script: str, **popen: Any) -> ChildProcess:
    """Run a script until it has printed its first line."""

    async def begin() -> ChildProcess:
        return python(script, **popen)

    child = Portal.shared().call(begin)
    until(lambda: "\n" in child.output.text(), "it printed nothing")
    return child


def wait(child: ChildProcess) -> int:
    """Wait for the end of a process; returns its code."""
    return Portal.shared().call(child.wait)


SLEEP = "import signal, sys; print('up', flush=True); signal.pause()"


@pytest.fixture(params=["pidfd", "thread"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """See the end of a process by its pidfd, and without one, as on other systems."""
    if request.param == "thread":

        def forbidden(_: int) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no pidfd_open")
    return request.param


# ── its session ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_leads_a_session_of_its_own() -> None:
    """A child has no terminal of ours: it leads its session and its group, and its stdin is empty."""
    code, child = run("import os, sys; print(os.getsid(0) == os.getpgid(0) == os.getpid(), repr(sys.stdin.read()))")
    assert (code, child.output.text()) == (0, "True ''\n")


def test_it_inherits_no_descriptor() -> None:
    """A child holds its three standard streams and nothing of ours."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    _, child = run("import os; print(sorted(map(int, os.listdir('/dev/fd')))[:3], len(os.listdir('/dev/fd')))")
    assert child.output.text() == "[0, 1, 2] 4\n"  # the fourth is the listing itself
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("argv", "options", "error"),
    [
        (["/no/such/program"], {}, FileNotFoundError),
        ([sys.executable], {"cwd": "/no/such/folder"}, FileNotFoundError),
        ([os.devnull], {}, PermissionError),
        ([sys.executable, "nul\0"], {}, ValueError),
    ],
)
def test_what_cannot_be_started_leaves_nothing(
    argv: list[str], options: dict[str, Any], error: type[Exception]
) -> None:
    """A failed start raises what the system says, and opens nothing for good."""

    async def begin() -> None:
        ChildProcess.spawn(argv, env=os.environ, **options)

    with pytest.raises(error):
        Portal.shared().call(begin)


def test_a_start_that_fails_after_the_fork_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process runs but cannot be watched it is ended again."""

    def fail(child: ChildProcess) -> None:
        raise RuntimeError(f"can't start new thread for {child.pid}")

    monkeypatch.setattr(ChildProcess, "_watch", fail)

    async def begin() -> None:
        python(SLEEP)

    before = psutil.Process().children()
    with pytest.raises(RuntimeError, match="new thread"):
        Portal.shared().call(begin)
    assert [child for child in psutil.Process().children() if child not in before] == []


# ── its output ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_output_is_kept_and_never_ours(capfd: pytest.CaptureFixture[str]) -> None:
    """Both streams are kept as they came, stderr a second time, even what was written just before the end."""
    _, child = run("import os; os.write(1, b'out\\n'); os.write(2, b'err \\xff\\n'); os._exit(0)")
    assert sorted(child.output.text().splitlines()) == ["err \ufffd", "out"]
    assert child.errors.text() == "err \ufffd\n"
    assert capfd.readouterr() == ("", "")


def test_it_never_waits_for_us_to_read() -> None:
    """However much it writes, it comes to its end; of each stream the last 64 KiB are kept."""
    _, child = run("import os\nfor _ in range(50): os.write(1, b'x' * 100_000)\nos.write(2, b'last')")
    assert len(child.output.text()) == TAIL_SIZE
    assert child.output.text()[:100] == "x" * 100
    assert child.errors.text() == "last"


def test_a_tail_keeps_the_end() -> None:
    """What is too much goes at the beginning, by bytes."""
    tail = Tail(size=5)
    for part in (b"abc", b"", b"defg", "é".encode()):
        tail.append(part)
    assert tail.text() == "efgé"
    tail.append(b"0123456789")
    assert tail.text() == "56789"


def test_a_stream_may_go_elsewhere(tmp_path: Path) -> None:
    """Who names another place for stdout gets it there."""
    with (tmp_path / "log").open("wb") as log:
        _, child = run("print('there')", stdout=log)
    assert (tmp_path / "log").read_text() == "there\n"
    assert child.output.text() == ""


# ── its end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("watching")
def test_its_end_is_noticed_and_it_is_reaped() -> None:
    """Everybody who waits is told the code; no zombie is left."""
    child = start(SLEEP)

    async def wait_thrice() -> list[int]:
        return await asyncio.gather(*(child.wait() for _ in range(3)))

    assert child.poll() is None
    waiting = Portal.shared().start_soon(wait_thrice)
    os.kill(child.pid, signal.SIGKILL)
    assert waiting.result(timeout=20) == [-9, -9, -9]
    assert child.poll() == -9
    assert not psutil.pid_exists(child.pid)
    assert run("raise SystemExit(3)")[0] == 3


def test_who_gives_up_waiting_disturbs_nobody() -> None:
    """A cancelled wait leaves the others' alone."""
    child = start(SLEEP)

    async def give_up() -> None:
        waiting = asyncio.ensure_future(child.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    Portal.shared().call(give_up)
    assert child.poll() is None
    child.kill()
    assert wait(child) == -9


BACKGROUND = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], {options})
print(child.pid, flush=True)
{then}
"""


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("end", [lambda child: child.kill(), lambda child: os.kill(child.pid, signal.SIGTERM)])
def test_what_it_left_in_the_background_ends_with_it(end: Callable[[ChildProcess], None]) -> None:
    """Its group is killed when it ends, however it ends, and no zombie of ours is left."""
    child = start(BACKGROUND.format(options="", then="import signal; signal.pause()"))
    grandchild = int(child.output.text())
    end(child)
    wait(child)
    until(lambda: not is_running(grandchild))
    assert child.pid not in processes_of_group(child.pid)


def test_what_it_left_ends_after_a_quiet_end_too() -> None:
    """A process that ends by itself leaves no background child either."""
    child = start(BACKGROUND.format(options="", then=""))
    grandchild = int(child.output.text())
    assert wait(child) == 0
    until(lambda: not is_running(grandchild))


def test_what_fled_its_session_survives_and_keeps_nobody_waiting() -> None:
    """A daemon in a session of its own goes on, although it holds our pipes."""
    child = start(BACKGROUND.format(options="start_new_session=True", then=""))
    daemon = int(child.output.text())
    assert wait(child) == 0
    assert is_running(daemon)
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not is_running(daemon))


def test_signals_go_to_its_whole_group() -> None:
    """What it started gets the signal too."""
    child = start(BACKGROUND.format(options="", then="import signal; signal.pause()"))
    grandchild = int(child.output.text())

    async def terminate() -> None:
        child.send_signal(signal.SIGSTOP)

    Portal.shared().call(terminate)
    until(lambda: psutil.Process(grandchild).status() == psutil.STATUS_STOPPED)
    child.kill()
    wait(child)


def test_a_signal_after_its_end_does_nothing() -> None:
    """The number may be somebody else's by then: nobody is signalled."""
    _, child = run("")
    child.send_signal(signal.SIGKILL)
    child.kill()


def test_it_can_be_reaped_without_the_loop() -> None:
    """At the end of the loop a process is waited for by blocking; one that does not end in time is left."""
    child = start(SLEEP)

    async def reap() -> None:
        child.reap(timeout=0.01)
        assert child.poll() is None
        child.kill()
        child.reap()
        assert child.poll() == -9

    Portal.shared().call(reap)


def test_fifty_processes_leave_nothing() -> None:
    """Descriptors, threads and processes are as before, which every test of this folder checks at its end."""
    for _ in range(50):
        assert run("import os; os._exit(0)", stdout=None, stderr=None)[0] == 0
