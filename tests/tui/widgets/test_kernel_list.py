"""A kernel in a line: it reads without colour, and the state never gives way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cobnut.kernel_status import GLYPHS, KernelRow, Status, short_duration
from cobnut.widgets.kernel_list import counts, kernel_line, kernel_strip
from cobnut.widgets.lines import ASCII_TWINS

BUSY = KernelRow(1, "scratch", Status.BUSY, "12s", 1, selected=True)
IDLE = KernelRow(2, "train", Status.IDLE)
DEAD = KernelRow(4, "python-4", Status.DEAD, "SIGKILL")


def test_lines_of_the_sidebar() -> None:
    """Number, glyph, name, state in words, time and queue, in columns."""
    assert kernel_line(BUSY, 26).plain == ">1 ● scratch   busy 12s +1"
    assert kernel_line(IDLE, 26).plain == " 2 ○ train     idle"
    assert kernel_line(DEAD, 26).plain == " 4 ✗ python-4 dead SIGKILL"


@pytest.mark.parametrize("status", Status)
def test_every_state_fits_with_its_word(status: Status) -> None:
    """However long the name, the whole word of the state is there, in 26 columns, and if need be without its time."""
    row = KernelRow(12, "a-name-that-is-too-long", status, "3m05", 12)
    line = kernel_line(row, 26)
    assert line.plain.endswith((f" {status} 3m05 +12", f" {status} +12"))
    assert line.cell_len <= 26
    assert kernel_line(replace(row, queued=0), 26).plain.endswith(f" {status} 3m05")


def test_a_number_of_two_digits_does_not_touch_the_glyph() -> None:
    """There is a blank behind every number."""
    assert kernel_line(KernelRow(12, "train", Status.IDLE, selected=True), 26).plain == ">12 ○ train     idle"


def test_ascii_twins() -> None:
    """Every glyph has a twin in ASCII, and states that can be mistaken for each other differ in it."""
    assert kernel_line(BUSY, 26).plain.translate(ASCII_TWINS) == ">1 * scratch   busy 12s +1"
    assert all(twin.isascii() and len(twin) == len(glyph) == 1 for glyph, twin in GLYPHS.values())
    living = [twin for status, (_, twin) in GLYPHS.items() if not status.has_ended]
    assert len(living) == len(set(living))


def test_the_strip() -> None:
    """All kernels in one line, as tmux has its windows."""
    assert kernel_strip([BUSY, IDLE, DEAD], 80).plain.rstrip() == "1●scratch 12s+1  2○train  4✗python-4 SIGKILL"


def test_the_strip_shows_the_selected_kernel_where_not_all_fit() -> None:
    """The selected kernel comes first, then as many as fit; the rest is counted."""
    rows = [KernelRow(number, f"kernel-{number}", Status.IDLE, selected=number == 8) for number in range(1, 10)]
    strip = kernel_strip(rows, 40).plain
    assert strip == "8○kernel-8  1○kernel-1  2○kernel-2  +6"
    assert kernel_strip(rows, 12).plain == "8○kerne…  +8"


def test_names_with_control_characters_are_made_harmless() -> None:
    """An escape sequence in a name never reaches the terminal."""
    assert "\x1b" not in kernel_line(KernelRow(1, "a\x1b[31m", Status.IDLE), 26).plain


def test_counts() -> None:
    """Nothing is said where nothing runs."""
    assert counts(2, 1).plain == "2 running  1 queued"
    assert counts(0, 0).plain == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m00"), (185, "3m05"), (7620, "2h07"), (400000, "4d")]
)
def test_durations(seconds: float, text: str) -> None:
    """At most five columns, whatever the time."""
    assert short_duration(seconds) == text
