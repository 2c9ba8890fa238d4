"""A client as a party that is connected, or is not yet: the part that awaits nothing."""

from __future__ import annotations

import warnings
from threading import Thread
from typing import TYPE_CHECKING, Any

from cobnut_kernel.client.asking import Answer, Content
from cobnut_kernel.client.connection import CHANNELS, Connection
from cobnut_kernel.client.heartbeat import Heartbeat
from cobnut_kernel.client.requests import KernelClient
from cobnut_kernel.client.waiting import Finished
from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.transport import IOThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cobnut_kernel.client.channels import ChannelQueue
    from cobnut_kernel.client.comms import CommListener
    from cobnut_kernel.client.router import Listener, Router
    from cobnut_kernel.session import Session


class ConnectedClient(KernelClient[Answer]):
    """A client with sockets of its own, which it opens and closes, and whose messages it hears."""

    def __init__(
        self,
        connection_info: ConnectionInfo | None = None,
        *,
        connection_file: str | Path | None = None,
        **traits: Any,
    ) -> None:
        super().__init__(**traits)
        self.connection_file: str = "" if connection_file is None else str(connection_file)
        connection = self._connection = Connection(_connection(connection_info, connection_file), self.log)
        queues = connection.router.queues
        self.shell_channel: ChannelQueue = queues[Channel.SHELL]
        self.iopub_channel: ChannelQueue = queues[Channel.IOPUB]
        self.control_channel: ChannelQueue = queues[Channel.CONTROL]
        self.stdin_channel: ChannelQueue = queues[Channel.STDIN]
        self.hb_channel: Heartbeat = Heartbeat(lambda: connection.info)

    def __del__(self) -> None:
        connection: Connection | None = self.__dict__.get("_connection")  # none where the construction failed
        if connection is not None and connection.sockets.are_open:
            # A finalizer runs in any thread, under any lock: it takes none itself.
            thread = IOThread.shared()
            if thread.is_running():  # or this is a forked child, whose parent has the sockets
                thread.call_soon(_close_elsewhere, self.hb_channel.stop, connection.close)
            text = "A kernel client was dropped with its channels open: call stop_channels()."
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def connection_info(self) -> ConnectionInfo:
        """Where the kernel is.

        Raises:
            ConnectionFileError: nobody has said it yet.
        """
        return self._connection.info

    @property
    def session_id(self) -> str:
        """The session that our messages carry, and the identity that the kernel knows us by."""
        return self._connection.codec.session

    @property
    def session(self) -> Session:
        """The party that we are, as the field's programs use it; its messages are sent with a channel's `send`."""
        return self._connection.session

    def get_connection_info(self, session: bool = False) -> Content:
        """Return the dict of a connection file, its key as bytes; with `session` our Session in place of the key."""
        fields = {**self.connection_info.as_dict(), "key": self.connection_info.key}
        if session:
            fields = {name: value for name, value in fields.items() if name not in ("key", "signature_scheme")}
            fields["session"] = self.session
        return fields

    def load_connection_info(self, info: Mapping[str, Any]) -> None:
        """Turn to the kernel that the dict of a connection file describes.

        Raises:
            ConnectionFileError: it is of no use, or the channels are open.
        """
        self._connection.load(ConnectionInfo.from_dict(info))

    def load_connection_file(self, connection_file: str | Path | None = None) -> None:
        """Turn to the kernel that a connection file describes; by default our `connection_file`, read again.

        Raises:
            ConnectionFileError: it is of no use, or the channels are open.
        """
        from cobnut_kernel.connection_files import load_connection_file

        file = str(connection_file or self.connection_file)
        self._connection.load(load_connection_file(file))
        self.connection_file = file

    def start_channels(
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> Finished:
        """Open the sockets, now; awaiting what this returns is allowed, and not needed.

        Where they are open nothing happens. Not to be called by a listener. The heart's socket is opened by whoever
        asks for beats, whatever `hb` says.

        Raises:
            ConnectionFileError: the kernel's addresses cannot be used.
        """
        wanted = dict(zip(CHANNELS, (shell, iopub, stdin, control), strict=True))
        self._connection.open([channel for channel, is_wanted in wanted.items() if is_wanted])
        return Finished()

    def stop_channels(self) -> Finished:
        """Close the sockets, now, and tell all who wait (`TransportClosedError`); awaiting is allowed, not needed.

        They can be opened again: what our kernel has said on iopub meanwhile comes then. Not to be called by a
        listener.
        """
        self.hb_channel.stop()
        self._connection.close()
        return Finished()

    @property
    def channels_running(self) -> bool:
        """Whether the sockets are open; that a kernel is at their other end is `wait_for_ready`'s to say."""
        return self._connection.sockets.are_open

    @property
    def refused(self) -> dict[str, int]:
        """How many messages could not be trusted, and were dropped, by the name of the error."""
        return dict(self._connection.sockets.refused)

    def kernel_died(self, reason: str) -> None:
        """Say that the kernel's process has ended: all who wait get a `KernelDiedError`, and so do new requests.

        For whoever watches the process. What the kernel sent before its death is still delivered. Readers of the
        channels are told two seconds later: the field's programs look at `is_alive` meanwhile.

        Args:
            reason: what is known of it, as in "killed by SIGKILL".
        """
        self._connection.kernel_died(reason)

    def kernel_started(self, connection_info: ConnectionInfo | None = None) -> None:
        """Say that another kernel takes the former one's place: the sockets turn to it, requests go to it.

        Said before it listens, it makes sure that nothing the former one was asked reaches it.

        Args:
            connection_info: where it is, if it is not where the former one was. With another key comes another
                session.

        Raises:
            ConnectionFileError: its addresses cannot be used.
        """
        self._connection.kernel_started(connection_info)
        self.hb_channel.forget()

    # ── listeners ───────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Call back with every message that comes, on whatever channel and for whomever; returns the undo.

        The call comes in the I/O thread and must not wait: hand over and return. What a callback raises is logged.
        """
        return self._router.listen(callback)

    def listen_to_comm(self, comm_id: str, callback: CommListener) -> Callable[[], None]:
        """Call back with every message of a comm, like `listen`; returns the undo."""
        return self._connection.comms.add(comm_id, callback)

    def listen_to_target(self, target_name: str, callback: CommListener) -> Callable[[], None]:
        """Call back with every comm that the kernel opens for a target, like `listen`; returns the undo."""
        return self._connection.comms.add_target(target_name, callback)

    @property
    def _router(self) -> Router:
        return self._connection.router


def _connection(info: ConnectionInfo | None, file: str | Path | None) -> ConnectionInfo | None:
    if file is None:
        return info
    if info is not None:
        raise ConnectionFileError("A client takes either connection_info or connection_file, not both.")
    from cobnut_kernel.connection_files import load_connection_file

    return load_connection_file(file)


def _close_elsewhere(*closings: Callable[[], object]) -> None:
    """Close what a dropped client left open, in a thread that may wait: the I/O thread, which calls this, may not."""

    def close() -> None:
        for closing in closings:
            closing()

    Thread(target=close, name="cobnut-closing", daemon=True).start()
