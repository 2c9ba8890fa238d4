"""One party's way with the wire: make messages, sign and write them, read and check them.

Frames, from the specification's "wire protocol": `[*identities, b"<IDS|MSG>", signature, header, parent header,
metadata, content, *buffers]`; the signature is over the four JSON frames, buffers are not signed.
"""

from __future__ import annotations

import hmac
import os
from collections import deque
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.errors import MalformedMessageError, ReplayedMessageError, SignatureError
from cobnut_kernel.protocol.json import dumps, loads, loads_strictly
from cobnut_kernel.protocol.messages import Header, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

DELIMITER = b"<IDS|MSG>"
"""The frame between the routing identities and the message."""

EMPTY = b"{}"
"""A dict with nothing in it, as JSON: no parent, no metadata."""


class ReplayGuard:
    """The signatures seen lately; the oldest is forgotten first, so there is no window by chance."""

    def __init__(self, size: int = 65536) -> None:
        self.size = size
        self._seen: set[bytes] = set()
        self._order: deque[bytes] = deque()  # a dict alone walks over what it forgot: 28 µs a message

    def admit(self, signature: bytes) -> bool:
        """Remember a signature; False if it was seen before."""
        if signature in self._seen:
            return False
        self._seen.add(signature)
        self._order.append(signature)
        if len(self._order) > self.size:
            self._seen.discard(self._order.popleft())
        return True

    def seen(self) -> list[bytes]:
        """List the signatures that it remembers, the oldest first."""
        return list(self._order)


class Codec:
    """The identity and the key with which one party writes and reads messages.

    An empty key means unsigned messages, as the specification has it: then every message is taken, a repeated one
    too. Two readers in one process need a codec each: the replay guard takes what both receive for a repetition.

    Args:
        key: signs every message (HMAC-SHA256).
        session: the party's id; by default a fresh one. A client that reconnects as the same party keeps it.
        username: who the party acts for; by default the environment's USER.
        replays: remembers what was read; by default the last 65536 messages.
    """

    def __init__(
        self,
        key: bytes,
        *,
        session: str | None = None,
        username: str | None = None,
        replays: ReplayGuard | None = None,
    ) -> None:
        self.key = key
        self.session = session or os.urandom(16).hex()
        self.username = username if username is not None else os.environ.get("USER") or "username"
        self._replays = replays or ReplayGuard()
        self._mac = hmac.new(key, digestmod=sha256)
        self._ids = count()

    def header(self, msg_type: str, *, subshell_id: str | None = None) -> Header:
        """Make the header of a new message."""
        msg_id = f"{self.session}_{os.getpid()}_{next(self._ids)}"
        date = datetime.now(UTC).isoformat()
        return Header(msg_id, str(msg_type), self.session, self.username, date, subshell_id=subshell_id)

    def message(  # noqa: PLR0913 - the parts of a message
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        parent: Header | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: Iterable[bytes | bytearray | memoryview] = (),
        identities: Iterable[bytes] = (),
        subshell_id: str | None = None,
    ) -> Message:
        """Make a new message of ours.

        Buffers that may still change are copied, contiguous or not. `identities` name the receiver, where the
        socket routes by them.
        """
        header = self.header(msg_type, subshell_id=subshell_id)
        frames = tuple(map(_frozen, buffers))
        return Message(header, parent, metadata or {}, content, frames, tuple(identities))

    def encode(self, message: Message) -> list[bytes]:
        """Write and sign a message.

        Raises:
            TypeError: content or metadata hold what has no JSON form (see `cobnut_kernel.protocol.json`).
            ValueError: they nest too deep, or two keys of a dict become the same text.
        """
        parts = (
            message.header_json or dumps(message.header.as_dict()),
            dumps(message.parent.as_dict()) if message.parent else EMPTY,
            dumps(message.metadata) if message.metadata else EMPTY,
            dumps(message.content),
        )
        return [*message.identities, *self.sign(parts), *message.buffers]

    def sign(self, parts: tuple[bytes, bytes, bytes, bytes]) -> list[bytes]:
        """Put delimiter and signature in front of the four JSON frames."""
        return [DELIMITER, self._signature(parts), *parts]

    def decode(self, frames: Sequence[bytes], *, again: bool = False) -> Message:
        """Read a message and check that it is one of ours, and new.

        Args:
            frames: with the routing ones.
            again: it may have been read before, and may be read once more.

        Raises:
            MalformedMessageError: frames are missing or are no JSON objects.
            SignatureError: the signature is not that of our key.
            ReplayedMessageError: the same message was read before.
        """
        identities, signature, parts, buffers = _split(frames)
        if self.key:
            self._check(signature, parts)
            if not again and not self._replays.admit(signature):
                raise ReplayedMessageError("The message was received before: it was sent, or recorded and sent, twice.")
        header, header_json = _header(parts[0])
        return Message(
            header,
            _parent(parts[1]),
            _object("metadata", parts[2]),
            _object("content", parts[3]),
            buffers,
            identities,
            header_json,
        )

    def _check(self, signature: bytes, parts: tuple[bytes, ...]) -> None:
        if not signature:
            raise SignatureError("The message is not signed: its sender does not have this connection's key.")
        if not hmac.compare_digest(signature, self._signature(parts)):
            raise SignatureError("The message is signed with another key: check both ends' connection file.")

    def _signature(self, parts: tuple[bytes, ...]) -> bytes:
        if not self.key:
            return b""
        mac = self._mac.copy()
        for part in parts:
            mac.update(part)
        return mac.hexdigest().encode()


def _split(
    frames: Sequence[bytes],
) -> tuple[tuple[bytes, ...], bytes, tuple[bytes, bytes, bytes, bytes], tuple[bytes, ...]]:
    try:
        start = frames.index(DELIMITER)
    except ValueError as error:
        raise MalformedMessageError("The frames hold no <IDS|MSG>: this is no Jupyter message.") from error
    if len(frames) < start + 6:
        raise MalformedMessageError(f"{len(frames) - start - 1} frames follow <IDS|MSG>; a message has at least 5.")
    signature, header, parent, metadata, content, *buffers = frames[start + 1 :]
    return tuple(frames[:start]), signature, (header, parent, metadata, content), tuple(buffers)


def _header(part: bytes) -> tuple[Header, bytes]:
    """Read a header; give beside it the JSON by which an answer names it, which must be strict."""
    try:
        return Header.from_dict(_object("header", part, loads_strictly)), part
    except MalformedMessageError:
        header = Header.from_dict(_object("header", part))
        return header, dumps(header.as_dict())


@lru_cache(maxsize=16)  # all that one cell sends names the same parent, byte for byte
def _parent(part: bytes) -> Header | None:
    """Read a parent header; one without a type is still good to find the request by."""
    fields = _object("parent header", part)
    return Header.from_dict({"msg_type": "", **fields}) if fields.get("msg_id") else None


def _object(name: str, part: bytes, read: Callable[[bytes], Any] = loads) -> dict[str, Any]:
    if part == EMPTY:
        return {}
    try:
        value = read(part)
    except ValueError as error:
        raise MalformedMessageError(f"The {name} of the message is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise MalformedMessageError(f"The {name} of the message is a JSON {type(value).__name__}, not an object.")
    return cast("dict[str, Any]", value)


def _frozen(buffer: bytes | bytearray | memoryview) -> bytes:
    return buffer if isinstance(buffer, bytes) else memoryview(buffer).tobytes()
