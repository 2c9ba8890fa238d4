"""The kernel's owner and the policy for kernels that have lost him, without a kernel."""

from __future__ import annotations

import errno
import math
import os
import select
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.runtime.ending import owner
from cobnut_kernel.runtime.ending.owner import OWNER_PIPE, OWNER_PROCESS, Lease, Owner, Policy, name_pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeThread:
    """The I/O thread as far as an owner needs it, with a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.files: dict[int, Callable[[], object]] = {}
        self.timers: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Run it at once."""
        callback(*args)

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Run it when the clock has been moved so far."""
        self.timers.append((self.now + seconds, callback, args))

    def watch_file(self, fd: int, callback: Callable[[], object]) -> None:
        """Run it when somebody waits and the file can be read."""
        self.files[fd] = callback

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and run what is due."""
        self.now += seconds
        due, self.timers = (
            [timer for timer in self.timers if timer[0] <= self.now],
            [timer for timer in self.timers if timer[0] > self.now],
        )
        for _, callback, args in due:
            callback(*args)

    def wait(self) -> None:
        """Wait until one of the files can be read, and say so."""
        poll = select.poll()
        for fd in self.files:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(20_000):
            self.files.pop(fd)()


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> FakeThread:
    """A thread whose clock the leases follow."""
    fake = FakeThread()
    monkeypatch.setattr(owner, "monotonic", lambda: fake.now)
    return fake


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe, whose ends are closed at last unless the test has done it."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


# ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("die", 0),
        ("keep", math.inf),
        ("keep 90", 90),
        ("keep 90s", 90),
        ("keep 10m", 600),
        ("keep 1.5 h", 5400),
        (" keep  2d ", 172800),
        ("keep 0", 0),
    ],
)
def test_a_policy_is_read(text: str, seconds: float) -> None:
    """A policy is a word, and a time where the word is for a time."""
    assert Policy.parse(text) == Policy(seconds)


@pytest.mark.parametrize("text", ["", "live", "die 3m", "keep ten", "keep -1", "keep 5 weeks", "keep10m", "keep 1h30m"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    """The error repeats what was said and shows how it is said."""
    with pytest.raises(ValueError, match="say 'die', 'keep', or how long") as caught:
        Policy.parse(text)
    assert repr(text) in str(caught.value)


class Kept:
    """A lease and what came of it."""

    def __init__(self, thread: FakeThread, policy: str) -> None:
        self.stops = 0
        self.last_request = 0.0
        self.lease = Lease(thread, Policy.parse(policy), self.stop, lambda: self.last_request)  # pyright: ignore[reportArgumentType] - a fake

    def stop(self) -> None:
        """Count."""
        self.stops += 1


def test_by_default_an_abandoned_kernel_ends_at_once(thread: FakeThread) -> None:
    """The policy "die" stops the kernel, and says nothing."""
    kept = Kept(thread, "die")
    kept.lease.abandon("gone")
    assert kept.stops == 1


def test_a_kernel_can_stay(thread: FakeThread, caplog: pytest.LogCaptureFixture) -> None:
    """The policy "keep" lets it run for ever, and logs why once, however often it is abandoned."""
    kept = Kept(thread, "keep")
    for reason in ("The terminal is gone", "The owner is gone"):
        kept.lease.abandon(reason)
    thread.pass_time(10**9)
    assert kept.stops == 0
    assert [record.getMessage() for record in caplog.records] == ["The terminal is gone: the kernel stays."]


def test_a_kernel_can_stay_for_a_time(thread: FakeThread, caplog: pytest.LogCaptureFixture) -> None:
    """With a time it ends when that is over, and not before."""
    kept = Kept(thread, "keep 10m")
    kept.lease.abandon("The owner is gone")
    thread.pass_time(599)
    assert kept.stops == 0
    thread.pass_time(1)
    assert kept.stops == 1
    assert caplog.messages == ["The owner is gone: the kernel ends 600 s after the last request."]


def test_a_request_prolongs_the_time(thread: FakeThread) -> None:
    """Each request starts the time anew; one from before the kernel was abandoned counts for nothing."""
    kept = Kept(thread, "keep 10m")
    kept.last_request = thread.now
    thread.pass_time(300)
    kept.lease.abandon("The owner is gone")
    thread.pass_time(500)
    kept.last_request = thread.now
    thread.pass_time(100)
    thread.pass_time(499)
    assert kept.stops == 0
    thread.pass_time(1)
    assert kept.stops == 1


def test_being_abandoned_again_starts_the_time_anew(thread: FakeThread) -> None:
    """A terminal that hangs up after the owner has gone is the later beginning, and there is still one end."""
    kept = Kept(thread, "keep 100")
    kept.lease.abandon("The owner is gone")
    thread.pass_time(60)
    kept.lease.abandon("The terminal is gone")
    thread.pass_time(60)
    assert kept.stops == 0
    thread.pass_time(40)
    assert kept.stops == 1
    assert not thread.timers


# ── the owner's process ─────────────────────────────────────────────────────────────────────────────────────────────


def watched(thread: FakeThread, **variables: str) -> list[str]:
    """Watch the owner that these variables name; return the list of what is heard of his end."""
    reasons: list[str] = []
    Owner.from_environment(dict(variables)).watch(thread, reasons.append)  # pyright: ignore[reportArgumentType] - a fake
    return reasons


def test_the_end_of_the_owners_process_is_noticed(thread: FakeThread) -> None:
    """A pidfd tells, whoever is the process's parent."""
    with subprocess.Popen(["sleep", "60"]) as process:
        reasons = watched(thread, **{OWNER_PROCESS: str(process.pid)})
        assert reasons == []
        process.kill()
        thread.wait()
        assert reasons == [f"The kernel's owner, process {process.pid}, is gone"]
    assert thread.files == {}


def test_an_owner_that_is_gone_already_is_noticed(thread: FakeThread) -> None:
    """He may have died while the kernel was starting."""
    process = subprocess.Popen(["true"])
    process.wait()
    assert len(watched(thread, **{OWNER_PROCESS: str(process.pid)})) == 1


def test_without_pidfd_the_owner_is_looked_at_again_and_again(
    thread: FakeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems, and containers, that know no pidfd notice his end within a second."""

    def refused(_pid: int, _flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    process = subprocess.Popen(["sleep", "60"])
    reasons = watched(thread, **{OWNER_PROCESS: str(process.pid)})
    thread.pass_time(1)
    thread.pass_time(1)
    assert reasons == []
    process.kill()
    process.wait()
    thread.pass_time(1)
    assert len(reasons) == 1


def test_somebody_elses_process_is_an_owner_too(thread: FakeThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that we may send no signal to is alive."""

    def refused(_pid: int, _signum: int) -> None:
        raise PermissionError

    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(os, "kill", refused)
    reasons = watched(thread, **{OWNER_PROCESS: "1"})
    thread.pass_time(1)
    assert reasons == []
    assert len(thread.timers) == 1


@pytest.mark.parametrize("text", ["0", "-1", "me", "12a", "²"])
def test_what_is_no_process_is_said_and_left_alone(
    thread: FakeThread, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """A kernel whose launcher names nonsense starts all the same."""
    assert watched(thread, **{OWNER_PROCESS: text}) == []
    assert not thread.files
    assert repr(text) in caplog.text


def test_nobody_is_an_owner_too(thread: FakeThread, caplog: pytest.LogCaptureFixture) -> None:
    """Without variables, or with empty ones, nothing is watched and nothing said."""
    assert watched(thread) == watched(thread, **{OWNER_PROCESS: "", OWNER_PIPE: ""}) == []
    assert not thread.files
    assert caplog.text == ""


# ── the owner's pipe ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_the_owners_pipe_is_noticed(thread: FakeThread, pipe: tuple[int, int]) -> None:
    """The last writer's end is the owner's; what he writes before is not."""
    reading, writing = pipe
    reasons = watched(thread, **{OWNER_PIPE: name_pipe(reading)})
    os.write(writing, b"hello")
    thread.wait()
    assert reasons == []
    os.close(writing)
    thread.wait()
    assert reasons == ["The pipe of the kernel's owner has ended"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_the_pipe_is_for_this_process_alone(pipe: tuple[int, int]) -> None:
    """Children inherit neither the variable nor the descriptor."""
    reading, _ = pipe
    os.set_inheritable(reading, True)
    environ = {OWNER_PIPE: name_pipe(reading), "OTHER": "1"}
    assert Owner.from_environment(environ).pipe == reading
    assert environ == {"OTHER": "1"}
    assert not os.get_inheritable(reading)


def test_another_pipe_of_the_same_number_is_not_taken(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    """Where a wrapper has closed the descriptor, its number may belong to a pipe that somebody needs."""
    reading, _ = pipe
    named = name_pipe(reading)
    other = os.pipe()
    os.dup2(other[0], reading)
    assert Owner.from_environment({OWNER_PIPE: named}).pipe is None
    assert named in caplog.text
    for fd in other:
        os.close(fd)


def test_what_is_no_reading_end_of_a_pipe_is_not_taken(pipe: tuple[int, int]) -> None:
    """Neither the writing end, nor a file, nor nothing, nor nonsense."""
    reading, writing = pipe
    with open(os.devnull, "rb") as file:  # noqa: PTH123 - its descriptor is what matters
        closed = name_pipe(file.fileno())
        texts = [name_pipe(writing), closed, str(reading), f"{reading}:", "x:1", "99999999999:1"]
        assert [Owner.from_environment({OWNER_PIPE: text}).pipe for text in texts] == [None] * 6
    assert Owner.from_environment({OWNER_PIPE: closed}).pipe is None


def test_an_owner_behind_a_wrapper_is_noticed_by_the_pipe(thread: FakeThread, pipe: tuple[int, int]) -> None:
    """A process between that lives on, and hands the reading end down, does not hide the owner's end."""
    reading, writing = pipe
    report = "import os; from cobnut_kernel.runtime.ending.owner import Owner; "
    report += "print(os.read(Owner.from_environment().pipe, 1))"
    run = subprocess.Popen(
        ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", report],
        env={**os.environ, OWNER_PIPE: name_pipe(reading)},
        pass_fds=[reading],
        stdout=subprocess.PIPE,
    )
    os.close(writing)
    assert run.communicate()[0] == b"b''\n"
