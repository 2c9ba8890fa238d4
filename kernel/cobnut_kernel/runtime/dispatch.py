"""Which thread answers a request, in which order, with busy before and idle after."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, Message, MessageType
from cobnut_kernel.runtime.job import CurrentJob, Job
from cobnut_kernel.runtime.sockets import Outbox, Outgoing
from cobnut_kernel.transport import Bell

Handler = Callable[[Job], Awaitable["dict[str, Any] | None"]]
"""Answers one request: the content of the reply, or None where the request has none."""

_log = logging.getLogger(__name__)


class LaneName(Enum):
    """A thread that answers requests, one after the other."""

    MAIN = "main"
    CONTROL = "control"


LANES: dict[str, LaneName] = {MessageType.EXECUTE_REQUEST: LaneName.MAIN}
"""The thread of each request; what is not named is answered by the control thread, while cells run too.

Cells sent on the control channel are no exception: only in the main thread can they be interrupted.
"""

REPLIES: dict[str, MessageType] = {
    request: MessageType(request.replace("_request", "_reply"))
    for request in MessageType
    if request.endswith("_request")
}
"""The type of the reply to each request."""

_NOT_ANSWERED = {"ename": "NotImplementedError", "evalue": "This kernel does not answer such a request."}
_STATUS: dict[str, bytes] = {state: dumps({"execution_state": state}) for state in ("starting", "busy", "idle")}


def publish_status(outbox: Outbox, state: str, parent: bytes = EMPTY, *, soon: bool = True) -> None:
    """Publish an execution state: starting, busy or idle (specification: "Kernel status")."""
    outbox.post(Outgoing(Channel.IOPUB, MessageType.STATUS, _STATUS[state], parent), soon=soon)


def error_content(error: BaseException) -> dict[str, Any]:
    """Write an error as the content of a reply (specification: "Request-Reply")."""
    return {
        "status": "error",
        "ename": type(error).__name__,
        "evalue": text_of(error),
        "traceback": traceback.format_exception(error),
    }


def text_of(error: object) -> str:
    """Return what an error says; the user's own `__str__` may fail, and the error is still to be shown."""
    try:
        return str(error)
    except Exception:
        return f"<unprintable {type(error).__name__}>"


class Lane:
    """Requests in the order of their arrival, and the loop that answers them."""

    def __init__(self, outbox: Outbox, current: CurrentJob, handlers: dict[str, Handler]) -> None:
        self._outbox = outbox
        self._current = current
        self._handlers = handlers
        self._jobs: deque[Job] = deque()
        self._bell = Bell()
        self._closed: bool = False
        self._last_number: int = -1
        self._aborted_until: int = -1

    def put(self, job: Job) -> None:
        """Queue a request; from any thread."""
        self._last_number = job.number
        self._jobs.append(job)
        self._bell.ring()

    def close(self) -> None:
        """Answer no more; from any thread. What still waits is refused."""
        self._closed = True
        self._bell.ring()

    def abort_queued(self) -> None:
        """Refuse the execute requests that wait now; those that come later run (ipykernel #609)."""
        self._aborted_until = self._last_number

    async def serve(self) -> None:
        """Answer requests until closed."""
        while not self._closed:
            if self._jobs:
                await self._answer(self._jobs.popleft())
            else:
                await self._bell.wait(lambda: self._jobs or self._closed)
        self.abort_queued()
        while self._jobs:
            self._refuse(self._jobs.popleft())

    async def _answer(self, job: Job) -> None:
        if job.number <= self._aborted_until and job.message.msg_type == MessageType.EXECUTE_REQUEST:
            self._refuse(job)
            return
        self._current.begin(job)
        publish_status(self._outbox, "busy", job.parent, soon=False)
        self.reply(job, await self._handle(job))
        publish_status(self._outbox, "idle", job.parent)

    async def _handle(self, job: Job) -> dict[str, Any] | None:
        handler = self._handlers.get(job.message.msg_type)
        if handler is None:
            return {"status": "error", **_NOT_ANSWERED, "traceback": []}
        try:
            return await handler(job)
        except Exception as error:  # a request that fails is answered, and the next one is served
            _log.exception("A %s failed", job.message.msg_type)
            return error_content(error)

    def _refuse(self, job: Job) -> None:
        publish_status(self._outbox, "busy", job.parent, soon=False)
        if job.message.msg_type in REPLIES:
            self.reply(job, {"status": "aborted"})
        publish_status(self._outbox, "idle", job.parent)

    def reply(self, job: Job, content: dict[str, Any] | None) -> None:
        """Send the reply to a request, where it has one."""
        reply_type = REPLIES.get(job.message.msg_type)
        if content is not None and reply_type is not None:
            self._outbox.post(
                Outgoing(job.channel, reply_type, _written(content), job.parent, identities=job.message.identities),
                soon=False,
            )


def _written(content: dict[str, Any]) -> bytes:
    try:
        return dumps(content)
    except Exception as error:  # what cannot be sent must not cost the requester its reply
        return dumps(error_content(error))


class Dispatcher:
    """Sends each request to its lane."""

    def __init__(self, lanes: dict[LaneName, Lane]) -> None:
        self._lanes = lanes
        self._received: int = 0

    def receive(self, channel: Channel, message: Message) -> None:
        """Queue a request; called in the I/O thread."""
        self._received += 1
        name = LANES.get(message.msg_type, LaneName.CONTROL)
        self._lanes[name].put(Job(channel, message, self._received))
