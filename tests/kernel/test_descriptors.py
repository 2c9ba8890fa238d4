"""What happens where a process has no descriptor left for a socket."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import errno, os, resource, sys, zmq
from cobnut_kernel.descriptors import ROOM, open_socket

left = int(sys.argv[1])
context = zmq.Context()
used = max(int(name) for name in os.listdir("/dev/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + left, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    open_socket(context, zmq.SocketType.DEALER).close(0)
except zmq.ZMQError as error:
    print(errno.errorcode[error.errno])
else:
    print("open")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is looked up in /dev/fd")
@pytest.mark.parametrize("left", range(13))
def test_a_socket_is_refused_where_libzmq_would_abort(left: int) -> None:
    """However few descriptors are left, the process goes on: the socket is open, or an error says why it is not."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(left)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) in ((0, "EMFILE"), (0, "open")), done.stderr
    if left == 0:
        assert done.stdout.strip() == "EMFILE"
