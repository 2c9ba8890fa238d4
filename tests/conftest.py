"""What all tests share: the event loop that async tests run on."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio; a test that must hold on trio too overrides this with both."""
    return "asyncio"
