"""Where every cell, task and thread is, told from outside while they run. Nothing here runs the user's code."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

import IPython

from cobnut_kernel.runtime.interruption import frames
from cobnut_kernel.runtime.interruption.running import RunningCell
from cobnut_kernel.runtime.introspection.variables import variables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import FrameType

    Place = tuple[FrameType, int]
    """A frame and its line."""

__all__ = ["stack_lines", "stacks", "variables"]

_IPYTHON = str(Path(str(IPython.__file__)).parent)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_RUNNER = os.path.join("asyncio", "runners.py")  # noqa: PTH118 - the end of a path
_TRIO = os.path.join("trio", "_core", "_run.py")  # noqa: PTH118
_COROUTINES = CoroutineType, GeneratorType, AsyncGeneratorType
_INSTALLED = f"{os.sep}site-packages{os.sep}"


def stacks(running: Sequence[RunningCell]) -> dict[str, Any]:
    """Say where the running cells, the tasks that are the user's, and all threads are.

    Args:
        running: the cells that run.

    Returns:
        The content of a stack_reply. Each of `cells`, `tasks` and `threads` has a `stack`, lines of text with the
        outermost frame first, and the same as `frames`: file, line, function, source, and whether it is the `user`'s.
        A cell has `msg_id`, `subshell_id`, the name of its `thread`, `seconds` since its start, and the `state`
        "running" or "awaiting"; a task has `name`, `thread` and `state`; a thread `name`, `ident`, and whether it is
        the `kernel`'s own.
    """
    at = frames.of_threads()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        "status": "ok",
        "cells": [_cell(cell, at.get(cell.thread_ident), names) for cell in running],
        "tasks": [task for ident, frame in at.items() for task in _tasks(frame, names.get(ident, str(ident)))],
        "threads": [_thread(ident, frame, names.get(ident)) for ident, frame in at.items()],
    }


def stack_lines(frame: FrameType | None) -> list[str]:
    """Draw a stack, outermost frame first, without the kernel's frames and those of IPython that lead to the cell."""
    return _drawn(_of_the_user(_below(frame)))["stack"]


# ── cells, tasks and threads ────────────────────────────────────────────────────────────────────────────────────────


def _cell(cell: RunningCell, frame: FrameType | None, names: dict[int | None, str]) -> dict[str, Any]:
    running = cell.thread.current is cell
    if running:
        places = _below(frame, RunningCell.drive.__code__)
    elif frames.steps_a_task(frame):  # which keeps the loop from running
        places = _below(frame)
    else:
        places = _awaited(cell.coroutine)
    return {
        "msg_id": cell.job.message.msg_id,
        "subshell_id": cell.job.subshell_id,
        "thread": names.get(cell.thread_ident, str(cell.thread_ident)),
        "seconds": round(time.monotonic() - cell.started, 3),
        "state": "running" if running else "awaiting",
        **_drawn(_of_the_user(places)),
    }


def _thread(ident: int, frame: FrameType, name: str | None) -> dict[str, Any]:
    drawn = _drawn(_below(frame))
    own = name is not None and (name.startswith("cobnut-") or name == "IPythonHistorySavingThread")
    return {"name": name or str(ident), "ident": ident, "kernel": own, **drawn}


def _tasks(frame: FrameType | None, thread: str) -> Iterator[dict[str, Any]]:
    """Describe the tasks of the event loops that run on a stack, but for the kernel's."""
    loops: list[Any] = []
    places = _since_step(frame)
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name == "run_forever" and "asyncio" in file:
            loops.append(frame.f_locals.get("self"))
        elif name == "run" and file.endswith(_RUNNER):
            loops.append(getattr(frame.f_locals.get("self"), "_loop", None))
        elif name == "run" and file.endswith(_TRIO):  # the only one of this name that is there while all tasks wait
            for task in list(getattr(frame.f_locals.get("runner"), "tasks", ())):
                running = bool(task.coro.cr_running)
                yield from _task(task.name, places if running else _awaited(task.coro), thread, running=running)
        frame = frame.f_back
    for loop in {id(loop): loop for loop in loops if loop is not None}.values():
        current = asyncio.current_task(loop)
        for task in asyncio.all_tasks(loop):
            running = task is current
            found = places if running else _awaited(task.get_coro())
            yield from _task(task.get_name(), found, thread, running=running)


def _task(name: str, places: Iterable[Place], thread: str, *, running: bool) -> Iterator[dict[str, Any]]:
    """Describe a task, unless it is the kernel's."""
    places = list(places)
    first = next((frame for frame, _ in places if frames.is_ours(frame) or not frames.is_careful(frame)), None)
    if first is None or not frames.is_ours(first):
        yield {"name": str(name), "thread": thread, "state": "running" if running else "awaiting", **_drawn(places)}


# ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _below(frame: FrameType | None, root: Any = None) -> list[Place]:
    """Return a stack's frames, outermost first, from below the innermost one of a function on."""
    places: list[Place] = []
    while frame is not None and frame.f_code is not root:
        places.append((frame, frame.f_lineno))
        frame = frame.f_back
    return places[::-1]


def _since_step(frame: FrameType | None) -> list[Place]:
    """Return the frames of what an event loop executes, outermost first; none if it waits."""
    places = _below(frame)
    steps = [number for number, (each, _) in enumerate(places) if each.f_code in frames._LOOP_STEPS]
    return places[steps[-1] + 1 :] if steps else []


def _awaited(awaiting: Any) -> Iterator[Place]:
    """Return the frames of a suspended coroutine and of what it awaits, as far as these are Python's own."""
    while any(type(awaiting) is kind for kind in _COROUTINES) or type(awaiting).__name__ in frames._WRAPPERS:
        frame, awaiting = frames._awaiting_frame(awaiting)
        if frame is not None:
            yield frame, frame.f_lineno


def _of_the_user(places: Iterable[Place]) -> list[Place]:
    """Take the kernel's frames out, and those of IPython that lead to the cell."""
    kept = [place for place in places if not frames.is_ours(place[0])]
    first = next((number for number, (frame, _) in enumerate(kept) if not _is_file_in(frame, _IPYTHON)), len(kept))
    return kept[first:] or kept


def _is_file_in(frame: FrameType, folder: str) -> bool:
    return frame.f_code.co_filename.startswith(folder + os.sep)


def _is_the_users(file: str) -> bool:
    """Whether a file is neither Python's nor installed; a cell's never is."""
    return not (file.startswith(("<frozen ", *_LIBRARIES, frames._OURS)) or _INSTALLED in file)


def _drawn(places: Iterable[Place]) -> dict[str, Any]:
    summary = traceback.StackSummary.extract(iter(places))
    return {
        "stack": [line.rstrip("\n") for line in summary.format()],
        "frames": [
            {
                "file": frame.filename,
                "line": frame.lineno,
                "function": frame.name,
                "source": frame.line or "",
                "user": _is_the_users(frame.filename),
            }
            for frame in summary
        ],
    }
