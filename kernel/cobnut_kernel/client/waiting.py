"""Wait, in any event loop, for what another thread brings."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cobnut_kernel.transport import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


class Waiters:
    """The tasks that wait for one change, each in its own loop."""

    def __init__(self) -> None:
        self._bells: list[Bell] = []

    def wake(self) -> None:
        """Wake all of them; from any thread, at once."""
        for bell in tuple(self._bells):
            bell.ring()

    async def wait(self, ready: Callable[[], object]) -> None:
        """Wait to be woken, unless `ready` says that there is something already."""
        bell = Bell()
        self._bells.append(bell)
        try:
            await bell.wait(ready)
        finally:
            self._bells.remove(bell)


class SharedFuture(Generic[T]):
    """A result that any thread brings, once, and that any number of tasks await, in any loops."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._results: list[T] = []
        self._error: Exception | None = None
        self._waiters = Waiters()

    def set_result(self, result: T) -> None:
        """Bring the result; without effect where there is an outcome already."""
        with self._lock:
            if not self.done():
                self._results.append(result)
        self._waiters.wake()

    def set_error(self, error: Exception) -> None:
        """Bring an error that awaiting raises; without effect where there is an outcome already."""
        with self._lock:
            if not self.done():
                self._error = error
        self._waiters.wake()

    def done(self) -> bool:
        """Tell whether there is an outcome."""
        return bool(self._results) or self._error is not None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        while not self.done():
            await self._waiters.wait(self.done)
        if self._error is not None:
            raise again(self._error)
        return self._results[0]


def again(error: Exception) -> Exception:
    """Make a fresh copy of an error: each waiter raises its own, with its own traceback."""
    return type(error)(*error.args)


class Finished:
    """Something to await that is there already, in every loop and as often as one likes."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()
