"""The kernel that a fork server forks before it is asked: it becomes the next one, and nobody sees it before."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.forks import ForkedKernel, ForkServer
from tests.kernel.leftovers import is_running, until

from cobnut_kernel.protocol.fork import Ask, Forked, RefusalReason, Refused, Retire, Signal, State

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    """A template of this test's own, that imports from a folder of the test."""
    (tmp_path / "sitecustomize.py").write_text("")
    server = ForkServer({"PYTHONPATH": str(tmp_path)})
    yield server
    server.end()


def spare(server: ForkServer) -> int:
    """Wait until there is one, and return its process."""
    known = {kernel.process.pid for kernel in server.kernels}

    def find() -> list[int]:
        return [
            pid for pid in (child.pid for child in psutil.Process(server.process.pid).children()) if pid not in known
        ]

    until(lambda: find() and is_running(find()[0]), "none is forked")
    return find()[0]


def test_it_becomes_the_next_kernel(server: ForkServer, tmp_path: Path) -> None:
    """A kernel that is asked for is the one that was there; then there is another one. It has all it asked for."""
    first = spare(server)
    server.send(Ask())
    assert server.receive(State).kernels == ()
    kernel = server.fork(env={**server.env, "MINE": "1"}, cwd=str(tmp_path), umask=0o027)
    assert kernel.process.pid == first
    client = kernel.connect()
    told = client.execute("import json, os; print(json.dumps([os.environ['MINE'], os.getcwd(), os.umask(0)]))").text()
    assert json.loads(told) == ["1", str(tmp_path), 0o027]
    assert client.execute("[In[0], len(In), len(Out), _]").result == "['', 3, 0, '']"
    assert spare(server) != first
    server.send(Signal(first, signal.SIGKILL))
    assert server.exit_code(kernel) == -signal.SIGKILL


def test_it_has_nothing_of_the_template_open(server: ForkServer) -> None:
    """While it waits it does not hold the owner's socket: whose end is the end of the template."""
    pid = spare(server)
    theirs = {str(entry.readlink()) for entry in Path(f"/proc/{server.process.pid}/fd").iterdir()}
    sockets = {name for name in theirs if name.startswith("socket:")}
    assert len(sockets) == 2

    def held() -> set[str]:
        return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()} & sockets

    until(lambda: not held(), "it holds a socket of the template")
    kernel = server.fork()
    assert kernel.process.pid == pid
    assert kernel.connect().execute("6 * 7").result == "42"


def test_one_that_has_ended_is_replaced(server: ForkServer) -> None:
    """Killed while it waits, it is no kernel's end that is told; the next kernel is another one."""
    first = spare(server)
    os.kill(first, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(first), "it was not reaped")
    second = spare(server)
    os.kill(second, signal.SIGKILL)
    until(lambda: not is_running(second))  # perhaps it is not reaped yet when it is asked for
    kernel = ForkedKernel(server, "ipc")
    server.ask_for(kernel)
    answer = server.receive(Forked, id=kernel.folder.name)
    assert answer.pid not in (first, second)
    server.answers.insert(0, answer)
    assert server.forked(kernel).connect().execute("6 * 7").result == "42"
    assert not [each for each in server.answers if getattr(each, "pid", None) in (first, second)]


@pytest.mark.parametrize("end", ["owner", "retired", "killed"])
def test_it_ends_with_the_template(server: ForkServer, end: str) -> None:
    """When the owner is gone, has retired the template, or somebody has killed it, nothing of it is left."""
    pid = spare(server)
    actions: dict[str, Any] = {
        "owner": server.leave,
        "retired": lambda: server.send(Retire()),
        "killed": server.process.kill,
    }
    actions[end]()
    until(lambda: not is_running(pid), "it still waits")
    server.process.wait(20)


def test_a_refused_request_leaves_it(server: ForkServer, tmp_path: Path) -> None:
    """A folder that is not there, or another environment, costs nothing; a stale template forks no more of them."""
    pid = spare(server)
    for options in ({"cwd": "/no/such/folder"}, {"env": {**server.env, "PYTHONHASHSEED": "1"}}):
        kernel = ForkedKernel(server, "ipc")
        server.ask_for(kernel, **options)
        server.receive(Refused, id=kernel.folder.name)
        assert is_running(pid)
    (tmp_path / "new.py").touch()
    kernel = ForkedKernel(server, "ipc")
    server.ask_for(kernel)
    assert server.receive(Refused, id=kernel.folder.name).reason is RefusalReason.STALE
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid))
    process = psutil.Process(server.process.pid)
    server.send(Ask())
    server.receive(State)
    assert process.children() == []
