"""A request on its way through the kernel, and which one the running code belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.messages import Channel, Message, MessageType


@dataclass(slots=True, eq=False)
class Job:
    """One request, and what its handling has brought so far.

    `number` counts the requests of the process in the order of their arrival. `execution_count` is that of the
    cell. `error` is the content of the error that was shown for it, `payload` the list that the execute reply
    carries (specification: "Payloads").
    """

    channel: Channel
    message: Message
    number: int
    execution_count: int | None = None
    error: dict[str, Any] | None = None
    payload: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def parent(self) -> bytes:
        """The header that everything said because of this request names as its parent, as JSON."""
        return self.message.header_json


class CurrentJob:
    """The job that the running code belongs to.

    Tasks inherit it from the code that made them. A thread has none: what it says belongs to the cell begun last.
    """

    def __init__(self) -> None:
        self._here: ContextVar[Job | None] = ContextVar("cobnut_job", default=None)
        self._latest: Job | None = None

    def begin(self, job: Job) -> None:
        """Say that the running context works for this job from now on."""
        self._here.set(job)
        if job.message.msg_type == MessageType.EXECUTE_REQUEST:
            self._latest = job

    def get(self) -> Job | None:
        """Return the job that the running code belongs to; None before the first."""
        return self._here.get() or self._latest

    def parent(self) -> bytes:
        """Return the header of that job's request, as JSON."""
        job = self._here.get() or self._latest
        return job.message.header_json if job is not None else EMPTY
