"""The signals of a kernel's process, requests to end at odd moments, and the policy for terminal and owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.kernel.endings import REFUSING, SLEEPING, assert_gone, begin, program, stop
from tests.kernel.leftovers import is_running
from tests.kernel.wire import wait_until

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.wire import KernelProcess

    Start = Callable[..., KernelProcess]


def test_an_interrupt_while_the_kernel_ends_is_no_noise(start_kernel: Start) -> None:
    """Ctrl-C again and again until the process is gone: no traceback, and the end is a good one."""
    kernel = start_kernel()
    begin(kernel.connect(), SLEEPING)
    kernel.process.terminate()

    def ended() -> bool:
        if kernel.process.poll() is None:
            kernel.interrupt()
        return kernel.process.poll() is not None

    wait_until(ended, "the kernel's end")
    assert_gone(kernel)
    assert kernel.stderr == ""


def test_signals_survive_asyncios_handlers(start_kernel: Start) -> None:
    """User code that hands signals to its event loop takes Python's wake-up descriptor: SIGTERM ends us still."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute(
        "import asyncio, signal; asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print, 'usr1')"
    )
    kernel.process.send_signal(signal.SIGUSR1)
    client.wait(lambda: "usr1" in "".join(e.text() for e in client.exchanges.values()), "the user's own handler")
    kernel.process.terminate()
    assert_gone(kernel)


def test_sigterm_again_ends_a_kernel_at_once(start_kernel: Start) -> None:
    """Whoever asks twice does not wait for atexit functions; files and children go still."""
    kernel = start_kernel(program(budget=", Budget(atexit=600)"))
    client = kernel.connect()
    client.execute("import atexit, time; atexit.register(lambda: (print('it waits', flush=True), time.sleep(600)))")
    child = int(client.execute("import subprocess; subprocess.Popen(['sleep', '600']).pid").result)
    kernel.process.terminate()
    wait_until(lambda: "it waits" in kernel.stderr, "the atexit function")

    def ended() -> bool:
        kernel.process.terminate()
        return kernel.process.poll() is not None

    wait_until(ended, "the kernel's end")
    assert_gone(kernel)
    assert "SIGTERM came again" in kernel.stderr
    assert not is_running(child)


def test_sigterm_sent_to_process_and_group_is_one(start_kernel: Start) -> None:
    """`timeout` sends it twice in a row: what user code has to do at the end is done."""
    kernel = start_kernel()
    kernel.connect().execute("import atexit, time; atexit.register(lambda: (time.sleep(0.3), print('it was done')))")
    kernel.process.terminate()
    os.killpg(kernel.process.pid, signal.SIGTERM)
    assert_gone(kernel)
    assert "it was done" in kernel.stderr


def test_shutdown_is_answered_once_and_a_second_one_does_no_harm(start_kernel: Start) -> None:
    """Two clients may ask at the same time: the first has its reply, and the end is one."""
    kernel = start_kernel()
    client, other = kernel.connect(), kernel.connect()
    begin(client, SLEEPING)
    first = client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    for _ in range(3):
        other.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    client.finish(first)
    assert_gone(kernel)


@pytest.mark.parametrize("way", ["SIGTERM", "request"])
def test_a_kernel_ends_while_it_starts(start_kernel: Start, way: str) -> None:
    """A start that takes for ever, on a slow disk say, can be ended: shutdown is answered before the shell is there."""
    before = "import time; Kernel._make_shell = lambda *_: (last_words.say('starting'), time.sleep(600))"
    kernel = start_kernel(program(before))
    client = kernel.connect()
    wait_until(lambda: "starting" in kernel.stderr, "the beginning of the start")
    if way == "SIGTERM":
        kernel.process.terminate()
    else:
        client.ask(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert_gone(kernel)


def test_sigterm_before_the_kernel_runs_is_not_forgotten(start_kernel: Start) -> None:
    """Between the process's start and the kernel's the signal counts too, and the launcher's file goes."""
    before = "import os, signal; begin = Kernel.run\n"
    before += "Kernel.run = lambda kernel: (os.kill(os.getpid(), signal.SIGTERM), begin(kernel))"
    assert_gone(start_kernel(program(before)))


@pytest.mark.parametrize("way", ["SIGTERM", "request"])
def test_a_forked_kernel_ends_as_any_other(start_kernel: Start, way: str) -> None:
    """All of it works in a child of a process that had everything imported before, as fork servers make them."""
    before = "import os\npid = os.fork()\nif pid: sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    kernel = start_kernel(program(before))
    client = kernel.connect()
    pid = int(client.execute("import atexit, os; atexit.register(print, 'bye'); os.getpid()").result)
    assert pid != kernel.process.pid
    child = int(client.execute("import subprocess; subprocess.Popen(['sleep', '600']).pid").result)
    begin(client, REFUSING)
    if way == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
        assert_gone(kernel)
    else:
        stop(kernel, client)
    assert kernel.stderr.count("bye") == 1
    assert not is_running(child)


def test_a_kernel_that_cannot_start_says_why_and_ends(start_kernel: Start) -> None:
    """An address in use is no traceback, and the exit code tells that it has failed."""
    first = start_kernel(transport="tcp")
    first.connect()
    kernel = start_kernel(info=first.info.as_dict())
    assert kernel.wait() == 1
    assert "The kernel cannot listen" in kernel.stderr
    assert "Traceback" not in kernel.stderr
    assert first.connect().execute("1").result == "1"


def test_a_client_that_has_stopped_does_not_keep_a_kernel(start_kernel: Start) -> None:
    """What a subscriber does not take is waited for a moment only."""
    kernel = start_kernel()
    client = kernel.connect()
    subscriber = (
        "import os, signal, sys, zmq\nsocket = zmq.Context().socket(zmq.SUB)\nsocket.subscribe(b'')\n"
        "socket.rcvhwm = 1; socket.connect(sys.argv[1]); socket.recv()\nos.kill(os.getpid(), signal.SIGSTOP)"
    )
    with subprocess.Popen([sys.executable, "-c", subscriber, kernel.info.url(Channel.IOPUB)]) as stopped:
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
        client.execute("for _ in range(20): print('x' * 1_000_000)")
        stop(kernel, client)
        stopped.kill()


# ── owners and policies ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="nohup: the kernel would hear none")
def test_a_kernel_ends_when_its_terminal_is_closed(start_kernel: Start) -> None:
    """SIGHUP ends the process as SIGTERM does."""
    kernel = start_kernel()
    begin(kernel.connect(), SLEEPING)
    kernel.process.send_signal(signal.SIGHUP)
    assert_gone(kernel)


def test_a_kernel_whose_owner_is_gone_already_ends(start_kernel: Start) -> None:
    """An owner that died while the kernel was starting is missed, too."""
    owner = subprocess.Popen(["true"])
    owner.wait()
    assert_gone(start_kernel(env={"JPY_PARENT_PID": str(owner.pid)}))


def test_a_kernel_without_owner_stays(start_kernel: Start) -> None:
    """A kernel that nobody claims runs until it is asked to stop."""
    kernel = start_kernel(env={"JPY_PARENT_PID": ""})
    assert kernel.connect().execute("1").result == "1"
    assert kernel.process.poll() is None


WRAPPED = """
import os, subprocess, sys
from cobnut_kernel.runtime.ending.owner import OWNER_PIPE, name_pipe
reading, writing = os.pipe()
command = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-P", "-m", "cobnut_kernel", "-f", sys.argv[1]]
environ = {**os.environ, "JPY_PARENT_PID": "", OWNER_PIPE: name_pipe(reading)}
subprocess.Popen(command, env=environ, pass_fds=[reading], start_new_session=True).wait()
"""
"""An owner who starts a kernel by a shell that is between them."""


def test_a_kernel_behind_a_wrapper_ends_with_its_owner(start_kernel: Start) -> None:
    """Where the owner's process id says nothing, the end of his pipe does (R54)."""
    owner = start_kernel([sys.executable, "-c", WRAPPED])
    client = owner.connect()
    pid = int(client.execute("import os; os.getpid()").result)
    assert client.execute("'COBNUT_OWNER_FD' in os.environ").result == "False"
    owner.process.kill()
    wait_until(lambda: not is_running(pid), "the kernel's end")
    assert owner.left_over == []


@pytest.mark.parametrize("abandon", ["SIGHUP", "the owner's death"])
def test_a_kernel_that_is_kept_outlives_terminal_and_owner(start_kernel: Start, abandon: str) -> None:
    """The policy "keep" leaves a kernel at work; SIGTERM ends it as ever (R53)."""
    with subprocess.Popen(["sleep", "600"]) as owner:
        try:
            kernel = start_kernel(program(settings=", when_abandoned='keep'"), env={"JPY_PARENT_PID": str(owner.pid)})
            client = kernel.connect()
            cell = begin(client, "import time\nwhile True: time.sleep(0.01)")
            if abandon == "SIGHUP":
                kernel.process.send_signal(signal.SIGHUP)
            else:
                owner.kill()
            wait_until(lambda: "the kernel stays" in kernel.stderr, "the line in the log")
            assert not cell.replies
            kernel.process.terminate()
            assert_gone(kernel)
        finally:
            owner.kill()


def test_a_kernel_is_kept_for_a_time(start_kernel: Start) -> None:
    """The policy "keep" with a time ends a kernel that nobody has asked anything for so long."""
    kernel = start_kernel(program(settings=", when_abandoned='keep 0.3s'"))
    client = kernel.connect()
    client.execute("1")
    kernel.process.send_signal(signal.SIGHUP)
    assert_gone(kernel)
    assert "The kernel's terminal has hung up: the kernel ends 0.3 s after the last request." in kernel.stderr


def test_a_kernel_under_nohup_hears_no_hangup(start_kernel: Start) -> None:
    """A SIGHUP that was ignored at the start stays ignored, whatever the policy."""
    kernel = start_kernel(["nohup", sys.executable, "-P", "-m", "cobnut_kernel", "-f"])
    client = kernel.connect()
    client.execute("1")
    kernel.process.send_signal(signal.SIGHUP)
    assert client.execute("import signal; signal.getsignal(signal.SIGHUP) == signal.SIG_IGN").result == "True"
    stop(kernel, client)
