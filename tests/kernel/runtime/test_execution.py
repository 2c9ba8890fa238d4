"""How cells are run, by what their first line and their tags ask for, as a client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from tests.kernel.wire import WireClient

WAITING = "import asyncio\nprint('on')\nawait asyncio.sleep(60)"
BLOCKING = "import time\nprint('on')\ntime.sleep(60)"


def interrupt(client: WireClient) -> None:
    """Stop all cells."""
    client.control(MessageType.INTERRUPT_REQUEST)


# ── modes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("line", ["# task", "##task", "%%task"])
def test_a_task_runs_beside_a_cell_that_awaits(client: WireClient, line: str) -> None:
    """In the same thread, without waiting for its turn."""
    waiting = client.send_code(WAITING)
    client.wait_for_text(waiting, "on")
    beside = client.execute(f"{line}\nimport threading\nthreading.current_thread() is threading.main_thread()")
    assert beside.result == "True"
    assert not waiting.idle
    interrupt(client)
    client.finish(waiting)


@pytest.mark.parametrize("line", ["# thread", "##thread", "%%thread"])
def test_a_thread_cell_runs_while_the_main_thread_blocks(client: WireClient, line: str) -> None:
    """In a thread of its own, with an event loop of its own."""
    blocking = client.send_code(BLOCKING)
    client.wait_for_text(blocking, "on")
    beside = client.execute(
        f"{line}\nimport asyncio, threading\nawait asyncio.sleep(0)\n"
        "threading.current_thread() is threading.main_thread()"
    )
    assert beside.result == "False"
    assert not blocking.idle
    interrupt(client)
    client.finish(blocking)


@pytest.mark.parametrize("mode", ["task", "thread"])
def test_a_tag_asks_for_a_mode(client: WireClient, mode: str) -> None:
    """As the first line does."""
    waiting = client.send_code(WAITING)
    client.wait_for_text(waiting, "on")
    assert client.finish(client.send_code("6 * 7", tags=[mode])).result == "42"
    interrupt(client)
    client.finish(waiting)


def test_a_silent_cell_does_not_wait_for_its_turn(client: WireClient) -> None:
    """It runs as soon as its thread is free."""
    waiting = client.send_code(WAITING)
    client.wait_for_text(waiting, "on")
    client.execute("seen = 1", silent=True)
    interrupt(client)
    client.finish(waiting)
    assert client.execute("seen").result == "1"


def test_a_cell_cannot_run_in_the_dispatcher(client: WireClient) -> None:
    """`direct` is refused, with the modes there are, in the reply and for all to see."""
    cell = client.execute("# direct\n1")
    assert cell.content["ename"] == "ValueError"
    assert "'queue', 'task' or 'thread'" in cell.error["evalue"]


def test_cells_that_run_at_once_have_their_own_output_and_result(client: WireClient) -> None:
    """Streams, displays, results and counts of twenty cells, threads and tasks mixed."""
    code = (
        "# MODE\nimport asyncio\nfor n in range(5):\n    print(NUMBER, n)\n    await asyncio.sleep(0.002)\n"
        "display(NUMBER)\nNUMBER"
    )
    modes = ["task", "thread"]
    cells = [
        client.send_code(code.replace("MODE", modes[number % 2]).replace("NUMBER", str(number))) for number in range(20)
    ]
    for number, cell in enumerate(cells):
        client.finish(cell)
        assert cell.text() == "".join(f"{number} {n}\n" for n in range(5))
        assert cell.only(MessageType.DISPLAY_DATA)["data"]["text/plain"] == str(number)
        assert cell.result == str(number)
    counts = [cell.content["execution_count"] for cell in cells]
    assert len(set(counts)) == 20
    assert sorted(counts) == list(range(min(counts), min(counts) + 20))
    assert [cell.only(MessageType.EXECUTE_RESULT)["execution_count"] for cell in cells] == counts


def test_the_history_has_every_cell_at_its_count(client: WireClient) -> None:
    """`In` and `Out` of cells that run at once too."""
    cells = {f"# {mode}\n'{mode} {n}'": None for n in range(8) for mode in ("task", "thread")}
    sent = {code: client.send_code(code) for code in cells}
    for code, cell in sent.items():
        count = client.finish(cell).content["execution_count"]
        assert client.execute(f"In[{count}], Out[{count}]").result == repr((code, code.split("'")[1]))


def test_busy_tells_how_many_cells_run(client: WireClient) -> None:
    """The metadata of a status count the cells of the whole kernel (R11)."""
    waiting = client.send_code(WAITING)
    client.wait_for_text(waiting, "on")
    beside = client.execute("# task\n1")
    assert [m.metadata["kernel_busy"] for m in beside.iopub if m.msg_type == MessageType.STATUS] == [2, 1]
    interrupt(client)
    client.finish(waiting)
    assert waiting.iopub[-1].metadata["kernel_busy"] == 0


def test_a_failing_task_refuses_nothing_that_waits(client: WireClient) -> None:
    """Only a cell of the queue stops the queue."""
    waiting = client.send_code("import asyncio\nprint('on')\nawait asyncio.sleep(0.3)")
    client.wait_for_text(waiting, "on")
    behind = client.send_code("'ran'")
    assert client.execute("# task\n1 / 0").content["status"] == "error"
    assert client.finish(behind).result == "'ran'"


def test_variables_of_a_context_live_on_from_cell_to_cell(client: WireClient) -> None:
    """In the queue's cells; a task sees them, and what it sets is its own (R19)."""
    client.execute("from contextvars import ContextVar\nnut = ContextVar('nut', default='none')\nnut.set('hazel')")
    assert client.execute("nut.get()").result == "'hazel'"
    client.execute("# task\nnut.set('wal')")
    assert client.execute("nut.get()").result == "'hazel'"


# ── tags ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [WAITING, BLOCKING, "print('on')\nwhile True: pass", f"# thread\n{BLOCKING}"])
def test_a_cell_ends_when_its_time_is_up(client: WireClient, code: str) -> None:
    """Whether it awaits, blocks or computes; the error says so, and the kernel goes on."""
    cell = client.finish(client.send_code(code, tags=["timeout=0.2"]))
    assert cell.content["ename"] == "TimeoutError"
    assert cell.error["evalue"] == "The cell ran longer than 0.2 s."
    assert client.execute("'fine'").result == "'fine'"


def test_a_cell_that_is_fast_enough_is_not_touched(client: WireClient) -> None:
    """And the time of one cell does not run out in the next."""
    assert client.finish(client.send_code("1", tags=["timeout=0.2"])).result == "1"
    assert client.execute("import time; time.sleep(0.4); 2").result == "2"


def test_a_tag_that_cannot_be_is_the_cells_error(client: WireClient) -> None:
    """The cell is not run, and is told why."""
    cell = client.finish(client.send_code("ran = True", tags=["timeout=soon"]))
    assert cell.content["ename"] == "ValueError"
    assert "timeout=2.5" in cell.error["evalue"]
    assert client.execute("'ran' in globals()").result == "False"


def test_an_error_stops_the_queue_as_the_tag_says(client: WireClient) -> None:
    """`stop-on-error` comes before the request's own field."""
    failing = client.send_code("import asyncio; await asyncio.sleep(0.2); 1 / 0", tags=["stop-on-error=false"])
    behind = client.send_code("'ran'")
    assert client.finish(failing).content["status"] == "error"
    assert client.finish(behind).result == "'ran'"


def test_an_error_that_is_expected_stops_nothing(client: WireClient) -> None:
    """`raises-exception`: the error is shown; none is an error."""
    failing = client.send_code("import asyncio; await asyncio.sleep(0.2); 1 / 0", tags=["raises-exception"])
    behind = client.send_code("'ran'")
    assert client.finish(failing).error["ename"] == "ZeroDivisionError"
    assert client.finish(behind).result == "'ran'"
    assert client.finish(client.send_code("1", tags=["raises-exception"])).content["status"] == "error"


def test_an_error_can_be_suppressed(client: WireClient) -> None:
    """A sign stands in its place, the reply is ok, and what waits runs."""
    cell = client.finish(client.send_code("1 / 0", tags=["suppress-error"]))
    assert cell.content["status"] == "ok"
    assert cell.of_type(MessageType.ERROR) == []
    assert cell.text("stderr") == "⚠ ZeroDivisionError\n"


# ── interrupts by name ──────────────────────────────────────────────────────────────────────────────────────────────


def test_kernel_info_names_what_is_ours(client: WireClient) -> None:
    """So that a client of ours knows what it may ask."""
    features = client.ask(MessageType.KERNEL_INFO_REQUEST).content["supported_features"]
    assert {"cobnut.interrupt_cells", "cobnut.journal", "cobnut.stack", "cobnut.variables"} <= set(features)


def test_one_cell_is_interrupted_and_the_others_run_on(client: WireClient) -> None:
    """By its request's id."""
    cells = [client.send_code(f"# task\n{WAITING}") for _ in range(3)]
    for cell in cells:
        client.wait_for_text(cell, "on")
    ids = [cell.request.msg_id for cell in cells]
    content = client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=[ids[1]])
    assert content == {"status": "ok", "interrupted": [ids[1]], "dequeued": [], "pending": []}
    assert client.finish(cells[1]).content["ename"] == "KeyboardInterrupt"
    assert not cells[0].idle
    assert not cells[2].idle
    interrupt(client)
    for cell in cells:
        client.finish(cell)


def test_a_cell_that_waits_is_taken_out_of_the_queue(client: WireClient) -> None:
    """It is refused at once; the one that runs goes on, and so do the others that wait."""
    running = client.send_code(WAITING)
    client.wait_for_text(running, "on")
    waiting, other = client.send_code("1"), client.send_code("'other'", stop_on_error=False)
    msg_id = waiting.request.msg_id
    content = client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=[msg_id])
    assert content["dequeued"] == [msg_id]
    assert client.finish(waiting).content["status"] == "aborted"
    assert not running.idle
    running_id = running.request.msg_id
    client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=[running_id])
    client.finish(running)
    client.wait(lambda: other.idle, "the end of the other")


def test_one_subshell_is_interrupted_and_the_others_run_on(client: WireClient) -> None:
    """By its id; None is the main shell."""
    made = client.create_subshell()
    cells = {made: client.send_code(WAITING, subshell=made), None: client.send_code(WAITING)}
    for cell in cells.values():
        client.wait_for_text(cell, "on")
    client.control(MessageType.INTERRUPT_CELLS_REQUEST, subshell_id=made)
    client.finish(cells[made])
    assert not cells[None].idle
    client.control(MessageType.INTERRUPT_CELLS_REQUEST, subshell_id=None)
    client.finish(cells[None])
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)


@pytest.mark.parametrize("content", [{}, {"msg_ids": "all"}, {"msg_ids": 3}])
def test_an_interrupt_of_cells_names_them(client: WireClient, content: dict[str, object]) -> None:
    """What names none is answered by an error that says how."""
    assert client.control(MessageType.INTERRUPT_CELLS_REQUEST, **content)["status"] == "error"


def test_an_interrupt_takes_the_waiting_cells_too(client: WireClient) -> None:
    """Each gets its reply and idle, and what is sent later runs."""
    running = client.send_code(BLOCKING)
    client.wait_for_text(running, "on")
    waiting = [client.send_code("1") for _ in range(5)]
    client.ask(MessageType.KERNEL_INFO_REQUEST)  # the cells were received: they came before on the same channel
    interrupt(client)
    assert client.finish(running).content["ename"] == "KeyboardInterrupt"
    assert [client.finish(cell).content["status"] for cell in waiting] == ["aborted"] * 5
    assert client.execute("'later'").result == "'later'"


def test_callbacks_of_interrupts_run_when_one_begins(client: WireClient) -> None:
    """In the control thread; one that fails keeps the interrupt from nobody."""
    client.execute(
        "import threading\nseen = []\ndef note(): seen.append(threading.current_thread().name)\n"
        "def fail(): 1 / 0\nget_ipython().kernel.interrupts |= {note, fail}"
    )
    running = client.send_code(WAITING)
    client.wait_for_text(running, "on")
    interrupt(client)
    client.finish(running)
    assert client.execute("get_ipython().kernel.interrupts.clear(); seen").result == "['cobnut-control']"


def test_cells_on_the_control_channel_have_a_queue_of_their_own(client: WireClient) -> None:
    """They run beside a cell of the shell channel that awaits."""
    waiting = client.send_code(WAITING)
    client.wait_for_text(waiting, "on")
    assert client.execute("6 * 7", channel=Channel.CONTROL).result == "42"
    interrupt(client)
    client.finish(waiting)
