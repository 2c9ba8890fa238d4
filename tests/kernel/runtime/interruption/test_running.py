"""Cells in any thread and loop, several at once: each is interrupted where it is, and nobody else."""

# ruff: noqa: ASYNC110, ASYNC115, ASYNC220, ASYNC221, ASYNC251 - cells block and poll: that is what is to be stopped

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.runtime.loops import PLACES, Place, job, open_interrupts, wait_until

import cobnut_kernel
from cobnut_kernel.runtime.interruption.interrupts import Interrupted, Interrupts
from cobnut_kernel.runtime.interruption.running import interrupt_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    Cell = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Interrupts that listen to this process's signals."""
    yield from open_interrupts()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, interrupts: Interrupts) -> Place:
    """Each thread and loop."""
    return Place(interrupts, *request.param)


async def compute() -> None:
    """Compute for ever."""
    x = 0
    while True:
        x += 1


async def sleep() -> None:
    """Sleep."""
    time.sleep(60)


async def await_sleep() -> None:
    """Await a timer."""
    await anyio.sleep(60)


async def await_event() -> None:
    """Await what never comes."""
    await anyio.Event().wait()


async def block_after_an_await() -> None:
    """Block when the loop has been round."""
    await anyio.sleep(0)
    time.sleep(60)


async def await_again_and_again() -> None:
    """Let others run, and do nothing else."""
    while True:
        await anyio.sleep(0)


async def await_shortly() -> None:
    """Await short timers."""
    while True:
        await anyio.sleep(0.0005)


async def await_a_generator() -> None:
    """Await what an asynchronous generator yields."""

    async def ticks() -> Any:
        while True:
            yield 1
            await anyio.sleep(0)

    async for _ in ticks():
        pass


async def wait_for_event() -> None:
    """Wait for an event."""
    threading.Event().wait()


async def acquire_semaphore() -> None:
    """Wait for a semaphore."""
    threading.Semaphore(0).acquire()


async def wait_at_barrier() -> None:
    """Wait at a barrier."""
    threading.Barrier(2).wait()


async def get_from_queue() -> None:
    """Wait for an item."""
    queue.Queue[int]().get()


async def get_from_queue_in_time() -> None:
    """Wait for an item, not for ever."""
    queue.Queue[int]().get(timeout=60)


async def wait_for_result() -> None:
    """Wait for a future."""
    Future[int]().result()


async def join_thread() -> None:
    """Wait for a thread."""
    event = threading.Event()
    thread = threading.Thread(target=event.wait, daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        event.set()


async def run_child() -> None:
    """Run a child process."""
    subprocess.run(["sleep", "60"], check=False)


async def read_from_child() -> None:
    """Run a child process for its output."""
    subprocess.check_output(["sleep", "60"])


async def run_deaf_child() -> None:
    """Run a child process that will not be interrupted."""
    with subprocess.Popen(["sh", "-c", "trap '' INT; exec sleep 60"], stdout=subprocess.PIPE) as child:
        try:
            child.communicate()
        finally:
            child.kill()
            child.wait()


async def run_command() -> None:
    """Run a command of the system."""
    os.system("sleep 60")


async def await_a_group() -> None:
    """Await a task group."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 60)


async def block_in_a_task() -> None:
    """Await while another task blocks the loop."""

    async def block() -> None:
        time.sleep(60)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(block)
        await anyio.sleep(60)


async def compute_in_a_task() -> None:
    """Await while another task computes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compute)
        await anyio.sleep(60)


CELLS = [
    compute, sleep, await_sleep, await_event, block_after_an_await, await_again_and_again, await_shortly,
    await_a_generator, wait_for_event, acquire_semaphore, wait_at_barrier, get_from_queue, get_from_queue_in_time,
    wait_for_result, join_thread, run_child, read_from_child, run_deaf_child, run_command, await_a_group,
    block_in_a_task, compute_in_a_task,
]  # fmt: skip
"""What a cell may be doing when it is interrupted."""


async def unhurt() -> str:
    """Do a little of everything."""
    await anyio.sleep(0)
    time.sleep(0.001)
    return "unhurt"


@pytest.mark.parametrize("cell", CELLS)
def test_whatever_a_cell_does_is_stopped(place: Place, cell: Cell) -> None:
    """In every thread and loop the cell ends by the interrupt, and the next one is unhurt (R21, R22, R26)."""
    begun = threading.Event()

    async def run() -> None:
        begun.set()
        await cell()

    async def main() -> tuple[Any, Any]:
        return await place.interrupts.run(run(), job()), await place.interrupts.run(unhurt(), job("next"))

    def meanwhile() -> None:
        begun.wait()
        place.wait_for_cell()
        assert place.interrupts.interrupt() != []

    ended, following = place.run(main, meanwhile)
    assert isinstance(ended, Interrupted)
    assert not ended.timed_out
    assert following == "unhurt"
    assert place.interrupts.running() == []
    assert not place.interrupts.due


@pytest.mark.parametrize("cell", [sleep, await_sleep, await_again_and_again, compute, wait_for_event])
def test_code_may_catch_the_interrupt_and_go_on(place: Place, cell: Cell) -> None:
    """The first is the code's own to handle, each later one is delivered again; what it awaits then is whole (R24)."""
    caught: list[type[BaseException]] = []
    tries: list[int] = []

    async def stubborn() -> str:
        for _ in range(3):
            try:
                tries.append(1)
                await cell()
            except KeyboardInterrupt as error:
                caught.append(type(error))
                await anyio.sleep(0.01)
        return "done"

    def meanwhile() -> None:
        for number in range(3):
            wait_until(lambda: len(tries) == number + 1, "the cell to go on")  # noqa: B023 - at once
            place.wait_for_cell()
            place.interrupts.interrupt()

    assert place.run(lambda: place.interrupts.run(stubborn(), job()), meanwhile) == "done"
    assert caught == [KeyboardInterrupt] * 3


def test_idle_interrupts_do_nothing(place: Place) -> None:
    """Nobody is interrupted where no cell runs, whether there has been one or not (R28)."""

    async def main() -> Any:
        for _ in range(3):
            assert place.interrupts.interrupt() == []
            await anyio.sleep(0.01)
            assert await place.interrupts.run(unhurt(), job()) == "unhurt"
        return "alive"

    assert place.run(main) == "alive"


def test_one_of_several_cells_in_a_loop_is_interrupted(place: Place) -> None:
    """Each is a task of its own, all await: the one that is selected ends, the others go on to their end."""
    ended: dict[str, Any] = {}
    done = threading.Event()

    async def wait() -> str:
        while not done.is_set():
            await anyio.sleep(0.001)
        return "well"

    async def run(name: str) -> None:
        ended[name] = await place.interrupts.run(wait(), job(name))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(run, name)

    def meanwhile() -> None:
        place.wait_for_cell("c")
        [cell] = place.interrupts.interrupt(lambda each: each.message.msg_id == "b")
        assert cell.job.message.msg_id == "b"
        wait_until(lambda: "b" in ended, "the cell's end")
        done.set()

    place.run(main, meanwhile)
    assert isinstance(ended.pop("b"), Interrupted)
    assert ended == {"a": "well", "c": "well"}


def test_a_cell_that_executes_is_not_interrupted_for_one_that_awaits(place: Place) -> None:
    """The selected cell awaits while another one holds its loop: it is stopped when the loop is free."""
    order: list[str] = []
    sent = threading.Event()

    async def hold() -> None:
        await anyio.sleep(0)
        while not sent.is_set():
            pass
        order.append("held")

    async def run(cell: Cell, name: str) -> None:
        ended = await place.interrupts.run(cell(), job(name))
        order.append(f"{name} {type(ended).__name__}")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, await_sleep, "awaits")
            tasks.start_soon(run, hold, "holds")

    def meanwhile() -> None:
        wait_until(lambda: place.find("awaits") and place.find("holds"), "both cells")
        place.interrupts.interrupt(lambda each: each.message.msg_id == "awaits")
        time.sleep(0.05)  # long enough for several looks, none of which may hurt the other one
        sent.set()

    place.run(main, meanwhile)
    assert order[0] == "held"
    assert sorted(order[1:]) == ["awaits Interrupted", "holds NoneType"]


def test_a_cell_within_a_cell_is_part_of_it(place: Place) -> None:
    """To interrupt the inner one alone leaves the outer one running; to interrupt the outer one ends both."""
    got: list[Any] = []

    async def outer() -> None:
        got.append(await place.interrupts.run(await_sleep(), job("inner")))
        got.append(await place.interrupts.run(sleep(), job("again")))
        await anyio.sleep(60)

    def meanwhile() -> None:
        place.wait_for_cell("inner")
        place.interrupts.interrupt(lambda each: each.message.msg_id == "inner")
        place.wait_for_cell("again")
        cells = place.interrupts.interrupt(lambda each: each.message.msg_id == "outer")
        assert [cell.job.message.msg_id for cell in cells] == ["outer", "again"]

    ended = place.run(lambda: place.interrupts.run(outer(), job("outer")), meanwhile)
    assert isinstance(ended, Interrupted)
    assert [type(each) for each in got] == [Interrupted] * len(got)


def test_a_signal_from_outside_interrupts_cells_in_all_threads(interrupts: Interrupts) -> None:
    """Ctrl-C in the kernel's terminal is an interrupt of the whole process."""
    ended: list[Any] = []
    threads = [Place(interrupts, "other", "asyncio"), Place(interrupts, "other", "trio")]

    def run(place: Place, cell: Cell, name: str) -> None:
        ended.append(place._run_loop(lambda: interrupts.run(cell(), job(name))))

    helpers = [
        threading.Thread(target=run, args=(place, cell, f"{place.loop}"))
        for place, cell in zip(threads, (await_sleep, wait_for_event), strict=True)
    ]
    for helper in helpers:
        helper.start()
    for place in threads:
        place.wait_for_cell(place.loop)
    os.kill(os.getpid(), signal.SIGINT)
    for helper in helpers:
        helper.join(20)
    assert [type(each) for each in ended] == [Interrupted, Interrupted]


def test_a_task_that_blocks_an_idle_loop_is_ended(interrupts: Interrupts) -> None:
    """No cell runs, but a task that one has left behind holds the loop of its thread: it ends, the loop goes on."""
    place = Place(interrupts, "other", "asyncio")
    blocking = threading.Event()

    async def main() -> tuple[Any, Any]:
        import asyncio

        async def block() -> None:
            await asyncio.sleep(0)
            blocking.set()
            time.sleep(60)

        async def begin() -> Any:
            return asyncio.create_task(block())

        task = await interrupts.run(begin(), job())
        await asyncio.sleep(0.01)
        return task.exception(), await interrupts.run(unhurt(), job())

    def meanwhile() -> None:
        blocking.wait()
        time.sleep(0.02)
        assert interrupts.interrupt() == []

    error, following = place.run(main, meanwhile)
    assert isinstance(error, KeyboardInterrupt)
    assert following == "unhurt"


def test_what_cannot_be_stopped_is_reported_with_its_stack(interrupts: Interrupts) -> None:
    """A bare lock in a thread: the report names the line; the interrupt stays due, and comes when the call returns."""
    place = Place(interrupts, "other", "asyncio")
    lock = threading.Lock()
    lock.acquire()

    async def acquire() -> None:
        lock.acquire()
        time.sleep(60)

    async def main() -> tuple[Any, Any]:
        return await interrupts.run(acquire(), job("stuck", "s1")), await interrupts.run(unhurt(), job("next"))

    def meanwhile() -> None:
        place.wait_for_cell("stuck")
        [report] = anyio.run(interrupts.stuck, interrupts.interrupt())
        assert (report["msg_id"], report["subshell_id"]) == ("stuck", "s1")
        assert report["stack"][-1].endswith("    lock.acquire()")
        lock.release()

    ended, following = place.run(main, meanwhile)
    assert isinstance(ended, Interrupted)
    assert following == "unhurt"


def test_an_interrupt_that_comes_after_its_cell_has_ended_hurts_nobody(interrupts: Interrupts) -> None:
    """It was on its way while a call of C blocked; the cell ends with that call, and the next one is unhurt (R23)."""
    place = Place(interrupts, "other", "asyncio")
    for _ in range(20):
        lock = threading.Lock()
        lock.acquire()

        async def acquire(lock: threading.Lock = lock) -> bool:
            return lock.acquire()

        async def main(cell: Cell = acquire) -> tuple[Any, Any]:
            return await interrupts.run(cell(), job()), await interrupts.run(unhurt(), job("next"))

        def meanwhile(lock: threading.Lock = lock) -> None:
            place.wait_for_cell()
            interrupts.interrupt()
            lock.release()

        ended, following = place.run(main, meanwhile)
        assert ended is True or isinstance(ended, Interrupted)
        assert following == "unhurt"


def test_a_cell_that_begins_while_all_are_interrupted_is_too(
    interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child may have had the signal of all: it must not take that for the child's own end, and go on."""
    place = Place(interrupts, "other", "asyncio")
    ended: list[Any] = []

    over = threading.Event()

    async def wait_for_a_child() -> None:
        try:
            time.sleep(0.5)
        finally:
            over.set()

    late = threading.Thread(target=lambda: ended.append(anyio.run(interrupts.run, wait_for_a_child(), job("late"))))

    def run_late(*_: Any, **__: Any) -> None:
        late.start()
        over.wait()

    def meanwhile() -> None:
        place.wait_for_cell()
        with monkeypatch.context() as patch:
            patch.setattr(interrupts, "_send", run_late)
            interrupts.interrupt()
        late.join()

    ended.append(place.run(lambda: interrupts.run(sleep(), job()), meanwhile))
    assert all(isinstance(each, Interrupted) for each in ended)
    assert anyio.run(interrupts.run, unhurt(), job("next")) == "unhurt"


def test_nothing_is_reported_of_a_cell_that_has_seen_its_interrupt(place: Place) -> None:
    """A cell that caught it and goes on is not stuck."""
    goes_on = threading.Event()
    reports: list[Any] = []

    async def catch() -> None:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            goes_on.wait()

    def meanwhile() -> None:
        place.wait_for_cell()
        reports.append(anyio.run(place.interrupts.stuck, place.interrupts.interrupt(), 5))
        goes_on.set()

    place.run(lambda: place.interrupts.run(catch(), job()), meanwhile)
    assert reports == [[]]


@pytest.mark.parametrize("cell", [sleep, await_sleep, compute, wait_for_event])
def test_a_cell_whose_time_is_up_is_stopped(place: Place, cell: Cell) -> None:
    """Blocking code too; the cell beside it is not touched, and one that is in time not either."""

    async def main() -> list[Any]:
        ended: list[Any] = []

        async def beside() -> None:
            ended.append(await place.interrupts.run(unhurt(), job("beside")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beside)
            ended.append(await place.interrupts.run(cell(), job(), 0.05))
        return [*ended, await place.interrupts.run(unhurt(), job(), 60)]

    in_time = ["unhurt", "unhurt"]
    ended = place.run(main)
    stopped = next(each for each in ended if isinstance(each, Interrupted))
    assert stopped.timed_out
    assert [each for each in ended if each is not stopped] == in_time


def test_a_cell_whose_time_is_up_is_interrupted_until_it_ends(interrupts: Interrupts) -> None:
    """Code that catches it is interrupted once more after a second; what it returns then counts for nothing."""
    caught: list[float] = []

    async def stubborn() -> str:
        for _ in range(2):
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                caught.append(time.monotonic())
        return "finished"

    ended = Place(interrupts, "main", "asyncio").run(lambda: interrupts.run(stubborn(), job(), 0.05))
    assert ended.timed_out
    assert len(caught) == 2


def test_only_the_children_of_the_selected_cell_are_interrupted(place: Place) -> None:
    """A process that another cell has started goes on; those of the cell end, and what they have started (R27)."""

    async def begin() -> Any:
        return subprocess.Popen(["sleep", "60"])

    async def wait() -> None:
        subprocess.run(["sh", "-c", "sleep 59; true"], check=False)

    async def main() -> Any:
        child = await place.interrupts.run(begin(), job("first"))
        return child, await place.interrupts.run(wait(), job("second"))

    def meanwhile() -> None:
        cell = place.wait_for_cell("second")
        wait_until(lambda: cell.children, "the child")
        place.interrupts.interrupt(lambda each: each.message.msg_id == "second")

    child, ended = place.run(main, meanwhile)
    assert isinstance(ended, Interrupted)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_code_that_is_found_in_ours_is_interrupted_where_it_calls_us_next(place: Place) -> None:
    """A cell that does little but print is in our code whenever it is looked after: the next call raises."""
    ours = os.path.join(os.path.dirname(cobnut_kernel.__file__), "written.py")  # noqa: PTH118, PTH120 - a name
    source = "def write():\n    if interrupts.due: interrupts.checkpoint()\n    for _ in range(100_000): pass"
    names: dict[str, Any] = {"interrupts": place.interrupts}
    exec(compile(source, ours, "exec"), names)

    async def flood() -> None:
        while True:
            names["write"]()

    def meanwhile() -> None:
        place.wait_for_cell()
        place.interrupts.interrupt()

    assert isinstance(place.run(lambda: place.interrupts.run(flood(), job()), meanwhile), Interrupted)
    assert not place.interrupts.due


def test_who_stood_still_is_patient_still(place: Place) -> None:
    """A process that had no processor for seconds has looked once: what takes a lock just now is left in peace."""
    interrupts = place.interrupts
    interrupts._look_anew()
    interrupts._looks_since -= 10
    for looks in range(30):
        assert interrupts._looks == looks
        assert interrupts._is_patient()
        interrupts._attend(interrupts._look)
    assert not interrupts._is_patient()


def test_an_interrupt_that_python_drops_comes_again(place: Place) -> None:
    """One that hits a destructor is told to sys.unraisablehook, which has it raised once more."""
    begun = threading.Event()

    class Slow:
        def __del__(self) -> None:
            begun.set()
            time.sleep(60)

    async def cell() -> None:
        Slow()
        time.sleep(60)

    def meanwhile() -> None:
        begun.wait()
        place.wait_for_cell()
        place.interrupts.interrupt()

    hook, sys.unraisablehook = sys.unraisablehook, lambda _: place.interrupts.interrupt_again()
    try:
        ended = place.run(lambda: place.interrupts.run(cell(), job()), meanwhile)
    finally:
        sys.unraisablehook = hook
    assert isinstance(ended, Interrupted)


def test_a_cancellation_leaves_nothing_behind(interrupts: Interrupts) -> None:
    """The task of a cell that caught its interrupt counts no cancellation any more."""
    place = Place(interrupts, "other", "asyncio")

    async def main() -> int:
        import asyncio

        async def catch() -> None:
            try:
                await asyncio.sleep(60)
            except KeyboardInterrupt:
                await asyncio.sleep(0)

        await interrupts.run(catch(), job())
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    def meanwhile() -> None:
        place.wait_for_cell()
        interrupts.interrupt()

    assert place.run(main, meanwhile) == 0


def test_trio_keeps_what_must_not_be_aborted(interrupts: Interrupts) -> None:
    """A thread that is waited for is waited for; it is reported until then, and the cell is interrupted after it."""
    place = Place(interrupts, "other", "trio")
    leave = threading.Event()

    async def cell() -> None:
        await anyio.to_thread.run_sync(leave.wait)
        await anyio.sleep(60)

    def meanwhile() -> None:
        place.wait_for_cell()
        cells = interrupts.interrupt()
        [report] = anyio.run(interrupts.stuck, cells)
        assert "run_sync" in "".join(report["stack"])
        leave.set()

    assert isinstance(place.run(lambda: interrupts.run(cell(), job()), meanwhile), Interrupted)


def test_results_and_errors_of_cells_come_through(place: Place) -> None:
    """What is not interrupted is as if it had been awaited; a group of other errors is not taken for an interrupt."""

    async def fail() -> None:
        await anyio.sleep(0)
        raise BaseExceptionGroup("", [KeyboardInterrupt(), ValueError()])

    async def main() -> str:
        with pytest.raises(BaseExceptionGroup):
            await place.interrupts.run(fail(), job())
        return await place.interrupts.run(unhurt(), job())  # type: ignore[return-value]

    assert place.run(main) == "unhurt"


def test_a_group_of_interrupts_is_one() -> None:
    """What a nursery or task group makes of an interrupt is found, however deep; beside other errors it is none."""
    interrupt = KeyboardInterrupt()
    group = BaseExceptionGroup("", [BaseExceptionGroup("", [interrupt])])
    assert interrupt_in(group) is interrupt
    assert interrupt_in(BaseExceptionGroup("", [group, ValueError()])) is None
    assert interrupt_in(ValueError()) is None
