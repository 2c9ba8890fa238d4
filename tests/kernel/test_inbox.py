"""The stream between the I/O thread, or any other, and an event loop."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import anyio
import pytest

from cobnut_kernel.transport import Inbox

pytestmark = pytest.mark.anyio

WAIT = 20
"""Seconds after which a test gives up; a good one never waits so long."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both loops."""
    return request.param


async def test_an_inbox_hands_over_in_order_from_any_thread() -> None:
    """Items put by another thread, and by the loop itself, are received in the order they were put."""
    inbox = Inbox[int]()
    thread = threading.Thread(target=lambda: [inbox.put(number) for number in range(1000)])
    thread.start()
    with anyio.fail_after(WAIT):
        assert [await inbox.receive() for _ in range(1000)] == list(range(1000))
    thread.join()
    inbox.put(1)
    inbox.put(2)
    assert (len(inbox), inbox.receive_nowait(), inbox.drain(), len(inbox)) == (2, 1, [2], 0)


async def test_an_inbox_wakes_its_waiter_every_time() -> None:
    """Many single items, each put while the loop is about to wait: none is slept through."""
    there, back = Inbox[int](), SimpleQueue[int]()

    def echo() -> None:
        for _ in range(2000):
            there.put(back.get(timeout=WAIT))

    thread = threading.Thread(target=echo)
    thread.start()
    with anyio.fail_after(WAIT):
        for number in range(2000):
            back.put(number)
            assert await there.receive() == number
    thread.join()


async def test_an_empty_inbox_says_so() -> None:
    """Without waiting: WouldBlock while there may come more, EndOfStream after the end."""
    inbox = Inbox[int]()
    with pytest.raises(anyio.WouldBlock):
        inbox.receive_nowait()
    inbox.close()
    with pytest.raises(anyio.EndOfStream):
        inbox.receive_nowait()


async def test_a_closed_inbox_can_be_emptied() -> None:
    """What was put before the end is received, what comes after it is dropped, then the stream ends."""
    inbox = Inbox[int]()
    inbox.put(1)
    inbox.put(2)
    inbox.close()
    inbox.put(3)
    assert [item async for item in inbox] == [1, 2]


async def test_closing_wakes_the_waiter() -> None:
    """A loop that waits learns of the end, from whichever thread it comes."""
    inbox = Inbox[int]()
    thread = threading.Timer(0.01, inbox.close)
    thread.start()
    with anyio.fail_after(WAIT), pytest.raises(anyio.EndOfStream):
        await inbox.receive()
    thread.join()


async def test_aclose_drops_what_is_left() -> None:
    """As with anyio's streams, who closes does not want more."""
    inbox = Inbox[int]()
    inbox.put(1)
    await inbox.aclose()
    with pytest.raises(anyio.EndOfStream):
        await inbox.receive()


async def test_a_cancelled_receive_loses_no_item() -> None:
    """Cancelled while it waits, or as the item comes: the next receive gets it."""
    inbox = Inbox[int]()
    with anyio.move_on_after(0):
        await inbox.receive()
    with anyio.move_on_after(0.001):
        await inbox.receive()
    received: list[int] = []
    with anyio.fail_after(WAIT):
        for number in range(300):
            with anyio.CancelScope() as scope:
                thread = threading.Thread(target=inbox.put, args=(number,))
                thread.start()
                scope.cancel()
                received.append(await inbox.receive())
            thread.join()
            received += inbox.drain()
    assert received == list(range(300))


def test_an_inbox_may_outlive_its_loop(anyio_backend_name: str) -> None:
    """What is put after the loop has ended neither fails nor is lost: another loop receives it."""
    inbox = Inbox[int]()

    async def wait_a_little() -> None:
        with anyio.move_on_after(0.01):
            await inbox.receive()

    anyio.run(wait_a_little, backend=anyio_backend_name)
    inbox.put(1)
    assert anyio.run(inbox.receive, backend=anyio_backend_name) == 1


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend_name(request: pytest.FixtureRequest) -> str:
    """Name the loop for tests that run it themselves."""
    return request.param
