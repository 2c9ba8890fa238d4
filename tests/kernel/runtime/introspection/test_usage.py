"""What the kernel uses of the machine, without psutil."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from cobnut_kernel.runtime.introspection.usage import Usage, usage_report

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="There is no /proc.")


def test_the_keys_are_those_that_front_ends_read() -> None:
    """The report has ipykernel's keys, and says whose it is."""
    report = usage_report()
    assert report["hostname"] == socket.gethostname()
    assert report["pid"] == os.getpid()
    assert report["cpu_count"] == os.cpu_count()
    assert report["kernel_cpu"] >= 0


@linux
def test_the_figures_are_those_of_psutil() -> None:
    """Memory is as psutil has it, of the process and of the host."""
    report, memory = usage_report(), psutil.virtual_memory()
    host = report["host_virtual_memory"]
    assert host["total"] == memory.total
    assert host["available"] == pytest.approx(memory.available, rel=0.05)
    assert host["percent"] == pytest.approx(memory.percent, abs=5)
    assert {"used", "free", "active", "inactive", "buffers", "cached", "shared"} <= host.keys()
    children = psutil.Process().children(recursive=True)
    used = sum(process.memory_full_info().pss for process in [psutil.Process(), *children])
    assert report["kernel_memory"] == pytest.approx(used, rel=0.1)


@linux
def test_the_time_of_the_processor_is_counted_from_the_last_report() -> None:
    """Work done between two reports is in the second one, the children's too; the host's is told then."""
    usage = Usage()
    assert "host_cpu_percent" not in usage.report()
    program = "import sys\nprint(sum(range(10**7)), flush=True)\nsys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        before = usage.report()
        assert before["kernel_cpu"] > 0
        assert 0 <= before["host_cpu_percent"] <= 100
        sum(range(10**7))
        assert usage.report()["kernel_cpu"] > 0
    finally:
        child.communicate()


@linux
def test_children_are_counted() -> None:
    """A child's memory, and that of its own child, is the kernel's."""
    before = usage_report()["kernel_memory"]
    program = "import subprocess, sys; held = bytearray(80 << 20); print('up', flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    child = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert usage_report()["kernel_memory"] > before + (80 << 20)
    finally:
        child.communicate()


def machine(folder: Path) -> Usage:
    """Return a machine's usage as its files say, in a folder of the test's own."""
    (folder / "proc/self").mkdir(parents=True, exist_ok=True)
    return Usage(folder / "proc", folder / "groups")


def test_a_system_without_these_files(tmp_path: Path) -> None:
    """What is unknown is left out."""
    report = machine(tmp_path).report()
    assert report.keys() == {"hostname", "pid", "cpu_count", "kernel_cpu"}


def test_the_limits_of_the_control_group(tmp_path: Path) -> None:
    """The narrowest limit counts, the group's own or one of those around it."""
    usage = machine(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n0::/outer/inner\n")
    inner = tmp_path / "groups/outer/inner"
    inner.mkdir(parents=True)
    assert "limits" not in usage.report()
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("500\n")
    (inner.parent / "memory.max").write_text("4096\n")
    (inner.parent / "memory.current").write_text("1024\n")
    assert usage.report()["limits"] == {"memory": 4096, "memory_used": 1024}
    (inner / "cpu.max").write_text("150000 100000\n")
    (inner.parent / "cpu.max").write_text("max 100000\n")
    assert usage.report()["limits"] == {"memory": 4096, "memory_used": 1024, "cpus": 1.5}
