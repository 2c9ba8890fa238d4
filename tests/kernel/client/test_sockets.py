"""Opening and closing a client's sockets, where the addresses are of no use."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import ConnectionFileError

if TYPE_CHECKING:
    from tests.kernel.client.conftest import KernelDouble

    from cobnut_kernel.protocol.connection import ConnectionInfo


@pytest.fixture
def info(kernel: KernelDouble) -> ConnectionInfo:
    """Be a connection that works."""
    return kernel.info


def refused(info: ConnectionInfo) -> str:
    """Start a client where it cannot; returns what it says, and looks for what it leaves."""
    client = AsyncKernelClient(info)
    threads = threading.active_count()
    with pytest.raises(ConnectionFileError) as error:
        client.start_channels()
    assert not client.channels_running
    assert threading.active_count() == threads
    return str(error.value)


def test_port_that_is_not_known_yet(info: ConnectionInfo) -> None:
    """Port 0 is a kernel's business: to a client it says nothing, and no other socket stays open for it."""
    assert "names no port for stdin" in refused(replace(info, transport="tcp", ip="127.0.0.1", stdin_port=0))


def test_address_that_is_none(info: ConnectionInfo) -> None:
    """An address that cannot be resolved is an error that names the url."""
    assert "tcp://no address:2" in refused(replace(info, transport="tcp", ip="no address"))
