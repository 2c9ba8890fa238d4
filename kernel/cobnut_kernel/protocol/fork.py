"""What an owner and its fork server say to each other: one JSON object a packet, file descriptors beside it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, cast

from cobnut_kernel.errors import MalformedMessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MODULE = "cobnut_kernel.runtime.zygote"
"""What an owner runs, by `python -P -m`, as a fork server."""

START_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_TUNABLES", "LC_", "LANG")
"""Variables that take effect when a process starts, and never after: by what their names begin with."""

MAX_PACKET = 1 << 17
"""How many bytes a packet may have; a request that does not fit is for a cold start."""

MAX_STREAMS = 16
"""How many file descriptors may go with a request."""

ProcessId = SignalNumber = Descriptor = Mode = int
"""Numbers that are read within their limits."""

_KERNEL = ("-P", "-m", "cobnut_kernel")


def kernel_arguments(cmd: Sequence[str], executable: str) -> tuple[str, ...] | None:
    """Return what a kernel's command passes to our kernel; None where it is no command that a fork could stand for."""
    program, *rest = cmd or [""]
    if program != executable or tuple(rest[: len(_KERNEL)]) != _KERNEL:
        return None
    return tuple(rest[len(_KERNEL) :])


def start_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that take effect when a process starts."""
    return {name: value for name, value in env.items() if name.startswith(START_PREFIXES)}


def differing_variables(variables: Mapping[str, str | None], env: Mapping[str, str]) -> list[str]:
    """Name the variables by which a kernel's environment does not fit a template, see `State.variables`."""
    wanted = {**dict.fromkeys(variables), **start_variables(env)}
    return sorted(name for name in wanted if env.get(name) != variables.get(name))


class RefusalReason(StrEnum):
    """Why a kernel was not forked, for the owner to decide what now."""

    MALFORMED = "malformed"
    """The request cannot be read, or not carried out by anybody."""
    DIFFERENT = "different"
    """The kernel wants another environment than the template was started in: start it cold."""
    STALE = "stale"
    """The template is older than files it was made from: start the kernel cold, and a new template."""
    RETIRED = "retired"
    """The owner has retired this template."""
    FAILED = "failed"
    """It did not work here; a cold start may, or says better why not."""


class Packet:
    """What all packets have: a name that says which one it is, and fields that are checked by their types."""

    type: ClassVar[str]

    def encode(self) -> bytes:
        """Return the packet as bytes.

        Raises:
            MalformedMessageError: it is too large.
        """
        # Not orjson: what an environment holds need not be Unicode.
        data = json.dumps({"type": self.type, **vars(self)}).encode()
        if len(data) > MAX_PACKET:
            raise MalformedMessageError(f"A packet of {len(data)} bytes is too large: start this kernel cold.")
        return data


# ── what the owner asks ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Fork(Packet):
    """Fork a kernel; answered by `Forked` or `Refused`, and some day by `Exited`.

    The packet carries a file descriptor for each of `streams`.

    Attributes:
        id: names the request in its answer.
        arguments: what follows `python -P -m cobnut_kernel` on a kernel's command line.
        env: the kernel's whole environment.
        cwd: the folder it starts in.
        umask: its file mode creation mask.
        streams: the numbers that the descriptors get in the kernel; 0, 1 and 2 are /dev/null where not named.
        files: what is to be removed when the owner has ended without doing it: connection file and sockets.
        outlives: whether the kernel goes on when the owner has ended.
    """

    type = "fork"

    id: str
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    umask: Mode = 0o077
    streams: tuple[Descriptor, ...] = ()
    files: tuple[str, ...] = ()
    outlives: bool = False


@dataclass(frozen=True)
class Signal(Packet):
    """Send a signal to the process group of a forked kernel: until it is said to have ended, the number is its own."""

    type = "signal"

    pid: ProcessId
    signum: SignalNumber


@dataclass(frozen=True)
class Guard(Packet):
    """End a process group of another make, and remove its files, when the owner has ended without doing it.

    Attributes:
        pid: the group's leader.
        start_time: when it started, as `ProcessIdentity` has it; 0 where that is not known.
        files: what to remove.
    """

    type = "guard"

    pid: ProcessId
    start_time: int = 0
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unguard(Packet):
    """Guard a process group no longer: it has ended, and its files are gone."""

    type = "unguard"

    pid: ProcessId


@dataclass(frozen=True)
class GuardFolder(Packet):
    """Remove the owner's folder, with all that is in it, after everything else."""

    type = "guard_folder"

    path: str


@dataclass(frozen=True)
class Retire(Packet):
    """Fork no more, and end after the last kernel."""

    type = "retire"


@dataclass(frozen=True)
class Ask(Packet):
    """Ask for `State`."""

    type = "ask"


# ── what the fork server says ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class State(Packet):
    """What the template is: said when it is ready, and when asked.

    Attributes:
        pid: its process.
        executable: the interpreter.
        prefix: the interpreter's environment, `sys.prefix`.
        variables: the values that a kernel's variables must have; null where it must not have them.
        kernels: the processes that it has forked and that run.
        stale: why it forks no more, or an empty text.
    """

    type = "state"

    pid: int
    executable: str
    prefix: str
    variables: Mapping[str, str | None]
    kernels: tuple[int, ...] = ()
    stale: str = ""


@dataclass(frozen=True)
class Forked(Packet):
    """A kernel runs; the packet carries its pidfd where the system has such things.

    Attributes:
        id: that of the request.
        pid: its process, group and session.
        start_time: when it started, as `ProcessIdentity` has it.
    """

    type = "forked"

    id: str
    pid: int
    start_time: int


@dataclass(frozen=True)
class Refused(Packet):
    """A request was not carried out, and nothing has happened.

    Attributes:
        id: that of the request; empty where it has none.
        reason: what kind of reason it is.
        text: what is wrong, for people.
    """

    type = "refused"

    id: str
    reason: RefusalReason
    text: str


@dataclass(frozen=True)
class Exited(Packet):
    """A kernel has ended, its group was killed, and its number may belong to somebody else from now on.

    Attributes:
        pid: its process.
        status: the exit code, or the negative number of the signal that ended it.
    """

    type = "exited"

    pid: int
    status: int


Request = Fork | Signal | Guard | Unguard | GuardFolder | Retire | Ask
Answer = State | Forked | Refused | Exited

_REQUESTS: dict[str, type[Request]] = {
    kind.type: kind for kind in (Fork, Signal, Guard, Unguard, GuardFolder, Retire, Ask)
}
_ANSWERS: dict[str, type[Answer]] = {kind.type: kind for kind in (State, Forked, Refused, Exited)}


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode_request(data: bytes) -> Request:
    """Read what an owner has asked.

    Raises:
        MalformedMessageError: it is no request of ours; the text says what is wrong with it.
    """
    content = _content(data)
    return cast("Request", _read(_kind(content, _REQUESTS), content))


def decode_answer(data: bytes) -> Answer:
    """Read what a fork server has said.

    Raises:
        MalformedMessageError: it is no answer of ours; the text says what is wrong with it.
    """
    content = _content(data)
    return cast("Answer", _read(_kind(content, _ANSWERS), content))


def request_id(data: bytes) -> str:
    """Return the id of a request that may be broken otherwise; empty where it has none."""
    try:
        return str(_content(data).get("id", ""))
    except MalformedMessageError:
        return ""


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"The packet is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise MalformedMessageError(f"The packet holds a {type(content).__name__}, not an object.")
    return cast("dict[str, Any]", content)


def _kind(content: Mapping[str, Any], kinds: Mapping[str, type[Any]]) -> type[Any]:
    name = content.get("type")
    if not isinstance(name, str) or name not in kinds:
        raise MalformedMessageError(f"The packet's type is {name!r}, not one of {', '.join(kinds)}.")
    return kinds[name]


def _read(kind: type[Any], content: Mapping[str, Any]) -> Packet:
    known = {field.name: _READERS[str(field.type)] for field in fields(kind)}
    values: dict[str, Any] = {}
    for name in known.keys() & content.keys():
        try:
            values[name] = known[name](content[name])
        except (TypeError, ValueError) as error:
            raise MalformedMessageError(f"The {name!r} of a {kind.type} packet {error}.") from None
    try:
        return kind(**values)
    except TypeError as error:
        raise MalformedMessageError(f"A {kind.type} packet is not complete: {error}.") from None


def _text(value: object) -> str:
    """Take a text that the system's calls can take.

    Raises:
        TypeError: it is no text.
        ValueError: the system cannot have it.
    """
    if not isinstance(value, str):
        raise TypeError("is no text")
    try:
        if "\0" in value or not isinstance(os.fsencode(value), bytes):
            raise ValueError("holds a zero byte")
    except UnicodeEncodeError:
        raise ValueError("holds what has no bytes") from None
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("is no whole number")
    return value


def _between(least: int, most: int) -> Callable[[object], int]:
    def read_number(value: object) -> int:
        if not least <= (number := _number(value)) <= most:
            raise ValueError(f"is {number}, not between {least} and {most}")
        return number

    return read_number


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is neither true nor false")
    return value


def _list_of(read: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def read_list(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypeError("is no list")
        return tuple(read(item) for item in cast("list[object]", value))

    return read_list


def _variables(value: object, read: Callable[[object], Any] = _text) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("is no object")
    given = cast("dict[str, object]", value)
    if any(not name or "=" in name for name in given):
        raise ValueError("has a variable without a name, or with '=' in it")
    return {_text(name): read(content) for name, content in given.items()}


_READERS: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "int": _number,
    "ProcessId": _between(2, 2**22),  # 0, 1 and negative ones would mean other processes to kill()
    "SignalNumber": _between(0, 64),
    "Mode": _between(0, 0o777),
    "bool": _flag,
    "RefusalReason": RefusalReason,
    "tuple[str, ...]": _list_of(_text),
    "tuple[int, ...]": _list_of(_number),
    "tuple[Descriptor, ...]": _list_of(_between(0, 255)),
    "Mapping[str, str]": _variables,
    "Mapping[str, str | None]": lambda value: _variables(value, lambda text: None if text is None else _text(text)),
}
"""How a field is read, by its type as it is written."""
