"""Interrupts: they stop whatever a cell does, by signal and by message, and never the next cell or the kernel."""

from __future__ import annotations

import random
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.wire import Exchange, KernelProcess, WireClient

    Interrupt = Callable[[WireClient], None]
    Start = Callable[..., KernelProcess]


def by_signal(client: WireClient) -> None:
    """Interrupt as Ctrl-C in a terminal does."""
    client.kernel.interrupt()


def by_message(client: WireClient) -> None:
    """Interrupt as our front ends do."""
    exchange = client.ask(MessageType.INTERRUPT_REQUEST, channel=Channel.CONTROL)
    assert exchange.content == {"status": "ok"}


BOTH = pytest.mark.parametrize("interrupt", [by_signal, by_message])

BLOCKING = {
    "bytecode": "while True: pass",
    "bytecode in a function": "def spin():\n    x = 0\n    while True: x += 1\nspin()",
    "sleep": "import time; time.sleep(60)",
    "await": "import asyncio; await asyncio.sleep(60)",
    "await a future": "import asyncio; await asyncio.get_running_loop().create_future()",
    "await a task": "import asyncio; await asyncio.create_task(asyncio.sleep(60))",
    "await a thread": "import asyncio, time; await asyncio.to_thread(time.sleep, 0.7); await asyncio.sleep(60)",
    "blocking in a background task": (
        "import asyncio, time\nasync def block(): time.sleep(60)\nt = asyncio.create_task(block())\n"
        "await asyncio.sleep(60)"
    ),
    "printing in a background task": (
        "import asyncio\nasync def flood():\n    while True: print(1, end='')\nt = asyncio.create_task(flood())\n"
        "await asyncio.sleep(60)"
    ),
    "short awaits": "import asyncio\nwhile True: await asyncio.sleep(0)",
    "blocking after an await": "import asyncio, time; await asyncio.sleep(0); time.sleep(60)",
    "computing after an await": "import asyncio; await asyncio.sleep(0)\nwhile True: pass",
    "blocking in a task": (
        "import asyncio, time\nasync def block(): time.sleep(60)\nawait asyncio.create_task(block())"
    ),
    "event": "import threading; threading.Event().wait()",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "queue": "import queue; queue.Queue().get()",
    "future": "from concurrent.futures import Future; Future().result()",
    "join": (
        "import threading; e = threading.Event(); t = threading.Thread(target=e.wait, daemon=True); t.start()\n"
        "try: t.join()\nfinally: e.set()"
    ),
    "socket": "import socket; pair = socket.socketpair(); pair[0].recv(1)",
    "select": "import select, os; r, w = os.pipe(); select.select([r], [], [])",
    "subprocess.run": "import subprocess; subprocess.run(['sleep', '60'])",
    "Popen.wait": "import subprocess; subprocess.Popen(['sleep', '60']).wait()",
    "os.system": "import os; os.system('echo started; sleep 60')",
    "command": "!echo started; sleep 60",
    "bash": "%%bash\necho started; sleep 60",
    "prints": "while True: print(1, end='')",
    "prints and flushes": "while True: print(1, end='', flush=True)",
    "displays": "while True: display(1)",
    "import": "import sys, time, types\nsys.path.insert(0, FOLDER)\nimport slow_module",
    "repr": "import time\nclass Slow:\n    def __repr__(self): time.sleep(60)\nSlow()",
    "hook of IPython": (
        "import time\nhooks = get_ipython().events\ndef nap(*_):\n    hooks.unregister('post_run_cell', nap)\n"
        "    time.sleep(60)\nhooks.register('post_run_cell', nap)"
    ),
    "except Exception": ("import time\nwhile True:\n    try: time.sleep(60)\n    except Exception: print('swallowed')"),
    "asyncio timeout": "import asyncio\nasync with asyncio.timeout(60): await asyncio.sleep(60)",
    "task group": ("import asyncio\nasync with asyncio.TaskGroup() as g:\n    g.create_task(asyncio.sleep(60))"),
    "anyio": "import anyio\nasync with anyio.create_task_group() as g:\n    g.start_soon(anyio.sleep, 60)",
    "async generator": (
        "import asyncio\nasync def ticks():\n    while True:\n        yield 1\n        await asyncio.sleep(0.001)\n"
        "async for _ in ticks(): pass"
    ),
    "user expression": "",
}
"""What a cell may be doing when it is interrupted."""


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a module whose import takes a minute."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "slow_module.py").write_text("import time; time.sleep(60)")
    return str(folder)


def begin(client: WireClient, code: str, **options: object) -> Exchange:
    """Start a cell and wait until its code runs, so that the interrupt comes while it does."""
    if code.startswith("%%"):
        cell = client.send_code(code, **options)
    else:
        cell = client.send_code(f"print('begun')\n{code}", **options)
        client.wait_for_text(cell, "begun")
    if "echo started" in code:  # a shell that has not started its command yet may swallow the signal
        client.wait(lambda: _sleeps(client.kernel), "the command's start")
    return cell


def _sleeps(kernel: KernelProcess) -> bool:
    """Tell whether a descendant of the kernel's process sleeps."""
    with suppress(psutil.NoSuchProcess):
        return any(child.name() == "sleep" for child in psutil.Process(kernel.process.pid).children(recursive=True))
    return False


@BOTH
@pytest.mark.parametrize("name", BLOCKING)
def test_whatever_a_cell_does_is_stopped(client: WireClient, slow_folder: str, name: str, interrupt: Interrupt) -> None:
    """The cell ends with KeyboardInterrupt, shown once and named in the reply, and the kernel goes on (R21, R22)."""
    client.execute(f"FOLDER = {slow_folder!r}")
    options = {"user_expressions": {"x": "__import__('time').sleep(60)"}} if name == "user expression" else {}
    cell = begin(client, BLOCKING[name], **options)
    interrupt(client)
    client.finish(cell)
    assert cell.types[-1] == "idle"
    assert "swallowed" not in cell.text()
    assert client.execute("'fine'").result == "'fine'"


@BOTH
@pytest.mark.parametrize("mode", ["", "# thread\n"])
def test_no_lock_is_kept_by_what_was_interrupted(client: WireClient, mode: str, interrupt: Interrupt) -> None:
    """Code that takes and gives back a condition's lock, over and over, is stopped; others get the lock then."""
    client.execute(
        "import threading\ncondition = threading.Condition()\n"
        "def take():\n    taken.append(condition.acquire(timeout=0.5) and not condition.release())\n"
        "def is_free():\n    global taken\n    taken = []\n"
        "    other = threading.Thread(target=take); other.start(); other.join()\n    return taken[0]\n"
    )
    for _ in range(12):
        cell = client.send_code(f"{mode}print('begun')\nwhile True:\n    with condition: sum(range(100))")
        client.wait_for_text(cell, "begun")
        interrupt(client)
        client.finish(cell)
        assert cell.content["ename"] == "KeyboardInterrupt"
        assert client.execute("is_free()").result == "True"


@BOTH
def test_a_task_that_blocks_between_cells_is_stopped(client: WireClient, interrupt: Interrupt) -> None:
    """No cell runs, but a task of an earlier one holds the main thread: the interrupt ends it and cells run again."""
    first = client.execute(
        "import asyncio, time\nasync def block():\n    await asyncio.sleep(0)\n    print('holding')\n"
        "    time.sleep(60)\nt = asyncio.create_task(block())"
    )
    client.wait_for_text(first, "holding")
    interrupt(client)
    assert client.execute("'fine'").result == "'fine'"
    assert client.execute("await t").content["ename"] == "KeyboardInterrupt"


def test_a_loop_of_commands_is_stopped_by_message(client: WireClient) -> None:
    """os.system makes Python deaf to SIGINT while the command runs: the interrupt counts when it returns."""
    cell = begin(client, "import os\nwhile True: os.system('echo started; sleep 60')")
    by_message(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


def test_an_interrupt_that_was_ignored_is_not_taken_for_a_later_one(client: WireClient) -> None:
    """After a command that ate an interrupt, the next cell's interrupt by signal is not mistaken for the eaten one."""
    cell = begin(client, "import os; os.system('echo started; sleep 60')")
    by_message(client)
    client.finish(cell)
    cell = begin(client, "import time; time.sleep(60)")
    by_signal(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


def test_a_handler_of_the_users_own_gets_the_signal(client: WireClient) -> None:
    """Code that handles SIGINT itself, to stop when it suits, is not interrupted beside it."""
    cell = begin(
        client,
        "import signal, time\nstop = []\n"
        "ours = signal.signal(signal.SIGINT, lambda *_: stop.append(1)); print('ready')\n"
        "try:\n    while not stop: time.sleep(0.01)\n    time.sleep(0.05); print('stopped well')\n"
        "finally: signal.signal(signal.SIGINT, ours)",
    )
    client.wait_for_text(cell, "ready")
    by_message(client)
    assert client.finish(cell).content["status"] == "ok"
    assert "stopped well" in cell.text()
    cell = begin(client, "time.sleep(60)")
    by_message(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("code", ["x = 3 ** (10 ** 8)", "import re; re.match('(a+)+$', 'a' * 60 + 'b')"])
def test_c_code_that_holds_the_gil_is_stopped_by_a_signal(client: WireClient, code: str) -> None:
    """A big power and a hopeless pattern look for signals themselves; no message could reach them."""
    cell = begin(client, f"import time; time.sleep(0.1)\n{code}")
    by_signal(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


@BOTH
def test_an_interrupt_is_shown_as_keyboardinterrupt(client: WireClient, interrupt: Interrupt) -> None:
    """One error on iopub with IPython's traceback, the same in the reply, whether the cell blocks or awaits (R21)."""
    for code in ("import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"):
        cell = begin(client, code)
        interrupt(client)
        client.finish(cell)
        assert cell.error["ename"] == cell.content["ename"] == "KeyboardInterrupt"
        assert cell.error["traceback"] == cell.content["traceback"]
        text = re.sub(r"\x1b\[[0-9;]*m", "", "".join(cell.error["traceback"]))
        assert "sleep(60)" in text
        assert "cobnut_kernel" not in text


@pytest.mark.parametrize("wait", ["time.sleep(60)", "await asyncio.sleep(60)"])
@pytest.mark.parametrize("mode", ["", "# thread\n"])
def test_an_interrupt_again_and_again_does_not_cost_the_error(start_kernel: Start, mode: str, wait: str) -> None:
    """Ctrl-C is pressed until the reply is there, also while what draws the error is imported: it is shown, once."""
    client = start_kernel().connect()
    exchange = client.send_code(f"{mode}import asyncio, time; print('begun'); {wait}")
    client.wait_for_text(exchange, "begun\n")
    while not exchange.replies:
        client.kernel.interrupt()
        client.receive(0.003)
    client.finish(exchange)
    assert exchange.error["ename"] == "KeyboardInterrupt"
    assert wait in re.sub(r"\x1b\[[\d;]*m", "", "\n".join(exchange.error["traceback"]))
    assert (exchange.text("stdout"), exchange.text("stderr")) == ("begun\n", "")
    assert client.execute("'next'").result == "'next'"
    assert client.kernel.stderr == ""


@pytest.mark.parametrize("mode", ["", "# thread\n"])
def test_what_python_calls_around_a_fork_is_not_interrupted(client: WireClient, mode: str) -> None:
    """Some of it takes locks and gives them back; the interrupt comes as soon as the fork is over."""
    cell = client.send_code(
        f"{mode}from cobnut_kernel.runtime.ending.signals import Signals\nimport time\nSignals.hold()\n"
        "print('begun')\nend = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass\n"
        "print('over')\nSignals.go_on()\nwhile True: pass"
    )
    client.wait_for_text(cell, "begun\n")
    by_signal(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"
    assert cell.text() == "begun\nover\n"


@BOTH
def test_code_may_catch_the_interrupt_and_go_on(client: WireClient, interrupt: Interrupt) -> None:
    """The first interrupt is the code's own to handle, the second is delivered again (R24)."""
    cell = begin(
        client,
        "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('saved')\n"
        "try: await __import__('asyncio').sleep(60)\nexcept KeyboardInterrupt: print('saved again')\n"
        "time.sleep(60)",
    )
    interrupt(client)
    client.wait_for_text(cell, "saved\n")
    interrupt(client)
    client.wait_for_text(cell, "saved again")
    interrupt(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


@BOTH
def test_a_cell_that_caught_its_interrupt_ends_well(client: WireClient, interrupt: Interrupt) -> None:
    """What catches it, awaiting or blocking, goes on to its result, and cancels nothing later."""
    for code in ("time.sleep(60)", "await asyncio.sleep(60)"):
        cell = begin(
            client, f"import asyncio, time\ntry: {code}\nexcept KeyboardInterrupt: pass\nawait asyncio.sleep(0)\n7"
        )
        interrupt(client)
        assert client.finish(cell).result == "7"
    assert client.execute("await asyncio.sleep(0.01); asyncio.current_task().cancelling()").result == "0"


def test_interrupts_that_come_together_leave_no_cancellation_behind(client: WireClient) -> None:
    """Several at once, of which an inner task swallows some, do not cancel a task group of the next cell."""
    cell = begin(
        client,
        "import asyncio\nasync def stubborn():\n    try: await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError: print('swallowed'); await asyncio.sleep(0.05)\n"
        "await asyncio.create_task(stubborn()); 1",
    )
    for _ in range(3):
        by_signal(client)
    client.finish(cell)
    assert client.execute("asyncio.current_task().cancelling()").result == "0"
    group = "async def fail(): raise ValueError\nasync with asyncio.TaskGroup() as g: g.create_task(fail())"
    assert client.execute(group).content["ename"] == "ExceptionGroup"


def test_a_cancellation_of_the_users_own_stays_one(client: WireClient) -> None:
    """Awaiting a task that was cancelled is CancelledError, not an interrupt."""
    code = "import asyncio\nt = asyncio.create_task(asyncio.sleep(60)); t.cancel()\nawait t"
    assert client.execute(code).content["ename"] == "CancelledError"


@BOTH
def test_an_interrupt_while_idle_does_nothing(client: WireClient, interrupt: Interrupt) -> None:
    """The kernel lives, the next cell runs to its end, a sleeping child of an earlier cell too (R28)."""
    client.execute("x = 1")
    for _ in range(3):
        interrupt(client)
    assert client.execute("import time; time.sleep(0.05); x").result == "1"


def test_a_message_while_idle_leaves_child_processes_alone(client: WireClient) -> None:
    """A server that an earlier cell has started goes on."""
    client.execute("import subprocess; child = subprocess.Popen(['sleep', '60'])")
    by_message(client)
    assert client.execute("import time; time.sleep(0.05); child.poll() is None").result == "True"
    client.execute("child.kill(); child.wait()")


@BOTH
def test_children_of_the_cell_are_interrupted_too(client: WireClient, interrupt: Interrupt) -> None:
    """A child that runs in the cell's foreground gets SIGINT: none is left behind (R27)."""
    cell = begin(client, "import subprocess; child = subprocess.Popen(['sleep', '60']); print('child'); child.wait()")
    client.wait_for_text(cell, "child")
    interrupt(client)
    client.finish(cell)
    assert client.execute("child.wait(10) is not None").result == "True"


@pytest.mark.parametrize(
    "interrupt", [by_signal, lambda c: c.request(MessageType.INTERRUPT_REQUEST, {}, Channel.CONTROL)]
)
@pytest.mark.parametrize(
    "code",
    ["import time; time.sleep(0.004); {n}", "import asyncio; await asyncio.sleep(0.004); {n}", "{n}", "1 / 0",
     "print('x' * 99)"],
)  # fmt: skip
def test_interrupts_at_the_end_of_cells_hurt_no_other_cell(client: WireClient, code: str, interrupt: Interrupt) -> None:
    """30 cells, each interrupted at about its end: each is answered once, and the next one, never aimed at, is unhurt.

    R23: whether an interrupt still finds its cell is chance, so a cell may end either way.
    """
    pause = random.Random(len(code))
    for number in range(30):
        cell = client.send_code(code.format(n=number))
        client.wait(lambda: cell.of_type(MessageType.EXECUTE_INPUT), "the cell's input")  # noqa: B023 - at once
        client.receive(pause.uniform(0, 0.006))
        interrupt(client)
        client.finish(cell)
        assert cell.content["status"] in ("ok", "error")
        assert len(cell.of_type(MessageType.ERROR)) <= 1
        asked = client.request(MessageType.KERNEL_INFO_REQUEST, {}, Channel.CONTROL)
        client.finish(asked)  # what was sent before it has been handled
        assert client.execute("'unhurt'").result == "'unhurt'"


def test_a_kernel_in_another_process_group_is_interrupted_by_message(
    start_kernel: Callable[..., KernelProcess],
) -> None:
    """Where the kernel leads no group, the message still stops the cell, and nobody else gets a signal."""
    run = "import subprocess, sys; subprocess.call([sys.executable, '-P', '-m', 'cobnut_kernel', '-f', sys.argv[1]])"
    client = start_kernel([sys.executable, "-c", run]).connect()
    cell = begin(client, "import os, time; assert os.getpgrp() != os.getpid(); time.sleep(60)")
    by_message(client)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"
    assert client.execute("'fine'").result == "'fine'"
