"""What all tests share: the event loop that async tests run on, and a heap that is quick to look through."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio; a test that must hold on trio too overrides this with both."""
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def _young_heap() -> None:
    """Let a test that collects garbage look at what its own file has made: the heap of all tests takes 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Let who comes last, hypothesis say, find all objects again."""
    gc.unfreeze()
