"""The threads of the process as front ends see them: which are the user's, and which of those are stopped."""

from __future__ import annotations

from itertools import count
from typing import Any

from cobnut_kernel.runtime.debugging.adapter import is_service

Content = dict[str, Any]
Stops = dict[int, int]
"""Which stop, counted over all threads, is the last one of each thread: a thread may stop at once again."""


class DebuggedThreads:
    """What pydevd has told of threads, by the ids of the debug adapter protocol."""

    def __init__(self) -> None:
        self._numbers = count()
        self._stopped: Stops = {}
        self._services: set[int] = set()

    @property
    def stopped(self) -> list[int]:
        """Those that are stopped, the latest last."""
        return list(self._stopped)

    def stopped_one(self, named: object) -> int | None:
        """Return the stopped one that a request is about: what it names, or what stopped last; None without any."""
        stopped = self.stopped
        return named if isinstance(named, int) and named in stopped else next(reversed(stopped), None)

    def stops(self, thread: int | None = None) -> Stops:
        """Return the stops that last now, or that of one thread."""
        return {each: number for each, number in self._stopped.copy().items() if thread in (None, each)}

    def have_gone_on(self, stops: Stops) -> bool:
        """Tell whether none of some stops lasts any more."""
        return not stops.items() & self._stopped.items()

    def note(self, event: Content) -> bool:
        """Take note of an event; say whether it is for front ends: what the kernel's own threads do is not."""
        body: Content = event.get("body") or {}
        thread: Any = body.get("threadId")
        if thread in self._services:
            return False
        if event["event"] == "stopped":
            self._forget([thread])
            self._stopped[thread] = next(self._numbers)
        elif event["event"] == "continued":
            self._forget(self.stopped if body.get("allThreadsContinued") else [thread])
        elif event["event"] == "thread" and body.get("reason") == "exited":
            self._forget([thread])
        elif event["event"] == "terminated":
            self._stopped.clear()
        return True

    def users(self, threads: list[Content]) -> list[Content]:
        """Return those of a list of threads that are the user's, and take note of the others."""
        self._services = {each["id"] for each in threads if is_service(each["name"])}
        return [each for each in threads if each["id"] not in self._services]

    def clear(self) -> None:
        """Forget them all."""
        self._stopped.clear()
        self._services.clear()

    def _forget(self, threads: list[int]) -> None:
        for thread in threads:
            self._stopped.pop(thread, None)
