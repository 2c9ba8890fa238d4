"""The traitlets face of the codec: messages as the dicts that the field's programs hand around."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from traitlets import Bool, CBytes, CUnicode, Dict, Enum, Integer, Unicode, default, observe
from traitlets.config.configurable import Configurable

from cobnut_kernel.protocol.codec import DELIMITER, Codec, ReplayGuard
from cobnut_kernel.protocol.connection import SIGNATURE_SCHEME
from cobnut_kernel.protocol.json import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Content = dict[str, Any]

NOBLOCK = 1
"""zmq's flag: do not wait. The number is part of its interface; zmq itself is not needed to make messages."""

_JSON = ("json", "orjson")
_log = logging.getLogger(__name__)


class Sends(Protocol):
    """What can send a message's frames: a zmq socket, or a kernel's way back to its clients."""

    def send_multipart(self, frames: Sequence[bytes], /) -> object:
        """Send the frames as one message."""
        ...


class Receives(Protocol):
    """What can receive a message's frames: a zmq socket."""

    def recv_multipart(self, flags: int = 0, copy: bool = True) -> Any:
        """Receive the frames of one message."""
        ...


class Session(Configurable):
    """Builds, signs, sends and reads messages as dicts, for one party of a connection.

    A message is a dict with header, msg_id, msg_type, parent_header, metadata, content and buffers; on the wire it is
    a list of frames (specification: "The wire protocol").

    A message is read once: two readers in one process, which both hear iopub, need a `clone` each.
    """

    key = CBytes(help="Signs every message; empty for none.").tag(config=True)
    keyfile = Unicode(help="A file that holds the key.").tag(config=True)
    session = CUnicode(help="The party's id; a client that reconnects as the same party keeps it.").tag(config=True)
    username = Unicode(help="Who the party acts for.").tag(config=True)
    signature_scheme = Enum([SIGNATURE_SCHEME], default_value=SIGNATURE_SCHEME, help="How messages are signed.").tag(
        config=True
    )
    metadata: Dict[str, Any] = Dict(help="What stands in the metadata of every message.").tag(config=True)
    packer = Enum(_JSON, default_value="orjson", help="How messages are written: JSON, whatever its name here.").tag(
        config=True
    )
    unpacker = Enum(_JSON, default_value="orjson", help="How messages are read: JSON.").tag(config=True)
    digest_history_size = Integer(
        65536, min=0, help="How many signatures are remembered, so that no message is read twice; 0 for none."
    ).tag(config=True)
    check_pid = Bool(True, help="Whether a forked child sends nothing: the sockets that it has are its parent's.").tag(
        config=True
    )

    def __init__(self, codec: Codec | None = None, **traits: Any) -> None:
        if codec is not None:
            traits = {"key": codec.key, "session": codec.session, "username": codec.username, **traits}
        super().__init__(**traits)
        self.pid: int = os.getpid()
        self._codec = codec or Codec(self.key, session=self.session, username=self.username)
        self._history, self._reader = self._made_reader()

    @default("session")
    def _fresh_session(self) -> str:
        return os.urandom(16).hex()

    @default("username")
    def _current_user(self) -> str:
        return os.environ.get("USER") or "username"

    @observe("key", "session", "username")
    def _identify(self, _change: Any) -> None:
        self._codec = Codec(self.key, session=self.session, username=self.username)
        self._history, self._reader = self._made_reader()

    @observe("keyfile")
    def _read_key(self, change: Any) -> None:
        self.key = Path(change["new"]).read_bytes().strip()

    @observe("digest_history_size")
    def _forget_digests(self, _change: Any) -> None:
        self._history, self._reader = self._made_reader()

    def _made_reader(self) -> tuple[ReplayGuard, Codec]:
        history = ReplayGuard(self.digest_history_size)
        return history, Codec(self.key, session=self.session, username=self.username, replays=history)

    def clone(self) -> Session:
        """Make another reader for the same party: its id, key and ids of messages, and what was read until now."""
        names = set(self.trait_names(config=True)) - {"key", "keyfile", "session", "username"}
        made = type(self)(self._codec, **{name: getattr(self, name) for name in names})
        for signature in self._history.seen():
            made._history.admit(signature)
        return made

    @property
    def codec(self) -> Codec:
        """What makes our headers and signs our messages."""
        return self._codec

    @property
    def digest_history(self) -> set[bytes]:
        """The signatures of the messages read lately."""
        return set(self._history.seen())

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

    def pack(self, obj: Any) -> bytes:
        """Write a part of a message as JSON.

        Raises:
            TypeError: it has no JSON form.
        """
        return dumps(obj)

    def unpack(self, data: bytes) -> Any:
        """Read a part of a message.

        Raises:
            ValueError: it is no JSON.
        """
        return loads(data)

    def sign(self, msg_list: Sequence[bytes]) -> bytes:
        """Sign the four JSON frames of a message: its signature, in hexadecimal."""
        header, parent, metadata, content = msg_list
        return self._codec.sign((header, parent, metadata, content))[1]

    def serialize(self, msg: Content, ident: bytes | Iterable[bytes] | None = None) -> list[bytes]:
        """Write a message as frames, without its buffers; `ident` is for whom it is routed.

        The content may be JSON already, as bytes or text: that of a message passed on.

        Raises:
            TypeError: the message holds what has no JSON form.
        """
        parts = [dumps(msg.get(name) or {}) for name in ("header", "parent_header", "metadata")]
        content = msg.get("content")
        parts.append(_packed(content) if isinstance(content, (bytes, str)) else dumps(content or {}))
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
        """Send a message, whole or by its parts, and return it; None where there is no stream, or a child is forked.

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
        if self.check_pid and os.getpid() != self.pid:
            _log.warning("A forked child did not send a %s: its sockets are its parent's.", message.get("msg_type"))
            return None
        message["buffers"] = [memoryview(buffer).tobytes() for buffer in buffers or message.get("buffers") or ()]
        _shadowed(stream).send_multipart(self.frames(message, ident))
        return message

    def frames(self, msg: Content, ident: bytes | Iterable[bytes] | None = None) -> list[bytes]:
        """Write a message as frames, with its buffers.

        Raises:
            TypeError: the message holds what has no JSON form, or a buffer is none.
        """
        return [*self.serialize(msg, ident), *(memoryview(buffer).tobytes() for buffer in msg.get("buffers") or ())]

    def send_raw(
        self,
        stream: Sends,
        msg_list: Sequence[bytes],
        flags: int = 0,
        copy: bool = True,
        ident: bytes | Iterable[bytes] | None = None,
    ) -> None:
        """Sign and send the frames of a message: four of JSON, and its buffers. `flags` and `copy` are zmq's."""
        identities = [ident] if isinstance(ident, bytes) else list(ident or ())
        frames = [*identities, DELIMITER, self.sign(msg_list[:4]), *msg_list]
        sender: Any = _shadowed(stream)
        sender.send_multipart(frames, flags, copy=copy)

    def recv(
        self, socket: Receives, mode: int = NOBLOCK, content: bool = True, copy: bool = True
    ) -> tuple[list[bytes] | None, Content | None]:
        """Receive a message from a zmq socket; (None, None) where none is there.

        Args:
            socket: of zmq, or a ZMQStream of one.
            mode: zmq's flags; 0 waits for a message.
            content: read the content too, see `deserialize`.
            copy: zmq's.

        Returns:
            The routing frames, and the message.

        Raises:
            ProtocolError: it cannot be read, is signed with another key, or was received before.
        """
        import zmq

        try:
            frames = _shadowed(socket).recv_multipart(mode, copy=copy)
        except zmq.Again:
            return None, None
        identities, message = self.feed_identities(frames, copy)
        return identities, self.deserialize(message, content, copy)

    def feed_identities(self, msg_list: Sequence[Any], copy: bool = True) -> tuple[list[bytes], list[bytes]]:
        """Split frames into the routing ones and those of the message, from the signature on.

        Args:
            msg_list: the frames; with `copy` off zmq's Frame objects.
            copy: whether they are bytes.

        Raises:
            ValueError: there is no delimiter.
        """
        frames: list[bytes] = list(msg_list) if copy else [_bytes(frame) for frame in msg_list]
        if DELIMITER not in frames:
            raise ValueError("The frames hold no <IDS|MSG>: this is no Jupyter message.")
        place = frames.index(DELIMITER)
        return frames[:place], frames[place + 1 :]

    def deserialize(self, msg_list: Sequence[Any], content: bool = True, copy: bool = True) -> Content:
        """Read the frames of a message, from its signature on, and check that it is one of ours, and new.

        Args:
            msg_list: the frames.
            content: read the content; without, it stays JSON as bytes, and the message may be read once more.
            copy: whether the frames are bytes; zmq's Frame objects are taken too.

        Raises:
            ProtocolError: it cannot be read, is signed with another key, or was received before.
        """
        frames: list[bytes] = list(msg_list) if copy else [_bytes(frame) for frame in msg_list]
        message = self._reader.decode([DELIMITER, *frames], again=not content).as_dict()
        return message if content else {**message, "content": frames[4]}


def _bytes(frame: Any) -> bytes:
    return frame if isinstance(frame, bytes) else frame.bytes


def _packed(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _shadowed(socket: Any) -> Any:
    """Return a plain socket in the place of a ZMQStream or of asyncio's kind, whose methods are to be awaited."""
    stream = sys.modules.get("zmq.eventloop.zmqstream")
    if stream is not None and isinstance(socket, stream.ZMQStream):
        socket = socket.socket
    asyncio_sockets = sys.modules.get("zmq.asyncio")
    if asyncio_sockets is not None and isinstance(socket, asyncio_sockets.Socket):
        import zmq

        plain: Any = zmq.Socket
        return plain.shadow(socket.underlying)
    return socket
