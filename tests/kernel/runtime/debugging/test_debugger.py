"""Debugging cells over the wire, against the real debugpy, by the messages that JupyterLab sends."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.runtime.debugging.dap import FrontEnd
from tests.kernel.wire import KEY, KernelProcess

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.wire import Exchange, WireClient

WORK = """\
def work(n):
    doubled = n * 2
    listed = [doubled, n]
    return listed

x = 5
y = work(x)
y
"""


@pytest.fixture
def front_end(client: WireClient) -> Iterator[FrontEnd]:
    """A front end whose session has begun; it ends with the test."""
    front_end = FrontEnd(client)
    front_end.start()
    yield front_end
    front_end.stop()


def stopped_at(front_end: FrontEnd, thread: int = 1) -> tuple[str, int]:
    """Return function and line where a thread is stopped."""
    top = front_end.frames(thread)[0]
    return top["name"], top["line"]


# ── one session ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_as_jupyterlab_leads_it(client: WireClient) -> None:
    """Breakpoint, frames, variables, evaluation, steps, end: each as JupyterLab asks for it, and twice in a row."""
    front_end = FrontEnd(client)
    for _ in range(2):
        filters = front_end.start()["exceptionBreakpointFilters"]
        assert {"raised", "uncaught", "userUnhandled"} == {each["filter"] for each in filters}
        path = front_end.set_breakpoints(WORK, 3)
        info = front_end.body("debugInfo")
        assert info["isStarted"]
        assert info["breakpoints"] == [{"source": path, "breakpoints": [{"line": 3}]}]
        cell = client.send_code(WORK)
        assert front_end.wait_for_stop() == 1
        assert front_end.body("debugInfo")["stoppedThreads"] == [1]
        frames = front_end.frames()
        assert [(each["name"], each["line"], each["source"]["path"]) for each in frames] == [
            ("work", 3, path),
            ("<module>", 7, path),
        ]
        assert {name: each["value"] for name, each in front_end.scope(frames[0]["id"]).items()} == {
            "n": "5",
            "doubled": "10",
        }
        names = set(front_end.scope(frames[0]["id"], "Globals"))
        assert {"x", "work"} <= names | {"work"}
        assert not names & {"In", "Out", "_i", "get_ipython", "__builtins__"}
        found = front_end.body("evaluate", expression="doubled + 1", frameId=frames[0]["id"], context="repl")
        assert found["result"] == "11"
        front_end.body("setVariable", variablesReference=locals_of(front_end), name="doubled", value="100")
        front_end.body("next", threadId=1)
        front_end.wait_for_stop("step")
        assert stopped_at(front_end) == ("work", 4)
        front_end.body("continue", threadId=1)
        assert client.finish(cell).result == "[100, 5]"
        assert front_end.body("debugInfo")["stoppedThreads"] == []
        front_end.stop()
        assert not front_end.body("debugInfo")["isStarted"]


def locals_of(front_end: FrontEnd) -> int:
    """Return the reference to the local variables of the top frame."""
    scopes = front_end.body("scopes", frameId=front_end.frames()[0]["id"])["scopes"]
    return scopes[0]["variablesReference"]


def test_steps_go_into_a_function_over_its_lines_and_out(front_end: FrontEnd) -> None:
    """Step into, over and out stop in the user's functions only."""
    code = "def inner(n):\n    a = n\n    return a\ndef outer():\n    b = inner(1)\n    b += 1\n    return b\nouter()"
    front_end.set_breakpoints(code, 5)
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    seen: list[tuple[str, int]] = [stopped_at(front_end)]
    for step in ("stepIn", "next", "stepOut"):
        front_end.body(step, threadId=1)
        front_end.wait_for_stop("step")
        seen.append(stopped_at(front_end))
    assert seen[:3] == [("outer", 5), ("inner", 2), ("inner", 3)]
    assert seen[3] in [("outer", 5), ("outer", 6)]  # the call may count as over
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "2"


def test_steps_end_with_their_cell(front_end: FrontEnd) -> None:
    """A step from statement to statement stays in the cell; one over the last ends it, and the next runs through."""
    front_end.set_breakpoints(WORK, 6)
    cell = front_end.client.send_code(WORK)
    front_end.wait_for_stop()
    lines = [stopped_at(front_end)[1]]
    for _ in range(2):
        front_end.body("next", threadId=1)
        front_end.wait_for_stop("step")
        lines.append(stopped_at(front_end)[1])
    assert lines == [6, 7, 8]
    front_end.body("next", threadId=1)
    assert front_end.client.finish(cell).result == "[10, 5]"
    assert front_end.client.execute("a = 1\nb = 2\na + b").result == "3"


def test_the_users_own_module_can_be_stepped_into(start_kernel: Callable[..., KernelProcess]) -> None:
    """What a cell imports is code like its own; a breakpoint in its file stops there too."""
    kernel = start_kernel()
    module = kernel.folder / "helping.py"
    module.write_text("def helped(n):\n    more = n + 1\n    return more\n")
    front_end = FrontEnd(kernel.connect())
    front_end.start()
    code = "import helping\nz = helping.helped(1)\nhelping.helped(z)"
    front_end.set_breakpoints(code, 2)
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    front_end.body("stepIn", threadId=1)
    front_end.wait_for_stop("step")
    assert stopped_at(front_end) == ("helped", 2)
    front_end.body("setBreakpoints", source={"path": str(module)}, breakpoints=[{"line": 3}])
    front_end.body("continue", threadId=1)
    front_end.wait_for_stop()
    assert front_end.frames()[0]["source"]["path"] == str(module)
    assert front_end.body("source", source={"path": str(module)})["content"] == module.read_text()
    front_end.body("setBreakpoints", source={"path": str(module)}, breakpoints=[])
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "3"


def test_stopping_in_a_coroutine(front_end: FrontEnd) -> None:
    """A cell that awaits stops like any other, and a step over an await waits for it."""
    code = "import asyncio\nasync def nap():\n    await asyncio.sleep(0.01)\n    return 7\nn = await nap()\nn"
    front_end.set_breakpoints(code, 3)
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    front_end.body("next", threadId=1)
    front_end.wait_for_stop("step")
    assert stopped_at(front_end) == ("nap", 4)
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "7"


def test_a_trio_kernel_is_debugged_the_same_way(start_kernel: Callable[..., KernelProcess], tmp_path: Path) -> None:
    """Under trio a cell that awaits stops, steps and ends."""
    info = {"transport": "ipc", "ip": str(tmp_path / "socket"), "key": KEY.decode(), "kernel_name": "trio"}
    ports = dict(zip(("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), range(1, 6), strict=True))
    front_end = FrontEnd(start_kernel(info={**info, **ports, "signature_scheme": "hmac-sha256"}).connect())
    front_end.start()
    code = "import trio\nn = 1\nawait trio.sleep(0)\nn + 1"
    front_end.set_breakpoints(code, 3)
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    while stopped_at(front_end)[1] == 3:  # pydevd may stop there once more, when the coroutine is resumed
        front_end.body("next", threadId=1)
        front_end.wait_for_stop("step")
    assert stopped_at(front_end)[1] == 4
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "2"


# ── breakpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_breakpoints_one_after_the_other(front_end: FrontEnd) -> None:
    """Each of two breakpoints stops, and once they are taken away none does."""
    path = front_end.set_breakpoints(WORK, 3, 8)
    cell = front_end.client.send_code(WORK)
    lines: list[int] = []
    for _ in range(2):
        front_end.wait_for_stop()
        lines.append(stopped_at(front_end)[1])
        front_end.body("continue", threadId=1)
    front_end.client.finish(cell)
    assert lines == [3, 8]
    front_end.body("setBreakpoints", source={"path": path}, breakpoints=[])
    assert front_end.body("debugInfo")["breakpoints"] == []
    assert front_end.client.execute(WORK).result == "[10, 5]"


def test_a_condition_stops_where_it_holds(front_end: FrontEnd) -> None:
    """A conditional breakpoint stops once, where its condition holds, and debugInfo tells the condition."""
    code = "for i in range(5):\n    j = i * i\nj"
    path = front_end.set_breakpoints(code, 2, condition="i == 3")
    told = [{"source": path, "breakpoints": [{"line": 2, "condition": "i == 3"}]}]
    assert front_end.body("debugInfo")["breakpoints"] == told
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    assert front_end.scope(front_end.frames()[0]["id"])["i"]["value"] == "3"
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "16"


def test_a_raised_exception_stops_where_it_is_raised(front_end: FrontEnd) -> None:
    """With the filter 'raised' an exception that the cell catches stops there too, and says what it is."""
    front_end.body("setExceptionBreakpoints", filters=["raised"])
    cell = front_end.client.send_code("try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass")
    front_end.wait_for_stop("exception")
    assert stopped_at(front_end)[1] == 2
    assert front_end.body("exceptionInfo", threadId=1)["exceptionId"] == "ZeroDivisionError"
    front_end.body("continue", threadId=1)
    front_end.client.finish(cell)


def test_an_exception_that_leaves_the_cell_is_uncaught(front_end: FrontEnd) -> None:
    """With the filter 'uncaught' only the exception that ends the cell stops, though IPython catches it."""
    front_end.body("setExceptionBreakpoints", filters=["uncaught"])
    code = "try:\n    int('x')\nexcept ValueError:\n    pass\ndef fails():\n    return 1 / 0\nfails()"
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop("exception")
    assert front_end.body("exceptionInfo", threadId=1)["exceptionId"] == "ZeroDivisionError"
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).content["ename"] == "ZeroDivisionError"


def test_lines_are_those_that_the_user_sees(front_end: FrontEnd) -> None:
    """Empty lines and a run mode's magic above the code do not move the breakpoint, nor the traceback's line."""
    code = "\n  \n%%task\nq = 1\nq = q / 0"
    front_end.set_breakpoints(code, 5)
    cell = front_end.client.send_code(code)
    front_end.wait_for_stop()
    assert stopped_at(front_end)[1] == 5
    front_end.body("continue", threadId=1)
    error = front_end.client.finish(cell).error
    count = cell.only(MessageType.EXECUTE_INPUT)["execution_count"]
    assert f"Cell In[{count}], line 5" in plain("\n".join(error["traceback"]))


def plain(text: str) -> str:
    """Return a text without its colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_cell_magic_below_empty_lines_is_one(client: WireClient) -> None:
    """Empty lines that are kept do not hide what IPython looks for at the beginning of a cell."""
    assert client.execute("\n\n%%capture out\nprint('hidden')\n").text() == ""
    assert client.execute("out.stdout").result == "'hidden\\n'"


def test_an_automatic_call_below_empty_lines_works(client: WireClient) -> None:
    """A line that only IPython understands is understood below empty lines too."""
    assert client.execute("\n\npwd").result


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_subshell_stops_alone(front_end: FrontEnd) -> None:
    """A breakpoint in a subshell stops that thread; main shell and others run on, and thread 1 is understood."""
    client = front_end.client
    subshell = client.create_subshell()
    front_end.set_breakpoints(WORK, 3)
    cell = client.send_code(WORK, subshell=subshell)
    thread = front_end.wait_for_stop()
    assert thread != 1
    assert client.execute("'main runs'").result == "'main runs'"
    names = {each["id"]: each["name"] for each in front_end.body("threads")["threads"]}
    assert names[thread] == f"cobnut-subshell-{subshell[:8]}"
    assert stopped_at(front_end, 1) == ("work", 3)
    front_end.body("next", threadId=1)
    assert front_end.wait_for_stop("step") == thread
    front_end.body("continue", threadId=1)
    assert client.finish(cell).result == "[10, 5]"
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


def test_two_threads_are_stopped_and_stepped_each_for_itself(front_end: FrontEnd) -> None:
    """Two shells may stop at once: each is stepped by its number, and continue lets both go on."""
    client = front_end.client
    subshell = client.create_subshell()
    front_end.set_breakpoints(WORK, 3)
    cells = [client.send_code(WORK), client.send_code(WORK, subshell=subshell)]
    threads = sorted(front_end.wait_for_stop() for _ in cells)
    assert sorted(front_end.body("debugInfo")["stoppedThreads"]) == threads
    front_end.body("next", threadId=1)
    assert front_end.wait_for_stop("step") == 1
    assert [stopped_at(front_end, thread) for thread in threads] == [("work", 4), ("work", 3)]
    front_end.body("continue", threadId=1)
    assert [client.finish(cell).result for cell in cells] == ["[10, 5]"] * 2
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


def test_no_thread_of_the_kernels_is_shown(front_end: FrontEnd) -> None:
    """The threads are those that run the user's code: the shells' and those that cells have started."""
    client = front_end.client
    client.execute("import threading\nheld = threading.Event()")
    client.execute("threading.Thread(target=held.wait, name='mine').start()")
    names = [each["name"] for each in front_end.body("threads")["threads"]]
    client.execute("held.set()")
    assert names[0] == "MainThread"
    assert "mine" in names
    assert not [name for name in names if name.startswith(("cobnut-", "pydevd")) or "History" in name]


def test_a_users_thread_stops_while_its_cell_is_over(front_end: FrontEnd) -> None:
    """A breakpoint in a thread that a cell has left running stops it, and cells run on."""
    client = front_end.client
    code = (
        "import threading\ndef body():\n    global seen\n    seen = 1\n"
        "t = threading.Thread(target=body, name='late')\nt.start()"
    )
    front_end.set_breakpoints(code, 4)
    client.execute(code)
    thread = front_end.wait_for_stop()
    assert stopped_at(front_end, thread) == ("body", 4)
    front_end.body("continue", threadId=thread)
    assert client.execute("t.join()\nseen").result == "1"


def test_a_running_cell_is_paused(front_end: FrontEnd) -> None:
    """Pause stops the loop of a running cell where it is."""
    cell = front_end.client.send_code("going = True\nprint('begun')\nwhile going:\n    pass\n'over'")
    front_end.client.wait_for_text(cell, "begun")
    front_end.body("pause", threadId=1)
    front_end.wait_for_stop("pause")
    frame = front_end.frames()[0]
    assert frame["line"] in (3, 4)
    front_end.body("evaluate", expression="globals().update(going=False)", frameId=frame["id"], context="repl")
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "'over'"


# ── variables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_variables_without_a_debugger(start_kernel: Callable[..., KernelProcess]) -> None:
    """The request inspectVariables and its children need no session, and debugpy is not imported for them."""
    front_end = FrontEnd(start_kernel().connect())
    front_end.client.execute("import sys\nnested = [1, {'k': 2}]")
    variables = {each["name"]: each for each in front_end.body("inspectVariables")["variables"]}
    assert variables.keys() == {"sys", "nested"}
    assert variables["nested"]["type"] == "list"
    children = front_end.body("variables", variablesReference=variables["nested"]["variablesReference"])["variables"]
    assert [(each["name"], each["value"]) for each in children] == [("0", "1"), ("1", "{'k': 2}")]
    assert front_end.body("richInspectVariables", variableName="nested")["data"]["text/plain"] == "[1, {'k': 2}]"
    loaded = front_end.client.execute("any(name.startswith(('debugpy', 'pydev')) for name in sys.modules)")
    assert loaded.result == "False"


def test_variables_are_drawn_richly(front_end: FrontEnd) -> None:
    """A variable is drawn as a result would be, of the namespace and of a stopped frame, pictures too."""
    client = front_end.client
    code = (
        "class Rich:\n    def __init__(self, n): self.n = n\n    def _repr_html_(self): return f'<b>{self.n}</b>'\n"
        "    def _repr_png_(self): return b'\\x89PNG'\nrich = Rich(1)\ndef stop(rich):\n    return rich\nstop(Rich(2))"
    )
    front_end.set_breakpoints(code, 7)
    cell = client.send_code(code)
    front_end.wait_for_stop()
    frame = front_end.frames()[0]["id"]
    inner = front_end.body("richInspectVariables", variableName="rich", frameId=frame)
    outer = front_end.body("richInspectVariables", variableName="rich")
    assert [inner["data"]["text/html"], outer["data"]["text/html"]] == ["<b>2</b>", "<b>1</b>"]
    assert inner["data"]["image/png"] == outer["data"]["image/png"] == "iVBORw=="
    assert front_end.body("richInspectVariables", variableName="special variables") == {"data": {}, "metadata": {}}
    front_end.body("continue", threadId=1)
    client.finish(cell)


def test_a_local_variable_is_copied_to_the_namespace(front_end: FrontEnd) -> None:
    """The request copyToGlobals keeps a local variable for later cells."""
    front_end.set_breakpoints(WORK, 4)
    cell = front_end.client.send_code(WORK)
    front_end.wait_for_stop()
    frame = front_end.frames()[0]["id"]
    front_end.body("copyToGlobals", srcVariableName="listed", dstVariableName="kept", srcFrameId=frame)
    front_end.body("continue", threadId=1)
    front_end.client.finish(cell)
    assert front_end.client.execute("kept").result == "[10, 5]"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("copyToGlobals", {"srcVariableName": "exit()", "dstVariableName": "a", "srcFrameId": 1}),
        ("copyToGlobals", {"srcVariableName": "a", "dstVariableName": "x']; exit(); a['", "srcFrameId": 1}),
        ("copyToGlobals", {"srcVariableName": "class", "dstVariableName": "a", "srcFrameId": 1}),
        ("richInspectVariables", {"variableName": "exit()"}),
        ("richInspectVariables", {"variableName": 7}),
        ("richInspectVariables", {"variableName": "nowhere"}),
        ("dumpCell", {"code": None}),
        ("source", {"source": {"path": "/no/such/file"}}),
        ("source", {}),
        ("setBreakpoints", {"breakpoints": []}),
        ("variables", {"variablesReference": "x"}),
        ("modules", {"startModule": "x"}),
    ],
)
def test_what_cannot_be_answered_is_refused(front_end: FrontEnd, command: str, arguments: dict[str, Any]) -> None:
    """A request that lacks what it needs, or would smuggle code in, gets an error that says so."""
    assert front_end.error(command, **arguments)


def test_modules_are_told_by_pages(client: WireClient) -> None:
    """The modules with a file are named, a part of them where that is asked for."""
    front_end = FrontEnd(client)
    whole = front_end.body("modules")
    assert any(each["name"] == "threading" for each in whole["modules"])
    assert all(each["path"].endswith(".py") for each in whole["modules"])
    page = front_end.body("modules", startModule=10, moduleCount=5)["modules"]
    assert page == [each for each in whole["modules"] if 10 <= each["id"] < 15]


# ── whatever comes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_the_start_there_is_an_error_and_no_harm(client: WireClient) -> None:
    """What needs a session says so; disconnect is always right, and the source of a cell is known without one."""
    front_end = FrontEnd(client)
    for command in ("attach", "stackTrace", "next", "evaluate", "setBreakpoints", "threads", "continue", "pause"):
        assert "initialize" in front_end.error(command, threadId=1, source={"path": "x"}), command
    front_end.stop()
    client.execute("1 + 1 # shown")
    prefix = front_end.body("debugInfo")["tmpFilePrefix"]
    path = front_end.body("dumpCell", code="1 + 1 # shown")["sourcePath"]
    assert path.startswith(prefix)
    Path(path).unlink()
    assert front_end.body("source", source={"path": path})["content"] == "1 + 1 # shown\n"


@pytest.mark.parametrize("content", [{}, {"command": 5}, {"command": "next", "seq": 1, "arguments": [1]}])
def test_a_request_that_is_none_is_answered(client: WireClient, content: dict[str, Any]) -> None:
    """A message that is no request of the protocol gets a response that says what is wrong."""
    response = client.control(MessageType.DEBUG_REQUEST, **content)
    assert (response["success"], response["type"]) == (False, "response")
    assert response["message"]


def test_one_continue_too_many(front_end: FrontEnd) -> None:
    """A continue where nothing is stopped is answered, a step refused, and the next stop is not hurt."""
    for _ in range(3):
        front_end.body("continue", threadId=1)
    assert "No thread is stopped" in front_end.error("next", threadId=1)
    assert front_end.body("stackTrace", threadId=1)["stackFrames"] == []
    front_end.set_breakpoints(WORK, 3)
    cell = front_end.client.send_code(WORK)
    front_end.wait_for_stop()
    front_end.body("continue", threadId=1)
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "[10, 5]"


def test_the_kernel_survives_terminate(front_end: FrontEnd) -> None:
    """Terminate, and a disconnect that would end the process, end the session only; what is stopped goes on."""
    for command, arguments in (("terminate", {}), ("disconnect", {"terminateDebuggee": True})):
        front_end.set_breakpoints(WORK, 3)
        cell = front_end.client.send_code(WORK)
        front_end.wait_for_stop()
        front_end.body(command, **arguments)
        assert front_end.client.finish(cell).result == "[10, 5]"
        front_end.start()


def test_after_the_session_nothing_is_traced(front_end: FrontEnd) -> None:
    """Disconnecting takes the tracing off, and gives breakpoint() and the environment back."""
    client = front_end.client
    hook = "sys.breakpointhook is sys.__breakpointhook__"
    code = f"import os, sys, threading\n{hook}, 'PYDEVD_USE_FRAME_EVAL' in os.environ"
    assert client.execute(code).result == "(False, False)"
    front_end.stop()
    assert client.execute(f"{code}, sys.gettrace(), threading.gettrace()").result == "(True, False, None, None)"


def test_there_is_no_port(front_end: FrontEnd, kernel: KernelProcess) -> None:
    """Nobody can connect to the debugger: the kernel on unix sockets listens on no port."""
    connections = psutil.Process(kernel.process.pid).net_connections("inet")
    assert [each for each in connections if each.status == psutil.CONN_LISTEN] == []
    assert psutil.Process(kernel.process.pid).children(recursive=True) == []


def test_a_forked_child_stops_nowhere(front_end: FrontEnd) -> None:
    """A child that is forked while cells are debugged runs past breakpoints: nobody would let it go on."""
    code = (
        "import os\ndef child():\n    return 3\npid = os.fork()\nif pid == 0:\n    os._exit(child())\n"
        "os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"
    )
    front_end.set_breakpoints(code, 3)
    assert front_end.client.execute(code).result == "3"


def test_a_hanging_evaluation_blocks_nobody_else(front_end: FrontEnd) -> None:
    """While an evaluation runs the control channel answers, and an interrupt ends it, and then the cell."""
    client = front_end.client
    front_end.set_breakpoints(WORK, 3)
    cell = client.send_code(WORK)
    front_end.wait_for_stop()
    frame = front_end.frames()[0]["id"]
    code = "print('evaluating') or [0 for i in iter(int, 1)]"
    hanging = front_end.send("evaluate", {"expression": code, "frameId": frame, "context": "repl"})
    client.wait_for_text(cell, "evaluating")
    assert client.control(MessageType.KERNEL_INFO_REQUEST)["status"] == "ok"
    client.control(MessageType.INTERRUPT_REQUEST)
    assert not client.finish(hanging).content["success"]
    client.control(MessageType.INTERRUPT_REQUEST)
    client.finish(cell)


# ── interrupts and the end ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["main", "subshell", "thread"])
def test_an_interrupt_ends_what_is_stopped(front_end: FrontEnd, place: str) -> None:
    """A cell that is stopped is interrupted there, by its own KeyboardInterrupt, and the next one stops again."""
    client = front_end.client
    subshell = client.create_subshell() if place == "subshell" else None
    tags = ["thread"] if place == "thread" else None
    front_end.set_breakpoints(WORK, 3)
    for _ in range(2):
        cell = client.send_code(WORK, subshell=subshell, tags=tags)
        front_end.wait_for_stop()
        assert client.control(MessageType.INTERRUPT_REQUEST) == {"status": "ok"}
        error = client.finish(cell).error
        assert error["ename"] == "KeyboardInterrupt"
        shown = plain("\n".join(error["traceback"]))
        assert "line 3" in shown
        assert "pydevd" not in shown
        assert shown.count("in work(n)") == 1
        assert front_end.body("debugInfo")["stoppedThreads"] == []
    if subshell is not None:
        client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


def test_a_signal_ends_what_is_stopped(front_end: FrontEnd, kernel: KernelProcess) -> None:
    """SIGINT of a terminal interrupts a stopped cell like the message does."""
    front_end.set_breakpoints(WORK, 3)
    cell = front_end.client.send_code(WORK)
    front_end.wait_for_stop()
    kernel.interrupt()
    assert front_end.client.finish(cell).error["ename"] == "KeyboardInterrupt"


def test_an_interrupt_of_one_shell_leaves_another_stopped(front_end: FrontEnd) -> None:
    """Interrupting the main shell's cells alone does not let a stopped subshell go on."""
    client = front_end.client
    subshell = client.create_subshell()
    front_end.set_breakpoints(WORK, 3)
    stopped = client.send_code(WORK, subshell=subshell)
    thread = front_end.wait_for_stop()
    other = client.send_code("while True: pass")
    client.wait(lambda: other.types[:1] == ["busy"], "the other cell")
    client.control(MessageType.INTERRUPT_CELLS_REQUEST, subshell_id=None)
    assert client.finish(other).error["ename"] == "KeyboardInterrupt"
    assert front_end.body("debugInfo")["stoppedThreads"] == [thread]
    front_end.body("continue", threadId=thread)
    assert client.finish(stopped).result == "[10, 5]"
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


def test_a_cell_whose_time_is_up_is_interrupted_where_it_is_stopped(front_end: FrontEnd) -> None:
    """The tag timeout= ends a cell that is stopped too."""
    front_end.set_breakpoints(WORK, 3)
    cell = front_end.client.send_code(WORK, tags=["timeout=0.3"])
    front_end.wait_for_stop()
    assert front_end.client.finish(cell).error["ename"] == "TimeoutError"


@pytest.mark.parametrize("where", ["main", "subshell", "a user's thread"])
@pytest.mark.parametrize("by", ["message", "signal"])
def test_the_kernel_ends_although_a_thread_is_stopped(
    start_kernel: Callable[..., KernelProcess], where: str, by: str
) -> None:
    """Shutdown and SIGTERM end a kernel whose threads are stopped, and leave no file behind."""
    kernel = start_kernel()
    front_end = FrontEnd(kernel.connect())
    front_end.start()
    subshell = front_end.client.create_subshell() if where == "subshell" else None
    code = WORK if where != "a user's thread" else WORK.replace("y = work(x)", START)
    path = Path(front_end.set_breakpoints(code, 3))
    cell = front_end.client.send_code(code, subshell=subshell)
    front_end.wait_for_stop()
    if where == "a user's thread":
        front_end.client.finish(cell)
    if by == "message":
        front_end.client.control(MessageType.SHUTDOWN_REQUEST, restart=False)
    else:
        kernel.process.terminate()
    assert kernel.wait() == 0
    assert not path.parent.exists()
    assert kernel.left_over == []
    assert "did not end" not in kernel.stderr


START = "y = 1; import threading; threading.Thread(target=work, args=(x,)).start()"


# ── Python's own debugger ───────────────────────────────────────────────────────────────────────────────────────────


def answer(client: WireClient, cell: Exchange, line: str, number: int) -> None:
    """Wait for a cell's question, the first or a later one, and answer it."""

    def questions() -> list[Any]:
        return [message for _, message in cell.replies if message.msg_type == MessageType.INPUT_REQUEST]

    client.wait(lambda: len(questions()) >= number, f"question {number}")
    reply = client.codec.message(MessageType.INPUT_REPLY, {"value": line}, parent=questions()[number - 1].header)
    client.sockets[Channel.STDIN].send_multipart(client.codec.encode(reply))


def test_breakpoint_is_pythons_own_without_a_session(kernel: KernelProcess) -> None:
    """breakpoint() asks by input_request, before and after a session too."""
    client = kernel.connect(identity=b"asked")
    front_end = FrontEnd(client)
    for _ in range(2):
        cell = client.send_code("w = 1\nbreakpoint()\nw", allow_stdin=True)
        answer(client, cell, "!w = w + 41", 1)
        answer(client, cell, "continue", 2)
        client.wait(lambda cell=cell: cell.idle, "the cell's end")
        assert cell.result == "42"
        front_end.start()
        front_end.stop()


def test_breakpoint_stops_in_a_session(front_end: FrontEnd) -> None:
    """In a session breakpoint() stops there, as a breakpoint does."""
    cell = front_end.client.send_code("v = 1\nbreakpoint()\nv")
    front_end.wait_for("stopped")
    assert stopped_at(front_end)[0] == "<module>"
    front_end.body("continue", threadId=1)
    assert front_end.client.finish(cell).result == "1"
