"""The heart: beats only when asked for, seen to stop, at work again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
import pytest
import zmq
from tests.kernel.client.conftest import connection
from tests.kernel.leftovers import until

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.client.heartbeat import Heartbeat
from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.client.conftest import RealKernel

pytestmark = pytest.mark.anyio

LIMIT = 20
"""How many seconds an echo may take on a busy machine."""


class Heart:
    """A kernel's heart: it echoes, as long as it beats."""

    def __init__(self, info: ConnectionInfo) -> None:
        self.beats = 0
        self.is_silent = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(info.url(Channel.HEARTBEAT))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ending.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._ending.is_set():
            if self._socket.poll(5):
                frames = self._socket.recv_multipart()
                self.beats += 1
                if not self.is_silent:
                    self._socket.send_multipart(frames)


@pytest.fixture
def info(tmp_path: Path) -> ConnectionInfo:
    """Be a kernel's address."""
    return connection(tmp_path)


@pytest.fixture
def heart(info: ConnectionInfo) -> Iterator[Heart]:
    """Be a heart that beats."""
    heart = Heart(info)
    yield heart
    heart.stop()


@pytest.fixture
def heartbeat(info: ConnectionInfo) -> Iterator[Heartbeat]:
    """Listen for a heart, every hundredth of a second."""
    heartbeat = Heartbeat(lambda: info, time_to_dead=0.01)
    yield heartbeat
    heartbeat.stop()
    assert not IOThread.shared().is_running()


def test_beats_only_when_asked_for(heart: Heart, heartbeat: Heartbeat) -> None:
    """Nothing is sent before `unpause`, nor after `pause`; between them the echo tells that the heart beats."""
    assert not heartbeat.is_beating()
    assert not heartbeat.is_alive()
    assert not IOThread.shared().is_running()
    heartbeat.time_to_dead = 5
    heartbeat.unpause()
    until(heartbeat.is_beating)
    assert heartbeat.is_alive()
    assert heartbeat.since is not None
    heartbeat.pause()
    assert (heartbeat.is_beating(), heartbeat.since) == (False, None)
    assert not IOThread.shared().is_running()
    assert heart.beats == 1


def test_heart_that_stops_and_beats_again(heart: Heart, heartbeat: Heartbeat) -> None:
    """A heart that stops is seen to stop; when it beats again that is seen too, without a new start."""
    heartbeat.start()
    until(heartbeat.is_beating)
    heart.is_silent = True
    until(lambda: not heartbeat.is_beating())
    assert heartbeat.since is not None
    heart.is_silent = False
    until(heartbeat.is_beating)


def test_another_kernel(heart: Heart, heartbeat: Heartbeat) -> None:
    """When another kernel takes the former one's place, its own echo is waited for."""
    heartbeat.unpause()
    until(heartbeat.is_beating)
    heart.is_silent = True
    heartbeat.forget()
    assert heartbeat.since is None
    heart.is_silent = False
    until(heartbeat.is_beating)


async def test_asked_once(heart: Heart, heartbeat: Heartbeat) -> None:
    """One beat is sent and its echo awaited; the socket is closed afterwards."""
    assert await heartbeat.beats(LIMIT)
    assert heart.beats == 1
    assert not IOThread.shared().is_running()


async def test_asked_once_where_nobody_is(heartbeat: Heartbeat) -> None:
    """Where no heart beats the answer is no, when the time is over."""
    assert not await heartbeat.beats(0.01)


async def test_asked_while_it_beats(heart: Heart, heartbeat: Heartbeat) -> None:
    """Who asks while it beats disturbs nothing."""
    heartbeat.unpause()
    assert await heartbeat.beats(LIMIT)
    until(heartbeat.is_beating)


async def test_asked_by_many(heart: Heart, heartbeat: Heartbeat) -> None:
    """Many may ask at once over the one socket."""
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await heartbeat.beats(LIMIT))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    assert answers == [True] * 20
    assert not IOThread.shared().is_running()


async def test_stopped_while_asked(heartbeat: Heartbeat) -> None:
    """Who waits when it is stopped is told that no echo came."""
    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            assert not await heartbeat.beats(LIMIT)

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        heartbeat.stop()


def test_port_that_is_not_known() -> None:
    """A connection without a port for the heartbeat is an error that says so."""
    with pytest.raises(ConnectionFileError, match="heartbeat"):
        Heartbeat(lambda: ConnectionInfo("tcp", "127.0.0.1")).unpause()


# ── a client's ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_real_hearts(real_kernel: RealKernel) -> None:
    """Kernels' hearts beat while a cell runs that locks Python, and a client without a manager is alive by them."""
    async with AsyncKernelClient(real_kernel.info) as client:
        await client.wait_for_ready(2 * LIMIT)
        run = client.run("sum(range(30_000_000))")
        client.hb_channel.unpause()
        assert await client.hb_channel.beats(LIMIT)
        client.hb_channel.time_to_dead = LIMIT
        assert await client.is_alive()
        until(client.hb_channel.is_beating)
        await run.reply()
    assert not client.hb_channel.is_alive()


@pytest.mark.parametrize("alive", [True, False])
async def test_client_of_a_manager(info: ConnectionInfo, alive: bool) -> None:
    """A client of a manager is alive if the manager's process is, whether it answers at once or is awaited."""

    async def later() -> bool:
        return alive

    answers: list[Callable[[], object]] = [lambda: alive, later]
    for answer in answers:
        client = AsyncKernelClient(info)
        client.parent = type("Manager", (type(client),), {"is_alive": staticmethod(answer)})(info)
        assert await client.is_alive() is alive
