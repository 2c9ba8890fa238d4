"""A fork server and its kernels as their owner sees them: packets, processes, files; no class of the server."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.kernel.wire import KEY, TIMEOUT, WireClient, WireError

from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.fork import (
    MAX_PACKET,
    MODULE,
    Answer,
    Exited,
    Fork,
    Forked,
    Packet,
    Refused,
    State,
    decode_answer,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound=Packet)


class ForkedProcess:
    """A process that is not our child, by its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def poll(self) -> str | None:
        """Say whether it has ended; its code is known to its parent alone."""
        return "(see Exited)" if select.select([self.pidfd], [], [], 0)[0] else None

    def wait(self) -> None:
        """Wait for its end."""
        if not select.select([self.pidfd], [], [], TIMEOUT)[0]:
            raise WireError(f"Waited {TIMEOUT:g} s for the process {self.pid} to end.")


class ForkedKernel:
    """A kernel that a fork server has forked; it is for `WireClient` what a kernel's process is."""

    def __init__(self, server: ForkServer, transport: str) -> None:
        self.server = server
        self.folder = server.folder / str(next(server.numbers))
        self.folder.mkdir(mode=0o700)
        self.connection_file = self.folder / "kernel.json"
        ports = range(1, 6) if transport == "ipc" else [0] * 5
        address = str(self.folder / "socket") if transport == "ipc" else "127.0.0.1"
        self.info = ConnectionInfo(transport, address, *ports, key=KEY)
        self.connection_file.write_text(json.dumps(self.info.as_dict()))
        self.connection_file.chmod(0o600)
        self.process: ForkedProcess = ForkedProcess(0, -1)

    @property
    def files(self) -> tuple[str, ...]:
        """What is to be removed after it."""
        return (str(self.connection_file), *self.info.ipc_paths())

    @property
    def stderr(self) -> str:
        """What it has written outside its cells."""
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def left_over(self) -> list[str]:
        """The files that it still has: connection file and sockets."""
        return sorted(path.name for path in self.folder.iterdir() if path.name != "stderr")

    def describe(self) -> str:
        """Say how it is."""
        return f"Its process {self.process.pid}: {self.process.poll() or 'runs'}. Its stderr:\n{self.stderr[-3000:]}"

    def connect(self) -> WireClient:
        """Return a new client, welcomed by iopub."""
        while not self.info.hb_port:
            if self.process.poll():
                raise WireError(self.describe())
            self.info = ConnectionInfo.from_dict(json.loads(self.connection_file.read_text()))
        client = WireClient(self)  # pyright: ignore[reportArgumentType] - it has what a client needs
        self.server.clients.append(client)
        client.wait(lambda: client.welcomes, "the iopub_welcome")
        return client


class ForkServer:
    """A template's process and our end of its socket."""

    def __init__(self, env: Mapping[str, str | None] | None = None, *, ready: bool = True) -> None:
        wanted = {**os.environ, "JPY_PARENT_PID": str(os.getpid()), **(env or {})}
        self.env = {name: value for name, value in wanted.items() if value is not None}
        self.folder = Path(tempfile.mkdtemp(prefix="cobnut-test-"))
        self.numbers = count(1)
        self.clients: list[WireClient] = []
        self.kernels: list[ForkedKernel] = []
        self.answers: list[Answer] = []
        self.pidfds: list[int] = []
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(TIMEOUT)
        with theirs, (self.folder / "stderr").open("wb") as stderr:
            command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                env=self.env,
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        if ready:
            self.state = self.receive(State)

    # ── packets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, packet: Packet | bytes, *descriptors: int) -> None:
        """Send a packet, or bytes that are none."""
        data = packet.encode() if isinstance(packet, Packet) else packet
        socket.send_fds(self.socket, [data], descriptors)

    def receive(self, kind: type[T], **fields: Any) -> T:
        """Receive until there is an answer of a kind, with these fields, and take it out of the others."""
        while True:
            for answer in self.answers:
                if isinstance(answer, kind) and all(getattr(answer, name) == value for name, value in fields.items()):
                    self.answers.remove(answer)
                    return answer
            data, descriptors, _, _ = socket.recv_fds(self.socket, MAX_PACKET, 1)
            self.pidfds += descriptors
            if not data:
                raise WireError(f"The fork server has ended with code {self.process.wait()}: {self.stderr}")
            answer = decode_answer(data)
            self.answers.append(answer)
            if isinstance(answer, Refused) and kind is Forked and fields["id"] == answer.id:
                raise WireError(f"The kernel was refused: {answer.text}")

    # ── kernels ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def ask_for(self, kernel: ForkedKernel, **options: Any) -> str:
        """Ask for a kernel, and do not wait for the answer; return the request's id."""
        kernel_id = kernel.folder.name
        defaults = {"arguments": ("-f", str(kernel.connection_file)), "env": self.env, "cwd": str(kernel.folder)}
        with (kernel.folder / "stderr").open("ab") as stderr:
            streams = {"streams": (1, 2), "files": kernel.files}
            self.send(Fork(id=kernel_id, **{**defaults, **streams, **options}), stderr.fileno(), stderr.fileno())
        return kernel_id

    def forked(self, kernel: ForkedKernel) -> ForkedKernel:
        """Wait until a kernel that was asked for runs."""
        answer = self.receive(Forked, id=kernel.folder.name)
        kernel.process = ForkedProcess(answer.pid, self.pidfds.pop(0))
        self.kernels.append(kernel)
        return kernel

    def fork(self, transport: str = "ipc", **options: Any) -> ForkedKernel:
        """Return a kernel that was forked now."""
        kernel = ForkedKernel(self, transport)
        self.ask_for(kernel, **options)
        return self.forked(kernel)

    def exit_code(self, kernel: ForkedKernel) -> int:
        """Wait until the server says that a kernel has ended."""
        return self.receive(Exited, pid=kernel.process.pid).status

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def stderr(self) -> str:
        """What the template has written."""
        return (self.folder / "stderr").read_text(errors="replace")

    def leave(self) -> None:
        """Close our end, as our death would."""
        self.socket.close()

    def end(self) -> None:
        """End everything; once is enough."""
        while self.clients:
            self.clients.pop().close()
        self.leave()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        for kernel in self.kernels:
            if not kernel.process.poll():  # it outlives its owner, or its template was killed
                with suppress(ProcessLookupError):
                    os.killpg(kernel.process.pid, signal.SIGKILL)
            os.close(kernel.process.pidfd)
        self.kernels.clear()
        for pidfd in self.pidfds:
            os.close(pidfd)
        self.pidfds.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
