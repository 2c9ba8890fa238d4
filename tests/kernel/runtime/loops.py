"""Loops in the main thread and in others that run cells, for the tests of their interrupts."""

from __future__ import annotations

import importlib.util
import signal
import threading
import time
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import zmq

from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.interruption.interrupts import POKE, Interrupts
from cobnut_kernel.runtime.loop import KernelLoop, uv_loop
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cobnut_kernel.runtime.interruption.running import RunningCell

needs_uvloop = pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")

PLACES = [
    pytest.param((thread, loop), id=f"{loop} in the {thread} thread", marks=needs_uvloop if loop == "uvloop" else ())
    for thread in ("main", "other")
    for loop in ("asyncio", "trio", "uvloop")
]
"""The threads and loops that cells run in."""

_numbers = count()

TIMEOUT = 25.0
"""Seconds that a wait may take on a machine that is busy with other things; a good one ends at once."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"Waited {TIMEOUT:g} s for {what}."
        time.sleep(0.002)


def job(msg_id: str = "cell", subshell_id: str | None = None) -> Any:
    """Make what interrupts need to know of a request."""
    message = SimpleNamespace(msg_id=msg_id, msg_type=MessageType.EXECUTE_REQUEST)
    return SimpleNamespace(message=message, subshell_id=subshell_id, number=next(_numbers))


class Place:
    """A thread and a loop that run cells, and the interrupts that reach them."""

    def __init__(self, interrupts: Interrupts, thread: str, loop: str) -> None:
        self.interrupts = interrupts
        self.thread = thread
        self.loop = loop

    def run(self, main: Callable[[], Awaitable[Any]], meanwhile: Callable[[], Any] = lambda: None) -> Any:
        """Run a coroutine function in this loop, and a function meanwhile in another thread; return what it returns."""
        here, there = self._run_loop, meanwhile
        if self.thread != "main":
            here, there = meanwhile, self._run_loop
        future: Future[Any] = Future()

        def run_there() -> None:
            try:
                future.set_result(there(main) if there == self._run_loop else there())
            except BaseException as error:
                future.set_exception(error)

        helper = threading.Thread(target=run_there, daemon=True)
        helper.start()
        result = here(main) if here == self._run_loop else here()
        helper.join(TIMEOUT)
        beside = future.result(0)
        return result if self.thread == "main" else beside

    def _run_loop(self, main: Callable[[], Awaitable[Any]]) -> Any:
        if self.loop == "trio":
            return anyio.run(main, backend="trio")
        return anyio.run(main, backend_options={"loop_factory": KernelLoop if self.loop == "asyncio" else uv_loop()})

    def wait_for_cell(self, msg_id: str = "cell") -> RunningCell:
        """Wait until a cell runs and stays in the same functions; one that is somewhere else again and again moves."""
        wait_until(lambda: self.find(msg_id), f"the cell {msg_id}")
        cell = self.find(msg_id)
        assert cell is not None
        same = 0
        for _ in range(25):
            before = _functions(cell)
            time.sleep(0.01)
            same = same + 1 if before and _functions(cell) == before else 0
            if same == 3:
                break
        return cell

    def find(self, msg_id: str) -> RunningCell | None:
        """Return the running cell of that request."""
        return next((cell for cell in self.interrupts.running() if cell.job.message.msg_id == msg_id), None)


def _functions(cell: RunningCell) -> list[str]:
    return [entry.splitlines()[0].rpartition(" in ")[2] for entry in cell.stack()]


def open_interrupts() -> Iterator[Interrupts]:
    """Make interrupts that listen to this process's signals, and put its handlers back afterwards.

    Nobody else in the process group is meant: it is that of whoever runs the tests.
    """
    thread = IOThread.shared()
    endpoint = thread.open(SocketSpec(zmq.SocketType.PAIR, "inproc://interrupts", bind=True), lambda _: None)
    interrupts = Interrupts(thread)
    handlers: list[tuple[signal.Signals, Any]] = [(signal.SIGINT, interrupts.on_signal), (POKE, interrupts.on_poke)]
    before = [signal.signal(signum, handler) for signum, handler in handlers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cobnut_kernel.runtime.interruption.interrupts._leads_its_group", lambda: False)
        yield interrupts
    for (signum, _), handler in zip(handlers, before, strict=True):
        signal.signal(signum, handler)
    endpoint.close()
