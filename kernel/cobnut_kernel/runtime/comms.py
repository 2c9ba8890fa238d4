"""Comms: messages between objects of the user's code and their counterparts in front ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import comm
from comm.base_comm import BaseComm
from comm.base_comm import CommManager as Comms

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel
from cobnut_kernel.runtime.output.outbox import Outbox, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from cobnut_kernel.runtime.output.routing import CurrentJob


class Comm(BaseComm):
    """One comm of our kernel: what it says is published on iopub, as said by the running cell."""

    outbox: Outbox
    current: CurrentJob

    def publish_msg(
        self,
        msg_type: str,
        data: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: Iterable[Any] | None = None,
        **keys: Any,
    ) -> None:
        """Publish comm_open, comm_msg or comm_close (specification: "Custom Messages").

        Raises:
            TypeError: the data have no JSON form.
        """
        content = dumps({"data": {} if data is None else data, "comm_id": self.comm_id, **keys})
        written = dumps(metadata) if metadata else EMPTY
        # Copied now: the user may change a buffer before it is sent.
        copies = tuple(memoryview(buffer).tobytes() for buffer in buffers or ())
        parent = self.current.parent()
        self.outbox.post(Outgoing(Channel.IOPUB, msg_type, content, parent, written, (self.topic,), copies))


class CommManager(Comms):
    """The comms of the kernel, by id; the `comm` package makes and finds them here while the kernel runs."""

    def __init__(self, outbox: Outbox, current: CurrentJob) -> None:
        super().__init__()
        self._kind: type[Comm] = type("Comm", (Comm,), {"outbox": outbox, "current": current})
        self._before: tuple[Callable[..., BaseComm], Callable[[], Comms]] = comm.create_comm, comm.get_comm_manager

    def __enter__(self) -> Self:
        if (log := logging.getLogger("Comm")).level == logging.NOTSET:
            log.setLevel(logging.ERROR)  # a message that comes after its comm's end is no news to the user
        comm.create_comm, comm.get_comm_manager = self._create, self._get
        return self

    def __exit__(self, *_: object) -> None:
        comm.create_comm, comm.get_comm_manager = self._before
        for one in self.comms.values():
            one._closed = True  # their end is the kernel's: no front end is to hear of each

    def _create(self, *args: Any, **options: Any) -> Comm:
        return self._kind(*args, **options)

    def _get(self) -> CommManager:
        return self

    def info(self, target_name: str | None = None) -> dict[str, dict[str, str]]:
        """Return the open comms' targets by id, or those of one target (specification: "Comm info")."""
        names = {comm_id: one.target_name for comm_id, one in self.comms.items()}
        return {comm_id: {"target_name": name} for comm_id, name in names.items() if target_name in (None, name)}
