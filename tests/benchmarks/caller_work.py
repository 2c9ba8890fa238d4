"""One work of the caller benchmark in a process of its own, which needs nothing but the library it measures.

`python caller_work.py LIBRARY WORK PERMILLE` prints how many seconds one call takes, or null where it has no such.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BATCHES = 5
"""The best of so many is the figure of a round: everything else the machine did meanwhile."""


def nothing() -> None:
    """Work as little as can be: what is left is the way there and back."""


async def nothing_async() -> None:
    """Do the same as a coroutine."""


class Api(Protocol):
    """What a library offers; a method that is missing is not measured."""

    def call_soon(self) -> Awaitable[object]:
        """Call in a task of this loop."""
        ...

    def to_thread(self) -> Awaitable[object]:
        """Call in a worker thread."""
        ...

    def start_thread(self) -> None:
        """Start another thread with a loop."""
        ...

    def hop(self) -> Awaitable[object]:
        """Call in the loop of the other thread."""
        ...

    def hop_sync(self) -> object:
        """Call there and block until it is done."""
        ...

    def stop_thread(self) -> None:
        """End the other thread."""
        ...


class Asyncio:
    """What asyncio itself has."""

    def call_soon(self) -> Awaitable[object]:
        """Make a task."""
        return asyncio.create_task(nothing_async())

    def to_thread(self) -> Awaitable[object]:
        """Use the default executor."""
        return asyncio.to_thread(nothing)

    def start_thread(self) -> None:
        """Run a loop in a thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def hop(self) -> Awaitable[object]:
        """Run a coroutine there."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(nothing_async(), self._loop))

    def hop_sync(self) -> object:
        """Run a coroutine there and wait."""
        return asyncio.run_coroutine_threadsafe(nothing_async(), self._loop).result()

    def stop_thread(self) -> None:
        """Stop and close the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Callers:
    """Callers, ours or async-kernel's: what is measured has the same names."""

    def __init__(self, caller_class: Any) -> None:
        self._caller: Any = caller_class()
        self._child: Any = None
        self._children: int = 0

    def call_soon(self) -> Awaitable[object]:
        """Call in this thread."""
        return self._caller.call_soon(nothing)

    def to_thread(self) -> Awaitable[object]:
        """Call in a worker."""
        return self._caller.to_thread(nothing)

    def queue_call(self, function: Callable[[int], object], argument: int) -> None:
        """Queue a call in this thread."""
        self._caller.queue_call(function, argument)

    def start_thread(self) -> None:
        """Make a child."""
        self._children += 1
        self._child = self._caller.get(name=f"child {self._children}")

    def hop(self) -> Awaitable[object]:
        """Call in the child."""
        return self._child.call_soon(nothing)

    def hop_sync(self) -> object:
        """Call in the child and wait."""
        return self._child.call_soon(nothing).wait_sync()

    def stop_thread(self) -> None:
        """Stop the child."""
        self._child.stop()


# ── the works: each does `number` calls ─────────────────────────────────────────────────────────────────────────────


async def _call_soon(api: Api, number: int) -> None:
    for _ in range(number):
        await api.call_soon()


async def _burst(api: Api, number: int) -> None:
    for call in [api.call_soon() for _ in range(number)]:
        await call


async def _to_thread(api: Api, number: int) -> None:
    for _ in range(number):
        await api.to_thread()


async def _hop(api: Api, number: int) -> None:
    for _ in range(number):
        await api.hop()


async def _hop_burst(api: Api, number: int) -> None:
    for call in [api.hop() for _ in range(number)]:
        await call


async def _wait_sync(api: Api, number: int) -> None:
    for _ in range(number):
        api.hop_sync()


async def _queue_call(api: Any, number: int) -> None:
    called: list[int] = []

    def note(number: int) -> None:
        called.append(number)

    for each in range(number):
        api.queue_call(note, each)
    while len(called) < number:
        await api.call_soon()


async def _child(api: Api, number: int) -> None:
    for _ in range(number):
        api.start_thread()
        await api.hop()
        api.stop_thread()


WORKS: dict[str, tuple[Callable[[Any, int], Awaitable[None]], int]] = {
    "call_soon": (_call_soon, 4000),
    "burst": (_burst, 4000),
    "to_thread": (_to_thread, 1000),
    "hop": (_hop, 1000),
    "hop_burst": (_hop_burst, 4000),
    "wait_sync": (_wait_sync, 1000),
    "queue_call": (_queue_call, 4000),
    "child": (_child, 50),
}
"""The works, and how many calls are made for one figure."""


async def measured(library: str, work: str, permille: int) -> float | None:
    """Return the seconds of one call; None where the library has no such."""
    api: Any = Asyncio() if library == "asyncio" else Callers(_caller_class(library))
    function, usual = WORKS[work]
    number = max(2, usual * permille // 1000)
    if work == "queue_call" and not hasattr(api, "queue_call"):
        return None
    if work != "child":
        api.start_thread()
    await function(api, number)  # the first are slower than all others
    times: list[float] = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        await function(api, number)
        times.append(time.perf_counter() - start)
    if work != "child":
        api.stop_thread()
    return min(times) / number


def _caller_class(library: str) -> Any:
    if library == "async-kernel":
        from async_kernel import Caller  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

        return Caller  # pyright: ignore[reportUnknownVariableType]
    from cobnut_kernel.caller import Caller as OurCaller

    return OurCaller


def main() -> None:
    """Measure one work of one library."""
    library, work, permille = sys.argv[1:]
    if library == "cobnut (trio)":
        import trio

        seconds = trio.run(measured, library, work, int(permille))
    else:
        seconds = asyncio.run(measured(library, work, int(permille)))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
