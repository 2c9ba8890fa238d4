"""One work of a manager, done and timed in a process of its own: `manager_work.py LIBRARY SPECS KERNEL WORK SIZE`.

The program is the same for both libraries, word for word: our managers and clients have the documented names. SPECS is
a folder of kernelspecs, KERNEL the name of one, SIZE an object in JSON. The samples are printed as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Empty
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

Samples = list[tuple[float | None, str]]
"""A figure and a note for each line of the row."""

DISPLAYS = "from IPython.display import display\nfor i in range({}): display({{'text/plain': str(i)}}, raw=True)"
READY = 60.0
"""How many seconds a kernel may take to answer."""

PAUSE = 0.2
"""Seconds between one kernel and the next: nobody restarts a kernel in the moment in which it has come up."""

RESULT = 1.0
"""How many seconds a result of a ready kernel may take before the cell is run again."""

ASKED = 10
"""How often a cell is run at most until its result is heard."""

SILENCE = 3.0
"""After how many seconds without a message no more is expected."""


@dataclass(frozen=True)
class Size:
    """How much of everything; times in seconds."""

    repeats: int
    trips: int
    displays: int
    asleep: float
    kernels: int


@dataclass
class Started:
    """A kernel with its manager and a client, and when what was there: seconds after the beginning."""

    manager: Any
    client: Any
    launched: float
    ready: float
    result: float

    async def stop(self, *, now: bool) -> float:
        """Stop client and kernel, and return how many seconds the kernel took."""
        self.client.stop_channels()
        began = time.perf_counter()
        await self.manager.shutdown_kernel(now=now)
        return time.perf_counter() - began


class Library:
    """Ours or jupyter_client: the classes of the same names."""

    def __init__(self, name: str, specs: str, kernel: str, *, must_fork: bool) -> None:
        ours = name == "cobnut"
        managers = import_module("cobnut_kernel.manager.manager" if ours else "jupyter_client.manager")
        kernelspecs = import_module("cobnut_kernel.kernelspec" if ours else "jupyter_client.kernelspec")
        self._manager_class = managers.AsyncKernelManager
        self._specs = kernelspecs.KernelSpecManager(kernel_dirs=[specs])
        self._kernel = kernel
        self._must_fork = must_fork

    async def start(self) -> Started:
        """Start a kernel, and run a first cell in it."""
        manager = self._manager_class(kernel_name=self._kernel, kernel_spec_manager=self._specs)
        began = time.perf_counter()
        await manager.start_kernel()
        launched = time.perf_counter() - began
        client = manager.client()
        client.start_channels()
        return Started(manager, client, launched, *await until_result(client, began))

    async def warm(self) -> None:
        """Start and stop kernels until what only the first one needs is there: modules, and a fork server's template.

        Raises:
            RuntimeError: a kernel is to be forked, and none is.
        """
        for _ in range(40):
            started = await self.start()
            forked = is_forked(started.manager.provisioner.pid)
            await started.stop(now=True)
            if forked or not self._must_fork:
                return
            await asyncio.sleep(0.1)
        raise RuntimeError("not forked")


def is_forked(pid: int) -> bool:
    """Say whether a process is not our own child."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1]) != os.getpid()


async def until_result(client: Any, began: float) -> tuple[float, float]:
    """Wait for the kernel, and for the result of a cell; return when, in seconds after the beginning.

    A client whose iopub is not connected yet hears none: it asks again, as a person would.
    """
    await client.wait_for_ready(timeout=READY)
    ready = time.perf_counter() - began
    msg_ids = [client.execute("6*7")]
    while True:
        try:
            message = await client.iopub_channel.get_msg(timeout=RESULT)
        except Empty:
            if len(msg_ids) == ASKED:
                raise SystemExit("result not heard") from None
            msg_ids.append(client.execute("6*7"))
            continue
        if message["parent_header"].get("msg_id") in msg_ids and message["msg_type"] == "execute_result":
            assert message["content"]["data"]["text/plain"] == "42"
            return ready, time.perf_counter() - began


async def until_done(client: Any, msg_id: str) -> None:
    """Wait for a cell's reply, and for idle."""
    while (await client.shell_channel.get_msg(timeout=READY))["parent_header"].get("msg_id") != msg_id:
        pass
    while True:
        message = await client.iopub_channel.get_msg(timeout=READY)
        if message["parent_header"].get("msg_id") == msg_id and message["content"].get("execution_state") == "idle":
            return


async def start(library: Library, size: Size) -> Samples:
    """Start kernels one after the other."""
    await library.warm()
    runs: list[Started] = []
    for _ in range(size.repeats):
        await asyncio.sleep(PAUSE)
        runs.append(await library.start())
        await runs[-1].stop(now=True)
    return medians_ms([(run.launched, run.ready, run.result) for run in runs])


async def restart(library: Library, size: Size, *, now: bool) -> Samples:
    """Restart a kernel that has run a cell, again and again, with the same client."""
    await library.warm()
    started = await library.start()
    times: list[tuple[float, float]] = []
    for _ in range(size.repeats):
        await asyncio.sleep(PAUSE)
        began = time.perf_counter()
        await started.manager.restart_kernel(now=now)
        times.append(await until_result(started.client, began))
    await started.stop(now=True)
    return medians_ms(times)


async def stop(library: Library, size: Size, *, now: bool) -> Samples:
    """Stop kernels that have run a cell."""
    await library.warm()
    return medians_ms([(await (await library.start()).stop(now=now),) for _ in range(size.repeats)])


async def own(library: Library, size: Size) -> Samples:
    """Own a kernel until somebody kills us: print its process id, and wait."""
    del size
    await library.warm()
    started = await library.start()
    print(json.dumps(started.manager.provisioner.pid), flush=True)
    await asyncio.sleep(3600)
    return []


async def execute(library: Library, size: Size) -> Samples:
    """Run `pass` again and again, each when the last is done."""
    started = await library.start()
    times: list[float] = []
    for _ in range(size.trips + 10):
        began = time.perf_counter()
        await until_done(started.client, started.client.execute("pass"))
        times.append((time.perf_counter() - began) * 1000)
    await started.stop(now=True)
    ordered = sorted(times[10:])
    return [(ordered[len(ordered) // 2], ""), (ordered[round(0.99 * (len(ordered) - 1))], "")]


async def displays(library: Library, size: Size) -> Samples:
    """Display much while the reader does something else; then read until the cell is idle, or nothing comes."""
    started = await library.start()
    msg_id = started.client.execute(DISPLAYS.format(size.displays))
    await asyncio.sleep(0.05)  # it is sent
    time.sleep(size.asleep)  # noqa: ASYNC251 - the reader is asleep, and its loop too
    received, idle = 0, False
    while not idle:
        try:
            message = await started.client.iopub_channel.get_msg(timeout=SILENCE)
        except Empty:
            break
        if message["parent_header"].get("msg_id") == msg_id:
            received += message["msg_type"] == "display_data"
            idle = message["content"].get("execution_state") == "idle"
    await started.stop(now=True)
    lost = f"lost {100 * (size.displays - received) / size.displays:.2g} %" if received < size.displays else ""
    return [(received, lost or ("" if idle else "no idle")), (float(idle), "")]


async def descriptors(library: Library, size: Size) -> Samples:
    """Count what each kernel with a client takes of its owner's descriptors."""
    await library.warm()
    before = open_descriptors()
    started = [await library.start() for _ in range(size.kernels)]
    after = open_descriptors()
    for each in started:
        await each.stop(now=True)
    return [((after - before) / size.kernels, "")]


def open_descriptors() -> int:
    """Count our descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def medians_ms(times: Sequence[tuple[float, ...]]) -> Samples:
    """Return the median of each column, in milliseconds."""
    return [(median(column) * 1000, "") for column in zip(*times, strict=True)]


WORKS: dict[str, Callable[[Library, Size], Coroutine[Any, Any, Samples]]] = {
    "start": start,
    "restart-now": lambda library, size: restart(library, size, now=True),
    "restart": lambda library, size: restart(library, size, now=False),
    "stop": lambda library, size: stop(library, size, now=False),
    "kill": lambda library, size: stop(library, size, now=True),
    "own": own,
    "execute": execute,
    "displays": displays,
    "descriptors": descriptors,
}


def main() -> None:
    """Do one work with one library and kernel."""
    name, specs, kernel, work, size = sys.argv[1:]
    library = Library(name, specs, kernel, must_fork=kernel.endswith("forked"))
    print(json.dumps(asyncio.run(WORKS[work](library, Size(**json.loads(size))))))


if __name__ == "__main__":
    main()
