"""The end of a kernel: by request, by signal, with its owner; whatever a cell does, and nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
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


def test_big_numbers_do_not_keep_a_kernel(start_kernel: Start) -> None:
    """A power that holds the GIL for a long time is stopped by SIGTERM."""
    kernel = start_kernel()
    begin(kernel.connect(), "import time; time.sleep(0.1)\nx = 3 ** (10 ** 8)")
    kernel.process.terminate()
    assert_gone(kernel)


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
    cell = begin(client, SLEEPING)
    waiting = [client.send_code("1") for _ in range(5)]
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    for exchange in waiting:
        assert client.finish(exchange).content == {"status": "aborted"}
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"
    assert_gone(kernel)


def test_what_was_printed_last_arrives(start_kernel: Start) -> None:
    """Output, result and reply of a cell that ends its kernel are all sent before the sockets close."""
    kernel = start_kernel()
    client = kernel.connect()
    cell = client.execute("for i in range(20000): print(i)\nexit()")
    assert cell.text() == "".join(f"{i}\n" for i in range(20000))
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
    wait_until(lambda: not is_running(pid), "the kernel's end")


# ── what user code has left to do ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("doing", ["1", SLEEPING, REFUSING], ids=["idle", "sleeping", "refusing"])
def test_exit_functions_run_once_in_the_main_thread(start_kernel: Start, doing: str) -> None:
    """What a cell has registered with atexit runs also when the next one does not end; it prints to the log."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute(
        "import atexit, threading\n"
        "atexit.register(lambda: print('bye from', threading.current_thread() is threading.main_thread()))"
    )
    begin(client, doing)
    stop(kernel, client)
    assert kernel.stderr.count("bye from True") == kernel.stderr.count("bye") == 1


def test_an_exit_function_that_takes_too_long_is_cut_short_and_named(start_kernel: Start) -> None:
    """When the time is over the log shows where it was, and those behind it run still (R51)."""
    kernel = start_kernel(program(budget=", Budget(atexit=0.2)"))
    client = kernel.connect()
    client.execute(
        "import atexit, time\n"
        "@atexit.register\ndef last(): print('the last one ran')\n"
        "@atexit.register\ndef slow(): time.sleep(600)\n"
        "@atexit.register\ndef first(): print('the first one ran')"
    )
    stop(kernel, client)
    assert "Exception ignored in atexit callback" in kernel.stderr
    assert "<function slow" in kernel.stderr
    assert "in slow" in kernel.stderr
    assert "The time for atexit functions is over." in kernel.stderr
    assert kernel.stderr.count("the last one ran") == kernel.stderr.count("the first one ran") == 1


@pytest.mark.parametrize(
    "slow",
    [
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)",
        "while True:\n        try: time.sleep(600)\n        except BaseException: pass",
    ],
    ids=["in C code", "refusing"],
)
def test_an_exit_function_that_cannot_be_stopped_is_left(start_kernel: Start, slow: str) -> None:
    """The process ends without the others, says where it was, and ends its children all the same."""
    kernel = start_kernel(program(budget=", Budget(atexit=0.1)"))
    client = kernel.connect()
    client.execute(f"import atexit, time\n@atexit.register\ndef slow():\n    {slow}")
    child = int(client.execute("import subprocess; subprocess.Popen(['sleep', '600']).pid").result)
    stop(kernel, client)
    assert "did not get past its atexit functions" in kernel.stderr
    assert "in slow" in kernel.stderr
    assert not is_running(child)


def test_an_exit_function_that_fails_holds_up_nobody(start_kernel: Start) -> None:
    """Its error is shown, also one that would end a program, and the others run."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute(
        "import atexit, sys\natexit.register(print, 'the last one ran')\n"
        "atexit.register(sys.exit, 3)\natexit.register(lambda: 1 / 0)"
    )
    stop(kernel, client)
    assert "ZeroDivisionError" in kernel.stderr
    assert "the last one ran" in kernel.stderr


def test_code_that_lets_no_thread_run_does_not_keep_a_kernel(start_kernel: Start) -> None:
    """C code that holds the GIL at the end is ended by a thread that needs none; its stack is shown."""
    before = "import atexit; watchdog._BACKSTOP = 0.2"
    kernel = start_kernel(program(before, budget=", Budget(0.1, 0.1, 0.1, 0.1)"))
    client = kernel.connect()
    client.execute("import atexit\n@atexit.register\ndef slow(): sum(range(10 ** 12))")
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert kernel.wait() == 1
    assert kernel.left_over == []
    assert "in slow" in kernel.stderr


def test_a_thread_left_behind_is_named(start_kernel: Start) -> None:
    """The interpreter would wait for a thread that is no daemon; the kernel does not, and says what held it."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute("import threading, time; threading.Thread(target=time.sleep, args=(600,), name='holder').start()")
    stop(kernel, client)
    assert "The thread 'holder' did not end with the kernel; it was here:" in kernel.stderr


def test_a_cell_that_cannot_be_stopped_is_named(start_kernel: Start) -> None:
    """The log says where it was, without the kernel's own frames."""
    kernel = start_kernel()
    client = kernel.connect()
    begin(client, REFUSING)
    stop(kernel, client)
    assert "A cell did not end when the kernel stopped; it was here:" in kernel.stderr
    assert "in <module>" in kernel.stderr
    assert "lifetime.py" not in kernel.stderr


def test_a_task_that_cannot_be_cancelled_is_named(start_kernel: Start) -> None:
    """The log says where it was."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute(
        "import asyncio\nasync def stay():\n    while True:\n        try: await asyncio.sleep(600)\n"
        "        except BaseException: pass\n"
        "task = asyncio.create_task(stay(), name='the stayer'); await asyncio.sleep(0.01)"
    )
    stop(kernel, client)
    assert "The task 'the stayer' did not end with the kernel; it was here:" in kernel.stderr
    assert "in stay" in kernel.stderr


def test_pools_that_do_nothing_end_without_a_word(start_kernel: Start) -> None:
    """Pools of threads and of processes are let go in the interpreter's order, before atexit functions join them."""
    kernel = start_kernel()
    client = kernel.connect()
    client.execute(
        "import multiprocessing, atexit\n"
        "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor\n"
        "pools = [ThreadPoolExecutor(2), ProcessPoolExecutor(2, multiprocessing.get_context('spawn'))]\n"
        "for pool in pools: pool.submit(abs, 1).result()\n"
        "atexit.register(lambda: print('atexit functions ran'))"
    )
    stop(kernel, client)
    assert kernel.stderr == "atexit functions ran\n"


def test_a_child_that_refuses_to_end_is_killed_and_named(start_kernel: Start) -> None:
    """SIGTERM, the grace, SIGKILL, and a line in the log (R51)."""
    kernel = start_kernel(program(budget=", Budget(children=0.1)"))
    client = kernel.connect()
    client.execute(
        "import subprocess, sys\n"
        "code = 'import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE); child.stdout.readline()"
    )
    child = int(client.execute("child.pid").result)
    stop(kernel, client)
    assert f"The child process {child} (" in kernel.stderr
    assert "it was killed" in kernel.stderr
    assert not is_running(child)


def test_what_has_left_the_kernels_tree_lives_on(start_kernel: Start) -> None:
    """A daemon, or what a shell has left in the background, is no child any more: it outlives the kernel."""
    kernel = start_kernel()
    client = kernel.connect()
    code = "import subprocess; int(subprocess.run(['sh', '-c', 'sleep 600 >&2 & echo $!'], capture_output=True).stdout)"
    code = code.replace("capture_output=True", "stdout=subprocess.PIPE")
    background = int(client.execute(code).result)
    stop(kernel, client)
    assert is_running(background)
    os.kill(background, signal.SIGKILL)


def test_shared_memory_that_is_left_is_removed(start_kernel: Start) -> None:
    """The process that multiprocessing has for it outlives the kernel long enough to clean up."""
    kernel = start_kernel()
    client = kernel.connect()
    name = client.execute(
        "from multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=10)\nmemory.name"
    ).result.strip("'")
    path = Path("/dev/shm") / name
    assert path.exists()
    stop(kernel, client)
    wait_until(lambda: not path.exists(), "the end of the shared memory")
