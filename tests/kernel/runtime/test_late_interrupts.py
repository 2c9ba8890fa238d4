"""Ten thousand interrupts aimed at the ends of cells: the kernel lives, and no other cell is hurt (R23)."""

# ruff: noqa: ASYNC115, ASYNC251 - cells block, and let others run in the shortest way

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.runtime.loops import PLACES, Place, job, open_interrupts

from cobnut_kernel.runtime.interruption.interrupts import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Interrupts that listen to this process's signals."""
    yield from open_interrupts()


async def work(number: int) -> int:
    """End soon, each number in another way."""
    if number % 5 == 0:
        sum(range(100))
    elif number % 5 == 1:
        await anyio.sleep(0)
    elif number % 5 == 2:
        time.sleep(0.0001)
    elif number % 5 == 3:
        await anyio.sleep(0.0002)
    else:
        for _ in range(3000):
            pass
    return number


async def unhurt() -> int:
    """Compute, and await in between."""
    for _ in range(300):
        pass
    await anyio.sleep(0)
    return 300


@pytest.mark.parametrize("chosen", PLACES)
def test_interrupts_aimed_at_the_ends_of_cells_hurt_no_other_cell(
    interrupts: Interrupts, chosen: tuple[str, str]
) -> None:
    """Each cell ends by itself or by its own interrupt; the one after it, at which nobody aims, always by itself."""
    place = Place(interrupts, *chosen)
    count = 10_000 if chosen == ("main", "asyncio") else 1500
    aims = random.Random(7)
    begun, ended = threading.Semaphore(0), threading.Event()
    latest: list[Any] = [None]
    outcomes: Counter[str] = Counter()

    async def main() -> None:
        for number in range(count):
            latest[0] = aimed_at = job(f"{number}")
            begun.release()
            outcome = await interrupts.run(work(number), aimed_at)
            assert isinstance(outcome, Interrupted) or outcome == number
            outcomes[type(outcome).__name__] += 1
            assert await interrupts.run(unhurt(), job("next")) == 300
        ended.set()
        begun.release()

    def meanwhile() -> None:
        while not ended.is_set():
            begun.acquire()
            aimed_at = latest[0]
            for _ in range(aims.randrange(200)):
                pass
            interrupts.interrupt(lambda each: each is aimed_at)  # noqa: B023 - called at once

    place.run(main, meanwhile)
    assert set(outcomes) == {"int", "Interrupted"}  # else nobody has aimed well
    assert sum(outcomes.values()) == count
    assert interrupts.running() == []
    assert not interrupts.due
