"""The bridge: what arrives is taken once per frame, text of one cell as one, and nothing stops it."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cobnut.kernel_status import Status
from cobnut.kernels import CHUNK, Kernels, next_arrival
from cobnut.model.cell import RunState
from cobnut.model.document import Notice
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Header, Message

ONE: Any = object()
OTHER: Any = object()
CODEC = Codec(b"key")


def stream(text: str, parent: str = "cell", name: str = "stdout") -> tuple[Channel, Message]:
    """Make a message of output."""
    content = {"name": name, "text": text}
    return Channel.IOPUB, CODEC.message("stream", content, parent=Header(parent, "execute_request"))


def status(state: str) -> tuple[Channel, Message]:
    """Make a status message."""
    return Channel.IOPUB, CODEC.message("status", {"execution_state": state}, parent=Header("cell", "execute_request"))


def taken(*arrivals: tuple[Any, Any]) -> list[Any]:
    """Take all arrivals; text stands for a stream message, the type for any other."""
    waiting = deque(arrivals)
    found: list[Any] = []
    while waiting:
        _, event = next_arrival(waiting)
        if isinstance(event, KernelState):
            found.append(event)
        else:
            found.append(event[1].content.get("text", event[1].msg_type))
    return found


def test_text_of_one_cell_is_taken_as_one() -> None:
    """Pieces that follow each other are joined, in order."""
    assert taken(*((ONE, stream(str(number))) for number in range(5))) == ["01234"]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ((ONE, stream("b", name="stderr")), ["a", "b", "c"]),
        ((ONE, stream("b", parent="another")), ["a", "b", "c"]),
        ((OTHER, stream("b")), ["a", "b", "c"]),
        ((ONE, status("idle")), ["a", "status", "c"]),
        ((ONE, KernelState.DEAD), ["a", KernelState.DEAD, "c"]),
    ],
)
def test_nothing_overtakes_anything(between: tuple[Any, Any], expected: list[Any]) -> None:
    """Whatever stands between two pieces keeps them apart: stderr, another cell, another kernel, a status, a death."""
    assert taken((ONE, stream("a")), between, (ONE, stream("c"))) == expected


def test_what_is_joined_has_a_limit() -> None:
    """Text is joined up to a size, so that a flood does not take all of a frame."""
    pieces = taken(*((ONE, stream("x" * (CHUNK // 2))) for _ in range(5)))
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK, CHUNK // 2]


def test_a_huge_message_is_taken_in_pieces() -> None:
    """A kernel may send all it has in one message: it is cut, in order, and nothing is lost."""
    text = "".join(f"{number}\n" for number in range(100_000))
    pieces = taken((ONE, stream(text)), (ONE, stream("end")), (ONE, status("idle")))
    assert max(len(piece) for piece in pieces) <= CHUNK
    assert "".join(pieces[:-1]) == text + "end"
    assert pieces[-1] == "status"


def test_text_that_is_none_is_not_joined() -> None:
    """A stream message without text is passed on as it came."""
    _, broken = stream("")
    broken.content["text"] = None
    assert taken((ONE, stream("a")), (ONE, (Channel.IOPUB, broken)), (ONE, stream("b"))) == ["a", None, "b"]


@pytest.mark.anyio
async def test_a_session_is_told_once_per_frame(manager: Any) -> None:
    """However many messages there are, who listens is told once for all that was taken at a time."""
    kernels = Kernels(manager)
    session = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut", "scratch")
    told: list[Any] = []
    kernel = manager.kernels[session.kernel_id]
    kernel.endless.add("loop()")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kernels.run)
        with anyio.fail_after(10):
            while session.client is None:
                await anyio.lowlevel.checkpoint()
            kernels.submit(session, "loop()")
            kernels.on_change = told.append
            for number in range(1000):
                kernel.say("stream", {"name": "stdout", "text": f"{number}\n"})
            while not told:
                await anyio.lowlevel.checkpoint()
        assert told == [session]
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_nothing_listens_after_the_end(manager: Any) -> None:
    """Clients are closed with the bridge, also the one whose kernel has not answered yet."""
    kernels = Kernels(manager)
    answered = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut")
    manager.comes_up_at_once = False
    silent = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut")
    silent.manager.ready.resolve()
    clients: list[Any] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kernels.run)
        with anyio.fail_after(10):
            while answered.client is None or silent.connecting is None:
                await anyio.lowlevel.checkpoint()
        clients += [answered.client, silent.connecting]
        assert [client.is_open for client in clients] == [True, True]
        tasks.cancel_scope.cancel()
    assert [client.is_open for client in clients] == [False, False]


@pytest.mark.anyio
async def test_what_is_lost_for_good_is_told(manager: Any) -> None:
    """Where the kernel cannot say again what was missed, a line tells how much that was, and why."""
    kernels = Kernels(manager)
    session = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut", "scratch")
    kernel = manager.kernels[session.kernel_id]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kernels.run)
        with anyio.fail_after(10):
            while session.client is None:
                await anyio.lowlevel.checkpoint()
            kernel.say("cobnut.gap", {"first": 3, "last": 9, "count": 7, "reason": "The journal was full."})
            while not session.document.items:
                await anyio.lowlevel.checkpoint()
        notices = [item.text for item in session.document.items if isinstance(item, Notice)]
        assert notices == ["7 messages of the kernel are lost: The journal was full."]
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_numbers_are_reused(manager: Any) -> None:
    """A new kernel gets the lowest number that is free, so that Esc and a digit stay short."""
    kernels = Kernels(manager)
    sessions = [kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut") for _ in range(3)]
    kernels.dismiss(sessions[1])
    added = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut")
    assert [session.number for session in kernels.sessions] == [1, 2, 3]
    assert kernels.sessions[1] is added
    assert added.name == "python-2"


@pytest.mark.anyio
async def test_a_kernel_that_does_not_answer_is_not_waited_for(manager: Any) -> None:
    """Whether an R input is complete is decided by its last line while no kernel can say it."""
    manager.comes_up_at_once = False
    kernels = Kernels(manager)
    session = kernels.add(manager.start_soon(kernel_name="ir"), "ir")
    assert (await kernels.verdict(session, "f(")).runs
    assert not (await kernels.verdict(session, "f(\n1")).runs
    assert (await kernels.verdict(session, "f(\n1\n")).runs


@pytest.mark.anyio
async def test_a_death_before_anybody_looked_is_told(manager: Any) -> None:
    """The first kernel starts before the interface is there; if it has died by then, that is told, once."""
    manager.comes_up_at_once = False
    kernel_id = manager.start_soon(kernel_name="cobnut")
    manager.kernels[kernel_id].manager.die(DeathReport(3, None, "cannot import foo", KernelState.STARTING))
    kernels = Kernels(manager)
    session = kernels.add(kernel_id, "cobnut", "scratch")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kernels.run)
        with anyio.fail_after(10):
            while session.status is not Status.DEAD:
                await anyio.lowlevel.checkpoint()
        notices = [item.text for item in session.document.items if isinstance(item, Notice)]
        assert notices == [
            "cannot import foo",
            "The kernel has ended: exit code 3. Esc 0 0 starts it anew, Esc S S closes it.",
        ]
        assert session.row(0.0, selected=True).state_text == "dead (3)"
        kernels.submit(session, "entered = 'in the moment of its death'")
        assert session.document.cells[-1].state is RunState.ABORTED
        assert not session.waiting, "it must not run in the next kernel"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_kernel_on_its_way_is_not_restarted(manager: Any) -> None:
    """While it is about to start, a restart is refused with a line, and the start goes on."""
    manager.comes_up_at_once = False
    kernels = Kernels(manager)
    session = kernels.add(manager.start_soon(kernel_name="cobnut"), "cobnut")
    kernels.restart(session)
    assert "wait for that" in session.document.items[-1].text
    manager.kernels[session.kernel_id].manager.come_up()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kernels.run)
        with anyio.fail_after(10):
            while session.status is not Status.IDLE:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
