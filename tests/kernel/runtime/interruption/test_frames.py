"""What stacks say: where an interrupt may be raised, and which lines of a traceback are the user's."""

from __future__ import annotations

import asyncio
import gc
import pty
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import outcome
import pytest
import trio

import cobnut_kernel.runtime.interruption.frames as under_test
from cobnut_kernel.runtime.interruption.frames import (
    add_trio,
    end_at_the_cell,
    is_careful,
    is_delicate,
    is_finalizing,
    is_preparing,
    of_threads,
    stack_of_awaits,
    steps_a_task,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Watched:
    """Tells of each of its ends whether a finalizer was seen to run."""

    def __init__(self, seen: list[bool]) -> None:
        self._seen = seen

    def __del__(self) -> None:
        self.look()

    def look(self) -> bool:
        """Look from within another function."""
        self._seen.append(is_finalizing(sys._getframe()))
        return self._seen[-1]


def test_a_finalizer_is_known_by_where_its_caller_stands() -> None:
    """A name that is bound anew or taken away, and a value that nobody keeps, call what no code has called."""
    seen: list[bool] = []
    names: dict[str, Any] = {"Watched": Watched, "seen": seen}
    exec("kept = Watched(seen); kept = 1; kept = Watched(seen); del kept; Watched(seen)", names)
    kept = Watched(seen)
    kept = None
    kept = Watched(seen)
    del kept
    assert seen == [True] * 5


def test_what_is_called_is_no_finalizer() -> None:
    """Neither a call, nor an operator, an attribute, a loop or an import."""
    seen: list[bool] = []
    watched = Watched(seen)

    class Calls:
        @property
        def attribute(self) -> bool:
            return watched.look()

        def __add__(self, _other: object) -> bool:
            return watched.look()

        def __iter__(self) -> Any:
            yield watched.look()

        def __enter__(self) -> bool:
            return watched.look()

        def __exit__(self, *_: object) -> None:
            watched.look()

    with Calls() as entered:
        got = [watched.look(), Calls().attribute, Calls() + 1, *Calls(), entered]
    assert not any(got)
    assert not any(seen)


def trace_of(function: Any) -> list[str]:
    """Return the functions that an interrupt's traceback shows."""
    with pytest.raises(KeyboardInterrupt) as raised:
        function()
    end_at_the_cell(raised.value.__traceback__, interrupted=True)
    trace, names = raised.value.__traceback__, list[str]()
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python collects no garbage within a call of C since 3.12")
def test_no_garbage_is_collected_while_threads_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer might let another thread run, which would wait for ever; collecting is on, or off, as before."""
    collected: list[str] = []
    looks: list[list[str]] = []
    current_frames = sys._current_frames

    def look() -> Any:
        del collected[:]
        found = current_frames()
        looks.append(collected[:])
        return found

    monkeypatch.setattr(sys, "_current_frames", look)
    threshold, enabled = gc.get_threshold(), gc.isenabled()
    gc.callbacks.append(note := lambda phase, _: collected.append(phase))
    try:
        for is_on in (True, False):
            (gc.enable if is_on else gc.disable)()
            gc.set_threshold(1)
            assert threading.get_ident() in of_threads()
            gc.set_threshold(*threshold)
            assert gc.isenabled() == is_on
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
        (gc.enable if enabled else gc.disable)()
    assert looks == [[], []]


def test_the_frames_of_trio_are_not_interrupted() -> None:
    """Those of the packages that it keeps results by belong to its loop too, and those that attrs has written."""

    async def look() -> bool:
        outcome.capture(lambda: seen.append(is_careful(sys._getframe(1))))
        return is_careful(sys._getframe())

    seen: list[bool] = []
    add_trio()
    assert not trio.run(look)
    assert seen == [True]
    names: dict[str, Any] = {"look": sys._getframe}
    exec(compile("frame = look()", "<attrs generated init outcome._impl.Value>", "exec"), names)
    assert is_careful(names["frame"])


def test_what_a_loop_calls_of_pythons_own_is_no_task() -> None:
    """It puts away what a task has left; a callback of the user's may be Python's own function all the same."""
    seen: list[bool] = []
    names: dict[str, Any] = {}
    code = "def call(function, *arguments): function(*arguments)"
    for file in (asyncio.__file__, threading.__file__):
        exec(compile(code, file, "exec"), names)
        names[file] = names["call"]
    of_the_loop, of_python = names[asyncio.__file__], names[threading.__file__]

    def look() -> None:
        seen.append(steps_a_task(sys._getframe(1)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(of_the_loop, of_python, look)
        loop.call_soon(of_python, look)
        loop.call_soon(of_the_loop, lambda: of_python(look))
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [False, True, True]


def test_a_thread_is_begun_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would list one for ever that was interrupted before it ran."""
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: None)
    begin = threading._start_new_thread

    def look(*args: Any) -> Any:
        seen.append(is_delicate(sys._getframe(1)))
        return begin(*args)

    monkeypatch.setattr(threading, "_start_new_thread", look)
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("spawn", "/x/site-packages/ptyprocess/ptyprocess.py", True),
        ("__init__", "/x/site-packages/ptyprocess/ptyprocess.py", True),
        ("read", "/x/site-packages/ptyprocess/ptyprocess.py", False),
        ("spawn", "/elsewhere/ptyprocess.py", False),
        ("fork", pty.__file__, True),
        ("spawn", pty.__file__, False),
        ("fork", "/elsewhere/pty.py", False),
    ],
)
def test_a_command_in_a_terminal_is_not_interrupted_before_its_child_is_known(
    name: str, file: str, expected: bool
) -> None:
    """Whoever forks and does not learn whom he has forked leaves him behind; to wait for him is no such thing."""
    names: dict[str, Any] = {"sys": sys}
    exec(compile(f"def {name}(): return sys._getframe()", file, "exec"), names)
    assert is_careful(names[name]()) is expected


def test_what_ipython_does_for_a_cell_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its code and after it, but not the code; a hook of IPython's own, but not one of the user's."""
    seen: list[bool] = []

    def look() -> None:
        seen.append(is_preparing(sys._getframe(1)))

    def execute() -> None:
        look()

    def prepare() -> None:
        look()
        execute()
        look()

    def trigger(hook: Callable[[], None]) -> None:
        look()
        hook()

    def hook() -> None:
        look()

    monkeypatch.setattr(under_test, "_prepares", {prepare.__code__, trigger.__code__})
    monkeypatch.setattr(under_test, "_executes", execute.__code__)
    prepare()
    assert seen == [True, False, True]
    del seen[:]
    trigger(hook)
    assert seen == [True, False]
    del seen[:]
    trigger(partial(look))
    assert seen == [True, True]


def test_an_interrupts_traceback_ends_with_the_line_that_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard library's frames say nothing of the user's code, and ours neither; what is installed is shown."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def ask() -> None:
        subprocess.run(["true"], check=False)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    assert trace_of(ask) == ["trace_of", "ask", "run", "interrupt"]  # the last one is this file's own
    monkeypatch.setattr(subprocess.Popen, "communicate", compile_as(subprocess.__file__))
    assert trace_of(ask) == ["trace_of", "ask"]
    monkeypatch.setattr(subprocess.Popen, "communicate", compile_as(under_test.__file__))
    assert trace_of(ask) == ["trace_of", "ask"]
    monkeypatch.setattr(subprocess.Popen, "communicate", compile_as(pytest.__file__))
    assert trace_of(ask) == ["trace_of", "ask", "run", "interrupt"]


def compile_as(file: str) -> Any:
    """Make a function that raises an interrupt, as code of another file."""
    names: dict[str, Any] = {}
    exec(compile("def interrupt(*_, **__): raise KeyboardInterrupt", file, "exec"), names)
    return names["interrupt"]


def test_the_stack_of_awaits_goes_through_generators_and_wrappers() -> None:
    """Coroutines, asynchronous generators and what CPython wraps around them are followed to the innermost."""

    async def innermost() -> None:
        await asyncio.Event().wait()

    async def ticks() -> Any:
        await innermost()
        yield 1

    async def outer() -> None:
        async for _ in ticks():
            pass

    async def main() -> list[str]:
        coroutine = outer()
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0)
        lines = stack_of_awaits(coroutine)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return lines

    names = [line.splitlines()[0].rpartition(" in ")[2] for line in asyncio.run(main())]
    assert names == ["outer", "ticks", "innermost", "wait"]
