"""What a kernel answers while others ask, or cells run: comms, questions about code, subshells."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from kernel_client import KernelRecipe, RunningKernel
from table import Line, Row, Sample, Target, WorkFailed, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kernels import Size

INTERRUPT_LIMIT = 5.0
_ECHO = """
from comm import get_comm_manager
def echo(opened, _message):
    opened.on_msg(lambda message: opened.send(message["content"]["data"]))
get_comm_manager().register_target("echo", echo)
"""


def comm_echo(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Send many comm messages at once; each is sent back."""
    with RunningKernel(recipe) as kernel:
        kernel.run(_ECHO)
        kernel.client.send("comm_open", {"comm_id": "1", "target_name": "echo", "data": {}})
        _echo(kernel, 10)
        seconds = _echo(kernel, size.queued)
        return [Sample(size.queued / seconds)]


def _echo(kernel: RunningKernel, count: int) -> float:
    begun = time.perf_counter()
    expected = kernel.client.echoes + count
    for number in range(count):
        kernel.client.send("comm_msg", {"comm_id": "1", "data": {"number": number}})
    while kernel.client.echoes < expected:
        if not kernel.client.receive(5):
            raise WorkFailed(f"lost {expected - kernel.client.echoes} of {count}")
    return time.perf_counter() - begun


def completion(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Complete an attribute of a module: the kernel's first completion, a moment after its first cell, and later."""
    with RunningKernel(recipe) as kernel:
        kernel.run("pass")
        time.sleep(size.settle)
        first, *later = [_ask(kernel, "complete_request") for _ in range(max(2, size.trips // 15))]
        return [Sample(first * 1000), Sample(percentile(later, 50) * 1000)]


def questions_while_blocked(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Complete and inspect while a cell sleeps; who answers at once is asked five times."""
    with RunningKernel(recipe) as kernel:
        kernel.run("pass")
        for msg_type in ("complete_request", "inspect_request"):
            _ask(kernel, msg_type)
        samples: list[Sample] = []
        for msg_type in ("complete_request", "inspect_request"):
            cell = kernel.begin(f"import time; time.sleep({size.blocked})", size.settle / 4)
            times: list[float] = []
            while len(times) < 5 and sum(times) < size.blocked / 4:
                times.append(_ask(kernel, msg_type, size.blocked + 5))
            waited = "after the cell" if max(times) > size.blocked / 2 else ""
            samples.append(Sample(percentile(times, 50) * 1000, waited))
            kernel.follow(cell)
        return samples


def _ask(kernel: RunningKernel, msg_type: str, limit: float = 20) -> float:
    code = "import os; os.pa" if msg_type == "complete_request" else "str.join"
    asked = kernel.client.send(msg_type, {"code": code, "cursor_pos": len(code), "detail_level": 0})
    return kernel.wait_for_reply(asked, limit) - asked.sent


def interrupt_input(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Interrupt a cell that waits for an answer; the time ends with its reply."""
    with RunningKernel(recipe) as kernel:
        kernel.run("1/0")
        cell = kernel.begin("input()", size.settle, asking=True)
        sent = time.perf_counter()
        kernel.interrupt()
        replied = kernel.wait_for_reply(cell, INTERRUPT_LIMIT)
        return [Sample((replied - sent) * 1000, "" if cell.reply.get("status") == "error" else "without an error")]


def blocking_subshells(recipe: KernelRecipe, size: Size) -> Sequence[Sample]:
    """Let eight subshells block at the same time; the time ends with the last reply and idle."""
    with RunningKernel(recipe) as kernel:
        kernel.run("import time")
        subshells = [kernel.create_subshell() for _ in range(8)]
        kernel.follow(*[kernel.client.execute("pass", subshell=subshell) for subshell in subshells])
        cells = [kernel.client.execute("time.sleep(0.5)", subshell=subshell) for subshell in subshells]
        if not kernel.follow(*cells, limit=size.limit):
            raise WorkFailed("never")
        return [Sample(max(cell.last for cell in cells) - cells[0].sent)]


def interrupt_in_subshell(recipe: KernelRecipe, size: Size, *, code: str) -> Sequence[Sample]:
    """Interrupt a cell of a subshell while one of another subshell runs on; the time ends with its reply."""
    with RunningKernel(recipe) as kernel:
        subshell, other = kernel.create_subshell(), kernel.create_subshell()
        kernel.follow(kernel.client.execute("1/0", subshell=subshell))
        running = kernel.begin("import asyncio; await asyncio.sleep(30)", 0, subshell=other)
        cell = kernel.begin(code, size.settle, subshell=subshell)
        sent = time.perf_counter()
        kernel.interrupt_subshell(subshell)
        replied = kernel.wait_for_reply(cell, INTERRUPT_LIMIT)
        note = "the other too" if running.replied is not None else ""
        return [Sample((replied - sent) * 1000, note if cell.reply.get("status") == "error" else "without an error")]


_IN_SUBSHELL = {
    "await": ("await asyncio.sleep", "import asyncio; await asyncio.sleep(30)"),
    "loop": ("a bytecode loop", "while True: pass"),
    "sleep": ("time.sleep", "import time; time.sleep(30)"),
    "condition": ("a condition's wait", "import threading; threading.Event().wait()"),
    "queue": ("queue.get", "import queue; queue.Queue().get()"),
    "child": ("a child process", "import subprocess; subprocess.run(['sleep', '30'])"),
}

ROWS: list[Row[KernelRecipe, Size]] = [
    Row("comm", (Line("comm echo", "per s", Target(1.3, "async-kernel"), more_is_better=True),), comm_echo),
    Row(
        "complete",
        (Line("completion, the first", "ms", Target(30)), Line("completion, later", "ms", Target(10))),
        completion,
    ),
    Row(
        "questions",
        (
            Line("completion while a cell blocks", "ms", Target(10)),
            Line("inspection while a cell blocks", "ms", Target(10)),
        ),
        questions_while_blocked,
    ),
    Row("interrupt-input", (Line("interrupt: input()", "ms", Target(30)),), interrupt_input),
    Row("subshells", (Line("8 subshells, each blocking 0.5 s", "s", Target(0.55)),), blocking_subshells),
    *(
        Row(
            f"subshell-{key}",
            (Line(f"interrupt in a subshell: {label}", "ms", Target(30)),),
            partial(interrupt_in_subshell, code=code),
        )
        for key, (label, code) in _IN_SUBSHELL.items()
    ),
]
