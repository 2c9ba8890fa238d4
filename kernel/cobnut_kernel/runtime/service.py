"""What a running kernel is made of, and the way of a request through it."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from cobnut_kernel.errors import UnknownSubshellError
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.callers import KernelCallers
from cobnut_kernel.runtime.dispatch import Answering, ReplySocket, Status, error_content
from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.job import Job
from cobnut_kernel.runtime.lanes import Lanes, LoopThread
from cobnut_kernel.runtime.modes import AT_ONCE, ROUTES, Place, RunMode
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing
from cobnut_kernel.runtime.sockets import KernelSockets
from cobnut_kernel.runtime.stdin import Stdin
from cobnut_kernel.runtime.subshells import SubshellManager
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.protocol.messages import Message
    from cobnut_kernel.runtime.comms import CommManager
    from cobnut_kernel.runtime.debugging.debugger import Debugger
    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.introspection.language import Language
    from cobnut_kernel.runtime.output.routing import CurrentJob

    Answer = Callable[[], Coroutine[Any, Any, None]]
    LoopOptions = Callable[[], dict[str, Any]]


class Service:
    """Receives requests and brings each to the thread that answers it.

    The main shell's lanes are served by the kernel's own event loop, those of subshells by theirs. What needs no
    user code is answered by the control thread, what looks at the user's objects by the helper thread.

    Args:
        outbox: what the kernel says.
        interrupts: stops the cells of a subshell that is deleted.
        current: which job the running code belongs to.
        loop: the backend and options of the event loops that run cells beside the main one.
    """

    def __init__(self, outbox: Outbox, interrupts: Interrupts, current: CurrentJob, loop: LoopOptions) -> None:
        self.io_thread = IOThread.shared()
        self.outbox = outbox
        self.status = Status(self.outbox)
        self.answering = Answering(self.status, current)
        self.control = Lanes(self.refuse, "", "debug")
        self.helper = Lanes(self.refuse)
        self.subshells = SubshellManager(self.refuse, self._interrupt_now, loop)
        self.stdin = Stdin(self.outbox, current, interrupts)
        self.comms: CommManager | None = None
        self._current = current
        self._interrupts = interrupts
        self._loop = loop
        self._cell_threads: WeakSet[LoopThread] = WeakSet()
        self._received = count()
        self._reply_sockets = {channel: ReplySocket(channel, self.outbox) for channel in Channel}
        self.callers = KernelCallers()
        self._control_thread = LoopThread("cobnut-control", self._serve_control)
        self._helper_thread = LoopThread("cobnut-helper", self.helper.serve)
        self._sockets: KernelSockets | None = None

    def listen(self, connection: ConnectionInfo, receive: Callable[[Channel, Message], None]) -> ConnectionInfo:
        """Open the sockets: from here on requests are received, and those for the control thread answered.

        Returns:
            The connection with the ports in use.
        """
        self._sockets = KernelSockets(connection, self.outbox, receive)
        self._control_thread.start()
        self.status.starting()
        return self.connection

    async def _serve_control(self) -> None:
        self.callers.add_loop(Channel.CONTROL)
        await self.control.serve()

    @property
    def listens(self) -> bool:
        """Whether the sockets could be opened."""
        return self._sockets is not None

    def is_idle(self) -> bool:
        """Tell whether no cell runs beside the main thread, subshells that are going away included."""
        return all(thread.join(0) for thread in (*self.subshells.threads, *self._cell_threads))

    def close(self) -> None:
        """Send what is left, and close the sockets; from any thread."""
        if "debugger" in self.__dict__:
            self.debugger.close()
        self.callers.stop()
        self.subshells.stop_all_subshells()
        if "language" in self.__dict__:
            self.language.close()
        for lanes in (self.helper, self.control):
            lanes.close()
        self._control_thread.join(timeout=0.1)
        if self._sockets is not None:
            self._sockets.close()

    @property
    def connection(self) -> ConnectionInfo:
        """Where the kernel listens."""
        if self._sockets is None:
            raise RuntimeError("The kernel does not listen yet.")
        return self._sockets.connection

    @cached_property
    def language(self) -> Language:
        """Answers questions about code; imported with the first one."""
        with without_user_folder():
            from cobnut_kernel.runtime.introspection.language import Language

        return Language()

    @cached_property
    def debugger(self) -> Debugger:
        """Answers debug requests; imported with the first one."""
        with without_user_folder():
            from cobnut_kernel.runtime.debugging.debugger import Debugger

        return Debugger(self.outbox, self._current, self._interrupts, self.subshells.get_shell)

    def publish(self, msg_type: str, content: dict[str, Any], job: Job) -> None:
        """Publish a message of a job on iopub."""
        self.outbox.post(Outgoing(Channel.IOPUB, msg_type, dumps(content), job.parent))

    # ── the way of a request ────────────────────────────────────────────────────────────────────────────────────────

    def job(self, channel: Channel, message: Message) -> Job:
        """Make the job of a request that was received."""
        subshell_id = message.header.subshell_id
        return Job(channel, message, next(self._received), self._reply_sockets[channel], subshell_id=subshell_id)

    def own_job(self) -> Job:
        """Make the job of a cell that nobody has sent."""
        message = self.outbox.codec.message(MessageType.EXECUTE_REQUEST, {"code": "", "silent": True})
        return self.job(Channel.SHELL, message)

    def schedule(self, job: Job) -> None:
        """Bring a job to the thread that answers it; from any thread."""
        route = ROUTES.get(job.message.msg_type, AT_ONCE)
        try:
            lanes = self.subshells.lanes(job.subshell_id)
        except UnknownSubshellError as error:
            self.refuse(job, {**error_content(error), "traceback": []})
            return
        if route.place is Place.HELPER:
            self._helper_thread.start()
            self.helper.put(job)
        elif route.place is Place.CONTROL:
            self.control.put(job, route.line)
        elif job.run_mode is RunMode.THREAD:
            job.answer = partial(self._in_a_thread, job, job.answer)
            self.control.put(job)
        else:
            lanes.put(job, route.line)

    def refuse(self, job: Job, content: dict[str, Any] | None = None) -> None:
        """Answer a request that is not carried out."""
        self.answering.refuse(job, content)

    def _interrupt_now(self, select: Callable[[Job], bool]) -> None:
        """Interrupt the cells that are selected, of all that have been received."""
        self._interrupts.interrupt(select, before=next(self._received))

    async def _in_a_thread(self, job: Job, answer: Answer) -> None:
        """Run a cell in a thread of its own; the control thread starts it, which no cell blocks."""

        async def run() -> None:
            with self.subshells.beside(job):
                await answer()

        thread = LoopThread(f"cobnut-cell-{job.number}", run, **self._loop())
        self._cell_threads.add(thread)
        thread.start()
