"""Foreign provisioners from outside: the loop that they live on, and who waits for the end of their kernels."""

from __future__ import annotations

import asyncio
import atexit
import os
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.portal import Portal, PortalTask, settled

if TYPE_CHECKING:
    from collections.abc import Generator
    from logging import Logger

    from cobnut_kernel.provisioning.process import Outputs

ENDING_INTERVAL = 0.1
"""Seconds between two looks at a kernel that was asked or told to end."""


class ForeignLoop(Portal):
    """The loop of provisioners that are not ours: what blocks it stops no kernel but theirs.

    They get one loop for all, as in the programs they were made for. It ends after all that lives on our portal.
    """

    _process_portal: Portal | None = None
    _process_lock = threading.Lock()

    def __init__(self) -> None:
        super().__init__("cobnut-foreign")
        atexit.unregister(self.stop)
        Portal.shared().at_end(self.stop)


def _after_fork() -> None:
    ForeignLoop._process_portal = None
    ForeignLoop._process_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Watch:
    """Sees the end of a kernel by what its provisioner says of it; for the loop of foreign provisioners.

    Args:
        theirs: the provisioner.
        name: what to call it in the log.
        interval: seconds between two looks.
        log: for what goes wrong.

    Attributes:
        has_ended: whether the end was seen.
    """

    def __init__(self, theirs: Any, name: str, interval: float, log: Logger) -> None:
        self.has_ended: bool = False
        self._theirs = theirs
        self._name = name
        self._log = log
        self._code: int | None = None
        self._interval = interval
        self._look_now = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: PortalTask[int | None] | None = None
        self._has_failed: bool = False

    async def end(self) -> int | None:
        """Wait for the end, on any loop, and return the exit code where it is known."""
        if self._task is None:
            self.begin(None)
        assert self._task is not None
        await settled(self._task)
        return None if self._task.cancelled() else self._task.result()

    def begin(self, outputs: Outputs | None) -> None:
        """Begin to look; what the process has left in its pipes is read at the end."""
        self._task = ForeignLoop.shared().start_soon(self._until_ended, outputs)

    def hurry(self) -> None:
        """Look more often: the kernel was asked or told to end."""
        self._interval = ENDING_INTERVAL
        self._look_now.set()

    def give_up(self) -> None:
        """Look no longer; who waits goes on."""
        if self._task is not None:
            self._task.cancel()

    async def look(self) -> int | None:
        """Ask the provisioner now: None while the kernel runs, then its exit code, 0 where nobody knows it."""
        async with self._turn:  # a provisioner may forget an end that it has told
            if not self.has_ended:
                self._code = await self._poll()
                self.has_ended = self._code is not None or not has_process(self._theirs)
        return (self._code or 0) if self.has_ended else None

    async def _until_ended(self, outputs: Outputs | None) -> int | None:
        process = local_process(self._theirs)
        try:
            with _woken_by_exit(process, self._look_now):
                while await self.look() is None or (process is not None and process.poll() is None):
                    await self._pause()
            waited = await self._theirs.wait()
        except Exception:  # it has ended all the same
            self._log.exception("The provisioner %s failed at the end of its kernel", self._name)
            waited = None
        finally:
            if outputs is not None:
                outputs.drain()
        return self._code if self._code is not None else waited

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._look_now.wait(), self._interval)
        self._look_now.clear()

    async def _poll(self) -> int | None:
        try:
            code: Any = await self._theirs.poll()
        except Exception:  # a connection that fails for a while, perhaps: nothing is known
            if not self._has_failed:
                self._log.exception("The provisioner %s cannot see its kernel", self._name)
            self._has_failed = True
            return None
        self._has_failed = False
        return None if code is None else int(code)


def has_process(theirs: Any) -> bool:
    """Ask a provisioner whether it has a process."""
    told: Any = theirs.has_process
    return bool(told() if callable(told) else told)  # in some it is no property


def local_process(theirs: Any) -> subprocess.Popen[bytes] | None:
    """Find the process of this machine that a provisioner has started; None where it has none, or hides it."""
    for name in ("process", "local_proc"):
        if isinstance(process := getattr(theirs, name, None), subprocess.Popen):
            return cast("subprocess.Popen[bytes]", process)
    return None


@contextmanager
def _woken_by_exit(process: subprocess.Popen[bytes] | None, event: asyncio.Event) -> Generator[None]:
    """Set an event when a process has ended, as far as the system tells."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid) if process is not None else None
    except (AttributeError, OSError):  # another system, or it has ended and was reaped
        pidfd = None
    if pidfd is None:
        yield
        return

    def wake() -> None:
        loop.remove_reader(pidfd)
        event.set()

    loop.add_reader(pidfd, wake)
    try:
        yield
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
