"""The event loops of the threads that run cells, which go on where a task of the user's would end them."""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import weakref
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.interruption.frames import add_loop_step

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Awaitable, Callable

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

    survives_interrupts: bool = True

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
        while not _has_run(self, super().run_forever, self._main):
            pass


def _has_run(loop: asyncio.AbstractEventLoop, run_forever: Callable[[], None], main: Future[Any] | None) -> bool:
    """Run a loop until it stops (True), or until a task or callback, but not the main one, would end it."""
    try:
        run_forever()
    except (SystemExit, KeyboardInterrupt) as error:
        if main is None or main.done():
            raise
        if isinstance(error, SystemExit):  # the other one was asked for, by an interrupt
            message = "A task or callback asked Python to exit; the kernel goes on."
            loop.call_exception_handler({"message": message, "exception": error})
        return False
    return True


@cache
def uv_loop() -> type[asyncio.AbstractEventLoop]:
    """Return uvloop's loop with the manners of `KernelLoop`; imported with the first call.

    libuv polls in C: there is no selector to notice a forked child that comes back to the loop. Instead the first
    callback that runs in such a child ends it.

    Raises:
        ImportError: uvloop is not installed.
    """
    with without_user_folder():
        uvloop: Any = import_module("uvloop")
    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
    base: Any = uvloop.Loop

    class UvKernelLoop(base):  # its methods' docstrings are those of `KernelLoop`
        survives_interrupts: bool = True

        def __init__(self) -> None:
            super().__init__()
            self._main: Future[Any] | None = None
            loops.add(cast("asyncio.AbstractEventLoop", self))

        def run_until_complete(self, future: Awaitable[T]) -> T:
            self._main = task = asyncio.ensure_future(future, loop=self)
            inherited: Any = super()  # pyright: ignore[reportUnknownVariableType] - nothing is known of uvloop here
            return inherited.run_until_complete(task)

        def run_forever(self) -> None:
            inherited: Any = super()  # pyright: ignore[reportUnknownVariableType] - as above
            while not _has_run(cast("Any", self), inherited.run_forever, self._main):
                pass

    def end_children() -> None:
        for loop in loops:
            if loop.is_running():
                loop.call_soon(end_forked_child)

    os.register_at_fork(after_in_child=end_children)
    add_loop_step(_has_run.__code__)
    return cast("type[asyncio.AbstractEventLoop]", UvKernelLoop)
