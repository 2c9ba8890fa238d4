"""Messages as dicts, between our Session and jupyter_client's, both ways."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session as StockSession

from cobnut_kernel.errors import ReplayedMessageError, SignatureError
from cobnut_kernel.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = b"hazel"


class Wire:
    """A stream that keeps what was sent."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_multipart(self, frames: Any, *_: Any, **__: Any) -> None:
        """Keep the frames."""
        self.frames = list(frames)


def test_what_we_send_the_stock_session_reads() -> None:
    """Header, parent, metadata, content, buffers and routing frames arrive."""
    ours, stock, wire = Session(key=KEY), StockSession(key=KEY), Wire()
    parent = ours.msg("execute_request")
    sent = ours.send(wire, "stream", {"text": "nut"}, parent, b"id", [b"\0\1"], metadata={"seq": 1})
    assert sent is not None
    identities, frames = stock.feed_identities(wire.frames)
    read = stock.deserialize(frames)
    assert identities == [b"id"]
    assert (read["msg_id"], read["content"], read["metadata"]) == (sent["msg_id"], {"text": "nut"}, {"seq": 1})
    assert read["parent_header"]["msg_id"] == parent["msg_id"]
    assert [bytes(buffer) for buffer in read["buffers"]] == [b"\0\1"]


def test_what_the_stock_session_sends_we_read() -> None:
    """And the other way."""
    ours, stock = Session(key=KEY), StockSession(key=KEY)
    message = stock.msg("execute_request", {"code": "1"})
    identities, frames = ours.feed_identities(stock.serialize(message, ident=[b"a", b"b"]))
    read = ours.deserialize(frames)
    assert identities == [b"a", b"b"]
    assert (read["msg_type"], read["content"]) == ("execute_request", {"code": "1"})
    assert read["msg_id"] == message["msg_id"]


def test_a_message_is_read_once_and_only_with_its_key() -> None:
    """Another key and a repetition are refused."""
    sender = Session(key=KEY)
    _, frames = sender.feed_identities(sender.serialize(sender.msg("status")))
    with pytest.raises(SignatureError):
        Session(key=b"other").deserialize(frames)
    reader = Session(key=KEY)
    reader.deserialize(frames)
    with pytest.raises(ReplayedMessageError):
        reader.deserialize(frames)


def test_a_session_has_one_id_and_every_message_another() -> None:
    """The id is fresh where none is given; a change of it is in the next header."""
    session = Session()
    assert session.msg_header("x")["session"] == session.session == session.bsession.decode()
    assert len({session.msg_id for _ in range(100)}) == 100
    session.session = "mine"
    assert session.msg_header("x")["session"] == "mine"
    assert Session().session != Session().session


def test_nothing_is_sent_without_a_stream() -> None:
    """As with the stock session."""
    assert Session().send(None, "status") is None


def test_frames_without_a_delimiter_are_no_message() -> None:
    """The error says what is missing."""
    with pytest.raises(ValueError, match="IDS"):
        Session().feed_identities([b"a", b"b"])


# ── on sockets ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """Two sockets that are connected."""
    context = zmq.Context()
    one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    one.bind("inproc://pair")
    other.connect("inproc://pair")
    yield one, other
    context.destroy(linger=0)


@pytest.mark.parametrize("kinds", [(Session, StockSession), (StockSession, Session), (Session, Session)])
def test_send_and_recv(kinds: tuple[type, type], pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    """A message goes over a socket, between ours and the stock one, with routing frames and buffers."""
    sender, receiver = kinds[0](key=KEY), kinds[1](key=KEY)
    assert receiver.recv(pair[1]) == (None, None)
    sent = sender.send(pair[0], "stream", {"text": "nut"}, ident=[b"a"], buffers=[b"x"])
    identities, read = receiver.recv(pair[1], mode=0)
    assert (identities, read["content"]) == ([b"a"], {"text": "nut"})
    assert read["header"]["msg_id"] == sent["msg_id"]
    assert [bytes(buffer) for buffer in read["buffers"]] == [b"x"]


@pytest.mark.parametrize("copy", [True, False])
def test_raw_frames(copy: bool, pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    """Frames that are written already are signed and sent; zmq's own frames are read too."""
    sender, receiver = Session(key=KEY), Session(key=KEY)
    message = sender.msg("status", {"execution_state": "idle"})
    parts = [sender.pack(message[name]) for name in ("header", "parent_header", "metadata", "content")]
    sender.send_raw(pair[0], [*parts, b"buffer"], ident=b"to")
    identities, read = receiver.recv(pair[1], mode=0, copy=copy)
    assert identities == [b"to"]
    assert read is not None
    assert (read["content"], read["buffers"]) == ({"execution_state": "idle"}, [b"buffer"])


def test_asyncio_sockets_are_taken() -> None:
    """A socket whose methods are to be awaited is sent to all the same, as with the stock session."""

    async def program() -> None:
        context = zmq.asyncio.Context()
        one, other = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        one.bind("inproc://pair")
        other.connect("inproc://pair")
        session, reader = Session(key=KEY), Session(key=KEY)
        session.send(one, "status", {"a": 1})
        _, read = reader.recv(other, mode=0)
        assert read is not None
        assert read["content"] == {"a": 1}
        context.destroy(linger=0)

    asyncio.run(program())


# ── who reads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_content_may_stay_packed() -> None:
    """A look at a message leaves its content as JSON, and does not count as reading it; packed content is passed on."""
    ours = Session(key=KEY)
    _, frames = ours.feed_identities(ours.serialize(ours.msg("stream", {"text": "nut"})))
    peeked = ours.deserialize(frames, content=False)
    assert peeked["content"] == b'{"text":"nut"}'
    assert ours.deserialize(frames)["content"] == {"text": "nut"}
    for content in (b'{"text":"nut"}', '{"text":"nut"}'):
        _, again = ours.feed_identities(ours.serialize({**ours.msg("stream"), "content": content}))
        assert ours.deserialize(again)["content"] == {"text": "nut"}


def test_a_clone_reads_for_itself() -> None:
    """A clone is the same party; it remembers what was read before, and reads what comes then for itself."""
    sender, reader = Session(key=KEY), Session(key=KEY, metadata={"a": 1})
    before, after = (sender.feed_identities(sender.serialize(sender.msg("status")))[1] for _ in range(2))
    reader.deserialize(before)
    clone = reader.clone()
    assert (clone.session, clone.key, clone.metadata) == (reader.session, reader.key, {"a": 1})
    assert clone.digest_history == reader.digest_history == {before[0]}
    with pytest.raises(ReplayedMessageError):
        clone.deserialize(before)
    reader.deserialize(after)
    clone.deserialize(after)
    assert reader.msg_id != clone.msg_id


def test_history_may_be_short_or_off() -> None:
    """So many signatures are remembered as one likes, or none."""
    sender = Session(key=KEY)
    messages = [sender.feed_identities(sender.serialize(sender.msg("status")))[1] for _ in range(3)]
    off = Session(key=KEY, digest_history_size=0)
    for frames in messages * 2:
        off.deserialize(frames)
    short = Session(key=KEY, digest_history_size=2)
    for frames in messages:
        short.deserialize(frames)
    assert short.digest_history == {messages[1][0], messages[2][0]}


def test_a_forked_child_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork nothing is sent, for the sockets are the parent's; unless one wants it so."""
    session, wire = Session(key=KEY), Wire()
    monkeypatch.setattr(os, "getpid", lambda: session.pid + 1)
    assert session.send(wire, "status") is None
    assert wire.frames == []
    session.check_pid = False
    assert session.send(wire, "status") is not None


def test_key_from_a_file(tmp_path: Path) -> None:
    """A key may lie in a file."""
    (tmp_path / "key").write_bytes(b"hazel\n")
    assert Session(keyfile=str(tmp_path / "key")).key == KEY
