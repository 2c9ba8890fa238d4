"""The owner's end of fork servers: when they are started, what they guard, and that all ends with him."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.kernel.launches import Launched, do, on_portal, servers, wait_for_end, warm
from tests.kernel.leftovers import is_running, until

from cobnut_kernel.connection_files import OwnerDirectory, ProcessIdentity
from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.fork import Ask, kernel_arguments, start_variables
from cobnut_kernel.provisioning import circumstances, templates
from cobnut_kernel.provisioning.fork_server import ForkServer
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner
from cobnut_kernel.provisioning.process import ChildProcess, Outputs
from cobnut_kernel.provisioning.templates import Templates, is_forkable, kernel_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]

OWNER = """
import os, sys, time
from cobnut_kernel.kernelspec import KernelSpec, own_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.fork import ForkProvisioner
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.templates import Templates

KERNEL = [sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}"]
DEAF = (
    "import signal, time\\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\\n"
    "print('up', flush=True)\\ntime.sleep(60)"
)
SPECS = [
    own_spec(),
    KernelSpec(argv=["sh", "-c", '"$0" "$@"; exit $?', *KERNEL], language="python"),
    KernelSpec(argv=[sys.argv[1], *KERNEL], language="python"),
    KernelSpec(argv=["sh", "-c", '"$0" -c "$1" & wait', sys.executable, DEAF], language="R"),
]

async def launch(number):
    kernel = ForkProvisioner(kernel_id=str(number), kernel_spec=SPECS[number])
    arguments = await kernel.pre_launch(cwd="/")
    await kernel.launch_kernel(arguments.pop("cmd"), **arguments)
    return kernel

async def servers():
    return Templates.shared()._servers

Templates.warm()
while not any(server.is_ready for server in Portal.shared().call(servers)):
    time.sleep(0.01)
kernels = [Portal.shared().call(launch, number) for number in range(len(SPECS))]
for kernel in kernels[:3]:
    while not os.path.exists(f"{kernel.connection_info['ip']}-5"):
        time.sleep(0.01)
while "up" not in kernels[3].output_tail():
    time.sleep(0.01)
print(type(kernels[0].process).__name__, *(kernel.pid for kernel in kernels), flush=True)
print(Portal.shared().call(servers)[0].pid, Guard.shared().pid, flush=True)

async def guard():
    return Guard.shared().pid

while sys.stdin.readline():
    while (pid := Portal.shared().call(guard)) is None:
        time.sleep(0.01)
    print(pid, flush=True)
"""

WRAPPER = """#!/bin/bash
# As `conda run` does it: a program that runs a script that runs the kernel, without the descriptors of its caller.
script=$(mktemp)
printf '"$@"\\n' > "$script"
trap 'rm -f "$script"' EXIT
"$(dirname "$0")/inner" "$script" "$@"
"""
INNER = """#!{python}
import subprocess, sys
sys.exit(subprocess.run(["bash", *sys.argv[1:]], stdin=subprocess.DEVNULL).returncode)
"""


class OwnerProcess:
    """A process that owns a fork server, a forked kernel, two behind wrappers, and a deaf one of another make."""

    def __init__(self, runtime: Path, folder: Path) -> None:
        for name, text in {"wrapper": WRAPPER, "inner": INNER.format(python=sys.executable)}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder / "wrapper")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        kind, *kernels = self.process.stdout.readline().split()
        assert kind == "ForkedProcess"
        self.server, self.guard = self.process.stdout.readline().split()
        descendants = [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        assert {int(pid) for pid in kernels} <= set(descendants)
        assert len(descendants) >= 9
        self.descendants = descendants
        self.folder = runtime / "cobnut"

    def new_guard(self) -> int:
        """Wait until it has a guard of its own, and return its process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def assert_all_is_gone(self) -> None:
        """Nothing of it is left: no process, no file, no socket."""
        for pid in self.descendants:
            wait_for_end(pid)
        until(lambda: list(self.folder.iterdir()) == [], "files are left")

    def close(self) -> None:
        """End it, whatever is left of it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def owner(runtime: Path, tmp_path: Path) -> Iterator[OwnerProcess]:
    """An owner with all kinds of kernels."""
    owner = OwnerProcess(runtime, tmp_path)
    yield owner
    owner.close()


# ── the owner's death ───────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_outlives_an_owner_who_is_killed(owner: OwnerProcess) -> None:
    """Forked or cold, through `sh -c` and a wrapper as `conda run`, deaf or not: kernels end, files and sockets go."""
    assert owner.guard == "None"  # the fork server does it
    owner.process.kill()
    owner.assert_all_is_gone()


def test_nothing_outlives_an_owner_whose_fork_server_was_killed(owner: OwnerProcess) -> None:
    """A guard of its own has taken over from the fork server, and ends its kernels too."""
    os.kill(int(owner.server), signal.SIGKILL)
    guard = owner.new_guard()
    owner.process.kill()
    owner.assert_all_is_gone()
    wait_for_end(guard)


def test_an_owner_who_ends_quietly_takes_all_along(owner: OwnerProcess) -> None:
    """The end of the program, without a word to its kernels, ends them too."""
    assert owner.process.stdin is not None
    owner.process.stdin.close()
    assert owner.process.wait(timeout=20) == 0
    owner.assert_all_is_gone()


# ── when they are started ───────────────────────────────────────────────────────────────────────────────────────────


def test_one_is_enough() -> None:
    """However often it is asked for, one environment has one fork server."""
    server = warm()
    for _ in range(3):
        Templates.warm()
        warm({**os.environ, "OF_NO_MATTER": "1"})
    assert servers() == [server]
    assert server.state is not None
    assert server.state.pid == server.pid
    assert server.state.executable == sys.executable


def test_one_that_cannot_run_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it ends before it was ready it is given up for that environment, silently, and kernels start cold."""
    monkeypatch.setattr("cobnut_kernel.provisioning.fork_server.MODULE", "no.such.module")
    caplog.set_level(logging.DEBUG)
    Templates.warm()
    on_portal(Templates.shared)
    until(lambda: Templates.shared()._hopeless == [start_variables(os.environ)])
    assert servers() == []
    Templates.warm()
    kernel = Launched()
    assert (servers(), kernel.is_forked) == ([], False)
    kernel.stop(now=True)
    assert {record.levelname for record in caplog.records if "fork server" in record.message} == {"DEBUG"}
    assert "No module named" in caplog.text


def test_one_that_cannot_be_started_is_no_hindrance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for another process nothing is raised, and nothing is left open."""

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "spawn", refuse)
        on_portal(lambda: Templates.shared().prepare(kernel_environment()))
    assert servers() == []
    assert warm().is_ready


def test_elsewhere_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems nobody tries."""
    monkeypatch.setattr(templates, "can_fork", lambda: False)
    Templates.warm()
    assert Templates._of_this_process is None
    assert not is_forkable([sys.executable, "-P", "-m", "cobnut_kernel"])


def test_only_our_own_command_is_forkable() -> None:
    """Interpreter and module must be ours; what follows is the kernel's."""
    assert is_forkable([sys.executable, "-P", "-m", "cobnut_kernel", "-f", "x"])
    assert kernel_arguments([sys.executable, "-P", "-m", "cobnut_kernel", "-f", "x"], sys.executable) == ("-f", "x")
    assert not is_forkable([sys.executable, "-m", "ipykernel_launcher", "-f", "x"])
    assert not is_forkable(["/usr/bin/python3", "-P", "-m", "cobnut_kernel", "-f", "x"])
    assert is_forkable(["python3", "-P", "-m", "cobnut_kernel", "-f", "{connection_file}"])
    assert not is_forkable([])


# ── what it guards ──────────────────────────────────────────────────────────────────────────────────────────────────


def guarded() -> ProcessIdentity:
    """Start a process, and have it guarded."""

    async def begin() -> ProcessIdentity:
        child = ChildProcess.spawn([sys.executable, "-c", "import signal; signal.pause()"], env=os.environ)
        Guard.shared().add(child.identity, [OwnerDirectory.shared().path / "file"])
        Portal.shared().at_end(lambda: (child.kill(), child.reap(), Guard.shared().remove(child.pid)))
        return child.identity

    return do(begin)


def test_it_takes_over_from_the_guard_and_back() -> None:
    """The guard's process ends, without ending anybody, when a fork server is ready, and is back when that is not."""
    first = guarded()
    guard = Guard.shared().pid
    assert guard is not None
    server = warm()
    until(lambda: not psutil.pid_exists(guard), "the guard still runs")
    second = guarded()
    assert Guard.shared().pid is None
    assert server._wards == {first.pid, second.pid}
    assert all(map(is_running, (first.pid, second.pid)))
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: Guard.shared().pid is not None)
    on_portal(lambda: Guard.shared().remove(first.pid))
    assert set(Guard.shared()._entries) == {second.pid}
    os.kill(Guard.shared().pid or 0, signal.SIGKILL)


def test_another_fork_server_takes_over_first() -> None:
    """Where there is a second one no guard of its own is needed."""
    kernel = guarded()
    first = warm()
    second = warm({**os.environ, "PYTHONHASHSEED": "7"})
    assert second is not first
    until(lambda: (first._wards, second._wards) == (set(), {kernel.pid}))
    os.kill(second.pid, signal.SIGKILL)
    until(lambda: servers() == [first])
    until(lambda: first._wards == {kernel.pid})
    assert Guard.shared().pid is None


def test_an_idle_one_ends_at_once_with_the_portal() -> None:
    """With nothing left to guard it is ended, ready or not, even where it hangs."""
    server = warm()
    warm({**os.environ, "PYTHONHASHSEED": "7"})
    Templates.warm({**os.environ, "PYTHONHASHSEED": "8"})  # not ready
    on_portal(lambda: None)
    pids = [each.pid for each in servers()]
    os.kill(server.pid, signal.SIGSTOP)
    Portal.shared().stop()
    assert not any(map(psutil.pid_exists, pids))
    assert len(pids) == 3


# ── what is between us ──────────────────────────────────────────────────────────────────────────────────────────────


def test_one_that_says_what_cannot_be_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork server of another version, say, is given up at once."""
    server = warm()
    kernel = Launched()

    def refuse(_: bytes) -> None:
        raise MalformedMessageError("The packet is no JSON.")

    monkeypatch.setattr("cobnut_kernel.provisioning.fork_server.decode_answer", refuse)
    on_portal(lambda: server._say(Ask()))
    until(lambda: server.is_gone)
    assert kernel.provisioner.has_process
    kernel.stop(now=True)


def test_a_forked_child_of_ours_is_not_taken_for_us() -> None:
    """A child without exec lets go of the socket: when we are gone the fork server sees it."""
    server = warm()
    child = os.fork()
    if not child:
        try:
            alive = Templates._of_this_process is None and server._socket.fileno() == -1
            os._exit(0 if alive else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.is_ready
    assert Launched().stop() == 0


def test_strays_are_those_who_can_write_into_the_pipes() -> None:
    """Whoever can only read, and our own children, are left alone."""
    reading, writing = os.pipe()

    async def pipes() -> set[str]:
        outputs = Outputs()
        outputs.attach(os.fdopen(reading, "rb", 0), None)
        inodes = outputs.inodes()
        outputs.close()
        return inodes

    wait = "import signal; signal.pause()"
    spawn = (
        "import subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {wait!r}], pass_fds=[int(sys.argv[1])], stdout=-3).pid)"
    )
    reader, writer = (
        int(subprocess.check_output([sys.executable, "-c", spawn, str(end)], pass_fds=[end], text=True))
        for end in (reading, writing)
    )
    own = subprocess.Popen([sys.executable, "-c", wait], pass_fds=[writing])
    inodes = do(pipes)
    circumstances.end_strays(inodes)
    wait_for_end(writer)
    assert is_running(reader)
    assert own.poll() is None
    own.kill()
    own.wait()
    os.kill(reader, signal.SIGKILL)
    os.close(writing)


def test_a_kernel_of_another_make_is_guarded_by_it(tmp_path: Path) -> None:
    """What LocalProvisioner starts is told to the fork server, and forgotten when it has ended."""
    server = warm()
    spec = KernelSpec(argv=[sys.executable, "-c", "import signal; signal.pause()", "ipykernel"], language="python")
    kernel = Launched(LocalProvisioner(kernel_id="id", kernel_spec=spec), cwd=tmp_path)
    assert server._wards == {kernel.pid}
    kernel.stop(now=True)
    assert server._wards == set()
    assert isinstance(server, ForkServer)
