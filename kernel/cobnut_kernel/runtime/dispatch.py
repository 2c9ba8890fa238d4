"""In which order requests are answered, with busy before and idle after."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from cobnut_kernel.errors import UnknownSubshellError
from cobnut_kernel.protocol.codec import DELIMITER, EMPTY
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing
from cobnut_kernel.transport import Bell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.output.routing import CurrentJob

    Content = dict[str, Any]
    Handler = Callable[[Job], Awaitable["Content | Reply | None"]]
    SendReply = Callable[[Job, Content], Coroutine[Any, Any, None]]

REPLIES: dict[str, str] = {
    request: str(request).replace("_request", "_reply") for request in MessageType if request.endswith("_request")
}
"""The type of the reply to each request."""

_NOT_ANSWERED = {"ename": "NotImplementedError", "evalue": "This kernel does not answer such a request."}
_log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """A reply that has more than its content."""

    content: Content
    metadata: Content | None = None
    buffers: tuple[bytes, ...] = ()


class ReplySocket(NamedTuple):
    """The way back to the clients of one channel; what the documentation calls a job's socket is never zmq's own."""

    channel: Channel
    outbox: Outbox

    def send(self, job: Job, content: Content | Reply, msg_type: str = "") -> None:
        """Send the reply to a request, where it has one; `msg_type` for another answer."""
        kind = msg_type or REPLIES.get(job.message.msg_type)
        if kind is None:
            return
        reply = content if isinstance(content, Reply) else Reply(content)
        self.outbox.post(
            Outgoing(
                self.channel,
                kind,
                _written(reply.content),
                job.parent,
                _written(reply.metadata) if reply.metadata else EMPTY,
                job.message.identities,
                reply.buffers,
            ),
            soon=False,
        )

    def send_multipart(self, frames: Sequence[bytes]) -> None:
        """Send what `Session` has written: a message in its turn, under a header of the kernel's own.

        Raises:
            ValueError: the frames are no message.
        """
        place = list(frames).index(DELIMITER)
        header, parent, metadata, content, *buffers = frames[place + 2 :]
        kind = loads(header)["msg_type"]
        identities = tuple(frames[:place])
        self.outbox.post(Outgoing(self.channel, kind, content, parent, metadata, identities, tuple(buffers)))


def _written(content: Content) -> bytes:
    try:
        return dumps(content)
    except Exception as error:  # what cannot be sent must not cost the requester its reply
        return dumps(error_content(error))


def error_content(error: BaseException) -> Content:
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


class Status:
    """Publishes what the kernel is doing (specification: "Kernel status").

    Every busy and idle belongs to a request. Its metadata says how many cells run in the whole kernel, for a front
    end that has one lamp for all of them.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._cells: set[Job] = set()
        self._contents = {state: dumps({"execution_state": state}) for state in ("starting", "busy", "idle")}
        self._metadata: list[bytes] = [b'{"kernel_busy":%d}' % number for number in range(100)]

    def starting(self) -> None:
        """Say, once, that the kernel starts."""
        self._publish("starting", EMPTY)

    def busy(self, job: Job) -> None:
        """Say that a request is being handled."""
        if job.message.msg_type == MessageType.EXECUTE_REQUEST:
            self._cells.add(job)
        self._publish("busy", job.parent, soon=False)

    def idle(self, job: Job) -> None:
        """Say that nothing more will come because of a request, but what its tasks and threads still do."""
        self._cells.discard(job)
        self._publish("idle", job.parent)

    def _publish(self, state: str, parent: bytes, *, soon: bool = True) -> None:
        count = self._metadata[min(len(self._cells), len(self._metadata) - 1)]
        self._outbox.post(Outgoing(Channel.IOPUB, MessageType.STATUS, self._contents[state], parent, count), soon=soon)


class Answering:
    """Carries out handlers: busy, the reply whatever happens, idle."""

    def __init__(self, status: Status, current: CurrentJob) -> None:
        self._status = status
        self._current = current

    async def run(self, handler: Handler | None, job: Job, send_reply: SendReply) -> None:
        """Answer one request."""
        self._current.begin(job)
        self._status.busy(job)
        content = await _handle(handler, job)
        # What waits now was sent before the reply; what comes after it must run (ipykernel #609).
        behind = job.lane.take() if job.stops_queue and job.lane is not None else ()
        if content is not None:
            await send_reply(job, content)  # pyright: ignore[reportArgumentType] - a Reply goes the same way
        self._status.idle(job)
        self._current.end(job)
        for waiting in behind:
            self.refuse(waiting)

    def refuse(self, job: Job, content: Content | None = None) -> None:
        """Answer a request that is not carried out, at once; from any thread."""
        self._status.busy(job)
        if job.socket is not None:
            job.socket.send(job, content or {"status": "aborted"})
        self._status.idle(job)


async def _handle(handler: Handler | None, job: Job) -> Content | Reply | None:
    if handler is None:
        return {"status": "error", **_NOT_ANSWERED, "traceback": []}
    try:
        return await handler(job)
    except UnknownSubshellError as error:  # it was taken away meanwhile
        return {**error_content(error), "traceback": []}
    except Exception as error:  # a request that fails is answered, and the next one is served
        _log.exception("A %s failed", job.message.msg_type)
        return error_content(error)


class Lane:
    """Requests in the order of their arrival, and the loop that answers them.

    `refuse` answers one that is not carried out.
    """

    def __init__(self, refuse: Callable[[Job], None]) -> None:
        self._refuse = refuse
        self._jobs: deque[Job] = deque()
        self._bell = Bell()
        self._closed: bool = False

    def put(self, job: Job) -> None:
        """Queue a request; from any thread."""
        self._jobs.append(job)
        if self._closed:
            self.abort()
        else:
            self._bell.ring()

    def close(self) -> None:
        """Answer no more; from any thread. What still waits is refused."""
        self._closed = True
        self.abort()
        self._bell.ring()

    def abort(self, select: Callable[[Job], bool] = lambda _: True) -> list[Job]:
        """Refuse the requests that wait now, or some of them; from any thread."""
        taken = self.take(select)
        for job in taken:
            self._refuse(job)
        return taken

    def take(self, select: Callable[[Job], bool] = lambda _: True) -> list[Job]:
        """Take the requests that wait now, or some of them, out of the queue; from any thread."""
        return [job for job in list(self._jobs) if select(job) and self._take(job)]

    def _take(self, job: Job) -> bool:
        try:
            self._jobs.remove(job)
        except ValueError:  # its turn has come
            return False
        return True

    async def serve(self) -> None:
        """Answer requests one after the other until closed."""
        while not self._closed:
            try:
                job = self._jobs.popleft()
            except IndexError:
                await self._bell.wait(lambda: self._jobs or self._closed)
            else:
                job.lane = self
                await job.answer()

    async def serve_beside(self) -> None:
        """Answer requests as they come, each in a task of its own, until closed and all are answered."""
        async with anyio.create_task_group() as tasks:
            while not self._closed:
                while self._jobs:
                    with suppress(IndexError):  # refused meanwhile
                        tasks.start_soon(self._jobs.popleft().answer)
                await self._bell.wait(lambda: self._jobs or self._closed)
