"""Front ends that others have made, on our kernel: nbclient, jupyter console, Jupyter's server."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import nbformat
import psutil
import pytest
import websocket
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tests.kernel.leftovers import processes_knowing, until

from cobnut_kernel.protocol.fork import MODULE

from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(120)

CELLS: list[tuple[str, str]] = [
    ("6 * 7", "42"),
    ("print('hazel')", "hazel"),
    ("import sys; print('to stderr', file=sys.stderr)", "to stderr"),
    ("x = 5", ""),
    ("x + 1;", ""),
    ("x + 1", "6"),
    ("_", "6"),
    ("from IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))", "<b>bold</b>"),
    ("import asyncio\nawait asyncio.sleep(0.01)\n'awaited'", "awaited"),
    ("async def f():\n    return 'from a task'\nawait asyncio.create_task(f())", "from a task"),
    ("%who_ls", "x"),
    ("%%time\nsum(range(10))", "45"),
    ("!echo from the shell", "from the shell"),
    ("import subprocess\nsubprocess.run(['echo', 'from a child'])", "from a child"),
    ("import threading\nt = threading.Thread(target=print, args=('threaded',)); t.start(); t.join()", "threaded"),
    ("# thread\n'in a thread'", "in a thread"),
    ("# task\n'beside'", "beside"),
    ("%%thread\nimport time; time.sleep(0.01); 'magic'", "magic"),
    ("handle = display('first', display_id=True)", "second"),
    ("handle.update('second')", ""),
    ("from IPython.display import clear_output\nprint('gone')\nclear_output()\nprint('stays')", "stays"),
    ("import tqdm\nfor _ in tqdm.tqdm(range(3), desc='bar'): pass", "bar: 100%"),
    ("class Nut:\n    def _repr_markdown_(self): return '**nut**'\nNut()", "**nut**"),
    ("from rich.console import Console\nConsole(force_jupyter=False).print('rich text')", "rich text"),
    ("from rich import print as rprint\nrprint('[bold]bold[/bold]')", "bold"),
    ("for n in range(1000): print(n)", "999"),
    ("'é' * 3 + '🐿'", "ééé🐿"),
    ("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]); plt.show()", "image/png"),
    ("%matplotlib inline\nplt.figure().add_subplot().plot([1, 2]); None", "image/png"),
    ("import ipywidgets\nslider = ipywidgets.IntSlider(value=3)\nslider", "IntSlider(value=3)"),
]
"""Thirty cells, and what must be in the outputs of each."""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the front ends away from the configuration and the history of whoever runs the tests."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    """Make a notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_nbclient_executes_a_notebook_of_thirty_cells(tmp_path: Path) -> None:
    """Every cell has its outputs, the updated and the cleared ones too."""
    notebook = notebook_of(*(source for source, _ in CELLS))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="cobnut", timeout=60, resources=resources).execute()
    for cell, (source, expected) in zip(notebook.cells, CELLS, strict=True):
        shown = json.dumps(cell.outputs, ensure_ascii=False)
        assert expected in shown, f"{source!r} showed {shown}"
    assert "gone" not in json.dumps(notebook.cells[20].outputs)
    counts = [cell.execution_count for cell in notebook.cells]
    assert counts == list(range(1, len(CELLS) + 1))


def test_nbclient_sees_an_error_and_one_that_is_allowed() -> None:
    """The error carries name, text and traceback."""
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(notebook_of("1 / 0"), kernel_name="cobnut", timeout=60).execute()
    notebook = notebook_of("1 / 0", "'after'")
    notebook.cells[0].metadata["tags"] = ["raises-exception"]
    NotebookClient(notebook, kernel_name="cobnut", timeout=60).execute()
    assert notebook.cells[0].outputs[0]["ename"] == "ZeroDivisionError"
    assert notebook.cells[1].outputs[0]["data"]["text/plain"] == "'after'"


def test_jupyter_console_runs_on_it(tmp_path: Path) -> None:
    """Cells, completion, a question, an interrupt and the end, by keyboard."""
    command = [sys.executable, "-m", "jupyter_console", "--kernel", "cobnut"]
    with Terminal(command, columns=100, lines=30, cwd=tmp_path) as terminal:
        terminal.wait_for("In [1]:", timeout=40)
        terminal.send("6*7\r")
        terminal.wait_for("Out[1]: 42", timeout=20)
        terminal.wait_for("In [2]:", timeout=20)
        terminal.send("input('na' + 'me? ')\r")
        terminal.wait_until(lambda: any(line.startswith("name?") for line in terminal.lines), 20, "the question")
        terminal.send("hazel\r")
        terminal.wait_for("Out[2]: 'hazel'", timeout=20)
        terminal.wait_for("In [3]:", timeout=20)
        terminal.send("impo\t")
        terminal.wait_for("import", timeout=20)
        terminal.send("\x15import time; print('be' + 'gun'); time.sleep(60)\r")
        terminal.wait_for("begun", timeout=20)
        terminal.press("ctrl+c")
        terminal.wait_for("KeyboardInterrupt", timeout=20)
        terminal.wait_for("In [4]:", timeout=20)
        terminal.send("exit\r")
        terminal.wait_for_exit(timeout=20)


class Server:
    """Jupyter's server, by its REST and websocket interface, as JupyterLab uses it."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        self.port_file = folder / "server.log"
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--ServerApp.port=0", "--allow-root"]
        command += [f"--IdentityProvider.token={self.token}", "--ServerApp.ip=127.0.0.1"]
        command += [f"--ServerApp.root_dir={folder}"]
        with self.port_file.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ), cwd=folder)
        self.url: str = ""
        self._wait_for_answer()

    def _wait_for_answer(self) -> None:
        """Wait until it says where it is, and listens there: on a busy machine the one is long before the other."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.port_file.read_text().splitlines(keepends=True):
                if "http://127.0.0.1:" in line and line.endswith("\n"):
                    self.url = "http://" + line.partition("http://")[2].partition("/")[0]
            with suppress(URLError):
                if self.url and self.call("GET", "status"):
                    return
            time.sleep(0.05)
        raise AssertionError(f"The server did not start:\n{self.port_file.read_text()}")

    def call(self, method: str, path: str, content: Any = None) -> Any:
        """Ask the REST interface."""
        data = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=40) as response:
            text = response.read()
        return json.loads(text) if text else None

    def connect(self, kernel_id: str) -> websocket.WebSocket:
        """Open the channels of a kernel."""
        url = f"{self.url.replace('http', 'ws')}/api/kernels/{kernel_id}/channels?token={self.token}"
        return websocket.create_connection(url, timeout=40)

    def close(self) -> None:
        """End the server, and its kernels with it; again does nothing."""
        self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        """End the server so that it can do nothing about its kernels."""
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of our own."""
    with closing(Server(tmp_path)) as server:
        yield server


def send(
    channels: websocket.WebSocket, msg_type: str, content: dict[str, Any], channel: str = "shell", **header: Any
) -> str:
    """Send a message as JupyterLab does."""
    msg_id = secrets.token_hex(8)
    head = {"msg_id": msg_id, "msg_type": msg_type, "session": "lab", "username": "u", "date": "", "version": "5.5"}
    message = {"header": {**head, **header}, "parent_header": {}, "metadata": {}, "content": content}
    channels.send(json.dumps({**message, "channel": channel}))
    return msg_id


def until_idle(channels: websocket.WebSocket, msg_id: str) -> dict[str, dict[str, Any]]:
    """Receive until a request is answered and done with; the contents by type."""
    seen: dict[str, dict[str, Any]] = {}
    state = ""
    while state != "idle" or not any(kind.endswith("_reply") for kind in seen):
        message = json.loads(channels.recv())
        if message["parent_header"].get("msg_id") == msg_id:
            seen[message["msg_type"]] = message["content"]
            state = message["content"].get("execution_state", state)
    return seen


def test_jupyters_server_starts_runs_interrupts_restarts_and_ends_it(server: Server) -> None:
    """By its REST and websocket interface; subshells, completion and the debugger's question among the messages."""
    specs = server.call("GET", "kernelspecs")["kernelspecs"]
    assert specs["cobnut"]["spec"]["language"] == "python"
    kernel_id = server.call("POST", "kernels", {"name": "cobnut"})["id"]
    with closing(server.connect(kernel_id)) as channels:
        code = {"code": "print('hazel'); 6 * 7", "silent": False, "store_history": True, "allow_stdin": False}
        seen = until_idle(channels, send(channels, "execute_request", code))
        assert seen["execute_result"]["data"]["text/plain"] == "42"
        assert seen["stream"]["text"] == "hazel\n"
        info = until_idle(channels, send(channels, "kernel_info_request", {}))["kernel_info_reply"]
        assert "kernel subshells" in info["supported_features"]
        made = until_idle(channels, send(channels, "create_subshell_request", {}, "control"))["create_subshell_reply"]
        busy = send(channels, "execute_request", {**code, "code": "import time; time.sleep(60)"})
        beside = send(channels, "execute_request", code, subshell_id=made["subshell_id"])
        assert until_idle(channels, beside)["execute_result"]["data"]["text/plain"] == "42"
        completion = until_idle(channels, send(channels, "complete_request", {"code": "impo", "cursor_pos": 4}))
        assert "import" in completion["complete_reply"]["matches"]
        debug = {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}}
        assert until_idle(channels, send(channels, "debug_request", debug, "control"))["debug_reply"]["success"]
        server.call("POST", f"kernels/{kernel_id}/interrupt")
        assert until_idle(channels, busy)["execute_reply"]["ename"] == "KeyboardInterrupt"
    server.call("POST", f"kernels/{kernel_id}/restart")
    with closing(server.connect(kernel_id)) as channels:
        seen = until_idle(channels, send(channels, "execute_request", {**code, "code": "6 * 8"}))
        assert seen["execute_result"] == {"data": {"text/plain": "48"}, "metadata": {}, "execution_count": 1}
    server.call("DELETE", f"kernels/{kernel_id}")
    assert server.call("GET", "kernels") == []


# ── with our provisioners ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the login that is new, and short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cob-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["cobnut-fork", "cobnut-local"])
def provisioner(request: pytest.FixtureRequest, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The provisioner of all kernels whose specs name none, by the documented variable."""
    del runtime
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", request.param)
    return request.param


def run(channels: websocket.WebSocket, code: str) -> str:
    """Run a cell, and return the text of its result."""
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    return until_idle(channels, send(channels, "execute_request", content))["execute_result"]["data"]["text/plain"]


def pid_of(channels: websocket.WebSocket) -> int:
    """Ask a kernel for its process."""
    return int(run(channels, "import os; os.getpid()"))


def is_fork_server(process: psutil.Process) -> bool:
    """Say whether a process is one that kernels are forked from."""
    with suppress(psutil.Error):
        return MODULE in process.cmdline()
    return False


def parent_kind(server: Server, pid: int) -> str:
    """Say who has started a kernel: the server itself, or a fork server of its."""
    parent = psutil.Process(pid).parent()
    assert parent is not None
    if parent.pid == server.process.pid:
        return "server"
    assert is_fork_server(parent)
    assert parent.ppid() == server.process.pid
    return "fork server"


def has_spare_kernel(server: Server) -> bool:
    """Say whether a server has a fork server with a kernel that waits for its turn."""
    return any(is_fork_server(child) and child.children() for child in psutil.Process(server.process.pid).children())


def test_jupyters_server_with_our_provisioners(provisioner: str, server: Server, runtime: Path) -> None:
    """Start, cell, interrupt, restart and end; the first kernel starts cold, as no fork server is there before it."""
    kernel_id = server.call("POST", "kernels", {"name": "cobnut"})["id"]
    with closing(server.connect(kernel_id)) as channels:
        first = pid_of(channels)
        assert parent_kind(server, first) == "server"
        assert run(channels, "x = 6; x * 7") == "42"
        content = {"code": "print('asleep', flush=True); import time; time.sleep(60)", "silent": False}
        busy = send(channels, "execute_request", content)
        while json.loads(channels.recv())["msg_type"] != "stream":
            pass
        server.call("POST", f"kernels/{kernel_id}/interrupt")
        assert until_idle(channels, busy)["execute_reply"]["ename"] == "KeyboardInterrupt"
        assert run(channels, "x") == "6"
    if provisioner == "cobnut-fork":
        until(lambda: has_spare_kernel(server))
    server.call("POST", f"kernels/{kernel_id}/restart")
    until(lambda: not psutil.pid_exists(first))
    with closing(server.connect(kernel_id)) as channels:
        second = pid_of(channels)
        assert parent_kind(server, second) == ("fork server" if provisioner == "cobnut-fork" else "server")
        assert run(channels, "'x' in globals()") == "False"
    server.call("DELETE", f"kernels/{kernel_id}")
    assert server.call("GET", "kernels") == []
    until(lambda: not psutil.pid_exists(second))
    server.close()
    until(lambda: not processes_knowing(runtime), "the server has left processes")
    assert [*kernel_files(runtime), *kernel_files(server.port_file.parent)] == []


@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_end_of_a_server_with_our_provisioners(provisioner: str, server: Server, runtime: Path, end: str) -> None:
    """Asked to end, or killed, it leaves no kernel, cold or forked, and no socket or file of ours."""
    kernels = [server.call("POST", "kernels", {"name": "cobnut"})["id"]]
    if provisioner == "cobnut-fork":
        until(lambda: has_spare_kernel(server))
    kernels += [server.call("POST", "kernels", {"name": "cobnut"})["id"]]
    pids: list[int] = []
    for kernel_id in kernels:
        with closing(server.connect(kernel_id)) as channels:
            pids.append(pid_of(channels))
    forked = "fork server" if provisioner == "cobnut-fork" else "server"
    assert [parent_kind(server, pid) for pid in pids] == ["server", forked]
    getattr(server, end)()
    until(lambda: not processes_knowing(runtime), "the server has left processes")
    until(lambda: not kernel_files(runtime), "the server has left files")
    assert end == "kill" or not kernel_files(server.port_file.parent)  # Jupyter's own, in its own folder


def kernel_files(folder: Path) -> list[str]:
    """Find connection files and sockets below a folder."""
    files = (path for path in folder.rglob("*") if path.match("kernel-*.json") or path.is_socket())
    return [str(path) for path in files]
