"""The loop of a fork server: it does what its owner asks, and sees its kernels end."""

from __future__ import annotations

import os
import socket
import sys
from select import POLLIN, poll
from typing import TYPE_CHECKING

from cobnut_kernel.connection_files import start_time
from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.protocol.fork import (
    Ask,
    Exited,
    Fork,
    Forked,
    Guard,
    GuardFolder,
    RefusalReason,
    Refused,
    Request,
    Retire,
    Signal,
    State,
    Unguard,
    decode_request,
    request_id,
)
from cobnut_kernel.runtime.zygote.child import NewKernel
from cobnut_kernel.runtime.zygote.owner import Owner, close
from cobnut_kernel.runtime.zygote.spare import PAUSE, UNFIT, Spare, await_request
from cobnut_kernel.runtime.zygote.wards import Ward, Wards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cobnut_kernel.runtime.zygote.child import SignalHandlers
    from cobnut_kernel.runtime.zygote.template import Template


class Zygote:
    """Does what its owner asks, and sees its kernels end."""

    def __init__(self, owner: Owner, template: Template, handlers: SignalHandlers) -> None:
        self.template = template
        self._owner = owner
        self._handlers = handlers
        self._wards = Wards()
        self._retired: bool = False
        self._spare: Spare | None = None
        self._forks_spares: bool = True

    def serve(self) -> NewKernel | None:
        """Serve until there is nothing left to do; in a child, return at once what it is to become."""
        self._owner.send(self._state())
        waiting = poll()
        waiting.register(self._handlers.bell, POLLIN)
        while self._has_to_do():
            if not self._owner.is_gone:
                waiting.register(self._owner.fileno(), self._owner.wanted)
            events = waiting.poll(PAUSE * 1000 if self._wants_a_spare() else None)
            if not events and (kernel := self._fork_spare()) is not None:
                return kernel
            for ready, _ in events:
                if ready == self._handlers.bell:
                    self._reap()
                elif (kernel := self._hear()) is not None:
                    return kernel
            if self._owner.is_gone and self._owner.fileno() >= 0:
                waiting.unregister(self._owner.fileno())
                self._orphaned()
        return None

    def leave(self) -> None:
        """Let go of the owner's socket in a child; its descriptor is closed with all the others."""
        self._owner.disown()

    def _has_to_do(self) -> bool:
        if self._owner.is_gone or self._retired:
            return bool(self._wards.children or self._wards.others)
        return True

    def _reap(self) -> None:
        self._handlers.heard()
        for pid, status in self._wards.reap().items():
            if self._spare is not None and self._spare.pid == pid:
                self._drop_spare()
                self._forks_spares = self._forks_spares and status != UNFIT
            else:
                self._owner.send(Exited(pid, status))

    def _orphaned(self) -> None:
        """End what must not outlive the owner."""
        self._owner.close()
        self._drop_spare()
        self._wards.end()

    def _hear(self) -> NewKernel | None:
        """Do what the owner asks; in a child, return what it is to become."""
        self._owner.flush()
        received = self._owner.receive()
        if received is None:
            return None
        data, descriptors = received
        try:
            request = decode_request(data)
            if isinstance(request, Fork) and self._fork(request, data, descriptors):
                return NewKernel(request, descriptors)
            self._obey(request)
            self._guard(request)
        except MalformedMessageError as error:
            self._owner.send(Refused(request_id(data), RefusalReason.MALFORMED, str(error)))
        except Exception as error:  # the kernels that run need their parent
            text = f"The fork server has a fault ({type(error).__name__}: {error}): start this kernel cold."
            self._owner.send(Refused(request_id(data), RefusalReason.FAILED, text))
        close(descriptors)
        return None

    def _obey(self, request: Request) -> None:
        match request:
            case Signal(pid, signum):
                if (ward := self._wards.children.get(pid)) is not None:
                    ward.send(signum)
            case Retire():
                self._retired = True
                self._drop_spare()
            case Ask():
                self._owner.send(self._state())
            case _:
                pass

    def _guard(self, request: Request) -> None:
        match request:
            case Guard(pid, started, files):
                self._wards.others[pid] = Ward(pid, started, files)
            case Unguard(pid):
                self._wards.others.pop(pid, None)
            case GuardFolder(path):
                self._wards.folder = path
            case _:
                pass

    def _fork(self, request: Fork, data: bytes, descriptors: Sequence[int]) -> bool:
        """Fork a kernel, or say why not; True in the child."""
        refusal = self._refusal(request, descriptors)
        if refusal is not None:
            self._owner.send(Refused(request.id, *refusal))
            return False
        try:
            os.chdir(request.cwd)
            pid = self._take_spare(data, descriptors) or self._handlers.fork()
        except OSError as error:
            os.chdir("/")
            text = f"The kernel cannot start in {request.cwd}: {error.strerror or error}."
            self._owner.send(Refused(request.id, RefusalReason.FAILED, text))
            return False
        if pid == 0:
            return True
        os.chdir("/")
        self._wards.children[pid] = ward = Ward(pid, start_time(pid) or 0, request.files, request.outlives)
        self._owner.send(Forked(request.id, pid, ward.start_time), *_pidfd(pid))
        return False

    # ── the next kernel ─────────────────────────────────────────────────────────────────────────────────────────────

    def _wants_a_spare(self) -> bool:
        return self._forks_spares and self._spare is None and not self._retired and not self._owner.is_gone

    def _fork_spare(self) -> NewKernel | None:
        """Fork a kernel before it is asked for, if one could be forked now; in the child, wait until it is."""
        if not self._wants_a_spare():
            return None
        self._forks_spares = not self.template.stale() and not self.template.threaded()
        if not self._forks_spares:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = self._handlers.fork()
        except OSError:  # there is no room for it: it would have been a luxury
            ours.close()
            theirs.close()
            return None
        if pid:
            theirs.close()
            self._spare = Spare(pid, ours)
            return None
        ours.close()
        self._owner.close()
        return await_request(theirs, self.template)

    def _take_spare(self, data: bytes, descriptors: Sequence[int]) -> int | None:
        """Make the spare kernel the one that is asked for, and return its process; None where there is none."""
        spare, self._spare = self._spare, None
        taken = spare is not None and spare.give(data, descriptors) and start_time(spare.pid) is not None
        return spare.pid if spare is not None and taken else None

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()

    def _refusal(self, request: Fork, descriptors: Sequence[int]) -> tuple[RefusalReason, str] | None:
        """Return why a kernel must not be forked."""
        if len(descriptors) != len(request.streams) or len(set(request.streams)) != len(descriptors):
            text = f"{len(descriptors)} descriptors came for {len(request.streams)} streams: send one for each."
            return RefusalReason.MALFORMED, text
        if self._retired:
            return RefusalReason.RETIRED, "This template was retired: ask the new one."
        if stale := self.template.stale():
            return RefusalReason.STALE, stale
        if differs := self.template.differs(request.env):
            return RefusalReason.DIFFERENT, differs
        if threaded := self.template.threaded():
            return RefusalReason.FAILED, threaded
        return None

    def _state(self) -> State:
        return State(
            pid=os.getpid(),
            executable=sys.executable,
            prefix=sys.prefix,
            variables=self.template.variables,
            kernels=tuple(self._wards.children),
            stale="It was retired." if self._retired else self.template.stale(),
        )


def _pidfd(pid: int) -> list[int]:
    try:
        return [os.pidfd_open(pid)]
    except (AttributeError, OSError):  # an old system, or a sandbox that forbids it
        return []
