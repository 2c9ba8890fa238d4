"""Cells in dialogue: their outputs are shown, their questions asked, and called off when they end."""

from __future__ import annotations

import builtins
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from cobnut_kernel.client.blocking import BlockingKernelClient
from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.interaction import CalledOff, Question, redisplay
from cobnut_kernel.errors import KernelNotReadyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.kernel.client.conftest import KernelDouble, RealKernel

pytestmark = pytest.mark.anyio

LIMIT = 40
"""How many seconds a kernel may take on a busy machine."""

Content = dict[str, Any]


@pytest.fixture
async def real(real_kernel: RealKernel) -> AsyncIterator[AsyncKernelClient]:
    """Be a client of a real kernel that is ready."""
    async with AsyncKernelClient(real_kernel.info) as client:
        await client.wait_for_ready(LIMIT)
        yield client


# ── output ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_outputs_are_written(real: AsyncKernelClient, capsys: pytest.CaptureFixture[str]) -> None:
    """By default streams, results, displays and errors are written as text; the reply is returned."""
    code = "import sys\nprint('said')\nprint('warned', file=sys.stderr)\ndisplay('shown')\n6 * 7"
    reply = await real.execute_interactive(code, timeout=LIMIT)
    assert reply["content"]["status"] == "ok"
    out, err = capsys.readouterr()
    assert out == "said\n'shown'\n42\n"
    assert err == "warned\n"
    reply = await real.execute_interactive("1 / 0", timeout=LIMIT)
    assert reply["content"]["ename"] == "ZeroDivisionError"
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_output_hook(real: AsyncKernelClient) -> None:
    """A hook gets every iopub message of the cell as the field's dict, statuses too, and nothing of others."""
    heard: list[Content] = []
    real.kernel_info()
    await real.execute_interactive("print(1)", output_hook=heard.append, timeout=LIMIT)
    types = [message["msg_type"] for message in heard]
    assert types == ["status", "execute_input", "stream", "status"]
    assert heard[-1]["content"] == {"execution_state": "idle"}


async def test_options(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """What can be said about an execution is passed on."""
    async with anyio.create_task_group() as tasks:
        run = partial(client.execute_interactive, "x", silent=True, store_history=False, user_expressions={"a": "b"})
        tasks.start_soon(partial(run, allow_stdin=False, stop_on_error=False, subshell_id="s"))
        await anyio.wait_all_tasks_blocked()
        request = kernel.serve()
    assert request.content == {
        "code": "x",
        "silent": True,
        "store_history": False,
        "user_expressions": {"a": "b"},
        "allow_stdin": False,
        "stop_on_error": False,
    }
    assert request.header.subshell_id == "s"


async def test_cell_that_does_not_end(client: AsyncKernelClient) -> None:
    """A cell that does not end in time is a TimeoutError, and goes on."""
    with pytest.raises(TimeoutError, match="did not end within"):
        await client.execute_interactive("x", timeout=0.01)


def test_rich_output_in_a_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In an IPython kernel rich outputs are shown as that kernel's own."""
    published: list[Content] = []

    class Publisher:
        def publish(self, **fields: Any) -> None:
            published.append(fields)

    shell = type("Shell", (), {"kernel": object(), "display_pub": Publisher()})()
    monkeypatch.setitem(sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: shell)}))
    for msg_type in ("display_data", "update_display_data", "execute_result"):
        content = {"data": {"text/html": "<b>"}, "metadata": {"m": 1}, "transient": {"display_id": "d"}}
        redisplay({"msg_type": msg_type, "content": content})
    assert [fields["update"] for fields in published] == [False, True, False]
    assert published[0] == {
        "data": {"text/html": "<b>"},
        "metadata": {"m": 1},
        "transient": {"display_id": "d"},
        "update": False,
    }
    redisplay({"msg_type": "stream", "content": {"name": "stdout", "text": "text"}})
    assert capsys.readouterr().out == "text"


def test_lost_output_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """What is lost for good is said on stderr."""
    redisplay({"msg_type": "cobnut.gap", "content": {"first": 1, "last": 3, "count": 3, "reason": "It was cut."}})
    assert capsys.readouterr().err == "[3 messages are lost. It was cut.]\n"


def text_of(messages: list[Content]) -> str:
    """Put the text of a cell's messages together: a kernel may send a line in parts."""
    return "".join(message["content"].get("text", "") for message in messages)


# ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_questions_are_answered(real: AsyncKernelClient) -> None:
    """A hook answers what the cell asks, secrets too; the question came to the client that sent the cell."""
    asked: list[tuple[str, bool]] = []
    said: list[str] = []

    def ask(request: Content) -> None:
        asked.append((request["content"]["prompt"], request["content"]["password"]))
        real.input(f"answer {len(asked)}", request)

    def show(message: Content) -> None:
        said.append(message["content"].get("text", ""))

    code = "import getpass\nprint(input('name? '), getpass.getpass('secret? '))"
    await real.execute_interactive(code, stdin_hook=ask, output_hook=show, timeout=LIMIT)
    assert asked == [("name? ", False), ("secret? ", True)]
    assert "".join(said) == "answer 1 answer 2\n"


async def test_hook_that_is_awaited(real: AsyncKernelClient) -> None:
    """A hook may be a coroutine function."""

    async def ask(request: Content) -> None:
        await checkpoint()
        real.input("later", request)

    said: list[Content] = []
    await real.execute_interactive("print(input())", stdin_hook=ask, output_hook=said.append, timeout=LIMIT)
    assert text_of(said) == "later\n"


async def test_python_s_input_is_asked(real: AsyncKernelClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hook the user is asked by `input` and `getpass`; the end of the input is passed on."""

    def ask(prompt: str) -> str:
        if prompt == "end? ":
            raise EOFError
        return f"answer to {prompt}"

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    said: list[Content] = []
    code = "import getpass\nprint(input('a? '), getpass.getpass('b? '))\ninput('end? ')"
    reply = await real.execute_interactive(code, output_hook=said.append, timeout=LIMIT)
    assert text_of(said) == "answer to a?  answer to b? \n"
    assert reply["content"]["ename"] == "EOFError"


async def test_interrupt_calls_the_question_off(real: AsyncKernelClient) -> None:
    """A cell that is interrupted while it asks ends at once, and the question with it."""
    called_off = anyio.Event()

    async def ask(_request: Content) -> None:
        real.interrupt()
        try:
            await anyio.sleep_forever()
        finally:
            called_off.set()

    reply = await real.execute_interactive("input('name? ')", stdin_hook=ask, timeout=LIMIT)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert called_off.is_set()
    assert (await real.execute_interactive("1", timeout=LIMIT, output_hook=repr))["content"]["status"] == "ok"


async def test_other_clients_are_not_asked(real: AsyncKernelClient, real_kernel: RealKernel) -> None:
    """A question goes to the client whose cell asks; another does not see it."""
    async with AsyncKernelClient(real_kernel.info) as other:
        await other.wait_for_ready(LIMIT)

        def ask(request: Content) -> None:
            assert not other.stdin_channel.msg_ready()
            real.input("mine", request)

        said: list[Content] = []
        code = "print(input())"
        await real.execute_interactive(code, stdin_hook=ask, output_hook=said.append, timeout=LIMIT)
        assert text_of(said) == "mine\n"


async def test_questions_of_other_cells_are_on_the_channel(client: AsyncKernelClient, kernel: KernelDouble) -> None:
    """A question of a cell that was sent by `execute` is read from the stdin channel, not asked by another's hook."""
    client.execute("first")
    first = kernel.receive()
    client.input("here")
    identities = kernel.receive("stdin").identities
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(client.execute_interactive, "second", stdin_hook=pytest.fail))
        await anyio.wait_all_tasks_blocked()
        kernel.send("stdin", "input_request", {"prompt": ""}, first._replace(identities=identities))
        assert (await client.get_stdin_msg(LIMIT))["parent_header"]["msg_id"] == first.msg_id
        kernel.serve()


# ── the blocking client ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def blocking(real_kernel: RealKernel) -> Iterator[BlockingKernelClient]:
    """Be a blocking client of a real kernel that is ready."""
    with BlockingKernelClient(real_kernel.info) as client:
        client.wait_for_ready(LIMIT)
        yield client


def test_blocking_dialogue(blocking: BlockingKernelClient, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocking client shows and asks in the thread that called it."""
    threads: list[threading.Thread] = []

    def ask(request: Content) -> None:
        threads.append(threading.current_thread())
        blocking.input("hazel", request)

    reply = blocking.execute_interactive("print(input('nut? '))", stdin_hook=ask, timeout=LIMIT)
    assert reply["content"]["status"] == "ok"
    assert capsys.readouterr().out == "hazel\n"
    assert threads == [threading.current_thread()]
    with pytest.raises(KernelNotReadyError, match="did not end in time"):
        blocking.execute_interactive("import time; time.sleep(0.2)", timeout=0.01)


def test_blocking_ctrl_c_at_a_question(blocking: BlockingKernelClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the question interrupts the cell, and not the program."""

    def ask(_prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", ask)
    reply = blocking.execute_interactive("input('name? ')", output_hook=repr, timeout=LIMIT)
    assert reply["content"]["ename"] == "KeyboardInterrupt"


# ── the terminal ────────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import sys, threading, time
from cobnut_kernel.client.interaction import CalledOff, Question
question = Question({"prompt": "name? ", "password": sys.argv[1] == "secret"})
if sys.argv[1] == "off":
    threading.Timer(0.05, question.call_off).start()
try:
    print("got", ascii(question.ask()))
except CalledOff:
    print("called off")
"""


@pytest.mark.parametrize(
    ("kind", "typed", "shown"),
    [
        ("plain", b"hazel\n", "name? hazel\r\ngot 'hazel'\r\n"),
        ("secret", b"hazel\n", "name? \r\ngot 'hazel'\r\n"),
        ("plain", b"\x04", "got '\\x04'\r\n"),
        ("off", b"", "name? \r\ncalled off\r\n"),
    ],
)
def test_question_on_a_terminal(kind: str, typed: bytes, shown: str) -> None:
    """On a terminal a line is read, a secret is not shown, Ctrl-D ends the input, and a question can be called off."""
    master, slave = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", PROGRAM, kind], stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        output = read_until(master, "name? ")
        os.write(master, typed)
        process.wait(LIMIT)
        with suppress(OSError):  # EIO: the end
            while chunk := os.read(master, 1000):
                output += chunk.decode()
    os.close(master)
    assert output.endswith(shown), output


def read_until(descriptor: int, text: str) -> str:
    """Read a terminal until a text comes."""
    output = ""
    while text not in output:
        output += os.read(descriptor, 1000).decode()
    return output


def test_question_called_off_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that was called off before it is asked is not asked."""
    master, slave = pty.openpty()
    with open(slave) as terminal:  # noqa: PTH123 - it is a descriptor
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr("cobnut_kernel.client.interaction._input", builtins.input)
        question = Question({"prompt": ""})
        question.call_off()
        with pytest.raises(CalledOff):
            question.ask()
    os.close(master)


SELECT = select.select


def select_after_ctrl_c(reading: list[Any], writing: list[Any], broken: list[Any]) -> None:
    """Wait where SIGINT comes in the last moment before: Python raises what is due when the wait is over."""

    def ignore(*_: object) -> None:
        """Do not end the wait that begins only now."""

    before = signal.signal(signal.SIGINT, ignore)
    os.kill(os.getpid(), signal.SIGINT)
    ready, _, _ = SELECT(reading, writing, broken, LIMIT)
    signal.signal(signal.SIGINT, before)
    assert ready, "the signal has ended no wait"
    raise KeyboardInterrupt


def test_ctrl_c_just_before_the_wait_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is not missed when it comes just before the terminal is waited for; a loop that waits for signals too gets
    it nevertheless, and all later ones.
    """
    monkeypatch.setattr("cobnut_kernel.client.interaction.select.select", select_after_ctrl_c)
    monkeypatch.setattr("cobnut_kernel.client.interaction._input", builtins.input)
    master, slave = pty.openpty()
    loop, woken = socket.socketpair()
    woken.setblocking(False)
    before = signal.set_wakeup_fd(woken.fileno())
    try:
        with open(slave) as terminal:  # noqa: PTH123 - it is a descriptor
            monkeypatch.setattr(sys, "stdin", terminal)
            with pytest.raises(KeyboardInterrupt):
                Question({"prompt": ""}).ask()
    finally:
        assert signal.set_wakeup_fd(before) == woken.fileno()
    assert loop.recv(10) == bytes([signal.SIGINT])
    for end in (loop, woken):
        end.close()
    os.close(master)


INTERACTIVE = """
import sys
from cobnut_kernel.client.blocking import BlockingKernelClient
with BlockingKernelClient(connection_file=sys.argv[1]) as client:
    client.wait_for_ready(40)
    print("ready")
    reply = client.execute_interactive("input('name? ')")
    print("ended with", reply["content"]["ename"])
"""


@pytest.mark.parametrize("who", ["user", "another"])
def test_interrupt_at_the_terminal(real_kernel: RealKernel, who: str) -> None:
    """A question at the terminal ends when the user presses Ctrl-C, and when somebody else interrupts the cell."""
    master, slave = pty.openpty()
    file = str(real_kernel.folder / "connection.json")
    with subprocess.Popen(
        [sys.executable, "-c", INTERACTIVE, file], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        output = read_until(master, "name? ")
        if who == "user":
            process.send_signal(signal.SIGINT)
        else:
            with BlockingKernelClient(real_kernel.info) as other:
                other.interrupt(reply=True, timeout=LIMIT)
        output += read_until(master, "ended with KeyboardInterrupt")
        assert process.wait(LIMIT) == 0
    os.close(master)
