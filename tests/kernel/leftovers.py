"""What a process has, counted before and after: descriptors, threads, processes, files."""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
import threading
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    import pytest

PATIENCE = 20.0
"""Seconds after which a condition that did not come is a failure."""


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what or f"it never came: {condition}"
        time.sleep(0.002)


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, and let the loop's other tasks go on."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what or f"it never came: {condition}"
        await anyio.sleep(0.002)


@dataclass(frozen=True)
class Possessions:
    """What a process has.

    Attributes:
        descriptors: what its descriptors are, without their numbers.
        threads: their names.
        processes: its descendants, and what fled from among them: what has its runtime folder in the environment.
        files: those of the runtime folder.
    """

    descriptors: tuple[str, ...]
    threads: frozenset[str]
    processes: frozenset[int]
    files: frozenset[str]

    @classmethod
    def of_this_process(cls, folder: Path) -> Possessions:
        """Count what this process has, and the files of a runtime folder of its own."""
        descendants = {child.pid for child in psutil.Process().children(recursive=True)}
        return cls(
            descriptors=_descriptors(),
            threads=frozenset(filter(_is_ours, (each.name for each in threading.enumerate()))),
            processes=frozenset(descendants | processes_knowing(folder)),
            files=frozenset(str(path.relative_to(folder)) for path in folder.rglob("*/*")),
        )

    def excess(self, before: Possessions) -> str:
        """Say what is not as it was before; nothing where all of it is.

        Fewer threads are no fault: that of pytest-timeout has ended where the test has failed. Processes are counted:
        the spare kernel of a fork server becomes the next kernel, and another one takes its place.
        """
        differences: list[str] = []
        for name in (field.name for field in fields(self)):
            now, then = getattr(self, name), getattr(before, name)
            match name:
                case "threads":
                    is_changed = bool(now - then)
                case "processes":
                    is_changed = len(now) != len(then)
                case _:
                    is_changed = now != then
            if is_changed:
                differences.append(f"{name} were {sorted(then)} and are {sorted(now)}")
        return "; ".join(differences)

    def lasting_excess(self, before: Possessions) -> bool:
        """Say whether there are threads or processes that were not there before."""
        return bool(self.threads - before.threads or len(self.processes) > len(before.processes))


def _descriptors() -> tuple[str, ...]:
    try:
        descriptors = list(Path("/proc/self/fd").iterdir())
    except OSError:  # another system
        return ("descriptor",) * psutil.Process().num_fds()
    kinds: list[str] = []
    for descriptor in descriptors:
        with suppress(OSError):  # that of the listing itself is closed
            kinds.append(re.sub(r"\d+", "", str(descriptor.readlink())))
    return tuple(sorted(kinds))


def _is_ours(thread: str) -> bool:
    """Say whether a thread is one of cobnut's: those of the loops' own pools wait for more work before they end."""
    return not thread.startswith(("Trio", "AnyIO", "asyncio_"))


def processes_knowing(folder: Path) -> set[int]:
    """Find the processes that were started with this runtime folder in their environment, whoever their parent is."""
    found: set[int] = set()
    mark = f"XDG_RUNTIME_DIR={folder}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if mark in entry.read_bytes().split(b"\0"):
                found.add(int(entry.parent.name))
    return found - {os.getpid()}


def stop_portal() -> None:
    """End the process's portal and all that lives on it."""
    if Portal._process_portal is not None:
        Portal._process_portal.stop()


def leaving_nothing(folder: Path) -> Iterator[Path]:
    """Assert that what is done meanwhile leaves nothing when the portal has ended."""
    stop_portal()
    gc.collect()
    before = Possessions.of_this_process(folder)
    yield folder
    stop_portal()
    gc.collect()
    with suppress(AssertionError):  # processes that were killed end in their own time, threads that were told to too
        until(lambda: not Possessions.of_this_process(folder).lasting_excess(before))
    after = Possessions.of_this_process(folder)
    assert not after.excess(before), after.excess(before)


@asynccontextmanager
async def unchanged(folder: Path) -> AsyncGenerator[None]:
    """Assert that what is done meanwhile leaves nothing although the portal goes on; its own things must be there."""
    gc.collect()
    before = await _settled(folder)
    yield
    gc.collect()
    with suppress(AssertionError):
        await eventually(lambda: not Possessions.of_this_process(folder).excess(before))
    after = Possessions.of_this_process(folder)
    assert not after.excess(before), after.excess(before)


async def _settled(folder: Path) -> Possessions:
    """Wait until what a process has does not change by itself any more: what was closed before may go on closing."""
    last = Possessions.of_this_process(folder)
    while True:
        await anyio.sleep(0.02)
        now = Possessions.of_this_process(folder)
        if now == last:
            return now
        last = now


def processes_of_group(group: int) -> list[int]:
    """List the processes of a process group that run."""
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and is_running(process.pid):
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def private_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the process a runtime folder of its own, with a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cob-", dir="/tmp"))
    with monkeypatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        stop_portal()
        OwnerDirectory.remove()
        yield folder
        stop_portal()
        OwnerDirectory.remove()
    shutil.rmtree(folder)
