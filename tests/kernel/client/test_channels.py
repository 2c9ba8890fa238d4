"""The queues that `get_msg` reads."""

from __future__ import annotations

from queue import Empty

import anyio
import pytest

from cobnut_kernel.client.channels import UNREAD_LIMIT, ChannelQueue
from cobnut_kernel.errors import KernelDiedError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Message

pytestmark = pytest.mark.anyio

codec = Codec(b"")


def message(number: int = 0) -> Message:
    """Make a message that carries a number."""
    return codec.message("stream", {"number": number})


@pytest.fixture
def queue() -> ChannelQueue:
    """Be a queue whose channel is open."""
    queue = ChannelQueue(Channel.IOPUB)
    queue.open()
    return queue


async def numbers(queue: ChannelQueue) -> list[int]:
    """Read the numbers of all messages that are here."""
    return [fields["content"]["number"] for fields in await queue.get_msgs()]


async def test_get_msg_gives_the_dict_of_the_field(queue: ChannelQueue) -> None:
    """A message is read as a dict with headers, content, metadata and buffers."""
    queue.put(message(3), is_answer=True)
    fields = await queue.get_msg()
    assert fields["content"] == {"number": 3}
    assert fields["header"]["msg_type"] == fields["msg_type"] == "stream"
    assert fields["parent_header"] == {}
    assert fields["buffers"] == []


async def test_order_of_arrival_is_kept(queue: ChannelQueue) -> None:
    """Answers and messages of others are read in the order in which they came."""
    for number in range(6):
        queue.put(message(number), is_answer=number % 3 == 0)
    assert await numbers(queue) == [0, 1, 2, 3, 4, 5]


async def test_empty_after_the_timeout(queue: ChannelQueue) -> None:
    """Without a message get_msg raises queue.Empty, as in the field, with a timeout of 0 too."""
    with pytest.raises(Empty):
        await queue.get_msg(timeout=0.001)
    with pytest.raises(Empty):
        await queue.get_msg(timeout=0)


async def test_timeout_of_zero_takes_what_is_here(queue: ChannelQueue) -> None:
    """A timeout of 0 asks for what is here already, and gets it."""
    queue.put(message(1), is_answer=False)
    assert (await queue.get_msg(timeout=0))["content"] == {"number": 1}


async def test_msg_ready_tells_whether_to_wait(queue: ChannelQueue) -> None:
    """msg_ready is true while a message is unread."""
    assert not queue.msg_ready()
    queue.put(message(), is_answer=False)
    assert queue.msg_ready()
    await queue.get_msg()
    assert not queue.msg_ready()


async def test_messages_of_others_are_bounded(queue: ChannelQueue) -> None:
    """Of messages that answer nothing the last UNREAD_LIMIT are kept, and the dropped ones are counted."""
    for number in range(UNREAD_LIMIT + 5):
        queue.put(message(number), is_answer=False)
    assert queue.dropped == 5
    assert await numbers(queue) == list(range(5, UNREAD_LIMIT + 5))


async def test_answers_are_never_dropped(queue: ChannelQueue) -> None:
    """Answers to our requests stay, however many others come and however many they are."""
    for number in range(3 * UNREAD_LIMIT):
        queue.put(message(number), is_answer=number % 2 == 0)
    read = await numbers(queue)
    assert [number for number in read if number % 2 == 0] == list(range(0, 3 * UNREAD_LIMIT, 2))


async def test_several_readers_get_a_message_each(queue: ChannelQueue) -> None:
    """Two tasks that wait on one channel are both served."""
    read: list[int] = []

    async def reader() -> None:
        read.append((await queue.get_msg())["content"]["number"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader)
        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        queue.put(message(1), is_answer=True)
        queue.put(message(2), is_answer=True)
    assert sorted(read) == [1, 2]


async def test_cancelled_reader_loses_nothing(queue: ChannelQueue) -> None:
    """A message that comes after a reader was cancelled is there for the next."""
    with anyio.move_on_after(0.001):
        await queue.get_msg()
    queue.put(message(1), is_answer=True)
    assert (await queue.get_msg())["content"] == {"number": 1}


async def test_reading_what_is_here_lets_others_run(queue: ChannelQueue) -> None:
    """A reader of a flood gives way to other tasks with each message."""
    for number in range(10):
        queue.put(message(number), is_answer=True)
    turns: list[str] = []

    async def other() -> None:
        for _ in range(5):
            turns.append("other")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        while queue.msg_ready():
            await queue.get_msg()
            turns.append("reader")
    assert "other" in turns[: turns.index("reader") + 3]


async def test_closed_queue_gives_the_rest_and_then_the_reason(queue: ChannelQueue) -> None:
    """After a failure what is here is read first, then the error is raised, with and without a timeout."""
    queue.put(message(1), is_answer=True)
    queue.fail(TransportClosedError("closed"))
    assert (await queue.get_msg())["content"] == {"number": 1}
    for timeout in (None, 5):
        with pytest.raises(TransportClosedError, match="closed"):
            await queue.get_msg(timeout)


async def test_waiting_reader_learns_of_a_failure_that_is_over(queue: ChannelQueue) -> None:
    """A reader that waits when the kernel dies gets the error even where the next kernel is there at once."""
    raised: list[str] = []

    async def reader() -> None:
        try:
            await queue.get_msg()
        except KernelDiedError as error:
            raised.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        queue.fail(KernelDiedError("died"))
        queue.open()
    assert raised == ["died"]
    queue.put(message(2), is_answer=True)
    assert (await queue.get_msg())["content"] == {"number": 2}


async def test_queue_says_what_to_do_before_it_is_open() -> None:
    """Reading a channel that was never opened names start_channels."""
    with pytest.raises(TransportClosedError, match=r"shell channel is not open: call start_channels\(\)"):
        await ChannelQueue(Channel.SHELL).get_msg()
