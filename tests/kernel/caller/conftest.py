"""Every test on both loops, callers of each kind, and nothing left of them."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run async tests on both loops."""
    return request.param


@pytest.fixture(params=["here", "asyncio", "trio"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which caller calls: that of the test's loop, or one in another thread with either loop."""
    return request.param


def caller_of(kind: str) -> Caller:
    """Return a caller of a kind; it stops with the test's loop."""
    return Caller() if kind == "here" else Caller().get(name=kind, backend=kind)  # pyright: ignore[reportArgumentType]


def in_thread(function: Callable[..., object], *args: object) -> threading.Thread:
    """Call a function in a thread of its own."""
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def threads() -> set[threading.Thread]:
    """Return the threads that are somebody's: trio keeps its own for a while, and pytest-timeout has its timer."""
    own = ("Trio", "pytest_timeout")
    return {each for each in threading.enumerate() if not each.name.startswith(own)}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Let no test leave a thread or a caller: those of a test's own thread end with its loop."""
    before = threads()
    yield
    gc.collect()
    for caller in Caller.all_callers(running_only=False):
        if caller.thread in before:
            continue
        caller.stop(force=True)
    until(lambda: threads() <= before, f"a thread is left: {threads() - before}")
    assert Caller.all_callers(running_only=False) == []
