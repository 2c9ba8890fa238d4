"""The clients that are told of a kernel's deaths and returns."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from cobnut_kernel.client.blocking import BlockingKernelClient
    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.protocol.connection import ConnectionInfo

Client = TypeVar("Client", "AsyncKernelClient", "BlockingKernelClient")


class Clients:
    """Clients of one kernel, of both colours, as long as somebody else holds them; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._clients: WeakSet[AsyncKernelClient | BlockingKernelClient] = WeakSet()

    def add(self, client: Client) -> Client:
        """Tell a client from now on, and return it."""
        with self._lock:
            self._clients.add(client)
        return client

    @property
    def attached(self) -> int:
        """How many of them have their channels open."""
        return sum(client.channels_running for client in self._list())

    def tell_died(self, reason: str) -> None:
        """Say that the kernel has ended, and why."""
        for client in self._list():
            client.kernel_died(reason)

    def tell_started(self, connection: ConnectionInfo | None) -> None:
        """Say that another kernel has taken its place, and where."""
        for client in self._list():
            client.kernel_started(connection)

    def _list(self) -> list[AsyncKernelClient | BlockingKernelClient]:
        with self._lock:
            return list(self._clients)
