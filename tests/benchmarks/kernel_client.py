"""One bare zmq client, the same for every kernel, and the kernel processes that it talks to."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import orjson
import zmq
from table import WorkFailed

from cobnut_kernel.protocol import fork

if TYPE_CHECKING:
    from collections.abc import Sequence

A = TypeVar("A", bound=fork.Packet)

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
RECONNECT_MS = 2
_DELIMITER = b"<IDS|MSG>"
_KERNELSPECS = {"ipykernel": "python3", "async-kernel": "async", "xeus-python": "xpython"}


@dataclass(frozen=True)
class KernelRecipe:
    """How a kernel is started and interrupted; `{connection_file}` stands in its argv, `folder` is its home."""

    name: str
    argv: tuple[str, ...]
    folder: Path
    interrupt_mode: str = "signal"
    transport: str = "tcp"
    ours: bool = False


def our_kernels(folder: Path) -> list[KernelRecipe]:
    """Return our kernel over both transports."""
    argv = (sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}")
    return [
        KernelRecipe("cobnut", argv, folder, "message", "tcp", ours=True),
        KernelRecipe("cobnut (ipc)", argv, folder, "message", "ipc", ours=True),
    ]


def peer_kernels(environment: Path, folder: Path) -> list[KernelRecipe]:
    """Return the peers as their own kernelspecs start them, with the environment's interpreter."""
    return [_peer_kernel(environment, folder, name, spec) for name, spec in _KERNELSPECS.items()]


def _peer_kernel(environment: Path, folder: Path, name: str, spec: str) -> KernelRecipe:
    described = json.loads((environment / "share" / "jupyter" / "kernels" / spec / "kernel.json").read_text())
    _python, *rest = described["argv"]
    argv = (str(environment / "bin" / "python"), *rest)
    return KernelRecipe(name, argv, folder, described.get("interrupt_mode", "signal"))


@dataclass
class Cell:
    """One request: when it was sent, and what came for it so far. Times are those of perf_counter."""

    sent: float
    replied: float | None = None
    idle: float | None = None
    last: float = 0.0
    reply: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    result: str = ""

    @property
    def done(self) -> bool:
        """Return whether both the reply and idle came."""
        return self.replied is not None and self.idle is not None

    @property
    def seconds(self) -> float:
        """Return how long it took until the last of its messages."""
        return self.last - self.sent

    def take(self, channel: str, msg_type: str, content: bytes) -> None:
        """Note a message that belongs to this request."""
        self.last = time.perf_counter()
        self.counts[msg_type] += 1
        if channel == "stdin":
            return
        if channel != "iopub":
            self.replied, self.reply = self.last, orjson.loads(content)
        elif msg_type == "stream":
            self.lines += orjson.loads(content)["text"].count("\n")
        elif msg_type == "execute_result":
            self.result = orjson.loads(content)["data"]["text/plain"]
        elif msg_type == "status" and b"idle" in content:
            self.idle = self.last


class KernelClient:
    """Sign and send requests, and sort what comes by the request that it belongs to.

    The high-water marks of what it reads are zmq's own, as in the stock client; that of what it sends is off.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._key = hmac.new(connection["key"].encode(), digestmod=hashlib.sha256)
        self._session = uuid.uuid4().hex
        self._count = 0
        self._cells: dict[str, Cell] = {}
        self.heard = False
        self.echoes = 0
        self._context = zmq.Context()
        self._context.linger = 0
        self._poller = zmq.Poller()
        self._shell = self._connect(zmq.DEALER, connection, "shell")
        self._control = self._connect(zmq.DEALER, connection, "control")
        self._stdin = self._connect(zmq.DEALER, connection, "stdin")
        self._iopub = self._connect(zmq.SUB, connection, "iopub")
        self._channels = {self._shell: "shell", self._control: "control", self._iopub: "iopub", self._stdin: "stdin"}

    def _connect(self, kind: int, connection: dict[str, Any], channel: str) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        if kind == zmq.SUB:
            opened.subscribe(b"")
        else:
            opened.setsockopt(zmq.SNDHWM, 0)
            opened.setsockopt(zmq.IDENTITY, self._session.encode())
        opened.connect(url(connection, channel))
        self._poller.register(opened, zmq.POLLIN)
        return opened

    def send(self, msg_type: str, content: dict[str, Any], *, control: bool = False, subshell: str = "") -> Cell:
        """Send a request on shell or control, for the main shell or a subshell."""
        self._count += 1
        msg_id = f"{self._session}_{self._count}"
        header = {"msg_id": msg_id, "msg_type": msg_type, "session": self._session, "username": "benchmark"}
        header |= {"date": datetime.now(UTC).isoformat(), "version": "5.3"}
        header |= {"subshell_id": subshell} if subshell else {}
        parts = [orjson.dumps(header), b"{}", b"{}", orjson.dumps(content)]
        signature = self._key.copy()
        for part in parts:
            signature.update(part)
        cell = self._cells[msg_id] = Cell(time.perf_counter())
        frames = [_DELIMITER, signature.hexdigest().encode(), *parts]
        (self._control if control else self._shell).send_multipart(frames)
        return cell

    def execute(self, code: str, *, asking: bool = False, subshell: str = "") -> Cell:
        """Send an execute_request as a notebook does; `asking` lets the cell ask for input."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        content |= {"allow_stdin": asking, "stop_on_error": True}
        return self.send("execute_request", content, subshell=subshell)

    def receive(self, seconds: float) -> bool:
        """Take what is there or comes first within so many seconds; return whether anything did."""
        events = self._poller.poll(max(0, seconds) * 1000)
        for ready, _ in events:
            with contextlib.suppress(zmq.Again):
                while True:
                    self._take(self._channels[ready], ready.recv_multipart(zmq.NOBLOCK))
        return bool(events)

    def _take(self, channel: str, frames: list[bytes]) -> None:
        self.heard = self.heard or channel == "iopub"
        if _DELIMITER not in frames:  # the empty frame of iopub_welcome
            return
        _signature, header, parent, _metadata, content = frames[frames.index(_DELIMITER) + 1 :][:5]
        cell = self._cells.get((orjson.loads(parent) or {}).get("msg_id", ""))  # xeus-python sends null
        msg_type = orjson.loads(header)["msg_type"]
        self.echoes += msg_type == "comm_msg"  # async-kernel's have no parent
        if cell is not None:
            cell.take(channel, msg_type, content)

    def close(self) -> None:
        """Close the sockets."""
        self._context.destroy()


class ForkServer:
    """Our fork server, ready when the context is entered; its kernels end with it."""

    def __init__(self, recipe: KernelRecipe) -> None:
        self._recipe = recipe
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(30)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = (self._recipe.argv[0], "-P", "-m", fork.MODULE, str(self._theirs.fileno()))
        with self._theirs:
            self.process = subprocess.Popen(
                command,
                env=_environment(self._recipe),
                pass_fds=[self._theirs.fileno()],
                cwd="/",
                start_new_session=True,
            )
        self.receive(fork.State)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self.process is not None:
            self.process.wait()

    def start(self, argv: Sequence[str], log: int) -> ForkedProcess:
        """Fork a kernel that a command stands for."""
        arguments = fork.kernel_arguments(argv, argv[0])
        assert arguments is not None
        request = fork.Fork("1", arguments, _environment(self._recipe), str(Path.cwd()), streams=(1, 2))
        socket.send_fds(self._socket, [request.encode()], [log, log])
        return ForkedProcess(self.receive(fork.Forked).pid)

    def receive(self, kind: type[A]) -> A:
        """Return the next answer of a kind.

        Raises:
            WorkFailed: where a kernel is refused, or the server has ended.
        """
        while True:
            data, descriptors, _flags, _address = socket.recv_fds(self._socket, fork.MAX_PACKET, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            answer = fork.decode_answer(data) if data else None
            if isinstance(answer, kind):
                return answer
            if answer is None or isinstance(answer, fork.Refused):
                raise WorkFailed("died" if answer is None else f"refused ({answer.text})")

    def pss(self) -> float:
        """Return the proportional memory of the template and all that it has forked, in MB."""
        assert self.process is not None
        return sum(map(_pss, _with_children(self.process.pid)))


class ForkedProcess:
    """A process that another one reaps, as `subprocess` shows its own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = 0

    def poll(self) -> int | None:
        """Return None while it runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return self.returncode
        return None

    def wait(self) -> int:
        """Wait until it was reaped."""
        while self.poll() is None:
            time.sleep(0.001)
        return self.returncode


class RunningKernel:
    """A kernel process in a session of its own, ready when the context is entered, killed when it is left.

    With a fork server it is forked there.
    """

    def __init__(self, recipe: KernelRecipe, server: ForkServer | None = None) -> None:
        self.recipe, folder = recipe, recipe.folder
        self._server = server
        name = uuid.uuid4().hex[:12]
        self._file, self._log = folder / f"{name}.json", folder / f"{name}.log"
        connection = _new_connection(recipe.transport, folder / name)
        self._file.write_text(json.dumps(connection))
        self._file.chmod(0o600)
        self.client = KernelClient(connection)
        self.started = 0.0
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None

    def __enter__(self) -> Self:
        argv = [part.replace("{connection_file}", str(self._file)) for part in self.recipe.argv]
        try:
            with self._log.open("wb") as log:
                self.started = time.perf_counter()
                self.process = self._start(argv, log.fileno())
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.client.close()

    def _start(self, argv: list[str], log: int) -> subprocess.Popen[bytes] | ForkedProcess:
        if self._server is not None:
            return self._server.start(argv, log)
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(self.recipe),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Return the kernel's process id."""
        assert self.process is not None
        return self.process.pid

    def _wait_until_ready(self, limit: float = 30) -> None:
        """Ask until a reply came and iopub is heard, so that no output can be missed."""
        deadline = time.perf_counter() + limit
        asked = [self.client.send("kernel_info_request", {})]
        while not (self.client.heard and any(cell.replied for cell in asked)):
            self.client.receive(0.01)
            if asked[-1].replied and not self.client.heard:
                asked.append(self.client.send("kernel_info_request", {}))
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        if self.process is not None and self.process.poll() is not None:
            print(self._log.read_text(errors="replace")[-2000:], file=sys.stderr)
            raise WorkFailed(f"died ({_name_of_exit(self.process.returncode)})")
        if time.perf_counter() > deadline:
            raise WorkFailed("never")

    def follow(self, *cells: Cell, limit: float = 60, quiet: float = 2) -> bool:
        """Receive until every cell is done; return False where `limit` seconds passed, or nothing comes any more.

        Nothing comes any more when all were replied to and then nothing was heard for `quiet` seconds.

        Raises:
            WorkFailed: where the kernel dies.
        """
        end = time.perf_counter() + limit
        waiting = list(cells)
        while waiting := [cell for cell in waiting if not cell.done]:
            came = self.client.receive(quiet)
            while came and not waiting[-1].done and time.perf_counter() < end:
                came = self.client.receive(quiet)
            if (not came and all(cell.replied for cell in waiting)) or time.perf_counter() >= end:
                return False
            self._check(end + quiet)
        return True

    def run(self, code: str, limit: float = 60) -> Cell:
        """Execute code and wait for its end.

        Raises:
            WorkFailed: where the reply or idle does not come.
        """
        cell = self.client.execute(code)
        if not self.follow(cell, limit=limit):
            raise WorkFailed("never" if cell.replied is None else "no idle")
        return cell

    def begin(self, code: str, settle: float, *, asking: bool = False, subshell: str = "") -> Cell:
        """Execute code that blocks, and return when it has run, or asked, for `settle` seconds."""
        cell = self.client.execute(code, asking=asking, subshell=subshell)
        deadline = time.perf_counter() + 10
        while not cell.counts["input_request" if asking else "execute_input"]:
            self.client.receive(0.05)
            self._check(deadline)
        time.sleep(settle)
        return cell

    def create_subshell(self) -> str:
        """Start a subshell and return its id.

        Raises:
            WorkFailed: the kernel has none.
        """
        asked = self.client.send("create_subshell_request", {}, control=True)
        with contextlib.suppress(WorkFailed):
            self.wait_for_reply(asked, 3)
        if "subshell_id" not in asked.reply:
            raise WorkFailed("no subshells")
        return asked.reply["subshell_id"]

    def interrupt_subshell(self, subshell: str) -> None:
        """Interrupt the cells of a subshell alone, where that can be asked for, else those of the whole kernel."""
        if self.recipe.ours:
            self.client.send("interrupt_cells_request", {"subshell_id": subshell}, control=True)
        else:
            self.interrupt()

    def interrupt(self) -> None:
        """Interrupt as the kernelspec asks for: a message on control, or a signal to the process group."""
        if self.recipe.interrupt_mode == "message":
            self.client.send("interrupt_request", {}, control=True)
        else:
            os.killpg(self.pid, signal.SIGINT)

    def wait_for_reply(self, cell: Cell, limit: float) -> float:
        """Return when the reply to a cell came, as perf_counter has it.

        Raises:
            WorkFailed: where it does not come within so many seconds, or the kernel dies.
        """
        deadline = time.perf_counter() + limit
        while cell.replied is None:
            self.client.receive(min(0.05, limit))
            self._check(deadline)
        return cell.replied

    def wait_for_exit(self, limit: float) -> float:
        """Return when the process was gone, as perf_counter has it.

        Raises:
            WorkFailed: where it still runs after so many seconds.
        """
        poll, ended = select.poll(), os.pidfd_open(self.pid)
        try:
            poll.register(ended, select.POLLIN)
            if not poll.poll(limit * 1000):
                raise WorkFailed("never")
            return time.perf_counter()
        finally:
            os.close(ended)

    def processes(self) -> list[int]:
        """Return the ids of all processes of the kernel's session."""
        found = [self.pid]
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == self.pid and int(entry.name) != self.pid:
                    found.append(int(entry.name))
        return found

    def pss(self) -> float:
        """Return the proportional memory of all its processes, in MB."""
        return sum(map(_pss, self.processes()))

    def rss(self) -> float:
        """Return the resident memory of the kernel process, in MB, and forget its peak."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return _kilobytes(Path(f"/proc/{self.pid}/status").read_text(), "VmRSS:") / 1000

    def peak_rss(self) -> float:
        """Return the highest resident memory since `rss` was asked for, in MB."""
        return _kilobytes(Path(f"/proc/{self.pid}/status").read_text(), "VmHWM:") / 1000


def url(connection: dict[str, Any], channel: str) -> str:
    """Return where a channel of the connection is."""
    between = ":" if connection["transport"] == "tcp" else "-"
    return f"{connection['transport']}://{connection['ip']}{between}{connection[channel + '_port']}"


def _environment(recipe: KernelRecipe) -> dict[str, str]:
    folder, programs = recipe.folder, Path(recipe.argv[0]).parent
    own = {"HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), "LANG": "C.UTF-8"}
    own |= {"PATH": f"{programs}:{os.environ['PATH']}", "JPY_PARENT_PID": str(os.getpid())}
    return {**os.environ, **own}


def _new_connection(transport: str, path: Path) -> dict[str, Any]:
    ports = _free_ports() if transport == "tcp" else list(range(1, 6))
    connection = {f"{channel}_port": port for channel, port in zip(CHANNELS, ports, strict=True)}
    ip = "127.0.0.1" if transport == "tcp" else str(path)
    return connection | {
        "transport": transport,
        "ip": ip,
        "key": uuid.uuid4().hex,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "",
    }


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in CHANNELS]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in opened]


def _pss(pid: int) -> float:
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss:") / 1000


def _with_children(pid: int) -> list[int]:
    """Return a process that has one thread, and those that it has forked."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _kilobytes(text: str, name: str) -> int:
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def _name_of_exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
