"""What one thread raises in another: where it stands, one at a time, and taken back where it does not arrive."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.runtime.interruption import raising

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator


class Raised(BaseException):
    """What is raised."""


class Worker:
    """A thread that waits for a lock, and then does something else; `ended` by what."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.pending: bool = False
        self.given_up: int = 0
        self.ended: BaseException | None = None
        self.lock = threading.Lock()
        self.lock.acquire()
        self.thread = threading.Thread(target=self._work, args=(then,))
        self.thread.start()
        until(lambda: self.frame.f_code is Worker._wait.__code__)

    @property
    def ident(self) -> int:
        """The id of the thread."""
        return self.thread.ident or 0

    @property
    def frame(self) -> types.FrameType:
        """Where the thread stands."""
        return sys._current_frames()[self.ident]

    def give_up(self) -> None:
        """Count how often another thread went before."""
        self.given_up += 1
        raising.take_back(self)

    def _work(self, then: Callable[[], object]) -> None:
        try:
            self._wait()
            then()
        except Raised as error:
            self.ended = error
            self.pending = False

    def _wait(self) -> None:
        self.lock.acquire()


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Threads, which end with the test."""
    some: list[Worker] = []
    yield some
    for worker in some:
        if worker.lock.locked():
            worker.lock.release()
        until(lambda worker=worker: raised_at_last(worker))
        worker.thread.join()


def raised_at_last(worker: Worker) -> bool:
    """End a thread, wherever it is; true when it has ended."""
    frame = sys._current_frames().get(worker.ident)
    if frame is not None and not worker.pending:
        raising.raise_where_it_stands(worker, frame, Raised)
    return not worker.thread.is_alive()


def test_it_comes_where_the_thread_stands(workers: list[Worker]) -> None:
    """In a call that blocks it comes when that returns."""
    workers.append(worker := Worker(spin))
    assert raising.raise_where_it_stands(worker, worker.frame, Raised)
    assert worker.pending
    assert worker.ended is None
    worker.lock.release()
    worker.thread.join()
    assert isinstance(worker.ended, Raised)


def test_it_does_not_come_where_the_thread_has_gone_on(workers: list[Worker]) -> None:
    """Whoever has looked, and has lost the GIL since, raises nothing: the thread may be where that does harm."""
    workers.append(worker := Worker(lambda: None))
    seen = worker.frame.f_back
    assert seen is not None
    assert not raising.raise_where_it_stands(worker, seen, Raised)
    assert not worker.pending
    worker.lock.release()
    worker.thread.join()
    assert worker.ended is None


def test_one_is_on_its_way_at_a_time(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread has to wait for a moment; what has not arrived by then is given up, and does not come later."""
    monkeypatch.setattr(raising, "_ALONE", 1000.0)
    workers.append(first := Worker(lambda: None))
    workers.append(second := Worker(spin))
    assert raising.raise_where_it_stands(first, first.frame, Raised)
    assert not raising.raise_where_it_stands(second, second.frame, Raised)
    assert not second.pending
    monkeypatch.setattr(raising, "_ALONE", 0.0)
    assert raising.raise_where_it_stands(second, second.frame, Raised)
    assert (first.given_up, first.pending, second.pending) == (1, False, True)
    second.lock.release()
    second.thread.join()
    assert isinstance(second.ended, Raised)
    first.lock.release()
    first.thread.join()
    assert first.ended is None


def test_what_is_taken_back_does_not_come(workers: list[Worker]) -> None:
    """Nor does it when the thread goes on later."""
    workers.append(worker := Worker(lambda: None))
    assert raising.raise_where_it_stands(worker, worker.frame, Raised)
    raising.take_back(worker)
    assert not worker.pending
    worker.lock.release()
    worker.thread.join()
    assert worker.ended is None
