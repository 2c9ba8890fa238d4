"""What a stack says: whose code runs, and whether it may be interrupted there."""

from __future__ import annotations

import _weakrefset
import asyncio
import contextlib
import gc
import logging
import os
import queue
import subprocess
import sys
import threading
import traceback
import types
from contextlib import contextmanager
from itertools import dropwhile
from opcode import opmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_OURS = str(Path(__file__).parents[2])
_BLOCKING = str(Path(__file__).with_name("blocking.py"))
_loops: tuple[str, ...] = tuple(str(Path(str(module.__file__)).parent) for module in (asyncio, anyio))
_debugger: tuple[str, ...] = ()
_border: types.CodeType | None = None
_COMPILED = ("_pydevd_bundle" + os.sep, "_pydevd_sys_monitoring" + os.sep, "<stringsource>", "stringsource")
"""How Cython names the files of pydevd."""
_WAITS = (_OURS, *(str(module.__file__) for module in (contextlib, queue, threading)))
"""The files by whose means a debugger waits."""
_STANDARD = str(Path(str(asyncio.__file__)).parents[1])
_WEAK_SETS = str(Path(str(_weakrefset.__file__)))
"""Where tasks are registered; Python drops what is raised in the callbacks there."""

_IMPORTS = "<frozen importlib._bootstrap"
"""The files that import: an interrupt there may leave a module's lock taken, for ever and for all threads."""

_popen: Any = subprocess.Popen
_STARTS_A_CHILD: types.CodeType = getattr(_popen._execute_child, "__wrapped__", _popen._execute_child).__code__
"""What is interrupted there leaves a child that nobody knows, and the descriptors of a pipe."""
_PTY = str(Path(_STANDARD, "pty.py"))
_PTYPROCESS = str(Path("/site-packages/ptyprocess/ptyprocess.py"))
"""The file by which IPython starts a command: its object for the child closes the terminal, which ends the child."""

_TAKES_A_LOCK = frozenset(
    function.__code__
    for kind, names in (
        (threading.Condition, ("__enter__", "__exit__")),
        (logging.Handler, ("acquire", "release")),
        (threading.Thread, ("start",)),
    )
    for name in names
    if isinstance(function := getattr(kind, name), types.FunctionType)
)
"""What is interrupted there may keep a lock for ever: it has it and its `with` has not begun, or has it no more.

A thread that is not begun quite stays among those that Python lists.
"""

_prepares: frozenset[types.CodeType] = frozenset()
_executes: types.CodeType | None = None

_looking = threading.RLock()
"""Is held by who asks where the threads stand; again where a signal's handler asks in the midst of it."""

_LOOP_STEPS: set[types.CodeType] = {asyncio.Handle._run.__code__}
"""The functions of event loops that run a task or a callback."""

_WRAPPERS = ("coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "async_generator_aclose")
"""What CPython puts around something that is awaited, and that has no attribute for it."""

_CALLS_NOTHING = {
    number
    for name, number in opmap.items()
    if name.startswith(("STORE_FAST", "DELETE_FAST"))
    or name in ("STORE_NAME", "STORE_GLOBAL", "STORE_DEREF", "DELETE_NAME", "DELETE_GLOBAL", "DELETE_DEREF", "POP_TOP")
}
"""The instructions that let go of a value and do nothing else of which Python code could come."""


def add_trio() -> None:
    """Know trio's frames too; called when a cell runs under it, so that nobody else imports it."""
    global _loops
    trio = sys.modules["trio"]
    if trio._core._run.unrolled_run.__code__ not in _LOOP_STEPS:
        folders = (str(Path(str(sys.modules[name].__file__)).parent) for name in ("trio", "outcome"))
        _loops += (*folders, "<attrs generated")  # of the classes of both
        _LOOP_STEPS.add(trio._core._run.unrolled_run.__code__)


def add_debugger(folder: str, border: types.CodeType) -> None:
    """Know a debugger's frames, in which threads stand that it has stopped, and our function that they come out by."""
    global _debugger, _border
    _debugger, _border = (folder, *_COMPILED), border


def add_loop_step(code: types.CodeType) -> None:
    """Know a function of a loop that runs tasks without a frame of its own between (uvloop's)."""
    _LOOP_STEPS.add(code)


def add_shell(prepares: frozenset[types.CodeType], executes: types.CodeType) -> None:
    """Know IPython's frames: what it does around a cell's code and on its own account, and what calls that code."""
    global _prepares, _executes
    _prepares, _executes = prepares, executes


def of_threads() -> dict[int, types.FrameType]:
    """Return where each thread stands, by its ident; the frames of its callers are made too.

    CPython 3.11 keeps a lock meanwhile that threads need to begin and to end, and makes the frames of a thread that
    must not run. A garbage collection that this brings about may let it run, and another one, which waits for that
    lock and keeps the GIL: for ever (python/cpython#106883). So none is begun.
    """
    with _no_collection():
        found = sys._current_frames()
        for frame in found.values():
            _make_whole(frame)
        return found


def of_thread(ident: int) -> types.FrameType | None:
    """Return where a thread stands, as above; None where there is none."""
    with _no_collection():
        frame = sys._current_frames().get(ident)
        _make_whole(frame)
        return frame


def _make_whole(frame: types.FrameType | None) -> None:
    while frame is not None:
        frame = frame.f_back


@contextmanager
def _no_collection() -> Generator[None]:
    with _looking:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def _look_anew() -> None:
    """Take a new lock in a forked child: the thread that held the old one is not there."""
    global _looking
    _looking = threading.RLock()


os.register_at_fork(after_in_child=_look_anew)


def is_ours(frame: types.FrameType) -> bool:
    """Tell whether code of this package runs, which is never interrupted half way."""
    return frame.f_code.co_filename.startswith(_OURS)


def is_original_call(frame: types.FrameType) -> bool:
    """Tell whether the main thread is in a call that blocks, which blocking.py hands on to the original."""
    return frame.f_code.co_filename == _BLOCKING


def is_careful(frame: types.FrameType) -> bool:
    """Tell whether our code, an event loop's, an import's or a child's start runs: none of them bears an interrupt.

    A task that registers itself with what it waits for, and is interrupted then, is woken later where it waits no
    more: under trio that is the end of the loop.
    """
    code = frame.f_code
    return _starts_a_child(code) or imports(frame) or code.co_filename.startswith((_OURS, _WEAK_SETS, *_loops))


def _starts_a_child(code: types.CodeType) -> bool:
    name, file = code.co_name, code.co_filename
    return (
        code is _STARTS_A_CHILD
        or (name == "fork" and file == _PTY)
        or (name in ("spawn", "__init__") and file.endswith(_PTYPROCESS))
    )


def imports(frame: types.FrameType) -> bool:
    """Tell whether an import runs: its locks would be taken for ever."""
    return frame.f_code.co_filename.startswith(_IMPORTS)


def is_stopped(frame: types.FrameType | None) -> bool:
    """Tell whether a debugger has stopped the thread, or is about to: it must go on before it can be interrupted."""
    if not _debugger:
        return False
    while frame is not None and frame.f_code.co_filename.startswith(_WAITS):
        if frame.f_code is _border:
            return False
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_debugger)


def is_delicate(frame: types.FrameType) -> bool:
    """Tell whether an interrupt hurts nobody a moment later, or does not get lost.

    A lock is taken or given back, a finalizer runs, or IPython does what the cell's own code is not to blame for.
    """
    return frame.f_code in _TAKES_A_LOCK or is_finalizing(frame) or is_preparing(frame)


def is_preparing(frame: types.FrameType | None) -> bool:
    """Tell whether IPython makes a cell ready, clears up after it, calls a hook of its own, or draws an error.

    What is raised in a hook it swallows, and an error half drawn is lost; what of that is the user's own code is to be
    interrupted all the same.
    """
    while frame is not None and frame.f_code is not _executes and frame.f_code not in _LOOP_STEPS:
        if frame.f_code in _prepares:
            return True
        if _is_users(frame):
            return False
        frame = frame.f_back
    return False


def _is_users(frame: types.FrameType) -> bool:
    return not (is_ours(frame) or frame.f_code.co_filename.startswith((_STANDARD, "<")) or _is_installed(frame))


def _is_installed(frame: types.FrameType) -> bool:
    return f"{os.sep}site-packages{os.sep}" in frame.f_code.co_filename


def is_finalizing(frame: types.FrameType | None) -> bool:
    """Tell whether a finalizer runs, where Python drops what is raised, or C code does without a word.

    It does where a frame stands at an instruction that calls nothing: a name is bound anew, or a value let go.
    """
    while frame is not None and frame.f_code not in _LOOP_STEPS:
        if frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _CALLS_NOTHING:
            return True
        frame = frame.f_back
    return False


def steps_a_task(frame: types.FrameType | None) -> bool:
    """Tell whether a loop runs a task or callback of the user's: its first frame, but for the loops', is not ours.

    Nor is it Python's own and called by the loops, which put away what a task leaves behind.
    """
    first = last = None
    has_users = False
    while frame is not None and frame.f_code not in _LOOP_STEPS:
        if not frame.f_code.co_filename.startswith(_loops):
            first = frame
        last, has_users = frame, has_users or _is_users(frame)
        frame = frame.f_back
    if first is not None and first is not last and _is_standard(first) and not has_users:
        return False
    if frame is None or first is None or is_ours(first):
        return False
    return "task" not in frame.f_locals or not getattr(frame.f_locals["task"], "_ki_protected", True)


def end_at_the_cell(trace: types.TracebackType | None, *, interrupted: bool = False) -> None:
    """Take our own frames off the end of a traceback: what the user wants to see is the line that led to them.

    Args:
        trace: the traceback.
        interrupted: whether it is that of an interrupt. Its frames in the standard library go too: they say where
            Python waits for what the user's line asks for, and to draw one takes to parse its file (subprocess 50 ms).
    """
    last = None
    while trace is not None:
        frame = trace.tb_frame
        shown = not frame.f_code.co_filename.startswith((_OURS, *_debugger))
        if shown and not (interrupted and _is_standard(frame)) and (last is None or last.tb_frame is not frame):
            last = trace  # of a frame that a debugger has stopped Python names two in a row
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None


def _is_standard(frame: types.FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_STANDARD) and not _is_installed(frame)


def stack_below(frame: types.FrameType | None, root: types.CodeType | None) -> list[str]:
    """Draw a thread's stack, outermost first, from below the innermost frame of `root`, without our own frames."""
    frames: list[types.FrameType] = []
    while frame is not None and frame.f_code is not root:
        frames.append(frame)
        frame = frame.f_back
    return _drawn((each, each.f_lineno) for each in reversed(frames))


def stack_of_awaits(awaiting: Any) -> list[str]:
    """Draw where a suspended coroutine awaits, outermost first, without our own frames."""
    return _drawn((frame, frame.f_lineno) for frame in awaiting_frames(awaiting))


def awaiting_frames(awaiting: Any) -> Iterator[types.FrameType]:
    """Name the frames of a suspended coroutine and of what it awaits, as far as Python tells."""
    while awaiting is not None:
        frame, inner = _awaiting_frame(awaiting)
        if frame is not None:
            yield frame
        awaiting = inner


def _awaiting_frame(awaiting: Any) -> tuple[types.FrameType | None, Any]:
    """Return the frame of a coroutine, generator or asynchronous generator, and what it awaits."""
    for kind, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        if hasattr(awaiting, inner):
            return getattr(awaiting, f"{kind}_frame"), getattr(awaiting, inner)
    if type(awaiting).__name__ in _WRAPPERS:
        return None, next((each for each in gc.get_referents(awaiting) if _is_awaiting(each)), None)
    return None, None


def _is_awaiting(candidate: object) -> bool:
    return isinstance(candidate, (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType))


def _drawn(frames: Iterator[tuple[types.FrameType, int]]) -> list[str]:
    shown = dropwhile(lambda each: f"{os.sep}IPython{os.sep}" in each[0].f_code.co_filename, frames)
    summary = traceback.StackSummary.extract(each for each in shown if not is_ours(each[0]))
    return [line.rstrip("\n") for line in summary.format()]
