"""What a client asks, as data, and the one way in which each colour of client asks it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable

Content = dict[str, Any]
"""What a message says, or a whole message as the field's dict."""

Buffer = bytes | bytearray | memoryview

Answer = TypeVar("Answer", covariant=True)
"""What `reply=True` returns: the reply as the field's dict, or something to await that brings it."""


class Ask(NamedTuple):
    """A request: what it says, where it goes, and to which subshell (JEP 91; None is the main one).

    One that `is_told` gets no reply: it is over when the kernel is idle again.
    """

    msg_type: str
    content: Content
    channel: Channel = Channel.SHELL
    subshell_id: str | None = None
    metadata: Content | None = None
    buffers: Iterable[Buffer] = ()
    is_told: bool = False


class Asking(ABC, Generic[Answer]):
    """Whoever asks.

    Each request returns the id of its message; with `reply=True` it returns the reply, and `timeout` is how many
    seconds that may take (None: as long as the kernel lives). All raise TransportClosedError where the channels are
    not open, KernelDiedError where the kernel is dead, and KernelNotReadyError where the reply does not come in time.
    """

    @abstractmethod
    def _ask(self, ask: Ask) -> str:
        """Send a request and return its message's id; reply and outputs are read from the channels."""

    @abstractmethod
    def _answer(self, ask: Ask, timeout: float | None) -> Answer:
        """Send a request and return its reply; its outputs are read from the channels."""

    def _asked(self, ask: Ask, timeout: float | None, *, reply: bool) -> str | Answer:
        return self._answer(ask, timeout) if reply else self._ask(ask)
