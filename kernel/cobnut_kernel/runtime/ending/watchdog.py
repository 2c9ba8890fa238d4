"""The thread that sees to it that the process of a kernel ends, whatever its main thread does."""

from __future__ import annotations

import os
import signal
import threading
import time
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from cobnut_kernel.runtime.ending.last_words import end_after, say, stack_of
from cobnut_kernel.runtime.interruption import frames
from cobnut_kernel.runtime.interruption.interrupts import POKE

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator

    from cobnut_kernel.runtime.ending.lifetime import Budget, Ending, Step
    from cobnut_kernel.runtime.kernel import Kernel

_SLICE = 0.01
"""Seconds waited at once, and between two pokes: on a machine that stands still, waiting stands still too."""

_POKES = 6
"""How many pokes a thread that hears signals at all has heard one of; one may come just before a call that waits."""

_MOMENT = 0.05
"""Seconds in which a cell has ended whose traceback is shown, and the main thread has left a kernel that has ended."""

_WRITING = 0.5
"""Seconds that a cell has to show its traceback, once it has heard of the interrupt: the first takes some imports."""

_BACKSTOP = 5.0
"""Seconds beyond the budget after which the process ends even if C code lets no Python thread run."""


class Watchdog:
    """Calls the main thread away from what takes too long once the kernel stops, and goes on without it at last."""

    def __init__(self, kernel: Kernel, ending: Ending, budget: Budget) -> None:
        self._kernel = kernel
        self._ending = ending
        self._budget = budget

    def start(self) -> None:
        """Watch from now on, in a thread of its own."""
        threading.Thread(target=self._run, name="cobnut-watchdog", daemon=True).start()

    def _run(self) -> None:
        self._kernel.event_stopping.wait()
        self._ending.stopped_at = self._ending.stopped_at or monotonic()
        end_after(self._budget.total + _BACKSTOP)
        self._watch_the_kernel()
        self._watch_the_steps()

    def _watch_the_kernel(self) -> None:
        """See the kernel's own end, or make it, and bring the main thread to that of the process."""
        ended = wait_for_cells(self._kernel.event_stopped.is_set, self._budget.cells)
        for cell in self._kernel._interrupts.running():
            say("A cell did not end when the kernel stopped; it was here:", *cell.stack())
        if not ended and self._kernel.close_sockets():
            self._call_away()
        left = self._ending.stopped_at + self._budget.cells - monotonic()
        if not wait_for_cells(self._ending.moved.is_set, max(left, _MOMENT)):
            self._call_away()

    def _watch_the_steps(self) -> NoReturn:
        ending = self._ending
        while True:
            step = ending.step
            ending.moved.clear()
            if step is not None and ending.step is step and not ending.moved.wait(max(step.deadline - monotonic(), 0)):
                self._cut(step)

    def _call_away(self) -> None:
        """Bring the main thread to the end of the process, wherever it is."""
        self._ending.called_away = True
        if not self._poke_until(self._ending.moved.is_set):
            self._end_without_main("The main thread did not end with the kernel; atexit functions are not run")

    def _cut(self, step: Step) -> None:
        """Bring the main thread to the next step."""
        if not self._poke_until(lambda: self._ending.step is not step):
            self._end_without_main(f"The kernel's end did not get past its {step.name}")

    def _poke_until(self, done: Callable[[], bool]) -> bool:
        """Poke the main thread until it has heard; False if it does not."""
        main = threading.main_thread().ident
        for _ in range(_POKES):
            if not done() and main is not None:
                signal.pthread_kill(main, POKE)
                time.sleep(_SLICE)
        return done()

    def _end_without_main(self, reason: str) -> NoReturn:
        self._ending.given_up = True
        say(f"{reason}. It was here:", *stack_of(threading.main_thread()))
        self._ending.end_children()
        os._exit(0)


def wait_for_cells(ended: Callable[[], bool], seconds: float) -> bool:
    """Wait until cells that were interrupted have ended; longer where one shows its traceback, which it does once.

    Args:
        ended: says whether they have.
        seconds: how long that may take; while the machine gives this process no time, none is counted.

    Returns:
        Whether they have.
    """
    slices = round(seconds / _SLICE)
    latest = slices + round(_WRITING / _SLICE)
    while not ended():
        if slices == 0 and latest > 0 and shows_traceback():
            slices = round(_MOMENT / _SLICE)
        if slices == 0:
            return False
        slices, latest = slices - 1, latest - 1
        time.sleep(_SLICE)
    return True


def shows_traceback() -> bool:
    """Say whether a thread is at IPython's `showtraceback`: its cell has heard of the interrupt and ends by itself."""
    return any("showtraceback" in _functions(frame) for frame in frames.of_threads().values())


def _functions(frame: types.FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back
