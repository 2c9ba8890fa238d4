"""The debugging session: pydevd and the kernel's hooks for it, from the first `initialize` to the end of either."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.debugging.adapter import Adapter, in_service_thread, start_service_thread
from cobnut_kernel.runtime.debugging.cells import CELL_FILES
from cobnut_kernel.runtime.debugging.requests import RequestError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts

    Content = dict[str, Any]

DEADLINE = 30.0
"""Seconds until a request is answered by an error: the user's code that it evaluates may take for ever."""

_FAREWELL = 5.0


class DebugSession:
    """One session at a time, over and over.

    Args:
        on_event: is called with every event of the debug adapter protocol, in a thread of ours, and must not wait.
        interrupts: must not interrupt what is stopped, but let it go on first.
    """

    def __init__(self, on_event: Callable[[Content], None], interrupts: Interrupts) -> None:
        self._on_event = on_event
        self._interrupts = interrupts
        self._adapter: Adapter | None = None
        self._watching: bool = False

    @property
    def is_open(self) -> bool:
        """Whether there is one."""
        return self._adapter is not None and not self._adapter.closed

    def require_open(self) -> Adapter:
        """Return the way to pydevd.

        Raises:
            RequestError: there is no session.
        """
        if self._adapter is None or self._adapter.closed:
            raise RequestError("The debugger has not been started: send initialize and attach first.")
        return self._adapter

    async def open(self, stopping: threading.Event) -> None:
        """Start pydevd and hook it in; the session ends when the kernel does.

        Args:
            stopping: is set when the kernel is to end.

        Raises:
            RequestError: debugpy is not installed.
            RuntimeError: pydevd could not be started.
        """
        self._watch(stopping)
        CELL_FILES.note_modules()
        adapter = Adapter(self._on_event, self._interrupts)
        try:
            await in_service_thread(adapter.start)
        except BaseException:
            adapter.stop()
            raise
        self._adapter, self._interrupts.resume = adapter, adapter.resume
        CELL_FILES.before_cell, CELL_FILES.after_error = adapter.begin_cell, adapter.stop_after
        # pydevd does more at the first step that it sees in a thread: in the main one that must not be the handler
        # of an interrupt's signal, before whose first line the handlers of others would run.
        self._interrupts._poke()

    async def ask(self, command: str, arguments: Content) -> Content:
        """Return pydevd's response to a request.

        Raises:
            RequestError: there is no session, or it has ended, or there was no response in time.
        """
        answer = await self.require_open().request(command, arguments, DEADLINE)
        if answer is not None:
            return answer
        if not self.is_open:
            raise RequestError("The debugging session has ended: begin with initialize.")
        raise RequestError(
            f"The debugger has not answered {command} within {DEADLINE:g} s. Code that it evaluates may run still: "
            "continue, or interrupt the kernel."
        )

    async def end(self) -> None:
        """Take pydevd away again: what is stopped goes on, nothing is traced any more."""
        adapter, self._adapter = self._adapter, None
        if adapter is None:
            return
        self._interrupts.resume = CELL_FILES.before_cell = CELL_FILES.after_error = None
        if not adapter.closed:  # the process is the kernel's: no front end may end it this way
            await adapter.request("disconnect", {"restart": False, "terminateDebuggee": False}, _FAREWELL)
        await in_service_thread(adapter.stop)

    def close(self) -> None:
        """End the session with the process; from any thread, at once."""
        if self._adapter is not None:
            self._adapter.close()

    def _watch(self, stopping: threading.Event) -> None:
        """End the session as soon as the kernel is to end: what runs still would be slow as long as it is traced."""
        if not self._watching:
            self._watching = True
            start_service_thread(lambda: stopping.wait() and self.close())


def require_debugpy() -> None:
    """Find debugpy, which brings pydevd.

    Raises:
        RequestError: it is not installed.
    """
    if find_spec("debugpy") is None:
        raise RequestError("debugpy is not installed in the kernel's environment: install it there.")
