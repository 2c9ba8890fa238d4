"""Whose output it is: a cell's tasks, threads and the work it hands to executors are its own."""

from __future__ import annotations

import _thread
import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Header, Message, MessageType
from cobnut_kernel.runtime.output.routing import LATEST, CurrentJob, ThreadRouting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.wire import WireClient


@dataclass(eq=False)
class FakeJob:
    """As much of a job as routing knows of."""

    message: Message


def job(name: str, msg_type: str = MessageType.EXECUTE_REQUEST, **content: Any) -> Any:
    """Make a job whose request has this id."""
    header = Header(name, msg_type)
    return FakeJob(Message(header, None, {}, content, header_json=dumps(header.as_dict())))


@pytest.fixture
def current() -> CurrentJob:
    """Nobody has begun a job."""
    return CurrentJob()


@pytest.fixture
def routed(current: CurrentJob) -> Iterator[CurrentJob]:
    """Threads have the job of who started them."""
    with ThreadRouting(current):
        yield current


def in_cell(current: CurrentJob, cell: Any, run: Callable[[], Any]) -> Any:
    """Run something as a cell does: in a context of its own, begun and ended."""

    def work() -> Any:
        current.begin(cell)
        try:
            return run()
        finally:
            current.end(cell)

    return copy_context().run(work)


# ── the job of a context ────────────────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_job_output_has_no_parent(current: CurrentJob) -> None:
    """Nothing is made up where no request has come yet."""
    assert current.get() is None
    assert (current.parent(), current.of_unknown_thread(), current.of_processes()) == (
        EMPTY,
        (EMPTY, EMPTY),
        (EMPTY, EMPTY),
    )


def test_a_context_keeps_its_job_and_others_get_the_latest(current: CurrentJob) -> None:
    """Who has begun no job is taken for the latest cell's, and marked as a guess."""
    first, second = job("first"), job("second")
    one, two = copy_context(), copy_context()
    one.run(current.begin, first)
    two.run(current.begin, second)
    assert (one.run(current.get), two.run(current.get), Context().run(current.get)) == (first, second, second)
    assert Context().run(current.of_unknown_thread) == (second.message.header_json, LATEST)


def test_only_cells_become_the_latest(current: CurrentJob) -> None:
    """A request that is no cell has its own output, and nobody else's."""
    cell, info = job("cell"), job("info", MessageType.KERNEL_INFO_REQUEST)
    copy_context().run(current.begin, cell)
    other = copy_context()
    other.run(current.begin, info)
    assert other.run(current.get) is info
    assert Context().run(current.get) is cell


def test_the_latest_cell_is_one_that_runs(current: CurrentJob) -> None:
    """When a later cell has ended and an earlier one runs on, what nobody knows the cell of is the earlier one's."""
    first, second = job("first"), job("second")
    for cell in (first, second):
        copy_context().run(current.begin, cell)
    current.end(second)
    assert current.latest is first
    current.end(first)
    assert current.latest is second
    current.end(second)  # twice does no harm
    assert current.latest is second


def test_a_silent_cell_is_the_latest_only_while_it_runs(current: CurrentJob) -> None:
    """What a front end runs behind the scenes does not take the output of threads away from the user's cells."""
    shown, silent = job("shown"), job("silent", silent=True)
    in_cell(current, shown, lambda: None)
    assert in_cell(current, silent, lambda: current.latest) is silent
    assert current.latest is shown


def test_output_of_processes_is_the_one_cells_that_runs(current: CurrentJob) -> None:
    """It is a guess where several cells run, or none."""
    first, second = job("first"), job("second")
    copy_context().run(current.begin, first)
    assert current.of_processes() == (first.message.header_json, EMPTY)
    copy_context().run(current.begin, second)
    assert current.of_processes() == (second.message.header_json, LATEST)
    current.end(second)
    assert current.of_processes() == (first.message.header_json, EMPTY)
    current.end(first)
    assert current.of_processes() == (second.message.header_json, LATEST)


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_thread(function: Callable[[], object]) -> None:
    """Run it in a thread."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def by_subclass(function: Callable[[], object]) -> None:
    """Run it in a thread class of the user's, which overrides what one overrides."""

    class Worker(threading.Thread):
        def __init__(self) -> None:
            super().__init__(daemon=True)

        def start(self) -> None:
            super().start()

        def run(self) -> None:
            function()

    worker = Worker()
    worker.start()
    worker.join()


def by_thread_in_a_thread(function: Callable[[], object]) -> None:
    """Run it in a thread that a thread has started."""
    by_thread(lambda: by_thread(function))


def by_low_level(function: Callable[[], object]) -> None:
    """Run it in a thread of `_thread`."""
    done = threading.Event()
    _thread.start_new_thread(lambda given: (given(), done.set()), (function,))
    assert done.wait(10)


def by_timer(function: Callable[[], object]) -> None:
    """Run it in a timer."""
    timer = threading.Timer(0, function)
    timer.start()
    timer.join()


def by_pool(function: Callable[[], object]) -> None:
    """Run it in an executor of its own."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def by_default_executor(function: Callable[[], object]) -> None:
    """Run it in the loop's executor."""

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, function)

    asyncio.run(main())


def by_to_thread(function: Callable[[], object]) -> None:
    """Run it by asyncio's to_thread."""
    asyncio.run(asyncio.to_thread(function))


def by_anyio(function: Callable[[], object]) -> None:
    """Run it by anyio's to_thread, under trio."""
    import anyio.to_thread

    async def main() -> None:
        await anyio.to_thread.run_sync(function)

    anyio.run(main, backend="trio")


def by_thread_pool(function: Callable[[], object]) -> None:
    """Run it in a pool of multiprocessing's threads."""
    from multiprocessing.pool import ThreadPool

    with ThreadPool(1) as pool:
        pool.apply(function)
        pool.close()
        pool.join()


WAYS = [
    by_thread, by_subclass, by_thread_in_a_thread, by_low_level, by_timer, by_pool, by_default_executor, by_to_thread,
    by_anyio, by_thread_pool,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_a_cell_starts_belongs_to_it(routed: CurrentJob, way: Callable[[Callable[[], object]], None]) -> None:
    """Every way to run something in another thread keeps the cell, although a later one has begun."""
    mine, other, seen = job("mine"), job("other"), list[Any]()

    def work() -> None:
        copy_context().run(routed.begin, other)
        way(lambda: seen.append(routed.get()))

    in_cell(routed, mine, work)
    assert seen == [mine]


def test_a_thread_outlives_its_cell_and_is_still_its_own(routed: CurrentJob) -> None:
    """The cell's end, and the next one's beginning, change nothing for it."""
    go, seen = threading.Event(), list[Any]()
    thread = threading.Thread(target=lambda: (go.wait(10), seen.append(routed.get())))
    first, second = job("first"), job("second")
    in_cell(routed, first, thread.start)
    in_cell(routed, second, lambda: (go.set(), thread.join()))
    assert seen == [first]


def test_an_executors_work_belongs_to_who_submits_it(routed: CurrentJob) -> None:
    """The worker's thread was started by the first cell; the second one's work is the second one's."""
    first, second = job("first"), job("second")
    with ThreadPoolExecutor(1) as pool:
        assert in_cell(routed, first, lambda: pool.submit(routed.get).result()) is first
        assert in_cell(routed, second, lambda: pool.submit(routed.get).result()) is second
        assert in_cell(routed, first, lambda: list(pool.map(lambda _: routed.get(), range(2)))) == [first, first]


def test_a_thread_without_a_job_follows_the_latest_cell(routed: CurrentJob) -> None:
    """A thread that was there before any cell is taken for the latest cell's, whichever that is."""
    ask, answer = threading.Semaphore(0), threading.Semaphore(0)
    seen: list[Any] = []

    def follow() -> None:
        for _ in range(2):
            ask.acquire(timeout=10)
            seen.append(routed.get())
            answer.release()

    thread = threading.Thread(target=follow)
    Context().run(thread.start)
    cells = [job("first"), job("second")]
    for cell in cells:
        in_cell(routed, cell, lambda: (ask.release(), answer.acquire(timeout=10)))
    thread.join()
    assert seen == cells


def test_threads_may_be_left_to_the_latest_cell(current: CurrentJob) -> None:
    """The option `latest` is ipykernel 7's behaviour; what was asked for is not flagged as a guess."""
    mine, other, seen = job("mine"), job("other"), list[Any]()

    def work() -> None:
        copy_context().run(current.begin, other)
        by_thread(lambda: seen.append(current.of_unknown_thread()))

    with ThreadRouting(current, "latest"):
        in_cell(current, mine, work)
    assert seen == [(other.message.header_json, EMPTY)]
    assert Context().run(current.of_unknown_thread)[1] == LATEST


def test_threads_start_as_ever(routed: CurrentJob) -> None:
    """Arguments, results, errors and signatures are those of the functions that were changed."""

    def work() -> None:
        got: list[Any] = []
        done = threading.Event()
        _thread.start_new_thread(lambda *a, **k: (got.append((a, k)), done.set()), (1, 2), {"key": 3})
        assert done.wait(10)
        assert got == [((1, 2), {"key": 3})]
        for wrong in (lambda: _thread.start_new_thread(1, ()), lambda: _thread.start_new_thread(print, [1])):  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                wrong()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda a, *, b: (a, b), 1, b=2).result() == (1, 2)
            with pytest.raises(ZeroDivisionError):
                pool.submit(lambda: 1 / 0).result()
        with pytest.raises(RuntimeError):
            pool.submit(print)

    in_cell(routed, job("cell"), work)
    assert list(inspect.signature(ThreadPoolExecutor.submit).parameters) == ["self", "fn", "args", "kwargs"]


def test_what_was_changed_is_put_back(current: CurrentJob) -> None:
    """At the end all is as it was, but for what somebody else has changed meanwhile."""

    def found() -> tuple[Any, ...]:
        return _thread.start_new_thread, threading._start_new_thread, ThreadPoolExecutor.submit  # type: ignore[attr-defined]

    before = found()
    with ThreadRouting(current):
        assert all(mine is not its for mine, its in zip(before, found(), strict=True))
    assert found() == before
    with pytest.MonkeyPatch.context() as patch:
        with ThreadRouting(current):
            patch.setattr(_thread, "start_new_thread", len)
        assert _thread.start_new_thread is len
        assert found()[1:] == before[1:]
        _thread.start_new_thread = before[0]


# ── the user says whose ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thread_can_be_told_its_parent(routed: CurrentJob) -> None:
    """As a message, as a header, as None for the latest cell; and be told to forget it again."""
    mine, other = job("mine"), job("other")

    def work() -> list[Any]:
        copy_context().run(routed.begin, other)
        seen = [routed.get()]
        tokens = [routed.set_thread_parent(None)]
        seen.append(routed.get())
        tokens.append(routed.set_thread_parent(mine.message.as_dict()))
        seen.append(routed.get())
        tokens.append(routed.set_thread_parent(other.message.as_dict()["header"]))
        seen.append(routed.get())
        while tokens:
            routed.reset_thread_parent(tokens.pop())
        return [*seen, routed.get()]

    assert in_cell(routed, mine, work) == [mine, other, mine, other, mine]


def test_a_parent_that_is_long_gone_is_named_all_the_same(routed: CurrentJob) -> None:
    """Only the header is needed: output names it, and the cell that runs is not changed."""
    mine = job("mine")

    def work() -> None:
        routed.set_thread_parent(job("gone").message.as_dict())
        assert b'"gone"' in routed.parent()
        stand_in = routed.get()
        assert stand_in is not None
        assert stand_in.message.msg_id == "gone"
        with pytest.raises(MalformedMessageError):
            routed.set_thread_parent({"no": "header"})

    in_cell(routed, mine, work)
    assert mine.message.msg_id == "mine"


def test_another_threads_token_is_refused(routed: CurrentJob) -> None:
    """A token counts where it was made."""
    token = routed.set_thread_parent(None)
    with pytest.raises(ValueError, match="Context"):
        copy_context().run(routed.reset_thread_parent, token)
    routed.reset_thread_parent(token)


# ── over the wire ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "start",
    [
        "t = threading.Thread(target=work); t.start()",
        "import _thread; _thread.start_new_thread(work, ())",
        "from concurrent.futures import ThreadPoolExecutor as P; pool = P(1); f = pool.submit(work)",
        "import asyncio; f = asyncio.get_running_loop().run_in_executor(None, work)",
        "import anyio.to_thread; f = asyncio.ensure_future(anyio.to_thread.run_sync(work))",
    ],
)
def test_a_thread_prints_into_its_own_cell_after_its_end(client: WireClient, start: str) -> None:
    """While a later cell runs, what a thread says, on both streams and as a display, belongs to its own (R31)."""
    first = client.execute(
        "import threading, sys, asyncio\ngo, gone = threading.Event(), threading.Event()\n"
        "def work():\n    go.wait(20); print('said'); print('complained', file=sys.stderr); display('it'); gone.set()\n"
        f"{start}; await asyncio.sleep(0)"
    )
    second = client.execute("await asyncio.sleep(0.05); go.set(); gone.wait(20); print('from the second cell')")
    client.wait(lambda: first.of_type(MessageType.DISPLAY_DATA), "the display")
    assert (first.text(), first.text("stderr")) == ("said\n", "complained\n")
    assert (second.text(), second.text("stderr"), second.of_type(MessageType.DISPLAY_DATA)) == (
        "from the second cell\n", "", [],
    )  # fmt: skip


def test_a_thread_of_c_code_prints_into_the_latest_cell_and_says_so(client: WireClient) -> None:
    """Nobody knows who started it: its output is flagged (R32)."""
    exchange = client.execute(
        "import ctypes, threading\nlibrary = ctypes.CDLL(None)\ndone = threading.Event()\n"
        "@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)\n"
        "def work(_):\n    print('from C'); done.set()\n"
        "thread = ctypes.c_ulong()\n"
        "library.pthread_create(ctypes.byref(thread), None, work, None); done.wait(20)\n"
        "library.pthread_join(thread, None); None"
    )
    assert exchange.text() == "from C\n"
    streams = [message for message in exchange.iopub if message.msg_type == MessageType.STREAM]
    assert {message.metadata.get("routing") for message in streams} == {"latest"}
