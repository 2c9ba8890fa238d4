"""The owner's end of a fork server: its process, what it is asked, and the kernels that it has forked for us.

Laws of the file:

* All of it lives on the portal's thread.
* A request has an answer: a kernel, a refusal, or the end of the fork server, which is a refusal too.
* A kernel that nobody waits for any more is ended before the one who gave up goes on.
* Where the fork server is gone its kernels are watched by their pidfds. One that does not do what it is asked is ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self

from cobnut_kernel.connection_files import ProcessIdentity
from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.portal import finish
from cobnut_kernel.protocol.fork import (
    MAX_PACKET,
    MODULE,
    Exited,
    Fork,
    Forked,
    Guard,
    GuardFolder,
    RefusalReason,
    Refused,
    Retire,
    Signal,
    State,
    Unguard,
    decode_answer,
    differing_variables,
    start_variables,
)
from cobnut_kernel.provisioning.circumstances import circumstances, end_strays, umask
from cobnut_kernel.provisioning.forked_process import ForkedProcess
from cobnut_kernel.provisioning.process import ChildProcess, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cobnut_kernel.protocol.fork import Answer, Packet

ANSWER_TIME = 1.0
"""How long a fork server may take to answer, or to do what it was told, in seconds; then it is taken for dead."""

END_TIME = 2.0
"""How long a fork server may take to end its kernels and itself before nobody waits for it, in seconds."""

_log = logging.getLogger(__name__)
_numbers = count(1)


class ForkServer:
    """A fork server of this process, from its start to its end.

    Args:
        child: its process.
        connected: our end of the socket to it.
        env: the environment that it was started in.
        on_state: is called when it is ready.
        on_end: is called when it is gone.

    Attributes:
        state: what it says of itself; None while it is not ready.
        is_gone: whether it has ended.
        is_retired: whether it forks no more.
        is_awaited: whether kernels wait for it to be ready.
        start_variables: those of its environment that take effect when a process starts.
    """

    def __init__(
        self,
        child: ChildProcess,
        connected: socket.socket,
        env: Mapping[str, str],
        on_state: Callable[[ForkServer], object],
        on_end: Callable[[ForkServer], object],
    ) -> None:
        self.state: State | None = None
        self.is_gone: bool = False
        self.is_retired: bool = False
        self.is_awaited: bool = False
        self.start_variables: dict[str, str] = start_variables(env)
        self._child = child
        self._socket = connected
        self._on_state = on_state
        self._on_end = on_end
        self._circumstances: tuple[object, ...] = ()
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._settled = asyncio.Event()
        self._asked: dict[str, _Question] = {}
        self._kernels: dict[int, ForkedProcess] = {}
        self._wards: set[int] = set()
        self._loop.add_reader(connected, self._hear)
        child.when_ended(lambda _: self._bury())

    @classmethod
    def start(
        cls,
        env: Mapping[str, str],
        on_state: Callable[[ForkServer], object],
        on_end: Callable[[ForkServer], object],
    ) -> Self:
        """Start a fork server for kernels of an environment; it is ready later.

        Raises:
            OSError: it cannot be started.
        """
        conditions = circumstances()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno())]
        try:
            with theirs:
                child = ChildProcess.spawn(command, env=env, cwd="/", pass_fds=[theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        server = cls(child, ours, env, on_state, on_end)
        server._circumstances = conditions
        return server

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked for kernels."""
        return self.state is not None and not self.is_gone and not self.is_retired

    def fits(self, env: Mapping[str, str]) -> bool:
        """Say whether a kernel of an environment could be one of its, as far as that is known."""
        if self.is_gone or self.is_retired or not self._is_as_at_the_start():
            return False
        if self.state is None:
            return start_variables(env) == self.start_variables
        return not differing_variables(self.state.variables, env)

    def _is_as_at_the_start(self) -> bool:
        try:
            return self._circumstances == circumstances()
        except OSError:  # too many open files, say
            return False

    async def settle(self, timeout: float) -> None:
        """Wait until it is ready or gone, or some seconds have passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._settled.wait()

    # ── kernels ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fork(
        self, arguments: Sequence[str], env: Mapping[str, str], cwd: str, files: Sequence[str]
    ) -> ForkedProcess | Refused:
        """Ask for a kernel and wait for it, or for the reason why there is none. Cancelled, none is left.

        Args:
            arguments: what follows `python -P -m cobnut_kernel`.
            env: its whole environment.
            cwd: the folder it starts in.
            files: what to remove after it when we have ended.
        """
        name = str(next(_numbers))
        place = os.path.abspath(cwd)  # noqa: PTH100, ASYNC240 - no file is touched
        try:
            request = Fork(name, tuple(arguments), env, place, umask(), streams=(1, 2), files=tuple(files))
            data = request.encode()
            outputs, descriptors = _pipes()
        except MalformedMessageError as error:
            return Refused(name, RefusalReason.MALFORMED, str(error))
        except OSError as error:  # too many open files, say: a cold start will tell
            return Refused(name, RefusalReason.FAILED, str(error))
        question = self._asked[name] = _Question(self._loop.create_future(), outputs)
        self._send(data, descriptors)
        try:
            return await self._answer(question)
        except asyncio.CancelledError:
            await finish(self._take_back(question))
            raise

    async def _answer(self, question: _Question) -> ForkedProcess | Refused:
        try:
            async with asyncio.timeout(ANSWER_TIME):
                return await asyncio.shield(question.answer)
        except TimeoutError:
            self.end(f"it has not answered within {ANSWER_TIME:g} seconds")
            return await asyncio.shield(question.answer)

    async def _take_back(self, question: _Question) -> None:
        kernel = await self._answer(question)
        if isinstance(kernel, ForkedProcess):
            kernel.kill()
            await kernel.wait()

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to the group of one of its kernels."""
        self._say(Signal(pid, signum))

    def retire(self) -> None:
        """Let it fork no more, and end after its last kernel."""
        if not self.is_retired:
            self.is_retired = True
            self._say(Retire())

    # ── guard ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def guard(self, identity: ProcessIdentity, files: Sequence[str]) -> None:
        """End a process group of another make, and remove its files, when we have ended."""
        self._wards.add(identity.pid)
        self._say(Guard(identity.pid, identity.start_time, tuple(files)))

    def unguard(self, pid: int) -> None:
        """Guard a process group no longer."""
        self._wards.discard(pid)
        self._say(Unguard(pid))

    def guard_folder(self, path: str) -> None:
        """Remove our folder, after everything else, when we have ended."""
        self._say(GuardFolder(path))

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def end(self, reason: str) -> None:
        """End it because it is of no use any more; its kernels go on, and others will guard what it has guarded."""
        _log.debug("The fork server %s is ended: %s", self.pid, reason)
        self._child.kill()

    def close(self) -> None:
        """End it with the portal, and before it what it has forked or guards."""
        if self.is_gone:
            return
        self.is_gone = True
        if not self._kernels and not self._wards:
            self._child.kill()
        self._let_go()
        self._child.reap(END_TIME)
        for kernel in self._kernels.values():
            kernel.release()

    def disown(self) -> None:
        """Let go of it in a forked child of ours, so that only our end is an end."""
        self._socket.close()
        self._child.disown()

    def _bury(self) -> None:
        """Follow up its end: refuse what it was asked, and let its kernels be watched otherwise."""
        if self.is_gone:
            return
        self._hear()  # its last words
        self.is_gone = True
        self._settled.set()
        self._let_go()
        if self._child.errors.text().strip():
            _log.debug("The fork server %s wrote: %s", self.pid, self._child.errors.text().strip())
        for name, question in self._asked.items():
            end_strays(question.outputs.inodes())
            question.refuse(Refused(name, RefusalReason.FAILED, "The fork server has ended."))
        self._asked.clear()
        kernels, self._kernels = self._kernels, {}
        for kernel in kernels.values():
            kernel.orphaned()
        self._on_end(self)

    def _let_go(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        self._unsent.clear()

    # ── packets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, packet: Packet) -> None:
        self._send(packet.encode(), ())

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Send a packet as soon as there is room for it; the descriptors are closed then."""
        if self.is_gone:
            _close(descriptors)
            return
        self._unsent.append((data, descriptors))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except OSError:  # it has ended, as we shall hear
                pass
            self._unsent.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._socket)

    def _hear(self) -> None:
        """Take what it has said."""
        while not self.is_gone:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._loop.remove_reader(self._socket)
                self._child.kill()
                return
            try:
                self._take(decode_answer(data), descriptors)
            except MalformedMessageError as error:
                self.end(f"it speaks another language: {error}")
            _close(descriptors)

    def _take(self, answer: Answer, descriptors: list[int]) -> None:
        match answer:
            case Forked(name) if name in self._asked:
                self._take_kernel(answer, descriptors.pop() if descriptors else None)
            case Refused(name) if name in self._asked:
                self._asked.pop(name).refuse(answer)
            case Exited(pid, status) if pid in self._kernels:
                self._kernels.pop(pid).ended(status)
            case State() if self.state is None:
                self.state = answer
                self._settled.set()
                self._on_state(self)
            case _:
                _log.debug("The fork server %s says %s", self.pid, answer)

    def _take_kernel(self, answer: Forked, pidfd: int | None) -> None:
        identity = replace(ProcessIdentity.of(answer.pid), start_time=answer.start_time)
        question = self._asked.pop(answer.id)
        kernel = ForkedProcess(self, identity, pidfd, question.outputs)
        self._kernels[answer.pid] = kernel
        question.answer.set_result(kernel)


class _Question(NamedTuple):
    """What a fork server was asked for, and the pipes that the kernel is to write into."""

    answer: asyncio.Future[ForkedProcess | Refused]
    outputs: Outputs

    def refuse(self, refusal: Refused) -> None:
        self.outputs.close()
        self.answer.set_result(refusal)


def _pipes() -> tuple[Outputs, tuple[int, int]]:
    """Make the pipes for a kernel's stdout and stderr; returns what reads them, and their other ends."""
    outputs = Outputs()
    out, out_end = os.pipe()
    try:
        err, err_end = os.pipe()
    except OSError:
        _close((out, out_end))
        raise
    outputs.attach(open(out, "rb", buffering=0), open(err, "rb", buffering=0))  # noqa: PTH123, SIM115 - descriptors
    return outputs, (out_end, err_end)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)
