"""The kernel's callers: they run code in its event loops."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio.lowlevel import current_token

from cobnut_kernel.runtime.lanes import loop_options
from cobnut_kernel.transport import thread_safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.caller import Caller
    from cobnut_kernel.protocol.messages import Channel


class KernelCallers:
    """The callers of the main and the control thread's loops, each made when it is first asked for."""

    def __init__(self) -> None:
        self._loops: dict[Channel, tuple[int, Callable[[Callable[[], object]], None]]] = {}
        self._callers: dict[Channel, Caller] = {}

    def add_loop(self, channel: Channel) -> None:
        """Say that the running event loop is that of the channel's requests."""
        self._loops[channel] = threading.get_ident(), thread_safe()

    def get(self, channel: Channel) -> Caller:
        """Return the caller of a channel's loop; where it has to be made, waits until that loop is free.

        Raises:
            RuntimeError: the kernel does not run.
        """
        if channel not in self._loops:
            raise RuntimeError("The kernel does not run: its callers are there after it has started.")
        if channel not in self._callers:
            ident, call_soon = self._loops[channel]
            make = partial(self._make, channel)
            if ident == threading.get_ident():
                make()
            else:
                made = threading.Event()
                call_soon(lambda: (make(), made.set()))
                made.wait()
        return self._callers[channel]

    def _make(self, channel: Channel) -> None:
        """Make the caller of the running loop, which user code cannot end; its children get loops like ours."""
        from cobnut_kernel.caller import Caller

        kept: Any = {"protected": True}
        if isinstance(current_token().native_token, AbstractEventLoop):
            kept["backend_options"] = loop_options("asyncio")
        self._callers.setdefault(channel, Caller(**kept))

    def stop(self) -> None:
        """Stop them, and what they have started."""
        self._loops.clear()
        for caller in self._callers.values():
            caller.stop(force=True)
