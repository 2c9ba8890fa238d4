"""The lines around the cells say what fits, and drop what does not."""

from __future__ import annotations

import pytest

from cobnut.kernel_status import KernelRow
from cobnut.kernel_status import Status as KernelStatus
from cobnut.widgets.frame import Position, Status, StatusLine, Title, TitleLine, heading_rule, position_text, rule
from cobnut.widgets.lines import line, shortened, spread

ROW = KernelRow(1, "scratch", KernelStatus.BUSY, "12s", 1, selected=True)
HINTS = [("Enter", "run"), ("^T", "kernels"), ("F1", "keys")]


def status_text(status: Status, width: int) -> str:
    """Write a status line."""
    view = StatusLine()
    view.content = status
    return view.compose_lines(width, 1)[0].plain


def test_the_title() -> None:
    """Name, interpreter, folder at the left; what runs and waits at the right."""
    title = TitleLine(Title("scratch", "python 3.11 (cobnut)", "~/proj", 2, 1))
    first, second = title.compose_lines(80, 2)
    assert first.plain == "scratch · python 3.11 (cobnut) · ~/proj" + " " * 22 + "2 running  1 queued"
    assert second.plain == "─" * 80


def test_the_title_gives_way_to_what_runs() -> None:
    """A long folder is cut with an ellipsis; the counts stay."""
    title = TitleLine(Title("scratch", "python 3.11 (cobnut)", "~/" + "deep/" * 20, 1, 0))
    first = title.compose_lines(60, 2)[0].plain
    assert first.endswith("1 running")
    assert "…" in first
    assert len(first) == 60


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (Position(), ""),
        (Position(1), "1 line above"),
        (Position(214), "214 lines above"),
        (Position(200, 14), "200 lines above, 14 below: ^End follows"),
        (Position(0, 14, 3), "14 lines (3 new) below: ^End follows"),
        (Position(0, 1), "1 line below: ^End follows"),
    ],
)
def test_the_position(position: Position, text: str) -> None:
    """What is out of sight is counted, and the way back to the end is named."""
    assert position_text(position) == text


def test_rules() -> None:
    """A rule is as wide as asked, and drops a text that has no room."""
    assert rule(20, "12 above").plain == "───────── 12 above ─"
    assert rule(10, "12 lines above").plain == "─" * 10
    assert heading_rule("Keys", 12).plain == "─ Keys ─────"


def test_the_status_line_shows_the_state_and_as_many_keys_as_fit() -> None:
    """The most useful keys come first, the last ones are dropped first, and the way to the help is the last to go."""
    status = Status([ROW], hints=HINTS)
    assert status_text(status, 80) == "scratch ● busy 12s +1" + " " * 28 + "Enter run  ^T kernels  F1 keys "
    assert status_text(status, 40).endswith("+1      Enter run  F1 keys ")
    assert status_text(status, 32).endswith("+1         F1 keys ")


def test_the_status_line_carries_the_kernels_where_it_is_narrow() -> None:
    """Below 72 columns all kernels are in the status line."""
    other = KernelRow(2, "train", KernelStatus.IDLE)
    assert status_text(Status([ROW, other], hints=HINTS), 60).startswith("1●scratch 12s+1  2○train")


def test_many_kernels_leave_room_for_the_way_to_the_help() -> None:
    """In 60 columns the list of kernels is shortened, with the selected one first and the rest counted."""
    rows = [KernelRow(number, f"python-{number}", KernelStatus.IDLE, selected=number == 8) for number in range(1, 10)]
    text = status_text(Status(rows, hints=HINTS), 60)
    assert text.startswith("8○python-8  1○python-1  2○python-2  +6 ")
    assert text.endswith(" F1 keys ")
    assert len(text) == 60


def test_a_notice_of_the_state_takes_its_place() -> None:
    """What the state calls for is said in its place, at 60 columns too, beside the way to the help."""
    notice = "Not stopped yet: ^C again, or Esc 0 0 restarts it"
    text = status_text(Status([ROW], hints=HINTS, notice=notice), 60)
    assert text == f"{notice}   F1 keys "


def test_the_mode_takes_the_place_of_the_state() -> None:
    """What the next key is for is said at the left."""
    assert status_text(Status([ROW], mode="COMMAND Esc i"), 80).startswith(" COMMAND Esc i ")


def test_lines_have_no_markup_and_no_control_characters() -> None:
    """What looks like markup is text, and what controls a terminal is shown."""
    assert line("[bold]x[/] \x1b[31m\n").plain == "[bold]x[/] ·[31m·"


def test_spread_and_shortened() -> None:
    """The right part keeps its place while there is any room for it."""
    assert spread(line("left"), line("right"), 12).plain == "left   right"
    assert spread(line("a long left part"), line("right"), 18).plain == "a long left… right"
    assert spread(line("a long left part"), line("right"), 8).plain == "a long …"
    assert shortened(line("日本語"), 5).cell_len <= 5
