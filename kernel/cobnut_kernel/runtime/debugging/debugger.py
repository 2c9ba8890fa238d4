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
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.runtime.debugging.adapter import in_service_thread
from cobnut_kernel.runtime.debugging.cells import CELL_FILES, HASH_METHOD, HASH_SEED, SUFFIX
from cobnut_kernel.runtime.debugging.exploring import is_shown
from cobnut_kernel.runtime.debugging.inspecting import Inspection
from cobnut_kernel.runtime.debugging.requests import Request, RequestError, response
from cobnut_kernel.runtime.debugging.rich import represent
from cobnut_kernel.runtime.debugging.session import DEADLINE, DebugSession, require_debugpy
from cobnut_kernel.runtime.debugging.threads import DebuggedThreads
from cobnut_kernel.runtime.output.outbox import Outgoing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.output.outbox import Outbox
    from cobnut_kernel.runtime.output.routing import CurrentJob
    from cobnut_kernel.runtime.shells.shell import Shell

    Content = dict[str, Any]
    Contents = list[Content]
    Handler = Callable[[Request], Awaitable[Content]]

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
        self._shell_of = shell_of
        self._inspection = Inspection(self._shell)
        self._session = DebugSession(self._on_event, interrupts)
        self._threads = DebuggedThreads()
        self._parent: bytes = EMPTY
        self._subshell_id: str | None = None
        self._numbers = count(1)
        self._breakpoints: dict[str, list[Content]] = {}
        self._namespaces: set[int] = set()
        self._handlers: dict[str, Handler] = {
            "initialize": self._initialize,
            "attach": self._attach,
            "configurationDone": self._configuration_done,
            "disconnect": self._disconnect,
            "terminate": self._disconnect,
            "setBreakpoints": self._set_breakpoints,
            "threads": self._list_threads,
            "scopes": self._scopes,
            "variables": self._variables,
            "debugInfo": self._debug_info,
            "richInspectVariables": self._rich_inspect_variables,
            "copyToGlobals": self._copy_to_globals,
        }

    @property
    def is_started(self) -> bool:
        """Whether a session is open."""
        return self._session.is_open

    @property
    def stopped_threads(self) -> list[int]:
        """The threads that are stopped, by the protocol's ids, the latest last."""
        return self._threads.stopped

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
        self._session.close()
        CELL_FILES.remove()

    # ── the session ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _initialize(self, request: Request) -> Content:
        if not self.is_started:
            require_debugpy()
            shell = await in_service_thread(self._shell)  # there may be none yet, and its start is not to be traced
            await self._session.open(shell.kernel.event_stopping)
            # The first one to be asked of is number 1, the main thread.
            self._threads.users(_list(await self._session.ask("threads", {}), "threads"))
        return self._answer(request, await self._session.ask("initialize", request.arguments))

    async def _attach(self, request: Request) -> Content:
        """Attach, and begin at once: front ends tell when they have set their breakpoints, but not always."""
        arguments: Content = {"justMyCode": False, "stopAllThreadsOnSuspend": False, "steppingResumesAllThreads": False}
        arguments |= request.arguments
        rules = arguments.get("rules")
        arguments["rules"] = [*(cast("Contents", rules) if isinstance(rules, list) else []), *_kernel_rules()]
        answer = await self._session.ask("attach", arguments)
        if answer.get("success"):
            await self._session.ask("configurationDone", {})
        return self._answer(request, answer)

    async def _disconnect(self, request: Request) -> Content:
        await self._session.end()
        self._breakpoints.clear()
        self._threads.clear()
        return self._succeeded(request)

    async def _configuration_done(self, request: Request) -> Content:
        return self._succeeded(request)

    def _on_event(self, event: Content) -> None:
        """Tell the front ends what pydevd says; in the thread that hears it."""
        if self._threads.note(event):
            event.pop("pydevd_cmd_id", None)
            self._outbox.post(Outgoing(Channel.IOPUB, "debug_event", dumps(event), self._parent))

    # ── what pydevd answers ─────────────────────────────────────────────────────────────────────────────────────────

    async def _forward(self, request: Request) -> Content:
        """Hand a request on; about threads and frames only where there are any that are stopped."""
        arguments = request.arguments
        thread = self._threads.stopped_one(arguments.get("threadId"))
        if thread is None and request.command in _OF_A_THREAD | _OF_A_FRAME:
            return self._where_nothing_is_stopped(request)
        if thread is None or request.command not in _OF_A_THREAD:
            return self._answer(request, await self._session.ask(request.command, arguments))
        if request.command in _RESUMING:
            return await self._resume(request, thread)
        return self._answer(request, await self._session.ask(request.command, {**arguments, "threadId": thread}))

    async def _resume(self, request: Request, thread: int) -> Content:
        """Let threads go on, and make them look at once: pydevd's own next look may be far away."""
        stops = self._threads.stops(None if request.command == "continue" else thread)
        answer = await self._session.ask(request.command, {**request.arguments, "threadId": thread})
        if answer.get("success"):
            await self._session.require_open().nudge_until(lambda: self._threads.have_gone_on(stops))
        return self._answer(request, answer)

    def _where_nothing_is_stopped(self, request: Request) -> Content:
        """Answer what pydevd would never answer, or would keep for the next stop (ipykernel #1255)."""
        self._session.require_open()
        bodies: dict[str, Content] = {
            "continue": {"allThreadsContinued": True},
            "stackTrace": {"stackFrames": [], "totalFrames": 0},
            "scopes": {"scopes": []},
        }
        if request.command in bodies:
            return self._succeeded(request, bodies[request.command])
        raise RequestError(f"No thread is stopped: {request.command} is for one that is.")

    async def _set_breakpoints(self, request: Request) -> Content:
        path = request.source_path()
        answer = self._answer(request, await self._session.ask("setBreakpoints", request.arguments))
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

    async def _list_threads(self, request: Request) -> Content:
        return self._answer(request, await self._session.ask("threads", {}))

    async def _scopes(self, request: Request) -> Content:
        answer = await self._forward(request)
        self._namespaces.update(scope["variablesReference"] for scope in _list(answer, "scopes"))
        return answer

    async def _variables(self, request: Request) -> Content:
        reference = request.number("variablesReference")
        if self._inspection.holds(reference):
            return self._succeeded(request, await self._inspection.children(request))
        if not self._threads.stopped:
            return self._succeeded(request, {"variables": []})
        answer = self._answer(request, await self._session.ask("variables", request.arguments))
        if reference in self._namespaces and (body := answer.get("body")):
            body["variables"] = [each for each in body["variables"] if is_shown(each["name"])]
        return answer

    async def _copy_to_globals(self, request: Request) -> Content:
        """Keep a stopped function's variable in the user's namespace."""
        target, source = request.identifier("dstVariableName"), request.identifier("srcVariableName")
        if not self._threads.stopped:
            return self._where_nothing_is_stopped(request)
        arguments = {
            "expression": f"get_ipython().user_ns[{target!r}]",  # a library's function has other globals
            "value": source,
            "frameId": request.number("srcFrameId"),
        }
        return self._answer(request, await self._session.ask("setExpression", arguments))

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
        if frame is None or not self._threads.stopped:
            return self._succeeded(request, await self._inspection.represent(request))
        arguments = {"expression": f"{_RICH}({name})", "frameId": frame, "context": "clipboard"}
        answer = await self._session.ask("evaluate", arguments)
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
            body["threads"] = self._threads.users(body["threads"])
        if answer.get("success"):
            return self._succeeded(request, body)
        return {**self._failed(request, str(answer.get("message") or f"{request.command} has failed.")), "body": body}

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
