"""The bridge between kernels and the program: their messages in, once per frame; requests out. Nothing else crosses."""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from cobnut.completeness import Verdict, python_verdict
from cobnut.model.document import Level
from cobnut.session import Session
from cobnut_kernel.client.journal import GAP
from cobnut_kernel.errors import CobnutError, KernelNotReadyError
from cobnut_kernel.manager.lifecycle import AT_REST, BEGINNING, RUNNING, KernelState
from cobnut_kernel.protocol.messages import Channel, Message, MessageType
from cobnut_kernel.transport import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from anyio.abc import TaskGroup

    from cobnut.kernel_status import KernelRow
    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.kernelspec import KernelSpecManager
    from cobnut_kernel.manager.multi import AsyncMultiKernelManager

FRAME: Final = 1 / 60
"""Seconds from one look at what has arrived to the next, while something arrives; while nothing does, nobody looks."""
BUDGET: Final = 0.008
"""Seconds of a frame that messages may take; what is left over waits for the next one, and keys come between."""
BREATH: Final = 0.002
"""Seconds between two budgets while there is more than one can take: enough for a key to be echoed."""
CHUNK: Final = 1 << 17
"""Characters of output that are taken as one: a few milliseconds."""
ANSWER_LIMIT: Final = 0.3
"""Seconds that a kernel may take to say whether an input is complete."""
PATIENCE: Final = 60.0
"""Seconds after which a kernel that starts and says nothing is worth a line."""
LAST_WORDS: Final = 0.2
"""Seconds in which what a kernel sent before its end still comes in."""
END_OF_FILE: Final = "\x04"
"""What a kernel takes as the end of its input."""

_log = logging.getLogger(__name__)

Event = tuple[Channel, Message] | KernelState
Arrival = tuple[Session, Event]


class Kernels:
    """All kernels of the program, each with its session; everything here is called in the interface's own loop.

    `run` must run for anything to arrive. Whatever fails in here becomes a line in the document of its kernel.
    """

    def __init__(self, manager: AsyncMultiKernelManager) -> None:
        self.sessions: list[Session] = []
        self.on_change: Callable[[Session], None] = lambda _: None
        """Is called after a session has changed, at most once per frame and session."""
        self._manager = manager
        self._inbox: Inbox[Arrival] = Inbox()
        self._arrived: deque[Arrival] = deque()
        self._tasks: TaskGroup | None = None
        self._early: list[Callable[[], Coroutine[Any, Any, None]]] = []

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Take what arrives, and carry out what is asked for, until this is cancelled; then hear no kernel any more."""
        try:
            async with anyio.create_task_group() as self._tasks:
                for work in self._early:
                    self._tasks.start_soon(work)
                await self._take_all()
        finally:
            for session in self.sessions:
                session.disconnect()

    async def _take_all(self) -> None:
        while True:
            self._arrived.append(await self._inbox.receive())
            while self._arrived:
                self._take(time.monotonic() + BUDGET)
                await anyio.sleep(BREATH if self._arrived else FRAME)

    async def stop_all(self, *, now: bool = False) -> None:
        """Stop all kernels at once; `now` asks none of them first."""
        for session in self.sessions:
            session.is_stopping = True
            self.on_change(session)
        await self._manager.shutdown_all(now=now)

    # ── what is asked for ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def specs(self) -> KernelSpecManager:
        """The kernels that can be started."""
        return cast("KernelSpecManager", self._manager.kernel_spec_manager)  # traitlets knows only that it is one

    def add(self, kernel_id: str, spec_name: str, name: str = "") -> Session:
        """Take in a kernel that the manager has begun to start."""
        manager = self._manager.get_kernel(kernel_id)
        used = {session.number for session in self.sessions}
        number = next(number for number in range(1, len(used) + 2) if number not in used)
        session = Session(number, name, kernel_id, spec_name, manager)
        if session.name in {other.name for other in self.sessions}:
            session.name = f"{session.name}-{number}"
        self.sessions = sorted([*self.sessions, session], key=lambda session: session.number)
        manager.add_state_callback(lambda _, state: self._inbox.put((session, state)))
        state = manager.state
        if state in AT_REST:  # it has died already: that is told like any death
            self._inbox.put((session, state))
        else:
            session.state = state
        self._spawn(session, partial(self._connect, session))
        return session

    def start(self, spec_name: str) -> Session:
        """Begin to start another kernel.

        Raises:
            CobnutError: there is no such kernel.
        """
        return self.add(self._manager.start_soon(kernel_name=spec_name), spec_name)

    def submit(self, session: Session, code: str) -> None:
        """Run code, as soon as the kernel can: what is entered before it is ready waits, in order."""
        session.history.add(code)
        cell = session.document.submit(code, None, time.monotonic(), session.language)
        session.waiting.append(cell)
        if session.state in AT_REST:  # it has ended while the key was on its way
            session.waiting.clear()
            session.document.end_runs(time.monotonic())
        self._send_waiting(session)
        self.on_change(session)

    async def verdict(self, session: Session, code: str) -> Verdict:
        """Say whether an input is complete: at once for Python, for others as their kernel says."""
        if session.language == "python":
            return python_verdict(code)
        if session.client is not None:
            try:
                reply = await session.client.request(
                    MessageType.IS_COMPLETE_REQUEST, {"code": code}, timeout=ANSWER_LIMIT
                )
                return Verdict(reply.content.get("status", Verdict.UNKNOWN))
            except (CobnutError, ValueError):
                _log.debug("no answer whether the input is complete", exc_info=True)
        *before, last = code.split("\n")
        return Verdict.INCOMPLETE if before and last.strip() else Verdict.COMPLETE

    def interrupt(self, session: Session) -> None:
        """Interrupt what runs; what waits for a kernel that is not ready yet is not run."""
        if session.client is None:
            session.waiting.clear()
            session.document.end_runs(time.monotonic())
        else:
            session.interrupted, session.interrupted_at = set(session.document.running), time.monotonic()
            self._spawn(session, partial(_interrupt, session))
        self.on_change(session)

    def restart(self, session: Session) -> None:
        """Start a kernel anew, one that has ended too; one that is about to start or stop is left alone."""
        state = session.manager.state
        if state in BEGINNING or state is KernelState.STOPPING:
            self.note(session, "The kernel is about to start or to stop: wait for that, then restart it.")
            return
        self._spawn(session, partial(self._restart, session))

    def stop(self, session: Session) -> None:
        """Stop a kernel; asked again, do not wait for it."""
        again, session.is_stopping = session.is_stopping, True
        # Not by the multi-kernel manager, which would forget it: the kernel may be started anew.
        self._spawn(session, partial(session.manager.shutdown_kernel, now=again))
        self.on_change(session)

    def dismiss(self, session: Session) -> None:
        """Take a kernel that has ended off the list."""
        session.disconnect()
        self.sessions = [other for other in self.sessions if other is not session]
        self._manager.remove_kernel(session.kernel_id)
        self.on_change(session)

    def rows(self, selected: Session | None, now: float) -> list[KernelRow]:
        """Describe all kernels for the lists."""
        return [session.row(now, selected=session is selected) for session in self.sessions]

    def note(self, session: Session, text: str) -> None:
        """Write a line into the document of a kernel."""
        session.document.notice(text, time.monotonic())
        self.on_change(session)

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    def _take(self, end: float) -> None:
        """Take what has arrived, until all is taken or the time is up; then say what has changed."""
        changed: dict[Session, None] = {}
        self._arrived += self._inbox.drain()
        while self._arrived and (not changed or time.monotonic() < end):
            session, event = next_arrival(self._arrived)
            changed[session] = None
            try:
                self._handle(session, event)
            except Exception as error:
                self._report(session, error)
        for session in changed:
            try:
                self.on_change(session)
            except Exception as error:
                self._report(session, error)

    def _handle(self, session: Session, event: Event) -> None:
        if isinstance(event, KernelState):
            self._follow(session, event)
            return
        channel, message = event
        if channel is Channel.STDIN and message.msg_type == MessageType.INPUT_REQUEST:
            self._refuse_input(session)
        if message.msg_type == GAP:
            lost = f"{message.content['count']} messages of the kernel are lost: {message.content['reason']}"
            session.document.notice(lost, time.monotonic(), Level.WARNING)
        session.document.fold(channel, message, time.monotonic())
        session.interrupted.intersection_update(session.document.running)

    def _follow(self, session: Session, state: KernelState) -> None:
        """Note what state a kernel is in now."""
        was_at_rest, session.state = session.state in AT_REST, state
        if state in AT_REST and not was_at_rest:
            self._spawn(session, partial(_hear_out, session.detach()))
            session.waiting.clear()
            session.is_stopping = session.is_restarting = False
            session.say_ended(time.monotonic())

    def _refuse_input(self, session: Session) -> None:
        """Answer a kernel that asks for input although it was told that there is none: it would wait for ever."""
        if session.client is not None:
            session.client.input(END_OF_FILE)
            text = "The cell asked for input, and got the end of the file: cobnut cannot be asked for input yet."
            session.document.notice(text, time.monotonic(), Level.WARNING)

    # ── work that takes time ────────────────────────────────────────────────────────────────────────────────────────

    async def _connect(self, session: Session) -> None:
        """Wait until a kernel can be talked to, then send what waits."""
        manager, client = session.manager, None
        try:
            await manager.ready
            client = session.connecting = manager.client(allow_stdin=False)
            client.listen(lambda channel, message: self._inbox.put((session, (channel, message))))
            client.start_channels()
            session.greet(await self._answer(session, client))
        except Exception:
            if session.connecting is client and manager.state in RUNNING:
                raise
            return  # the kernel's state says what has happened
        session.client, session.connecting = client, None
        self._send_waiting(session)
        self.on_change(session)

    async def _answer(self, session: Session, client: AsyncKernelClient) -> Message:
        while True:
            try:
                return await client.wait_for_ready(timeout=PATIENCE)
            except KernelNotReadyError:
                if session.manager.state not in RUNNING:
                    raise
                text = f"The kernel has not answered for {PATIENCE:g} seconds; still waiting. Esc S S stops it."
                session.document.notice(text, time.monotonic(), Level.WARNING)
                self.on_change(session)

    def _send_waiting(self, session: Session) -> None:
        while session.client is not None and session.waiting:
            cell = session.waiting[0]
            session.document.sent(cell, session.client.execute(cell.code, allow_stdin=False))
            session.waiting.popleft()

    async def _restart(self, session: Session) -> None:
        session.is_restarting = True
        session.disconnect()
        session.begin_anew(time.monotonic())
        self.on_change(session)
        try:
            await session.manager.restart_kernel()
        finally:
            session.is_restarting = False
        await self._connect(session)

    def _spawn(self, session: Session, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Do what takes time in a task of ours, as soon as there is one."""

        async def guarded() -> None:
            try:
                await work()
            except Exception as error:
                self._report(session, error)

        if self._tasks is None:
            self._early.append(guarded)
        else:
            self._tasks.start_soon(guarded)

    def _report(self, session: Session, error: Exception) -> None:
        """Show what went wrong as a line, and go on."""
        if not isinstance(error, CobnutError):
            _log.error("%s: %s", session.name, error, exc_info=error)
        session.document.notice(str(error) or type(error).__name__, time.monotonic(), Level.ERROR)
        self.on_change(session)


async def _interrupt(session: Session) -> None:
    """Ask a kernel to stop what it runs; one that is too busy to answer shows by going on, and that is said."""
    try:
        await session.manager.interrupt_kernel()
    except KernelNotReadyError:
        _log.debug("no answer to an interrupt", exc_info=True)


async def _hear_out(clients: list[AsyncKernelClient]) -> None:
    """Let the last words of a kernel come in, then close what listened to it."""
    try:
        await anyio.sleep(LAST_WORDS)
    finally:  # the program may end before
        for client in clients:
            client.stop_channels()


def next_arrival(arrived: deque[Arrival]) -> Arrival:
    """Take the next thing that has arrived; what one cell writes in many pieces is one thing, up to a size.

    A kernel joins what it cannot send at once, so one message may hold more text than all of a frame can take.
    """
    session, event = arrived.popleft()
    if isinstance(event, KernelState) or not (key := _stream(event)):
        return session, event
    channel, message = event
    text: str = message.content["text"]
    if len(text) > CHUNK:
        pieces = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
        arrived.extendleft((session, (channel, _with_text(message, piece))) for piece in reversed(pieces[1:]))
        return session, (channel, _with_text(message, pieces[0]))
    texts, size = [text], len(text)
    while arrived and arrived[0][0] is session:
        following = arrived[0][1]
        if isinstance(following, KernelState) or _stream(following) != key:
            break
        size += len(following[1].content["text"])
        if size > CHUNK:
            break
        texts.append(following[1].content["text"])
        arrived.popleft()
    return session, (channel, _with_text(message, "".join(texts)))


def _with_text(message: Message, text: str) -> Message:
    return message._replace(content={**message.content, "text": text})


def _stream(event: tuple[Channel, Message]) -> tuple[str | None, object] | None:
    """Name the stream that a message writes to: its cell and which of the two; None for other messages."""
    channel, message = event
    content = message.content
    if (
        channel is not Channel.IOPUB
        or message.msg_type != MessageType.STREAM
        or not isinstance(content.get("text"), str)
    ):
        return None
    return message.parent_id, content.get("name")
