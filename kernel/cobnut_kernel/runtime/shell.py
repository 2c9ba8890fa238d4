"""IPython's shell, told where to show things."""

from __future__ import annotations

import builtins
import sys
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, cast

from IPython.core.error import StdinNotImplementedError
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets import Type

from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.dispatch import error_content, text_of
from cobnut_kernel.runtime.display import Publisher, ResultHook
from cobnut_kernel.runtime.history import History
from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.interrupts import end_at_the_cell
from cobnut_kernel.runtime.sockets import Outbox, Outgoing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from IPython.core.completer import IPCompleter

    from cobnut_kernel.runtime.interrupts import Interrupts
    from cobnut_kernel.runtime.job import CurrentJob


@dataclass(frozen=True)
class Cell:
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


@dataclass(frozen=True)
class Outcome:
    """How a cell ended; `expressions` are the user expressions' values, by name, where it succeeded."""

    error: BaseException | None = None
    expressions: dict[str, Any] = field(default_factory=dict[str, Any])


class Shell(InteractiveShell):
    """IPython's shell for one kernel: what it shows goes out as messages of the current job."""

    displayhook_class = Type(ResultHook)
    display_pub_class = Type(Publisher)

    displayhook: ResultHook
    display_pub: Publisher

    def init_history(self) -> None:
        """Set up the history; named by IPython's start."""
        self.history_manager = History(shell=self, parent=self)
        self.configurables.append(self.history_manager)  # pyright: ignore[reportArgumentType] - typed too narrowly

    def init_completer(self) -> None:
        """Leave the completer for its first use: it would be a tenth of the kernel's start."""

    @cached_property
    def Completer(self) -> IPCompleter:  # noqa: N802 - IPython's name
        """IPython's completer, made when it is first asked for."""
        with without_user_folder():
            super().init_completer()  # which sets the attribute that this property stands for
        return self.__dict__["Completer"]

    def connect(self, outbox: Outbox, current: CurrentJob, interrupts: Interrupts) -> None:
        """Say where messages go, once, before the first cell."""
        self._outbox = outbox
        self._current = current
        self._interrupts = interrupts
        self.displayhook.send = self.publish
        self.displayhook.count = self.current_count
        self.display_pub.send = self.publish
        builtins.input = self._refuse_input
        with without_user_folder():
            import_module("bdb")  # IPython would import it with the first cell
        self.exit_requested = False

    def publish(self, msg_type: MessageType, content: dict[str, Any]) -> None:
        """Publish a message of the current job on iopub.

        Raises:
            TypeError: the content has no JSON form.
            KeyboardInterrupt: an interrupt was due.
        """
        if self._interrupts.due:
            self._interrupts.checkpoint()
        self._outbox.post(Outgoing(Channel.IOPUB, msg_type, dumps(content), self._current.parent()))

    def current_count(self) -> int:
        """Return the execution count of the running cell."""
        job = self._current.get()
        return job.execution_count if job is not None and job.execution_count is not None else self.execution_count

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
        return Outcome(expressions=self._evaluate(cell.user_expressions) if cell.user_expressions else {})

    def _evaluate(self, expressions: dict[str, str]) -> dict[str, Any]:
        return {name: self._evaluate_one(expression) for name, expression in expressions.items()}

    def _evaluate_one(self, expression: str) -> dict[str, Any]:
        try:
            value = cast("dict[str, Any]", self.user_expressions({"": expression})[""])
            dumps(value)  # what cannot be sent is this expression's error, not the whole reply's
        except Exception as error:
            return error_content(error)
        return value

    def interrupted(self, error: KeyboardInterrupt) -> Outcome:
        """Show an interrupt that ended a cell outside its own code, unless it was shown on its way."""
        job = self._current.get()
        if job is None or job.error is None:
            self.showtraceback((KeyboardInterrupt, error, error.__traceback__))
        return Outcome(error)

    def ask_exit(self) -> None:
        """Stop the kernel after this cell, and tell the front end (specification: "Payloads", ask_exit)."""
        self.exit_requested = True
        job = self._current.get()
        if job is not None:
            job.payload.append({"source": "ask_exit", "keepkernel": False})

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **kwargs: Any) -> None:
        """Show an error; what draws it is imported now, with the first one."""
        shown = exc_tuple[1] if exc_tuple else sys.exception()
        if shown is not None:
            end_at_the_cell(shown.__traceback__)
        with without_user_folder():
            if _holds_group(shown):
                # IPython leaves these to sys.stderr, where no front end sees an error.
                self._showtraceback(type(shown), shown, _plain_traceback(shown))
            else:
                super().showtraceback(exc_tuple, *args, **kwargs)

    def system(self, cmd: str) -> Any:
        """Run a command of the system; what runs it is imported now, with the first one."""
        with without_user_folder():
            import_module("pexpect")
        return super().system(cmd)

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        job = self._current.get()
        content: dict[str, Any] = {
            "ename": getattr(etype, "__name__", str(etype)),
            "evalue": text_of(evalue),
            "traceback": _lines(stb),
        }
        if job is not None:
            job.error = content
        self.publish(MessageType.ERROR, content)

    def _format_exception_for_storage(self, exception: BaseException, *_: Any, **__: Any) -> dict[str, Any]:
        """Keep for the history what was shown; to draw it again would cost as much again, and might fail."""
        job = self._current.get()
        return dict(job.error) if job is not None and job.error is not None else error_content(exception)

    def _refuse_input(self, prompt: object = "", /) -> NoReturn:
        raise StdinNotImplementedError(
            "input() was called, but this kernel cannot ask for input yet: put the value into the code."
        )


def _holds_group(error: BaseException | None) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, BaseExceptionGroup):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _lines(drawn: Any) -> list[str]:
    """Return a traceback as the list that the specification wants, whatever a user's own renderer gave."""
    if isinstance(drawn, str):
        return [drawn]
    return [str(line) for line in cast("Sequence[Any]", drawn)] if isinstance(drawn, (list, tuple)) else []


def _plain_traceback(error: BaseException | None) -> list[str]:
    """Draw a traceback as Python does, without the frame of IPython that ran the cell."""
    if error is None:
        return []
    trace = error.__traceback__
    return traceback.format_exception(type(error), error, trace.tb_next or trace if trace is not None else None)
