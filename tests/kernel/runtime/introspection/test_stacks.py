"""Where cells, tasks and threads are, and what the variables are, told without running the user's code."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import datetime
import decimal
import linecache
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import trio
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from cobnut_kernel.runtime.interruption.running import CellThread, RunningCell
from cobnut_kernel.runtime.introspection.stacks import stack_lines, stacks, variables

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

TIMEOUT = 20.0


class _Request:
    """What a stack dump reads of a job."""

    def __init__(self, msg_id: str, subshell_id: str | None = None) -> None:
        self.message = types.SimpleNamespace(msg_id=msg_id)
        self.subshell_id = subshell_id


def run_source(source: str, file: str, **names: Any) -> dict[str, Any]:
    """Run a cell's code, whose source is known under the name of a file."""
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    exec(compile(source, file, "exec"), names)
    return names


class Running:
    """A cell that runs in a thread and a loop of its own, as the kernel would run it."""

    def __init__(self, cell: Coroutine[Any, Any, Any], msg_id: str, run: Callable[..., Any] = asyncio.run) -> None:
        self.cells: list[RunningCell] = []
        self._coroutine = cell
        self._request: Any = _Request(msg_id, "sub")
        self.thread = threading.Thread(target=run, args=(self._main() if run is asyncio.run else self._main,))
        self.thread.start()
        wait_until(lambda: self.cells)

    async def _main(self) -> None:
        cell = RunningCell(self._request, 1, CellThread(), self._coroutine, lambda _: None)
        self.cells.append(cell)
        await _drive(cell)


async def _drive(cell: RunningCell) -> None:
    await cell.drive()


def wait_until(condition: Callable[[], object]) -> None:
    """Look again and again until a condition holds."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """What the test's threads wait for; set at its end."""
    event = threading.Event()
    yield event
    event.set()


# ── stacks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cell_that_blocks(go: threading.Event) -> None:
    """Its lines are shown with their source, without the kernel's frames around it."""
    source = "def deep():\n    go.wait()\n\nasync def cell():\n    deep()\n"
    names = run_source(source, "<the cell>", go=go)
    running = Running(names["cell"](), "blocked")
    wait_until(lambda: any("go.wait()" in line for line in stacks(running.cells)["cells"][0]["stack"]))
    (cell,) = stacks(running.cells)["cells"]
    go.set()
    running.thread.join()
    assert (cell["msg_id"], cell["subshell_id"], cell["state"]) == ("blocked", "sub", "running")
    assert cell["thread"] == running.thread.name
    assert cell["seconds"] >= 0
    assert [frame["function"] for frame in cell["frames"] if frame["user"]] == ["cell", "deep"]
    assert cell["frames"][0] == {"file": "<the cell>", "line": 5, "function": "cell", "source": "deep()", "user": True}
    assert '  File "<the cell>", line 2, in deep\n    go.wait()' in cell["stack"]
    assert not any("cobnut_kernel" in line for line in cell["stack"])
    assert any(frame["function"] == "wait" and not frame["user"] for frame in cell["frames"])


_AWAITS = """
async def inner():
    await event.wait()

async def middle():
    await inner()

async def in_background():
    await event.wait()
"""

_ASYNCIO_CELL = """
async def cell():
    global event
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    stop.append(lambda: loop.call_soon_threadsafe(event.set))
    task = asyncio.create_task(in_background(), name='mine')
    await middle()
"""

_TRIO_CELL = """
async def cell():
    global event
    event, token = trio.Event(), trio.lowlevel.current_trio_token()
    stop.append(lambda: token.run_sync_soon(event.set))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_background, name='mine')
        await middle()
"""


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_a_cell_that_awaits_and_its_tasks(run: Callable[..., Any]) -> None:
    """The chain of awaits is followed, in the cell and in the tasks it has made, under asyncio and trio."""
    stop: list[Callable[[], object]] = []
    source = _AWAITS + (_ASYNCIO_CELL if run is asyncio.run else _TRIO_CELL)
    names = run_source(source, "<awaits>", asyncio=asyncio, trio=trio, stop=stop)
    running = Running(names["cell"](), "awaiting", run)
    found: dict[str, Any] = {}

    def is_seen() -> bool:
        found.update(stacks(running.cells))
        functions = [frame["function"] for frame in found["cells"][0]["frames"] if frame["user"]]
        lines = [task["frames"][0]["source"] for task in found["tasks"] if task["name"] == "mine" and task["frames"]]
        return functions == ["cell", "middle", "inner"] and lines == ["await event.wait()"]

    wait_until(is_seen)
    stop[0]()
    running.thread.join()
    assert found["cells"][0]["state"] == "awaiting"
    mine = next(task for task in found["tasks"] if task["name"] == "mine")
    assert mine["state"] == "awaiting"
    assert mine["thread"] == running.thread.name
    assert [frame["function"] for frame in mine["frames"] if frame["user"]] == ["in_background"]


def test_a_task_that_keeps_its_loop(go: threading.Event) -> None:
    """A task that blocks is running, where its thread is; the kernel's own tasks are not told."""
    names = run_source("async def mine():\n    go.wait()\n", "<a task>", go=go)

    async def main() -> None:
        await asyncio.create_task(names["mine"](), name="blocks")

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    wait_until(lambda: any("go.wait()" in line for task in stacks([])["tasks"] for line in task["stack"]))
    told = {task["name"]: task for task in stacks([])["tasks"]}
    go.set()
    thread.join()
    assert told["blocks"]["state"] == "running"
    assert [frame["function"] for frame in told["blocks"]["frames"] if frame["user"]] == ["mine"]


def test_threads(go: threading.Event) -> None:
    """Every thread is there with its stack; the kernel's own are marked."""
    threads = [threading.Thread(target=go.wait, name=name) for name in ("of the user", "cobnut-something")]
    for thread in threads:
        thread.start()
    told = {thread["name"]: thread for thread in stacks([])["threads"]}
    assert told["of the user"]["ident"] == threads[0].ident
    assert (told["of the user"]["kernel"], told["cobnut-something"]["kernel"]) == (False, True)
    here = told[threading.main_thread().name]["frames"]
    assert any(frame["function"] == "test_threads" and frame["user"] for frame in here)
    assert stacks([])["status"] == "ok"
    go.set()
    for thread in threads:
        thread.join()


def test_stack_lines() -> None:
    """A stack is drawn outermost first; no frame, no lines."""
    lines = stack_lines(sys._getframe())
    assert lines[-1].endswith("lines = stack_lines(sys._getframe())")
    assert stack_lines(None) == []


def test_awaitables_of_the_users_are_not_asked() -> None:
    """An awaitable of another making ends the chain; its attributes are not looked up."""
    asked: list[str] = []

    class Loud:
        def __await__(self) -> Loud:
            return self

        def __iter__(self) -> Loud:
            return self

        def __next__(self) -> object:
            return object()

        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    async def cell() -> None:
        await Loud()  # pyright: ignore[reportGeneralTypeIssues]

    coroutine = cell()
    coroutine.send(None)
    request: Any = _Request("loud")
    awaiting = RunningCell(request, 1, CellThread(), coroutine, lambda _: None)
    (told,) = stacks([awaiting])["cells"]
    assert asked == []
    assert (told["state"], [frame["function"] for frame in told["frames"]]) == ("awaiting", ["cell"])
    coroutine.close()


# ── variables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table(**names: Any) -> dict[str, dict[str, Any]]:
    """Return the rows of variables by name."""
    reply = variables(names, {})
    assert (reply["status"], reply["cut"]) == ("ok", 0)
    return {row["name"]: row for row in reply["variables"]}


def function(alpha: int, *rest: int, beta: int = 1) -> int:
    """Stand for a user's function."""
    local = len(rest)
    return alpha + beta + local


@pytest.mark.parametrize(
    ("value", "kind", "summary", "length"),
    [
        (1, "int", "1", None),
        (-(2**300), "int", "<int of 301 bits>", None),
        (1.5, "float", "1.5", None),
        (2j, "complex", "2j", None),
        (True, "bool", "True", None),
        (None, "NoneType", "None", None),
        ("it's", "str", '"it\'s"', 4),
        ("x" * 1000, "str", "'" + "x" * 78 + "…", 1000),
        ("a\nb", "str", "'a\\nb'", 3),
        (b"ab", "bytes", "b'ab'", 2),
        ([], "list", "[]", 0),
        ([1, "a", [2, (3,)]], "list", "[1, 'a', [2, (3,)]]", 3),
        ((1,), "tuple", "(1,)", 1),
        ({1: "one", "two": [2]}, "dict", "{1: 'one', 'two': [2]}", 2),
        ({7}, "set", "{7}", 1),
        (set(), "set", "set()", 0),
        (frozenset({7}), "frozenset", "frozenset({7})", 1),
        (frozenset(), "frozenset", "frozenset()", 0),
        (range(3), "range", "range(0, 3)", 3),
        (
            list(range(10**6)),
            "list",
            "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, …]",
            10**6,
        ),
        ([[[[[1]]]]], "list", "[[[…]]]", 1),
        (collections.OrderedDict(a=1), "OrderedDict", "<OrderedDict>", 1),
        (decimal.Decimal("1.5"), "Decimal", "Decimal('1.5')", None),
        (datetime.date(2024, 5, 6), "date", "datetime.date(2024, 5, 6)", None),
        (function, "function", "function(alpha, beta)", None),
        (len, "builtin_function_or_method", "len(…)", None),
        (_Request, "type", "class _Request", None),
        (object(), "object", "<object>", None),
        ([object()], "list", "[<object>]", 1),
    ],
)
def test_values(value: Any, kind: str, summary: str, length: int | None) -> None:
    """Python's own values are written in a line, with their length and their size."""
    row = table(value=value)["value"]
    assert (row["type"], row["summary"], row.get("length")) == (kind, summary, length)
    assert row["shape"] is None
    assert row["size"] == pytest.approx(sys.getsizeof(value), abs=16)


def test_a_container_in_itself_ends() -> None:
    """What holds itself is drawn as deep as other things."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert table(loop=loop)["loop"]["summary"] == "[1, [1, [1, …]]]"


def test_arrays_and_tables() -> None:
    """Arrays have shape, dtype and bytes; tables their columns."""
    rows = table(
        small=np.array([1, 2, 3]),
        large=np.zeros((1000, 20), dtype="float32"),
        empty=np.zeros((0, 3)),
        objects=np.array([object()]),
        scalar=np.float64(1.5),
        frame=pd.DataFrame({"a": [1, 2], "b c": ["x", "y"], 3: [0.5, 1.5]}),
        series=pd.Series([1, 2, 3]),
        np=np,
    )
    assert rows["np"]["summary"] == f"numpy {np.__version__}"
    assert (rows["small"]["shape"], rows["small"]["dtype"], rows["small"]["summary"]) == ([3], "int64", "[1, 2, 3]")
    assert (rows["large"]["shape"], rows["large"]["dtype"], rows["large"]["size"]) == ([1000, 20], "float32", 80000)
    assert rows["large"]["summary"] == "[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, …]"
    assert rows["empty"]["shape"] == [0, 3]
    assert rows["objects"]["shape"] == [1]
    assert rows["scalar"]["summary"] == "1.5"
    assert (rows["frame"]["shape"], rows["frame"]["summary"], rows["frame"]["type"]) == (
        [2, 3],
        "a, b c, 3",
        "DataFrame",
    )
    assert rows["frame"]["size"] > 0
    assert (rows["series"]["shape"], rows["series"]["dtype"]) == ([3], "int64")
    assert rows["frame"]["module"].startswith("pandas")


def test_nothing_of_the_users_is_run() -> None:  # noqa: C901 - there is much that is not called
    """Methods, properties and metaclasses of the user's are never called, whatever they are named."""
    called: list[str] = []

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            called.append(name)
            return super().__getattribute__(name)

        def __hash__(cls) -> int:
            called.append("hash")
            return 1

        def __eq__(cls, other: object) -> bool:
            called.append("eq")
            return False

        def __instancecheck__(cls, instance: object) -> bool:
            called.append("instance")
            return True

    class Loud(dict[str, int], metaclass=Meta):
        shape = property(lambda _self: called.append("shape"))
        __module__ = "numpy"

        def __getattribute__(self, name: str) -> Any:
            called.append(name)
            return super().__getattribute__(name)

        def __repr__(self) -> str:
            called.append("repr")
            return "loud"

        def __len__(self) -> int:
            called.append("len")
            return 3

        def __sizeof__(self) -> int:
            called.append("sizeof")
            return 3

        def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
            called.append("hash")
            return 3

    class Array(np.ndarray[Any, Any]):
        def __array_finalize__(self, obj: object) -> None:
            called.append("finalize")

        @property
        def nbytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
            called.append("nbytes")
            return 1

    loud, array = Loud(), np.zeros(3).view(Array)
    held: dict[str, Any] = {"loud": loud, "cls": Loud, "listed": [loud, Loud], "array": array}
    called.clear()
    reply = variables(held, {})
    assert called == []
    rows = {row["name"]: row for row in reply["variables"]}
    assert (rows["loud"]["type"], rows["loud"]["summary"], rows["loud"]["size"]) == ("Loud", "<Loud>", None)
    assert "length" not in rows["loud"]
    assert rows["cls"]["summary"].endswith("Loud")
    assert rows["listed"]["length"] == 2


def test_whose_names_are_listed() -> None:
    """IPython's own names and hidden ones are left out, the user's under the same names are not; modules come last."""
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_cell("import math\nx = 1\n_hidden = 2\nOut", store_history=True)
    assert [row["name"] for row in variables(shell.user_ns, {})["variables"]] == ["x", "math"]
    shell.run_cell("quit = 3\nIn = 4\nopen = 5\ndef display(): pass")
    names = [row["name"] for row in variables(shell.user_ns, {})["variables"]]
    assert set(names) == {"x", "quit", "In", "open", "display", "math"}
    assert names[-1] == "math"
    math_row = variables(shell.user_ns, {})["variables"][-1]
    assert (math_row["type"], math_row["module"]) == ("module", "builtins")
    assert math_row["summary"] == "math"


def test_a_limit() -> None:
    """The reply says how many variables it leaves out."""
    reply = variables({f"x{number}": number for number in range(10)}, {"limit": 3})
    assert [row["name"] for row in reply["variables"]] == ["x0", "x1", "x2"]
    assert reply["cut"] == 7
    assert variables({"x": 1}, {"limit": 0})["cut"] == 1
    with pytest.raises(TypeError, match="limit"):
        variables({}, {"limit": "ten"})


def test_containers_that_change_meanwhile() -> None:
    """A table is made while a cell fills and empties what it shows."""
    changing: dict[str, Any] = {}
    held: dict[str, Any] = {"changing": changing, "plain": 1}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            changing.update((f"k{number}", number) for number in range(50))
            held["more"] = 1
            with contextlib.suppress(KeyError):
                del held["more"]
            changing.clear()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            assert {row["name"] for row in variables(held, {})["variables"]} >= {"changing", "plain"}
    finally:
        stop.set()
        thread.join()
