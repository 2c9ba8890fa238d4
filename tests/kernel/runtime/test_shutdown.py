"""The shutdown matrix: whatever a kernel does, and however it is to end, it ends and leaves nothing (R50-R54)."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import is_running

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.wire import Exchange, KernelProcess

    Start = Callable[..., KernelProcess]


@dataclass(frozen=True)
class Doing:
    """What a kernel does when it is to end.

    Attributes:
        code: a cell that is running then.
        ends: whether the cell has ended by itself before.
        subshell: whether it runs in a subshell.
        tags: what the cell is tagged with.
        answered: whether it hears of the interrupt, so that its client gets a reply.
        options: more of the request.
    """

    code: str
    ends: bool = False
    subshell: bool = False
    tags: tuple[str, ...] = ()
    answered: bool = True
    options: dict[str, Any] = field(default_factory=dict[str, Any])


MATRIX = {
    "idle": Doing("1", ends=True),
    "bytecode": Doing("while True: pass"),
    "sleep": Doing("import time; time.sleep(600)"),
    "await": Doing("import asyncio; await asyncio.sleep(600)"),
    "input()": Doing("input('name?')", options={"allow_stdin": True}),
    "a thread that is no daemon": Doing(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()", ends=True
    ),
    "a living and an unreaped child": Doing(
        "import os, subprocess\n"
        "living, unreaped = subprocess.Popen(['sleep', '600']), subprocess.Popen(['true'])\n"
        "os.waitid(os.P_PID, unreaped.pid, os.WEXITED | os.WNOWAIT)",
        ends=True,
    ),
    "a busy subshell": Doing("import time; time.sleep(600)", subshell=True),
    # beyond the listed ones
    "a cell in a thread of its own": Doing("import time; time.sleep(600)", tags=("thread",)),
    "a cell that takes no interrupt": Doing(
        "import time\nwhile True:\n"
        "    try: print('begun', flush=True); time.sleep(600)\n    except BaseException: pass",
        answered=False,
    ),
    "C code that hears no signal": Doing(
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)", answered=False
    ),
    "a subshell in C code": Doing(
        "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)", subshell=True, answered=False
    ),
    "a task that cannot be cancelled": Doing(
        "import asyncio\nasync def stay():\n    while True:\n        try: await asyncio.sleep(600)\n"
        "        except BaseException: pass\ntask = asyncio.create_task(stay()); await asyncio.sleep(0.01)",
        ends=True,
    ),
    "a thread of asyncio's": Doing("import asyncio, time; await asyncio.to_thread(time.sleep, 600)"),
    "a busy thread pool": Doing(
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(); pool.submit(time.sleep, 600)",
        ends=True,
    ),
    "a child with a session of its own": Doing(
        "import subprocess; child = subprocess.Popen(['sleep', '600'], start_new_session=True)", ends=True
    ),
    "forks": Doing("import os\nwhile True:\n    pid = os.fork()\n    if not pid: os._exit(0)\n    os.waitpid(pid, 0)"),
}
"""What a kernel may be doing when it is to end."""


class Ending:
    """A kernel in the midst of something, and those who look at its end."""

    def __init__(self, kernel: KernelProcess, owner: subprocess.Popen[bytes], doing: Doing) -> None:
        self.kernel = kernel
        self.owner = owner
        self.doing = doing
        self.client, self.other = kernel.connect(identity=b"asker"), kernel.connect()
        self.cell = self._begin()
        self.processes = psutil.Process(kernel.process.pid).children(recursive=True)
        self.children = psutil.Process(kernel.process.pid).children()

    def _begin(self) -> Exchange:
        subshell = self.client.create_subshell() if self.doing.subshell else None
        begun = "print('begun', flush=True)"
        code = self.doing.code if begun in self.doing.code else f"{begun}\n{self.doing.code}"
        cell = self.client.send_code(code, subshell=subshell, tags=[*self.doing.tags], **self.doing.options)
        self.client.wait_for_text(cell, "begun")
        if self.doing.ends:
            self.client.finish(cell)
        if self.doing.options:
            self.client.wait(lambda: any(message.msg_type == "input_request" for _, message in cell.replies), "input")
        return cell

    def by_request(self) -> None:
        """Ask the kernel to end; the asking client gets its reply, and all hear of it."""
        exchange = self.client.ask(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
        assert exchange.reply.msg_type == "shutdown_reply"
        assert exchange.content == {"status": "ok", "restart": False}
        assert exchange.types == ["busy", "shutdown_reply", "idle"]
        assert exchange.only(MessageType.SHUTDOWN_REPLY) == {"status": "ok", "restart": False}
        self.other.wait(lambda: self.other.strays["shutdown_reply"], "the shutdown_reply for all")

    def by_sigterm(self) -> None:
        """Ask the process."""
        self.kernel.process.send_signal(signal.SIGTERM)

    def by_owners_death(self) -> None:
        """Kill the owner."""
        self.owner.kill()

    def assert_all_gone(self) -> None:
        """Assert that the process has ended well, and that no file, socket, child or zombie is left."""
        assert self.kernel.wait() == 0, self.kernel.describe()
        assert self.kernel.left_over == []
        assert [process for process in self.processes if is_running(process.pid)] == []
        assert [child for child in self.children if psutil.pid_exists(child.pid)] == []

    def assert_answered(self) -> None:
        """Assert that a cell that could be interrupted has its reply."""
        if self.doing.answered and not self.doing.ends:
            self.client.wait(lambda: any(channel is Channel.SHELL for channel, _ in self.cell.replies), "the reply")
            [content] = [reply.content for channel, reply in self.cell.replies if channel is Channel.SHELL]
            assert content["ename"] in ("KeyboardInterrupt", "EOFError")  # the end of input() may come first


WAYS = {"request": Ending.by_request, "SIGTERM": Ending.by_sigterm, "the owner's death": Ending.by_owners_death}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("doing", MATRIX)
def test_a_kernel_ends(start_kernel: Start, doing: str, way: str) -> None:
    """Process, files, sockets and children are gone; a cell that can be stopped has its reply."""
    with subprocess.Popen(["sleep", "600"]) as owner:
        try:
            ending = Ending(start_kernel(env={"JPY_PARENT_PID": str(owner.pid)}), owner, MATRIX[doing])
            WAYS[way](ending)
            ending.assert_answered()
            ending.assert_all_gone()
        finally:
            owner.kill()
