"""What a process has, counted before and after: descriptors, threads, child processes, files."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import psutil

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    """What a process has."""

    descriptors: int
    threads: frozenset[str]
    children: frozenset[int]
    files: frozenset[str]

    @classmethod
    def of_this_process(cls, folder: Path) -> Possessions:
        """Count what this process has, and the files of a folder."""
        return cls(
            descriptors=psutil.Process().num_fds(),
            # trio's own threads wait ten seconds for more work before they end
            threads=frozenset(each.name for each in threading.enumerate() if not each.name.startswith("Trio")),
            children=frozenset(child.pid for child in psutil.Process().children()),
            files=frozenset(str(path.relative_to(folder)) for path in folder.rglob("*/*")),
        )


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
    # The thread of pytest-timeout has ended where the test has failed.
    until(lambda: Possessions.of_this_process(folder).threads <= before.threads, "a thread is left")
    after = Possessions.of_this_process(folder)
    assert replace(after, threads=before.threads) == before


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
