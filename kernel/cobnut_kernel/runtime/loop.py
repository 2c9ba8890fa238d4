"""The event loop of the main thread, which goes on where a task of the user's would end it."""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable

T = TypeVar("T")


def end_forked_child(error: BaseException | None = None) -> NoReturn:
    """End a child that a cell has forked and that comes back from the user's code: it is no second kernel."""
    code = error.code if isinstance(error, SystemExit) else error is not None
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


class _Selector(selectors.DefaultSelector):
    """The loop's selector, which ends a forked child that comes back to the loop.

    Child and parent share one epoll: what the child took from it, or closed, the parent would miss.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for something to do."""
        if os.getpid() != self._pid:
            end_forked_child()
        return super().select(timeout)


class KernelLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, which `SystemExit` or `KeyboardInterrupt` of a task or callback does not stop.

    asyncio lets these two through to whoever runs the loop, after the task has got its exception: `sys.exit()` in
    a background task would be the end of the kernel. Here only the loop's main task may end it.
    """

    def __init__(self) -> None:
        super().__init__(_Selector())
        self._main: Future[Any] | None = None

    def run_until_complete(  # pyright: ignore[reportIncompatibleMethodOverride] - asyncio's takes generators too
        self, future: Awaitable[T]
    ) -> T:
        """Run until a task is done, and let only this one end the run by an exception."""
        self._main = task = asyncio.ensure_future(future, loop=self)
        return super().run_until_complete(task)

    def run_forever(self) -> None:
        """Run until stopped; what would end the loop by accident is reported to its exception handler."""
        while True:
            try:
                return super().run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                if self._main is None or self._main.done():
                    raise
                if isinstance(error, SystemExit):  # the other one was asked for, by an interrupt
                    message = "A task or callback asked Python to exit; the kernel goes on."
                    self.call_exception_handler({"message": message, "exception": error})
