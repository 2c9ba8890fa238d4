"""What `protocol/codec.py` promises: messages that the field understands, and refusals that say why."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.jsonutil import parse_date
from jupyter_client.session import Session, json_packer, json_unpacker

from cobnut_kernel.errors import MalformedMessageError, ProtocolError, ReplayedMessageError, SignatureError
from cobnut_kernel.protocol.codec import DELIMITER, Codec, ReplayGuard
from cobnut_kernel.protocol.messages import Header, Message, MessageType

KEY = b"c0b9-a key, caf\xc3\xa9"
PARENT = Header("parent-id", "execute_request", "client", "me", "2024-02-29T01:02:03.000004Z", "5.4")
CONTENT = {
    "code": "print('\N{CHESTNUT} café \x1b[31m\x00\u2028')",
    "nested": {"list": [1, 2.5, None, True, [], {"": {}}, -0.0, 2**63], "deep": [[[[[["x"]]]]]]},
    "execution_state": "busy",
}
METADATA = {"tags": ["ä", "\U0010ffff"], "sequence": 7}
BUFFERS = [b"", b"\x00\xff" * 100, DELIMITER, b"{}"]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)
some_buffers = st.lists(st.binary() | st.just(DELIMITER), max_size=3)
MODERATE = settings(deadline=None, max_examples=150)


class Wire:
    """Where a jupyter_client Session sends to; keeps the frames."""

    def send_multipart(self, frames: list[Any], copy: bool = True) -> None:
        """Take a message as a socket would."""
        self.frames = [bytes(frame) for frame in frames]


def stock_session() -> Session:
    """Make the field's session with our key."""
    return Session(key=KEY, username="stock")


def sent_by(session: Session, msg_type: str, content: dict[str, Any], **parts: Any) -> list[bytes]:
    """Let jupyter_client write a message."""
    wire = Wire()
    session.send(wire, msg_type, content, **parts)  # type: ignore[arg-type]
    return wire.frames


def read_by(session: Session, frames: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    """Let jupyter_client read a message."""
    identities, rest = session.feed_identities(frames)
    return identities, session.deserialize(rest)


@pytest.fixture
def codec() -> Codec:
    """The party that reads and writes in most tests."""
    return Codec(KEY, username="ours")


# --- with the field's own session -------------------------------------------------------------------------------------


@pytest.mark.parametrize("msg_type", MessageType)
def test_jupyter_client_reads_every_type_of_ours(codec: Codec, msg_type: MessageType) -> None:
    """All parts of a message of each type arrive in the stock Session as they were given."""
    message = codec.message(
        msg_type, CONTENT, parent=PARENT, metadata=METADATA, buffers=BUFFERS, identities=[b"\x00peer"]
    )
    identities, read = read_by(stock_session(), codec.encode(message))
    assert identities == [b"\x00peer"]
    assert repr(read["content"]) == repr(CONTENT)
    assert read["metadata"] == METADATA
    assert [bytes(buffer) for buffer in read["buffers"]] == BUFFERS
    assert read["msg_type"] == read["header"]["msg_type"] == str(msg_type)
    assert read == message.as_dict()


@pytest.mark.parametrize("packer", ["orjson", "json"])
@pytest.mark.parametrize("msg_type", MessageType)
def test_we_read_every_type_of_jupyter_client(codec: Codec, msg_type: MessageType, packer: str) -> None:
    """All parts that the stock Session sends, by either of its packers, arrive as they were given."""
    session = Session(key=KEY, packer=packer)
    parent = session.msg("execute_request")
    frames = sent_by(
        session, str(msg_type), CONTENT, parent=parent, metadata=METADATA, buffers=BUFFERS, ident=[b"a", b"\x00b"]
    )
    message = codec.decode(frames)
    assert (message.msg_type, message.header.session) == (msg_type, session.session)
    assert repr(message.content) == repr(CONTENT)
    assert message.metadata == METADATA
    assert (message.buffers, message.identities) == (tuple(BUFFERS), (b"a", b"\x00b"))
    assert message.parent_id == parent["msg_id"]
    assert message.as_dict() == read_by(session, frames)[1]


@MODERATE
@given(json_objects, json_objects, some_buffers)
def test_any_content_passes_in_both_directions(
    content: dict[str, Any], meta: dict[str, Any], buffers: list[bytes]
) -> None:
    """Whatever JSON can say goes from ours to ours, to jupyter_client and back without a change."""
    session, codec = stock_session(), Codec(KEY)
    sent = codec.message("comm_msg", content, metadata=meta, buffers=buffers)
    frames = codec.encode(sent)
    read = read_by(session, frames)[1]
    back = codec.decode(
        sent_by(session, "comm_msg", read["content"], metadata=read["metadata"], buffers=read["buffers"])
    )
    for message in (codec.decode(frames), back):
        assert repr((message.content, message.metadata)) == repr((content, meta))
        assert message.buffers == tuple(buffers)


def test_headers_have_an_aware_date_that_the_field_reads(codec: Codec) -> None:
    """The date of our headers is the present, in UTC, for jupyter_client and for us."""
    before = datetime.now(UTC)
    message = codec.message("status", {})
    date = read_by(stock_session(), codec.encode(message))[1]["header"]["date"]
    assert before <= date <= datetime.now(UTC)
    assert date.utcoffset() == timedelta(0)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45))])
def test_dates_in_content_are_the_same_instant_on_both_sides(codec: Codec, zone: timezone) -> None:
    """Dates are sent as ISO 8601 by both, and mean the same."""
    moment, session = datetime(2024, 2, 29, 23, 59, 59, 123456, zone), stock_session()
    ours = read_by(session, codec.encode(codec.message("stream", {"at": moment})))[1]["content"]["at"]
    theirs = codec.decode(sent_by(session, "stream", {"at": moment})).content["at"]
    assert parse_date(ours) == parse_date(theirs) == moment


def test_what_json_lacks_reaches_jupyter_client_as_documented(codec: Codec) -> None:
    """NaN, infinities, lone surrogates, bytes and odd keys arrive in the documented form, strict JSON in UTF-8."""
    content = {"nan": [float("nan"), float("-inf")], "file\udcff": "\udcff", 1: b"\xff", None: {2**70}, "at": (True,)}
    frames = codec.encode(codec.message("display_data", content))
    expected = {"nan": [None, None], r"file\udcff": r"\udcff", "1": "/w==", "null": [2**70], "at": [True]}
    assert json.loads(frames[-1].decode("utf-8", "strict"), parse_constant=pytest.fail) == expected
    assert json_unpacker(frames[-1]) == expected


def test_an_undecodable_file_name_from_jupyter_client_is_read(codec: Codec) -> None:
    """jupyter_client sends a lone surrogate as a byte that is no UTF-8; the output is not lost for it."""
    frames = sent_by(stock_session(), "stream", {"name": "stdout", "text": "caf\udce9\n"})
    assert b"\xe9" in frames[-1]
    assert codec.decode(frames).content["text"] == "caf\\udce9\n"


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_frames_stand_as_the_specification_has_them(codec: Codec) -> None:
    """Identities, delimiter, HMAC-SHA256 of the four parts in hexadecimal, the parts, the buffers."""
    message = codec.message("status", {"a": 1}, parent=PARENT, buffers=[b"raw"], identities=[b"x", b"y"])
    *identities, delimiter, signature, header, parent, metadata, content, buffer = codec.encode(message)
    assert (identities, delimiter, buffer) == ([b"x", b"y"], b"<IDS|MSG>", b"raw")
    assert signature == hmac.new(KEY, header + parent + metadata + content, hashlib.sha256).hexdigest().encode()
    assert json.loads(header) == message.header.as_dict()
    assert json.loads(parent) == PARENT.as_dict()
    assert (metadata, content) == (b"{}", b'{"a":1}')


def test_a_received_header_is_kept_byte_for_byte(codec: Codec) -> None:
    """What a sender puts into its header beyond the specification is there for whoever answers, and is passed on."""
    header = b'{"msg_id": "1",  "msg_type":"x", "tracker": [1.50]}'
    frames = codec.sign((header, b"{}", b"{}", b"{}"))
    message = Codec(KEY).decode(frames)
    assert message.header_json == header
    assert codec.encode(message) == frames


@pytest.mark.parametrize("user", [b'"j\xf6rg"', rb'"\udcf6"', b"NaN"])
def test_a_received_header_that_is_not_strict_is_not_passed_on(codec: Codec, user: bytes) -> None:
    """What others write badly (jupyter_client an undecodable user name) is read, but never sent again by us."""
    frames = codec.sign((b'{"msg_id": "1", "msg_type": "x", "username": %s}' % user, b"{}", b"{}", b"{}"))
    message = Codec(KEY).decode(frames)
    assert json.loads(message.header_json.decode(), parse_constant=pytest.fail) == message.header.as_dict()


@pytest.mark.parametrize(
    ("parent", "header"),
    [
        (b"{}", None),
        (b'{"msg_id": ""}', None),
        (b'{"msg_id": null}', None),
        (b'{"msg_id": "1"}', Header("1", "", version="")),
        (b'{"msg_id": "1", "msg_type": "x", "odd": 1}', Header("1", "x", version="")),
    ],
)
def test_a_parent_needs_no_more_than_an_id(codec: Codec, parent: bytes, header: Header | None) -> None:
    """An answer is found by its request's id alone; without one it has no parent."""
    frames = codec.sign((b'{"msg_id": "2", "msg_type": "y"}', parent, b"{}", b"{}"))
    assert codec.decode(frames).parent == header


@pytest.mark.parametrize(
    ("buffer", "sent"),
    [
        (b"plain", b"plain"),
        (memoryview(b"view"), b"view"),
        (memoryview(b"s-k-i-p")[::2], b"skip"),
        (memoryview(bytes(range(4))).cast("B", (2, 2)), b"\x00\x01\x02\x03"),
    ],
)
def test_buffers_may_be_any_memory(codec: Codec, buffer: Any, sent: bytes) -> None:
    """Contiguous or not, of one dimension or more: the bytes arrive in their logical order."""
    assert codec.decode(codec.encode(codec.message("comm_msg", {}, buffers=[buffer]))).buffers == (sent,)


def test_a_buffer_that_changes_later_does_not_change_the_message(codec: Codec) -> None:
    """A widget may reuse its memory as soon as the message is made."""
    memory = bytearray(b"before")
    message = codec.message("comm_msg", {}, buffers=[memory, memoryview(memory)])
    memory[:] = b"after!"
    assert codec.encode(message)[-2:] == [b"before", b"before"]


def test_what_is_no_buffer_is_refused(codec: Codec) -> None:
    """A number must not become that many zeros."""
    with pytest.raises(TypeError, match="bytes-like"):
        codec.message("comm_msg", {}, buffers=[5])  # type: ignore[list-item]


def test_large_messages_pass(codec: Codec) -> None:
    """Eight million characters and a buffer of eight million bytes arrive whole."""
    text, buffer = "\N{CHESTNUT}" * 8_000_000, os.urandom(8_000_000)
    message = codec.decode(codec.encode(codec.message("display_data", {"text": text}, buffers=[buffer])))
    assert message.content["text"] == text
    assert message.buffers == (buffer,)


def test_content_without_a_form_is_refused_when_encoded(codec: Codec) -> None:
    """The sender learns which type he cannot send."""
    for part in ({"content": {"a": 1j}}, {"content": {}, "metadata": {"a": 1j}}):
        with pytest.raises(TypeError, match="'complex' has no JSON form"):
            codec.encode(codec.message("stream", **part))


# --- identity ---------------------------------------------------------------------------------------------------------


def test_a_party_has_one_session_and_fresh_ids(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids differ from message to message, from party to party and from a forked child's."""
    first, second = codec.header("a"), codec.header("a", subshell_id="s")
    assert first.session == second.session == codec.session
    assert (first.username, first.subshell_id, second.subshell_id) == ("ours", None, "s")
    fork = Codec(KEY, session="same")
    before = fork.header("a").msg_id
    fork = Codec(KEY, session="same")
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert len({first.msg_id, second.msg_id, Codec(KEY).header("a").msg_id, before, fork.header("a").msg_id}) == 5
    assert fork.session == "same"


def test_the_user_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name the environment's is taken, or else the field's default; an undecodable one can be sent."""
    monkeypatch.setenv("USER", b"j\xf6rg".decode("utf-8", "surrogateescape"))
    codec = Codec(KEY)
    assert codec.decode(codec.encode(codec.message("status", {}))).header.username == r"j\udcf6rg"
    monkeypatch.delenv("USER")
    assert Codec(KEY).username == "username"
    assert Codec(KEY, username="").username == ""


# --- refusals ---------------------------------------------------------------------------------------------------------

GOOD = (b'{"msg_id": "1", "msg_type": "status"}', b"{}", b"{}", b"{}")


def signed(
    header: bytes = GOOD[0], parent: bytes = b"{}", metadata: bytes = b"{}", content: bytes = b"{}"
) -> list[bytes]:
    """Sign any four frames with the right key."""
    return Codec(KEY).sign((header, parent, metadata, content))


REFUSED = {
    "nothing at all": ([], MalformedMessageError, "no <IDS|MSG>"),
    "empty frames": ([b"", b"", b""], MalformedMessageError, "no <IDS|MSG>"),
    "no delimiter": (signed()[1:], MalformedMessageError, "no <IDS|MSG>"),
    "only a delimiter": ([DELIMITER], MalformedMessageError, "0 frames follow"),
    "truncated": (signed()[:-1], MalformedMessageError, "4 frames follow <IDS|MSG>; a message has at least 5"),
    "a cut frame": ([*signed(content=b'{"a": 1}')[:-1], b'{"a": 1'], SignatureError, "another key"),
    "no signature": ([DELIMITER, b"", *GOOD], SignatureError, "not signed"),
    "a short signature": ([DELIMITER, signed()[1][:32], *GOOD], SignatureError, "another key"),
    "a signature in capitals": ([DELIMITER, signed()[1].upper(), *GOOD], SignatureError, "another key"),
    "a signature that is no text": ([DELIMITER, b"\xff" * 64, *GOOD], SignatureError, "another key"),
    "another's key": (Codec(b"other").sign(GOOD), SignatureError, "check both ends' connection file"),
    "frames in another order": ([DELIMITER, signed()[1], *GOOD[::-1]], SignatureError, "another key"),
    "a delimiter as identity": ([DELIMITER, *signed()], SignatureError, "another key"),
    "an empty header": (signed(b""), MalformedMessageError, "header of the message is no JSON"),
    "a header that is no JSON": (signed(b"{'msg_id'}"), MalformedMessageError, "header of the message is no JSON"),
    "a header in UTF-16": (signed("{}".encode("utf-16")), MalformedMessageError, "header of the message is no JSON"),
    "a header without id": (signed(b'{"msg_type": "x"}'), MalformedMessageError, "header has no 'msg_id'"),
    "a header without type": (signed(b'{"msg_id": "x"}'), MalformedMessageError, "header has no 'msg_type'"),
    "a header of numbers": (
        signed(b'{"msg_id": 1, "msg_type": "x"}'),
        MalformedMessageError,
        "no text, but of type int",
    ),
    "a list as header": (signed(b"[]"), MalformedMessageError, "header of the message is a JSON list, not an object"),
    "a null as parent": (
        signed(parent=b"null"),
        MalformedMessageError,
        "parent header .* JSON NoneType, not an object",
    ),
    "a number as parent id": (signed(parent=b'{"msg_id": 1}'), MalformedMessageError, "no text, but of type int"),
    "a text as metadata": (signed(metadata=b'"{}"'), MalformedMessageError, "metadata of the message is a JSON str"),
    "a number as content": (signed(content=b"1"), MalformedMessageError, "content of the message is a JSON int"),
    "bytes as content": (
        signed(content=b"\x80\x03}q\x00."),
        MalformedMessageError,
        "content of the message is no JSON",
    ),
    "endless content": (signed(content=b"[" * 100_000), MalformedMessageError, "content .* nests too deep"),
    "endless objects": (signed(content=b'{"a":' * 100_000), MalformedMessageError, "content .* nests too deep"),
}


@pytest.mark.parametrize(("frames", "error", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_message_of_ours_is_refused(frames: list[bytes], error: type[ProtocolError], reason: str) -> None:
    """Each kind of broken or foreign message has an error of its kind whose text says why."""
    with pytest.raises(error, match=reason) as caught:
        Codec(KEY).decode(frames)
    assert type(caught.value) is error


def test_a_refusal_does_not_stop_a_reader(codec: Codec) -> None:
    """After each kind of refused message the next good one is read."""
    sender = Codec(KEY)
    for number, (frames, error, _) in enumerate(REFUSED.values()):
        with pytest.raises(error):
            codec.decode(frames)
        assert codec.decode(sender.encode(sender.message("status", {"number": number}))).content == {"number": number}


def test_every_flipped_bit_of_what_is_signed_is_refused(codec: Codec) -> None:
    """No byte of signature, headers, metadata or content can be changed by a single bit, nor wholly."""
    frames = codec.encode(codec.message("execute_request", CONTENT, parent=PARENT, metadata=METADATA))
    for index, frame in list(enumerate(frames))[1:6]:
        for position in range(len(frame)):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                flipped = bytearray(frame)
                flipped[position] ^= mask
                with pytest.raises(SignatureError):
                    codec.decode([*frames[:index], bytes(flipped), *frames[index + 1 :]])
    assert codec.decode(frames).content == CONTENT


@MODERATE
@given(st.data())
def test_any_other_bytes_in_a_signed_frame_are_refused(data: st.DataObject) -> None:
    """Whatever replaces a frame from the delimiter to the content: the message is refused."""
    codec = Codec(KEY)
    frames = codec.encode(codec.message("status", {"execution_state": "idle"}, parent=PARENT))
    index = data.draw(st.integers(0, 5))
    other = data.draw(st.binary(max_size=200).filter(lambda frame: frame != frames[index]))
    with pytest.raises(ProtocolError):
        codec.decode([*frames[:index], other, *frames[index + 1 :]])


deep_frames = st.sampled_from([b"[" * 1000 + b"]" * 1000, b'{"msg_id":' + b"[" * 1020 + b"]" * 1020 + b"}"])
nearly_json = st.dictionaries(st.sampled_from(["msg_id", "msg_type", "date", "session", "subshell_id"]), json_values)
odd_frames = (
    st.binary()
    | deep_frames
    | st.sampled_from([b"", b"{}", b"null", DELIMITER, *GOOD])
    | (json_values | nearly_json).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
)


@settings(deadline=None, max_examples=200)
@given(st.lists(odd_frames, max_size=9), st.sampled_from([b"", KEY]))
def test_arbitrary_frames_raise_nothing_but_protocol_errors(frames: list[bytes], key: bytes) -> None:
    """Any frames from anybody are a message or a ProtocolError, signed or not."""
    with suppress(ProtocolError):
        assert isinstance(Codec(key).decode(frames), Message)


@settings(deadline=None, max_examples=200)
@given(st.tuples(odd_frames, odd_frames, odd_frames, odd_frames), st.lists(odd_frames, max_size=2))
def test_arbitrary_signed_frames_raise_nothing_but_malformed(parts: Any, buffers: list[bytes]) -> None:
    """A broken party that has the key cannot do more harm than one that has not."""
    codec = Codec(KEY)
    with suppress(MalformedMessageError):
        message = codec.decode([*codec.sign(parts), *buffers])
        assert message.buffers == tuple(buffers)
        assert message.as_dict()["msg_id"] == message.msg_id


# --- replays ----------------------------------------------------------------------------------------------------------


def test_a_message_is_taken_once(codec: Codec) -> None:
    """The same signature a second time is refused, also with other identities and buffers; by another reader not."""
    frames = codec.encode(codec.message("input_reply", {"value": "y"}))
    codec.decode(frames)
    for again in (frames, [b"other", *frames], [*frames, b"more"]):
        with pytest.raises(ReplayedMessageError, match="received before"):
            codec.decode(again)
    assert Codec(KEY).decode(frames).content == {"value": "y"}


def test_a_forgery_does_not_keep_the_original_out(codec: Codec) -> None:
    """A signature is remembered only after it was found right, so nobody can use it up."""
    frames = codec.encode(codec.message("shutdown_request", {"restart": False}))
    for _ in range(3):
        with pytest.raises(SignatureError):
            codec.decode([*frames[:-1], b'{"restart": true}'])
    assert codec.decode(frames).content == {"restart": False}


@MODERATE
@given(st.lists(st.sampled_from(b"abcdefghij"), max_size=60), st.integers(1, 8))
def test_the_guard_remembers_the_last_ones_exactly(signatures: list[int], size: int) -> None:
    """The last `size` admitted are refused, no other; the oldest goes first, and a repetition makes none younger."""
    guard, remembered = ReplayGuard(size), list[bytes]()
    for signature in (bytes([letter]) for letter in signatures):
        assert guard.admit(signature) == (signature not in remembered)
        if signature not in remembered:
            remembered = [*remembered, signature][-size:]


# --- without a key ----------------------------------------------------------------------------------------------------


def test_an_empty_key_means_unsigned() -> None:
    """As the specification has it: the signature stays empty, nothing is checked, repetitions are taken."""
    codec = Codec(b"")
    frames = codec.encode(codec.message("status", {"a": 1}))
    assert frames[1] == b""
    for again in (frames, frames, signed(content=b'{"a": 1}')):
        assert codec.decode(again).content == {"a": 1}
    session = Session(key=b"")
    assert read_by(session, frames)[1]["content"] == {"a": 1}
    assert codec.decode(sent_by(session, "status", {"a": 1})).content == {"a": 1}


def test_the_json_packer_of_the_field_reads_and_writes_the_same(codec: Codec) -> None:
    """The standard library's JSON, which jupyter_client uses without orjson, gives equal frames to read."""
    message = codec.message("status", CONTENT)
    assert json_unpacker(codec.encode(message)[-1]) == CONTENT
    assert codec.decode(codec.sign((GOOD[0], b"{}", b"{}", json_packer(CONTENT)))).content == CONTENT
