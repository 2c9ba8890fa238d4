"""Everything at once, at random: every call becomes done, and nothing is left."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.caller import Caller, CallerStoppedError, Pending, PendingCancelled

SECONDS = 1.5


class User:
    """Somebody in a thread who schedules, waits, cancels and stops at random; what he gets is his own."""

    def __init__(self, seed: int, callers: list[Caller]) -> None:
        self._random = random.Random(seed)
        self._callers = callers
        self.pendings: list[Pending[Any]] = []
        self.expected: dict[Pending[Any], int] = {}
        self.wrong: list[object] = []

    def run(self) -> None:
        """Act until the time is up."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with suppress(CallerStoppedError):
                self._random.choice([self._call, self._call, self._call, self._wait, self._cancel, self._replace])()

    def _call(self) -> None:
        caller, number = self._random.choice(self._callers), self._random.randrange(1000)
        kind = self._random.choice(["soon", "async", "later", "thread", "blocks", "forever"])
        if kind == "soon":
            pending = caller.call_soon(abs, -number)
        elif kind == "async":
            pending = caller.call_soon(self._work, number)
        elif kind == "later":
            pending = caller.call_later(self._random.random() / 100, abs, -number)
        elif kind == "thread":
            pending = caller.to_thread(self._work, number)
        elif kind == "blocks":
            pending = caller.to_thread(self._block, number)
        else:
            pending = caller.call_soon(anyio.sleep_forever)
            pending.metadata["forever"] = True
        self.pendings.append(pending)
        self.expected[pending] = number

    def _wait(self) -> None:
        if self.pendings:
            self._check(self._random.choice(self.pendings[-20:]), timeout=self._random.random() / 50)

    def _check(self, pending: Pending[Any], timeout: float) -> None:
        try:
            result = pending.wait_sync(timeout=timeout, protect=self._random.random() < 0.7)
        except (TimeoutError, PendingCancelled):
            return
        if result != self.expected[pending]:
            self.wrong.append((pending, result))

    def _cancel(self) -> None:
        if self.pendings:
            self._random.choice(self.pendings[-20:]).cancel()

    def _replace(self) -> None:
        """Now and then stop a caller, and let another take its place."""
        if self._random.random() < 0.03:
            place = self._random.randrange(len(self._callers))
            new = Caller("NewThread", backend=self._random.choice(["asyncio", "trio"]))
            old, self._callers[place] = self._callers[place], new
            old.stop()

    @staticmethod
    async def _work(number: int) -> int:
        await anyio.sleep(number / 1e5)
        return number

    @staticmethod
    def _block(number: int) -> int:
        time.sleep(number / 1e5)
        return number


@pytest.mark.parametrize("seed", [1, 2])
def test_every_call_becomes_done(seed: int) -> None:
    """Four users share three callers for a while; then all results are right, and all else was cancelled."""
    callers = [Caller("NewThread", backend=backend) for backend in ("asyncio", "trio", "asyncio")]
    users = [User(10 * seed + number, callers) for number in range(4)]
    threads = [threading.Thread(target=user.run) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for caller in callers:
        caller.stop()
    for caller in callers:
        caller.stopped.wait_sync(timeout=30)
    pendings = [pending for user in users for pending in user.pendings]
    assert len(pendings) > 100
    until(lambda: all(pending.done() for pending in pendings), "a call is not done")
    assert [user.wrong for user in users] == [[]] * 4
    assert not any(pending.done() and not pending.cancelled() for pending in pendings if "forever" in pending.metadata)
