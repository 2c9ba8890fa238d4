"""Messages as data: channels, message types, headers.

The names are those of the Jupyter messaging specification, version 5.5.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from cobnut_kernel.errors import MalformedMessageError

PROTOCOL_VERSION = "5.5"
"""The version of the messaging specification that our headers carry."""


class Channel(StrEnum):
    """One of a kernel's five sockets."""

    SHELL = "shell"
    CONTROL = "control"
    IOPUB = "iopub"
    STDIN = "stdin"
    HEARTBEAT = "hb"


class MessageType(StrEnum):
    """The message types of the specification and our own; a header may name others, which are not errors.

    Ours are the requests interrupt_cells, journal, stack and variables, with their replies: kernel_info names them in
    `supported_features`.
    """

    CLEAR_OUTPUT = "clear_output"
    COMM_CLOSE = "comm_close"
    COMM_INFO_REPLY = "comm_info_reply"
    COMM_INFO_REQUEST = "comm_info_request"
    COMM_MSG = "comm_msg"
    COMM_OPEN = "comm_open"
    COMPLETE_REPLY = "complete_reply"
    COMPLETE_REQUEST = "complete_request"
    CONNECT_REPLY = "connect_reply"
    CONNECT_REQUEST = "connect_request"
    CREATE_SUBSHELL_REPLY = "create_subshell_reply"
    CREATE_SUBSHELL_REQUEST = "create_subshell_request"
    DEBUG_EVENT = "debug_event"
    DEBUG_REPLY = "debug_reply"
    DEBUG_REQUEST = "debug_request"
    DELETE_SUBSHELL_REPLY = "delete_subshell_reply"
    DELETE_SUBSHELL_REQUEST = "delete_subshell_request"
    DISPLAY_DATA = "display_data"
    ERROR = "error"
    EXECUTE_INPUT = "execute_input"
    EXECUTE_REPLY = "execute_reply"
    EXECUTE_REQUEST = "execute_request"
    EXECUTE_RESULT = "execute_result"
    HISTORY_REPLY = "history_reply"
    HISTORY_REQUEST = "history_request"
    INPUT_REPLY = "input_reply"
    INPUT_REQUEST = "input_request"
    INSPECT_REPLY = "inspect_reply"
    INSPECT_REQUEST = "inspect_request"
    INTERRUPT_CELLS_REPLY = "interrupt_cells_reply"
    INTERRUPT_CELLS_REQUEST = "interrupt_cells_request"
    INTERRUPT_REPLY = "interrupt_reply"
    INTERRUPT_REQUEST = "interrupt_request"
    IOPUB_WELCOME = "iopub_welcome"
    IS_COMPLETE_REPLY = "is_complete_reply"
    IS_COMPLETE_REQUEST = "is_complete_request"
    JOURNAL_REPLY = "journal_reply"
    JOURNAL_REQUEST = "journal_request"
    KERNEL_INFO_REPLY = "kernel_info_reply"
    KERNEL_INFO_REQUEST = "kernel_info_request"
    LIST_SUBSHELL_REPLY = "list_subshell_reply"
    LIST_SUBSHELL_REQUEST = "list_subshell_request"
    SHUTDOWN_REPLY = "shutdown_reply"
    SHUTDOWN_REQUEST = "shutdown_request"
    STACK_REPLY = "stack_reply"
    STACK_REQUEST = "stack_request"
    STATUS = "status"
    STREAM = "stream"
    UPDATE_DISPLAY_DATA = "update_display_data"
    USAGE_REPLY = "usage_reply"
    USAGE_REQUEST = "usage_request"
    VARIABLES_REPLY = "variables_reply"
    VARIABLES_REQUEST = "variables_request"


class Header(NamedTuple):
    """Who said what, when; `date` is ISO 8601 with a time zone, as it came."""

    msg_id: str
    msg_type: str
    session: str = ""
    username: str = ""
    date: str = ""
    version: str = PROTOCOL_VERSION
    subshell_id: str | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Header:
        """Read a header as it stands on the wire; fields it does not know are left out.

        The fields beside `msg_id` and `msg_type` may be absent, or no text, as some kernels send them: they are
        empty then.

        Raises:
            MalformedMessageError: `msg_id` or `msg_type` is absent, or no text.
        """
        subshell_id = fields.get("subshell_id")
        return cls(
            _required(fields, "msg_id"),
            _required(fields, "msg_type"),
            _optional(fields, "session"),
            _optional(fields, "username"),
            _optional(fields, "date"),
            _optional(fields, "version"),
            subshell_id if isinstance(subshell_id, str) else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Write the header as it stands on the wire; `subshell_id` only where there is one (JEP 91)."""
        fields: dict[str, Any] = {
            "msg_id": self.msg_id,
            "msg_type": self.msg_type,
            "session": self.session,
            "username": self.username,
            "date": self.date,
            "version": self.version,
        }
        if self.subshell_id is not None:
            fields["subshell_id"] = self.subshell_id
        return fields


class Message(NamedTuple):
    """One message, whole.

    `header_json` is the header byte for byte as its sender wrote it, so that an answer can name its parent
    with all that the sender put there (our own writing of it, where the sender's is no strict JSON); in a message
    that was not received it is empty. `identities` are the routing frames in front of the message.
    """

    header: Header
    parent: Header | None
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...] = ()
    identities: tuple[bytes, ...] = ()
    header_json: bytes = b""

    @property
    def msg_type(self) -> str:
        """The type that the header names."""
        return self.header.msg_type

    @property
    def msg_id(self) -> str:
        """The id that the header names."""
        return self.header.msg_id

    @property
    def parent_id(self) -> str | None:
        """The id of the request that this message belongs to."""
        return self.parent.msg_id if self.parent else None

    def as_dict(self) -> dict[str, Any]:
        """Write the message as the dict that Jupyter's clients hand out; the headers' dates are `datetime` there."""
        return {
            "header": _dated(self.header),
            "msg_id": self.header.msg_id,
            "msg_type": self.header.msg_type,
            "parent_header": _dated(self.parent) if self.parent else {},
            "metadata": self.metadata,
            "content": self.content,
            "buffers": list(self.buffers),
        }


def _required(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise MalformedMessageError(f"The message's header has no {name!r}.")
    raise MalformedMessageError(f"The {name!r} of the message's header is no text, but of type {type(value).__name__}.")


def _optional(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _dated(header: Header) -> dict[str, Any]:
    """Write a header with its date as a `datetime`; what is no ISO 8601 stays text."""
    fields = header.as_dict()
    with suppress(ValueError):
        fields["date"] = datetime.fromisoformat(header.date)
    return fields
