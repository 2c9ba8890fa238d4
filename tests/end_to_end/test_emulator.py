"""The emulator shows and answers what a plain xterm would."""

from __future__ import annotations

import pytest

from .emulator import Emulator


def emulator(*written: str, columns: int = 20, lines: int = 4) -> Emulator:
    """Return an emulator that was fed these strings."""
    emulator = Emulator(columns, lines)
    for data in written:
        emulator.feed(data.encode())
    return emulator


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("\x1b[c", "\x1b[?64;1;2;6;9;15;16;17;18;21;22;28c"),
        ("\x1b[>c", "\x1b[>41;370;0c"),
        ("\x1b[5n", "\x1b[0n"),
        ("ab\r\n\x1b[6n", "\x1b[2;1R"),
        ("x" * 20 + "\x1b[6n", "\x1b[1;20R"),
        ("\x1b[?6n", "\x1b[?1;1R"),
        ("\x1b[?2004$p", "\x1b[?2004;2$y"),
        ("\x1b[?2004h\x1b[?2004$p", "\x1b[?2004;1$y"),
        ("\x1b[?2026$p", "\x1b[?2026;0$y"),
        ("\x1b[>q", "\x1bP>|XTerm(370)\x1b\\"),
        ("\x1b[18t", "\x1b[8;4;20t"),
        ("\x1b]11;?\x07", "\x1b]11;rgb:0000/0000/0000\x1b\\"),
        ("\x1bP$qm\x1b\\", "\x1bP0$r\x1b\\"),
        ("\x1b[?u", ""),
        ("\x1b_Gi=1,a=q;AAAA\x1b\\", ""),
    ],
)
def test_questions_are_answered_as_a_plain_xterm_does(question: str, answer: str) -> None:
    """Reports, modes and sizes get xterm's answer, and the protocols of other terminals none."""
    assert Emulator(20, 4).feed(question.encode()) == answer.encode()


def test_a_question_is_answered_however_it_is_cut() -> None:
    """Every byte may come alone: the answer comes with the last one, and nothing of the question is shown."""
    terminal = Emulator(20, 4)
    answers = [terminal.feed(bytes([byte])) for byte in "é\x1b[6n".encode()]
    assert answers == [b"", b"", b"", b"", b"", b"\x1b[1;2R"]
    assert terminal.screen.text_lines[0] == "é"


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[>4;2m",
        "\x1b[>1u",
        "\x1b[<u",
        "\x1b[=1;1u",
        "\x1b[?2026h",
        "\x1b[4 q",
        "\x1b[!p",
        "\x1b[4:3m",
        "\x1b[58;5;4m",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1bPq#0;2\x1b\\",
        "\x1b_Ga=T;AAAA\x1b\\",
        "\x1b(B",
        "\x1b=",
        "\x1b>",
        "\x0e",
    ],
)
def test_sequences_leave_nothing_on_the_screen(sequence: str) -> None:
    """What pyte prints or takes for a colour is swallowed, whole and cut in two at every place."""
    for cut in range(len(sequence) + 1):
        screen = emulator("a" + sequence[:cut], sequence[cut:] + "\x1b[0mb").screen
        assert screen.text_lines == ["ab", "", "", ""]
        assert screen.buffer[0][1].fg == "default"
        assert not screen.buffer[0][1].blink


def test_a_broken_escape_costs_only_itself() -> None:
    """After an escape that nothing can follow, the next one is understood."""
    assert emulator("a\x1b\x1b[1mb\x1b\x07c").screen.text_lines[0] == "abc"


@pytest.mark.parametrize("colour", ["38;2;58;4;7", "38:2::58:4:7", "38;2;58;4;7;58;2;9;9;9"])
def test_true_colours_are_read_in_every_spelling(colour: str) -> None:
    """Semicolons, colons, and beside a colour of the underline."""
    assert emulator(f"\x1b[{colour}mx").screen.buffer[0][0].fg == "3a0407"


def test_text_without_width_does_not_swallow_what_follows() -> None:
    """An emoji's variation selector and joiner are left out, an accent joins its letter, wide ones take two."""
    assert emulator("a\ufe0fb\u200dc e\u0301 語x").screen.text_lines[0] == "abc é 語x"


def test_the_alternate_screen_gives_the_main_one_back() -> None:
    """What stood there, the cursor and its colour are as before."""
    screen = emulator("one\x1b[31m", "\x1b[?1049h\x1b[Htwo\x1b[0m", "\x1b[?1049lx").screen
    assert screen.text_lines[0] == "onex"
    assert screen.buffer[0][3].fg == "red"


def test_the_alternate_screen_starts_empty() -> None:
    """Nothing of the main screen is seen through it."""
    assert emulator("one\x1b[?1049h").screen.text_lines == [""] * 4


def test_scrolling_moves_the_lines_between_the_margins() -> None:
    """SU and SD move these lines alone, and leave the cursor where it was."""
    screen = emulator("1\r\n2\r\n3\r\n4\x1b[2;3r\x1b[4;2H\x1b[S").screen
    assert screen.text_lines == ["1", "3", "", "4"]
    assert (screen.cursor.y, screen.cursor.x) == (3, 1)
    assert emulator("1\r\n2\r\n3\r\n4\x1b[2T").screen.text_lines == ["", "", "1", "2"]


def test_repetition_draws_the_last_character_again() -> None:
    """REP with a count."""
    assert emulator("ab\x1b[3b").screen.text_lines[0] == "abbbb"


def test_modes_say_what_the_program_set() -> None:
    """A terminal left as it was found has wrapping and the cursor, and nothing else."""
    assert emulator("\x1b[?1049;2004h\x1b[?25l").modes == {7, 1049, 2004}
    assert emulator("\x1b[?1049;2004h\x1b[?25l\x1b[?1049;2004l\x1b[?25h").modes == {7, 25}
    assert emulator("\x1b[?2004h\x1bc").modes == {7, 25}


def test_resize_keeps_the_text() -> None:
    """Lines that still fit stay."""
    terminal = emulator("hello\r\nworld")
    terminal.resize(10, 6)
    assert terminal.screen.text_lines == ["hello", "world", "", "", "", ""]
