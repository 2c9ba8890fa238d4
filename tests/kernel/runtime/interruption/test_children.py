"""The child processes of a cell, as the system tells them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.kernel.leftovers import until

from cobnut_kernel.runtime.interruption.children import _family

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_process_is_named_with_what_it_has_started() -> None:
    """And alone when it has ended, whenever that is: a cell's command may end while it is looked for."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert list(_family(parent.pid)) == [parent.pid, child]
        os.kill(child, 9)
        until(lambda: parent.poll() is not None)
    assert list(_family(parent.pid)) == [parent.pid]
