"""The journal: everything once, in order and numbered, and what is gone is said."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import tracemalloc
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.runtime.output import journal as module
from cobnut_kernel.runtime.output.journal import Journal, Page, numbered
from cobnut_kernel.runtime.output.spill import SpillFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARENTS = [dumps({"msg_id": f"request-{number}", "msg_type": "execute_request"}) for number in range(2)]
_ids = count()


def header(msg_type: str) -> bytes:
    """Write a header with an id of its own."""
    return dumps({"msg_id": f"id{next(_ids)}", "msg_type": msg_type, "session": "s", "version": "5.5"})


def say(journal: Journal, msg_type: str = "display_data", *, parent: bytes = PARENTS[0], **content: Any) -> int:
    """Say a message."""
    return journal.append(msg_type, header(msg_type), parent, b"{}", dumps(content))


def write(journal: Journal, text: str, *, stream: str = "stdout", parent: bytes = PARENTS[0]) -> int:
    """Say a text."""
    return journal.append_text(header("stream"), parent, stream, text)


def read(page: Page) -> dict[str, Any]:
    """Return the content of a page as a client reads it."""
    return json.loads(dumps(page.content))


def pages(journal: Journal, since: int = 0, **asked: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask for page after page; return all messages, and all that was cut."""
    messages: list[dict[str, Any]] = []
    cut: list[dict[str, Any]] = []
    following: int | None = since
    while following is not None:
        content = read(journal.page({"since": following, **asked}))
        assert content["status"] == "ok"
        assert content["messages"] or content["next"] is None
        assert content["next"] is None or content["next"] > following
        messages += content["messages"]
        cut += content["cut"]
        following = content["next"]
    return messages, cut


def numbers(message: dict[str, Any]) -> tuple[int, int]:
    """Return the first and the last number of a message."""
    last = message["metadata"]["seq"]
    return message["metadata"].get("first_seq", last), last


def covered(messages: list[dict[str, Any]], cut: list[dict[str, Any]]) -> list[int]:
    """Return all numbers that messages and cuts name, in their order."""
    ranges = sorted([numbers(message) for message in messages] + [(part["first"], part["last"]) for part in cut])
    return [number for first, last in ranges for number in range(first, last + 1)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal that holds little in memory and much in its file."""
    return Journal(4000, 1 << 20, tmp_path)


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("metadata", "first", "last", "expected"),
    [
        (b"{}", 7, 7, {"seq": 7}),
        (b"{}", 5, 7, {"seq": 7, "first_seq": 5}),
        (b'{"a":{"b":1}}', 7, 7, {"a": {"b": 1}, "seq": 7}),
        (b'{"a":1}', 5, 7, {"a": 1, "seq": 7, "first_seq": 5}),
    ],
)
def test_numbers_are_added_to_metadata(metadata: bytes, first: int, last: int, expected: dict[str, Any]) -> None:
    """What was in the metadata stays; a message of several texts names the first number too."""
    assert json.loads(numbered(metadata, first, last)) == expected


def test_a_page_has_messages_as_they_were_said() -> None:
    """Header, parent, metadata, content and type are those of the message, and its buffers are in the reply's."""
    journal = Journal()
    head = header("comm_msg")
    journal.append("comm_msg", head, PARENTS[1], b'{"m":1}', b'{"data":"\xc3\xa9"}', (b"one", b"two"))
    say(journal, "status", execution_state="idle")
    journal.append("display_data", header("display_data"), PARENTS[0], b"{}", b"{}", (b"three",))
    page = journal.page({"since": 0})
    content = read(page)
    assert content["messages"][0] == {
        "header": json.loads(head),
        "parent_header": json.loads(PARENTS[1]),
        "metadata": {"m": 1, "seq": 1},
        "content": {"data": "é"},
        "msg_type": "comm_msg",
        "buffers": 2,
    }
    assert [message["buffers"] for message in content["messages"]] == [2, 0, 1]
    assert page.buffers == (b"one", b"two", b"three")
    assert {name: content[name] for name in ("status", "next", "last", "cut", "gaps")} == {
        "status": "ok", "next": None, "last": 3, "cut": [], "gaps": [],
    }  # fmt: skip


def test_nothing_said_is_an_empty_page() -> None:
    """A client that asks first of all, or for what comes, gets nothing, and no error."""
    journal = Journal()
    for since in (0, 5):
        assert read(journal.page({"since": since})) == {
            "status": "ok", "messages": [], "next": None, "last": 0, "cut": [], "gaps": [],
        }  # fmt: skip


def test_texts_of_one_stream_that_lie_together_are_one_message() -> None:
    """Another stream, another cell, or a message between them keeps them apart."""
    journal = Journal()
    for text in "abc":
        write(journal, text)
    write(journal, "E", stream="stderr")
    write(journal, "F", stream="stderr", parent=PARENTS[1])
    say(journal, "clear_output", wait=True)
    for text in "gh":
        write(journal, text, stream="stderr", parent=PARENTS[1])
    messages, _ = pages(journal)
    assert [(*numbers(m), m["content"]) for m in messages] == [
        (1, 3, {"name": "stdout", "text": "abc"}),
        (4, 4, {"name": "stderr", "text": "E"}),
        (5, 5, {"name": "stderr", "text": "F"}),
        (6, 6, {"wait": True}),
        (7, 8, {"name": "stderr", "text": "gh"}),
    ]


def test_a_client_that_saw_the_beginning_gets_the_rest_of_a_text() -> None:
    """What comes after `since` is a message of its own, with an id of its own, and nothing is said twice."""
    journal = Journal()
    for text in "abcde":
        write(journal, text)
    ids: set[str] = set()
    for since in range(5):
        [message] = pages(journal, since)[0]
        assert message["content"]["text"] == "abcde"[since:]
        assert numbers(message) == (since + 1, 5)
        ids.add(message["header"]["msg_id"])
    assert len(ids) == 5
    assert pages(journal, 5) == ([], [])


def test_nothing_is_collapsed() -> None:
    """Rewritten lines, cleared outputs and updated displays are what they were."""
    journal = Journal()
    texts = [f"\r{number} %" for number in range(50)]
    for text in texts:
        write(journal, text)
    for number in range(20):
        say(journal, "update_display_data", data={"text/plain": str(number)}, transient={"display_id": "d"})
        say(journal, "clear_output", wait=False)
    messages, _ = pages(journal)
    assert messages[0]["content"]["text"] == "".join(texts)
    assert [m["msg_type"] for m in messages[1:]] == ["update_display_data", "clear_output"] * 20


def test_a_lone_surrogate_is_kept_as_its_escape(journal: Journal) -> None:
    """A text that JSON cannot hold comes back in the form that the stream has it, from the file too."""
    write(journal, "caf\udce9")
    for _ in range(50):
        say(journal, data="x" * 100)
    assert pages(journal)[0][0]["content"]["text"] == "caf\\udce9"


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [1, 700, 5000, 10**9])
def test_all_pages_together_are_everything(journal: Journal, seed: int, limit: int) -> None:
    """Messages and texts at random, most of them in the file: from any number on, each comes once and in order."""
    chance = random.Random(seed)
    said: list[tuple[str, Any]] = [("", "")]
    for number in range(1, 400):
        parent, stream = chance.choice(PARENTS), chance.choice(["stdout", "stderr"])
        if chance.random() < 0.7:
            text = chance.choice("xyz") * chance.choice([1, 30, 2000])
            assert write(journal, text, stream=stream, parent=parent) == number
            said.append((parent.decode() + stream, text))
        else:
            assert say(journal, parent=parent, value=number) == number
            said.append((parent.decode(), number))
    for since in (0, 1, 200, 398):
        messages, cut = pages(journal, since, limit=limit)
        assert cut == []
        assert covered(messages, cut) == list(range(since + 1, 400))
        for message in messages:
            first, last = numbers(message)
            expected = said[first : last + 1]
            if message["msg_type"] == "stream":
                assert message["content"]["text"] == "".join(text for _, text in expected)
            else:
                assert message["content"] == {"value": expected[0][1]}
            assert {
                json.dumps(message["parent_header"], separators=(",", ":")) + message["content"].get("name", "")
            } == {place for place, _ in expected}


def test_a_page_has_at_least_one_message_and_at_most_the_limit() -> None:
    """A message larger than the limit is a page of its own."""
    journal = Journal()
    for size in (10, 10, 100_000, 10, 10):
        say(journal, data="x" * size)
    counts: list[int] = []
    following: int | None = 0
    while following is not None:
        content = read(journal.page({"since": following, "limit": 1000}))
        counts.append(len(content["messages"]))
        following = content["next"]
    assert counts == [2, 1, 2]


def test_a_client_may_ask_for_a_gap_alone() -> None:
    """With `until` no message beyond is in a page, and the last page is that which has it."""
    journal = Journal()
    for number in range(20):
        say(journal, value=number)
    messages, _ = pages(journal, 5, until=9, limit=1)
    assert [numbers(message)[1] for message in messages] == [6, 7, 8, 9]


@pytest.mark.parametrize(
    "asked", [{}, {"since": None}, {"since": "1"}, {"since": -1}, {"since": True}, {"since": 1.5},
              {"since": 0, "limit": "all"}, {"since": 0, "until": [3]}],
)  # fmt: skip
def test_a_request_that_says_nothing_of_use_is_an_error(asked: dict[str, Any]) -> None:
    """The reply names the field and what it must be."""
    content = read(Journal().page(asked))
    assert (content["status"], content["ename"]) == ("error", "ValueError")
    assert "whole number" in content["evalue"]
    assert any(repr(name) in content["evalue"] for name in ("since", "limit", "until"))


def test_many_may_ask_while_more_is_said(journal: Journal) -> None:
    """Pages asked for in other threads while messages come are whole, and what they name is contiguous."""
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                messages, cut = pages(journal, limit=3000)
                assert covered(messages, cut) == list(range(1, len(covered(messages, cut)) + 1))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1500):
        write(journal, f"{number}\n")
        if number % 3 == 0:
            say(journal, value=number)
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []


# ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_sent_comes_in_order_whatever_was_put_away(journal: Journal, seed: int) -> None:
    """A sender that stops and goes on at random gets everything once, while more is said and the file fills."""
    chance = random.Random(seed)
    sent: list[int] = []
    for _ in range(300):
        for _ in range(chance.choice([0, 1, 20])):
            _ = write(journal, "text" * 20) if chance.random() < 0.5 else say(journal, data="x" * 200)
        for _ in range(chance.choice([0, 1, 15])):
            entry = journal.unsent()
            if entry is None:
                break
            sent += range(entry.first, entry.last + 1)
            journal.sent = entry.last
    while (entry := journal.unsent()) is not None:
        sent += range(entry.first, entry.last + 1)
        journal.sent = entry.last
    assert sent == list(range(1, journal.last + 1))
    assert pages(journal)[1] == []


def test_a_text_that_grows_while_it_waits_is_sent_as_one() -> None:
    """What was refused and what came after it lie together."""
    journal = Journal()
    write(journal, "a")
    journal.sent = 1
    write(journal, "b")
    write(journal, "c")
    entry = journal.unsent()
    assert entry is not None
    assert json.loads(entry.content_json()) == {"name": "stdout", "text": "bc"}
    assert json.loads(entry.metadata_json()) == {"seq": 3, "first_seq": 2}


# ── what is gone ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("memory", "spilled"), [(20_000, 60_000), (20_000, 0), (20_000, 1000)])
def test_what_is_cut_at_the_end_of_the_ring_is_said(tmp_path: Path, memory: int, spilled: int) -> None:
    """The oldest go first; every number is in a message or in a cut that names the limit, never in both."""
    journal = Journal(memory, spilled, tmp_path)
    for number in range(1000):
        say(journal, value=number, data="x" * 100)
        journal.sent = journal.last
    messages, cut = pages(journal, limit=3000)
    assert covered(messages, cut) == list(range(1, 1001))
    assert [(part["first"], part["last"]) for part in cut] == [(1, numbers(messages[0])[0] - 1)]
    assert f"{memory} bytes in memory and {spilled} in a file" in cut[0]["reason"]
    assert len(messages) > 20
    assert pages(journal, numbers(messages[0])[0])[1] == []


def test_the_journal_takes_no_more_memory_than_it_may(tmp_path: Path) -> None:
    """20 MB of messages and of texts, with a limit of 1 MB: the peak is little more, and nothing is lost."""
    journal = Journal(1 << 20, 100 << 20, tmp_path)
    heads = [header("display_data"), header("stream")]
    tracemalloc.start()
    try:
        for number in range(20_000):
            journal.append("display_data", heads[0], PARENTS[0], b"{}", dumps({"value": number, "x": "x" * 500}))
            journal.append_text(heads[1], PARENTS[0], "stdout", f"{number}" * 80)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * (1 << 20)
    messages, cut = pages(journal, limit=1 << 18)
    assert (len(covered(messages, cut)), cut) == (40_000, [])


def test_states_that_nobody_heard_outlive_the_ring(tmp_path: Path) -> None:
    """Whoever waits for idle gets it although all around it was cut; sent, they go too."""
    journal = Journal(8000, 0, tmp_path)
    for cell in range(10):
        say(journal, "status", execution_state="busy", cell=cell)
        for _ in range(30):
            say(journal, data="x" * 300)
        say(journal, "status", execution_state="idle", cell=cell)
    states: list[tuple[str, int]] = []
    while (entry := journal.unsent()) is not None:
        journal.sent = entry.last
        if entry.msg_type == "status":
            content = json.loads(entry.content_json())
            states.append((content["execution_state"], content["cell"]))
    assert states == [(state, cell) for cell in range(10) for state in ("busy", "idle")]
    for _ in range(100):
        say(journal, data="x" * 300)
        journal.sent = journal.last
    messages, cut = pages(journal)
    assert {message["msg_type"] for message in messages} == {"display_data"}
    assert covered(messages, cut) == list(range(1, journal.last + 1))


def test_states_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many that nobody hears the oldest are cut, and said to be."""
    monkeypatch.setattr(module, "_KEPT", 50)
    journal = Journal(8000, 0, tmp_path)
    for _ in range(1000):
        say(journal, "status", execution_state="idle")
        say(journal, data="x" * 300)
    messages, cut = pages(journal)
    assert 40 < sum(message["msg_type"] == "status" for message in messages) < 100
    assert covered(messages, cut) == list(range(1, 2001))


@pytest.mark.parametrize("failing", ["write", "read"])
def test_a_disk_that_fails_costs_what_was_on_it_and_no_more(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised where something is said; what is gone is cut, with the system's reason; the rest goes on."""
    caplog.set_level(logging.ERROR)
    journal = Journal(8000, 1 << 20, tmp_path)
    broken = False
    original: Callable[..., Any] = getattr(SpillFile, failing)

    def fail(*arguments: Any) -> Any:
        if broken:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(SpillFile, failing, fail)
    for number in range(300):
        broken = 100 <= number < 200
        say(journal, value=number, data="x" * 300)
    broken = failing == "read"
    messages, cut = pages(journal)
    assert covered(messages, cut) == list(range(1, 301))
    assert {part["reason"].partition(":")[2].strip() for part in cut} == {"[Errno 28] No space left on device."}
    assert numbers(messages[-1])[1] == 300
    sent = 0
    while (entry := journal.unsent()) is not None:
        journal.sent, sent = entry.last, sent + 1
    assert sent == len(messages)


def test_gaps_that_subscribers_have_are_noted() -> None:
    """A page names those after `since`."""
    journal = Journal()
    for number in range(10):
        if number in (3, 7):
            journal.note_gap()
        journal.sent = say(journal)
    assert read(journal.page({"since": 0}))["gaps"] == [4, 8]
    assert read(journal.page({"since": 4}))["gaps"] == [8]


# ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_closed_journal_has_nothing_and_goes_on(journal: Journal) -> None:
    """After the end a page is empty, and saying more raises nothing."""
    for _ in range(100):
        say(journal, data="x" * 300)
    journal.close()
    assert read(journal.page({"since": 0}))["messages"] == []
    say(journal, data="late")


def test_a_forked_child_forgets_and_its_parent_does_not(journal: Journal) -> None:
    """The child's journal is empty, although the lock was held as it was born; the parent reads all of its file."""
    for _ in range(100):
        say(journal, data="x" * 300)
    with journal._lock:
        child = os.fork()
        if child == 0:
            journal.forget()
            os._exit(0 if len(journal._blocks) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    messages, cut = pages(journal)
    assert covered(messages, cut) == list(range(1, 101))
    assert cut == []
