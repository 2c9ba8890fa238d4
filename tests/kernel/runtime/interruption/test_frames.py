"""What stacks say: where an interrupt may be raised, and which lines of a traceback are the user's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import cobnut_kernel.runtime.interruption.frames as under_test
from cobnut_kernel.runtime.interruption.frames import end_at_the_cell, is_finalizing, stack_of_awaits


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
