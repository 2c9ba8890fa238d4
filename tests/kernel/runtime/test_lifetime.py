"""The end of a kernel: by request, by signal, with its owner; whatever a cell does, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.kernel.wire import wait_until

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.wire import Exchange, KernelProcess, WireClient

    Start = Callable[..., KernelProcess]

DOING = {
    "nothing": "",
    "sleeping": "import time; time.sleep(60)",
    "computing": "while True: pass",
    "awaiting": "import asyncio; await asyncio.sleep(60)",
    "refusing": "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
    "C code": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)",
    "unreaped child": "import subprocess, time; children = [subprocess.Popen(['true'])]; time.sleep(60)",
    "living child": "import subprocess; subprocess.run(['sleep', '60'])",
}
"""What a cell may be doing when its kernel is to end."""


def begin(client: WireClient, code: str) -> Exchange | None:
    """Start a cell and wait until its code runs; where there is none, none."""
    if not code:
        return None
    cell = client.send_code(f"print('begun')\n{code}")
    client.wait_for_text(cell, "begun")
    return cell


def assert_gone(kernel: KernelProcess) -> None:
    """Assert that the process has ended well and that no file is left."""
    assert kernel.wait() == 0, kernel.describe()
    assert kernel.left_over == []


@pytest.mark.parametrize("doing", DOING)
def test_a_kernel_ends_by_request(start_kernel: Start, doing: str) -> None:
    """The asking client gets its reply and all hear of it; then the process and its files are gone (R50, R51)."""
    kernel = start_kernel()
    client, other = kernel.connect(), kernel.connect()
    begin(client, DOING[doing])
    exchange = client.ask(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert exchange.reply.msg_type == "shutdown_reply"
    assert exchange.content == {"status": "ok", "restart": False}
    assert exchange.types == ["busy", "shutdown_reply", "idle"]
    assert exchange.only(MessageType.SHUTDOWN_REPLY) == {"status": "ok", "restart": False}
    other.wait(lambda: other.strays["shutdown_reply"], "the shutdown_reply for all")
    assert_gone(kernel)


@pytest.mark.parametrize("doing", DOING)
@pytest.mark.parametrize("signum", [signal.SIGTERM])
def test_a_kernel_ends_by_signal(start_kernel: Start, doing: str, signum: signal.Signals) -> None:
    """SIGTERM ends the process whatever a cell does, and its files go with it (R53)."""
    kernel = start_kernel()
    begin(kernel.connect(), DOING[doing])
    kernel.process.send_signal(signum)
    assert_gone(kernel)


def test_a_kernel_ends_when_its_terminal_is_closed(start_kernel: Start) -> None:
    """SIGHUP ends the process as SIGTERM does."""
    kernel = start_kernel()
    begin(kernel.connect(), DOING["sleeping"])
    kernel.process.send_signal(signal.SIGHUP)
    assert_gone(kernel)


@pytest.mark.parametrize("doing", ["nothing", "sleeping", "refusing"])
def test_a_kernel_ends_with_its_owner(start_kernel: Start, doing: str) -> None:
    """When the process named by JPY_PARENT_PID is killed, the kernel ends and leaves nothing (R54)."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        kernel = start_kernel(env={"JPY_PARENT_PID": str(owner.pid)})
        begin(kernel.connect(), DOING[doing])
        owner.kill()
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


def test_big_numbers_do_not_keep_a_kernel(start_kernel: Start) -> None:
    """A power that holds the GIL for a long time is stopped by SIGTERM."""
    kernel = start_kernel()
    begin(kernel.connect(), "import time; time.sleep(0.1)\nx = 3 ** (10 ** 8)")
    kernel.process.terminate()
    assert_gone(kernel)


def test_a_thread_left_behind_does_not_keep_a_kernel(start_kernel: Start) -> None:
    """The interpreter would wait for a thread that is no daemon; the kernel does not, and says what held it."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute("import threading, time; threading.Thread(target=time.sleep, args=(600,), name='holder').start()")
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert_gone(kernel)
    assert "did not end by itself" in kernel.stderr


def test_a_restart_keeps_the_connection_file(start_kernel: Start) -> None:
    """The process that follows listens at the same place (R52)."""
    kernel = start_kernel()
    exchange = kernel.connect().ask(MessageType.SHUTDOWN_REQUEST, {"restart": True}, Channel.CONTROL)
    assert exchange.content == {"status": "ok", "restart": True}
    assert exchange.only(MessageType.SHUTDOWN_REPLY)["restart"] is True
    assert kernel.wait() == 0
    assert kernel.left_over == ["kernel.json"]


def test_shutdown_is_understood_on_the_shell_channel_too(start_kernel: Start) -> None:
    """As clients of before protocol 5.4 send it."""
    kernel = start_kernel()
    exchange = kernel.connect().ask(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.SHELL)
    assert exchange.content["status"] == "ok"
    assert_gone(kernel)


def test_cells_that_wait_are_refused_at_the_end(start_kernel: Start) -> None:
    """Everyone who has sent a cell gets an answer before the kernel is gone."""
    kernel = start_kernel()
    client = kernel.connect()
    cell = begin(client, DOING["sleeping"])
    waiting = [client.send_code("1") for _ in range(5)]
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    for exchange in waiting:
        assert client.finish(exchange).content == {"status": "aborted"}
    assert cell is not None
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"
    assert_gone(kernel)


def test_what_was_printed_last_arrives(start_kernel: Start) -> None:
    """Output, result and reply of a cell that ends its kernel are all sent before the sockets close."""
    kernel = start_kernel()
    client = kernel.connect()
    cell = client.execute("for i in range(20000): print(i)\nexit()")
    assert cell.text() == "".join(f"{i}\n" for i in range(20000))
    assert_gone(kernel)


def test_exit_functions_run(start_kernel: Start) -> None:
    """What a cell has registered with atexit runs once, and finds the process's own streams."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute("import atexit; atexit.register(lambda: print('bye from the kernel'))")
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert_gone(kernel)
    assert kernel.stderr.count("bye from the kernel") == 1


def test_an_interrupt_while_the_kernel_ends_is_no_noise(start_kernel: Start) -> None:
    """Ctrl-C again and again until the process is gone: no traceback, and the end is a good one."""
    kernel = start_kernel()
    begin(kernel.connect(), DOING["sleeping"])
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


def test_a_kernel_started_as_a_plain_child_ends_alone(start_kernel: Start) -> None:
    """A wrapper that starts the kernel and leads its group hears nothing of the kernel's end (jupyter_console #221)."""
    kernel_command = "[sys.executable, '-P', '-m', 'cobnut_kernel', '-f', sys.argv[1]]"
    run = f"import subprocess, sys; sys.exit(subprocess.call({kernel_command}))"
    kernel = start_kernel([sys.executable, "-c", run])
    client = kernel.connect()
    pid = int(client.execute("import os; os.getpid()").result)
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert_gone(kernel)
    wait_until(lambda: not _exists(pid), "the kernel's end")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
