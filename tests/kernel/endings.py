"""What the tests of a kernel's end share: programs that are kernels, cells that do not end, and the end itself."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from tests.kernel.wire import Exchange, KernelProcess, WireClient

SLEEPING = "import time; time.sleep(600)"
REFUSING = (
    "import time\nwhile True:\n    try: print('begun', flush=True); time.sleep(600)\n    except BaseException: pass"
)

OWN_PROCESS = """
import logging, sys
from cobnut_kernel.runtime.ending import last_words, watchdog
from cobnut_kernel.runtime.kernel import Kernel
from cobnut_kernel.runtime.ending.lifetime import Budget, run_process
logging.getLogger("cobnut_kernel").addHandler(logging.StreamHandler(sys.__stderr__))
{before}
run_process(Kernel(connection_file=sys.argv[1]{settings}){budget})
"""
"""A program that is a kernel, with what its command line does not offer."""


def program(before: str = "", settings: str = "", budget: str = "") -> list[str]:
    """Return the command of a program that is a kernel."""
    return [sys.executable, "-P", "-c", OWN_PROCESS.format(before=before, settings=settings, budget=budget)]


def begin(client: WireClient, code: str) -> Exchange:
    """Start a cell and wait until its code runs; it may say so itself, where it is ready for its end."""
    cell = client.send_code(code if "begun" in code else f"print('begun', flush=True)\n{code}")
    client.wait_for_text(cell, "begun")
    return cell


def assert_gone(kernel: KernelProcess) -> None:
    """Assert that the process has ended well and that no file is left."""
    assert kernel.wait() == 0, kernel.describe()
    assert kernel.left_over == []


def stop(kernel: KernelProcess, client: WireClient) -> None:
    """Ask for the end, and wait until it has come and nothing is left."""
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert_gone(kernel)
