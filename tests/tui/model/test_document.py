"""Messages of a kernel, folded into its document."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tui.model.script import ScriptedKernel

from cobnut.model.cell import Cell, RunState
from cobnut.model.document import Document, Level, Notice
from cobnut.model.outputs import DataBlock, ErrorBlock, StreamBlock
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType


@pytest.fixture
def document() -> Document:
    """An empty document."""
    return Document()


@pytest.fixture
def kernel(document: Document) -> ScriptedKernel:
    """A kernel that writes into the document."""
    return ScriptedKernel(document)


def shown(cell: Cell) -> list[object]:
    """Give what a cell put out, in short."""
    result: list[object] = []
    for block in cell.outputs.blocks:
        match block:
            case StreamBlock():
                result.append((block.name, list(block.screen)))
            case DataBlock():
                result.append(block.data["text/plain"])
            case ErrorBlock():
                result.append(block.ename)
    return result


def test_the_life_of_a_cell(document: Document, kernel: ScriptedKernel) -> None:
    """A cell waits, runs and ends, and takes its number, its outputs and its time from the messages."""
    cell = kernel.submit("1 + 1")
    assert (cell.state, cell.elapsed(kernel.now)) == (RunState.QUEUED, None)
    assert (document.queued, document.running) == ([cell], [])
    kernel.begin(cell, 7)
    assert (cell.state, cell.execution_count) == (RunState.RUNNING, 7)
    assert (document.queued, document.running) == ([], [cell])
    assert cell.elapsed(kernel.now + 3) == 3
    kernel.display(cell, "2", msg_type="execute_result")
    kernel.clock += 0.25
    kernel.end(cell)
    assert cell.state is RunState.OK
    assert shown(cell) == ["2"]
    assert cell.elapsed(kernel.now + 99) == 0.25
    assert (document.queued, document.running) == ([], [])


def test_the_length_of_a_run_is_told_by_the_kernels_clock(kernel: ScriptedKernel) -> None:
    """Messages that were folded together late, in one frame, still give the time that the run took."""
    cell = kernel.submit()
    kernel.begin(cell)
    kernel.clock += 1.5
    kernel.end(cell)
    assert cell.elapsed(kernel.now) == 1.5


@pytest.mark.parametrize("date", ["2024-05-17T12:00:00", "yesterday", ""])
def test_a_kernel_without_dates_is_timed_by_ours(kernel: ScriptedKernel, document: Document, date: str) -> None:
    """Where messages have no date that can be compared, the times at which they were folded count."""
    cell = kernel.submit()
    for now, msg_type, channel, content in (
        (101.0, MessageType.STATUS, Channel.IOPUB, {"execution_state": "busy"}),
        (104.0, MessageType.EXECUTE_REPLY, Channel.SHELL, {"status": "ok"}),
    ):
        header = Header("m", msg_type, date=date)
        document.fold(channel, Message(header, Header(cell.msg_id, "execute_request"), {}, content), now)
    assert cell.elapsed(200) == 3


def test_a_cell_that_waits_for_its_kernel_is_sent_later(document: Document, kernel: ScriptedKernel) -> None:
    """What is entered while the kernel starts has no id until it is sent, and then runs like any other."""
    cell = document.submit("a", None, 1.0, "r")
    assert (cell.msg_id, cell.language, document.queued) == (None, "r", [cell])
    document.sent(cell, "later")
    kernel.begin(cell)
    kernel.write(cell, "x")
    assert shown(cell) == [("stdout", ["x"])]


@pytest.mark.parametrize(
    ("status", "content", "state"),
    [
        ("ok", {}, RunState.OK),
        ("error", {"ename": "ValueError"}, RunState.ERROR),
        ("error", {"ename": "KeyboardInterrupt"}, RunState.INTERRUPTED),
        ("error", {}, RunState.ERROR),
        ("aborted", {}, RunState.ABORTED),
        ("abort", {}, RunState.ABORTED),
    ],
)
@pytest.mark.parametrize("idle_first", [True, False])
def test_the_reply_says_how_a_run_ended(
    kernel: ScriptedKernel, document: Document, status: str, content: dict[str, Any], state: RunState, idle_first: bool
) -> None:
    """The state at the end is the reply's, whether it comes before or after the kernel is idle."""
    cell = kernel.submit()
    kernel.begin(cell)
    if idle_first:
        kernel.idle(cell)
    kernel.reply(cell, status, **content)
    if not idle_first:
        kernel.idle(cell)
    assert cell.state is state
    assert not document.running


def test_a_cell_after_a_failed_one_is_aborted(kernel: ScriptedKernel) -> None:
    """A cell that the kernel skips, busy and idle around an aborted reply, was never run and has no time."""
    cell = kernel.submit()
    kernel.say(cell.msg_id, "status", execution_state="busy")
    kernel.idle(cell)
    assert cell.state is RunState.ABORTED
    kernel.reply(cell, "aborted")
    assert cell.state is RunState.ABORTED
    assert cell.elapsed(kernel.now) is None
    assert not cell.outputs.blocks


@pytest.mark.parametrize(
    ("ename", "state"), [("ValueError", RunState.ERROR), ("KeyboardInterrupt", RunState.INTERRUPTED)]
)
def test_idle_ends_a_run_whose_reply_never_comes(kernel: ScriptedKernel, ename: str, state: RunState) -> None:
    """Without a reply the outputs tell how the run ended."""
    well, badly = kernel.submit(), kernel.submit()
    for cell in (well, badly):
        kernel.begin(cell)
    kernel.fail(badly, ename)
    kernel.idle(well)
    kernel.idle(badly)
    assert (well.state, badly.state) == (RunState.OK, state)


def test_outputs_that_come_late_land_in_their_cell(kernel: ScriptedKernel) -> None:
    """Output of a cell that has ended, as threads write it, is added to that cell and not to the one that runs."""
    first, second = kernel.submit(), kernel.submit()
    kernel.begin(first)
    kernel.end(first)
    kernel.begin(second, 2)
    kernel.write(first, "late\n")
    kernel.write(second, "own\n")
    assert shown(first) == [("stdout", ["late"])]
    assert shown(second) == [("stdout", ["own"])]
    assert (first.state, second.state) == (RunState.OK, RunState.RUNNING)


def test_a_reply_that_overtakes_everything(kernel: ScriptedKernel) -> None:
    """Where the reply is read before a long backlog of outputs, the cell ends once, and with the right time."""
    cell = kernel.submit()
    kernel.clock = 4.0
    kernel.reply(cell)
    assert cell.state is RunState.OK
    kernel.clock = 0.0
    kernel.begin(cell, 3)
    kernel.write(cell, "x")
    kernel.clock = 4.0
    kernel.idle(cell)
    assert (cell.state, cell.execution_count, cell.elapsed(999)) == (RunState.OK, 3, 4.0)
    assert shown(cell) == [("stdout", ["x"])]


def test_an_error_that_only_the_reply_tells_is_shown(kernel: ScriptedKernel) -> None:
    """The traceback of a reply is shown when no error came on iopub, and is not shown twice when one did."""
    told, silent = kernel.submit(), kernel.submit()
    for cell in (told, silent):
        kernel.begin(cell)
        kernel.reply(cell, "error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
    kernel.fail(told)
    for cell in (told, silent):
        kernel.idle(cell)
        assert shown(cell) == ["ValueError"]


def test_what_the_kernel_wants_in_a_pager_is_shown(kernel: ScriptedKernel) -> None:
    """The page of a reply, IPython's answer to `name?`, is not lost; other payloads are nothing to show."""
    cell = kernel.submit("len?")
    kernel.begin(cell)
    page = {"source": "page", "data": {"text/plain": "Docstring"}, "start": 0}
    kernel.reply(cell, payload=[{"source": "set_next_input", "text": "x"}, page, "nonsense"])
    assert shown(cell) == ["Docstring"]


def test_a_cell_of_another_client_appears(document: Document, kernel: ScriptedKernel) -> None:
    """What another client runs becomes a cell when the kernel repeats its input, and ends when the kernel is idle."""
    document.language = "julia"
    kernel.say("elsewhere", "status", execution_state="busy")
    assert not document.cells
    kernel.say("elsewhere", "execute_input", code="x = 1", execution_count=4)
    (cell,) = document.cells
    assert (cell.foreign, cell.code, cell.language, cell.execution_count) == (True, "x = 1", "julia", 4)
    assert document.running == [cell]
    kernel.write(cell, "out")
    kernel.idle(cell)
    assert cell.state is RunState.OK
    assert shown(cell) == [("stdout", ["out"])]


def test_a_cell_that_the_kernel_knew_before_us_is_ours(document: Document, kernel: ScriptedKernel) -> None:
    """A cell that was taken for another client's turns into ours when it is entered under the same id."""
    kernel.say("fast", "execute_input", code="x", execution_count=1)
    cell = document.submit("x", "fast", 1.0)
    assert document.cells == [cell]
    assert not cell.foreign


def test_messages_of_other_requests_are_ignored(document: Document, kernel: ScriptedKernel) -> None:
    """Output and status with a parent that is no cell, or without a parent, change nothing."""
    for parent in ("unknown", None):
        kernel.say(parent, "stream", name="stdout", text="x")
        kernel.say(parent, "status", execution_state="idle")
        kernel.say(parent, "status", execution_state="starting")
        kernel.say(parent, "execute_reply", Channel.SHELL, status="ok")
        kernel.say(parent, "update_display_data", data={}, transient={"display_id": "d"})
    kernel.say(None, "execute_input", code="x", execution_count=1)
    assert (document.items, document.revision) == ([], 0)


def test_a_display_is_updated_wherever_it_is(kernel: ScriptedKernel) -> None:
    """An update reaches every display of that id, in other cells and in results too, and adds none."""
    first, second = kernel.submit(), kernel.submit()
    kernel.display(first, "0 %", "bar")
    kernel.display(first, "other", "other")
    kernel.display(first, "0 %", "bar")
    kernel.display(second, "0 %", "bar", "execute_result")
    before = second.revision
    kernel.display(second, "50 %", "bar", "update_display_data")
    assert shown(first) == ["50 %", "other", "50 %"]
    assert shown(second) == ["50 %"]
    assert second.revision > before


def test_an_update_of_a_display_that_was_cleared_is_ignored(kernel: ScriptedKernel) -> None:
    """After its cell was cleared a display cannot be updated, and the cell's new outputs are left alone."""
    cell = kernel.submit()
    kernel.display(cell, "old", "bar")
    kernel.clear(cell)
    kernel.display(cell, "new")
    kernel.display(cell, "update", "bar", "update_display_data")
    assert shown(cell) == ["new"]
    kernel.display(cell, "again", "bar")
    kernel.display(cell, "updated", "bar", "update_display_data")
    assert shown(cell) == ["new", "updated"]


def test_a_dead_kernel_ends_its_cells(document: Document, kernel: ScriptedKernel) -> None:
    """When the kernel dies what ran has failed, what waited was never run, and a notice says why."""
    done, running, waiting, unsent = kernel.submit(), kernel.submit(), kernel.submit(), document.submit("x", None, 1.0)
    kernel.begin(done)
    kernel.end(done)
    kernel.begin(running)
    kernel.now += 5
    document.kernel_died("killed by SIGKILL", kernel.now)
    states = [cell.state for cell in (done, running, waiting, unsent)]
    assert states == [RunState.OK, RunState.ERROR, RunState.ABORTED, RunState.ABORTED]
    assert running.elapsed(kernel.now + 99) == 5
    assert document.items[-1] == Notice("killed by SIGKILL", kernel.now, Level.ERROR)
    assert not document.running
    assert not document.queued


def test_a_kernel_that_dies_before_it_says_that_it_runs(document: Document, kernel: ScriptedKernel) -> None:
    """Of the cells of which a dead kernel said nothing, the oldest that was sent has failed; the others never ran."""
    unsent, killer, waiting = document.submit("x", None, 1.0), kernel.submit("os._exit(3)"), kernel.submit()
    document.kernel_died("exit code 3", kernel.now)
    assert [cell.state for cell in (unsent, killer, waiting)] == [RunState.ABORTED, RunState.ERROR, RunState.ABORTED]
    assert killer.elapsed(kernel.now) is None
    kernel.begin(killer, 4)
    assert (killer.state, killer.execution_count) == (RunState.ERROR, 4)
    document.submit("y", None, kernel.now)
    document.kernel_died("exit code 3", kernel.now)
    assert document.cells[-1].state is RunState.ABORTED


def test_a_reply_that_was_read_after_the_death_still_counts(document: Document, kernel: ScriptedKernel) -> None:
    """A cell whose end was already on its way when the kernel died has ended as its reply says."""
    cell = kernel.submit()
    kernel.begin(cell)
    document.kernel_died("exit code 0", kernel.now)
    kernel.write(cell, "last words")
    kernel.reply(cell)
    assert cell.state is RunState.OK
    assert shown(cell) == [("stdout", ["last words"])]


def test_a_restart_interrupts_what_runs(document: Document, kernel: ScriptedKernel) -> None:
    """Runs that end with their kernel because it was wanted are interrupted, not failed."""
    running, waiting = kernel.submit(), kernel.submit()
    kernel.begin(running)
    document.end_runs(kernel.now)
    assert (running.state, waiting.state) == (RunState.INTERRUPTED, RunState.ABORTED)


def test_notices_stand_between_cells(document: Document, kernel: ScriptedKernel) -> None:
    """Items are in the order in which they came."""
    first = kernel.submit()
    document.notice("kernel restarted", 2.0)
    second = kernel.submit()
    assert document.items == [first, Notice("kernel restarted", 2.0, Level.INFO), second]
    assert document.cells == [first, second]
    assert [document.index(cell) for cell in document.cells] == [0, 2]


def test_several_cells_run_at_once(document: Document, kernel: ScriptedKernel) -> None:
    """Cells in different subshells run side by side, and each gets its own messages."""
    first, second = kernel.submit(), kernel.submit()
    kernel.begin(first, 1)
    kernel.begin(second, 2)
    assert document.running == [first, second]
    kernel.end(first)
    assert document.running == [second]


def test_changes_are_told_by_revision(document: Document, kernel: ScriptedKernel) -> None:
    """Whoever remembers a revision learns which items changed since, and no others."""
    cells = [kernel.submit() for _ in range(5)]
    revision = document.revision
    assert not list(document.changes.since(revision))
    kernel.begin(cells[3])
    kernel.write(cells[1], "x")
    assert sorted(document.changes.since(revision)) == [1, 3]
    assert cells[1].revision == document.revision


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *("status", "execution_state", "code", "execution_count", "name", "text", "data", "metadata", "transient"),
        *("wait", "display_id", "ename", "evalue", "traceback", "payload"),
    ]
)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Channel]),
            st.sampled_from([*MessageType, "unheard_of"]),
            st.sampled_from(["run-0", "other", None]),
            st.dictionaries(KEYS, JUNK | st.just({"display_id": "d"}), max_size=5),
        ),
        max_size=12,
    )
)
def test_no_message_is_ever_too_much(messages: list[tuple[Channel, str, str | None, dict[str, Any]]]) -> None:
    """Messages whose content is not as specified never raise, and leave a cell in a state that it can have."""
    kernel = ScriptedKernel(Document())
    cell = kernel.submit()
    for channel, msg_type, parent, content in messages:
        kernel.say(parent, msg_type, channel, **content)
    assert cell.state in RunState
    assert len(kernel.document.items) == len(kernel.document.cells)
