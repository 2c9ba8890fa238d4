"""The requests and responses of the debug adapter protocol, as dicts at the edge: reading, refusing, answering."""

from __future__ import annotations

import keyword
from dataclasses import dataclass
from typing import Any, cast

Content = dict[str, Any]


class RequestError(Exception):
    """A request cannot be carried out; its text is the response's message."""


@dataclass(frozen=True)
class Request:
    """One request of a front end."""

    seq: int
    command: str
    arguments: Content

    @classmethod
    def read(cls, message: Content) -> Request:
        """Read the content of a debug_request; what it lacks is told by the response, so `seq` may be anything.

        Raises:
            RequestError: it names no command, or its arguments are no object.
        """
        seq, command, arguments = message.get("seq"), message.get("command"), message.get("arguments")
        if not isinstance(command, str):
            raise RequestError("A debug request names its 'command', as text.")
        if arguments is not None and not isinstance(arguments, dict):
            raise RequestError(f"The 'arguments' of {command} must be an object.")
        found = cast("Content", arguments or {})
        return cls(seq if isinstance(seq, int) else 0, command, dict(found))

    def text(self, name: str) -> str:
        """Return an argument that is text.

        Raises:
            RequestError: it is missing, or something else.
        """
        value = self.arguments.get(name)
        if not isinstance(value, str):
            raise RequestError(f"{self.command} needs its argument '{name}', as text.")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """Return an argument that is a whole number.

        Raises:
            RequestError: it is missing and has no default, or something else.
        """
        value = self.arguments.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise RequestError(f"{self.command} needs its argument '{name}', as a whole number.")
        return value

    def identifier(self, name: str) -> str:
        """Return an argument that is a variable's name: it becomes a part of code.

        Raises:
            RequestError: it is no identifier.
        """
        value = self.text(name)
        if not value.isidentifier() or keyword.iskeyword(value):
            raise RequestError(f"{self.command} takes a variable's name as '{name}', not {value!r}.")
        return value

    def source_path(self) -> str:
        """Return the path of the argument `source`.

        Raises:
            RequestError: there is none.
        """
        source = self.arguments.get("source")
        path = cast("Content", source).get("path") if isinstance(source, dict) else None
        if not isinstance(path, str):
            raise RequestError(f"{self.command} needs a 'source' with its 'path', as text.")
        return path


def response(seq: int, request: Request | Content, body: Content | None = None, error: str = "") -> Content:
    """Make the response to a request; with `error` it says that the request has failed, and why."""
    if isinstance(request, Request):
        request_seq, command = request.seq, request.command
    else:
        request_seq, command = request.get("seq", 0), request.get("command", "")
    answer: Content = {
        "seq": seq,
        "type": "response",
        "request_seq": request_seq,
        "success": not error,
        "command": command,
    }
    if error:
        answer["message"] = error
    if body is not None:
        answer["body"] = body
    return answer
