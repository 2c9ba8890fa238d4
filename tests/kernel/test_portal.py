"""The portal: one loop thread for work that outlives its callers."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from cobnut_kernel.portal import Portal, finish, join

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Call from both loops."""
    return request.param


@pytest.fixture
def portal() -> Iterator[Portal]:
    """A portal of the test's own, ended with it."""
    portal = Portal()
    yield portal
    portal.stop()
    assert not portal._thread.is_alive()


async def double(number: int) -> int:
    """Work that succeeds."""
    await asyncio.sleep(0)
    return 2 * number


async def fail() -> None:
    """Work that fails."""
    raise LookupError("no")


class Work:
    """Something that runs until it is cancelled, and takes a while to undo what it did."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.undone = threading.Event()

    async def run(self) -> None:
        """Run until it is cancelled."""
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.undone.set()


def test_a_thread_without_a_loop_calls_and_gets_the_result(portal: Portal) -> None:
    """A blocking call returns what the coroutine returns."""
    assert portal.call(double, 21) == 42


def test_a_call_raises_what_the_coroutine_raises(portal: Portal) -> None:
    """An exception reaches the caller, and the portal goes on."""
    with pytest.raises(LookupError, match="no"):
        portal.call(fail)
    assert portal.call(double, 1) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_would_end_a_loop_ends_one_call_only(portal: Portal, error: type[BaseException]) -> None:
    """KeyboardInterrupt and SystemExit raised in a call go to its caller alone."""

    async def leave() -> None:
        raise error

    with pytest.raises(error):
        portal.call(leave)
    assert portal.call(double, 1) == 2


async def test_a_task_of_any_loop_awaits_a_call(portal: Portal) -> None:
    """`run` returns the result on asyncio and on trio."""
    assert await portal.run(double, 21) == 42
    with pytest.raises(LookupError):
        await portal.run(fail)


async def test_many_tasks_run_at_once(portal: Portal) -> None:
    """Calls of many tasks go on together, and each gets its own result."""
    results: dict[int, int] = {}

    async def ask(number: int) -> None:
        results[number] = await portal.run(double, number)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(ask, number)
    assert results == {number: 2 * number for number in range(100)}


def test_many_threads_call_at_once(portal: Portal) -> None:
    """Calls of many threads go on together, and each gets its own result."""
    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(lambda number: portal.call(double, number), range(100))) == [
            2 * number for number in range(100)
        ]


async def test_cancelling_the_caller_cancels_the_call_and_waits_for_its_undoing(portal: Portal) -> None:
    """When a cancelled caller goes on, all of the call is undone."""
    work = Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(portal.run, work.run)
            await anyio.to_thread.run_sync(work.started.wait)
            scope.cancel()
    assert work.undone.is_set()


async def test_a_call_that_is_cancelled_before_it_began_begins_all_the_same(portal: Portal) -> None:
    """A call can undo what announced it even when it was cancelled at once."""
    for _ in range(20):
        work = Work()
        task = portal.start_soon(work.run)
        task.cancel()
        with pytest.raises(CancelledError):
            await join(task)
        assert work.started.is_set()
        assert work.undone.is_set()


def test_a_cancelled_future_is_done_when_its_call_is_undone(portal: Portal) -> None:
    """`cancel` asks for the end; the future is done only after it."""
    work = Work()
    task = portal.start_soon(work.run)
    work.started.wait()
    assert task.cancel()
    with pytest.raises(CancelledError):
        task.result()
    assert work.undone.is_set()
    assert task.cancelled()
    assert not task.cancel()


def test_ctrl_c_in_a_blocking_call_cancels_it(portal: Portal) -> None:
    """An interrupted caller leaves nothing running behind it."""

    async def interrupt(work: Work) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await work.run()

    for _ in range(20):
        work = Work()
        with pytest.raises(KeyboardInterrupt):
            portal.call(interrupt, work)
        assert work.undone.is_set()


def test_ctrl_c_that_wakes_nobody_is_noticed_all_the_same(portal: Portal) -> None:
    """A signal that comes just before the main thread waits does not wake it; nor does one that another thread gets."""

    async def interrupt(work: Work) -> None:
        await asyncio.sleep(0.05)  # the main thread waits by now; where it does not yet, it needs no waking
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        await work.run()

    work = Work()
    with pytest.raises(KeyboardInterrupt):
        portal.call(interrupt, work)
    assert work.undone.is_set()


def test_a_blocking_call_on_the_portals_own_thread_is_refused(portal: Portal) -> None:
    """A call that would wait for itself raises instead."""

    async def call_myself() -> int:
        return portal.call(double, 1)

    with pytest.raises(RuntimeError, match="would wait for itself"):
        portal.call(call_myself)


def test_a_coroutine_on_the_portal_runs_another_one(portal: Portal) -> None:
    """`run` on the portal's own thread just awaits."""

    async def run_another() -> int:
        return await portal.run(double, 21)

    assert portal.call(run_another) == 42


def test_callbacks_run_in_the_order_of_the_calls(portal: Portal) -> None:
    """`call_soon` keeps the order, also for what was asked before the loop ran."""
    seen: list[int] = []
    for number in range(1000):
        portal.call_soon(seen.append, number)
    portal.call(double, 1)
    assert seen == list(range(1000))


def test_stop_undoes_what_runs_and_ends_the_thread() -> None:
    """After `stop` nothing runs, the callbacks for the end were called, the last one first."""
    portal = Portal()
    work, order = Work(), list[str]()
    portal.at_end(lambda: order.append(f"first, undone: {work.undone.is_set()}"))
    portal.at_end(lambda: order.append("last"))
    task = portal.start_soon(work.run)
    work.started.wait()
    portal.stop()
    portal.stop()
    assert task.cancelled()
    assert order == ["last", "first, undone: True"]
    assert not portal._thread.is_alive()


def test_stop_lets_what_was_asked_for_before_begin() -> None:
    """A call that was asked for just before the end begins, so that it can undo what announced it."""
    for _ in range(20):
        portal, work = Portal(), Work()
        task = portal.start_soon(work.run)
        portal.stop()
        assert task.done()
        assert work.undone.is_set()


def test_after_stop_calls_are_refused_and_shared_is_a_new_one() -> None:
    """A stopped portal takes no calls; the process's next one does."""
    portal = Portal.shared()
    assert Portal.shared() is portal
    portal.stop()
    with pytest.raises(RuntimeError, match="was stopped"):
        portal.call(double, 1)
    assert Portal.shared() is not portal
    assert Portal.shared().call(double, 1) == 2
    Portal.shared().stop()


def test_on_its_own_thread_a_portal_that_ends_is_still_the_one() -> None:
    """What begins there while it is stopped ends with it, and no other portal is made for that."""
    portal = Portal.shared()
    started, late = threading.Event(), list[object]()

    async def run() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            late.extend((Portal.shared(), Portal.shared().start_soon(work.run)))
            Portal.shared().at_end(lambda: late.append("at the end"))

    work = Work()
    task = portal.start_soon(run)
    started.wait()
    portal.stop()
    assert task.cancelled()
    assert late[0] is portal
    assert late[1].cancelled()  # type: ignore[attr-defined]
    assert late[2] == "at the end"
    assert work.undone.is_set()


def test_a_task_that_fails_disturbs_nobody_else(portal: Portal, caplog: pytest.LogCaptureFixture) -> None:
    """What lives on the portal and raises is logged; calls go on, and others are taken."""

    async def begin() -> asyncio.Task[None]:
        return portal.create_task(fail())

    work = Work()
    going_on = portal.start_soon(work.run)
    task = portal.call(begin)
    while not task.done():
        portal.call(double, 1)
    assert portal.call(double, 1) == 2
    assert not going_on.done()
    assert "What lived on the portal has failed" in caplog.text


def test_a_portal_without_descriptors_is_refused_at_once() -> None:
    """Before anything is announced that nobody would do; when there are some again, so is a portal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in (0, 3):
        highest = max(int(entry.name) for entry in Path("/dev/fd").iterdir())
        fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # the gaps below it, and more
        try:
            for _ in range(spare):
                os.close(fillers.pop())
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + spare, hard))
            with pytest.raises(OSError, match="Too many open files"):
                Portal.shared()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
    assert Portal.shared().call(double, 1) == 2
    Portal.shared().stop()


def test_who_waits_for_a_portal_that_cannot_begin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for its loop, say: each call fails with the reason, and the next portal is a new one."""
    asked = threading.Event()

    def no_loop() -> asyncio.AbstractEventLoop:
        asked.wait(20)
        raise OSError("Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("asyncio.events.new_event_loop", no_loop)
        portal = Portal.shared()
        task = portal.start_soon(double, 1)
        asked.set()
        with pytest.raises(RuntimeError, match="portal has failed: Too many open files"):
            task.result(timeout=20)
        portal._thread.join()
        assert portal.stopped
        with pytest.raises(RuntimeError, match="was stopped"):
            portal.start_soon(double, 1)
    assert Portal.shared().call(double, 1) == 2
    Portal.shared().stop()


def test_who_waits_for_a_portal_whose_loop_breaks_is_told() -> None:
    """Nobody waits for ever because something has stopped its loop."""
    portal, work = Portal(), Work()
    task = portal.start_soon(work.run)
    work.started.wait()
    assert portal._loop is not None
    portal._loop.call_soon_threadsafe(portal._loop.stop)
    with pytest.raises((CancelledError, RuntimeError)):
        task.result(timeout=20)
    portal.stop()


def test_stopping_on_the_own_thread_is_refused(portal: Portal) -> None:
    """A portal cannot wait for its own end."""

    async def stop() -> None:
        portal.stop()

    with pytest.raises(RuntimeError, match="own thread"):
        portal.call(stop)


def test_fifty_portals_leave_no_thread_and_no_descriptor() -> None:
    """Starting and stopping costs nothing for good."""
    descriptors, threads = psutil.Process().num_fds(), threading.active_count()
    for _ in range(50):
        portal = Portal()
        assert portal.call(double, 1) == 2
        portal.stop()
    assert (psutil.Process().num_fds(), threading.active_count()) == (descriptors, threads)


def test_a_forked_child_has_no_portal_of_its_parent() -> None:
    """After a fork the child gets a portal of its own, and its end does not touch the parent's."""
    script = """
import asyncio, os, sys
from cobnut_kernel.portal import Portal

async def answer():
    await asyncio.sleep(0)
    return os.getpid()

portal = Portal.shared()
assert portal.call(answer) == os.getpid()
child = os.fork()
if not child:
    assert Portal.shared() is not portal
    sys.exit(Portal.shared().call(answer) != os.getpid())
_, status = os.waitpid(child, 0)
assert status == 0, status
assert portal.call(answer) == os.getpid()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=30)


def test_a_process_ends_although_work_runs_on_the_portal() -> None:
    """The end of the process cancels what runs, waits until it is undone, and does not hang."""
    script = """
import asyncio, threading
from cobnut_kernel.portal import Portal

started = threading.Event()

async def work():
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        print("undone", flush=True)

Portal.shared().start_soon(work)
started.wait()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, timeout=30, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "undone\n", "")


def test_importing_the_portal_imports_no_loop() -> None:
    """asyncio, anyio and ssl wait until the portal starts."""
    script = "import sys, cobnut_kernel.portal; print({'asyncio', 'anyio', 'ssl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=30)
    assert done.stdout == "set()\n"


def test_finish_goes_to_the_end_and_then_tells_of_the_cancellation(portal: Portal) -> None:
    """Shielded work ends although it is cancelled several times; the cancellation comes after."""
    steps: list[str] = []
    begun = threading.Event()

    async def undo() -> None:
        begun.set()
        for _ in range(10):
            await asyncio.sleep(0)
        steps.append("undone")

    async def run() -> None:
        task = asyncio.ensure_future(finish(undo()))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        steps.append("cancelled")

    portal.call(run)
    assert steps == ["undone", "cancelled"]


def test_finish_returns_and_raises_what_the_work_does(portal: Portal) -> None:
    """Without a cancellation shielded work is like any other."""

    async def run() -> int:
        with pytest.raises(LookupError):
            await finish(fail())
        return await finish(double(21))

    assert portal.call(run) == 42
