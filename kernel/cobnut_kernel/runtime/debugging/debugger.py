"""What a front end asks of the debugger: the debug adapter protocol, and Jupyter's own requests beside it.

Laws of the file:

* A thread that comes to a breakpoint stops alone. The other shells, their event loops and the kernel go on; a front
  end that wants all threads to stop says so in `attach` (`stopAllThreadsOnSuspend`).
* A request about a thread that is not stopped is meant for the one that stopped last: JupyterLab always asks for
  thread 1, which is the main shell's, and could not debug subshells otherwise.
* Every request is answered, in time or by an error that says what happened.

Source: "Debug request" in the Jupyter messaging specification; https://microsoft.github.io/debug-adapter-protocol.
"""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.runtime.debugging.adapter import Adapter, in_service_thread, is_service, start_service_thread
from cobnut_kernel.runtime.debugging.cells import CELL_FILES, HASH_METHOD, HASH_SEED, SUFFIX
from cobnut_kernel.runtime.debugging.exploring import is_shown
from cobnut_kernel.runtime.debugging.inspecting import Inspection
from cobnut_kernel.runtime.debugging.requests import Request, RequestError, response
from cobnut_kernel.runtime.debugging.rich import represent
from cobnut_kernel.runtime.output.outbox import Outgoing

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.output.outbox import Outbox
    from cobnut_kernel.runtime.output.routing import CurrentJob
    from cobnut_kernel.runtime.shells.shell import Shell

    Content = dict[str, Any]
    Contents = list[Content]
    Handler = Callable[[Request], Awaitable[Content]]

DEADLINE = 30.0
"""Seconds until a request is answered by an error: the user's code that it evaluates may take for ever."""

_START_DEADLINE = 60.0
_RESUMING = frozenset({"next", "stepIn", "stepOut", "continue", "goto"})
_OF_A_THREAD = _RESUMING | {"stackTrace", "exceptionInfo"}
_OF_A_FRAME = frozenset({"scopes", "evaluate", "setVariable", "setExpression", "completions", "stepInTargets"})
_RICH = f"__import__({represent.__module__!r}, fromlist=['*']).represent_as_text"
_UNNAMED = ("special variables", "function variables", "class variables", "protected variables")
"""What pydevd shows like variables, and is none."""


class Debugger:
    """Answers debug requests, and publishes what happens as debug_event.

    Args:
        outbox: where messages go.
        current: which request is being answered.
        interrupts: must not interrupt what is stopped, but let it go on first.
        shell_of: finds the shell of a subshell, or the main one.
    """

    def __init__(
        self, outbox: Outbox, current: CurrentJob, interrupts: Interrupts, shell_of: Callable[[str | None], Shell]
    ) -> None:
        self._outbox = outbox
        self._current = current
        self._interrupts = interrupts
        self._shell_of = shell_of
        self._inspection = Inspection(self._shell)
        self._adapter: Adapter | None = None
        self._parent: bytes = EMPTY
        self._subshell_id: str | None = None
        self._numbers = count(1)
        self._breakpoints: dict[str, list[Content]] = {}
        self._watching: bool = False
        self._stops = count()
        self._stopped: dict[int, int] = {}
        self._service_ids: set[int] = set()
        self._namespaces: set[int] = set()
        self._handlers: dict[str, Handler] = {
            "initialize": self._initialize,
            "attach": self._attach,
            "configurationDone": self._configuration_done,
            "disconnect": self._disconnect,
            "terminate": self._disconnect,
            "setBreakpoints": self._set_breakpoints,
            "threads": self._threads,
            "scopes": self._scopes,
            "variables": self._variables,
            "debugInfo": self._debug_info,
            "richInspectVariables": self._rich_inspect_variables,
            "copyToGlobals": self._copy_to_globals,
        }

    @property
    def is_started(self) -> bool:
        """Whether a session is open."""
        return self._adapter is not None and not self._adapter.closed

    @property
    def stopped_threads(self) -> list[int]:
        """The threads that are stopped, by the protocol's ids, the latest last."""
        return list(self._stopped)

    async def request(self, message: Content) -> Content:
        """Answer a request of the debug adapter protocol; what goes wrong is told in the response."""
        job = self._current.get()
        self._parent, self._subshell_id = self._current.parent(), job.subshell_id if job is not None else None
        try:
            request = Request.read(message)
        except RequestError as error:
            return response(next(self._numbers), message, error=str(error))
        try:
            with anyio.fail_after(_START_DEADLINE if request.command == "initialize" else DEADLINE + 1):
                return await self._respond(request)
        except TimeoutError:
            return self._failed(request, f"{request.command} has taken longer than {DEADLINE:g} s: it was given up.")
        except RequestError as error:
            return self._failed(request, str(error))
        except Exception as error:  # the user's own code may raise anything
            return self._failed(request, f"{type(error).__name__}: {error}")

    async def _respond(self, request: Request) -> Content:
        if request.command in self._inspection.handlers:
            return self._succeeded(request, await self._inspection.handlers[request.command](request))
        return await self._handlers.get(request.command, self._forward)(request)

    def close(self) -> None:
        """End the session with the kernel, and remove the cells' files; from any thread, at once."""
        self._end_session()
        CELL_FILES.remove()

    # ── the session ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _initialize(self, request: Request) -> Content:
        if not self.is_started:
            if find_spec("debugpy") is None:
                raise RequestError("debugpy is not installed in the kernel's environment: install it there.")
            shell = await in_service_thread(self._shell)  # there may be none yet, and its start is not to be traced
            self._watch(shell.kernel.event_stopping)
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
            # The first one to be asked of is number 1, the main thread.
            self._user_threads(_list(await self._ask("threads", {}), "threads"))
        return self._answer(request, await self._ask("initialize", request.arguments))

    def _watch(self, stopping: threading.Event) -> None:
        """End the session as soon as the kernel is to end: what runs still would be slow as long as it is traced."""
        if not self._watching:
            self._watching = True
            start_service_thread(lambda: stopping.wait() and self._end_session())

    def _end_session(self) -> None:
        if self._adapter is not None:
            self._adapter.close()

    async def _attach(self, request: Request) -> Content:
        """Attach, and begin at once: front ends tell when they have set their breakpoints, but not always."""
        arguments: Content = {"justMyCode": False, "stopAllThreadsOnSuspend": False, "steppingResumesAllThreads": False}
        arguments |= request.arguments
        rules = arguments.get("rules")
        arguments["rules"] = [*(cast("Contents", rules) if isinstance(rules, list) else []), *_kernel_rules()]
        answer = await self._ask("attach", arguments)
        if answer.get("success"):
            await self._ask("configurationDone", {})
        return self._answer(request, answer)

    async def _disconnect(self, request: Request) -> Content:
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            self._interrupts.resume = CELL_FILES.before_cell = CELL_FILES.after_error = None
            if not adapter.closed:  # the process is the kernel's: no front end may end it this way
                await adapter.request("disconnect", {"restart": False, "terminateDebuggee": False}, 5)
            await in_service_thread(adapter.stop)
        self._breakpoints.clear()
        self._stopped.clear()
        self._service_ids.clear()
        return self._succeeded(request)

    async def _configuration_done(self, request: Request) -> Content:
        return self._succeeded(request)

    def _on_event(self, event: Content) -> None:
        """Take note of what pydevd says, and tell the front ends; in the thread that hears it."""
        body: Content = event.get("body") or {}
        thread: Any = body.get("threadId")
        if thread in self._service_ids:
            return
        if event["event"] == "stopped":
            self._stopped.pop(thread, None)
            self._stopped[thread] = next(self._stops)
        elif event["event"] == "continued":
            self._forget(list(self._stopped) if body.get("allThreadsContinued") else [thread])
        elif event["event"] == "thread" and body.get("reason") == "exited":
            self._forget([thread])
        elif event["event"] == "terminated":
            self._stopped.clear()
        event.pop("pydevd_cmd_id", None)
        self._outbox.post(Outgoing(Channel.IOPUB, "debug_event", dumps(event), self._parent))

    def _forget(self, threads: list[int]) -> None:
        for thread in threads:
            self._stopped.pop(thread, None)

    # ── what pydevd answers ─────────────────────────────────────────────────────────────────────────────────────────

    async def _forward(self, request: Request) -> Content:
        """Hand a request on; about threads and frames only where there are any that are stopped."""
        arguments = request.arguments
        if not self._stopped and request.command in _OF_A_THREAD | _OF_A_FRAME:
            return self._where_nothing_is_stopped(request)
        if request.command not in _OF_A_THREAD:
            return self._answer(request, await self._ask(request.command, arguments))
        named = arguments.get("threadId")
        thread = named if named in self._stopped else self.stopped_threads[-1]
        if request.command in _RESUMING:
            return await self._resume(request, thread)
        return self._answer(request, await self._ask(request.command, {**arguments, "threadId": thread}))

    async def _resume(self, request: Request, thread: int) -> Content:
        """Let threads go on, and make them look at once: pydevd's own next look may be far away."""
        before = dict(self._stopped) if request.command == "continue" else {thread: self._stopped[thread]}
        answer = self._answer(request, await self._ask(request.command, {**request.arguments, "threadId": thread}))
        if answer["success"]:
            await self._started().nudge_until(lambda: not before.items() & self._stopped.items())
        return answer

    def _where_nothing_is_stopped(self, request: Request) -> Content:
        """Answer what pydevd would never answer, or would keep for the next stop (ipykernel #1255)."""
        self._started()
        bodies: dict[str, Content] = {
            "continue": {"allThreadsContinued": True},
            "stackTrace": {"stackFrames": [], "totalFrames": 0},
            "scopes": {"scopes": []},
        }
        if request.command in bodies:
            return self._succeeded(request, bodies[request.command])
        raise RequestError(f"No thread is stopped: {request.command} is for one that is.")

    async def _ask(self, command: str, arguments: Content) -> Content:
        answer = await self._started().request(command, arguments, DEADLINE)
        if answer is not None:
            return answer
        if not self.is_started:
            raise RequestError("The debugging session has ended: begin with initialize.")
        raise RequestError(
            f"The debugger has not answered {command} within {DEADLINE:g} s. Code that it evaluates may run still: "
            "continue, or interrupt the kernel."
        )

    def _started(self) -> Adapter:
        if self._adapter is None or self._adapter.closed:
            raise RequestError("The debugger has not been started: send initialize and attach first.")
        return self._adapter

    async def _set_breakpoints(self, request: Request) -> Content:
        path = request.source_path()
        answer = self._answer(request, await self._ask("setBreakpoints", request.arguments))
        if answer["success"]:
            asked: Contents = request.arguments.get("breakpoints") or []
            made = _list(answer, "breakpoints")
            # A breakpoint may have come to another line than it was asked for.
            self._breakpoints[path] = [
                {**wanted, "line": each.get("line", wanted.get("line"))}
                for wanted, each in zip(asked, made, strict=False)
            ]
            if not self._breakpoints[path]:
                del self._breakpoints[path]
        return answer

    async def _threads(self, request: Request) -> Content:
        return self._answer(request, await self._ask("threads", {}))

    async def _scopes(self, request: Request) -> Content:
        answer = await self._forward(request)
        self._namespaces.update(scope["variablesReference"] for scope in _list(answer, "scopes"))
        return answer

    async def _variables(self, request: Request) -> Content:
        reference = request.number("variablesReference")
        if self._inspection.holds(reference):
            return self._succeeded(request, await self._inspection.children(request))
        if not self._stopped:
            return self._succeeded(request, {"variables": []})
        answer = self._answer(request, await self._ask("variables", request.arguments))
        if reference in self._namespaces and (body := answer.get("body")):
            body["variables"] = [each for each in body["variables"] if is_shown(each["name"])]
        return answer

    async def _copy_to_globals(self, request: Request) -> Content:
        """Keep a stopped function's variable in the user's namespace."""
        target, source = request.identifier("dstVariableName"), request.identifier("srcVariableName")
        if not self._stopped:
            return self._where_nothing_is_stopped(request)
        arguments = {
            "expression": f"get_ipython().user_ns[{target!r}]",  # a library's function has other globals
            "value": source,
            "frameId": request.number("srcFrameId"),
        }
        return self._answer(request, await self._ask("setExpression", arguments))

    async def _debug_info(self, request: Request) -> Content:
        body = {
            "isStarted": self.is_started,
            "hashMethod": HASH_METHOD,
            "hashSeed": HASH_SEED,
            "tmpFilePrefix": CELL_FILES.prefix,
            "tmpFileSuffix": SUFFIX,
            "breakpoints": [{"source": path, "breakpoints": each} for path, each in self._breakpoints.items()],
            "stoppedThreads": self.stopped_threads,
            "richRendering": True,
            "exceptionPaths": ["Python Exceptions"],
            "copyToGlobals": True,
        }
        return self._succeeded(request, body)

    async def _rich_inspect_variables(self, request: Request) -> Content:
        """Draw a variable as a cell's result would be: of the stopped frame, or else of the user's namespace."""
        if request.arguments.get("variableName") in _UNNAMED:
            return self._succeeded(request, {"data": {}, "metadata": {}})
        name = request.identifier("variableName")
        frame = request.arguments.get("frameId")
        if frame is None or not self._stopped:
            return self._succeeded(request, await self._inspection.represent(request))
        arguments = {"expression": f"{_RICH}({name})", "frameId": frame, "context": "clipboard"}
        answer = await self._ask("evaluate", arguments)
        if not answer.get("success"):
            return self._failed(request, str(answer.get("message") or f"{name} cannot be shown."))
        return self._succeeded(request, loads(ast.literal_eval(answer["body"]["result"]).encode()))

    def _shell(self) -> Shell:
        """Find the shell that the request is about; waits until there is one, so not in the control thread."""
        return self._shell_of(self._subshell_id)

    # ── responses ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, request: Request, answer: Content) -> Content:
        """Turn pydevd's response into ours, to the front end's own request."""
        body = answer.get("body")
        if answer.get("command") == "threads" and body:
            body["threads"] = self._user_threads(body["threads"])
        if answer.get("success"):
            return self._succeeded(request, body)
        return {**self._failed(request, str(answer.get("message") or f"{request.command} has failed.")), "body": body}

    def _user_threads(self, threads: list[Content]) -> list[Content]:
        self._service_ids = {each["id"] for each in threads if is_service(each["name"])}
        return [each for each in threads if each["id"] not in self._service_ids]

    def _succeeded(self, request: Request, body: Content | None = None) -> Content:
        return response(next(self._numbers), request, body)

    def _failed(self, request: Request, error: str) -> Content:
        return response(next(self._numbers), request, error=error)


def _list(answer: Content, name: str) -> Contents:
    """Return a list in a response's body; one that has failed has none."""
    body: Content = answer.get("body") or {}
    return body.get(name) or []


def _kernel_rules() -> Contents:
    """Name the modules that are never shown or stepped into: what stands between the lines of a cell, and behind them.

    By modules, not by files: pydevd asks for each function that is called, and would take milliseconds for files. One
    of our files is nobody's module, but the process's `__main__`.
    """
    ours = str(Path(str(sys.modules["cobnut_kernel"].__file__)).parent / "**")
    before = {name.partition(".")[0] for name in CELL_FILES.modules_before}
    names = (*_KERNELS, *sorted(before & sys.stdlib_module_names))
    return [{"path": ours, "include": False}, *({"module": name, "include": False} for name in names)]


_KERNELS = (
    *("cobnut_kernel", "IPython", "traitlets", "anyio", "trio", "zmq", "orjson", "comm", "decorator", "uvloop"),
    *("matplotlib_inline", "pygments", "stack_data", "executing", "asttokens", "pure_eval", "pexpect"),
    *("attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"),
)
"""The packages that run the kernel; to these come the parts of the standard library that it needs."""
