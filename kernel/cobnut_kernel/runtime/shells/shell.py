"""IPython's shell, told where to show things."""

from __future__ import annotations

import builtins
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from IPython.core.autocall import ZMQExitAutocall
from IPython.core.builtin_trap import BuiltinTrap
from IPython.core.display_trap import DisplayTrap
from IPython.core.error import UsageError
from IPython.core.events import EventManager
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets import Float, Type, default

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.debugging.cells import CELL_FILES, leading_blank_lines
from cobnut_kernel.runtime.debugging.compiling import CellCompiler
from cobnut_kernel.runtime.dispatch import error_content, text_of
from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.interruption.frames import add_shell
from cobnut_kernel.runtime.interruption.interrupts import end_at_the_cell
from cobnut_kernel.runtime.modes import MAGICS
from cobnut_kernel.runtime.output.display import Publisher, ResultHook
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing
from cobnut_kernel.runtime.shells.history import History
from cobnut_kernel.runtime.shells.magics import KernelMagics
from cobnut_kernel.runtime.shells.payloads import EditMagic, Payloads, next_input, show_in_pager
from cobnut_kernel.runtime.shells.tracebacks import holds_group, lines_of, plain_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from contextvars import Token

    from IPython.core.completer import IPCompleter

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.runtime.output.routing import CurrentJob

add_shell(
    prepares=frozenset(
        {
            InteractiveShell.run_cell_async.__code__,
            InteractiveShell.showtraceback.__code__,
            EventManager.trigger.__code__,
        }
    ),
    executes=InteractiveShell.run_code.__code__,
)


class Cell(NamedTuple):
    """What an execute request asks the shell to run.

    Source: "Execute" in the Jupyter messaging specification.
    """

    code: str
    silent: bool
    store_history: bool
    user_expressions: dict[str, str]
    cell_id: str | None

    @classmethod
    def from_request(cls, content: dict[str, Any], metadata: dict[str, Any]) -> Cell:
        """Read the request; what is silent is not stored either.

        Raises:
            TypeError: there is no code, or it is no text.
        """
        code = content.get("code")
        if not isinstance(code, str):
            raise TypeError("An execute request needs its 'code', as text.")
        silent = bool(content.get("silent", False))
        return cls(
            code,
            silent,
            bool(content.get("store_history", not silent)) and not silent,
            dict(content.get("user_expressions") or {}),
            metadata.get("cellId"),
        )


class Outcome(NamedTuple):
    """How a cell ended; `expressions` are the user expressions' values, by name, where it succeeded."""

    error: BaseException | None = None
    expressions: dict[str, Any] | None = None


_SWITCH = 0.001
"""Seconds that a thread may compute while others wait: a completion beside a busy loop takes 10 ms, with 5 ms 25."""


class _NoTrap:
    """Changes nothing when a cell starts or ends: what cells need is there as long as the kernel runs.

    IPython's own puts `get_ipython` and the display hook in their place for one cell and takes them away after it:
    a cell that ends would take them from those that still run.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _BuiltinTrap(_NoTrap, BuiltinTrap):
    pass


class _DisplayTrap(_NoTrap, DisplayTrap):
    pass


class Shell(InteractiveShell):
    """IPython's shell for one kernel: what it shows goes out as messages of the current job."""

    compiler_class = Type(CellCompiler)
    displayhook_class = Type(ResultHook)
    display_pub_class = Type(Publisher)

    timeout = Float(0.0, help="Seconds that a cell may run where no tag says otherwise; 0 is no limit.").tag(
        config=True
    )

    displayhook: ResultHook
    display_pub: Publisher
    subshell_id: str | None = None
    keepkernel_on_exit: bool | None = None
    kernel: Kernel

    _outbox: Outbox
    _current: CurrentJob
    _interrupts: Interrupts
    drain: Callable[[], None]
    _here: ClassVar[ContextVar[Shell | None]] = ContextVar("cobnut_shell", default=None)

    def __init__(self, **options: Any) -> None:
        self._next_count: int = 1
        self._counting = threading.Lock()
        self.exit_requested: bool = False
        super().__init__(**options)

    # ── IPython's start ─────────────────────────────────────────────────────────────────────────────────────────────

    def init_history(self) -> None:
        """Set up the history; named by IPython's start."""
        self.history_manager = History(shell=self, parent=self)
        self.configurables.append(self.history_manager)  # pyright: ignore[reportArgumentType] - typed too narrowly

    def init_hooks(self) -> None:
        """Set up IPython's hooks, and the pager that shows its pages in the front end."""
        super().init_hooks()
        self.set_hook("show_in_pager", show_in_pager, 99)

    def init_payload(self) -> None:
        """Keep payloads with the cell that made them; named by IPython's start."""
        self.payload_manager = Payloads(self._payload, parent=self)
        self.configurables.append(self.payload_manager)  # pyright: ignore[reportArgumentType] - typed too narrowly

    def init_magics(self) -> None:
        """Set up IPython's magics and the kernel's own."""
        super().init_magics()
        self.register_magics(KernelMagics, EditMagic)
        self.magics_manager.register_lazy("store", "IPython.extensions.storemagic")

    def init_builtins(self) -> None:
        """Leave the builtins alone while cells run; named by IPython's start."""
        super().init_builtins()
        self.builtin_trap = _BuiltinTrap(shell=self)

    def init_displayhook(self) -> None:
        """Make the display hook; named by IPython's start."""
        super().init_displayhook()
        self.display_trap = _DisplayTrap(hook=self.displayhook)

    def init_completer(self) -> None:
        """Leave the completer for its first use: it would be a tenth of the kernel's start."""

    @cached_property
    def Completer(self) -> IPCompleter:  # noqa: N802 - IPython's name
        """IPython's completer, made when it is first asked for."""
        with without_user_folder():
            super().init_completer()  # which sets the attribute that this property stands for
        return self.__dict__["Completer"]

    def connect(
        self, outbox: Outbox, current: CurrentJob, interrupts: Interrupts, drain: Callable[[], None] = lambda: None
    ) -> None:
        """Say where messages go, once, before the first cell; `drain` fetches what came from outside Python."""
        self._outbox = outbox
        self._current = current
        self._interrupts = interrupts
        self.drain = drain
        self.displayhook.connect(self.publish, self._job)
        self.display_pub.send = self.publish
        self.input_transformers_cleanup.append(_without_mode)
        with without_user_folder():
            import_module("bdb")  # IPython would import it with the first cell

    # ── which shell, which cell ─────────────────────────────────────────────────────────────────────────────────────

    def enter(self) -> None:
        """Make this the shell of the running context, of its tasks, and of the threads it starts."""
        Shell._here.set(self)

    @contextmanager
    def entered(self) -> Generator[None]:
        """Make this the shell of the running context while ours lasts."""
        before = Shell._here.set(self)
        try:
            yield
        finally:
            Shell._here.reset(before)

    def get_ipython(self) -> Shell:
        """Return the shell of the running context, this one where there is none."""
        return Shell._here.get() or self

    @property
    def execution_count(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a trait of IPython's
        """The execution count: for a running cell its own until IPython has counted it, then the next."""
        job = self._job()
        if job is not None and job.reserved and job.execution_count is not None:
            return job.execution_count
        return self._next_count

    @execution_count.setter
    def execution_count(self, count: int) -> None:
        job = self._job()
        if job is not None and job.reserved:  # IPython counts the cell, which is counted already
            job.reserved = False
        else:
            self._next_count = count

    def reserve(self, job: Job, *, store_history: bool) -> int:
        """Give a cell its execution count; the next one has another if this one is stored."""
        with self._counting:
            count = job.execution_count = self._next_count
            if store_history:
                self._next_count += 1
                job.reserved = True
        return count

    def _job(self) -> Job | None:
        return self._current.get() if "_current" in self.__dict__ else None

    def get_parent(self) -> dict[str, Any]:
        """Return the request that the running code belongs to, as clients see messages."""
        return self.kernel.get_parent()

    def set_thread_parent(self, parent: Mapping[str, Any] | None) -> Token[Job | None]:
        """Let the output of the calling thread or task belong to another request; None follows the latest cell."""
        return self._current.set_thread_parent(parent)

    def reset_thread_parent(self, token: Token[Job | None]) -> None:
        """Undo a `set_thread_parent`, in the thread or task that it was called in."""
        self._current.reset_thread_parent(token)

    # ── running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def transform_cell(  # pyright: ignore[reportIncompatibleMethodOverride] - IPython's is thought to return a literal
        self, raw_cell: str
    ) -> str:
        """Turn a cell into Python, with every line where the user and his debugger see it."""
        return leading_blank_lines(raw_cell) + super().transform_cell(raw_cell)

    async def run(self, cell: Cell) -> Outcome:
        """Run a cell, whole: transformation, code, IPython's hooks after it, and the user expressions."""
        transformed, failure = cell.code, None
        try:
            transformed = self.transform_cell(cell.code)
        except Exception:  # the shell shows it as the cell's error
            failure = sys.exc_info()
        result = None
        try:
            result = await self.run_cell_async(
                cell.code,
                store_history=cell.store_history,
                silent=cell.silent,
                transformed_cell=transformed,
                preprocessing_exc_tuple=failure,
                cell_id=cell.cell_id,
            )
            return self._outcome(cell, result)
        finally:
            self.events.trigger("post_execute")
            if not cell.silent:
                self.events.trigger("post_run_cell", result)

    def _outcome(self, cell: Cell, result: ExecutionResult) -> Outcome:
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            return Outcome(error)
        return Outcome(expressions=self._evaluate(cell.user_expressions) if cell.user_expressions else None)

    def _evaluate(self, expressions: dict[str, str]) -> dict[str, Any]:
        return {name: self._evaluate_one(expression) for name, expression in expressions.items()}

    def _evaluate_one(self, expression: str) -> dict[str, Any]:
        try:
            value = cast("dict[str, Any]", self.user_expressions({"": expression})[""])
            dumps(value)  # what cannot be sent is this expression's error, not the whole reply's
        except Exception as error:
            return error_content(error)
        return value

    # ── showing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def publish(
        self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any] | None = None, buffers: Any = ()
    ) -> None:
        """Publish a message of the current job on iopub.

        Raises:
            TypeError: the content has no JSON form.
            KeyboardInterrupt: an interrupt was due.
        """
        if self._interrupts.due:
            self._interrupts.checkpoint()
        self._publish(msg_type, content, metadata, buffers)

    def _publish(
        self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any] | None = None, buffers: Any = ()
    ) -> None:
        self.drain()
        written = dumps(metadata) if metadata else EMPTY
        parent = self._current.parent()
        self._outbox.post(Outgoing(Channel.IOPUB, msg_type, dumps(content), parent, written, buffers=tuple(buffers)))

    @staticmethod
    def excepthook(etype: Any, value: Any, tb: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show an error that user code hands to `sys.excepthook`, in the shell of the running context.

        One function for all shells: IPython puts a cell's own in its place and takes it back, and cells that run at
        the same time would leave each other's there, and keep shells that have ended.
        """
        shell = Shell._here.get()
        if shell is not None:
            shell.showtraceback((etype, value, tb), tb_offset=0)
        else:
            sys.__excepthook__(etype, value, tb)

    def interrupted(self, error: KeyboardInterrupt) -> Outcome:
        """Show an interrupt that ended a cell outside its own code, unless it was shown on its way."""
        job = self._job()
        if job is None or job.error is None:
            self.showtraceback((KeyboardInterrupt, error, error.__traceback__))
        return Outcome(error)

    def refused(self, error: Exception) -> Outcome:
        """Show why a cell is not run."""
        self._showtraceback(type(error), error, [f"{type(error).__name__}: {error}"])
        return Outcome(error)

    @default("exiter")
    def _exiter(self) -> ZMQExitAutocall:
        return ZMQExitAutocall(self)

    def ask_exit(self) -> None:
        """Stop the kernel after this cell, and tell the front end (specification: "Payloads", ask_exit).

        `exit(keep_kernel=True)` only tells the front end.
        """
        keep_kernel, self.keepkernel_on_exit = bool(self.keepkernel_on_exit), None
        self.exit_requested = not keep_kernel
        self.payload_manager.write_payload({"source": "ask_exit", "keepkernel": keep_kernel})

    def set_next_input(self, s: str, replace: bool = False) -> None:
        """Give the front end a text for its next cell (specification: "Payloads", set_next_input)."""
        self.payload_manager.write_payload(next_input(s, replace))

    def _payload(self) -> list[dict[str, Any]]:
        job = self._job()
        return job.payload if job is not None else []

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show an error; what draws it is imported now, with the first one."""
        shown = exc_tuple[1] if exc_tuple else sys.exception()
        if shown is not None:
            end_at_the_cell(shown.__traceback__, interrupted=isinstance(shown, KeyboardInterrupt))
            if CELL_FILES.after_error is not None:
                CELL_FILES.after_error(shown)
        with without_user_folder():
            if holds_group(shown):
                # IPython leaves these to sys.stderr, where no front end sees an error.
                self._showtraceback(type(shown), shown, plain_traceback(shown))
            else:
                super().showtraceback(exc_tuple, *args, **kwargs)

    def enable_gui(self, gui: str | None = None) -> None:
        """Take what needs no event loop of a graphical interface: `%matplotlib inline` and its like.

        Raises:
            UsageError: the kernel has no such event loop.
        """
        if gui not in (None, "inline", "asyncio"):
            raise UsageError(f"This kernel runs no event loop of {gui}: use `%matplotlib inline`, or a web front end.")

    def system(self, cmd: str) -> Any:
        """Run a command of the system; what runs it is imported now, with the first one."""
        with without_user_folder():
            import_module("pexpect")
        return super().system(cmd)

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        job = self._job()
        content: dict[str, Any] = {
            "ename": getattr(etype, "__name__", str(etype)),
            "evalue": text_of(evalue),
            "traceback": lines_of(stb),
        }
        if job is not None:
            if isinstance(evalue, KeyboardInterrupt) and self._timed_out(job):
                content |= {
                    "ename": "TimeoutError",
                    "evalue": f"The cell ran longer than {job.options.timeout or self.timeout:g} s.",
                }
            job.error = content
            if job.options.suppressed is not None:
                self._outbox.write(job.parent, "stderr", f"{job.options.suppressed} {content['ename']}\n")
                return
        self._publish(MessageType.ERROR, content)  # whatever is due: Ctrl-C pressed twice must not cost the error

    def _timed_out(self, job: Job) -> bool:
        return any(cell.job is job and cell.timed_out for cell in self._interrupts.running())

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        """Keep for the history what was shown; to draw it again would cost as much again, and might fail."""
        job = self._job()
        return dict(job.error) if job is not None and job.error is not None else error_content(exception)


class Installed:
    """What cells expect of the whole process while a kernel runs: `get_ipython`, and their results shown.

    Both find the shell of the context they are called in. Threads take turns more often than Python's own 5 ms, so
    that what the other threads answer does not wait long for a cell that computes.
    """

    def __init__(self, main: Shell) -> None:
        self._main = main
        self._before: dict[str, Any] = {}
        self._hook = sys.displayhook
        self._interval = sys.getswitchinterval()

    def __enter__(self) -> Self:
        names = builtins.__dict__
        self._before = {name: names.pop(name) for name in ("exit", "quit", "get_ipython") if name in names}
        names["get_ipython"] = self._main.get_ipython
        sys.displayhook = self._show_result
        sys.setswitchinterval(_SWITCH)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval)
        sys.displayhook = self._hook
        builtins.__dict__.pop("get_ipython", None)
        builtins.__dict__.update(self._before)

    def _show_result(self, value: object) -> None:
        self._main.get_ipython().displayhook(value)


def _without_mode(lines: list[str]) -> list[str]:
    """Take the magic that asks for a run mode out of a cell: it was heard before the cell began."""
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is not None and lines[first].strip() in MAGICS:
        return [*lines[:first], "\n", *lines[first + 1 :]]
    return lines
