"""How a cell is run, and what is to become of its error: what its first line and its tags ask for."""

from __future__ import annotations

from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable


class RunMode(StrEnum):
    """How a request is answered, beside the others."""

    QUEUE = "queue"
    """One after the other, in the order of arrival, for each subshell and channel."""

    TASK = "task"
    """As a task of its own, in the event loop of its subshell: as soon as the thread is free."""

    THREAD = "thread"
    """In a thread of its own that has an event loop of its own."""

    DIRECT = "direct"
    """At once, in the thread that answers what needs no user code; cells may not ask for it."""


class Place(StrEnum):
    """The thread that answers a kind of request."""

    SUBSHELL = "subshell"
    """The thread of the request's subshell: for the main shell the kernel's own."""

    CONTROL = "control"
    """The thread that answers what needs no user code, while cells run too."""

    HELPER = "helper"
    """The thread that looks at the user's objects while cells run: it may take its time."""


class Route(NamedTuple):
    """Where and how one type of request is answered; requests of one `line` wait for each other, no others."""

    place: Place
    mode: RunMode
    line: str = ""


_CELLS = Route(Place.SUBSHELL, RunMode.QUEUE, "cells")
_COMMS = Route(Place.SUBSHELL, RunMode.QUEUE, "comms")
_HELPER = Route(Place.HELPER, RunMode.THREAD)
_DEBUG = Route(Place.CONTROL, RunMode.QUEUE, "debug")
_WAITING = Route(Place.CONTROL, RunMode.TASK)

AT_ONCE = Route(Place.CONTROL, RunMode.DIRECT)
"""The route of every type that is not named below."""

ROUTES: dict[str, Route] = {
    MessageType.EXECUTE_REQUEST: _CELLS,
    MessageType.COMM_OPEN: _COMMS,
    MessageType.COMM_MSG: _COMMS,
    MessageType.COMM_CLOSE: _COMMS,
    MessageType.COMPLETE_REQUEST: _HELPER,
    MessageType.INSPECT_REQUEST: _HELPER,
    MessageType.IS_COMPLETE_REQUEST: _HELPER,
    MessageType.HISTORY_REQUEST: _HELPER,
    MessageType.VARIABLES_REQUEST: _HELPER,
    MessageType.DEBUG_REQUEST: _DEBUG,
    MessageType.INTERRUPT_REQUEST: _WAITING,
    MessageType.INTERRUPT_CELLS_REQUEST: _WAITING,
    MessageType.DELETE_SUBSHELL_REQUEST: _WAITING,
}
"""Where the requests are answered that need user code, time, or their turn."""

MAGICS = frozenset(f"%%{mode}" for mode in ("queue", "task", "thread"))
"""The cell magics that name a mode; each is the cell's first line, and takes nothing else."""

_MODES: dict[str, RunMode] = {mode.value: mode for mode in RunMode}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


class CellOptions(NamedTuple):
    """What a cell's first line, its tags and its request ask for.

    `timeout` is in seconds; `suppressed` is what stands in the place of an error, where it is to be suppressed.
    """

    mode: RunMode = RunMode.QUEUE
    timeout: float | None = None
    stop_on_error: bool = True
    raises: bool = False
    suppressed: str | None = None


PLAIN = CellOptions()
"""The options of a cell that asks for nothing."""


def run_mode(content: dict[str, Any], metadata: dict[str, Any]) -> RunMode:
    """Say how a cell is to be run: a tag before the first line before `silent`, which waits for no other cell."""
    for tag in tags_of(metadata):
        if tag in _MODES:
            return _MODES[tag]
    code = content.get("code")
    if isinstance(code, str):
        first = code.lstrip().partition("\n")[0].rstrip()
        name = first[2:] if first in MAGICS else first.lstrip("#").strip().removeprefix("RunMode.")
        if first[:1] in ("#", "%") and name in _MODES:
            return _MODES[name]
    return RunMode.TASK if content.get("silent") else RunMode.QUEUE


def cell_options(content: dict[str, Any], metadata: dict[str, Any]) -> CellOptions:
    """Read what a cell asks for.

    Raises:
        ValueError: a tag has a value that it cannot have, or the cell asks for a mode that is none for cells.
    """
    mode = run_mode(content, metadata)
    if mode is RunMode.DIRECT:
        raise ValueError("A cell cannot run in the mode 'direct': use 'queue', 'task' or 'thread'.")
    tags = dict(_split(tag) for tag in tags_of(metadata))
    raises = "raises-exception" in tags
    stop = bool(content.get("stop_on_error", True)) and not raises
    return CellOptions(
        mode,
        _seconds(tags["timeout"]) if "timeout" in tags else None,
        _truth("stop-on-error", tags["stop-on-error"]) if "stop-on-error" in tags else stop,
        raises,
        (tags["suppress-error"] or "⚠") if "suppress-error" in tags else None,
    )


def tags_of(metadata: dict[str, Any]) -> list[str]:
    """List a cell's tags; what is no text is none."""
    tags = metadata.get("tags")
    return [tag.strip() for tag in cast("list[Any]", tags) if isinstance(tag, str)] if isinstance(tags, list) else []


def run_mode_table(channels: Iterable[Channel], types: Iterable[MessageType]) -> dict[str, tuple[Any, ...]]:
    """Return how every type of message is run, as columns; None stands by what is no request."""
    rows = [(channel, kind) for kind in types for channel in channels]
    return {
        "SocketID": tuple(channel for channel, _ in rows),
        "MsgType": tuple(kind for _, kind in rows),
        "RunMode": tuple(_mode_of(kind) for _, kind in rows),
    }


def _mode_of(kind: str) -> RunMode | None:
    if kind in ROUTES:
        return ROUTES[kind].mode
    return AT_ONCE.mode if kind.endswith("_request") and kind != MessageType.INPUT_REQUEST else None


def _split(tag: str) -> tuple[str, str]:
    name, _, value = tag.partition("=")
    return name.strip(), value.strip()


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds <= 0:
        raise ValueError(f"The cell's tag 'timeout={value}' gives no number of seconds above 0: write 'timeout=2.5'.")
    return seconds


def _truth(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError(f"The cell's tag '{name}={value}' must be '{name}=true' or '{name}=false'.")
