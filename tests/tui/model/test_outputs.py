"""Outputs, folded from the messages on iopub."""

from __future__ import annotations

from typing import Any

import pytest

from cobnut.model.outputs import DataBlock, ErrorBlock, Outputs, StreamBlock
from cobnut_kernel.protocol.messages import Header, Message


def fold(outputs: Outputs, msg_type: str, **content: Any) -> bool:
    """Fold one message."""
    return outputs.fold(Message(Header("m", msg_type), None, {}, content))


def streams(outputs: Outputs) -> list[tuple[str, list[str]]]:
    """Give the streams, in short."""
    return [(block.name, list(block.screen)) for block in outputs.blocks if isinstance(block, StreamBlock)]


def test_text_of_one_stream_is_one_block() -> None:
    """Consecutive texts of a stream go to one screen, and another stream or output begins a new one."""
    outputs = Outputs()
    for name, text in (("stdout", "a"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d"), ("stdout", "")):
        assert fold(outputs, "stream", name=name, text=text)
    fold(outputs, "display_data", data={"text/plain": "x"})
    fold(outputs, "stream", name="stdout", text="e")
    assert streams(outputs) == [("stdout", ["ab"]), ("stderr", ["c"]), ("stdout", ["d"]), ("stdout", ["e"])]


def test_a_result_and_a_display_are_data() -> None:
    """Results and displays keep their formats, their metadata, their number and the id to update them by."""
    outputs = Outputs()
    fold(outputs, "execute_result", data={"text/plain": "1"}, metadata={"a": 1}, execution_count=3)
    fold(outputs, "display_data", data={"text/html": "<b>"}, transient={"display_id": "d"})
    result, display = outputs.blocks
    assert isinstance(result, DataBlock)
    assert isinstance(display, DataBlock)
    assert (result.data, result.metadata, result.execution_count) == ({"text/plain": "1"}, {"a": 1}, 3)
    assert (display.data, display.display_id, display.execution_count) == ({"text/html": "<b>"}, "d", None)


def test_an_error_is_found_again() -> None:
    """The exception of a cell is known although text comes after it."""
    outputs = Outputs()
    assert outputs.error is None
    fold(outputs, "error", ename="E", evalue="v", traceback=["t1", "t2"])
    fold(outputs, "stream", name="stderr", text="x")
    assert outputs.error is not None
    assert (outputs.error.ename, outputs.error.evalue, outputs.error.traceback) == ("E", "v", ["t1", "t2"])


@pytest.mark.parametrize(
    ("content", "traceback"),
    [
        ({"ename": "E", "evalue": "v"}, ["E: v"]),
        ({"ename": "E", "traceback": []}, ["E"]),
        ({"ename": "E", "evalue": "v", "traceback": "text"}, ["E: v"]),
        ({}, ["Error"]),
    ],
)
def test_an_error_without_traceback_still_says_something(content: dict[str, Any], traceback: list[str]) -> None:
    """Where the traceback is missing, the name and the value of the exception stand in for it."""
    outputs = Outputs()
    fold(outputs, "error", **content)
    assert isinstance(outputs.blocks[0], ErrorBlock)
    assert outputs.blocks[0].traceback == traceback


def test_clearing_at_once() -> None:
    """clear_output drops everything, and text after it begins a new screen."""
    outputs = Outputs()
    fold(outputs, "stream", name="stdout", text="old")
    fold(outputs, "clear_output", wait=False)
    assert not outputs.blocks
    fold(outputs, "stream", name="stdout", text="new")
    assert streams(outputs) == [("stdout", ["new"])]


@pytest.mark.parametrize("msg_type", ["stream", "display_data", "execute_result", "error"])
def test_clearing_with_wait_waits_for_the_next_output(msg_type: str) -> None:
    """clear_output(wait=True) keeps the old outputs until there is something to put in their place, and clears once."""
    outputs = Outputs()
    fold(outputs, "stream", name="stdout", text="old")
    fold(outputs, "clear_output", wait=True)
    fold(outputs, "stream", name="stdout", text="")
    assert streams(outputs) == [("stdout", ["old"])]
    fold(outputs, msg_type, name="stdout", text="new", data={})
    assert len(outputs.blocks) == 1
    assert streams(outputs) != [("stdout", ["old"])]
    fold(outputs, "display_data", data={})
    assert len(outputs.blocks) == 2


def test_clearing_at_once_forgets_that_it_should_wait() -> None:
    """A clear_output without wait after one with wait does not clear the next output's predecessors twice."""
    outputs = Outputs()
    fold(outputs, "clear_output", wait=True)
    fold(outputs, "clear_output", wait=False)
    fold(outputs, "display_data", data={})
    fold(outputs, "display_data", data={})
    assert len(outputs.blocks) == 2


def test_an_update_of_a_display_is_no_reason_to_clear() -> None:
    """While a clearing waits, an update of a display on the screen changes it in place."""
    outputs = Outputs()
    fold(outputs, "display_data", data={"text/plain": "0"}, transient={"display_id": "d"})
    fold(outputs, "clear_output", wait=True)
    assert outputs.update_display("d", {"data": {"text/plain": "1"}})
    (block,) = outputs.blocks
    assert isinstance(block, DataBlock)
    assert block.data == {"text/plain": "1"}
    assert not outputs.update_display("unknown", {"data": {}})


def test_other_messages_are_no_outputs() -> None:
    """A message that is no output is not folded, and changes nothing."""
    outputs = Outputs()
    for msg_type in ("status", "execute_input", "comm_msg", "unheard_of"):
        assert not fold(outputs, msg_type, execution_state="busy")
    assert (outputs.blocks, outputs.revision) == ([], 0)


def test_blocks_that_changed_are_told() -> None:
    """The changes name the blocks that were added or changed, and start anew when all are cleared."""
    outputs = Outputs()
    for name in ("a", "b", "c"):
        fold(outputs, "display_data", data={"text/plain": name}, transient={"display_id": name})
    revision, generation = outputs.revision, outputs.generation
    outputs.update_display("b", {"data": {}})
    fold(outputs, "stream", name="stdout", text="x")
    assert sorted(outputs.changes.since(revision)) == [1, 3]
    outputs.clear()
    fold(outputs, "display_data", data={})
    assert outputs.generation == generation + 1
    assert sorted(outputs.changes.since(revision)) == [0]
