"""What `protocol/messages.py` promises of headers and messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.protocol.messages import PROTOCOL_VERSION, Channel, Header, Message, MessageType

headers = st.builds(
    Header, st.text(), st.text(), st.text(), st.text(), st.text(), st.text(), subshell_id=st.none() | st.text()
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ("msg_id", "msg_type", "session", "username", "date", "version", "subshell_id")

HEADER = Header("id", "status", "party", "me", "2024-02-29T01:02:03.000004+00:00")


@settings(deadline=None, max_examples=100)
@given(headers)
def test_a_header_comes_back_from_its_dict(header: Header) -> None:
    """Writing and reading a header loses nothing."""
    assert Header.from_dict(header.as_dict()) == header


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(), json_values, max_size=9))
def test_any_dict_is_a_header_of_texts_or_refused(fields: dict[str, Any]) -> None:
    """Nothing but text gets into a header, and nothing but MalformedMessageError comes out."""
    try:
        header = Header.from_dict(fields)
    except MalformedMessageError:
        assert not (isinstance(fields.get("msg_id"), str) and isinstance(fields.get("msg_type"), str))
        return
    for name, value in header.as_dict().items():
        given_value = fields.get(name)
        assert value == (given_value if isinstance(given_value, str) else "")


@pytest.mark.parametrize("name", ["msg_id", "msg_type"])
@pytest.mark.parametrize(
    ("value", "complaint"),
    [(None, "has no '{}'"), (5, "'{}' .* no text, but of type int"), ([], "'{}' .* no text, but of type list")],
)
def test_a_header_without_its_names_is_refused(name: str, value: Any, complaint: str) -> None:
    """The error says which field is missing, or what it is instead of text."""
    with pytest.raises(MalformedMessageError, match=complaint.format(name)):
        Header.from_dict({**HEADER.as_dict(), name: value})


def test_the_other_fields_may_be_missing() -> None:
    """Old and small kernels leave fields out; they are empty then, and no version is invented."""
    assert Header.from_dict({"msg_id": "id", "msg_type": "status"}) == Header("id", "status", version="")


def test_a_deep_value_in_a_header_is_left_alone() -> None:
    """A field is not made text by force: the text of a deep list would exhaust the stack."""
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    assert Header.from_dict({"msg_id": "id", "msg_type": "status", "session": deep, "subshell_id": deep}) == Header(
        "id", "status", version=""
    )


def test_the_subshell_is_named_only_where_there_is_one() -> None:
    """Kernels that do not know subshells see no field of theirs (JEP 91)."""
    assert "subshell_id" not in HEADER.as_dict()
    assert HEADER._replace(subshell_id="3").as_dict()["subshell_id"] == "3"


def test_fields_of_others_are_left_out() -> None:
    """A header has the fields of the specification; others stay in the message's `header_json`."""
    assert Header.from_dict({**HEADER.as_dict(), "tracker": 1}) == HEADER


def test_messages_cannot_be_changed() -> None:
    """Headers and messages are shared between threads, so they stay as they are."""
    message = Message(HEADER, None, {}, {})
    for thing, name in ((HEADER, "msg_id"), (message, "content")):
        with pytest.raises(AttributeError):
            setattr(thing, name, "other")


def test_a_message_names_its_type_and_its_request() -> None:
    """The names that everybody asks for are at hand."""
    message = Message(HEADER._replace(msg_id="other"), HEADER, {}, {})
    assert (message.msg_type, message.msg_id, message.parent_id) == ("status", "other", "id")
    assert Message(HEADER, None, {}, {}).parent_id is None


def test_the_dict_of_a_message_has_dates_as_the_field_has() -> None:
    """Both headers' dates are aware datetimes, as jupyter_client's users expect."""
    fields = Message(HEADER, HEADER, {"m": 1}, {"c": 2}, (b"b",)).as_dict()
    moment = datetime(2024, 2, 29, 1, 2, 3, 4, UTC)
    assert fields["header"] == fields["parent_header"] == {**HEADER.as_dict(), "date": moment}
    assert (fields["msg_id"], fields["msg_type"]) == ("id", "status")
    assert (fields["metadata"], fields["content"], fields["buffers"]) == ({"m": 1}, {"c": 2}, [b"b"])


@pytest.mark.parametrize("date", ["", "yesterday", "2024-13-01T00:00:00Z", "\udcff"])
def test_a_date_that_is_none_stays_text(date: str) -> None:
    """A kernel with a broken clock is still heard."""
    fields = Message(HEADER._replace(date=date), None, {}, {}).as_dict()
    assert fields["header"]["date"] == date
    assert fields["parent_header"] == {}


def test_every_request_has_its_reply() -> None:
    """The list of message types has no half of a pair."""
    names = {str(kind) for kind in MessageType}
    for name in names:
        stem, _, role = name.rpartition("_")
        assert role not in ("request", "reply") or {f"{stem}_request", f"{stem}_reply"} <= names


def test_names_are_plain_text() -> None:
    """Types and channels can be compared with, and put into, text from the wire."""
    assert MessageType.STATUS == "status"
    assert f"{Channel.HEARTBEAT}_port" == "hb_port"
    assert MessageType("execute_request") is MessageType.EXECUTE_REQUEST
    assert PROTOCOL_VERSION.split(".")[0] == "5"
