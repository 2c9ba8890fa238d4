"""What a spare kernel does in advance: it does it, and nothing of it is to be seen afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

PROGRAM = """
import gc, os, signal, sys, threading, _thread
from cobnut_kernel.runtime.kernel import Kernel
from cobnut_kernel.runtime.zygote.rehearsal import STEPS, is_over
from cobnut_kernel.transport import IOThread

def is_open(descriptor):
    try:
        return os.fstat(descriptor)
    except OSError:  # the listing's own
        return False

def seen():
    files = {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if is_open(int(name))}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    routed = _thread.start_new_thread, threading.Thread.start
    streams = sys.stdout, sys.stderr, sys.stdin, sys.excepthook, sys.unraisablehook
    kernel = Kernel._instance, IOThread.shared().is_running()
    return files, handlers, routed, streams, threading.enumerate(), kernel, os.getcwd(), dict(os.environ)

for _ in range(2):
    before = seen()
    for step in STEPS:
        step()
    assert is_over()
    after = seen()
    for one, other in zip(before, after):
        assert one == other, (one, other)
gc.collect()
left = [each for each in gc.get_objects() if isinstance(each, Kernel)]
assert not left, left
print("nothing is left")
"""


def test_a_rehearsal_leaves_nothing() -> None:
    """Every step goes through; files, threads, signals, streams and variables are as before, and no kernel is left."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.stdout, ended.stderr) == ("nothing is left\n", "")


def test_what_does_not_end_is_told() -> None:
    """A rehearsal whose thread goes on is not over: the process is no kernel's then."""
    program = (
        "import threading, time\nfrom cobnut_kernel.runtime.zygote import rehearsal\nrehearsal._PATIENCE = 0.01\n"
        "assert rehearsal.is_over()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nassert not rehearsal.is_over()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=50, check=True)
