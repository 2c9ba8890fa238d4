"""Every test on both loops, and nothing left of it."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run async tests on both loops."""
    return request.param


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
