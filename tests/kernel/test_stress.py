"""A kernel that everybody uses at once: subshells, clients, comms, questions and interrupts at random.

`COBNUT_STRESS` is how many seconds the storm lasts, `COBNUT_SEED` what it is drawn from; a failure names both.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.wire import TIMEOUT, Exchange, KernelProcess, WireClient, WireError

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.protocol.messages import Message

SECONDS = float(os.environ.get("COBNUT_STRESS", "8"))
SEED = int(os.environ.get("COBNUT_SEED", "20"))
SUBSHELLS = 8
CLIENTS = 4
AT_ONCE = 12
"""Requests of one client that may be on their way."""

TOKEN = re.compile(r"hazel-\d+-nut")
QUESTIONS = (MessageType.COMPLETE_REQUEST, MessageType.INSPECT_REQUEST)
COMMS = (MessageType.COMM_OPEN, MessageType.COMM_MSG, MessageType.COMM_CLOSE)


@dataclass(frozen=True)
class Kind:
    """A kind of cell: its code, in which TOKEN is its own; what it prints or shows when it ends well.

    An endless one ends by an interrupt; one that lingers may print after its end.
    """

    code: str
    printed: str = ""
    shown: int = 0
    endless: bool = False
    lingers: bool = False
    backends: tuple[str, ...] = ("asyncio", "trio")


KINDS = {
    "print": Kind("for n_NUMBER in range(20): print('TOKEN', n_NUMBER)", "".join(f"TOKEN {n}\n" for n in range(20))),
    "flush": Kind("for n_NUMBER in range(20): print('TOKEN', end='', flush=True)", "TOKEN" * 20),
    "display": Kind("for n_NUMBER in range(3): display('TOKEN')", shown=3),
    "update": Kind("h_NUMBER = display('TOKEN', display_id=True); h_NUMBER.update('TOKEN again')", shown=1),
    "sleep": Kind("import time; time.sleep(0.05); print('TOKEN')", "TOKEN\n"),
    "await": Kind("import anyio; await anyio.sleep(0.05); print('TOKEN')", "TOKEN\n"),
    "turns": Kind(
        "import anyio\nfor n_NUMBER in range(20):\n    print('TOKEN')\n    await anyio.sleep(0.001)", "TOKEN\n" * 20
    ),
    "compute": Kind("sum(range(300_000)); print('TOKEN')", "TOKEN\n"),
    "child": Kind("import subprocess; subprocess.run(['sleep', '0.02']); print('TOKEN')", "TOKEN\n"),
    "error": Kind("raise ValueError('TOKEN')"),
    "thread later": Kind(
        "import threading, time\ndef f_NUMBER(): time.sleep(0.03); print('TOKEN')\n"
        "threading.Thread(target=f_NUMBER).start()",
        lingers=True,
    ),
    "task later": Kind(
        "import asyncio\nasync def f_NUMBER():\n    await asyncio.sleep(0.03)\n    print('TOKEN')\n"
        "t_NUMBER = asyncio.create_task(f_NUMBER())",
        lingers=True,
        backends=("asyncio",),
    ),
    "pool": Kind(
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as p_NUMBER:\n"
        "    r_NUMBER = list(p_NUMBER.map(lambda n: print('TOKEN'), range(4)))",
        "TOKEN\n" * 4,
        lingers=True,
    ),
    "comm": Kind(
        "import comm\nc_NUMBER = comm.create_comm(target_name='storm', data={'a': 'TOKEN'})\n"
        "c_NUMBER.send({'a': 'TOKEN'}, buffers=[b'TOKEN'])\nc_NUMBER.close({'a': 'TOKEN'})\nprint('TOKEN')",
        "TOKEN\n",
    ),
    "input": Kind("v_NUMBER = input('TOKEN'); print(v_NUMBER)", "answer to TOKEN\n"),
    "loop": Kind("print('TOKEN')\nwhile True: pass", endless=True),
    "long sleep": Kind("import time; print('TOKEN'); time.sleep(3600)", endless=True),
    "long await": Kind("import anyio; print('TOKEN'); await anyio.sleep(3600)", endless=True),
    "after await": Kind("import anyio, time; await anyio.sleep(0.01); print('TOKEN'); time.sleep(3600)", endless=True),
    "printing": Kind("import time\nwhile True:\n    print('TOKEN')\n    time.sleep(0.001)", endless=True),
    "event": Kind("import threading; print('TOKEN'); threading.Event().wait()", endless=True),
    "queue": Kind("import queue; print('TOKEN'); queue.Queue().get()", endless=True),
    "long child": Kind("import subprocess; print('TOKEN'); subprocess.run(['sleep', '3600'])", endless=True),
    "catches": Kind(
        "import time\ntry:\n    print('TOKEN')\n    time.sleep(3600)\nexcept KeyboardInterrupt:\n    print('TOKEN')\n"
        "    time.sleep(3600)",
        endless=True,
    ),
}

SETUP = """
import comm
def echo(opened, message):
    def answer(message):
        opened.send({"echo": message["content"]["data"]}, buffers=message["buffers"])
    opened.on_msg(answer)
    opened.send({"echo": message["content"]["data"]})
comm.get_comm_manager().register_target("echo", echo)
"""


@dataclass(eq=False)
class Sent:
    """A request of the storm, as its client knows it; times by time.monotonic()."""

    client: WireClient
    exchange: Exchange
    token: str = ""
    kind: Kind | None = None
    subshell: str | None = None
    silent: bool = False
    begun: float = field(default_factory=time.monotonic)
    ended: float = float("inf")
    answered: int = 0

    @property
    def msg_id(self) -> str:
        """The id of the request."""
        return self.exchange.request.msg_id

    @property
    def msg_type(self) -> str:
        """The type of the request."""
        return self.exchange.request.msg_type

    @property
    def replies(self) -> list[dict[str, Any]]:
        """The contents of its replies; questions are none."""
        return [message.content for channel, message in self.exchange.replies if channel is not Channel.STDIN]

    def is_done(self) -> bool:
        """Tell whether all has come for it that was to come."""
        return self.exchange.idle and (bool(self.replies) or self.msg_type in COMMS)


class Storm:
    """Clients that ask for all kinds of things at random, and what came of it."""

    def __init__(self, kernel: KernelProcess, backend: str, seed: int) -> None:
        self.kernel = kernel
        self.random = random.Random(seed)
        # Its own identity: a question comes by the stdin socket to who sent the cell by the shell socket.
        self.clients = [kernel.connect(identity=b"client %d" % number) for number in range(CLIENTS)]
        self.sent: list[Sent] = []
        self.open: list[Sent] = []
        self.subshells: list[str] = []
        self.comms: list[tuple[str, str | None]] = []
        self.interrupts: list[tuple[Sent, Callable[[Sent], bool]]] = []
        self.kinds = {name: kind for name, kind in KINDS.items() if backend in kind.backends}
        self._numbers = iter(range(sys.maxsize))
        self._acts: dict[Callable[[], object], int] = {
            self.cell: 40,
            self.question: 10,
            self.information: 8,
            self.comm: 14,
            self.interrupt: 6,
            self.interrupt_cells: 8,
            self.change_subshells: 2,
        }

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    def blow(self, seconds: float) -> None:
        """Do one thing after the other for a time."""
        end = time.monotonic() + seconds
        acts, weights = list(self._acts), list(self._acts.values())
        while time.monotonic() < end:
            if len(self.open) < AT_ONCE * CLIENTS:
                self.random.choices(acts, weights)[0]()
            self.listen()
            if self.random.random() < 0.3:
                time.sleep(self.random.random() * 0.01)

    def calm(self) -> None:
        """Interrupt what runs until all requests have been answered."""
        deadline = time.monotonic() + TIMEOUT
        while self.open:
            self.interrupt()
            pause = time.monotonic() + 0.3
            while self.open and time.monotonic() < pause:
                self.listen(0.01)
            if time.monotonic() > deadline:
                raise AssertionError(f"Not answered:\n{self.describe(self.open)}\n{self.stacks()}")
        time.sleep(0.2)  # for what lingers, and for what comes too often
        self.listen()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Listen until something has come."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            self.listen(0.002)
            if time.monotonic() > deadline:
                children = psutil.Process(self.kernel.process.pid).children(recursive=True)
                files = [str(each.readlink()) for each in Path(f"/proc/{self.kernel.process.pid}/fd").iterdir()]
                now = [f"{children} {sorted(files)} {self.describe(self.open)}"]
                with suppress(WireError):  # where the main shell does not answer
                    now.append(str(possessions(self.kernel)))
                raise AssertionError("\n".join((f"Waited for {what}:", *now, self.stacks())))

    def listen(self, timeout: float = 0) -> None:
        """Take in what has come, and answer the questions that are asked."""
        for client in self.clients:
            client.receive(timeout)
        for sent in list(self.open):
            self._answer(sent)
            if sent.is_done():
                sent.ended = time.monotonic()
                self.open.remove(sent)
        if self.kernel.process.poll() is not None:
            raise AssertionError(f"{self.describe(self.open)}\n{self.kernel.describe()}")

    def _answer(self, sent: Sent) -> None:
        asked = [message for channel, message in sent.exchange.replies if channel is Channel.STDIN]
        for question in asked[sent.answered :]:
            sent.answered += 1
            value = f"answer to {question.content['prompt']}"
            reply = sent.client.codec.message("input_reply", {"value": value}, parent=question.header)
            sent.client.sockets[Channel.STDIN].send_multipart(sent.client.codec.encode(reply))

    # ── one thing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def request(self, msg_type: str, content: dict[str, Any], channel: Channel = Channel.SHELL, **options: Any) -> Sent:
        """Send a request of any client."""
        client = self.random.choice(self.clients)
        sent = Sent(client, client.request(msg_type, content, channel, **options))
        sent.subshell = options.get("subshell_id")
        self.sent.append(sent)
        self.open.append(sent)
        return sent

    def cell(self, name: str = "", subshell: str | None = "", mode: str = "") -> Sent:
        """Send a cell, of any kind, to any shell."""
        name = name or self.random.choice(list(self.kinds))
        kind, number = KINDS[name], next(self._numbers)
        token = f"hazel-{number}-nut"
        mode = mode or self.random.choice(["", "", "", "# task\n", "# thread\n"])
        code = mode + kind.code.replace("TOKEN", token).replace("NUMBER", str(number))
        content = {
            "code": code,
            "silent": (silent := self.random.random() < 0.1),
            "store_history": True,
            "user_expressions": {"token": repr(token)},
            "allow_stdin": True,
            "stop_on_error": self.random.random() < 0.3,
        }
        sent = self.request(
            MessageType.EXECUTE_REQUEST,
            content,
            Channel.CONTROL if self.random.random() < 0.1 else Channel.SHELL,
            subshell_id=self.any_shell() if subshell == "" else subshell,
        )
        sent.token, sent.kind, sent.silent = token, kind, silent
        return sent

    def question(self) -> None:
        """Ask about code, or about the history."""
        code = self.random.choice(["pri", "import os; os.pa", "str.join(", "f_1", "h_"])
        about: dict[str, dict[str, Any]] = {
            MessageType.COMPLETE_REQUEST: {"code": code, "cursor_pos": len(code)},
            MessageType.INSPECT_REQUEST: {"code": code, "cursor_pos": len(code), "detail_level": 1},
            MessageType.IS_COMPLETE_REQUEST: {"code": "if 1:"},
            MessageType.HISTORY_REQUEST: {"hist_access_type": "tail", "n": 5, "raw": True, "output": False},
            MessageType.VARIABLES_REQUEST: {"limit": 20},
        }
        msg_type = self.random.choice(list(about))
        self.request(msg_type, about[msg_type], subshell_id=self.any_shell())

    def information(self) -> None:
        """Ask about the kernel."""
        kinds = [MessageType.KERNEL_INFO_REQUEST, MessageType.COMM_INFO_REQUEST, MessageType.LIST_SUBSHELL_REQUEST]
        kinds += [MessageType.STACK_REQUEST, MessageType.USAGE_REQUEST, MessageType.CONNECT_REQUEST]
        self.request(self.random.choice(kinds), {}, self.random.choice([Channel.SHELL, Channel.CONTROL]))

    def comm(self) -> None:
        """Open a comm, speak by it, or close it."""
        token = f"hazel-{next(self._numbers)}-nut"
        content: dict[str, Any] = {"data": {"token": token}}
        choice = self.random.random()
        if not self.comms or (choice < 0.2 and len(self.comms) < 20):
            comm_id, shell = f"comm {token[6:-4]}", self.any_shell()
            self.comms.append((comm_id, shell))
            opening = {"comm_id": comm_id, "target_name": "echo", **content}
            sent = self.request(MessageType.COMM_OPEN, opening, subshell_id=shell)
        elif choice < 0.3:
            comm_id, shell = self.comms.pop(self.random.randrange(len(self.comms)))
            sent = self.request(MessageType.COMM_CLOSE, {"comm_id": comm_id, **content}, subshell_id=shell)
        else:
            comm_id, shell = self.random.choice(self.comms)
            options: dict[str, Any] = {"subshell_id": shell, "buffers": (b"raw",)}
            sent = self.request(MessageType.COMM_MSG, {"comm_id": comm_id, **content}, **options)
        sent.token = token

    def interrupt(self) -> None:
        """Interrupt all."""
        sent = self.request(MessageType.INTERRUPT_REQUEST, {}, Channel.CONTROL)
        self.interrupts.append((sent, lambda _: True))

    def interrupt_cells(self) -> None:
        """Interrupt one shell, or some cells."""
        if self.random.random() < 0.4:
            shell = self.any_shell()
            sent = self.request(MessageType.INTERRUPT_CELLS_REQUEST, {"subshell_id": shell}, Channel.CONTROL)
            self.interrupts.append((sent, lambda hit: hit.subshell == shell))
            return
        cells = [sent for sent in self.open if sent.kind is not None]
        chosen = self.random.sample(cells, min(3, len(cells)))
        ids = [sent.msg_id for sent in chosen]
        sent = self.request(MessageType.INTERRUPT_CELLS_REQUEST, {"msg_ids": ids}, Channel.CONTROL)
        self.interrupts.append((sent, lambda hit: hit.msg_id in ids))

    def change_subshells(self) -> None:
        """Take a subshell away, whatever it does, and make another one."""
        if self.subshells:
            self.delete(self.subshells.pop(self.random.randrange(len(self.subshells))))
        self.create()

    def create(self) -> str:
        """Make a subshell, with any namespace."""
        content = {"namespace": self.random.choice(["shared", "private", "snapshot"])}
        sent = self.request(MessageType.CREATE_SUBSHELL_REQUEST, content, Channel.CONTROL)
        self.wait(sent.is_done, "the subshell")
        made = sent.replies[0]["subshell_id"]
        self.subshells.append(made)
        return made

    def delete(self, subshell: str) -> None:
        """Take a subshell away."""
        sent = self.request(MessageType.DELETE_SUBSHELL_REQUEST, {"subshell_id": subshell}, Channel.CONTROL)
        self.interrupts.append((sent, lambda hit: hit.subshell == subshell))
        self.comms = [each for each in self.comms if each[1] != subshell]

    def any_shell(self) -> str | None:
        """Return the id of a subshell, or None for the main shell."""
        return self.random.choice([None, *self.subshells])

    # ── what is to hold ─────────────────────────────────────────────────────────────────────────────────────────────

    def faults(self) -> list[str]:
        """Say what was not as it must be; nothing, if all is well."""
        faults = [f"{fault}\n{self.describe([sent])}" for sent in self.sent for fault in self._faults_of(sent)]
        return [*faults, *self._strangers()]

    def _faults_of(self, sent: Sent) -> list[str]:
        """Say what is wrong with what came for one request."""
        expected = 0 if sent.msg_type in COMMS else 1
        states = [m.content["execution_state"] for m in sent.exchange.iopub if m.msg_type == MessageType.STATUS]
        exchange = Exchange(sent.exchange.request, sent.exchange.channel, iopub=_without_notes(sent.exchange.iopub))
        types = exchange.types
        behind = types[types.index("idle") + 1 :] if "idle" in types else []
        lingering = {"stream"} if sent.kind is not None and sent.kind.lingers else set[str]()
        checks = {
            f"{len(sent.replies)} replies": len(sent.replies) == expected,
            f"states {states}": states == ["busy", "idle"],
            "not busy first": types[:1] == ["busy"],
            f"after idle: {behind} {exchange.iopub[-1].content}": set(behind) <= lingering,
            "another's words": set(TOKEN.findall(self._said(sent))) <= {sent.token},
        }
        faults = [fault for fault, holds in checks.items() if not holds]
        if sent.kind is not None and sent.replies:
            faults += self._faults_of_cell(sent, sent.kind, sent.replies[0])
        return faults

    def _faults_of_cell(self, sent: Sent, kind: Kind, reply: dict[str, Any]) -> list[str]:
        """Say what is wrong with how a cell ended."""
        status, name = reply["status"], reply.get("ename")
        if status == "ok":
            value = reply["user_expressions"]["token"]
            own = value.get("ename") == "KeyboardInterrupt" or value["data"]["text/plain"] == repr(sent.token)
            shown = len(sent.exchange.of_type(MessageType.DISPLAY_DATA))
            printed = kind.printed.replace("TOKEN", sent.token)
            checks = {
                "an endless cell has ended": not kind.endless,
                f"printed {sent.exchange.text()!r}": kind.lingers or sent.exchange.text() == printed,
                f"showed {shown}": shown == kind.shown,
                "another's expressions": own,
                "was to fail": kind is not KINDS["error"],
            }
            return [fault for fault, holds in checks.items() if not holds]
        if status == "error" and name == "ValueError":
            return [] if kind is KINDS["error"] and reply["evalue"] == sent.token else ["another's error"]
        if name == "UnknownSubshellError":
            return []
        was_meant = self._was_interrupted(sent) or (status == "aborted" and self._had_failed_before(sent))
        expected = status == "aborted" or name == "KeyboardInterrupt"
        return [] if was_meant and expected else [f"ended by {reply}, and nobody meant it"]

    def _was_interrupted(self, sent: Sent) -> bool:
        return any(
            meant(sent) and sent.begun < interrupt.ended and interrupt.begun < sent.ended
            for interrupt, meant in self.interrupts
        )

    def _had_failed_before(self, sent: Sent) -> bool:
        """Tell whether a cell of the same shell failed, which asked for that, while this one waited."""
        return any(
            other.kind is not None
            and other.subshell == sent.subshell
            and other.ended > sent.begun
            and other.exchange.request.content["stop_on_error"]
            and any(reply["status"] == "error" for reply in other.replies)
            for other in self.sent
        )

    def _said(self, sent: Sent) -> str:
        return "".join(json.dumps(message.content) for message in _without_notes(sent.exchange.iopub))

    def _strangers(self) -> list[str]:
        """Say what belongs to no request, and what one client has heard otherwise than another."""
        known = {sent.msg_id for sent in self.sent} | {msg_id for client in self.clients for msg_id in client.exchanges}
        heard = [[m.msg_id for channel, m in client.messages if channel is Channel.IOPUB] for client in self.clients]
        faults = [
            f"{client}: a {message.msg_type} of nobody: {message.content}"
            for client in self.clients
            for messages in client.strays.values()
            for message in messages
            if message.parent_id not in known and message.content.get("execution_state") != "starting"
        ]
        latest = heard[-1]  # who came last has heard the least
        return faults + ["the clients have heard different things" for each in heard if each[-len(latest) :] != latest]

    def describe(self, some: list[Sent]) -> str:
        """Describe requests, and what came of them."""
        return "\n".join(
            f"  {sent.msg_type} {str(sent.exchange.request.content)[:150]!r} of {sent.subshell} {sent.exchange.channel}"
            f" begun {sent.begun:.3f} ended {sent.ended:.3f}: {sent.exchange.types} {str(sent.replies)[:200]}"
            f" {sorted(set(TOKEN.findall(self._said(sent))))}"
            for sent in some[:20]
        )

    def stacks(self) -> str:
        """Have the kernel say where its threads are, and end: for a failure."""
        self.kernel.process.send_signal(signal.SIGABRT)
        self.kernel.wait()
        return self.kernel.stderr[-20000:]


ASKING = """
import gc, sys, threading
from cobnut_kernel.runtime.shells.subshell import Subshell
for name in ("last_exc", "last_type", "last_value", "last_traceback"):
    vars(sys).pop(name, None)  # Python's own memory of the last error, whose frames hold what was interrupted
get_ipython().last_execution_result = None
for name in [name for name in globals() if name[1:2] == "_" and name[2:].isdigit()]:
    del globals()[name]  # tasks, which hold the shell they were made in
gc.collect()
names = [thread.name for thread in threading.enumerate()]
len(names) - names.count("cobnut-aside"), sum(type(one) is Subshell for one in gc.get_objects()) // KEPT
"""
KEPT = 8
"""How many shells that have ended may still be held by what was interrupted in them; dozens end in a storm."""


def possessions(kernel: KernelProcess) -> tuple[int, ...]:
    """Count the kernel's Python threads, shells beside the main one by the handful, descriptors, and children that run.

    The threads that are kept for the next question beside the cells are not counted: they have a limit of their own.
    """
    result = kernel.clients[0].execute(ASKING.replace("KEPT", str(KEPT))).result
    process = psutil.Process(kernel.process.pid)
    running = [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return (*json.loads(f"[{result[1:-1]}]"), process.num_fds(), len(running))


def _without_notes(messages: list[Message]) -> list[Message]:
    """Leave out what asyncio says of interrupted tasks: it does so wherever the garbage collector finds them."""
    return [message for message in messages if "was never retrieved" not in message.content.get("text", "")]


def warm_up(storm: Storm) -> None:
    """Let the kernel do everything once, so that what it keeps for the next time is there."""
    storm.clients[0].execute(SETUP)
    made = storm.create()
    for name, kind in storm.kinds.items():
        for mode in ("", "# task\n", "# thread\n"):
            sent = storm.cell(name, made, mode)
            if kind.endless:
                storm.wait(lambda sent=sent: sent.exchange.idle or sent.exchange.text(), name)
                storm.calm()
    for _ in range(50):
        storm.question()
        storm.information()
    storm.calm()
    storm.subshells.remove(made)
    storm.delete(made)
    storm.calm()
    time.sleep(0.5)


@pytest.mark.timeout(2 * SECONDS + 150)
@pytest.mark.parametrize(("backend", "share"), [("asyncio", 1.0), ("trio", 0.5)])
def test_a_storm_leaves_nothing_unanswered_and_nothing_behind(
    start_kernel: Callable[..., KernelProcess], backend: str, share: float
) -> None:
    """Each request is answered once, between busy and idle; output is its own cell's; nothing is left, all goes on."""
    command = (sys.executable, "-P", "-m", "cobnut_kernel", "--set", f"anyio_backend={backend}", "-f")
    kernel = start_kernel(command, env={"PYTHONFAULTHANDLER": "1"})
    storm = Storm(kernel, backend, SEED)
    warm_up(storm)
    before = possessions(kernel)
    for _ in range(SUBSHELLS):
        storm.create()
    storm.blow(SECONDS * share)
    storm.calm()
    while storm.subshells:
        storm.delete(storm.subshells.pop())
    storm.calm()
    counts = Counter(sent.msg_type for sent in storm.sent)
    print(counts, Counter(reply["status"] for sent in storm.sent for reply in sent.replies if sent.kind))
    faults = storm.faults()
    assert not faults, f"COBNUT_SEED={SEED} COBNUT_STRESS={SECONDS:g}: {len(faults)} faults\n" + "\n".join(
        [*faults[:10], kernel.stderr]
    )
    leftover = f"no more threads, descriptors and children than {before}"
    storm.wait(lambda: all(now <= then for now, then in zip(possessions(kernel), before, strict=True)), leftover)
    assert storm.clients[0].execute("6 * 7").result == "42"
    assert "Traceback" not in kernel.stderr, kernel.stderr
