"""The traitlets face of the codec: messages as the dicts that the field's programs hand around."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from traitlets import CBytes, CUnicode, Dict, Enum, Unicode, default, observe
from traitlets.config.configurable import Configurable

from cobnut_kernel.protocol.codec import DELIMITER, Codec
from cobnut_kernel.protocol.connection import SIGNATURE_SCHEME
from cobnut_kernel.protocol.json import dumps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Content = dict[str, Any]


class Sends(Protocol):
    """What can send a message's frames: a zmq socket, or a kernel's way back to its clients."""

    def send_multipart(self, frames: Sequence[bytes], /) -> object:
        """Send the frames as one message."""
        ...


class Session(Configurable):
    """Builds, signs, sends and reads messages as dicts, for one party of a connection.

    A message is a dict with header, msg_id, msg_type, parent_header, metadata, content and buffers; on the wire it is
    a list of frames (specification: "The wire protocol").
    """

    key = CBytes(help="Signs every message; empty for none.").tag(config=True)
    session = CUnicode(help="The party's id; a client that reconnects as the same party keeps it.").tag(config=True)
    username = Unicode(help="Who the party acts for.").tag(config=True)
    signature_scheme = Enum([SIGNATURE_SCHEME], default_value=SIGNATURE_SCHEME, help="How messages are signed.").tag(
        config=True
    )
    metadata: Dict[str, Any] = Dict(help="What stands in the metadata of every message.").tag(config=True)

    def __init__(self, codec: Codec | None = None, **traits: Any) -> None:
        if codec is not None:
            traits = {"key": codec.key, "session": codec.session, "username": codec.username, **traits}
        super().__init__(**traits)
        self._codec = Codec(self.key, session=self.session, username=self.username)

    @default("session")
    def _fresh_session(self) -> str:
        return os.urandom(16).hex()

    @default("username")
    def _current_user(self) -> str:
        return os.environ.get("USER") or "username"

    @observe("key", "session", "username")
    def _identify(self, _change: Any) -> None:
        self._codec = Codec(self.key, session=self.session, username=self.username)

    @property
    def bsession(self) -> bytes:
        """The party's id as bytes."""
        return self.session.encode()

    @property
    def msg_id(self) -> str:
        """A new message id, another one each time."""
        return self._codec.header("").msg_id

    def msg_header(self, msg_type: str) -> Content:
        """Make the header of a new message."""
        return self._codec.header(msg_type).as_dict()

    def msg(
        self,
        msg_type: str,
        content: Content | None = None,
        parent: Content | None = None,
        header: Content | None = None,
        metadata: Content | None = None,
    ) -> Content:
        """Make a new message; `parent` is a message or its header."""
        header = header or self.msg_header(msg_type)
        return {
            "header": header,
            "msg_id": header["msg_id"],
            "msg_type": header["msg_type"],
            "parent_header": dict(parent.get("header", parent)) if parent else {},
            "content": content or {},
            "metadata": {**self.metadata, **(metadata or {})},
        }

    def sign(self, msg_list: Sequence[bytes]) -> bytes:
        """Sign the four JSON frames of a message: its signature, in hexadecimal."""
        header, parent, metadata, content = msg_list
        return self._codec.sign((header, parent, metadata, content))[1]

    def serialize(self, msg: Content, ident: bytes | Iterable[bytes] | None = None) -> list[bytes]:
        """Write a message as frames, without its buffers; `ident` is for whom it is routed.

        Raises:
            TypeError: the message holds what has no JSON form.
        """
        parts = tuple(dumps(msg.get(name) or {}) for name in ("header", "parent_header", "metadata", "content"))
        identities = [ident] if isinstance(ident, bytes) else list(ident or ())
        return [*identities, *self._codec.sign((parts[0], parts[1], parts[2], parts[3]))]

    def send(  # noqa: PLR0913, PLR0917 - documented so
        self,
        stream: Sends | None,
        msg_or_type: Content | str,
        content: Content | None = None,
        parent: Content | None = None,
        ident: bytes | Iterable[bytes] | None = None,
        buffers: Iterable[Any] | None = None,
        track: bool = False,
        header: Content | None = None,
        metadata: Content | None = None,
    ) -> Content | None:
        """Send a message, whole or by its parts, and return it; None where there is no stream.

        `track` is taken and does nothing: buffers are copied before this returns.

        Raises:
            TypeError: the message holds what has no JSON form.
        """
        if stream is None:
            return None
        if isinstance(msg_or_type, str):
            message = self.msg(msg_or_type, content, parent, header, metadata)
        else:
            message = dict(msg_or_type)
        frames = [memoryview(buffer).tobytes() for buffer in buffers or message.get("buffers") or ()]
        stream.send_multipart([*self.serialize(message, ident), *frames])
        return {**message, "buffers": frames}

    def feed_identities(self, msg_list: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Split frames into the routing ones and those of the message, from the signature on.

        Raises:
            ValueError: there is no delimiter.
        """
        frames = list(msg_list)
        if DELIMITER not in frames:
            raise ValueError("The frames hold no <IDS|MSG>: this is no Jupyter message.")
        place = frames.index(DELIMITER)
        return frames[:place], frames[place + 1 :]

    def deserialize(self, msg_list: Sequence[bytes]) -> Content:
        """Read the frames of a message, from its signature on, and check that it is one of ours, and new.

        Raises:
            ProtocolError: it cannot be read, is signed with another key, or was received before.
        """
        return self._codec.decode([DELIMITER, *msg_list]).as_dict()
