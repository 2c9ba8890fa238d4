"""A request on its way through the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.modes import PLAIN, CellOptions, RunMode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cobnut_kernel.protocol.messages import Channel, Message
    from cobnut_kernel.runtime.dispatch import Lane, ReplySocket


async def unhandled() -> None:
    """Do nothing: nobody has said yet how the request is carried out."""


@dataclass(slots=True, eq=False)
class Job:
    """One request, and what its handling has brought so far.

    `number` counts the requests of the process in the order of their arrival, `received_time` is the clock's.
    `socket` is the way back to who sent it, `answer` carries it out. `execution_count` is that of the cell, `reserved`
    whether it is this cell's alone, `options` what the cell asks for, `stops_queue` whether those that wait behind it
    in its `lane` are refused. `error` is the content of the error that was shown for it, `payload` the list that the
    execute reply carries (specification: "Payloads"), `result` IPython's own account of the cell.

    What the documentation calls a job is a dict: its keys can be read here too, as `job["msg"]`.
    """

    channel: Channel
    message: Message
    number: int
    socket: ReplySocket | None = None
    answer: Callable[[], Coroutine[Any, Any, None]] = unhandled
    run_mode: RunMode = RunMode.QUEUE
    subshell_id: str | None = None
    received_time: float = field(default_factory=time)
    execution_count: int | None = None
    reserved: bool = False
    options: CellOptions = PLAIN
    lane: Lane | None = None
    stops_queue: bool = False
    error: dict[str, Any] | None = None
    result: Any = None
    payload: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def parent(self) -> bytes:
        """The header that everything said because of this request names as its parent, as JSON."""
        return self.message.header_json

    def __getitem__(self, key: str) -> Any:
        if key == "msg":
            return self.message.as_dict()
        if key == "ident":
            return list(self.message.identities)
        if key == "socket_id":
            return self.channel
        if key in ("socket", "received_time", "run_mode"):
            return getattr(self, key)
        raise KeyError(key)
