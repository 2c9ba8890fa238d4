"""The queues of one shell, and the thread whose event loop serves them."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import anyio

from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.runtime.dispatch import Lane
from cobnut_kernel.runtime.loop import KernelLoop, uv_loop
from cobnut_kernel.runtime.modes import RunMode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cobnut_kernel.runtime.job import Job

_log = logging.getLogger(__name__)


class Lanes:
    """The lanes of one thread: its queues, by channel and line, and what runs beside them."""

    def __init__(self, refuse: Callable[[Job], None], *lines: str) -> None:
        channels = Channel.SHELL, Channel.CONTROL
        self._queues = {(channel, line): Lane(refuse) for channel in channels for line in lines or ("",)}
        self._beside = Lane(refuse)

    def put(self, job: Job, line: str = "") -> None:
        """Queue a request; from any thread."""
        if job.run_mode in (RunMode.QUEUE, RunMode.DIRECT):
            self._queues[job.channel, line].put(job)
        else:
            self._beside.put(job)

    def abort(self, select: Callable[[Job], bool]) -> list[Job]:
        """Refuse those requests that wait and are selected."""
        return [job for lane in self._all() for job in lane.abort(select)]

    def close(self) -> None:
        """Answer no more; from any thread."""
        for lane in self._all():
            lane.close()

    async def serve(self) -> None:
        """Answer requests until closed, and until what runs beside the queues has ended."""
        async with anyio.create_task_group() as tasks:
            for lane in self._queues.values():
                tasks.start_soon(lane.serve)
            tasks.start_soon(self._beside.serve_beside)

    def _all(self) -> list[Lane]:
        return [*self._queues.values(), self._beside]


class LoopThread:
    """A thread that runs a coroutine in an event loop of its own.

    Args:
        name: the thread's name.
        main: makes the coroutine.
        backend: "asyncio" or "trio".
        backend_options: anyio's options for it; by default a loop that survives a task's KeyboardInterrupt.
    """

    def __init__(
        self,
        name: str,
        main: Callable[[], Coroutine[Any, Any, None]],
        backend: str = "asyncio",
        backend_options: dict[str, Any] | None = None,
    ) -> None:
        self._main = main
        self._backend = backend
        self._options = loop_options(backend, backend_options)
        self._started: bool = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ident(self) -> int | None:
        """The thread's identifier; None before it has started."""
        return self._thread.ident

    def start(self) -> None:
        """Start the thread, once; only the first call does something."""
        if not self._started:
            self._started = True
            self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; False if it did not come in time."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend=self._backend, backend_options=self._options)
        except BaseException:
            _log.exception("The thread %s has failed", self._thread.name)


def loop_options(backend: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return anyio's options for one of our event loops; what is given comes first."""
    kept = dict(options or {})
    if backend == "asyncio" and "loop_factory" not in kept:
        kept["loop_factory"] = uv_loop() if kept.pop("use_uvloop", False) else KernelLoop
    return kept
