"""The kernel as a process and as a class: its start, its answers about itself, and its surroundings."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.wire import TIMEOUT, KernelProcess, WireClient, wait_until

from cobnut_kernel import __version__
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., KernelProcess]

PORTS = {f"{channel}_port": number for number, channel in enumerate(Channel, 1)}
"""Ports below 1024, or the numbers of unix sockets."""

COMMAND = [sys.executable, "-P", "-m", "cobnut_kernel"]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False, **options
    )


def in_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that uses the class in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


# ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])
def test_kernel_info_says_what_this_kernel_is(client: WireClient, channel: Channel) -> None:
    """Every field of the specification is there, and says what is true of this interpreter."""
    content = client.ask(MessageType.KERNEL_INFO_REQUEST, channel=channel).content
    version = ".".join(map(str, sys.version_info[:3]))
    assert content["status"] == "ok"
    assert content["protocol_version"] == "5.5"
    assert (content["implementation"], content["implementation_version"]) == ("cobnut", __version__)
    assert content["language_info"]["name"] == "python"
    assert content["language_info"]["version"] == version
    assert content["language_info"]["mimetype"] == "text/x-python"
    assert content["language_info"]["file_extension"] == ".py"
    assert version in content["banner"]
    assert isinstance(content["help_links"], list)
    assert isinstance(content["supported_features"], list)


def test_a_kernel_keeps_its_session(client: WireClient) -> None:
    """All that it says carries one session id, by which clients notice a restart (R3)."""
    client.execute("print(1)")
    client.ask(MessageType.KERNEL_INFO_REQUEST, channel=Channel.CONTROL)
    sessions = {message.header.session for _, message in client.messages}
    assert len(sessions) == 1
    assert sessions != {client.codec.session}


def test_every_message_has_a_whole_header(client: WireClient) -> None:
    """Ids are unique, dates carry a time zone, the version is the protocol's (R3, R4)."""
    client.execute("print(1); 2")
    headers = [message.header for _, message in client.messages]
    assert len({header.msg_id for header in headers}) == len(headers)
    assert all(header.date.endswith("+00:00") for header in headers)
    assert {header.version for header in headers} == {"5.5"}
    assert all(header.username for header in headers)


# ── the command line ────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_and_version_need_no_kernel() -> None:
    """Both answer on stdout and end well."""
    assert __version__ in run("--version").stdout
    assert "-f FILE" in run("--help").stdout


def test_a_kernel_needs_a_file() -> None:
    """Without -f it says so."""
    ended = run()
    assert ended.returncode == 2
    assert "-f" in ended.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "no JSON"),
        ("[]", "not an object"),
        ("{}", "names no 'ip'"),
        ('{"ip": "127.0.0.1", "shell_port": "many"}', "whole number"),
        (json.dumps({"ip": "nowhere.invalid", **PORTS}), "nowhere.invalid"),
        (json.dumps({"ip": "/proc/nobody/s", "transport": "ipc", **PORTS}), "/proc/nobody/s"),
    ],
)
def test_a_file_of_no_use_is_refused_with_a_sentence(tmp_path: Path, content: str, complaint: str) -> None:
    """The sentence names what is wrong; no traceback, and the file is left as it was."""
    file = tmp_path / "kernel.json"
    file.write_text(content)
    ended = run("-f", str(file))
    assert ended.returncode == 1
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr
    assert file.read_text() == content


def test_a_file_in_an_open_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """Where others could put a file in its place, no key is written."""
    tmp_path.chmod(0o755)
    ended = run("-f", str(tmp_path / "kernel.json"))
    assert ended.returncode == 1
    assert "chmod 700" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_written(tmp_path: Path) -> None:
    """Without a file the kernel chooses ports and a key, and writes them for its user alone."""
    file = tmp_path / "new" / "kernel.json"
    file.parent.mkdir(0o700)
    process = subprocess.Popen([*COMMAND, "-f", str(file)], env={**os.environ, "JPY_PARENT_PID": str(os.getpid())})
    try:
        wait_until(file.exists, "the connection file")
        fields = json.loads(file.read_text())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(fields["key"]) >= 32
        assert all(fields[f"{channel}_port"] for channel in Channel)
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    assert not file.exists()


# ── the surroundings ────────────────────────────────────────────────────────────────────────────────────────────────

USERS_FILES = ("platform", "queue", "code", "parso", "types", "random", "signal", "decimal", "traceback", "logging",
               "stack_data", "executing", "pexpect", "jedi", "pdb", "json", "tempfile", "token", "ast", "cmd", "bdb",
               "inspect", "pydoc", "shlex", "getpass", "site", "string", "zmq", "IPython", "cobnut_kernel")  # fmt: skip


def test_the_users_files_hide_nothing_from_the_kernel(start_kernel: Start, tmp_path: Path) -> None:
    """In a folder full of files named like modules a kernel starts, runs cells, shows errors; his own imports."""
    for name in USERS_FILES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user has been imported')")
    (tmp_path / "mine.py").write_text("answer = 42")
    kernel = start_kernel(cwd=tmp_path)
    client = kernel.connect()
    assert client.execute("import mine; mine.answer").result == "42"
    assert client.execute("import os; os.path.samefile(os.getcwd(), os.path.dirname(mine.__file__))").result == "True"
    error = client.execute("def f(x):\n    return 1 / x\nf(0)").error
    assert error["ename"] == "ZeroDivisionError"
    assert "return" in "".join(error["traceback"])
    assert client.execute("!echo from a command").text().strip() == "from a command"
    assert client.execute("await __import__('asyncio').sleep(0); 'awaited'").result == "'awaited'"
    assert client.execute("%timeit -n1 -r1 pass").content["status"] == "ok"
    exchange = client.ask(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert exchange.content["status"] == "ok"
    assert kernel.wait() == 0
    assert "the user has been imported" not in kernel.stderr


def test_the_working_directory_is_followed(client: WireClient, tmp_path: Path) -> None:
    """After %cd, modules of the new folder import."""
    (tmp_path / "there.py").write_text("place = 'there'")
    client.execute(f"import os; before = os.getcwd(); os.chdir({str(tmp_path)!r})")
    assert client.execute("import there; there.place").result == "'there'"
    client.execute("os.chdir(before)")


def test_a_home_that_cannot_be_written_is_no_obstacle(start_kernel: Start) -> None:
    """Without a place for the history, cells run all the same."""
    kernel = start_kernel(env={"HOME": "/proc/nobody", "IPYTHONDIR": "/proc/nobody/ipython"})
    client = kernel.connect()
    assert client.execute("6 * 7").result == "42"
    assert client.execute("In[1]").result == "'6 * 7'"


def test_messages_from_before_the_shell_was_there_are_answered(start_kernel: Start) -> None:
    """Requests sent while the process starts wait for it, all of them, in order."""
    kernel = start_kernel()
    client = WireClient(kernel)
    kernel.clients.append(client)
    cells = [client.send_code(f"print({number})") for number in range(20)]
    asked = client.request(MessageType.KERNEL_INFO_REQUEST, {}, Channel.CONTROL)
    client.wait(lambda: asked.replies and all(cell.replies for cell in cells), "all replies")
    assert [cell.content["execution_count"] for cell in cells] == list(range(1, 21))


# ── the class ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_has_one_kernel() -> None:
    """`Kernel()` is always the same; settings are for the first call."""
    code = (
        "from cobnut_kernel import Kernel\n"
        "first = Kernel(kernel_name='mine')\n"
        "assert Kernel() is first and Kernel(kernel_name='other').kernel_name == 'mine'"
    )
    assert in_python(code).stderr == ""


def test_a_kernel_in_a_program_of_ones_own(tmp_path: Path) -> None:
    """`async with Kernel()` serves until the block is left, gives the streams back, and does not start again."""
    code = """
import sys, anyio
from cobnut_kernel import Kernel
from jupyter_client import BlockingKernelClient

def ask(info):
    client = BlockingKernelClient()
    client.load_connection_info({**info, "key": info["key"].encode()})
    client.start_channels()
    client.wait_for_ready(timeout=20)
    shown = []
    hook = lambda message: shown.append(message["msg_type"])
    reply = client.execute_interactive("print('said'); 6*7", timeout=20, output_hook=hook)
    client.stop_channels()
    return reply["content"]["status"], "stream" in shown, "execute_result" in shown

async def main():
    streams = sys.stdout, sys.stderr
    async with Kernel() as kernel:
        print(await anyio.to_thread.run_sync(ask, kernel.get_connection_info()), file=streams[0])
    assert (sys.stdout, sys.stderr) == streams
    assert kernel.event_stopped.is_set()
    try:
        async with kernel: pass
    except RuntimeError as error:
        print(error)

anyio.run(main)
"""
    ended = in_python(code)
    assert ended.stdout.splitlines() == [
        "('ok', True, True)",
        "A kernel runs once in a process: start a new process for another one.",
    ], ended.stderr


def test_run_ends_when_its_waiter_does(tmp_path: Path) -> None:
    """`run(wait_exit)` serves until that returns; `Kernel.stop()` ends it from any thread."""
    code = """
import anyio, sys, threading
from cobnut_kernel import Kernel
kernel = Kernel(connection_file=sys.argv[1])
threading.Timer(0.2, Kernel.stop).start() if sys.argv[2] == "stop" else None
kernel.run(*([] if sys.argv[2] == "stop" else [lambda: anyio.sleep(0.2)]))
print("ended", kernel.event_stopped.is_set())
"""
    for how in ("stop", "return"):
        ended = in_python(code, str(tmp_path / "kernel.json"), how)
        assert (ended.stdout, ended.stderr) == ("ended True\n", "")
        assert list(tmp_path.iterdir()) == []


def test_a_connection_may_come_as_a_dict() -> None:
    """load_connection_info takes it before the start, refuses nonsense, and get_connection_info returns it."""
    code = """
from cobnut_kernel import Kernel
from cobnut_kernel.errors import ConnectionFileError
kernel = Kernel()
try:
    kernel.load_connection_info({"ip": "127.0.0.1"})
except ConnectionFileError as error:
    print("port" in str(error))
info = {"ip": "127.0.0.1", "transport": "tcp", "key": "k", **dict.fromkeys(
    ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), 0)}
kernel.load_connection_info(info)
print(kernel.get_connection_info()["key"])
"""
    assert in_python(code).stdout.splitlines() == ["True", "k"]
