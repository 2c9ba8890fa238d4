"""What a cell's first line and tags ask for, read without a kernel."""

from __future__ import annotations

from typing import Any

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.modes import ROUTES, CellOptions, RunMode, cell_options, run_mode, run_mode_table


@pytest.mark.parametrize(
    ("code", "mode"),
    [
        ("# task\n1", RunMode.TASK),
        ("##thread\n1", RunMode.THREAD),
        ("\n\n  # thread  \n1", RunMode.THREAD),
        ("# queue", RunMode.QUEUE),
        ("# RunMode.task\n1", RunMode.TASK),
        ("%%task\n1", RunMode.TASK),
        ("%%thread\n1", RunMode.THREAD),
        ("# direct\n1", RunMode.DIRECT),
        ("# a task\n1", RunMode.QUEUE),
        ("# tasks\n1", RunMode.QUEUE),
        ("# task: buy nuts\n1", RunMode.QUEUE),
        ("%%tasks\n1", RunMode.QUEUE),
        ("%%thread now\n1", RunMode.QUEUE),
        ("1\n# task", RunMode.QUEUE),
        ("'# task'", RunMode.QUEUE),
        ("", RunMode.QUEUE),
        (None, RunMode.QUEUE),
    ],
)
def test_the_first_line_says_the_mode(code: object, mode: RunMode) -> None:
    """A comment or cell magic that is a mode and nothing else, on the first line that is not empty."""
    assert run_mode({"code": code}, {}) is mode


def test_a_tag_comes_before_the_first_line() -> None:
    """Both say a mode: the tag holds."""
    assert run_mode({"code": "# task\n1"}, {"tags": ["hazel", "thread"]}) is RunMode.THREAD
    assert run_mode({"code": "# task\n1"}, {"tags": ["queue"]}) is RunMode.QUEUE


def test_a_silent_cell_waits_for_no_other_unless_it_asks_to() -> None:
    """Silent requests run beside the queue; one that names a mode has it."""
    assert run_mode({"code": "1", "silent": True}, {}) is RunMode.TASK
    assert run_mode({"code": "# queue\n1", "silent": True}, {}) is RunMode.QUEUE


@pytest.mark.parametrize("tags", [None, "task", 3, {"task": 1}, [None, 3, ["task"]]])
def test_tags_of_another_type_are_none(tags: Any) -> None:
    """What a broken front end puts in the place of the tags asks for nothing."""
    assert cell_options({"code": "1"}, {"tags": tags}) == CellOptions()


def test_options_are_read_from_tags() -> None:
    """Each tag with its value, whatever stands around it."""
    metadata = {"tags": ["timeout=2.5", "stop-on-error=False", "suppress-error", "task"]}
    assert cell_options({"code": "1"}, metadata) == CellOptions(RunMode.TASK, 2.5, False, False, "⚠")
    assert cell_options({"code": "1"}, {"tags": [" suppress-error = oh "]}).suppressed == "oh"


def test_the_tag_for_errors_comes_before_the_request() -> None:
    """`stop_on_error` of the request holds where no tag says otherwise; an expected error stops nothing."""
    assert cell_options({"code": "1", "stop_on_error": False}, {}).stop_on_error is False
    assert cell_options({"code": "1", "stop_on_error": False}, {"tags": ["stop-on-error=true"]}).stop_on_error is True
    assert cell_options({"code": "1"}, {"tags": ["raises-exception"]}).stop_on_error is False


@pytest.mark.parametrize("tag", ["timeout=soon", "timeout=", "timeout=-1", "timeout=0", "timeout=nan", "timeout=inf"])
def test_a_timeout_that_is_none_is_refused(tag: str) -> None:
    """The error names the tag and shows a right one."""
    with pytest.raises(ValueError, match=r"timeout=2\.5"):
        cell_options({"code": "1"}, {"tags": [tag]})


def test_a_cell_is_no_handler() -> None:
    """`direct` is refused for cells, with the modes there are."""
    with pytest.raises(ValueError, match="'queue', 'task' or 'thread'"):
        cell_options({"code": "# direct\n1"}, {})


def test_the_table_names_every_request_and_its_mode() -> None:
    """Columns of equal length; what is no request has no mode."""
    table = run_mode_table((Channel.SHELL, Channel.CONTROL), MessageType)
    assert {len(column) for column in table.values()} == {2 * len(MessageType)}
    modes = dict(zip(table["MsgType"], table["RunMode"], strict=True))
    assert modes[MessageType.EXECUTE_REQUEST] is RunMode.QUEUE
    assert modes[MessageType.KERNEL_INFO_REQUEST] is RunMode.DIRECT
    assert modes[MessageType.STREAM] is None
    assert modes[MessageType.INPUT_REQUEST] is None
    assert all(modes[MessageType(kind)] is route.mode for kind, route in ROUTES.items())
