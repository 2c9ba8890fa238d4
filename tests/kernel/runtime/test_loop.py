"""Our event loops go on where asyncio's would end, and end where a forked child comes back to them."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cobnut_kernel.runtime.loop import KernelLoop, uv_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

without_uvloop = importlib.util.find_spec("uvloop") is None


@pytest.fixture(params=["main", "other"])
def in_thread(request: pytest.FixtureRequest) -> Callable[[Callable[[], Any]], None]:
    """Call in the main thread, and in another one."""

    def call(function: Callable[[], Any]) -> None:
        if request.param == "main":
            function()
            return
        errors: list[BaseException] = []

        def run() -> None:
            try:
                function()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        assert errors == []

    return call


@pytest.fixture(
    params=["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(without_uvloop, reason="no uvloop"))]
)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Each of our loops."""
    return KernelLoop if request.param == "asyncio" else uv_loop()


def run(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function as the kernel does."""
    return anyio.run(main, backend_options={"loop_factory": factory})


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_task_or_callback_cannot_end_the_loop(
    in_thread: Callable[[Callable[[], Any]], None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    error: BaseException,
) -> None:
    """Its own end is told to who awaits it; nothing that was to be called is lost; SystemExit is reported.

    libuv reports one error of a turn.
    """

    async def fail() -> None:
        raise error

    def fail_too() -> None:
        raise error

    async def main() -> None:
        called: list[str] = []
        reports: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, report: reports.append(report))
        loop.call_soon(called.append, "before")
        loop.call_soon(fail_too)
        task = loop.create_task(fail())
        loop.call_soon(called.append, "after")
        await asyncio.sleep(0.01)
        assert called == ["before", "after"]
        assert task.exception() is error
        assert bool(reports) == isinstance(error, SystemExit)
        assert all(report["exception"] is error for report in reports)

    in_thread(lambda: run(loop_factory, main))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_the_main_task_ends_the_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], error: BaseException
) -> None:
    """What it raises goes to whoever runs the loop."""

    async def main() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)):
        run(loop_factory, main)


def test_a_forked_child_ends_when_it_comes_back_to_the_loop(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """It is no second kernel; its parent's loop goes on."""

    async def main() -> None:
        pid = os.fork()
        if pid == 0:
            await asyncio.sleep(0.001)
            os._exit(7)
        _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 - it ends at once, and the loop is to be left alone
        assert os.waitstatus_to_exitcode(status) == 0
        await asyncio.sleep(0.001)

    run(loop_factory, main)
