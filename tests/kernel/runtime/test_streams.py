"""stdout and stderr: every text arrives, in order, under the cell that wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from tests.kernel.wire import WireClient


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stdout_and_stderr_keep_their_order(client: WireClient) -> None:
    """What was written in turns arrives in turns."""
    exchange = client.execute("import sys\nfor i in range(5):\n    print(i)\n    print(-i, file=sys.stderr)")
    joined: list[tuple[str, str]] = []
    for content in exchange.of_type(MessageType.STREAM):
        if joined and joined[-1][0] == content["name"]:
            joined[-1] = (content["name"], joined[-1][1] + content["text"])
        else:
            joined.append((content["name"], content["text"]))
    assert joined == [pair for i in range(5) for pair in (("stdout", f"{i}\n"), ("stderr", f"{-i}\n"))]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print('a', 'b', sep='-', end='!')", "a-b!"),
        ("import sys; sys.stdout.write('w'); sys.stdout.writelines(['x', 'y'])", "wxy"),
        ("print('\\r10%\\r20%\\b\\x1b[31mred\\x1b[0m', end='')", "\r10%\r20%\b\x1b[31mred\x1b[0m"),
        ("print('nul \\x00 and \\x7f')", "nul \x00 and \x7f\n"),
        ("print('kernel \\ud800 alone')", "kernel \\ud800 alone\n"),
        ("print(__import__('os').fsdecode(b'caf\\xe9'))", "caf\\udce9\n"),
        ("print('')", "\n"),
        ("print(end='')", ""),
        ("import builtins; builtins.print('p')", "p\n"),
    ],
)
def test_text_arrives_as_it_was_written(client: WireClient, code: str, text: str) -> None:
    """Controls pass unchanged; a lone surrogate arrives as its escape, for JSON has none."""
    exchange = client.execute(code)
    assert exchange.text() == text
    assert exchange.content["status"] == "ok"


def test_two_megabytes_of_text(client: WireClient) -> None:
    """A text far larger than any buffer arrives whole."""
    assert client.execute("text = 'é' * 1_000_000 + 'end'; print(text)").text() == "é" * 1_000_000 + "end\n"


def test_a_stream_refuses_what_is_no_text(client: WireClient) -> None:
    """Bytes are a TypeError, as with any text file."""
    exchange = client.execute("import sys; sys.stdout.write(b'bytes')")
    assert exchange.error["ename"] == "TypeError"


def test_the_streams_look_like_files(client: WireClient) -> None:
    """What libraries ask of sys.stdout has an answer."""
    code = (
        "import sys\ns = sys.stdout\n"
        "s.writable(), s.readable(), s.isatty(), s.encoding, s.errors, s.closed, s.name, s.fileno() > 0"
    )
    assert client.execute(code).result == "(True, False, False, 'utf-8', 'backslashreplace', False, '<stdout>', True)"
    assert client.execute("sys.stdout.read()").error["ename"] == "UnsupportedOperation"


def test_streams_can_be_redirected(client: WireClient) -> None:
    """Contextlib's redirection keeps text from the client and ends with its block."""
    code = (
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()) as kept:\n    print('hidden')\n"
        "print('shown'); kept.getvalue()"
    )
    exchange = client.execute(code)
    assert exchange.text() == "shown\n"
    assert exchange.result == "'hidden\\n'"


def test_warnings_and_logs_go_to_stderr(client: WireClient) -> None:
    """The standard library's own reports are output of the cell."""
    code = "import warnings, logging; warnings.warn('careful'); logging.getLogger('mine').error('logged')"
    text = client.execute(code).text("stderr")
    assert "careful" in text
    assert "logged" in text


def test_output_appears_while_the_cell_runs(client: WireClient) -> None:
    """A line is there before the cell that printed it has ended."""
    cell = client.send_code(
        "import time, builtins; print('begun')\nwhile not hasattr(builtins, 'go'): time.sleep(0.001)"
    )
    client.wait_for_text(cell, "begun")
    assert cell.replies == []
    client.ask(MessageType.INTERRUPT_REQUEST, channel=Channel.CONTROL)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


def test_slow_lines_arrive_one_by_one(client: WireClient) -> None:
    """Each line of a loop that pauses is shown before the next is written: none waits for the cell's end."""
    cell = client.send_code("import time\nfor i in range(4):\n    print('line', i)\n    time.sleep(0.15)")
    client.finish(cell)
    dates = [message.header.date for message in cell.iopub if message.msg_type == MessageType.STREAM]
    assert dates == sorted(dates)
    assert [m["text"].count("\n") for m in cell.of_type(MessageType.STREAM) if "\n" in m["text"]] == [1, 1, 1, 1]


# ── whose text it is ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_task_prints_into_its_own_cell(client: WireClient) -> None:
    """What an asyncio task says after its cell has ended, and while another runs, belongs to its cell (R18)."""
    first = client.execute(
        "import asyncio\ngo, gone = asyncio.Event(), asyncio.Event()\n"
        "async def later():\n    await go.wait()\n    print('from the task')\n    display('shown')\n    gone.set()\n"
        "task = asyncio.create_task(later())"
    )
    second = client.execute("go.set(); await gone.wait(); print('from the second cell')")
    client.wait_for_text(first, "from the task")
    assert second.text() == "from the second cell\n"
    assert [content["data"] for content in first.of_type(MessageType.DISPLAY_DATA)] == [{"text/plain": "'shown'"}]
    assert second.of_type(MessageType.DISPLAY_DATA) == []


def test_a_callback_prints_into_its_own_cell(client: WireClient) -> None:
    """loop.call_later keeps the cell that asked for it."""
    first = client.execute("import asyncio; h = asyncio.get_running_loop().call_later(0.05, print, 'called back')")
    second = client.execute("await asyncio.sleep(0.1)")
    client.wait_for_text(first, "called back")
    assert second.text() == ""


def test_a_task_that_fails_tells_its_own_cell(client: WireClient) -> None:
    """The kernel goes on when a task of a cell fails, and the failure is the task's alone."""
    client.execute(
        "import asyncio\nasync def fail(): raise ValueError('in a task')\ntask = asyncio.create_task(fail())"
    )
    assert client.execute("await task").error["ename"] == "ValueError"
    assert client.execute("'fine'").result == "'fine'"


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "BaseException"])
def test_a_task_that_raises_what_ends_loops_does_not_end_the_kernel(client: WireClient, error: str) -> None:
    """Asyncio lets these through to whoever runs the loop; the kernel goes on all the same."""
    client.execute(f"import asyncio\nasync def leave(): raise {error}\ntask = asyncio.create_task(leave())")
    client.execute("await asyncio.sleep(0)")
    assert client.execute("'fine'").result == "'fine'"


def test_a_thread_prints_while_its_cell_waits(client: WireClient) -> None:
    """Text of a thread belongs to the cell that runs."""
    code = "import threading; t = threading.Thread(target=print, args=('from a thread',)); t.start(); t.join()"
    assert client.execute(code).text() == "from a thread\n"


def test_many_threads_lose_no_line(client: WireClient) -> None:
    """Writers at the same time do not tear or lose each other's text."""
    code = (
        "import sys\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def write(i):\n    for j in range(500): sys.stdout.write(f'{i}:{j}\\n')\n"
        "with ThreadPoolExecutor(8) as pool: list(pool.map(write, range(8)))"
    )
    lines = client.execute(code).text().splitlines()
    assert sorted(lines) == sorted(f"{i}:{j}" for i in range(8) for j in range(500))
    assert [line for line in lines if line.startswith("3:")] == [f"3:{j}" for j in range(500)]


def test_a_large_text_goes_out_beside_a_flood(client: WireClient) -> None:
    """A writer of megabytes waits for his own text alone, not for that of a thread which never stops."""
    code = (
        "import threading\nstop = threading.Event()\n"
        "def flood():\n    while not stop.is_set(): print('flood')\n"
        "t = threading.Thread(target=flood); t.start(); print('L' * 3_000_000); stop.set(); t.join()"
    )
    assert client.execute(code).text().count("L") == 3_000_000


def test_a_forked_child_disturbs_nothing(client: WireClient) -> None:
    """Multiprocessing by fork works: results come back, children end, and the kernel's channels are unharmed."""
    code = (
        "import multiprocessing as mp, warnings\n"
        "with mp.get_context('fork').Pool(2) as pool: squares = pool.map(abs, [-1, -2, -3])\n"
        "squares"
    )
    assert client.execute(code).result == "[1, 2, 3]"
    code = "p = mp.get_context('fork').Process(target=print, args=('child',)); p.start(); p.join(); p.exitcode"
    assert client.execute(code).result == "0"
    assert client.execute("'fine'").result == "'fine'"


def test_a_forked_child_may_print_as_much_as_it_likes(client: WireClient) -> None:
    """Its text goes where the process's own does, and neither it nor a stream that it has kept waits for anybody."""
    code = (
        "import multiprocessing as mp, sys\nkept = sys.stdout\n"
        "def talk():\n    for i in range(30_000): print('said by a child'); print('dropped' * (i % 2), file=kept)\n"
        "    kept.write('dropped' * 1_000_000)\n"
        "p = mp.get_context('fork').Process(target=talk); p.start(); p.join(); p.exitcode"
    )
    exchange = client.execute(code)
    assert exchange.result == "0"
    assert exchange.text() == ""
    assert client.kernel.stderr.count("said by a child") == 30_000


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1), ("import sys; sys.exit('why')", 1), ("raise SystemExit", 0),
     ("import asyncio; await asyncio.sleep(0)", 0), ("import os; os._exit(7)", 7)],
)  # fmt: skip
def test_a_forked_child_that_comes_back_from_its_cell_ends(client: WireClient, ending: str, code: int) -> None:
    """It answers nothing, runs none of the cells that wait, and ends with the code that its cell left it."""
    cell = client.send_code(
        "runs = 0; import os; child = os.fork()\nif child == 0:\n"
        f"    print('child of', {ending!r})\n    {ending or 'pass'}"
    )
    waiting = client.send_code("runs += 1; open(f'ran-{os.getpid()}', 'w').close()")
    client.finish(waiting)
    assert cell.types == ["busy", "execute_input", "idle"]
    count = "__import__('glob').glob('ran-*').__len__()"
    last = client.execute(
        f"os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), runs, {count}, os.remove(f'ran-{{os.getpid()}}')"
    )
    assert last.result == f"({code}, 1, 1, None)"
    assert code == 7 or f"child of {ending}\n" in client.kernel.stderr  # os._exit need not write what was printed
    client.kernel.connect().beat()


def test_a_forked_childs_signals_are_its_own(client: WireClient) -> None:
    """SIGTERM and SIGHUP end a forked child, at whatever moment they come, and say nothing to the kernel."""
    code = (
        "import os, signal, time, gc\nends = []\nfor i in range(60):\n    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(60); os._exit(0)\n"
        "    os.kill(child, (signal.SIGTERM, signal.SIGHUP)[i % 2])\n"
        "    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\nset(ends)"
    )
    assert client.execute(code).result == "{-15, -1}"
    assert client.execute("'fine'").result == "'fine'"


# ── floods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("count", "statement"), [(100_000, "print(i)"), (20_000, "print(i, flush=True)")])
def test_a_flood_of_lines_arrives_whole_in_few_messages(client: WireClient, count: int, statement: str) -> None:
    """Every line, in order, though text that lies together is joined (R33, R34)."""
    exchange = client.execute(f"for i in range({count}): {statement}")
    assert exchange.text() == "".join(f"{number}\n" for number in range(count))
    assert len(exchange.of_type(MessageType.STREAM)) < count / 50


def test_a_client_that_does_not_read_loses_nothing(client: WireClient) -> None:
    """While one client reads nothing, another is served; then the first finds every line (R34)."""
    reader = client.kernel.connect()
    cell = client.send_code("for i in range(100_000): print('line', i)\nfor i in range(2000): display(i)")
    reader.wait(lambda: reader.strays["execute_input"], "the cell's input")
    reader.wait(lambda: reader.strays["status"][1:], "the cell's idle")
    client.finish(cell)
    assert cell.text() == "".join(f"line {number}\n" for number in range(100_000))
    assert len(cell.of_type(MessageType.DISPLAY_DATA)) == 2000
