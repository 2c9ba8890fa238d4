"""The small terminal: what a stream's chunks look like as lines."""

from __future__ import annotations

import re

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cobnut.model.ansi import LAST_COLUMN, LONGEST_LINE, REACH, AnsiScreen
from cobnut.model.lines import PAGE, Line, plain, spans
from cobnut.model.styles import BOLD, ITALIC, TRUECOLOR, UNDERLINE, Style

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def lines_of(*chunks: str) -> list[Line]:
    """Feed chunks to a screen, and give its lines."""
    screen = AnsiScreen()
    for chunk in chunks:
        screen.feed(chunk)
    return list(screen)


def text_of(*chunks: str) -> list[str]:
    """Feed chunks to a screen, and give its lines without their styles."""
    return [plain(line) for line in lines_of(*chunks)]


def styled(text: str) -> list[tuple[str, Style]]:
    """Feed one line to a screen, and give its pieces."""
    (line,) = lines_of(text)
    return [(piece, Style.from_code(code)) for piece, code in spans(line)]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\n\n", ["a", ""]),
        ("\n", [""]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("12345\rab", ["ab345"]),
        ("10%\r20%\r100%\n", ["100%"]),
        ("abc\b\bX", ["aXc"]),
        ("\b\bX", ["X"]),
        ("a\tb\tc", ["a       b       c"]),
        ("12345678\tb", ["12345678        b"]),
        ("abcdefghij\r\tX", ["abcdefghXj"]),
        ("a\vb\fc", ["a", "b", "c"]),
        ("bell\a\0end", ["bellend"]),
        ("soft\xadhyphen\ufeff\u200b", ["softhyphen"]),
        ("left\u202eright", ["left<U+202E>right"]),
        ("half \ud83d", ["half \ufffd"]),
    ],
)
def test_plain_controls(output: str, lines: list[str]) -> None:
    """Carriage return, backspace, tab and line feed do what they do on a terminal; other controls are not shown."""
    assert text_of(output) == lines


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("one\ntwo\x1b[A\rONE", ["ONE", "two"]),
        ("one\ntwo\x1b[1Fx", ["xne", "two"]),
        ("one\ntwo\x1b[A\x1b[BX", ["one", "twoX"]),
        ("one\x1b[5Cx", ["one     x"]),
        ("one\x1b[2Dx", ["oxe"]),
        ("one\x1b[2Gx", ["oxe"]),
        ("one\n\n\x1b[1;2Hx", ["oxe", ""]),
        ("one\x1b[3dx", ["one", "", "   x"]),
        ("one\x1b[99A\x1b[99Dx", ["xne"]),
        ("one\x1b[2Ex", ["one", "", "x"]),
        ("one\x1b[9B", ["one"]),
        ("one\x1b7\ntwo\x1b8X", ["oneX", "two"]),
        ("one\x1b[s\rx\x1b[uY", ["xneY"]),
        ("one\ntwo\x1bMx", ["onex", "two"]),
        ("one\ntwo\x1b[2F\x1b[2Gx\n", ["oxe", "two"]),
    ],
)
def test_cursor_movement(output: str, lines: list[str]) -> None:
    """The cursor goes where a terminal's would, and moving it alone adds no line."""
    assert text_of(output) == lines


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("12345\r\x1b[K", []),
        ("12345\x1b[2D\x1b[K", ["123"]),
        ("12345\x1b[3D\x1b[1K", ["   45"]),
        ("12345\x1b[2Kx", ["     x"]),
        ("12345\x1b[2K\rx", ["x"]),
        ("one\ntwo\nthree\x1b[2A\x1b[2G\x1b[J", ["o"]),
        ("one\ntwo\nthree\x1b[1Jx", ["", "", "     x"]),
        ("one\ntwo\x1b[2J\x1b[Hnew", ["new"]),
        ("one\ntwo\x1b[2J\x1b[H", []),
        ("one\x1b[3J", ["one"]),
        ("frame 1\x1b[H\x1b[Jframe 2", ["frame 2"]),
        ("one\x1bcnew", ["new"]),
    ],
)
def test_erasing(output: str, lines: list[str]) -> None:
    """Erasing in a line and on the screen leaves what a terminal would leave; what scrolled out is never erased."""
    assert text_of(output) == lines


def test_a_progress_bar_is_one_line() -> None:
    """The updates of a progress bar, each after a carriage return, overwrite one another."""
    bar = [f"\r{percent:3}%|{'█' * (percent // 10):10}| {percent}/100" for percent in range(0, 101, 10)]
    assert text_of(*bar, "\n", "done\n") == ["100%|██████████| 100/100", "done"]


def test_a_bar_that_is_not_left_disappears() -> None:
    """A progress bar that is wiped with blanks leaves no line behind."""
    wiped = "\r50%|████      |", "\r" + " " * 20 + "\r"
    assert text_of(*wiped) == []
    assert text_of(*wiped, "next") == ["next"]


def test_nested_bars_stay_in_their_lines() -> None:
    """Bars under one another, reached by cursor-up as tqdm does it, each keep their line."""
    chunks: list[str] = []
    for outer in range(3):
        chunks.append(f"\router {outer}")
        chunks += [f"\n\rinner {inner}\x1b[A" for inner in range(4)]
    assert text_of(*chunks) == ["outer 2", "inner 3"]


def test_a_live_table_replaces_itself() -> None:
    """A display of several lines that moves up and erases each of them, as rich does, is shown once."""
    frame = "total {n}\nrow {n}\nrow {n}\n"
    wipe = "\r\x1b[1A\x1b[2K" * 3
    assert text_of(*((wipe if n else "") + frame.format(n=n) for n in range(5))) == ["total 4", "row 4", "row 4"]


@pytest.mark.parametrize(
    ("sgr", "style"),
    [
        ("1", Style(attributes=BOLD)),
        ("1;3;4", Style(attributes=BOLD | ITALIC | UNDERLINE)),
        ("31", Style(foreground=1)),
        ("92;100", Style(foreground=10, background=8)),
        ("38;5;208", Style(foreground=208)),
        ("48;5;17;1", Style(background=17, attributes=BOLD)),
        ("38;2;1;2;3", Style(foreground=TRUECOLOR | 0x010203)),
        ("38:2::1:2:3", Style(foreground=TRUECOLOR | 0x010203)),
        ("4:3", Style(attributes=UNDERLINE)),
        ("1;4;24", Style(attributes=BOLD)),
        ("31;39;44;49", Style()),
        ("31;0;4", Style(attributes=UNDERLINE)),
        ("", Style()),
        ("38;5", Style()),
        ("38;2;300;0;0", Style()),
        ("4:0;5;8;99;38;7;1", Style(attributes=BOLD)),
    ],
)
def test_styles(sgr: str, style: Style) -> None:
    """Colours and attributes are understood in all their spellings, and what is none of them changes nothing."""
    assert styled(f"\x1b[{sgr}mtext") == [("text", style)]


def test_a_style_holds_until_it_is_reset() -> None:
    """A style goes on over line feeds and chunks, and overwritten text takes the style of what overwrites it."""
    first, second, third = lines_of("\x1b[31mone\n", "two\nthree\x1b[0m\rTH")
    assert spans(first) == [("one", Style(foreground=1).code)]
    assert spans(second) == [("two", Style(foreground=1).code)]
    assert spans(third) == [("TH", ""), ("ree", Style(foreground=1).code)]


def test_a_hyperlink_is_a_style() -> None:
    """The text of an OSC 8 link carries its address, however the command is ended, and resetting styles keeps it."""
    text = "\x1b]8;id=1;https://a.b/c;d\x1b\\x\x1b[1my\x1b[0mz\x1b]8;;\a!"
    link = "https://a.b/c;d"
    assert styled(text) == [
        ("x", Style(link=link)),
        ("y", Style(link=link, attributes=BOLD)),
        ("z", Style(link=link)),
        ("!", Style()),
    ]


@pytest.mark.parametrize(
    "address", ["javascript:x", "file:///etc/passwd", "ssh://-oProxyCommand=x", "https://a\x85b", ""]
)
def test_only_links_to_the_web_and_to_mail_are_kept(address: str) -> None:
    """A link that could do something else when it is followed is shown as its text only."""
    (line,) = lines_of(f"\x1b]8;;{address}\x1b\\text\x1b]8;;\x1b\\")
    assert spans(line) == [("text", "")]


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[?25l", "\x1b[?1049h", "\x1b[>4;2m", "\x1b[6n", "\x1b[c", "\x1b[5 q", "\x1b[!p", "\x1b(B", "\x1b=",
        "\x1b#8", "\x1b]0;title\a", "\x1b]0;title\x1b\\", "\x1b]52;c;Zm9v\a", "\x1b]1337;File=:AAAA\a",
        "\x1bPq#0;2;0;0;0~~\n~~\x1b\\", "\x1b_Gf=100;AAAA\x1b\\", "\x1b^private\x1b\\", "\x1bXstring\x1b\\",
        "\x9d0;title\x9c", "\x1b_x\x18", "\x9b31m\x9b0m", "\x1bPtmux;\x1b\x1b[31m", "\x05", "\x0e", "\x7f",
    ],
)  # fmt: skip
def test_other_sequences_are_dropped(sequence: str) -> None:
    """Sequences that would ask, switch or paint something of the real terminal leave nothing behind."""
    assert text_of(f"a{sequence}b") == ["ab"]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("a\x1b[3\nb", ["a[3", "b"]),
        ("a\x1b]0;never ended\nb", ["a", "b"]),
        ("a\x1b" + "[" + "1" * 70 + "mb", ["a[" + "1" * 70 + "mb"]),
        ("a\x1b漢", ["a漢"]),
        ("a\x1b[31", ["a"]),
        ("a\x1b]8;;https://a", ["a"]),
    ],
)
def test_what_is_no_sequence_swallows_no_more_than_its_line(output: str, lines: list[str]) -> None:
    """The rest of a sequence that is none is shown without its escape; one that is not complete waits."""
    assert text_of(output) == lines


def test_a_string_that_nobody_ends_is_given_up() -> None:
    """After so many characters as no picture has, output is shown again."""
    screen = AnsiScreen()
    screen.feed("a\x1bP")
    for _ in range(9):
        screen.feed("x" * (1 << 20))
    screen.feed("\nb")
    assert plain(list(screen)[-1]) == "b"


def test_wide_characters_take_two_columns() -> None:
    """Moving into a wide character and writing there blanks its other half, as terminals do."""
    assert text_of("漢字\b\bx") == ["漢x"]
    assert text_of("漢字\r\x1b[1Cx") == [" x字"]
    assert text_of("漢字\rab") == ["ab字"]
    assert text_of("漢字\ra") == ["a 字"]
    assert text_of("漢字\r\x1b[1C\x1b[K") == []
    assert text_of("👍🏽x\rab") == ["abx"]  # a skin tone, which is not drawn, takes no cells


def test_combining_marks_stay_with_their_character() -> None:
    """A mark belongs to the character before it, also where it comes in another chunk, or over other text."""
    assert text_of("e", "\u0301x\rE") == ["Ex"]
    assert text_of("abc\re\u0301") == ["e\u0301bc"]
    assert text_of("abc\re", "\u0301") == ["e\u0301bc"]
    assert text_of("x\r\u0301") == ["x"]


def test_marks_without_end_are_cut() -> None:
    """A character that is overwritten keeps a few marks, however many come."""
    assert len(text_of("ab\re" + "\u0301" * 1000)[0]) < 20


def test_one_line_is_never_the_whole_output() -> None:
    """A line of excessive length is broken, in whatever chunks it comes, and loses nothing."""
    text = "0123456789" * (LONGEST_LINE // 5)
    for lines in (text_of(text), text_of(*re.findall(".{1,1000}", text)), text_of("\r" + text), text_of("x\r" + text)):
        assert "".join(lines) == text
        assert max(map(len, lines)) == LONGEST_LINE
    assert "".join(text_of("x\r", "漢" * LONGEST_LINE)) == "漢" * LONGEST_LINE


def test_a_cursor_sent_far_away_costs_little() -> None:
    """However far a program sends the cursor, the line and the screen stay of a size that can be handled."""
    (line,) = text_of("\x1b[999999999Cx")
    assert len(line) == LAST_COLUMN + 1
    assert len(text_of("\x1b[999999999Bx")) == REACH
    assert len(text_of("\x1b[999999999;999999999Hx")) == REACH


def test_the_cursor_reaches_no_further_than_the_screen() -> None:
    """Lines further up than the screen is high stay as they are, whatever a program does."""
    numbers = [str(n) for n in range(1000)]
    lines = text_of("\n".join(numbers), "\x1b[999A\r", "top", "\x1b[2J\x1b[Hx")
    assert lines[: 1000 - REACH] == numbers[: 1000 - REACH]
    assert lines[1000 - REACH :] == ["x"]


def test_finished_lines_stay_the_same() -> None:
    """A page of the store, once full, is never another one."""
    screen = AnsiScreen()
    pages: list[list[str]] = []
    for number in range(40):
        screen.feed("".join(f"{number} {row}\n" for row in range(400)) + "\x1b[500A\x1b[Jcleared\n")
        log = screen.finished
        assert [log.page(index) for index in range(len(pages))] == pages
        pages = [list(log.page(index)) for index in range(len(log.bounds))]
    assert pages
    assert {len(page) for page in pages} == {PAGE}


def test_a_page_is_no_wider_than_its_bound() -> None:
    """The bound of a page holds for wide characters and coloured lines too."""
    screen = AnsiScreen()
    screen.feed("".join(f"{'漢' * (row % 30)}\x1b[3{row % 8}mtext\x1b[0m\n" for row in range(2000)))
    for number, bound in enumerate(screen.finished.bounds):
        assert all(len(plain(line)) + line.count("漢") <= bound for line in screen.finished.page(number))


# Any text at all, and text that is mostly what terminals are told.

PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["abc", "漢字", "e\u0301", "👩\u200d🚀", "█▌", "x" * 30, "word word "]),
    st.sampled_from(["\n", "\n", "\r", "\r\n", "\b", "\t", "\n" * 30, "\v"]),
    st.sampled_from(["\x1b[31m", "\x1b[1;38;5;99m", "\x1b[0m", "\x1b[m", "\x1b[48;2;1;2;3m", "\x9b4m"]),
    st.sampled_from(["\x1b]8;;https://a.b\x1b\\", "\x1b]8;;\a", "\x1b]0;t\a", "\x1bPdata\nmore\x1b\\", "\x1b[?25h"]),
    st.sampled_from(["\x1b", "\x1b[", "\x1b[3", "\x1b]8;", "\x1b]", "\x1bP", "\x9c", "\x18", "\ud800"]),
    st.builds("\x1b[{}{}".format, st.integers(0, 300), st.sampled_from("ABCDEFGJKd")),
    st.builds("\x1b[{};{}H".format, st.integers(0, 30), st.integers(0, 30)),
    st.sampled_from(["\x1b7", "\x1b8", "\x1b[s", "\x1b[u", "\x1bM", "\x1bD", "\x1bc"]),
)
OUTPUT = st.lists(PIECES, max_size=20).map("".join)


@settings(deadline=None)
@given(OUTPUT)
@example("\x1b]8;;https://a.b\x1b\\x\x1b[38;5;9my\x1b[0m\r\n漢字\b\te\u0301\x1b[1A\x1bPq\x1b\\")
def test_chunks_make_no_difference(output: str) -> None:
    """However output is cut into chunks, at every position and into single characters, the lines are the same."""
    whole = lines_of(output)
    assert lines_of(*output) == whole
    for position in range(len(output)):
        assert lines_of(output[:position], output[position:]) == whole


@settings(deadline=None)
@given(st.lists(OUTPUT, max_size=4))
def test_looking_makes_no_difference(chunks: list[str]) -> None:
    """Reading the lines between chunks changes nothing of what comes later."""
    screen = AnsiScreen()
    for chunk in chunks:
        screen.feed(chunk)
        list(screen)
    assert list(screen) == lines_of(*chunks)


@settings(deadline=None)
@given(OUTPUT)
def test_lines_hold_no_control_characters(output: str) -> None:
    """Nothing that could move a terminal's cursor or switch it is left in the text of a line, nor half a character."""
    for line in lines_of(output):
        for text, _ in spans(line):
            assert not CONTROL.search(text)


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536])
def test_long_output_is_the_same_in_any_chunks(size: int) -> None:
    """Thousands of lines, plain and coloured, with tabs and progress in between, do not depend on their chunks."""
    rows = [f"\x1b[3{n % 8}mlevel {n}\x1b[0m\tmessage {'漢' * (n % 3)}\n" for n in range(1500)]
    rows[400:600] = [f"plain {n}\r\n" for n in range(200)]
    rows[900:920] = [f"\r{n}%" for n in range(20)]
    rows[1000] = "\x1b[5Aup\x1b[J\x1b[1m\n"
    output = "".join(rows)
    assert lines_of(*(output[start : start + size] for start in range(0, len(output), size))) == lines_of(output)


MOVES = st.one_of(
    st.sampled_from(["abc", "x", "hello world", "    ", "\n", "\r", "\r\n", "\b"]),
    st.builds("\x1b[{}{}".format, st.integers(0, 12), st.sampled_from("ABCDEFGd")),
    st.builds("\x1b[{}{}".format, st.integers(0, 2), st.sampled_from("JK")),
    st.builds("\x1b[{};{}H".format, st.integers(0, 12), st.integers(0, 40)),
    st.builds("\x1b7{}\x1b[2B\x1b8".format, st.sampled_from(["", "ab", "\r", "\x1b[A"])),
)


@settings(deadline=None)
@given(st.lists(MOVES, max_size=25).map("".join))
def test_it_shows_what_another_terminal_shows(output: str) -> None:
    """For text, cursor movement and erasing, the screen is that of another emulator with as many rows."""
    peer = pyte.Screen(columns=400, lines=REACH)
    peer.set_mode(pyte.modes.LNM)
    pyte.Stream(peer).feed(output)
    shown = {y: text for y in peer.buffer if (text := row_of(peer, y))}
    ours = dict(enumerate(line.rstrip() for line in text_of(output)))
    assert {y: text for y, text in ours.items() if text} == shown


def row_of(peer: pyte.Screen, y: int) -> str:
    """Give the text of one row of the other terminal."""
    row = peer.buffer[y]
    return "".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip()
