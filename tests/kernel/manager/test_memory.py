"""Evidence of a death for want of memory, from control groups of both versions, and from none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import pid_of

from cobnut_kernel.manager import memory
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.memory import ControlGroup, MemoryCount, MemoryWatch, control_group, evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cobnut_kernel.manager.manager import AsyncKernelManager

MIB = 1 << 20
EVENTS = "low 0\nhigh 3\nmax 12\noom 2\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"

# ── what counters show ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (MemoryCount(0), MemoryCount(1, 500 * MIB, 512 * MIB), "out of memory at 500 MiB of at most 512 MiB"),
        (MemoryCount(3), MemoryCount(5, 14 << 30), "out of memory at 14336 MiB"),
        (MemoryCount(0), MemoryCount(1), "out of memory"),
        (MemoryCount(1), MemoryCount(1, 500 * MIB, 512 * MIB), ""),
        (None, MemoryCount(1), ""),
        (MemoryCount(0), None, ""),
    ],
)
def test_a_kill_that_was_counted_is_evidence(before: MemoryCount | None, after: MemoryCount | None, text: str) -> None:
    """With how much was used, and how much may be, where that is known; an old count, or none, shows nothing."""
    assert evidence(before, after) == text


# ── where they are ──────────────────────────────────────────────────────────────────────────────────────────────────


class System:
    """A system with a process of the number 7, made of files."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.mounted = folder / "cgroup fs"
        (self.proc / "7").mkdir(parents=True)

    def process(self, cgroup: str, *mounts: str) -> None:
        """Say in which control groups it is, and what is mounted."""
        (self.proc / "7" / "cgroup").write_text(cgroup)
        (self.proc / "7" / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))

    def mount(self, kind: str, root: str = "/", options: str = "rw", name: str = "") -> str:
        """A line of mountinfo, in which a space is written as its code."""
        place = str(self.mounted / name).replace(" ", "\\040")
        return f"31 23 0:28 {root} {place} rw,relatime shared:9 - {kind} cgroup {options}"

    def group(self, path: str, **files: str | int) -> Path:
        """Make a control group with these files."""
        folder = self.mounted / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            folder.joinpath("memory." + name).write_text(f"{content}\n")
        return folder


@pytest.fixture
def system(tmp_path: Path) -> System:
    """A system that a test furnishes."""
    return System(tmp_path)


def test_version_2_counts_in_one_place(system: System) -> None:
    """The narrowest limit counts, the group's own or one around it; the peak where the system tells it."""
    system.process("0::/user.slice/job\n", system.mount("cgroup2"))
    system.group("user.slice", max=256 * MIB)
    folder = system.group("user.slice/job", events=EVENTS.format(4), current=3 * MIB, max="max")
    group = control_group(7, system.proc)
    assert group == ControlGroup(folder, system.mounted, 2)
    assert group.count() == MemoryCount(4, 3 * MIB, 256 * MIB)
    system.group("user.slice/job", peak=200 * MIB, max=128 * MIB)
    assert group.count() == MemoryCount(4, 200 * MIB, 128 * MIB)


def test_version_1_counts_beside_version_2(system: System) -> None:
    """On a system with both the memory is where its controller is; a limit as good as none is none."""
    cgroup = "4:memory:/a\n1:name=systemd:/b\n0::/b\n"
    mounts = (system.mount("cgroup2", name="unified"), system.mount("cgroup", options="rw,memory", name="memory"))
    system.process(cgroup, *mounts)
    counters = {"oom_control": CONTROL.format(2), "max_usage_in_bytes": 7 * MIB, "limit_in_bytes": (1 << 63) - 4096}
    folder = system.group("memory/a", **counters)
    group = control_group(7, system.proc)
    assert group == ControlGroup(folder, system.mounted / "memory", 1)
    assert group.count() == MemoryCount(2, 7 * MIB, None)


def test_a_container_sees_its_own_group_as_the_outermost(system: System) -> None:
    """What is mounted stands for a path that the process names in full."""
    system.process("0::/docker/abc/inner\n", system.mount("cgroup2", root="/docker/abc"))
    folder = system.group("inner", events=EVENTS.format(0))
    group = control_group(7, system.proc)
    assert group is not None
    assert group.folder == folder
    system.process("0::/docker/abc\n", system.mount("cgroup2", root="/docker/abc"))
    group = control_group(7, system.proc)
    assert group is not None
    assert group.folder == system.mounted


@pytest.mark.parametrize(
    ("cgroup", "mounted"),
    [("", True), ("0::/\n", False), ("nonsense\n", True), ("4:cpu:/\n", True), (None, False)],
)
def test_a_system_that_tells_nothing_shows_nothing(system: System, cgroup: str | None, mounted: bool) -> None:
    """No groups, none mounted, none readable, or another system: there is no evidence, and no error."""
    if cgroup is not None:
        system.process(cgroup, *([system.mount("cgroup2")] if mounted else []))
    assert control_group(7, system.proc) is None
    assert MemoryWatch(None).evidence() == ""


@pytest.mark.parametrize("events", [None, "", "low 0\n", "oom_kill many\n"])
def test_a_group_without_the_counter_shows_nothing(system: System, events: str | None) -> None:
    """An old system counts no kills, and the outermost group counts nothing."""
    system.process("0::/\n", system.mount("cgroup2"))
    system.group("", **({} if events is None else {"events": events}))
    group = control_group(7, system.proc)
    assert group is not None
    assert group.count() is None


def test_this_process_is_in_a_group_or_there_are_none() -> None:
    """On the system at hand nothing fails; a process that has ended is in none."""
    watch = MemoryWatch(os.getpid())
    assert watch.evidence() == ""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert control_group(ended.pid) is None


# ── reported ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("signum", "kills", "report"),
    [
        (signal.SIGKILL, 1, "killed by SIGKILL: out of memory at 64 MiB of at most 64 MiB"),
        (signal.SIGKILL, 0, "killed by SIGKILL"),
        (signal.SIGSEGV, 1, "killed by SIGSEGV"),
    ],
)
async def test_a_report_names_the_want_of_memory(
    make_manager: Callable[..., AsyncKernelManager],
    monkeypatch: pytest.MonkeyPatch,
    system: System,
    signum: signal.Signals,
    kills: int,
    report: str,
) -> None:
    """Where the kernel was killed by SIGKILL and the counter went up meanwhile; any other signal is its own reason."""
    folder = system.group("", events=EVENTS.format(5), peak=64 * MIB, max=64 * MIB)
    monkeypatch.setattr(memory, "control_group", lambda _: ControlGroup(folder, folder, 2))
    manager = make_manager(autorestart=False)
    await manager.start_kernel()
    await manager.answered
    system.group("", events=EVENTS.format(5 + kills))
    os.kill(pid_of(manager), signum)
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert str(manager.death) == report


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of this system whose processes may use 64 MiB; only root can make one, and not everywhere."""
    places = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
    for top, limit in places:
        folder = top / f"cobnut-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            folder.joinpath(limit).write_text(str(64 * MIB))
            yield folder
        except OSError:
            continue
        else:
            return
        finally:
            folder.rmdir()
    pytest.skip("This system lets nobody here make a control group with a limit.")


HUNGRY = """
import sys
sys.stdin.readline()
hoard = [bytearray(1 << 20) for _ in range(512)]
"""


def test_a_process_that_takes_too_much_leaves_evidence(small_group: Path) -> None:
    """The system's own counters tell of a process that it killed."""
    with subprocess.Popen([sys.executable, "-c", HUNGRY], stdin=subprocess.PIPE) as process:
        small_group.joinpath("cgroup.procs").write_text(str(process.pid))
        watch = MemoryWatch(process.pid)
        process.communicate(b"\n")
    assert process.returncode == -signal.SIGKILL
    assert watch.evidence().startswith("out of memory at ")
    assert watch.evidence().endswith(" of at most 64 MiB")
