"""What these tests share: a runtime folder of their own, in which nothing may be left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import leaving_nothing, private_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def _private_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    yield from private_runtime(monkeypatch)


@pytest.fixture
def runtime(_private_runtime: Path) -> Iterator[Path]:
    """The runtime folder of the login, new for each test; no descriptor, thread, process or file may stay behind."""
    yield from leaving_nothing(_private_runtime)
