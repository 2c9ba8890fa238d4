"""A document, laid out."""

from __future__ import annotations

import re
from typing import Any
from unicodedata import combining, east_asian_width

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.tui.model.script import ScriptedKernel

from cobnut.model.document import Document, Level
from cobnut.render.glyphs import ASCII
from cobnut.render.layout import Layout

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@pytest.fixture
def document() -> Document:
    """An empty document."""
    return Document()


@pytest.fixture
def kernel(document: Document) -> ScriptedKernel:
    """A kernel that writes into the document."""
    return ScriptedKernel(document)


def rows_of(layout: Layout) -> list[str]:
    """Give the text of all rows, and check that each has the width of the layout."""
    strips = [layout.line(y) for y in range(layout.height)]
    assert all(strip.cell_length == layout.width for strip in strips)
    assert all(sum(cell_len(segment.text) for segment in strip) == layout.width for strip in strips)
    return [strip.text.rstrip() for strip in strips]


def drawn(document: Document, width: int, now: float, **options: Any) -> list[str]:
    """Lay out a document from scratch, and give the text of all rows."""
    layout = Layout(document, width, **options)
    layout.update(now)
    return rows_of(layout)


def test_what_a_document_looks_like(document: Document, kernel: ScriptedKernel) -> None:
    """Number, code and time stand on a cell's first row, its outputs under it, four columns in; notices between."""
    document.notice("kernel started", 1.0)
    first, second, third, fourth = (
        kernel.submit(code) for code in ("df", "for x in y:\n    1 / 0", "sleep(9)", "later")
    )
    kernel.begin(first, 5)
    kernel.display(first, "   a  b\n0  1  2", msg_type="execute_result")
    kernel.clock += 0.014
    kernel.end(first)
    kernel.begin(second, 6)
    kernel.write(second, "text\n")
    kernel.fail(second, "ZeroDivisionError", "division by zero")
    kernel.clock += 1.2
    kernel.reply(second, "error", ename="ZeroDivisionError")
    kernel.begin(third, 17)
    assert drawn(document, 76, kernel.now + 12.44) == [
        "── kernel started",
        "[5] df                                                                  14ms",
        "       a  b",
        "    0  1  2",
        "[6] for x in y:                                                     ✗   1.2s",
        "        1 / 0",
        "    text",
        "    ZeroDivisionError: division by zero",
        "[17] sleep(9)                                                       ▶  12.4s",
        "[ ] later                                                           ⋯ queued",
    ]
    assert fourth.execution_count is None


def test_states_read_without_colour(document: Document, kernel: ScriptedKernel) -> None:
    """Every way in which a run can stand has its own sign or word, in ASCII too."""
    cells = [kernel.submit(f"c{n}") for n in range(6)]
    for number, cell in enumerate(cells[:4]):
        kernel.begin(cell, number)
    kernel.reply(cells[0])
    kernel.reply(cells[1], "error", ename="E")
    kernel.reply(cells[2], "error", ename="KeyboardInterrupt")
    kernel.reply(cells[4], "aborted")
    assert [row.split("  ", 1)[1].strip() for row in drawn(document, 80, kernel.now + 3)] == [
        "<1ms", "✗   <1ms", "⊘   <1ms", "▶   3.0s", "⊘ aborted", "⋯ queued",
    ]  # fmt: skip
    assert [row.split("  ", 1)[1].strip() for row in drawn(document, 80, kernel.now + 3, glyphs=ASCII)] == [
        "<1ms", "x   <1ms", "!   <1ms", ">   3.0s", "! aborted", ". queued",
    ]  # fmt: skip
    assert all(row.isascii() for row in drawn(document, 80, kernel.now, glyphs=ASCII))


def test_a_cell_that_runs_before_it_has_a_number(document: Document, kernel: ScriptedKernel) -> None:
    """Between the status and the repeated input the number is a star."""
    cell = kernel.submit("x")
    kernel.say(cell.msg_id, "status", execution_state="busy")
    assert drawn(document, 80, kernel.now)[0].startswith("[*] x ")


def test_on_a_narrow_screen_words_go_first(document: Document, kernel: ScriptedKernel) -> None:
    """Below 72 columns the signs stand without words, and below 24 the code has all the room."""
    cell = kernel.submit("print('hello world')")
    assert drawn(document, 40, kernel.now) == ["[ ] print('hello world')               ⋯"]
    kernel.begin(cell, 1)
    assert drawn(document, 40, kernel.now + 75) == ["[1] print('hello world')         ▶ 1m15s"]
    assert drawn(document, 14, kernel.now) == ["[1] print('hel", "    lo world')"]
    for width in range(1, 14):
        assert drawn(document, width, kernel.now)


def test_long_code_wraps_under_itself(document: Document, kernel: ScriptedKernel) -> None:
    """A line of code that is too long goes on below, and leaves the time column free on the first row only."""
    kernel.submit("x" * 100 + "\nyy")
    assert drawn(document, 72, kernel.now) == [
        f"[ ] {'x' * 58}  ⋯ queued",
        f"    {'x' * 42}",
        "    yy",
    ]


def test_cells_of_other_clients_say_so(document: Document, kernel: ScriptedKernel) -> None:
    """What another client ran can be told from what was typed here."""
    kernel.say("elsewhere", "execute_input", code="x = 1", execution_count=3)
    (row,) = drawn(document, 80, kernel.now + 1)
    assert re.fullmatch(r"\[3\] x = 1 +from another client +▶   1\.0s", row)


def test_colours_are_the_terminals_own(document: Document, kernel: ScriptedKernel) -> None:
    """Everything that is not the user's output is drawn in sixteen colours, on the terminal's own background."""
    document.notice("a", 1.0)
    document.notice("b", 1.0, Level.WARNING)
    kernel.submit("def f(): return 'x' # y")
    kernel.begin(kernel.submit("@a\nclass B(Exception): pass"))
    document.kernel_died("killed by SIGKILL", 2.0)
    layout = Layout(document, 80)
    layout.update(3.0)
    styles = [segment.style for y in range(layout.height) for segment in layout.line(y) if segment.style]
    assert all(style.bgcolor is None for style in styles)
    assert all(style.color is None or (style.color.number or 0) < 16 for style in styles)
    assert any(style.color for style in styles)


def test_a_traceback_keeps_its_colours(document: Document, kernel: ScriptedKernel) -> None:
    """Escape sequences of a traceback become styles, what looks like markup stays text, and controls are shown."""
    cell = kernel.submit("f[0]")
    trace = ["\x1b[31mIndexError\x1b[39m", "[bold]not markup[/bold] \\[x]", "\x1b]0;title\x07\x1b[2Jend"]
    kernel.say(cell.msg_id, "error", ename="IndexError", evalue="", traceback=trace[:2])
    kernel.display(cell, trace[2])
    layout = Layout(document, 80)
    layout.update(1.0)
    assert rows_of(layout)[1:] == ["    IndexError", "    [bold]not markup[/bold] \\[x]", "    ^[]0;title^G^[[2Jend"]
    assert any(segment.style and segment.style.color for segment in layout.line(1))


def test_a_notice_of_many_lines_is_shown_whole(document: Document) -> None:
    """A reason with several lines, coloured by whoever wrote it, loses nothing but its colours."""
    document.notice("first\n\x1b[31msecond\x1b[0m\n\x1b[2Jthird" + " long" * 10, 1.0)
    document.kernel_died("killed by SIGKILL", 2.0)
    document.notice("", 3.0)
    assert drawn(document, 40, 0.0)[-2:] == ["✗ killed by SIGKILL", "──"]
    assert "".join(drawn(document, 40, 0.0)[:-2]).replace(" ", "").endswith("third" + "long" * 10)


def test_an_error_message_cannot_hide_its_traceback(document: Document, kernel: ScriptedKernel) -> None:
    """Sequences that would erase the screen or move the cursor are shown in a traceback, with all that is above."""
    cell = kernel.submit("f()")
    message = "ValueError: bad \x1b[2J\x1b[3A\x1b[J\rname"
    kernel.say(cell.msg_id, "error", ename="ValueError", evalue="", traceback=["-----", "Traceback", message])
    assert drawn(document, 80, kernel.now)[1:] == [
        "    -----",
        "    Traceback",
        "    ValueError: bad ^[[2J^[[3A^[[J^Mname",
    ]


def test_notices_wrap_between_words(document: Document) -> None:
    """A notice that is longer than a row goes on under its words; only a word longer than a row is cut."""
    document.notice("The kernel was killed by SIGKILL. /a/very/long/path/to/a/file is gone", 1.0, Level.ERROR)
    assert drawn(document, 24, 1.0) == [
        "✗ The kernel was killed",
        "  by SIGKILL.",
        "  /a/very/long/path/to/a",
        "  /file",
        "  is gone",
    ]


def test_outputs_stand_under_the_code(document: Document, kernel: ScriptedKernel) -> None:
    """Outputs and further lines of code begin where the code does, also where a number came after the outputs."""
    ninth, tenth, late = (kernel.submit("if x:\n    y") for _ in range(3))
    for cell, number in ((ninth, 9), (tenth, 10)):
        kernel.begin(cell, number)
        kernel.write(cell, "out\n" + "x" * 45)
        kernel.fail(cell)
    kernel.write(late, "x" * 45)
    layout = Layout(document, 48)
    layout.update(kernel.now)
    before = rows_of(layout)
    assert before[1:6] == ["        y", "    out", f"    {'x' * 44}", "    x", "    ValueError: no"]
    assert before[7:12] == ["         y", "     out", f"     {'x' * 43}", "     xx", "     ValueError: no"]
    assert before[13:] == ["        y", f"    {'x' * 44}", "    x"]
    kernel.begin(late, 100)
    assert layout.update(kernel.now) == [range(12, 16)]
    assert rows_of(layout)[13:] == ["          y", f"      {'x' * 42}", "      xxx"]


def test_joined_emoji_take_the_cells_of_their_parts(document: Document, kernel: ScriptedKernel) -> None:
    """Rows with emoji, flags and skin tones are exactly as wide as their characters one by one, joined or not."""
    text = "🎉👩\u200d👩\u200d👧\u200d👦🇩🇪👍🏽é e\u0301 x" * 8
    cell = kernel.submit(f"print('{text}')")
    kernel.write(cell, text)
    kernel.display(cell, text)
    layout = Layout(document, 80)
    layout.update(kernel.now)
    rows_of(layout)
    for row in (layout.line(y).text for y in range(layout.height)):
        assert (
            sum(0 if combining(character) else 2 if east_asian_width(character) == "W" else 1 for character in row)
            == 80
        )
    assert layout.line(0).text.endswith("⋯ queued")


def test_rows_belong_to_cells(document: Document, kernel: ScriptedKernel) -> None:
    """Each row of a cell, its outputs among them, leads to the cell, and a notice's to none."""
    document.notice("started", 1.0)
    first, second = kernel.submit("a\nb"), kernel.submit("c")
    kernel.write(first, "out\n")
    layout = Layout(document, 80)
    layout.update(1.0)
    assert [layout.cell_at(y) for y in range(-1, 7)] == [None, None, first, first, first, second, None, None]
    assert (layout.rows_of(first), layout.rows_of(second)) == (range(1, 4), range(4, 5))


def test_below_the_last_row_all_is_blank(document: Document) -> None:
    """A row that the document does not have is an empty one of the right width."""
    layout = Layout(document, 20)
    assert layout.update(1.0) == []
    assert layout.height == 0
    assert layout.line(0).text == layout.line(-1).text == " " * 20


def test_a_clock_changes_one_row(document: Document, kernel: ScriptedKernel) -> None:
    """While a cell runs and says nothing, only its first row changes, and only when the time reads differently."""
    kernel.begin(kernel.submit("a\nb"))
    kernel.submit("c")
    layout = Layout(document, 80)
    layout.update(kernel.now + 1.0)
    assert layout.update(kernel.now + 1.01) == []
    assert layout.update(kernel.now + 2.0) == [range(1)]
    assert "2.0s" in layout.line(0).text


def test_output_changes_rows_from_where_it_is(document: Document, kernel: ScriptedKernel) -> None:
    """Text that is added changes what is below it, and a display that is updated in place only itself."""
    first, second = kernel.submit("a"), kernel.submit("b")
    kernel.begin(first)
    kernel.display(first, "0 %", "bar")
    kernel.begin(second)
    layout = Layout(document, 80)
    assert layout.update(kernel.now) == [range(3)]
    kernel.display(first, "1 %", "bar", "update_display_data")
    assert layout.update(kernel.now) == [range(1, 2)]
    kernel.write(second, "x\n")
    assert layout.update(kernel.now) == [range(3, 4)]
    kernel.write(first, "x\n")
    assert layout.update(kernel.now) == [range(2, 5)]
    kernel.clear(first)
    assert layout.update(kernel.now) == [range(1, 5)]
    assert rows_of(layout)[2] == "    x"


def test_only_the_end_of_a_stream_changes(document: Document, kernel: ScriptedKernel) -> None:
    """Of a long stream only the rows that are not final are drawn anew."""
    cell = kernel.submit("a")
    kernel.write(cell, "".join(f"{n}\n" for n in range(10_000)))
    layout = Layout(document, 80)
    layout.update(kernel.now)
    kernel.write(cell, "more\n")
    (changed,) = layout.update(kernel.now)
    assert changed.stop == layout.height == 10_002
    assert changed.start > 9_000
    assert rows_of(layout)[1:] == [*(f"    {n}" for n in range(10_000)), "    more"]


TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "x" * 50,
            "漢字漢字漢字漢字",
            "a\nb\n",
            "\r",
            "\x1b[A",
            "\x1b[31mred",
            "\x1b[2J",
            "\n" * 3,
            "e\u0301\n",
            "🇩🇪👍🏽",
            "two words",
        ]
    ),
    st.sampled_from([10, 60, 300]).map(lambda count: "line\n" * count),
)
STEPS = st.one_of(
    st.tuples(st.just("submit"), TEXT),
    st.tuples(st.sampled_from(["write", "late"]), TEXT),
    st.tuples(st.sampled_from(["display", "shared", "update", "fail", "notice"]), TEXT),
    st.tuples(st.sampled_from(["begin", "clear", "clear later", "end", "abort", "die", "wait"]), st.just("")),
    st.tuples(st.just("foreign"), TEXT),
)


def take(kernel: ScriptedKernel, step: str, text: str) -> None:
    """Let one thing happen to the document."""
    document = kernel.document
    last = document.cells[-1] if document.cells else kernel.submit("first")
    actions: dict[str, Any] = {
        "submit": lambda: kernel.submit(text),
        "begin": lambda: kernel.begin(last, len(document.cells) * 7),
        "write": lambda: kernel.write(last, text),
        "late": lambda: kernel.write(document.cells[0], text, "stderr"),
        "display": lambda: kernel.display(last, text),
        "shared": lambda: kernel.display(last, text, "shared"),
        "update": lambda: kernel.display(last, text, "shared", "update_display_data"),
        "fail": lambda: kernel.fail(last, "E", text),
        "notice": lambda: document.notice(text, kernel.now),
        "clear": lambda: kernel.clear(last),
        "clear later": lambda: kernel.clear(document.cells[0], wait=True),
        "end": lambda: kernel.end(last),
        "abort": lambda: kernel.reply(last, "aborted"),
        "die": lambda: document.kernel_died(text, kernel.now),
        "wait": lambda: None,
        "foreign": lambda: kernel.say(f"foreign {text}", "execute_input", code=text, execution_count=1),
    }
    actions[step]()
    kernel.now += 0.7


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=15), st.integers(1, 100), st.integers(1, 100))
def test_looking_at_every_step_or_once_is_the_same(
    steps: list[tuple[tuple[str, str], bool]], width: int, other: int
) -> None:
    """A layout that follows the changes tells all rows that are others now, and shows what one from scratch shows."""
    kernel = ScriptedKernel(Document())
    layout = Layout(kernel.document, other)
    screen: list[str] = []
    for (step, text), looks in steps:
        take(kernel, step, text)
        if looks:
            layout.resize(width)
            changed = {y for rows in layout.update(kernel.now) for y in rows}
            before, screen = screen, rows_of(layout)
            differ = {y for y, row in enumerate(screen) if y >= len(before) or before[y] != row}
            assert differ | set(range(len(screen), len(before))) <= changed
    layout.resize(width)
    layout.update(kernel.now)
    screen = rows_of(layout)
    assert screen == drawn(kernel.document, width, kernel.now)
    assert not any(CONTROL.search(row) for row in screen)
    assert [layout.cell_at(y) is None for y in range(layout.height)].count(False) == sum(
        len(layout.rows_of(cell)) for cell in kernel.document.cells
    )
