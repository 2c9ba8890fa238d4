"""The connections of a socket: how many there are, and who takes nothing."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import zmq

from cobnut_kernel.runtime.output.connections import Connections

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two connected pairs of sockets: the sender's end, and the reader's."""
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def event(kind: int, descriptor: int) -> list[bytes]:
    """Return what a monitor tells."""
    return [struct.pack("=hi", kind, descriptor), b"ipc://somewhere"]


def accepted(pairs: list[tuple[socket.socket, socket.socket]]) -> Connections:
    """Return the connections of the senders' ends."""
    connections = Connections()
    for sender, _ in pairs:
        connections.on_event(event(zmq.EVENT_ACCEPTED, sender.fileno()))
    return connections


def test_connections_come_and_go() -> None:
    """Each is counted once; one that was never told of can go."""
    connections = Connections()
    for kind, descriptor, count in (
        (zmq.EVENT_ACCEPTED, 5, 1), (zmq.EVENT_ACCEPTED, 6, 2), (zmq.EVENT_ACCEPTED, 6, 2),
        (zmq.EVENT_DISCONNECTED, 5, 1), (zmq.EVENT_DISCONNECTED, 9, 1), (zmq.EVENT_DISCONNECTED, 6, 0),
    ):  # fmt: skip
        connections.on_event(event(kind, descriptor))
        assert len(connections) == count


def test_who_takes_nothing_while_it_was_looked_is_asleep(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Bytes that lie there since a moment, all of them, are a sleeper's; who has taken some, or all, is none."""
    connections = accepted(pairs)
    (sleeping, _), (sending, reading) = pairs
    sleeping.send(b"x" * 100)
    for now in (1.0, 2.0, 3.0):
        sending.send(b"x" * 100)
        connections.look(now)
        assert connections.unread > 0
        assert not connections.asleep(0.5)
        assert connections.asleep(1.0)
        reading.recv(1000)
    connections.on_event(event(zmq.EVENT_DISCONNECTED, sleeping.fileno()))
    connections.look(4.0)
    assert not connections.asleep(4.0)
    assert connections.unread == 0


def test_one_left_out_counts_again_when_it_takes_something(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """As long as it sleeps nobody asks after it."""
    connections = accepted(pairs)
    (sending, reading), _ = pairs
    for _ in range(2):
        sending.send(b"x" * 100)
    connections.look(1.0)
    connections.leave_out(1.0)
    connections.look(2.0)
    assert (connections.asleep(2.0), connections.unread) == (False, 0)
    reading.recv(100)
    connections.look(3.0)
    assert connections.unread > 0
    assert connections.asleep(3.0)


def test_a_descriptor_that_is_none_passes_for_a_reader() -> None:
    """One that was closed, and one that is no socket, are nobody's sleep."""
    reading, writing = os.pipe()
    connections = Connections()
    for descriptor in (reading, 10_000):
        connections.on_event(event(zmq.EVENT_ACCEPTED, descriptor))
    connections.look(1.0)
    assert (len(connections), connections.unread, connections.asleep(1.0)) == (2, 0, False)
    os.close(reading)
    os.close(writing)
