"""The ways to manage a kernel, behind the same few words: one manager or many, pending, and from threads that block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from tests.kernel.leftovers import eventually
from traitlets.config import Config

from cobnut_kernel.manager.blocking import KernelManager, MultiKernelManager
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.manager.multi import AsyncMultiKernelManager

if TYPE_CHECKING:
    from cobnut_kernel.kernelspec import KernelSpecManager


class Face(ABC):
    """Kernels of one kernelspec manager, one after the other, in one of the ways.

    Attributes:
        manager: that of the last kernel; one whose start has failed may have none.
    """

    def __init__(self, specs: KernelSpecManager, **traits: Any) -> None:
        self.manager: Any = None
        config = Config({"AsyncKernelManager": traits, "KernelManager": traits})
        self._common: dict[str, Any] = {"kernel_spec_manager": specs, "config": config}

    @abstractmethod
    async def start(self, name: str, **options: Any) -> None:
        """Start a kernel and wait until its process runs."""

    @abstractmethod
    async def stop(self, *, now: bool = False) -> None:
        """Stop the kernel, if there is one, and wait until it has stopped."""

    async def restart(self, *, now: bool = False) -> None:
        """Restart the kernel."""
        await self.manager.restart_kernel(now=now)


class One(Face):
    """A manager of its own for each kernel."""

    async def start(self, name: str, **options: Any) -> None:
        """Start it by its manager."""
        self.manager = AsyncKernelManager(kernel_name=name, **self._common)
        await self.manager.start_kernel(**options)

    async def stop(self, *, now: bool = False) -> None:
        """Stop it by its manager."""
        await self.manager.shutdown_kernel(now=now)


class Many(Face):
    """A multi-kernel manager, whose list is empty in the end."""

    pending = False
    multi_class: type[Any] = AsyncMultiKernelManager

    def __init__(self, specs: KernelSpecManager, **traits: Any) -> None:
        super().__init__(specs, **traits)
        self.multi: Any = self.multi_class(use_pending_kernels=self.pending, **self._common)
        self._kernel_id = ""

    async def start(self, name: str, **options: Any) -> None:
        """Start it by its id."""
        self._kernel_id = ""
        self._kernel_id = await self.multi.start_kernel(kernel_name=name, **options)
        self.manager = self.multi.get_kernel(self._kernel_id)
        await self.manager.ready

    async def stop(self, *, now: bool = False) -> None:
        """Stop it by its id; one whose start has failed is listed only where it was pending."""
        assert self.multi.list_kernel_ids() == ([self._kernel_id] if self._kernel_id else [])
        if self._kernel_id:
            await self.multi.shutdown_kernel(self._kernel_id, now=now)
            await self.manager.ready
        await eventually(lambda: not self.multi.list_kernel_ids())


class Pending(Many):
    """Likewise, with starts and stops that return at once."""

    pending = True


class InThread(Face):
    """A blocking manager, called in a thread without a loop."""

    async def start(self, name: str, **options: Any) -> None:
        """Start it by its manager."""
        self.manager = KernelManager(kernel_name=name, **self._common)
        await anyio.to_thread.run_sync(partial(self.manager.start_kernel, **options))

    async def stop(self, *, now: bool = False) -> None:
        """Stop it by its manager."""
        await anyio.to_thread.run_sync(partial(self.manager.shutdown_kernel, now=now))

    async def restart(self, *, now: bool = False) -> None:
        """Restart it by its manager."""
        await anyio.to_thread.run_sync(partial(self.manager.restart_kernel, now=now))


class ManyInThread(Many):
    """A blocking multi-kernel manager, called in threads without a loop."""

    multi_class = MultiKernelManager

    async def start(self, name: str, **options: Any) -> None:
        """Start it by its id."""
        self._kernel_id = ""
        self._kernel_id = await anyio.to_thread.run_sync(partial(self.multi.start_kernel, kernel_name=name, **options))
        self.manager = self.multi.get_kernel(self._kernel_id)

    async def stop(self, *, now: bool = False) -> None:
        """Stop it by its id; one whose start has failed is not listed."""
        assert self.multi.list_kernel_ids() == ([self._kernel_id] if self._kernel_id else [])
        if self._kernel_id:
            await anyio.to_thread.run_sync(partial(self.multi.shutdown_kernel, self._kernel_id, now=now))
        assert not self.multi.list_kernel_ids()

    async def restart(self, *, now: bool = False) -> None:
        """Restart it by its id."""
        await anyio.to_thread.run_sync(partial(self.multi.restart_kernel, self._kernel_id, now=now))


class InRunningLoop(InThread):
    """A blocking manager, called where an event loop runs already."""

    async def start(self, name: str, **options: Any) -> None:
        """Start it by its manager, blocking the loop meanwhile."""
        self.manager = KernelManager(kernel_name=name, **self._common)
        self.manager.start_kernel(**options)

    async def stop(self, *, now: bool = False) -> None:
        """Stop it by its manager, likewise."""
        self.manager.shutdown_kernel(now=now)

    async def restart(self, *, now: bool = False) -> None:
        """Restart it by its manager, likewise."""
        self.manager.restart_kernel(now=now)


FACES: dict[str, type[Face]] = {
    "one": One,
    "many": Many,
    "pending": Pending,
    "blocking": InThread,
    "blocking in a loop": InRunningLoop,
    "blocking many": ManyInThread,
}
