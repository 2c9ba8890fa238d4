"""One process of a kernel: in a session of its own, its output kept, its end noticed at once, nothing of it left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, cast

from cobnut_kernel.connection_files import ProcessIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    class KernelProcess(Protocol):
        """What a provisioner needs of a kernel's process, whoever its parent is."""

        @property
        def pid(self) -> int:
            """The process's number, which is that of its group and its session too."""
            ...

        @property
        def identity(self) -> ProcessIdentity:
            """Which process it is."""
            ...

        @property
        def output(self) -> Tail:
            """The end of its stdout and stderr."""
            ...

        @property
        def errors(self) -> Tail:
            """The end of its stderr."""
            ...

        def poll(self) -> int | None:
            """Return None while it runs, then its exit code; 0 where nobody knows it."""
            ...

        async def wait(self) -> int | None:
            """Wait until it has ended; return its exit code, None where nobody knows it."""
            ...

        def send_signal(self, signum: int) -> None:
            """Send a signal to its process group."""
            ...

        def kill(self) -> None:
            """End its process group by SIGKILL."""
            ...

        def release(self) -> None:
            """Watch it no longer; it may go on."""
            ...


TAIL_SIZE = 64 * 1024
"""How much of a stream's end is kept, in bytes."""


class Tail:
    """The end of a stream of bytes; any thread may ask for it."""

    def __init__(self, size: int = TAIL_SIZE) -> None:
        self.size = size
        self._data = bytearray()
        self._lock = threading.Lock()

    def append(self, data: bytes) -> None:
        """Add what was read; what is too much goes at the beginning."""
        with self._lock:
            self._data += data
            del self._data[: -self.size]

    def text(self) -> str:
        """Return the end of the stream; what is no UTF-8 becomes the replacement character."""
        with self._lock:
            return self._data.decode("utf-8", "replace")


class Outputs:
    """What a process writes into pipes; they are always read, so that it never waits for us.

    Attributes:
        output: the end of its stdout and stderr, as they came.
        errors: the end of its stderr.
    """

    def __init__(self) -> None:
        self.output: Tail = Tail()
        self.errors: Tail = Tail()
        self._loop = asyncio.get_running_loop()
        self._pipes: list[tuple[IO[bytes], tuple[Tail, ...]]] = []

    def attach(self, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        """Read pipes from now on; they are closed when they end."""
        for pipe, tails in ((stdout, (self.output,)), (stderr, (self.output, self.errors))):
            if pipe is not None:
                self._pipes.append((pipe, tails))
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe.fileno(), self._read, pipe, tails)

    def drain(self) -> None:
        """Read what it left in the pipes, which hold no more than 1 MiB; a process that fled may go on writing."""
        for pipe, tails in self._pipes:
            left = 1 << 20
            while left > 0 and not pipe.closed and (size := self._read(pipe, tails)):
                left -= size
        self.close()

    def close(self) -> None:
        """Read no longer."""
        for pipe, _ in self._pipes:
            self._close(pipe)

    def inodes(self) -> set[str]:
        """Name the pipes that are still open as /proc does."""
        return {f"pipe:[{os.fstat(pipe.fileno()).st_ino}]" for pipe, _ in self._pipes if not pipe.closed}

    def _read(self, pipe: IO[bytes], tails: tuple[Tail, ...]) -> int:
        """Read once, and return how much; 0 where there is no more, for now or for ever."""
        try:
            data = os.read(pipe.fileno(), TAIL_SIZE)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        for tail in tails:
            tail.append(data)
        if not data:
            self._close(pipe)
        return len(data)

    def _close(self, pipe: IO[bytes]) -> None:
        if not pipe.closed:
            self._loop.remove_reader(pipe.fileno())
            pipe.close()


class Exit:
    """The end of a process that is not our child; its code is not always told."""

    def __init__(self) -> None:
        self._told: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    @property
    def has_come(self) -> bool:
        """Whether it has ended."""
        return self._told.done()

    def tell(self, code: int | None) -> None:
        """Say that it has ended; only the first one is heard."""
        if not self._told.done():
            self._told.set_result(code)

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code; 0 where nobody knows it."""
        return (self._told.result() or 0) if self._told.done() else None

    async def wait(self) -> int | None:
        """Wait for it; several may, and give up. Returns the exit code, None where nobody knows it."""
        return await asyncio.shield(self._told)

    def when_told(self, callback: Callable[[int | None], object]) -> None:
        """Call back on the loop when it has come, with the code."""
        self._told.add_done_callback(lambda told: callback(told.result()))


class ChildProcess:
    """A process that leads a session and a process group of its own; it belongs to the loop that spawns it.

    Its pipes are always read, so that it never waits for us. Its end is seen by its pidfd, or by a waiting thread
    where there is none; then its group is killed, and only after that it is reaped: until then its number cannot
    belong to anybody else.

    Attributes:
        identity: which process it is.
        output: the end of its stdout and stderr, as they came.
        errors: the end of its stderr.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid: int = popen.pid
        self.identity: ProcessIdentity = ProcessIdentity.of(popen.pid)
        self._outputs = Outputs()
        self.output: Tail = self._outputs.output
        self.errors: Tail = self._outputs.errors
        self._popen = popen
        self._born: float = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._pidfd: int | None = None

    @classmethod
    def spawn(cls, argv: Sequence[str], *, env: Mapping[str, str], **popen: Any) -> ChildProcess:
        """Start a process; without stdin, and with pipes for its output, unless `popen` says otherwise.

        Raises:
            OSError: the program, or the folder `cwd`, is not there or cannot be used.
            ValueError: an argument or a variable cannot be passed to a process.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = subprocess.Popen(argv, env=env, start_new_session=True, **{**pipes, **popen})
        child = cls(cast("subprocess.Popen[bytes]", started))
        try:
            child._attach()
        except BaseException:
            child.kill()
            child.reap()
            raise
        return child

    # ── while it lives ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def stdin(self) -> IO[bytes] | None:
        """Our end of its stdin, where it was given a pipe."""
        return self._popen.stdin

    @property
    def lived_for(self) -> float:
        """How many seconds ago it was started."""
        return time.monotonic() - self._born

    def poll(self) -> int | None:
        """Return None while it runs, then its exit code, or the negative number of the signal that ended it."""
        return self._exit.result() if self._exit.done() else None

    async def wait(self) -> int:
        """Wait until it has ended and is reaped; several may wait at once, and give up."""
        return await asyncio.shield(self._exit)

    def when_ended(self, callback: Callable[[ChildProcess], object]) -> None:
        """Call back on the loop when it has ended and is reaped."""
        self._exit.add_done_callback(lambda _: callback(self))

    def send_signal(self, signum: int) -> None:
        """Send a signal to its process group; nothing happens when it has ended."""
        if self._exit.done():
            return
        try:
            os.killpg(self.pid, signum)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS says so of a group whose leader waits to be reaped
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        """End its process group by SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close_stdin(self) -> None:
        """Close our end of its stdin."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()

    def release(self) -> None:
        """Watch it no longer; it may go on."""
        self._release()
        if not self._exit.done():
            self._popen.returncode = 0  # or that it goes on would be warned of

    def disown(self) -> None:
        """Let go of it in a forked process, whose child it is not."""
        self.close_stdin()
        self._popen.returncode = 0  # or its end, which cannot be seen from here, would be warned of

    # ── its end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _attach(self) -> None:
        self._outputs.attach(self._popen.stdout, self._popen.stderr)
        if self._popen.stdin is not None:
            os.set_blocking(self._popen.stdin.fileno(), False)
        self._watch()

    def reap(self, timeout: float | None = None) -> None:
        """Block until it has ended, and release all it used; for when the loop is not there to do it.

        Args:
            timeout: seconds to wait; after that it is left to end by itself.
        """
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout)
            self._on_exit()
        self._release()

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # another system, an old one, or a sandbox that forbids it
            threading.Thread(target=self._watch_blocking, name=f"cobnut-wait-{self.pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def _watch_blocking(self) -> None:
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):  # somebody else reaped it
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._on_exit)

    def _on_exit(self) -> None:
        if self._exit.done():
            return
        self.kill()  # what it left running in its group
        code = self._popen.wait()
        self._outputs.drain()
        self._release()
        self._exit.set_result(code)

    def _release(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._outputs.close()
        self.close_stdin()


def signal_name(signum: int) -> str:
    """Name a signal; most of the real-time signals have none but their number."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
