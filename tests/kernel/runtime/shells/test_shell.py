"""Cells: what IPython's shell does with them, as clients see it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.wire import KernelProcess, WireClient


# ── results ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_expression_is_the_result(client: WireClient) -> None:
    """execute_result carries the text form and the count that input and reply carry too."""
    exchange = client.execute("1\n'two'")
    content = exchange.only(MessageType.EXECUTE_RESULT)
    assert content["data"] == {"text/plain": "'two'"}
    assert content["metadata"] == {}
    assert content["execution_count"] == exchange.content["execution_count"]
    assert exchange.only(MessageType.EXECUTE_INPUT) == {
        "code": "1\n'two'",
        "execution_count": exchange.content["execution_count"],
    }
    assert exchange.content["status"] == "ok"
    assert exchange.content["payload"] == []
    assert exchange.content["user_expressions"] == {}


@pytest.mark.parametrize("code", ["1 + 1;", "1 + 1;  # really", "None", "x = 3", "print", "", "  \n\t", "# nothing"])
def test_what_has_no_result(client: WireClient, code: str) -> None:
    """A semicolon, None, a statement, and code that is no code show none."""
    exchange = client.execute(code if code != "print" else "print()")
    assert exchange.of_type(MessageType.EXECUTE_RESULT) == []
    assert exchange.content["status"] == "ok"


def test_results_are_kept_under_their_count(client: WireClient) -> None:
    """`_`, `_n`, `Out[n]` and `In[n]` hold what the client was told, by the same numbers."""
    count = client.execute("6 * 7").content["execution_count"]
    assert client.execute(f"_, _{count}, Out[{count}], In[{count}]").result == "(42, 42, 42, '6 * 7')"


@pytest.mark.parametrize(
    ("body", "mime", "data"),
    [
        ("def _repr_html_(self): return '<b>é</b>'", "text/html", "<b>é</b>"),
        ("def _repr_markdown_(self): return '*m*'", "text/markdown", "*m*"),
        ("def _repr_latex_(self): return '$x$'", "text/latex", "$x$"),
        ("def _repr_svg_(self): return '<svg/>'", "image/svg+xml", "<svg/>"),
        ("def _repr_json_(self): return {'a': [1, None]}", "application/json", {"a": [1, None]}),
        ("def _repr_png_(self): return b'\\x89PNG\\r\\n\\x1a\\n\\0'", "image/png", "iVBORw0KGgoA"),
        ("def _repr_jpeg_(self): return b'\\xff\\xd8\\xff'", "image/jpeg", "/9j/"),
        ("def _repr_mimebundle_(self, **_): return {'text/x-mine': 'm'}", "text/x-mine", "m"),
    ],
)
def test_rich_results(client: WireClient, body: str, mime: str, data: object) -> None:
    """Every form that an object offers is sent beside its text; images as base64."""
    exchange = client.execute(f"class Rich:\n    {body}\nRich()")
    bundle = exchange.only(MessageType.EXECUTE_RESULT)["data"]
    assert bundle[mime] == data
    assert "Rich at" in bundle["text/plain"]


def test_a_result_whose_repr_fails_is_an_error_shown(client: WireClient) -> None:
    """The traceback of the user's `__repr__` is shown, and the next cell runs."""
    exchange = client.execute("class Broken:\n    def __repr__(self): return 1 / 0\nBroken()")
    assert exchange.error["ename"] == "ZeroDivisionError"
    assert client.execute("'fine'").result == "'fine'"


def test_a_result_that_has_no_json_form_is_the_cells_error(client: WireClient) -> None:
    """A mime bundle that cannot be sent fails the cell, with words that help."""
    exchange = client.execute("class Odd:\n    def _repr_mimebundle_(self, **_): return {'text/x': object()}\nOdd()")
    assert exchange.content["status"] == "error"
    assert "no JSON form" in exchange.content["evalue"]
    assert client.execute("'fine'").result == "'fine'"


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_is_shown_with_ipythons_traceback(client: WireClient) -> None:
    """ename, evalue and the coloured traceback are the same on iopub and in the reply."""
    exchange = client.execute("def deep():\n    return 1 / 0\n\ndeep()")
    assert exchange.content["status"] == "error"
    assert {name: exchange.content[name] for name in exchange.error} == exchange.error
    assert exchange.error["ename"] == "ZeroDivisionError"
    assert exchange.error["evalue"] == "division by zero"
    text = "\n".join(exchange.error["traceback"])
    assert "\x1b[" in text
    assert "deep" in text
    assert exchange.content["execution_count"] == exchange.only(MessageType.EXECUTE_INPUT)["execution_count"]
    assert exchange.content["payload"] == []


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("1 +", "SyntaxError"),
        ("if True:\nx", "IndentationError"),
        ("return 3", "SyntaxError"),
        ("nobody", "NameError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('b')", "BaseException"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise ExceptionGroup('several', [ValueError(1), TypeError(2)])", "ExceptionGroup"),
        ("x = 1\x00", "SyntaxError"),
        ("raise StopIteration", "StopIteration"),
        ("await asyncio.sleep(0); raise StopAsyncIteration", "StopAsyncIteration"),
        ("'\\ud800' + \ud800", "SyntaxError"),
    ],
)
def test_every_kind_of_error_is_shown_and_survived(client: WireClient, code: str, ename: str) -> None:
    """Shown once, named in the reply, and the kernel goes on."""
    exchange = client.execute(code)
    assert exchange.content["status"] == "error"
    assert exchange.content["ename"] == ename
    assert exchange.error["ename"] == ename
    assert client.execute("'fine'").result == "'fine'"


@pytest.mark.parametrize(
    "definition",
    [
        "class E(Exception):\n    def __str__(self): return 1 / 0",
        "class E(Exception):\n    def __str__(self): return None",
        "class E(Exception):\n    def __repr__(self): raise self",
        "class E(Exception):\n    @property\n    def args(self): raise ValueError",
        "class E(Exception):\n    def __str__(self): return '\\ud800 \\x00'",
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt",
        "class E(Exception):\n    def _render_traceback_(self): raise ValueError",
        "class E(Exception):\n    def _render_traceback_(self): return 'a text'",
        "class E(Exception):\n    def _render_traceback_(self): return None",
        "from IPython.core.error import UsageError\nclass E(UsageError):\n    def __str__(self): return 1 / 0",
    ],
)
def test_an_error_that_cannot_be_printed_is_an_error_all_the_same(client: WireClient, definition: str) -> None:
    """A broken `__str__` or its like costs neither the reply nor the kernel."""
    exchange = client.execute(f"{definition}\nraise E")
    assert exchange.content["status"] == "error"
    assert exchange.content["ename"] in ("E", "KeyboardInterrupt")
    assert all(isinstance(line, str) for line in exchange.content["traceback"])
    assert client.execute("'fine'").result == "'fine'"


def test_a_usage_error_is_a_line_of_stderr_and_an_error_reply(client: WireClient) -> None:
    """IPython shows a magic's wrong use without a traceback."""
    exchange = client.execute("%no_such_magic")
    assert "no_such_magic" in exchange.text("stderr")
    assert exchange.content["ename"] == "UsageError"


def test_errors_of_magics_and_commands(client: WireClient) -> None:
    """A cell magic runs, a failing one is an error, and a command's output is the cell's."""
    assert client.execute("%%capture out\nprint('inside')").types == ["busy", "execute_input", "idle"]
    assert client.execute("out.stdout").result == "'inside\\n'"
    assert client.execute("%%bash\nexit 3").content["status"] == "error"
    assert client.execute("!echo from a command").text().strip() == "from a command"
    assert client.execute("lines = !echo kept\nlines[0]").result == "'kept'"


# ── await, context, names ───────────────────────────────────────────────────────────────────────────────────────────


def test_await_at_the_top_of_a_cell(client: WireClient) -> None:
    """await, async for and async with work outside functions, and the value is the result."""
    client.execute("import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x")
    assert client.execute("await double(21)").result == "42"
    assert client.execute("async with asyncio.timeout(5):\n    x = await double(1)\nx").result == "2"
    assert client.execute("await asyncio.gather(double(1), double(2))").result == "[2, 4]"


def test_one_event_loop_for_all_cells(client: WireClient) -> None:
    """Tasks live on between cells: a queue made in one cell connects two others."""
    client.execute("import asyncio; q = asyncio.Queue(); t = asyncio.create_task(q.get())")
    client.execute("await q.put('passed on')")
    assert client.execute("await t").result == "'passed on'"


def test_context_variables_last_from_cell_to_cell(client: WireClient) -> None:
    """What a cell sets, with and without await, the next one sees (R19)."""
    client.execute("from contextvars import ContextVar; import asyncio; v = ContextVar('v'); v.set('first')")
    assert client.execute("v.get()").result == "'first'"
    client.execute("await asyncio.sleep(0); v.set('second')")
    assert client.execute("v.get()").result == "'second'"


def test_names_functions_and_classes_last(client: WireClient) -> None:
    """A cell's functions see the names of later cells, as in one module."""
    client.execute("def later(): return answer\nclass A:\n    def get(self): return later()")
    client.execute("answer = 42")
    assert client.execute("A().get(), [answer for _ in range(2)], __name__").result == "(42, [42, 42], '__main__')"


def test_cells_run_in_the_main_thread(client: WireClient) -> None:
    """Where signals arrive, and where libraries expect to be."""
    assert client.execute("import threading; threading.current_thread() is threading.main_thread()").result == "True"


# ── the request's switches ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_silent_cell_leaves_no_trace_but_its_output(client: WireClient) -> None:
    """No input, no result, no count, no history; what it prints is shown (R12)."""
    before = client.execute("1").content["execution_count"]
    exchange = client.execute("print('heard'); secret = 7; 5", silent=True)
    assert exchange.types == ["busy", "stream", "idle"]
    assert exchange.text() == "heard\n"
    assert exchange.content["status"] == "ok"
    after = client.execute("secret, 'heard' in In[-2]")
    assert after.content["execution_count"] == before + 1
    assert after.result == "(7, False)"


def test_silent_wins_over_store_history(client: WireClient) -> None:
    """A request that is both silent and to be stored is not stored (R13)."""
    before = client.execute("1").content["execution_count"]
    client.execute("'nowhere'", silent=True, store_history=True)
    assert client.execute("any('nowhere' in cell for cell in In[:-1])").result == "False"
    assert client.execute("1").content["execution_count"] == before + 2


def test_only_stored_cells_are_counted(client: WireClient) -> None:
    """The count grows after a stored cell alone, whether it failed or not (R13)."""
    first = client.execute("1").content["execution_count"]
    counts = [
        client.execute(code, **options).content["execution_count"]
        for code, options in [
            ("1", {"store_history": False}),
            ("1 / 0", {"store_history": False}),
            ("1 / 0", {}),
            ("", {"silent": True}),
            ("1", {}),
        ]
    ]
    assert counts == [first + 1, first + 1, first + 1, first + 2, first + 2]


def test_an_empty_cell_is_answered(client: WireClient) -> None:
    """Reply and idle come for nothing, too, and the next result has a new count."""
    exchange = client.execute("")
    assert exchange.content["status"] == "ok"
    assert exchange.types == ["busy", "execute_input", "idle"]


def test_user_expressions_are_evaluated_after_the_cell(client: WireClient) -> None:
    """Each is a mime bundle or an error of its own (R14)."""
    content = client.execute("a = 6", user_expressions={"good": "a * 7", "bad": "nobody", "worse": "1 +"}).content
    assert content["status"] == "ok"
    assert content["user_expressions"]["good"] == {"status": "ok", "data": {"text/plain": "42"}, "metadata": {}}
    assert content["user_expressions"]["bad"]["status"] == "error"
    assert content["user_expressions"]["bad"]["ename"] == "NameError"
    assert content["user_expressions"]["worse"]["ename"] == "SyntaxError"


def test_user_expressions_are_not_evaluated_after_an_error(client: WireClient) -> None:
    """The reply to a cell that failed has none (R14)."""
    content = client.execute("called = []; 1 / 0", user_expressions={"x": "called.append(1)"}).content
    assert content.get("user_expressions", {}) == {}
    assert client.execute("called").result == "[]"


# ── asking and leaving ──────────────────────────────────────────────────────────────────────────────────────────────


ASKING = {
    "input": "input('who? ')",
    "getpass": "import getpass; getpass.getpass('secret? ')",
    "breakpoint": "x = 1\nbreakpoint()\nx",
    "pdb": "import pdb; pdb.set_trace()",
    "debug magic": "%debug 1/0",
    "readline": "import sys; sys.stdin.readline()",
}


@pytest.mark.parametrize("code", ASKING.values(), ids=ASKING.keys())
def test_code_that_asks_for_input_never_hangs(start_kernel_once: Callable[..., WireClient], code: str) -> None:
    """Whatever asks, nobody can answer: the cell ends although the process's own stdin is open and silent."""
    client = start_kernel_once()
    client.execute(code)
    assert client.execute("'fine'").result == "'fine'"


@pytest.fixture(scope="module")
def start_kernel_once() -> object:
    """A client of a kernel whose stdin is a pipe that nobody writes to and nobody closes."""
    from tests.kernel.wire import KernelProcess

    kernels: list[KernelProcess] = []

    def start() -> WireClient:
        if not kernels:
            kernels.append(KernelProcess(stdin=subprocess.PIPE))
            kernels[0].connect()
        return kernels[0].clients[0]

    yield start
    for kernel in kernels:
        kernel.end()


def test_input_is_refused_with_a_sentence(client: WireClient) -> None:
    """The error says what to do."""
    exchange = client.execute("input()")
    assert exchange.content["ename"] == "StdinNotImplementedError"
    assert "put the value into the code" in exchange.content["evalue"]


@pytest.mark.parametrize("code", ["exit", "quit()", "exit()", "import sys; get_ipython().ask_exit()"])
def test_exit_stops_the_kernel_and_tells_the_front_end(start_kernel: Callable[..., KernelProcess], code: str) -> None:
    """The reply carries the ask_exit payload, idle follows, and the process ends (R55)."""
    kernel = start_kernel()
    exchange = kernel.connect().execute(code)
    assert exchange.content["status"] == "ok"
    assert exchange.content["payload"] == [{"source": "ask_exit", "keepkernel": False}]
    assert kernel.wait() == 0
    assert kernel.left_over == []


def test_unicode_survives_the_way(client: WireClient) -> None:
    """Code and output beyond ASCII and beyond the first plane, combining and right-to-left, arrive as they were."""
    text = "é ü ß 你好 🌰 e\u0301 \u202eabc \u0000 \x1b[31m \u2028"
    exchange = client.execute(f"t = {text!r}\nprint(t)\n名 = 1; t")
    assert exchange.text() == text + "\n"
    assert exchange.result == repr(text)
    assert exchange.only(MessageType.EXECUTE_INPUT)["code"].startswith(f"t = {text!r}")


def test_the_shell_is_ipythons(client: WireClient) -> None:
    """get_ipython, display and the magics are there."""
    assert client.execute("get_ipython().user_ns is globals()").result == "True"
    assert client.execute("%who_ls int").content["status"] == "ok"
    assert client.ask(MessageType.KERNEL_INFO_REQUEST, channel=Channel.SHELL).content["implementation"] == "cobnut"
