"""Messages as dicts, between our Session and jupyter_client's, both ways."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.session import Session as StockSession

from cobnut_kernel.errors import ReplayedMessageError, SignatureError
from cobnut_kernel.session import Session

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
