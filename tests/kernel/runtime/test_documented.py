"""The kernel's documented members, used as their documentation says, from cells and by subclasses."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.wire import KernelProcess, WireClient

KERNEL = "kernel = get_ipython().kernel\n"


def value(client: WireClient, code: str) -> str:
    """Run a cell that knows the kernel and return its result."""
    return client.execute(KERNEL + code).result


def test_a_process_has_one_kernel(client: WireClient) -> None:
    """`Kernel()` in a cell is the one that runs it."""
    assert value(client, "from cobnut_kernel import Kernel\nKernel() is kernel") == "True"


def test_events_tell_where_the_kernel_is(client: WireClient) -> None:
    """It has started, and not stopped."""
    assert value(client, "kernel.event_started.is_set(), kernel.event_stopped.is_set()") == "(True, False)"


def test_what_runs_is_known_by_its_context(client: WireClient) -> None:
    """The shell, the caller and the request of the running code, in the main shell and in a subshell."""
    made = client.create_subshell()
    code = "kernel.shell.subshell_id, kernel.main_shell.subshell_id, kernel.get_parent()['header']['msg_type']"
    assert value(client, code) == "(None, None, 'execute_request')"
    assert client.execute(KERNEL + code, subshell=made).result == f"({made!r}, None, 'execute_request')"
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)


def test_messages_are_published_by_type_or_whole(client: WireClient) -> None:
    """With the running cell as their parent; metadata and buffers go with them."""
    cell = client.execute(
        KERNEL + "content = {'data': {'text/plain': 'a'}, 'metadata': {}}\n"
        "kernel.iopub_send('display_data', content, {'nut': 1}, buffers=[b'z'])\n"
        "kernel.iopub_send({'header': {'msg_type': 'stream'}, 'content': {'name': 'stdout', 'text': 'b'}})"
    )
    shown = next(message for message in cell.iopub if message.msg_type == MessageType.DISPLAY_DATA)
    assert (shown.metadata["nut"], shown.buffers) == (1, (b"z",))
    assert cell.text() == "b"


def test_the_session_sends_as_the_kernel(client: WireClient) -> None:
    """What other packages publish by `kernel.session` arrives, in its turn."""
    cell = client.execute(
        KERNEL + "sent = kernel.session.send(kernel.iopub_socket, 'stream', {'name': 'stdout', 'text': 'said'}, "
        "parent=kernel.get_parent())"
    )
    assert cell.text() == "said"


def test_a_topic_names_the_session(client: WireClient) -> None:
    """As subscribers see it."""
    assert value(client, "kernel.topic('stream') == f'kernel.{kernel.session.session}.stream'.encode()") == "True"


def test_the_connection_is_known(client: WireClient) -> None:
    """As the connection file holds it."""
    assert value(client, "kernel.get_connection_info()['key']") == repr(client.kernel.info.key.decode())


def test_callers_run_code_in_the_kernels_loops(client: WireClient) -> None:
    """Those of shell and control; the control thread's works while a cell runs."""
    code = (
        "import threading\nname = lambda: threading.current_thread().name\n"
        "[await caller.call_soon(name) for caller in kernel.callers.values()]"
    )
    assert value(client, code) == "['MainThread', 'cobnut-control']"
    assert value(client, "kernel.callers['shell'] is kernel.caller") == "True"


def test_a_caller_is_imported_in_a_cell_and_works(client: WireClient) -> None:
    """In threads of its own; what it prints belongs to the cell."""
    cell = client.execute(
        "from cobnut_kernel import Caller\nimport threading\n"
        "def work(n):\n    print('working', n)\n"
        "    return n * 2, threading.current_thread() is threading.main_thread()\n"
        "await Caller().to_thread(work, 21)"
    )
    assert cell.result == "(42, False)"
    assert cell.text() == "working 21\n"


def test_the_table_of_run_modes_can_be_printed(client: WireClient) -> None:
    """Its columns are named as documented."""
    assert value(client, "list(kernel.all_concurrency_run_modes())") == "['SocketID', 'MsgType', 'RunMode']"
    assert value(client, "str(kernel.get_run_mode('kernel_info_request'))") == "'direct'"


def test_settings_are_for_before_the_start(client: WireClient) -> None:
    """A running kernel refuses them, and says so."""
    error = client.execute(KERNEL + "kernel.load_settings({'quiet': False})").error
    assert error["ename"] == "RuntimeError"
    assert "has started" in error["evalue"]


def test_a_job_has_the_keys_of_its_documentation(client: WireClient) -> None:
    """msg, ident, socket, socket_id, received_time and run_mode, and no other."""
    code = (
        "job = kernel._jobs.get()\nsorted(type(job[key]).__name__ for key in "
        "('msg', 'ident', 'socket', 'socket_id', 'received_time', 'run_mode'))"
    )
    assert value(client, code) == "['Channel', 'ReplySocket', 'RunMode', 'dict', 'float', 'list']"
    assert client.execute("job['nothing']").error["ename"] == "KeyError"


@pytest.mark.parametrize("channel", [Channel.SHELL, Channel.CONTROL])
def test_the_ports_are_answered(client: WireClient, channel: Channel) -> None:
    """connect_request is deprecated, and answered."""
    content = client.ask(MessageType.CONNECT_REQUEST, channel=channel).content
    assert content["shell_port"] == client.kernel.info.shell_port


SUBCLASS = """
import sys
from cobnut_kernel import Kernel
from cobnut_kernel.runtime.modes import RunMode

class Mine(Kernel):
    seen = []

    def msg_handler(self, subshell_id, socket_id, msg_type, job, send_reply):
        self.seen.append(("scheduled", msg_type, str(socket_id)))
        super().msg_handler(subshell_id, socket_id, msg_type, job, send_reply)

    async def run_handler(self, subshell_id, send_reply, handler, job):
        self.seen.append(("run", job["msg"]["msg_type"]))
        await super().run_handler(subshell_id, send_reply, handler, job)

    def get_run_mode(self, msg_type, *, socket_id="shell", job=None):
        mode = super().get_run_mode(msg_type, socket_id=socket_id, job=job)
        return RunMode.THREAD if job and "in a thread" in job["msg"]["content"].get("code", "") else mode

    async def is_complete_request(self, job):
        return {"status": "complete"}

    async def crack_request(self, job):
        return {"status": "ok", "nut": "cracked"}

Mine(connection_file=sys.argv[1]).run()
"""


@pytest.fixture
def subclassed(tmp_path: Path, start_kernel: Callable[..., KernelProcess]) -> WireClient:
    """A client of a kernel whose class is a user's."""
    program = tmp_path / "mine.py"
    program.write_text(SUBCLASS)
    return start_kernel([sys.executable, str(program)]).connect()


def test_a_subclass_steps_in(subclassed: WireClient) -> None:
    """Where a request is scheduled, where it is run, in its mode, and in its answer."""
    assert subclassed.ask(MessageType.IS_COMPLETE_REQUEST, {"code": "("}).content == {"status": "complete"}
    seen = subclassed.execute("get_ipython().kernel.seen").result
    assert "('scheduled', 'is_complete_request', 'shell')" in seen
    assert "('run', 'execute_request')" in seen
    name = subclassed.execute("import threading; threading.current_thread().name  # in a thread").result
    assert name != "'MainThread'"


def test_the_kernels_command_needs_no_client(tmp_path: Path) -> None:
    """Importing the package, and the kernel's class, imports neither clients nor IPython."""
    code = (
        "import sys; from cobnut_kernel import Kernel; Kernel()\n"
        "ours = ('IPython', 'cobnut_kernel.client', 'cobnut_kernel.manager')\n"
        "print(sorted(name for name in sys.modules if name.startswith(ours)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
