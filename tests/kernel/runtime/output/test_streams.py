"""stdout and stderr: every text arrives, in order, under the cell that wrote it."""

from __future__ import annotations

import copy
import os
import pickle
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from cobnut_kernel.protocol.json import loads
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType
from cobnut_kernel.runtime.output.routing import LATEST, CurrentJob
from cobnut_kernel.runtime.output.streams import Descriptor, Echoing, OutStream, Publishing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.wire import WireClient


# ── the streams alone ───────────────────────────────────────────────────────────────────────────────────────────────


class FakeOutbox:
    """Keeps what is written and posted, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[bytes, str, str]] = []
        self.posted: list[Any] = []

    def write(self, parent: bytes, stream: str, text: str, _writer: int = 0) -> None:
        """Keep it."""
        self.said.append((parent, stream, text))

    def post(self, message: Any) -> None:
        """Keep it."""
        self.posted.append(message)

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(text for _, _, text in self.said)


@dataclass
class FakeInterrupts:
    """No interrupt is due, unless a test says so."""

    due: bool = False

    def checkpoint(self) -> None:
        """Deliver it."""
        self.due = False
        raise KeyboardInterrupt


@dataclass(eq=False)
class FakeJob:
    """As much of a job as streams know of."""

    message: Message


def job(name: str) -> Any:
    """Make a cell's job."""
    header = Header(name, MessageType.EXECUTE_REQUEST)
    return FakeJob(Message(header, None, {}, {}, header_json=name.encode()))


@pytest.fixture
def outbox() -> FakeOutbox:
    """Nothing is said yet."""
    return FakeOutbox()


@pytest.fixture
def interrupts() -> FakeInterrupts:
    """Nothing is due."""
    return FakeInterrupts()


@pytest.fixture
def current() -> CurrentJob:
    """A cell has begun in this context."""
    current = CurrentJob()
    current.begin(job("cell"))
    return current


@pytest.fixture
def stream(outbox: FakeOutbox, current: CurrentJob, interrupts: FakeInterrupts) -> OutStream:
    """A stream of that cell."""
    return OutStream("stdout", 1, Publishing(cast("Any", outbox)), current, cast("Any", interrupts))


def test_bytes_become_text(stream: OutStream, outbox: FakeOutbox) -> None:
    """What is written to `buffer` is decoded, half a character waits, and text and bytes keep their order."""
    print("a", end="", file=stream)
    for part in (b"b\xe2", memoryview(b"\x82"), bytearray(b"\xacc")):
        assert stream.buffer.write(part) == len(part)
    stream.write("d")
    assert outbox.text == "ab€cd"
    assert stream.buffer.write(b"\xff\xe2\x82") == 3
    stream.buffer.finish()
    stream.buffer.finish()
    assert outbox.text == "ab€cd\ufffd\ufffd"
    with pytest.raises(TypeError):
        stream.buffer.write("text")  # type: ignore[arg-type]


def test_half_characters_of_two_cells_are_not_mixed(stream: OutStream, outbox: FakeOutbox, current: CurrentJob) -> None:
    """Each cell has its own rest."""
    other = copy_context()
    other.run(current.begin, job("other"))
    stream.buffer.write(b"\xc3")
    other.run(stream.buffer.write, b"\xc2")
    stream.buffer.write(b"\xa9")
    other.run(stream.buffer.write, b"\xa9")
    assert [said for said in outbox.said if said[2]] == [(b"cell", "stdout", "é"), (b"other", "stdout", "©")]


def test_a_stream_is_configured_like_a_text_file(stream: OutStream, outbox: FakeOutbox) -> None:
    """Encoding and errors count for bytes; what has no meaning is taken, what is wrong refused."""
    stream.reconfigure(encoding="latin-1", errors="replace", line_buffering=True, write_through=True, newline="\n")
    assert (stream.encoding, stream.errors, stream.line_buffering, stream.write_through) == (
        "latin-1", "replace", True, True,
    )  # fmt: skip
    stream.buffer.write(b"\xe9")
    stream.write("€")
    assert outbox.text == "é€"
    for wrong in ({"encoding": "no such"}, {"errors": "no such"}):
        with pytest.raises(LookupError):
            stream.reconfigure(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="newline"):
        stream.reconfigure(newline="\r\n")


def test_a_stream_has_what_files_have(stream: OutStream) -> None:
    """Attributes that libraries look at, and those that a stream for writing cannot do."""
    assert (stream.name, stream.mode, stream.newlines, stream.closed) == ("<stdout>", "w", None, False)
    assert (stream.readable(), stream.writable(), stream.seekable(), stream.isatty()) == (False, True, False, False)
    assert (stream.line_buffering, stream.write_through, stream.fileno()) == (False, False, 1)
    assert (stream.buffer.name, stream.buffer.mode, stream.buffer.fileno()) == ("<stdout>", "wb", 1)
    assert (stream.buffer.writable(), stream.buffer.readable(), stream.buffer.isatty()) == (True, False, False)
    for impossible in (stream.read, stream.tell, stream.detach, stream.truncate, stream.buffer.read):
        with pytest.raises(OSError, match=r"."):
            impossible()


def test_closing_closes_nothing(stream: OutStream, outbox: FakeOutbox) -> None:
    """Code that closes sys.stdout, as at a script's end, does not take it from the cells to come."""
    stream.close()
    stream.buffer.close()
    with stream as entered:
        assert entered is stream
    print("still open", file=stream)
    assert (outbox.text, stream.closed) == ("still open\n", False)


@pytest.mark.parametrize("copying", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_cannot_be_copied(stream: OutStream, copying: Callable[[Any], Any]) -> None:
    """The error is that of any text file."""
    for each in (stream, stream.buffer):
        with pytest.raises(TypeError, match="cannot pickle 'Out"):
            copying(each)


def test_what_is_no_text_is_refused_and_nothing_is_nothing(stream: OutStream, outbox: FakeOutbox) -> None:
    """A subclass of str is text; an empty one is no message."""

    class Text(str):
        __slots__ = ()

    assert (stream.write(""), stream.write(Text("sub")), stream.write("\n")) == (0, 3, 1)
    for wrong in (b"", None, 1, [""]):
        with pytest.raises(TypeError, match="must be str"):
            stream.write(wrong)  # type: ignore[arg-type]
    assert outbox.said == [(b"cell", "stdout", "sub"), (b"cell", "stdout", "\n")]


def test_an_interrupt_that_is_due_comes_before_the_text(
    stream: OutStream, outbox: FakeOutbox, interrupts: FakeInterrupts
) -> None:
    """Code that does little else but print is interrupted all the same."""
    interrupts.due = True
    with pytest.raises(KeyboardInterrupt):
        stream.write("not said")
    assert outbox.said == []


def test_a_thread_without_a_cell_is_flagged(stream: OutStream, outbox: FakeOutbox) -> None:
    """Its text goes to the latest cell, and says that this is a guess (R32)."""
    Context().run(stream.write, "whose?")
    [message] = outbox.posted
    assert (message.parent, message.metadata) == (b"cell", LATEST)
    assert loads(message.content) == {"name": "stdout", "text": "whose?"}


def test_what_was_written_outside_python_comes_first(outbox: FakeOutbox, current: CurrentJob) -> None:
    """After a pause a stream looks for what C code or a child has written; not between a text and its line end."""

    class Captured:
        drained = 0

        def drain(self) -> None:
            self.drained += 1

    captured = Captured()
    stream = OutStream("stdout", 1, Publishing(cast("Any", outbox)), current, cast("Any", FakeInterrupts()))
    stream.connect(captured=cast("Any", captured))
    stream.write("first")
    assert captured.drained == 1
    stream.write("\n")
    assert captured.drained == 1


def test_a_stream_goes_on_at_a_descriptor(stream: OutStream, outbox: FakeOutbox, tmp_path: Path) -> None:
    """In a forked child, and after the kernel, text goes to the process's own: whole lines, the rest when flushed."""
    with (tmp_path / "out").open("wb") as file:
        sink = Descriptor(file.fileno())
        stream.connect(sink)
        print("line", "\udcff", file=stream)
        print("rest", end="", file=stream)
        assert (tmp_path / "out").read_text() == "line \\udcff\n"
        Context().run(stream.write, " guessed")
        stream.flush()
        assert (tmp_path / "out").read_text() == "line \\udcff\nrest guessed"
        stream.connect(Publishing(cast("Any", outbox)))
    stream.connect(Descriptor(9999))  # where it is closed, text goes nowhere
    stream.write("nowhere")
    stream.flush()


def test_a_stream_may_be_shown_by_the_process_too(outbox: FakeOutbox, tmp_path: Path) -> None:
    """What is published is also written to the process's own stdout and stderr, if the kernel is not quiet."""
    before = os.dup(1)
    with (tmp_path / "log").open("wb") as log:
        os.dup2(log.fileno(), 1)
    try:
        sink = Echoing(Publishing(cast("Any", outbox)))
        sink.write(b"{}", "stdout", "shown \udcff\n")
        sink.write_guessed(b"{}", LATEST, "stdout", "guessed\n")
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert (tmp_path / "log").read_text() == "shown \\udcff\nguessed\n"
    assert (outbox.text, len(outbox.posted)) == ("shown \udcff\n", 1)


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


def test_a_progress_bar_is_exact(client: WireClient) -> None:
    """What rich draws and draws again arrives as it was written, carriage returns, escapes and all."""
    code = (
        "import io, sys\nfrom rich.console import Console\nfrom rich.progress import Progress\n"
        "def draw(file):\n"
        "    console = Console(file=file, force_terminal=True, width=60, color_system='truecolor')\n"
        "    with Progress(console=console, auto_refresh=False, get_time=lambda: 0) as progress:\n"
        "        task = progress.add_task('work', total=50)\n"
        "        for i in range(50): progress.update(task, advance=1, refresh=True)\n"
        "draw(sys.stdout); kept = io.StringIO(); draw(kept); print(len(kept.getvalue()), file=sys.stderr)"
    )
    exchange = client.execute(code)
    assert exchange.text().count("work") >= 50
    assert int(exchange.text("stderr")) == len(exchange.text())


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
    """Text of a thread belongs to the cell that has started it, which still runs."""
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


def test_threads_do_not_tear_each_others_lines(client: WireClient) -> None:
    """A `print` of several values writes its line in parts; no other thread's text gets in between."""
    code = (
        "import threading\n"
        "def write(i):\n    for j in range(10_000): print('<', i, j, '>')\n"
        "threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()"
    )
    lines = client.execute(code).text().splitlines()
    for i in range(4):
        assert [line for line in lines if line.startswith(f"< {i} ")] == [f"< {i} {j} >" for j in range(10_000)]
    assert len(lines) == 40_000


def test_a_line_without_an_end_holds_up_nobody(client: WireClient) -> None:
    """What another thread writes appears although the first one's line stays open."""
    cell = client.send_code(
        "import threading, time, builtins\nprint('open', end='')\n"
        "t = threading.Thread(target=print, args=('from a thread',)); t.start(); t.join()\n"
        "while not hasattr(builtins, 'go'): time.sleep(0.001)"
    )
    client.wait_for_text(cell, "openfrom a thread")
    client.ask(MessageType.INTERRUPT_REQUEST, channel=Channel.CONTROL)
    client.finish(cell)


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
    """Its text, and that of a stream that it has kept, goes to its cell, line by line (R37)."""
    code = (
        "import multiprocessing as mp, sys\nkept = sys.stdout\n"
        "def talk():\n    for i in range(30_000): print('said', i); print('kept', i, file=kept)\n"
        "    kept.write('x' * 1_000_000)\n"
        "print('before', end=' '); p = mp.get_context('fork').Process(target=talk); p.start(); p.join(); p.exitcode"
    )
    exchange = client.execute(code)
    assert exchange.result == "0"
    said = "".join(f"said {number}\nkept {number}\n" for number in range(30_000))
    assert exchange.text() == "before " + said + "x" * 1_000_000


def test_forked_workers_do_not_tear_each_others_lines(client: WireClient) -> None:
    """Every line of four children at once is whole, and none is missing or there twice."""
    code = (
        "import multiprocessing as mp\n"
        "def talk(n):\n    for i in range(500): print(n, i, 'x' * 40)\n"
        "with mp.get_context('fork').Pool(4) as pool: r = pool.map(talk, range(4), 1)"
    )
    lines = client.execute(code).text().splitlines()
    assert sorted(lines) == sorted(f"{n} {i} {'x' * 40}" for n in range(4) for i in range(500))


def test_a_forked_child_keeps_what_the_user_has_put_in_the_place_of_stdout(client: WireClient) -> None:
    """A redirection lasts in the child, which has its own copy of it."""
    code = (
        "import contextlib, io, os\nwith contextlib.redirect_stdout(io.StringIO()) as kept:\n"
        "    print('parent'); child = os.fork()\n"
        "    if child == 0:\n        print('child'); os.write(1, kept.getvalue().encode()); os._exit(0)\n"
        "s = os.waitpid(child, 0); kept.getvalue()"
    )
    exchange = client.execute(code)
    assert exchange.text() == "parent\nchild\n"
    assert exchange.result == "'parent\\n'"


def test_text_that_waits_is_not_written_twice_by_a_child(client: WireClient) -> None:
    """What the kernel has not sent at the time of the fork is the kernel's alone, below Python's streams too."""
    code = (
        "import os, sys\nprint('once', end=''); n = sys.__stdout__.write(' below')\nchild = os.fork()\n"
        "if child == 0:\n    sys.__stdout__.flush(); sys.stdout.flush(); sys.exit()\n"
        "s = os.waitpid(child, 0)"
    )
    assert client.execute(code).text() == "once below"


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
    statuses = [kind for kind in cell.types if kind != "stream"]
    assert statuses == ["busy", "execute_input", "idle"]
    count = "__import__('glob').glob('ran-*').__len__()"
    last = client.execute(
        f"os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), runs, {count}, os.remove(f'ran-{{os.getpid()}}')"
    )
    assert last.result == f"({code}, 1, 1, None)"
    said = "".join(message.content.get("text", "") for _, message in client.messages)
    assert f"child of {ending}\n" in said
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
