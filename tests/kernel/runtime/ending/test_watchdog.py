"""How long cells are waited for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from cobnut_kernel.runtime.ending.watchdog import wait_for_cells


def test_cells_that_have_ended_are_not_waited_for() -> None:
    """The wait ends with the cells, however long it might take."""
    answers = iter([False, False, True])
    assert wait_for_cells(lambda: next(answers), 600)


def test_cells_that_do_not_end_are_waited_for_only_so_long() -> None:
    """When the time is over the caller learns that they have not ended."""
    assert not wait_for_cells(lambda: False, 0.02)


def test_a_cell_that_shows_its_traceback_gets_more_time() -> None:
    """A cell has heard of the interrupt that is at IPython's `showtraceback`; one that stays there is left, too."""
    written = threading.Event()
    shown = threading.Event()

    def showtraceback() -> None:
        shown.set()
        written.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(showtraceback)
        shown.wait()
        looks = iter(range(100))
        assert wait_for_cells(lambda: next(looks) == 20, 0.05)
        assert not wait_for_cells(lambda: False, 0.05)
        written.set()
