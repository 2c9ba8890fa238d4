"""Bytes become keys, however a line splits or joins them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from textual import events

from cobnut.terminal.keys import ESCAPE_DELAY, SEQUENCE_DELAY, KeyReader, escaped_character

if TYPE_CHECKING:
    from textual.message import Message


def names(found: list[Message]) -> list[str]:
    """Name what was found: keys by their name, everything else by its class."""
    return [event.key if isinstance(event, events.Key) else type(event).__name__ for event in found]


def read(*reads: bytes, apart: float = 0.0) -> list[str]:
    """Feed some reads, `apart` seconds from each other, with every tick that is due; name what comes of them."""
    reader, now = KeyReader(), 100.0
    found: list[Message] = []
    for data in reads:
        found += reader.feed(data, now)
        found += tick_until(reader, now + apart)
        now += apart
    return names(found + tick_until(reader, now + 10))


def tick_until(reader: KeyReader, end: float) -> list[Message]:
    """Let time pass until `end`, as the reading thread does."""
    found: list[Message] = []
    while reader.deadline is not None and reader.deadline <= end:
        found += reader.tick(reader.deadline)
    return found


@pytest.mark.parametrize("character", "123456789")
def test_escape_and_a_digit_in_one_read_are_one_key(character: str) -> None:
    """`ESC 1` in one read is `alt+1`, and never a printable character."""
    (key,) = KeyReader().feed(b"\x1b" + character.encode(), 0)
    assert isinstance(key, events.Key)
    assert (key.key, key.character, key.is_printable) == (f"alt+{character}", None, False)


@pytest.mark.parametrize(
    ("character", "name"),
    [
        (".", "full_stop"),
        (",", "comma"),
        (";", "semicolon"),
        ("/", "slash"),
        ("0", "0"),
        ("i", "i"),
        ("?", "question_mark"),
    ],
)
def test_escape_and_a_printable_keep_both(character: str, name: str) -> None:
    """Stock Textual types `.` for alt+. and so changes the text; here the Esc stays, with what follows it."""
    (key,) = names(KeyReader().feed(b"\x1b" + character.encode(), 0))
    assert key == f"alt+{name}"
    assert escaped_character(key) == character


def test_escape_and_a_capital_keeps_the_capital() -> None:
    """`ESC S` is alt+shift+s, and the character behind its Esc is S."""
    assert read(b"\x1bS") == ["alt+shift+s"]
    assert escaped_character("alt+shift+s") == "S"


@pytest.mark.parametrize(("data", "keys"), [(b"\x1b\x11", ["escape", "ctrl+q"]), (b"\x1b\r", ["alt+enter"])])
def test_escape_and_a_control_key_in_one_read_are_two_keys(data: bytes, keys: list[str]) -> None:
    """Whoever closes a popup and quits quickly means both; only Alt+Enter is a key of its own."""
    assert read(data) == keys


@pytest.mark.parametrize("key", ["a", "escape", "alt+enter", "alt+ctrl+a", "alt+left", "ctrl+c", "f1"])
def test_keys_that_are_no_escaped_character(key: str) -> None:
    """Only Esc and one printable character count as a command."""
    assert escaped_character(key) is None


@pytest.mark.parametrize(("apart", "expected"), [(0.005, ["alt+1"]), (0.05, ["alt+1"]), (0.3, ["escape", "1"])])
def test_escape_and_a_digit_in_two_reads(apart: float, expected: list[str]) -> None:
    """Split by little they are one key, by more Esc and the digit; the digit is never lost or changed."""
    assert read(b"\x1b", b"1", apart=apart) == expected


def test_a_lone_escape_is_a_key_after_the_delay() -> None:
    """An Esc with nothing behind it waits as long as ESCDELAY says, and no longer."""
    reader = KeyReader()
    assert reader.feed(b"\x1b", 5.0) == []
    assert reader.deadline == 5.0 + ESCAPE_DELAY
    assert reader.tick(reader.deadline - 0.001) == []
    assert names(reader.tick(reader.deadline)) == ["escape"]
    assert reader.deadline is None


def test_two_escapes_and_what_follows() -> None:
    """Esc Esc is two keys; Esc before an arrow key is Esc and the arrow."""
    assert read(b"\x1b\x1b") == ["escape", "escape"]
    assert read(b"\x1b\x1b[A") == ["escape", "up"]
    assert read(b"\x1bi\x1bi") == ["alt+i", "alt+i"]


def test_type_ahead_behind_a_command_is_kept_in_order() -> None:
    """A command and what is typed behind it may arrive in one read."""
    assert read(b"\x1b2x=1\r") == ["alt+2", "x", "equals_sign", "1", "enter"]


SEQUENCES = {
    b"\x1b[A": ["up"],
    b"\x1b[1;5C": ["ctrl+right"],
    b"\x1b[5~": ["pageup"],
    b"\x1b[24~": ["f12"],
    b"\x1b[Z": ["shift+tab"],
    b"\x1bOP": ["f1"],
    b"\x1bOH": ["home"],
    b"\x1b[[A": ["f1"],
    b"\x1b[27u": ["escape"],
    b"\x1b[49;3u": ["alt+1"],
    b"\x1b[13;5u": ["ctrl+enter"],
    b"\x1b[I": ["AppFocus"],
    b"\x1b[O": ["AppBlur"],
    b"\x1b[5;7R": ["CursorPosition"],
    b"\x1b[<0;3;4M": ["MouseDown"],
    b"\x1b[<65;3;4M": ["MouseScrollDown"],
    b"\x1b[200~a\x1b[201~": ["Paste"],
}


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_whole_sequences(sequence: bytes) -> None:
    """Cursor keys, function keys, focus, mouse, pastes: with text around them all arrive, and only they."""
    assert read(b"x" + sequence + b"y") == ["x", *SEQUENCES[sequence], "y"]


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("apart", [0.005, 0.08])
def test_sequences_byte_by_byte(sequence: bytes, apart: float) -> None:
    """A line that delivers every byte alone changes nothing."""
    single = [bytes([byte]) for byte in sequence]
    reader, now = KeyReader(), 0.0
    found: list[Message] = []
    for byte in single:
        found += tick_until(reader, now) + reader.feed(byte, now)
        now += apart / len(single)  # the whole takes less than a sequence may
    assert names(found) == SEQUENCES[sequence]


def test_a_sequence_torn_behind_its_bracket_still_arrives() -> None:
    """`ESC [` and, 300 ms later, `A` is the up key: stock Textual types `[` and `A`."""
    assert read(b"\x1b[", b"A", apart=0.3) == ["up"]


def test_a_sequence_torn_behind_its_escape_types_nothing() -> None:
    """`ESC` and, 200 ms later, `[A` is Esc and up: never letters."""
    assert read(b"\x1b", b"[A", apart=0.2) == ["escape", "up"]


def test_a_sequence_that_never_ends_is_dropped() -> None:
    """A sequence broken off by the line leaves nothing behind, and the next keys are theirs."""
    reader = KeyReader()
    assert reader.feed(b"\x1b[1;", 0.0) == []
    assert reader.tick(SEQUENCE_DELAY) == []
    assert names(reader.feed(b"ab", 1.0)) == ["a", "b"]
    assert read(b"\x1b[1;\rz") == ["enter", "z"]


def test_what_goes_on_and_on_gets_no_more_time() -> None:
    """A string that never ends swallows half a second of keys, not all that follow."""
    reader, now = KeyReader(), 0.0
    reader.feed(b"\x1b]1", now)
    found: list[Message] = []
    while now < 2:
        now += 0.1
        found += reader.tick(now) + reader.feed(b"x", now)
    assert len(names(found)) > 10


@pytest.mark.parametrize("character", "[O]P_")
def test_escape_and_the_first_byte_of_a_sequence(character: str) -> None:
    """Esc and one of these is a command too, if nothing follows in time."""
    assert escaped_character(read(b"\x1b" + character.encode())[0]) == character


@pytest.mark.parametrize(
    "reply",
    [
        b"\x1b[?62;22c",
        b"\x1b[>1;10;0c",
        b"\x1b[0n",
        b"\x1b[?2027;0$y",
        b"\x1b[?15u",
        b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07",
        b"\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\",
        b"\x1bP>|tmux 3.3a\x1b\\",
        b"\x1bP1$r0m\x1b\\",
        b"\x1b_Gi=31;OK\x1b\\",
    ],
)
def test_replies_of_the_terminal_are_never_typed(reply: bytes) -> None:
    """What a terminal answers to somebody's question types nothing, whole or split anywhere."""
    assert read(reply + b"k") == ["k"]
    for cut in range(2, len(reply)):
        assert read(reply[:cut], reply[cut:] + b"k", apart=0.01) == ["k"]


def test_a_paste_is_one_event_with_plain_line_ends() -> None:
    """A terminal sends a return for every line end of a paste; the text gets newlines, and no NUL."""
    (paste,) = KeyReader().feed(b"\x1b[200~a\r\nb\rc\0d\n\x1b[201~", 0)
    assert isinstance(paste, events.Paste)
    assert paste.text == "a\nb\ncd\n"


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_paste_may_be_split_anywhere(cut: int) -> None:
    """Neither the text nor the end of a paste depends on where the reads are cut."""
    data = b"\x1b[200~a\x1b[20\x1b[201x\xc3\xa9\x1b[201~z"
    reader = KeyReader()
    found = reader.feed(data[:cut], 0.0) + reader.feed(data[cut:], 9.0)
    paste, key = found
    assert isinstance(paste, events.Paste)
    assert paste.text == "a\x1b[20\x1b[201xé"
    assert names([key]) == ["z"]


def test_a_large_paste_in_many_reads() -> None:
    """Two thousand lines in pieces of 4 kB are one paste."""
    text = "".join(f"value_{number} = {number}\n" for number in range(2000))
    data = b"\x1b[200~" + text.replace("\n", "\r").encode() + b"\x1b[201~"
    reader = KeyReader()
    found = [event for start in range(0, len(data), 4096) for event in reader.feed(data[start : start + 4096], 0.0)]
    assert [event.text for event in found if isinstance(event, events.Paste)] == [text]
    assert len(found) == 1


def test_characters_of_several_bytes_may_be_split() -> None:
    """Half of an umlaut waits for its other half, also behind Esc; bytes that are no UTF-8 stop nothing."""
    assert read(b"\xc3", b"\xa9") == ["é"]
    assert read(b"\x1b\xc3", b"\xa9") == ["alt+é"]
    assert read(b"\xffa")[-1] == "a"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\r", "enter"),
        (b"\n", "ctrl+j"),
        (b"\t", "tab"),
        (b"\x7f", "backspace"),
        (b"\x03", "ctrl+c"),
        (b"\x11", "ctrl+q"),
        (b"\x14", "ctrl+t"),
        (b"\x00", "ctrl+@"),
        (b"\x1b\r", "alt+enter"),
        (b"\x1b\x7f", "alt+backspace"),
    ],
)
def test_control_characters(data: bytes, expected: str) -> None:
    """Enter and ctrl+j stay apart, and alt+enter keeps its alt."""
    assert read(data) == [expected]
