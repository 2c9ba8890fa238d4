"""pydevd, the debugger inside debugpy, in this process: how it is started, asked, and taken away again.

Laws of the file:

* There is no port: pydevd gets one end of a pair of sockets, so that no other user of the machine can reach it.
* debugpy is imported with the first session, outside the user's folder, and leaves no trace of itself in the process
  that a cell would notice: not in `breakpoint()`, not in the environment, and no tracing after the session.
* Our own threads are never traced and never stopped.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio

from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.runtime.debugging.cells import CELL_FILES
from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.interruption.frames import add_debugger, is_ours
from cobnut_kernel.transport import Bell, thread_safe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts

    Content = dict[str, Any]

T = TypeVar("T")

THREAD_NAME = "cobnut-debugger"

_LENGTH = b"content-length:"
_USER_THREADS = ("cobnut-subshell-", "cobnut-cell-")
_NUDGE = 0.004
"""Seconds between two nudges of a stopped thread that is to go on: pydevd itself looks every 0.2 s."""


def is_service(name: str) -> bool:
    """Tell by its name whether a thread is the kernel's own; those that run cells are the user's."""
    return name == "IPythonHistorySavingThread" or (name.startswith("cobnut-") and not name.startswith(_USER_THREADS))


class Adapter:
    """One debugging session with pydevd.

    Args:
        on_event: is called with every event of the debug adapter protocol, in a thread of ours, and must not wait.
        interrupts: which cells run; interrupts them where they were stopped.
    """

    _active: ClassVar[Adapter | None] = None
    _changes: ClassVar[int] = 0

    def __init__(self, on_event: Callable[[Content], None], interrupts: Interrupts) -> None:
        self.closed: bool = False
        self._on_event = on_event
        self._interrupts = interrupts
        self._numbers = count(1)
        self._waiting: dict[int, _Answer] = {}
        self._ours, self._theirs = socket.socketpair()
        self._py_db: Any = None
        self._wait: Any = None
        self._hook: Any = None
        self._sending = threading.Lock()

    # ── the session's life ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start pydevd in this process; takes its time, in a thread that is not traced.

        Raises:
            ImportError: debugpy is not installed.
            RuntimeError: pydevd could not be started.
        """
        pydevd = _import_pydevd()
        for thread in threading.enumerate():
            if is_service(thread.name):
                thread.pydev_do_not_trace = True  # pyright: ignore[reportAttributeAccessIssue] - pydevd looks for it
        with _handed_over(pydevd, self._theirs):
            pydevd.settrace(
                host="a pair of sockets",
                suspend=False,
                wait_for_ready_to_run=False,  # it would wait for a request, and we are to send it
                notify_stdin=False,
                patch_multiprocessing=False,  # child processes could not connect to us
                dont_trace_start_patterns=(_folder_of("debugpy"),),
            )
        self._py_db = pydevd.get_global_debugger()
        # What pydevd knows of code it keeps beyond a session, by the number of changes: these count on.
        self._py_db.mtime = Adapter._changes
        self._wait, self._py_db.do_wait_suspend = self._py_db.do_wait_suspend, self._stop_here
        self._hook, sys.breakpointhook = sys.breakpointhook, _breakpoint_hook()
        Adapter._active = self
        start_service_thread(self._read)

    def stop(self) -> None:
        """End the session: what is stopped goes on, and nothing is traced any more; from any thread."""
        if self._close() and self._py_db is not None:
            self._dispose()
            _untrace_threads()

    def close(self) -> None:
        """End the session with the process: what is stopped goes on; from any thread, at once."""
        if self._close() and self._py_db is not None:
            # Without looking at each thread once more: the end of the process need not wait for that.
            self._py_db.dispose_and_kill_all_pydevd_threads(wait=False)
            self._nudge(threading.enumerate())

    def _close(self) -> bool:
        """Answer nothing any more; True the first time."""
        with self._sending:
            closed, self.closed = self.closed, True
        for answer in list(self._waiting.values()):
            answer.bell.ring()
        return not closed

    def _dispose(self) -> None:
        Adapter._changes = self._py_db.mtime + 1
        Adapter._active = None
        if sys.breakpointhook is _breakpoint_hook():
            sys.breakpointhook = self._hook
        self._py_db.dispose_and_kill_all_pydevd_threads(wait=False)
        self._nudge(threading.enumerate())
        sys.modules["pydevd"].stoptrace()

    @classmethod
    def leave(cls) -> None:
        """Let a forked child go on without a debugger: it has no thread that would answer, and stops nowhere."""
        active, cls._active = cls._active, None
        if active is not None and active._py_db is not None:
            active.closed = True
            active._py_db.pydb_disposed = True
            sys.breakpointhook = active._hook
            constants = _constants()
            constants.set_global_debugger(None)
            active._ours.close()
            active._theirs.close()
            if not constants.PYDEVD_USE_SYS_MONITORING:
                sys.modules["pydevd_tracing"].restore_sys_set_trace_func()
                threading.settrace(None)  # pyright: ignore[reportArgumentType] - the way to take it away
                sys.settrace(None)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def request(self, command: str, arguments: Content, deadline: float) -> Content | None:
        """Ask pydevd, and return its response; None if there is none in time, in seconds, or the session ends."""
        number = next(self._numbers)
        answer = self._waiting[number] = _Answer()
        try:
            self._send({"seq": number, "type": "request", "command": command, "arguments": arguments})
            with anyio.move_on_after(deadline):
                await answer.bell.wait(lambda: answer.response is not None or self.closed)
        except OSError:  # the session has ended
            return None
        finally:
            del self._waiting[number]
        return answer.response

    def _send(self, message: Content) -> None:
        data = dumps(message)
        with self._sending:
            self._ours.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))

    def _read(self) -> None:
        """Take in what pydevd says until the session ends; the thread's whole life."""
        with suppress(OSError, ValueError), self._ours.makefile("rb") as stream:
            while (message := _next_message(stream)) is not None:
                self._receive(message)
                if message.get("event") == "terminated":  # the last that it says: it waits for our end
                    break
        self._close()
        for end in (self._ours, self._theirs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _receive(self, message: Content) -> None:
        if message.get("type") == "event":
            self._on_event(message)
        elif (answer := self._waiting.get(message.get("request_seq", 0))) is not None:
            answer.response = message
            answer.bell.ring()

    # ── stopped threads ─────────────────────────────────────────────────────────────────────────────────────────────

    def resume(self, ident: int) -> None:
        """Let a thread go on if it is stopped; from any thread, at once."""
        for thread in threading.enumerate():
            if thread.ident == ident and getattr(thread, "additional_info", None) is not None:
                if _is_stopped(thread):
                    sys.modules["_pydevd_bundle.pydevd_thread_lifecycle"].resume_threads(_thread_id(thread))
                self._nudge([thread])  # each time: an interrupt may have ended its wait just before

    def begin_cell(self) -> None:
        """Let a cell begin as if there had been none before, in its thread.

        Stepping that went beyond the end of another one would stop in this one; and Python has taken the tracing off a
        thread that was interrupted while it was stopped.
        """
        thread: Any = threading.current_thread()
        info = getattr(thread, "additional_info", None)
        if info is not None and info.pydev_step_cmd != -1 and not _is_stopped(thread):
            _forget_steps(thread)
        if sys.gettrace() is None and not _constants().PYDEVD_USE_SYS_MONITORING:
            self._py_db.enable_tracing()

    def stop_after(self, error: BaseException) -> None:
        """Stop where an error came from that has ended a cell, if a front end wants that ("uncaught").

        For Python it is not uncaught: IPython shows it. It is over, so that its frames can be looked at, not run.

        Raises:
            KeyboardInterrupt: what was stopped is to be interrupted.
        """
        if not isinstance(error, KeyboardInterrupt) and hasattr(self._py_db, "trigger_exception_handler"):
            self._py_db.trigger_exception_handler((type(error), error, error.__traceback__))

    def _stop_here(self, thread: Any, frame: FrameType, *event: Any, **options: Any) -> None:
        """Stop a thread, in that thread, until it is to go on; pydevd's own function is `_wait`.

        What is stepped through behind the end of a cell is the kernel's own work, and does not stop.

        Raises:
            KeyboardInterrupt: what was stopped is to be interrupted.
        """
        breakpoints = _comm_constants().CMD_SET_BREAK, _comm_constants().CMD_SET_FUNCTION_BREAK
        if getattr(thread, "stop_reason", None) not in breakpoints and _is_the_kernels_work(frame):
            self._pass_by(thread)
            return
        self._wait(thread, frame, *event, **options)
        self._interrupts.checkpoint()

    def _pass_by(self, thread: Any) -> None:
        """Let a thread go on stepping as long as it has a cell, else run."""
        if any(cell.thread_ident == thread.ident for cell in self._interrupts.running()):
            thread.additional_info.pydev_state = _constants().STATE_RUN
            thread.additional_info.update_stepping_info()
        else:
            _forget_steps(thread)

    async def nudge_until(self, has_gone_on: Callable[[], bool], limit: float = 0.2) -> None:
        """Make the stopped threads look for what they were told, until one condition holds or pydevd looks itself."""
        with anyio.move_on_after(limit):
            while not has_gone_on() and not self.closed:
                self._nudge(threading.enumerate())
                await anyio.sleep(_NUDGE)

    def _nudge(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            if getattr(thread, "additional_info", None) is not None:
                self._py_db.get_internal_queue_and_event(_thread_id(thread))[1].set()


class _Answer:
    """What a request waits for."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.response: Content | None = None


os.register_at_fork(after_in_child=Adapter.leave)


async def in_service_thread(function: Callable[..., T], *args: Any) -> T:
    """Run a function in a thread of ours that is not traced; who waits no longer leaves it alone with its work.

    Raises:
        Exception: what the function raises.
    """
    future: Future[T] = Future()
    done, call = anyio.Event(), thread_safe()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except Exception as error:  # who waits gets it
            future.set_exception(error)
        call(done.set)

    start_service_thread(run)
    await done.wait()
    return future.result()


def start_service_thread(run: Callable[[], object]) -> None:
    """Start a thread of ours, which is neither traced nor shown."""
    thread: Any = threading.Thread(target=run, name=THREAD_NAME, daemon=True)
    thread.pydev_do_not_trace = thread.is_pydev_daemon_thread = True
    thread.start()


def _next_message(stream: Any) -> Content | None:
    """Read one message of the protocol; None at the end."""
    length = -1
    while line := stream.readline():
        if line.lower().startswith(_LENGTH):
            length = int(line[len(_LENGTH) :])
        elif line == b"\r\n" and length >= 0:
            data = stream.read(length)
            return loads(data) if len(data) == length else None
    return None


# ── pydevd's own ────────────────────────────────────────────────────────────────────────────────────────────────────


def _import_pydevd() -> Any:
    """Import debugpy, which brings its own pydevd, and undo what that does to the process.

    Raises:
        ImportError: debugpy is not installed.
    """
    if "debugpy.server.api" not in sys.modules:
        hook = sys.breakpointhook
        before = {name: os.environ.get(name) for name in _VARIABLES}
        os.environ[_VARIABLES[0]] = "1"
        try:
            with without_user_folder():
                import_module("debugpy.server.api")
        finally:
            sys.breakpointhook = hook
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
    add_debugger(_folder_of("debugpy"), Adapter._stop_here.__code__)
    return sys.modules["pydevd"]


_VARIABLES = ("PYDEVD_DISABLE_FILE_VALIDATION", "PYDEVD_USE_FRAME_EVAL")
"""What the import looks for, or sets. The first keeps it from warning of frozen modules, which nobody debugs here."""


@contextmanager
def _handed_over(pydevd: Any, end: socket.socket) -> Generator[None]:
    """Let pydevd have our socket when it wants to connect to somebody."""
    if pydevd.get_global_debugger() is not None:
        raise RuntimeError("Another debugger is at work in this kernel: a cell has called debugpy.")
    start_client = pydevd.start_client

    def connect(_host: str, _port: int) -> socket.socket:
        return end

    pydevd.start_client = connect
    try:
        yield
    finally:
        pydevd.start_client = start_client


def _folder_of(package: str) -> str:
    return str(Path(str(sys.modules[package].__file__)).parent)


def _breakpoint_hook() -> Callable[..., None]:
    return sys.modules["debugpy._vendored.force_pydevd"].debugpy_breakpointhook


def _is_the_kernels_work(frame: FrameType | None) -> bool:
    """Tell whether a stack has frames of the kernel's, and none of a cell."""
    ours = False
    while frame is not None:
        if frame.f_code.co_filename.startswith(CELL_FILES.prefix):
            return False
        ours = ours or is_ours(frame)
        frame = frame.f_back
    return ours


def _forget_steps(thread: threading.Thread) -> None:
    lifecycle = sys.modules["_pydevd_bundle.pydevd_thread_lifecycle"]
    lifecycle.internal_run_thread(thread, lifecycle.set_additional_thread_info)


def _constants() -> Any:
    return sys.modules["_pydevd_bundle.pydevd_constants"]


def _comm_constants() -> Any:
    return sys.modules["_pydevd_bundle.pydevd_comm_constants"]


def _thread_id(thread: threading.Thread) -> str:
    return _constants().get_thread_id(thread)


def _is_stopped(thread: threading.Thread) -> bool:
    info = getattr(thread, "additional_info", None)
    return info is not None and info.pydev_state == _constants().STATE_SUSPEND


def _untrace_threads() -> None:
    """Take the tracing off the threads that run: pydevd leaves it there, and each call would cost."""
    if not _constants().PYDEVD_USE_SYS_MONITORING:
        traced = [each for each in threading.enumerate() if not getattr(each, "pydev_do_not_trace", False)]
        idents = [each.ident for each in traced if each.ident is not None]
        sys.modules["pydevd_tracing"].set_trace_to_threads(_untrace, idents, create_dummy_thread=False)


def _untrace(_frame: object, _event: str, _argument: object) -> None:
    sys.settrace(None)
