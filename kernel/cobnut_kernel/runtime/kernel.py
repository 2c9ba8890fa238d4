"""The kernel: its settings, its life, and the answer to each request."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from anyio import AsyncContextManagerMixin

from cobnut_kernel.connection_files import load_connection_file, write_connection_file
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, Message, MessageType
from cobnut_kernel.runtime import collector
from cobnut_kernel.runtime.dispatch import ReplySocket
from cobnut_kernel.runtime.ending.owner import Lease, Owner, Policy
from cobnut_kernel.runtime.ending.signals import Signals
from cobnut_kernel.runtime.ending.watchdog import wait_for_cells
from cobnut_kernel.runtime.handlers import Handlers
from cobnut_kernel.runtime.imports import add_user_folder
from cobnut_kernel.runtime.interruption.blocking import make_interruptible
from cobnut_kernel.runtime.interruption.interrupts import Interrupts
from cobnut_kernel.runtime.lanes import loop_options
from cobnut_kernel.runtime.modes import AT_ONCE, ROUTES, RunMode, run_mode, run_mode_table
from cobnut_kernel.runtime.output.journal import Journal
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing
from cobnut_kernel.runtime.output.routing import CurrentJob, ThreadRouting
from cobnut_kernel.runtime.output.streams import CapturedStreams
from cobnut_kernel.runtime.service import Service
from cobnut_kernel.transport import Bell, IOThread

if TYPE_CHECKING:
    import types
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping

    from cobnut_kernel.caller import Caller
    from cobnut_kernel.runtime.debugging.debugger import Debugger
    from cobnut_kernel.runtime.dispatch import Handler, Reply, SendReply
    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.registration import Registration
    from cobnut_kernel.runtime.settings import Settings
    from cobnut_kernel.runtime.shells.shell import Shell
    from cobnut_kernel.runtime.subshells import SubshellManager
    from cobnut_kernel.session import Session

    Content = dict[str, Any]

_PICTURES = "module://matplotlib_inline.backend_inline"
"""How matplotlib shows its figures where the user has not said otherwise: as output of the cell."""

_COMM_MESSAGES = (MessageType.COMM_OPEN, MessageType.COMM_MSG, MessageType.COMM_CLOSE)


class Kernel(Handlers, AsyncContextManagerMixin):
    """A Jupyter kernel that runs Python cells by IPython, several at a time.

    A process has one: `Kernel()` returns it. A stopped one cannot start again. Subclasses step in at the handlers,
    coroutines named after their requests, and at `msg_handler`, `run_handler` and `get_run_mode`.
    """

    _instance: ClassVar[Kernel | None] = None

    def __new__(cls, settings: Content | None = None, /, **traits: Any) -> Kernel:  # noqa: PYI034 - may be a subclass's
        """Return the process's kernel; settings are for the first call, which makes it."""
        if Kernel._instance is None:
            Kernel._instance = super().__new__(cls)
        return Kernel._instance

    def __init__(self, settings: Content | None = None, /, **traits: Any) -> None:
        if "event_stopped" in self.__dict__:
            return
        super().__init__(**traits)
        self.interrupts: set[Callable[[], object]] = set()
        self.event_started = threading.Event()
        self.event_stopping = threading.Event()
        self.event_stopped = threading.Event()
        self._jobs = CurrentJob()
        self._io_thread = IOThread.shared()
        self._interrupts = Interrupts(self._io_thread)
        self._connection: ConnectionInfo | None = None
        self._service: Service | None = None
        self._streams: CapturedStreams | None = None
        self._session: Session | None = None
        self._settings: Settings | None = None
        self.registration: Registration | None = None
        self._bell = Bell()
        self._close_lock = threading.Lock()
        self._keep_file: bool = False
        self._received_at: float = 0.0
        self._lease: Lease | None = None
        if settings:
            self.load_settings(settings)

    # ── settings and connection ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def settings(self) -> Content:
        """What was set, by dotted name."""
        return dict(self._settings.given) if self._settings is not None else {}

    def load_settings(self, settings: Mapping[str, Any]) -> None:
        """Set traits of the kernel, or by dotted names of its parts, before it starts.

        Raises:
            RuntimeError: the kernel has started.
            SettingError: there is no such setting, or it cannot have that value.
        """
        self._refuse_if_started("load its settings")
        if self._settings is None:
            from cobnut_kernel.runtime.settings import Settings

            self._settings = Settings()
        self._settings.load(self, settings)

    def load_connection_info(self, info: Content) -> None:
        """Take the connection from a dict instead of a file.

        Raises:
            ConnectionFileError: the dict names no connection.
            RuntimeError: the kernel has started.
        """
        self._refuse_if_started("load the connection")
        self._connection = ConnectionInfo.from_dict(info)

    def get_connection_info(self) -> Content:
        """Return the connection as a connection file holds it; once started, with the ports in use."""
        return self._load_connection().as_dict()

    def _refuse_if_started(self, what: str) -> None:
        if self.event_started.is_set():
            raise RuntimeError(f"The kernel has started: {what} before `run`, or in a new process.")

    def _load_connection(self) -> ConnectionInfo:
        if self._connection is None:
            if Path(self.connection_file).is_file():
                self._connection = load_connection_file(self.connection_file)
            else:
                # A unix socket's number is part of its path; a tcp port is the system's to choose.
                ports = range(1, 6) if self.transport == "ipc" else [0] * 5
                self._connection = ConnectionInfo(self.transport, self.ip, *ports, key=token_hex(32).encode())
        return self._connection

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, wait_exit: Callable[[], Awaitable[object]] = anyio.sleep_forever) -> None:
        """Run the kernel until it is stopped, or until `wait_exit` returns.

        In another thread than the main one it warns: no signal reaches it, and calls that block without looking for
        interrupts cannot be stopped. Where an event loop runs already, use `async with Kernel()` instead.
        """

        async def stop_after() -> None:
            await wait_exit()
            Kernel.stop()

        async def main() -> None:
            async with self, anyio.create_task_group() as tasks:
                tasks.start_soon(stop_after)
                await self._bell.wait(self.event_stopping.is_set)
                tasks.cancel_scope.cancel()

        anyio.run(main, **self._loop())

    def _loop(self) -> Content:
        """Return backend and options of a loop that runs cells, as anyio.run names them."""
        options = loop_options(self.anyio_backend, self.anyio_backend_options.get(self.anyio_backend))
        return {"backend": self.anyio_backend, "backend_options": options}

    @staticmethod
    def stop() -> None:
        """Stop the kernel: from any thread, at once. Cells that run are interrupted."""
        kernel = Kernel._instance
        if kernel is not None and not kernel.event_stopping.is_set():
            kernel.event_stopping.set()
            kernel._interrupts.interrupt()
            if kernel._service is not None:
                kernel._service.stdin.close()
            kernel._bell.ring()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Kernel]:
        """Serve requests in the running event loop while the context lasts."""
        if self.event_started.is_set():
            raise RuntimeError("A kernel runs once in a process: start a new process for another one.")
        lease = self._lease = Lease(
            self._io_thread, Policy.parse(self.when_abandoned), Kernel.stop, lambda: self._received_at
        )
        signals = self._take_signals(lease)
        self.event_started.set()
        try:
            service = self._open(lease)
            service.callers.add_loop(Channel.SHELL)
            options = {"capture_fds": self.capture_fd_output, "quiet": self.quiet}
            streams = self._streams = CapturedStreams(service.outbox, self._jobs, self._interrupts, **options)
            routing = ThreadRouting(self._jobs, self.thread_output)
            with streams, routing, self._make_shell(service, streams):
                self.tell(f"The kernel has started: {self.connection_file or self.get_connection_info()}")
                await self._run_startup()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(service.subshells.main_lanes.serve)
                    try:
                        yield self
                    finally:
                        Kernel.stop()
                        service.subshells.main_lanes.close()
        finally:
            if self._service is not None:
                self._service.subshells.stop_all_subshells()
                wait_for_cells(self._service.is_idle, self.cell_grace)
            self.close_sockets()
            if signals is not None:
                signals.restore()
            self.tell("The kernel has stopped.")
            self.event_stopped.set()

    def _take_signals(self, lease: Lease) -> Signals | None:
        if threading.current_thread() is threading.main_thread():
            hang_up = partial(lease.abandon, "The kernel's terminal has hung up")
            return Signals(self._io_thread, self._interrupts, Kernel.stop, hang_up)
        warnings.warn(
            "The kernel runs beside the main thread: signals do not reach it, and calls that block without looking "
            "for interrupts cannot be stopped. Some libraries expect to be called in the main thread.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None

    def _open(self, lease: Lease) -> Service:
        connection = self._load_connection()
        journal = Journal(self.journal_memory, self.journal_file)
        outbox = Outbox(self._io_thread, Codec(connection.key), journal)
        service = self._service = Service(outbox, self._interrupts, self._jobs, self._loop)
        self._connection = used = service.listen(connection, self._receive)
        known = used == connection and self.registration is None and Path(self.connection_file).exists()
        if self.connection_file and not known:
            write_connection_file(self.connection_file, used)
        if self.registration is not None:
            self.registration.send(used)
        Owner.from_environment().watch(self._io_thread, lease.abandon)
        return service

    @contextmanager
    def _make_shell(self, service: Service, streams: CapturedStreams) -> Generator[None]:
        """Make the main shell, and what cells expect of the process, while the context lasts."""
        # Imported here: IPython takes most of the start, and requests for the control thread need not wait for it.
        from cobnut_kernel.runtime.comms import CommManager
        from cobnut_kernel.runtime.shells.shell import Installed
        from cobnut_kernel.runtime.shells.startup import make_shell

        shell = make_shell(self.profile, self._settings)
        shell.kernel = self
        shell.connect(service.outbox, self._jobs, self._interrupts, streams.drain)
        service.comms = CommManager(service.outbox, self._jobs)
        with Installed(shell), service.comms:
            service.stdin.install()
            shell.enter()
            os.environ.setdefault("MPLBACKEND", _PICTURES)
            make_interruptible()
            if sys.flags.safe_path:
                add_user_folder()
            if self.registration is not None:
                self.registration.confirm()
            collector.resume()
            service.subshells.main_shell = shell  # who has waited for it, as all subshells do, is no part of the start
            try:
                yield
            finally:
                service.stdin.restore()

    async def _run_startup(self) -> None:
        """Run what the user's profile has for the start, as a cell that nobody has sent: it can be interrupted."""
        from cobnut_kernel.runtime.shells.startup import has_startup, run_startup

        async def run() -> None:
            run_startup(self.main_shell)

        if has_startup(self.main_shell):
            await self._interrupts.run(run(), self._running.own_job())

    def close_sockets(self) -> bool:
        """Send what is left, close the sockets and remove the connection file; from any thread, once.

        Returns:
            Whether this call has done it; if not, it had been done.
        """
        with self._close_lock:
            service, self._service = self._service, None
            if service is None:
                return False
            if self._streams is not None:
                self._streams.drain()
            service.close()
            if self.registration is not None:
                self.registration.close()
            if service.listens and self.connection_file and not self._keep_file:
                Path(self.connection_file).unlink(missing_ok=True)
            return True

    @classmethod
    def leave(cls) -> None:
        """Give a forked child the process's own streams: it has no I/O thread that would send what it says."""
        kernel = cls._instance
        if kernel is not None and kernel._streams is not None and kernel._service is not None:
            kernel._streams.restore()
            kernel._service.outbox.abandon()

    # ── what the running code belongs to ────────────────────────────────────────────────────────────────────────────

    @property
    def _running(self) -> Service:
        if self._service is None:
            raise RuntimeError("The kernel does not run: use it after it has started and before it stops.")
        return self._service

    @property
    def subshell_manager(self) -> SubshellManager:
        """The shells of this kernel."""
        return self._running.subshells

    @property
    def callers(self) -> dict[Channel, Caller]:
        """The callers of the loops that answer the channels' requests: shell and control."""
        return {channel: self._running.callers.get(channel) for channel in (Channel.SHELL, Channel.CONTROL)}

    @property
    def caller(self) -> Caller:
        """The caller of the running context: that of the shell channel, or of the thread that runs the cell."""
        from cobnut_kernel.caller import Caller

        return Caller.get_existing() or self._running.callers.get(Channel.SHELL)

    @property
    def main_shell(self) -> Shell:
        """The shell of the kernel's own thread."""
        return self._running.subshells.main_shell

    @property
    def session(self) -> Session:
        """Builds and sends messages as dicts, as this kernel."""
        if self._session is None:
            from cobnut_kernel.session import Session

            self._session = Session(self._running.outbox.codec)
        return self._session

    @property
    def debugger(self) -> Debugger:
        """The debugger of this kernel."""
        return self._running.debugger

    @property
    def iopub_socket(self) -> ReplySocket:
        """Where a message that `session` sends is published."""
        return ReplySocket(Channel.IOPUB, self._running.outbox)

    @property
    def shell(self) -> Shell:
        """The shell of the running context: the main one, or a subshell's."""
        return self.main_shell.get_ipython()

    def get_parent(self) -> Content:
        """Return the request that the running code belongs to, as clients see messages; {} before the first."""
        job = self._jobs.get()
        return job.message.as_dict() if job is not None else {}

    def topic(self, topic: str) -> bytes:
        """Name the iopub topic of a message type."""
        return f"kernel.{self._running.outbox.codec.session}.{topic}".encode()

    def iopub_send(
        self,
        msg_or_type: Content | str,
        content: Content | None = None,
        metadata: Content | None = None,
        parent: Content | None = None,
        ident: bytes | list[bytes] | None = None,
        buffers: list[bytes] | None = None,
    ) -> None:
        """Publish a message on iopub.

        Args:
            msg_or_type: a message type, or a whole message as a dict, with `header` and `content`.
            content: the content, where the first is a type.
            metadata: the metadata.
            parent: the request it belongs to, as a message or its header; by default that of the running code.
            ident: the topic, where it is not that of the type.
            buffers: binary parts.
        """
        message: Content = msg_or_type if isinstance(msg_or_type, dict) else {}
        kind = message["header"]["msg_type"] if message else str(msg_or_type)
        header = self.get_parent() if parent is None else parent
        header = message.get("parent_header") or header.get("header", header)
        self._running.outbox.post(
            Outgoing(
                Channel.IOPUB,
                kind,
                dumps(content if content is not None else message.get("content", {})),
                dumps(header),
                dumps(metadata if metadata is not None else message.get("metadata", {})),
                tuple([ident] if isinstance(ident, bytes) else ident or ()),
                tuple(map(bytes, buffers or message.get("buffers", ()))),
            )
        )

    # ── the way of a request ────────────────────────────────────────────────────────────────────────────────────────

    def receive_msg_loop(self, socket_id: Channel, messages: Iterable[Message]) -> None:
        """Hand what was received on a channel to `msg_handler`; called in the I/O thread, and must not wait."""
        for message in messages:
            job = self._running.job(socket_id, message)
            self.msg_handler(job.subshell_id, socket_id, message.msg_type, job, self._send_reply)

    def msg_handler(
        self, subshell_id: str | None, socket_id: Channel, msg_type: str, job: Job, send_reply: SendReply
    ) -> None:
        """Schedule a request; called in the I/O thread, and must not wait."""
        job.run_mode = self.get_run_mode(msg_type, socket_id=socket_id, job=job)
        job.answer = partial(self.run_handler, subshell_id, send_reply, self._handler(msg_type), job)
        self._running.schedule(job)

    async def run_handler(
        self, subshell_id: str | None, send_reply: SendReply, handler: Handler | None, job: Job
    ) -> None:
        """Answer a request: busy, what the handler returns or its error as the reply, idle."""
        await self._running.answering.run(handler, job, send_reply)

    def get_run_mode(self, msg_type: str, *, socket_id: Channel = Channel.SHELL, job: Job | None = None) -> RunMode:
        """Say how a request is run: a cell as its tags, its first line or `silent` ask for."""
        if msg_type == MessageType.EXECUTE_REQUEST and job is not None:
            return run_mode(job.message.content, job.message.metadata)
        return ROUTES.get(msg_type, AT_ONCE).mode

    def all_concurrency_run_modes(
        self,
        socket_ids: Iterable[Channel] = (Channel.SHELL, Channel.CONTROL),
        msg_types: Iterable[MessageType] = tuple(MessageType),
    ) -> dict[str, tuple[Any, ...]]:
        """Return the table of run modes: its columns SocketID, MsgType and RunMode, by name."""
        return run_mode_table(socket_ids, msg_types)

    def _receive(self, channel: Channel, message: Message) -> None:
        self._received_at = monotonic()
        if channel is Channel.STDIN:
            self._running.stdin.on_reply(message)
        else:
            self.receive_msg_loop(channel, [message])

    def _handler(self, msg_type: str) -> Handler | None:
        if msg_type.endswith("_request") or msg_type in _COMM_MESSAGES:
            return getattr(self, msg_type, None)
        return None

    async def _send_reply(self, job: Job, content: Content | Reply) -> None:
        if job.socket is not None:
            job.socket.send(job, content)

    def _end(self, *, restart: bool) -> None:
        self._keep_file = restart
        Kernel.stop()

    # ── for user code ───────────────────────────────────────────────────────────────────────────────────────────────

    def raw_input(self, prompt: str = "") -> str:
        """Ask the client that ran the cell for a line; `input` of cells.

        Raises:
            StdinNotImplementedError: the client cannot be asked.
            EOFError: there is no more input.
        """
        return self._running.stdin.raw_input(prompt)

    def getpass(self, prompt: str = "") -> str:
        """Ask the client that ran the cell for a password; `getpass.getpass` of cells.

        Raises:
            StdinNotImplementedError: the client cannot be asked.
            EOFError: there is no more input.
        """
        return self._running.stdin.getpass(prompt)

    def excepthook(self, etype: type[BaseException], evalue: BaseException, tb: types.TracebackType | None) -> None:
        """Show an error that nobody has caught in a thread or a callback: it belongs to the cell that caused it."""
        self.shell.showtraceback((etype, evalue, tb))

    def unraisablehook(self, unraisable: sys.UnraisableHookArgs, /) -> None:
        """Log an error that Python could raise nowhere, in a destructor say."""
        self.log.error("Ignored in %r: %s", unraisable.object, unraisable.err_msg, exc_info=unraisable.exc_value)


os.register_at_fork(after_in_child=Kernel.leave)
