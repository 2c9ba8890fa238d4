"""The subshells of a kernel: threads with an event loop and a shell of their own (JEP 91)."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakSet

import anyio

from cobnut_kernel.errors import UnknownSubshellError
from cobnut_kernel.runtime.lanes import Lanes, LoopThread
from cobnut_kernel.runtime.shells.namespace import NamespaceKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.shells.shell import Shell
    from cobnut_kernel.runtime.shells.subshell import Subshell

SHELL_LINES = ("cells", "comms")
"""What waits for its turn in a shell, each kind for itself: a widget's message does not wait for the cells."""

_LOOK = 0.01
"""Seconds between two looks whether a cell that has a thread of its own still runs in a subshell that is to end."""


class SubshellThread:
    """One subshell: its thread, its lanes, and its shell as soon as the thread has made it.

    `beside` are the jobs that have a thread of their own: the shell is theirs too, and lives as long as they do.
    """

    def __init__(self, main: Callable[[], Shell], kind: NamespaceKind, lanes: Lanes, **loop: Any) -> None:
        self.id = str(uuid4())
        self.lanes = lanes
        self.beside: set[Job] = set()
        self._main = main
        self._kind = kind
        self._shell: Subshell | None = None
        self._made = threading.Event()
        self._thread = LoopThread(f"cobnut-subshell-{self.id[:8]}", self._serve, **loop)

    @property
    def shell(self) -> Shell:
        """The shell; waits until the thread has made it.

        Raises:
            UnknownSubshellError: it could not be made, or has ended.
        """
        self._made.wait()
        shell = self._shell
        if shell is None:
            raise UnknownSubshellError(self.id)
        return shell

    @property
    def ident(self) -> int | None:
        """The identifier of the thread."""
        return self._thread.ident

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; False if it did not come in time."""
        return self._thread.join(timeout)

    async def _serve(self) -> None:
        from cobnut_kernel.runtime.shells.subshell import Subshell

        try:
            shell = self._shell = Subshell(self._main(), self.id, self._kind)
        finally:
            self._made.set()
        shell.enter()
        try:
            await self.lanes.serve()
            while self.beside:  # noqa: ASYNC110 - threads of other loops end it
                await anyio.sleep(_LOOK)
        finally:
            shell.end()
            self._shell = None  # it goes now: we may be among what the garbage collector leaves alone


class SubshellManager:
    """The main shell's lanes and the subshells; from any thread.

    Args:
        refuse: answers a request that is not carried out.
        interrupt: interrupts the cells of a subshell that are selected.
        loop: the backend and options of new subshells' event loops, as `LoopThread` takes them.
    """

    def __init__(
        self,
        refuse: Callable[[Job], None],
        interrupt: Callable[[Callable[[Job], bool]], object],
        loop: Callable[[], dict[str, Any]],
    ) -> None:
        self.main_lanes = Lanes(refuse, *SHELL_LINES)
        self._refuse = refuse
        self._interrupt = interrupt
        self._loop = loop
        self._main: Shell | None = None
        self._made = threading.Event()
        self.threads: WeakSet[SubshellThread] = WeakSet()
        self._subshells: dict[str, SubshellThread] = {}

    @property
    def main_shell(self) -> Shell:
        """The shell of the kernel's own thread.

        Raises:
            RuntimeError: the kernel has not started.
        """
        if self._main is None:
            raise RuntimeError("The kernel has no shell before it has started.")
        return self._main

    @main_shell.setter
    def main_shell(self, shell: Shell) -> None:
        self._main = shell
        self._made.set()

    def create_subshell(self, namespace: str = NamespaceKind.SHARED) -> str:
        """Start a subshell and return its id (JEP 91).

        Args:
            namespace: "shared", "private" (its own names over the main shell's) or "snapshot" (a copy).

        Raises:
            ValueError: there is no such namespace.
        """
        if namespace not in tuple(NamespaceKind):
            raise ValueError(f"There is no namespace {namespace!r}: ask for {', '.join(NamespaceKind)}.")
        lanes = Lanes(self._refuse, *SHELL_LINES)
        made = SubshellThread(self.get_shell, NamespaceKind(namespace), lanes, **self._loop())
        self._subshells[made.id] = made
        self.threads.add(made)
        made.start()
        return made.id

    def list_subshells(self) -> list[str]:
        """List the ids of the subshells, the main shell not among them."""
        return list(self._subshells)

    def get(self, subshell_id: str) -> SubshellThread:
        """Find a subshell.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        try:
            return self._subshells[subshell_id]
        except KeyError:
            raise UnknownSubshellError(subshell_id) from None

    def get_shell(self, subshell_id: str | None = None) -> Shell:
        """Find the shell of a subshell, or the main one for None; waits until it is made.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        if subshell_id is not None:
            return self.get(subshell_id).shell
        self._made.wait()
        return self.main_shell

    def lanes(self, subshell_id: str | None) -> Lanes:
        """Find the lanes of a subshell; of None the main shell's.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        return self.main_lanes if subshell_id is None else self.get(subshell_id).lanes

    def abort(self, select: Callable[[Job], bool]) -> list[Job]:
        """Refuse, in all shells, the requests that wait and are selected."""
        all_lanes = [self.main_lanes, *(subshell.lanes for subshell in list(self._subshells.values()))]
        return [job for lanes in all_lanes for job in lanes.abort(select)]

    def close_subshell(self, subshell_id: str) -> SubshellThread:
        """Take a subshell away: what waits is refused, what runs is interrupted; its thread ends when that has.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        subshell = self.get(subshell_id)
        del self._subshells[subshell_id]
        subshell.lanes.close()
        self._interrupt(lambda job: job.subshell_id == subshell_id)
        return subshell

    def delete_subshell(self, subshell_id: str) -> None:
        """Take a subshell away, and wait up to a second for its thread's end.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        self.close_subshell(subshell_id).join(1)

    async def delete_soon(self, subshell_id: str, grace: float = 0.25) -> bool:
        """Take a subshell away; False if a cell keeps its thread longer than the grace, in seconds.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        subshell, deadline = self.close_subshell(subshell_id), monotonic() + grace
        while not subshell.join(0):
            if monotonic() > deadline:
                return False
            await anyio.sleep(0.002)
        return True

    @contextmanager
    def beside(self, job: Job) -> Generator[None]:
        """Run a job in this context, which has a thread of its own, with its shell; it lasts as long as the job.

        Where it was taken away meanwhile, the answer says so.
        """
        subshell = self._subshells.get(job.subshell_id or "")
        if subshell is not None:
            subshell.beside.add(job)
        try:
            with suppress(UnknownSubshellError):
                self.get_shell(job.subshell_id).enter()
            yield
        finally:
            if subshell is not None:
                subshell.beside.discard(job)

    def stop_all_subshells(self) -> None:
        """Take all subshells away, without waiting."""
        for subshell_id in self.list_subshells():
            self.close_subshell(subshell_id)

    @contextmanager
    def subshell_context(self, subshell_id: str | None) -> Generator[Shell]:
        """Work with a subshell's shell in this context: `get_ipython()` returns it.

        Raises:
            UnknownSubshellError: there is none of that id.
        """
        shell = self.get_shell(subshell_id)
        with shell.entered():
            yield shell
