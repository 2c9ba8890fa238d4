"""The kernel: its settings, its life, and the answer to each request."""

from __future__ import annotations

import os
import platform
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from anyio import AsyncContextManagerMixin
from traitlets import CaselessStrEnum, HasTraits, List, Unicode

from cobnut_kernel import __version__
from cobnut_kernel.connection_files import load_connection_file, write_connection_file
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import PROTOCOL_VERSION, Channel, MessageType
from cobnut_kernel.runtime.dispatch import Dispatcher, Handler, Lane, LaneName, error_content, publish_status
from cobnut_kernel.runtime.imports import add_user_folder
from cobnut_kernel.runtime.interrupts import Interrupted, Interrupts
from cobnut_kernel.runtime.job import CurrentJob, Job
from cobnut_kernel.runtime.lifetime import Signals, watch_owner
from cobnut_kernel.runtime.loop import KernelLoop, end_forked_child
from cobnut_kernel.runtime.sockets import KernelSockets, Outbox, Outgoing
from cobnut_kernel.runtime.streams import CapturedStreams
from cobnut_kernel.transport import Bell, IOThread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from cobnut_kernel.runtime.shell import Outcome, Shell


class Kernel(HasTraits, AsyncContextManagerMixin):
    """A Jupyter kernel that runs Python cells by IPython.

    A process has one: `Kernel()` returns it. A stopped one cannot start again.
    """

    connection_file = Unicode(help="JSON file with the connection; it is written where it does not exist.")
    kernel_name = Unicode("cobnut", help="The kernel's name.")
    transport = CaselessStrEnum(["tcp", "ipc"], default_value="tcp", help="Transport, where no file says it.")
    ip = Unicode("127.0.0.1", help="The address to listen on, where no file says it; for ipc the path's beginning.")
    help_links: List[dict[str, str]] = List(help="The links that kernel_info names.")

    _instance: ClassVar[Kernel | None] = None

    def __new__(cls, **settings: Any) -> Kernel:  # noqa: PYI034 - the one there is may be a subclass's
        """Return the process's kernel; settings are for the first call, which makes it."""
        if Kernel._instance is None:
            Kernel._instance = super().__new__(cls, **settings)
        return Kernel._instance

    def __init__(self, **settings: Any) -> None:
        if "event_stopped" in self.__dict__:
            return
        super().__init__(**settings)
        self._jobs = CurrentJob()
        self._io_thread = IOThread.shared()
        self._interrupts = Interrupts(self._io_thread)
        self._connection: ConnectionInfo | None = None
        self._outbox: Outbox | None = None
        self._streams: CapturedStreams | None = None
        self._sockets: KernelSockets | None = None
        self._shell: Shell | None = None
        self._lanes: dict[LaneName, Lane] = {}
        self._control_thread: threading.Thread | None = None
        self._bell = Bell()
        self._close_lock = threading.Lock()
        self._keep_file: bool = False
        self._pid = os.getpid()
        self.event_started = threading.Event()
        self.event_stopping = threading.Event()
        self.event_stopped = threading.Event()

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def load_connection_info(self, info: dict[str, Any]) -> None:
        """Take the connection from a dict instead of a file.

        Raises:
            ConnectionFileError: the dict names no connection.
            RuntimeError: the kernel has started.
        """
        if self._sockets is not None:
            raise RuntimeError("The kernel listens already: load the connection before it starts.")
        self._connection = ConnectionInfo.from_dict(info)

    def get_connection_info(self) -> dict[str, Any]:
        """Return the connection as a connection file holds it; once started, with the ports in use."""
        return self._load_connection().as_dict()

    def run(self, wait_exit: Callable[[], Awaitable[object]] = anyio.sleep_forever) -> None:
        """Run the kernel until it is stopped, or until `wait_exit` returns."""

        async def stop_after() -> None:
            await wait_exit()
            Kernel.stop()

        async def main() -> None:
            async with self, anyio.create_task_group() as tasks:
                tasks.start_soon(stop_after)
                await self._bell.wait(self.event_stopping.is_set)
                tasks.cancel_scope.cancel()

        anyio.run(main, backend_options={"loop_factory": KernelLoop})

    @staticmethod
    def stop() -> None:
        """Stop the kernel: from any thread, at once. A cell that runs is interrupted."""
        kernel = Kernel._instance
        if kernel is not None and not kernel.event_stopping.is_set():
            kernel.event_stopping.set()
            kernel._interrupts.interrupt()
            kernel._bell.ring()

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Kernel]:
        """Serve requests in the running event loop while the context lasts."""
        if self.event_started.is_set():
            raise RuntimeError("A kernel runs once in a process: start a new process for another one.")
        self.event_started.set()
        signals = Signals(self._io_thread, self._interrupts, Kernel.stop)
        try:
            outbox = self._open()
            with CapturedStreams(outbox, self._jobs, self._interrupts) as self._streams:
                self._shell = self._make_shell(outbox)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._lanes[LaneName.MAIN].serve)
                    try:
                        yield self
                    finally:
                        Kernel.stop()
                        self._lanes[LaneName.MAIN].close()
        finally:
            self.close_sockets()
            signals.restore()
            self.event_stopped.set()

    def _open(self) -> Outbox:
        """Listen: from here on requests are received, and those for the control thread answered."""
        connection = self._load_connection()
        outbox = self._outbox = Outbox(self._io_thread, Codec(connection.key))
        self._lanes = {name: Lane(outbox, self._jobs, self._handlers()) for name in LaneName}
        self._sockets = KernelSockets(connection, outbox, Dispatcher(self._lanes).receive)
        if self._sockets.connection != connection:
            self._connection = self._sockets.connection
            if self.connection_file:
                write_connection_file(self.connection_file, self._connection)
        self._control_thread = threading.Thread(
            target=anyio.run, args=(self._lanes[LaneName.CONTROL].serve,), name="cobnut-control", daemon=True
        )
        self._control_thread.start()
        publish_status(outbox, "starting")
        if owner := os.environ.get("JPY_PARENT_PID"):
            watch_owner(self._io_thread, int(owner), Kernel.stop)
        return outbox

    def close_sockets(self) -> bool:
        """Send what is left, close the sockets and remove the connection file; from any thread, once.

        Returns:
            Whether this call has done it; if not, it had been done.
        """
        with self._close_lock:
            sockets, self._sockets = self._sockets, None
            if sockets is None:
                return False
            self._lanes[LaneName.CONTROL].close()
            if self._control_thread is not None:
                self._control_thread.join(timeout=1)
            sockets.close()
            if self.connection_file and not self._keep_file:
                Path(self.connection_file).unlink(missing_ok=True)
            return True

    def _load_connection(self) -> ConnectionInfo:
        if self._connection is None:
            if Path(self.connection_file).is_file():
                self._connection = load_connection_file(self.connection_file)
            else:
                # A unix socket's number is part of its path; a tcp port is the system's to choose.
                ports = range(1, 6) if self.transport == "ipc" else [0] * 5
                self._connection = ConnectionInfo(self.transport, self.ip, *ports, key=token_hex(32).encode())
        return self._connection

    def _make_shell(self, outbox: Outbox) -> Shell:
        # Imported here: IPython takes most of the start, and requests for the control thread need not wait for it.
        from cobnut_kernel.runtime.shell import Shell

        shell = Shell.instance()
        shell.connect(outbox, self._jobs, self._interrupts)
        if sys.flags.safe_path:
            add_user_folder()
        return shell

    # ── what the running code belongs to ────────────────────────────────────────────────────────────────────────────

    @property
    def main_shell(self) -> Shell:
        """The shell of the main thread."""
        if self._shell is None:
            raise RuntimeError("The kernel has no shell before it has started.")
        return self._shell

    def get_parent(self) -> dict[str, Any]:
        """Return the request that the running code belongs to, as clients see messages; {} before the first."""
        job = self._jobs.get()
        return job.message.as_dict() if job is not None else {}

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handlers(self) -> dict[str, Handler]:
        """Name the coroutine that answers each request."""
        return {
            MessageType.COMM_INFO_REQUEST: self.comm_info_request,
            MessageType.EXECUTE_REQUEST: self.execute_request,
            MessageType.INTERRUPT_REQUEST: self.interrupt_request,
            MessageType.KERNEL_INFO_REQUEST: self.kernel_info_request,
            MessageType.SHUTDOWN_REQUEST: self.shutdown_request,
        }

    @property
    def kernel_info(self) -> dict[str, Any]:
        """What kernel_info_reply says (specification: "Kernel info")."""
        version = platform.python_version()
        return {
            "status": "ok",
            "protocol_version": PROTOCOL_VERSION,
            "implementation": "cobnut",
            "implementation_version": __version__,
            "language_info": {
                "name": "python",
                "version": version,
                "mimetype": "text/x-python",
                "file_extension": ".py",
                "pygments_lexer": "ipython3",
                "codemirror_mode": {"name": "ipython", "version": 3},
                "nbconvert_exporter": "python",
            },
            "banner": f"Python {version} · cobnut {__version__}",
            "help_links": self.help_links,
            "supported_features": [],
        }

    async def kernel_info_request(self, _job: Job) -> dict[str, Any]:
        """Answer what this kernel is."""
        return self.kernel_info

    async def comm_info_request(self, _job: Job) -> dict[str, Any]:
        """Answer which comms are open: this kernel opens none yet."""
        return {"status": "ok", "comms": {}}

    async def interrupt_request(self, _job: Job) -> dict[str, Any]:
        """Interrupt the cell that runs; where none does, nothing happens."""
        self._interrupts.interrupt()
        return {"status": "ok"}

    async def shutdown_request(self, job: Job) -> dict[str, Any]:
        """Stop the kernel, and tell every client (specification: "Kernel shutdown")."""
        self._keep_file = bool(job.message.content.get("restart", False))
        content = {"status": "ok", "restart": self._keep_file}
        self._send(MessageType.SHUTDOWN_REPLY, content, job)
        Kernel.stop()
        return content

    async def execute_request(self, job: Job) -> dict[str, Any]:
        """Run a cell."""
        from cobnut_kernel.runtime.shell import Cell

        shell = self.main_shell
        cell = Cell.from_request(job.message.content, job.message.metadata)
        job.execution_count = shell.execution_count
        if not cell.silent:
            self._send(MessageType.EXECUTE_INPUT, {"code": cell.code, "execution_count": shell.execution_count}, job)
        outcome = await self._interrupts.run(shell.run(cell))
        if os.getpid() != self._pid:
            end_forked_child(outcome.error)
        if isinstance(outcome, Interrupted):
            outcome = shell.interrupted(outcome.error)
        if outcome.error is not None and not cell.silent and job.message.content.get("stop_on_error", True):
            self._lanes[LaneName.MAIN].abort_queued()
        if shell.exit_requested:
            Kernel.stop()
        return _execute_reply(job, outcome)

    def _send(self, msg_type: MessageType, content: dict[str, Any], job: Job) -> None:
        if self._outbox is not None:
            self._outbox.post(Outgoing(Channel.IOPUB, msg_type, dumps(content), job.parent))

    @classmethod
    def leave(cls) -> None:
        """Give a forked child the process's own streams: it has no I/O thread that would send what it says."""
        kernel = cls._instance
        if kernel is not None and kernel._streams is not None and kernel._outbox is not None:
            kernel._streams.restore()
            kernel._outbox.abandon()


os.register_at_fork(after_in_child=Kernel.leave)


def _execute_reply(job: Job, outcome: Outcome) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "status": "ok",
        "execution_count": job.execution_count,
        "user_expressions": outcome.expressions,
        "payload": job.payload,
    }
    if outcome.error is not None:
        reply |= {"status": "error", **(job.error or error_content(outcome.error))}
    return reply
