"""The launcher's part in the handshake by which a kernel tells where it listens (JEP 66)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import zmq

from cobnut_kernel.errors import ProtocolError
from cobnut_kernel.protocol.connection import endpoint
from cobnut_kernel.protocol.registration import RegistrationInfo
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from pathlib import Path

    from cobnut_kernel.protocol.connection import ConnectionInfo

_log = logging.getLogger(__name__)


class RegistrationDesk:
    """A socket at which one kernel registers, once; it belongs to the loop that opens it.

    It listens on the kernel's own address, on a port of the system's choice, until it is closed.

    Args:
        kernel_id: of the kernel that may register.
        wanted: its connection, as far as it is decided; the key in it proves who registers.
        connection_file: where the kernel shall write its connection.

    Attributes:
        info: what the kernel's registration file holds.
        registered: the kernel's connection, as soon as it is known.
        refused: why the last message that came was none of the kernel's; empty where all were.

    Raises:
        ConnectionFileError: the id is none.
        zmq.ZMQError: nobody can listen on the address.
    """

    def __init__(self, kernel_id: str, wanted: ConnectionInfo, connection_file: Path) -> None:
        self.refused: str = ""
        self._loop = asyncio.get_running_loop()
        self.registered: asyncio.Future[ConnectionInfo] = self._loop.create_future()
        self._accepted: bool = False
        draft = RegistrationInfo(kernel_id, wanted.ip, 1, wanted, str(connection_file))
        spec = SocketSpec(zmq.SocketType.ROUTER, endpoint(wanted.transport, wanted.ip, 0), bind=True)
        self._endpoint = IOThread.shared().open(spec, self._on_frames)
        self.info: RegistrationInfo = replace(draft, port=int(self._endpoint.url.rpartition(":")[2]))

    def close(self) -> None:
        """Listen no longer; once is enough."""
        self._endpoint.close()
        self.registered.cancel()

    # ── in the I/O thread ───────────────────────────────────────────────────────────────────────────────────────────

    def _on_frames(self, frames: list[bytes]) -> None:
        try:
            connection = self.info.read_registration(frames)
        except ProtocolError as error:
            self.refused = str(error)
            _log.warning("A registration of kernel %s was refused: %s", self.info.kernel_id, error)
            return
        if self._accepted:
            _log.warning("Kernel %s registered again: the first registration counts.", self.info.kernel_id)
            return
        self._accepted = True
        self._endpoint.send(self.info.acknowledgement(frames))
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._accept, connection)

    def _accept(self, connection: ConnectionInfo) -> None:
        if not self.registered.done():
            self.registered.set_result(connection)
