"""Where the work of a manager is done: on the portal's thread, in the life that its kernel has there."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from cobnut_kernel.portal import Portal, PortalTask

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cobnut_kernel.manager.life import KernelLife
    from cobnut_kernel.manager.lifecycle import Lifecycle
    from cobnut_kernel.manager.manager import AsyncKernelManager

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Workplace:
    """The way from any thread to the life of one kernel.

    Attributes:
        life: the kernel's; None before anything was to do. Where its portal has ended the next work begins another.
    """

    def __init__(self, manager: AsyncKernelManager, lifecycle: Lifecycle) -> None:
        self.life: KernelLife | None = None
        self._manager = manager
        self._lifecycle = lifecycle
        self._portal: Portal | None = None

    @property
    def is_over(self) -> bool:
        """Whether the portal of the last work is ending: what begins now would begin on another one."""
        return self._portal is not None and self._portal.stopped

    def enter(self) -> None:
        """Make sure that there is a portal to hear of what begins now."""
        self._portal = Portal.shared()

    def begin(self, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> PortalTask[T]:
        """Begin some work and return its future, at once."""
        portal = self._portal = Portal.shared()
        return portal.start_soon(self._do, portal, work)

    async def run(self, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> T:
        """Do some work and await its result; cancelling that cancels the work."""
        portal = Portal.shared()
        return await portal.run(self._do, portal, work)

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Run a callback where the last work began; nobody listens where that has ended."""
        if self._portal is not None:
            with suppress(RuntimeError):
                self._portal.call_soon(callback, *args)

    async def _do(self, portal: Portal, work: Callable[[KernelLife], Coroutine[Any, Any, T]]) -> T:
        from cobnut_kernel.manager.life import KernelLife  # with asyncio: on the portal's thread, not on import

        if self.life is None or self.life.portal is not portal:  # its portal has ended, and the kernel with it
            self.life = KernelLife(self._manager, self._lifecycle, portal)
        return await work(self.life)
