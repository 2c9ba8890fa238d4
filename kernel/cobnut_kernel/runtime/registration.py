"""The kernel's part in the handshake by which it tells its launcher where it listens (JEP 66)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zmq

from cobnut_kernel.errors import KernelStartError, ProtocolError
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from cobnut_kernel.protocol.connection import ConnectionInfo
    from cobnut_kernel.protocol.registration import RegistrationInfo
    from cobnut_kernel.transport import Endpoint

ANSWER_TIME = 10.0
"""How long a launcher may take to acknowledge a registration, in seconds."""


class Registration:
    """A registration on its way: sent as soon as the kernel listens, confirmed before it serves.

    In between the kernel goes on with its start, so that the launcher's answer costs it no time.
    """

    def __init__(self, info: RegistrationInfo) -> None:
        self.info = info
        self._sent: list[bytes] = []
        self._endpoint: Endpoint | None = None
        self._answered = threading.Event()
        self._refused = ""

    def send(self, connection: ConnectionInfo) -> None:
        """Tell the launcher where the kernel listens; the connection file should be there before.

        Raises:
            KernelStartError: the launcher's address is none.
        """
        self._sent = self.info.registration(connection)
        # What the launcher has not taken by then is of no use to it: nothing lingers.
        spec = SocketSpec(zmq.SocketType.DEALER, self.info.url, linger=0)
        try:
            self._endpoint = IOThread.shared().open(spec, self._on_frames)
        except zmq.ZMQError as error:
            raise KernelStartError(f"No launcher can be at {self.info.url}: {error.strerror}.") from error
        self._endpoint.send(self._sent)

    def confirm(self, timeout: float | None = None) -> None:
        """Wait for the launcher's acknowledgement, and let go of it.

        Args:
            timeout: in seconds; by default `ANSWER_TIME`.

        Raises:
            KernelStartError: it does not come: nobody will use this kernel.
        """
        timeout = ANSWER_TIME if timeout is None else timeout
        try:
            if not self._answered.wait(timeout):
                raise KernelStartError(
                    f"The launcher at {self.info.url} did not acknowledge the kernel's registration within {timeout:g}"
                    f" seconds: {self._refused or 'it has ended, or does not accept the key of the registration file.'}"
                )
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the launcher; once is enough, and not from the I/O thread."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()

    def _on_frames(self, frames: list[bytes]) -> None:
        try:
            self.info.check_acknowledgement(frames, self._sent)
        except ProtocolError as error:
            self._refused = str(error)
        else:
            self._answered.set()
