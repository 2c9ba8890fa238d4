"""The interruptible versions of what blocks: but for interrupts they are what they stand for."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.runtime.loops import Place, job, open_interrupts, wait_until

from cobnut_kernel.runtime.interruption import blocking
from cobnut_kernel.runtime.interruption.interrupts import Interrupted, Interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", autouse=True)
def interrupts() -> Iterator[Interrupts]:
    """Interrupts, and the interruptible versions in their places."""
    blocking.make_interruptible()
    yield from open_interrupts()


@pytest.fixture
def place(interrupts: Interrupts) -> Place:
    """A thread that runs cells."""
    return Place(interrupts, "other", "asyncio")


def in_a_cell(place: Place, function: Callable[[], Any], meanwhile: Callable[[], Any] = lambda: None) -> Any:
    """Call a function in a cell, and another one meanwhile."""

    async def cell() -> Any:
        return function()

    return place.run(lambda: place.interrupts.run(cell(), job()), meanwhile)


def error_of(function: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """Return what a call raises."""
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("It raised nothing.")


@pytest.mark.parametrize("seconds", [-1, -0.5, float("nan"), float("inf"), 1e30, "1", None, 10**30])
def test_a_wrong_sleep_is_refused_as_ever(place: Place, seconds: Any) -> None:
    """A cell gets the same error as anybody else."""
    expected = error_of(lambda: blocking._sleep(seconds))
    assert in_a_cell(place, lambda: error_of(lambda: time.sleep(seconds))) == expected


@pytest.mark.parametrize("seconds", [0, 0.0, False, 1e-6, 0.02, True])
def test_a_sleep_lasts_as_long_as_asked(place: Place, seconds: float) -> None:
    """Never shorter; an integer, and what can stand for one, counts too."""

    class Index:
        def __index__(self) -> int:
            return int(seconds)

    def sleep() -> float:
        before = time.monotonic()
        assert time.sleep(seconds) is None  # type: ignore[func-returns-value]
        time.sleep(Index())  # type: ignore[arg-type]
        return time.monotonic() - before

    assert in_a_cell(place, sleep) >= float(seconds)


def test_other_threads_take_the_originals_way(place: Place) -> None:
    """A thread that a cell has started sleeps and waits as ever: an interrupt of the cell does not end that."""
    ended: list[bool] = []
    leave = threading.Event()

    def outlast() -> None:
        time.sleep(0.05)
        ended.append(leave.wait(20))

    def block() -> None:
        thread = threading.Thread(target=outlast)
        thread.start()
        try:
            time.sleep(60)
        finally:
            leave.set()
            thread.join()

    def meanwhile() -> None:
        place.wait_for_cell()
        place.interrupts.interrupt()

    assert isinstance(in_a_cell(place, block, meanwhile), Interrupted)
    assert ended == [True]


def test_the_versions_bear_the_originals_names() -> None:
    """They are pickled, and shown, as what they stand for."""
    process: Any = subprocess.Popen
    for function in (time.sleep, threading.Condition.wait, threading.Thread.join, os.system, process.communicate):
        assert function.__wrapped__ is not function  # type: ignore[attr-defined]
        assert pickle.loads(pickle.dumps(function)) is function
        assert function.__module__ in ("time", "threading", "os", "subprocess")


def test_to_install_twice_is_to_install_once(place: Place) -> None:
    """No version stands on another one."""
    before = time.sleep, threading.Condition.wait
    blocking.make_interruptible()
    assert (time.sleep, threading.Condition.wait) == before
    assert in_a_cell(place, lambda: time.sleep(0.001)) is None


# ── conditions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_condition_in_a_cell_waits_as_ever(place: Place) -> None:
    """True when notified, False when the time is up, an error without the lock; the lock is held afterwards."""
    condition = threading.Condition()

    def use() -> list[Any]:
        got: list[Any] = [error_of(condition.wait)]
        with condition:
            got += [condition.wait(0), condition.wait(-1), condition.wait(0.01), condition.wait_for(lambda: 7)]
            threading.Thread(target=notify).start()
            got += [condition.wait(20), condition._is_owned()]  # type: ignore[attr-defined]
        return got

    def notify() -> None:
        with condition:
            condition.notify()

    expected = (RuntimeError, "cannot wait on un-acquired lock")
    assert in_a_cell(place, use) == [expected, False, False, False, 7, True, True]
    assert not condition._waiters  # type: ignore[attr-defined]


def test_a_recursive_lock_is_let_go_wholly(place: Place) -> None:
    """However often the cell holds it, others can have it while the cell waits."""
    condition = threading.Condition()

    def use() -> bool:
        with condition, condition, condition:
            threading.Thread(target=notify).start()
            return condition.wait(20)

    def notify() -> None:
        with condition:
            condition.notify_all()

    assert in_a_cell(place, use) is True


def test_an_interrupted_waiter_does_not_eat_a_notification(place: Place) -> None:
    """The notification that comes while a waiter is being interrupted goes to the next one, and wakes just one."""
    condition = threading.Condition()
    woken: list[str] = []

    def wait_in_cell() -> None:
        with condition:
            condition.wait()
            woken.append("cell")

    def wait_in_thread() -> None:
        with condition:
            if condition.wait(20):
                woken.append("thread")

    def meanwhile() -> None:
        cell = place.wait_for_cell()
        others = [threading.Thread(target=wait_in_thread) for _ in range(2)]
        for other in others:
            other.start()
        wait_until(lambda: len(condition._waiters) == 3, "three waiters")  # type: ignore[attr-defined]
        with condition:  # the cell cannot come back before this ends
            cell.wanted = True  # as an interrupt does, at this very moment
            assert cell.thread.wake is not None
            cell.thread.wake()
            condition.notify()
        wait_until(lambda: woken, "the next waiter")
        assert woken == ["thread"]
        with condition:
            condition.notify()
        for other in others:
            other.join(20)

    assert isinstance(in_a_cell(place, wait_in_cell, meanwhile), Interrupted)
    assert woken == ["thread", "thread"]


def test_a_notified_waiter_has_been_notified(place: Place) -> None:
    """An interrupt that comes after the notification does not take it back: what waited comes first."""
    condition = threading.Condition()
    got: list[bool] = []

    def wait_in_cell() -> None:
        with condition:
            got.append(condition.wait())
        time.sleep(60)

    def meanwhile() -> None:
        place.wait_for_cell()
        with condition:
            condition.notify()
            place.interrupts.interrupt()

    assert isinstance(in_a_cell(place, wait_in_cell, meanwhile), Interrupted)
    assert got == [True]


def test_no_item_of_a_queue_is_lost_to_interrupts(place: Place) -> None:
    """A cell that catches its interrupts gets every item, in order, however they meet."""
    items: queue.Queue[int] = queue.Queue(maxsize=3)
    ready = threading.Event()

    def consume() -> tuple[list[int], int]:
        got: list[int] = []
        caught = 0
        while len(got) < 300:
            try:
                ready.set()
                got.append(items.get())
            except KeyboardInterrupt:
                caught += 1
        return got, caught

    def meanwhile() -> None:
        ready.wait()
        for number in range(300):
            if number % 3 == 0:
                place.interrupts.interrupt()
            items.put(number)

    got, caught = in_a_cell(place, consume, meanwhile)
    # An interrupt between the item and its place in the list costs that item, as it does everywhere.
    assert got == sorted(set(got))
    assert caught > 0


def test_what_stands_on_conditions_works_in_cells(place: Place) -> None:
    """Events, semaphores, barriers, queues, futures and pools do what they do anywhere."""

    def use() -> list[Any]:
        barrier, future, items = threading.Barrier(2), Future[int](), queue.Queue[int]()
        threading.Thread(target=barrier.wait).start()
        threading.Timer(0.01, future.set_result, [1]).start()
        threading.Timer(0.01, items.put, [2]).start()
        with ThreadPoolExecutor(2) as pool:
            several = [pool.submit(lambda x: x + 1, number) for number in range(3)]
            done, _ = wait(several, timeout=20)
        with pytest.raises(queue.Empty):
            queue.Queue[int]().get(timeout=0.01)
        with pytest.raises(TimeoutError):
            Future[int]().result(0.01)
        kept = [threading.Event().wait(0.01), threading.Semaphore(0).acquire(timeout=0.01)]
        return [*kept, barrier.wait(20) in (0, 1), future.result(20), items.get(timeout=20), len(done)]

    assert in_a_cell(place, use) == [False, False, True, 1, 2, 3]


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_joins_threads_as_ever(place: Place) -> None:
    """It waits for their end or so long as asked, and refuses itself and what was not started."""

    def use() -> list[Any]:
        event = threading.Event()
        thread = threading.Thread(target=event.wait)
        got: list[Any] = [error_of(thread.join), error_of(threading.current_thread().join)]
        thread.start()
        before = time.monotonic()
        got += [thread.join(0), thread.join(-1), thread.join(0.05), thread.is_alive()]  # type: ignore[func-returns-value]
        assert time.monotonic() - before >= 0.05
        threading.Timer(0.05, event.set).start()
        return [*got, thread.join(), thread.is_alive()]  # type: ignore[func-returns-value]

    not_started = RuntimeError, "cannot join thread before it is started"
    itself = RuntimeError, "cannot join current thread"
    assert in_a_cell(place, use) == [not_started, itself, None, None, None, True, None, False]


def test_an_interrupted_join_leaves_the_thread_alive(place: Place) -> None:
    """The thread that was waited for runs on, is known to, and can be joined later."""
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()

    def meanwhile() -> None:
        place.wait_for_cell()
        place.interrupts.interrupt()

    assert isinstance(in_a_cell(place, thread.join, meanwhile), Interrupted)
    assert thread.is_alive()
    event.set()
    thread.join(20)
    assert not thread.is_alive()


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_child_processes_are_waited_for_as_ever(place: Place) -> None:
    """Return codes, limits, input and output, one pipe or all; also where the system has no pidfd."""

    def use() -> list[Any]:
        code = "import sys; text = sys.stdin.read(); print(text * 2); print(len(text), file=sys.stderr); sys.exit(3)"
        text = "x" * 200_000
        done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=False)
        assert done.stdout == text * 2 + "\n"
        limits: list[Any] = []
        with subprocess.Popen(["sleep", "60"]) as child:
            for limit in (0, 0.01):
                with pytest.raises(subprocess.TimeoutExpired) as expired:
                    child.wait(limit)
                limits.append((expired.value.cmd, expired.value.timeout))
            with pytest.raises(subprocess.TimeoutExpired):
                child.communicate(timeout=0.01)
            child.kill()
            limits.append(child.wait())
        one_pipe = subprocess.check_output(["echo", "one"])
        sent = subprocess.run(["cat"], input=b"sent", stdout=subprocess.DEVNULL, check=False).returncode
        return [done.stderr, done.returncode, limits, one_pipe, sent, subprocess.call("exit 4", shell=True)]

    expected = ["200000\n", 3, [(["sleep", "60"], 0), (["sleep", "60"], 0.01), -9], b"one\n", 0, 4]
    assert in_a_cell(place, use) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "pidfd_open", raising=False)
        assert in_a_cell(place, use) == expected


def test_commands_of_the_system_tell_their_status(place: Place) -> None:
    """`os.system` returns what waiting for the shell gave."""
    for command in ("exit 3", "true", "kill -9 $$"):
        assert in_a_cell(place, lambda command=command: os.system(command)) == blocking._system(command)
