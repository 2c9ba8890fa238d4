"""The interrupt matrix: fourteen cases, in the main shell, a subshell and a thread cell, under asyncio and trio.

Every interrupt names one cell, by our own message; a cell beside it goes on.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.wire import KernelProcess, wait_until

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.wire import Exchange, WireClient

CASES = {
    "bytecode": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "await": "import anyio; await anyio.sleep(60)",
    "blocking after an await": "import anyio, time; await anyio.sleep(0.001); time.sleep(60)",
    "short awaits": "import anyio\nwhile True: await anyio.sleep(0)",
    "event": "import threading; threading.Event().wait()",
    "queue": "import queue; queue.Queue().get()",
    "future": "from concurrent.futures import Future; Future().result()",
    "join": (
        "import threading; e = threading.Event(); t = threading.Thread(target=e.wait, daemon=True); t.start()\n"
        "try: t.join()\nfinally: e.set()"
    ),
    "input": "input('name? ')",
    "subprocess.run": "import subprocess; subprocess.run(['sleep', '60'])",
    "command": "!sleep 60",
    "printing": "while True: print(1, end='')",
}
"""What a cell may be doing when it is interrupted."""


@dataclass
class Where:
    """A kernel's client, and how a cell gets to its place."""

    client: WireClient
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def begin(self, code: str) -> Exchange:
        """Start a cell and wait until it does what it is to do."""
        cell = self.client.send_code(f"print('begun')\n{code}", allow_stdin="input(" in code, **self.options)
        self.client.wait_for_text(cell, "begun")
        if "input(" in code:
            self.client.wait(lambda: any(message.msg_type == "input_request" for _, message in cell.replies), "input")
        if "sleep 60" in code or "'sleep', '60'" in code:
            self.client.wait(self.sleeps, "the command's start")
        return cell

    def interrupt(self, *cells: Exchange) -> dict[str, Any]:
        """Interrupt these cells and no other, and return the reply."""
        ids = [cell.request.header.msg_id for cell in cells]
        return self.client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=ids)

    def end(self, cell: Exchange) -> dict[str, Any]:
        """Wait for a cell's end and return the content of its reply."""

        def replies() -> list[dict[str, Any]]:
            return [message.content for _, message in cell.replies if message.msg_type == MessageType.EXECUTE_REPLY]

        self.client.wait(lambda: cell.idle and replies(), "the cell's end")
        [content] = replies()
        return content

    def sleeps(self) -> bool:
        """Tell whether a command sleeps."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.client.kernel.process.pid).children(recursive=True)
            return any(child.name() == "sleep" for child in children)
        return False


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def client(request: pytest.FixtureRequest) -> Iterator[WireClient]:
    """A kernel on each kind of event loop, for all tests of the file."""
    command = [sys.executable, "-P", "-m", "cobnut_kernel", "--set", f"anyio_backend={request.param}", "-f"]
    kernel = KernelProcess(command)
    yield kernel.connect(identity=b"asker")
    kernel.end()


@pytest.fixture(params=["main shell", "subshell", "thread cell"])
def where(request: pytest.FixtureRequest, client: WireClient) -> Iterator[Where]:
    """Each place that cells run in."""
    if request.param != "subshell":
        yield Where(client, {"tags": ["thread"]} if request.param == "thread cell" else {})
        return
    subshell = client.create_subshell()
    yield Where(client, {"subshell": subshell})
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_a_cell_is_stopped_alone(where: Where, code: str) -> None:
    """It ends with KeyboardInterrupt and nothing is left pending; its place runs the next cell (R25, R26)."""
    beside = Where(where.client, {"subshell": where.client.create_subshell()})
    other = beside.begin("import time\nwhile 'done' not in globals(): time.sleep(0.001)\n'untouched'")
    cell = where.begin(code)
    reply = where.interrupt(cell)
    assert (reply["status"], reply["interrupted"]) == ("ok", [cell.request.header.msg_id])
    ended = where.end(cell)
    if code.startswith("!"):  # IPython passes the interrupt on to the command, and goes on, unless it has just begun it
        assert ended["status"] == "ok" or ended["ename"] == "KeyboardInterrupt"
        wait_until(lambda: not where.sleeps(), "the command has ended")
    else:
        assert ended["ename"] == cell.error["ename"] == "KeyboardInterrupt"
    assert where.client.execute("'unhurt'", **where.options).result == "'unhurt'"
    where.client.execute("done = 1")
    where.client.finish(other)
    assert other.result == "'untouched'"
    where.client.execute("del done")
    where.client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=beside.options["subshell"])


@pytest.mark.parametrize("code", ["time.sleep(60)", "await anyio.sleep(60)", "threading.Event().wait()"])
def test_the_first_interrupt_may_be_caught_the_second_stops(where: Where, code: str) -> None:
    """The cell saves its work and goes on where it was, until it is interrupted again (R24)."""
    cell = where.begin(f"import anyio, threading, time\ntry: {code}\nexcept KeyboardInterrupt: print('saved')\n{code}")
    where.interrupt(cell)
    where.client.wait_for_text(cell, "saved")
    assert not cell.idle
    where.interrupt(cell)
    assert where.end(cell)["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("where", ["subshell", "thread cell"], indirect=True)
def test_a_call_that_cannot_be_stopped_is_reported(where: Where) -> None:
    """The reply says where it hangs; the interrupt comes when the call returns, and hits no other cell.

    In the main thread a signal ends this call too.
    """
    where.client.execute("import threading\nlock = threading.Lock(); lock.acquire()")
    cell = where.begin("lock.acquire()\nimport time; time.sleep(60)")
    [report] = where.interrupt(cell)["pending"]
    assert report["msg_id"] == cell.request.header.msg_id
    assert "lock.acquire()" in report["stack"][-1]
    where.client.execute("lock.release()")
    assert where.end(cell)["ename"] == "KeyboardInterrupt"
    assert where.client.execute("'unhurt'", **where.options).result == "'unhurt'"


@pytest.mark.parametrize("where", ["main shell", "subshell"], indirect=True)
def test_cells_that_wait_in_a_queue_are_taken_out(where: Where) -> None:
    """Each gets its reply and idle, none has run; the cell that ran is not touched (R25)."""
    cell = where.begin("import time\nwhile 'done' not in globals(): time.sleep(0.001)")
    queued = [where.client.send_code("ran = 1", **where.options) for _ in range(3)]
    reply = where.interrupt(*queued)
    assert reply["dequeued"] == [waiting.request.header.msg_id for waiting in queued]
    assert reply["interrupted"] == []
    for waiting in queued:
        assert where.end(waiting)["status"] == "aborted"
    other = where.client.create_subshell()
    where.client.execute("done = 1", subshell=other)
    assert where.end(cell)["status"] == "ok"
    assert where.client.execute("'ran' in globals(), globals().pop('done')", subshell=other).result == "(False, 1)"
    where.client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=other)


@pytest.mark.parametrize("interrupt", ["message", "signal"])
def test_an_interrupt_without_names_stops_all(client: WireClient, interrupt: str) -> None:
    """Main shell, subshell and thread cell end, whoever sends it."""
    subshell = client.create_subshell()
    places = [Where(client), Where(client, {"subshell": subshell}), Where(client, {"tags": ["thread"]})]
    codes = "import time; time.sleep(60)", "import anyio; await anyio.sleep(60)", "while True: pass"
    cells = [place.begin(code) for place, code in zip(places, codes, strict=True)]
    if interrupt == "signal":
        client.kernel.interrupt()
    else:
        assert client.control(MessageType.INTERRUPT_REQUEST)["status"] == "ok"
    assert [place.end(cell)["ename"] for place, cell in zip(places, cells, strict=True)] == ["KeyboardInterrupt"] * 3
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell)


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(60)", "while True: pass", "import anyio; await anyio.sleep(60)"]
)
def test_a_cell_whose_time_is_up_is_stopped(where: Where, code: str) -> None:
    """The tag `timeout=` ends what blocks too, in every place."""
    options = {**where.options, "tags": [*where.options.get("tags", ()), "timeout=0.1"]}
    cell = where.client.send_code(code, **options)
    assert where.end(cell)["status"] == "error"
    assert where.client.execute("'unhurt'", **where.options).result == "'unhurt'"


def test_the_idle_kernel_is_not_interrupted(where: Where) -> None:
    """Nothing runs: nothing happens, and the next cell runs to its end (R28)."""
    where.client.execute("1", **where.options)
    for _ in range(3):
        assert where.client.control(MessageType.INTERRUPT_REQUEST) == {"status": "ok"}
    assert where.client.execute("import time; time.sleep(0.05); 'fine'", **where.options).result == "'fine'"
