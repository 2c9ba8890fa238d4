"""AsyncMultiKernelManager: many kernels, by their ids."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from traitlets import Bool, DottedObjectName, Enum, Float, Instance, Unicode
from traitlets.config import LoggingConfigurable
from traitlets.utils.importstring import import_item

from cobnut_kernel.errors import DuplicateKernelError
from cobnut_kernel.kernelspec import NATIVE_NAME, KernelSpecManager
from cobnut_kernel.manager.manager import PENDING_POLICIES
from cobnut_kernel.portal import Portal, PortalTask, join, settled

if TYPE_CHECKING:
    from cobnut_kernel.manager.manager import AsyncKernelManager


class AsyncMultiKernelManager(LoggingConfigurable):
    """Kernels by id; see `AsyncKernelManager` for what can be done with one.

    With `use_pending_kernels` a start and a stop return at once and go on by themselves; the manager's `ready` is
    their outcome. A kernel whose pending start failed stays listed, DEAD with its report, until it is shut down or
    removed.
    """

    default_kernel_name = Unicode(NATIVE_NAME, config=True, help="The kernelspec of a start that names none.")
    kernel_spec_manager = Instance(KernelSpecManager, allow_none=True, help="Where kernelspecs are looked for.")
    kernel_manager_class = DottedObjectName(
        "cobnut_kernel.manager.manager.AsyncKernelManager", config=True, help="The class of one kernel's manager."
    )
    use_pending_kernels = Bool(False, config=True, help="Whether start and shutdown return at once.")
    pending_shutdown = Enum(
        PENDING_POLICIES,
        default_value="raise",
        config=True,
        help="What a shutdown does with a pending kernel: raise, wait for its start, or cancel it.",
    )
    shutdown_deadline = Float(
        10.0, config=True, help="Seconds that shutdown_all gives to all kernels together before it kills the rest."
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lock = threading.Lock()
        self._kernels: dict[str, AsyncKernelManager] = {}

    # ── which there are ─────────────────────────────────────────────────────────────────────────────────────────────

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._kernels

    def __len__(self) -> int:
        return len(self._kernels)

    def list_kernel_ids(self) -> list[str]:
        """List the ids, in the order of the starts."""
        return list(self._kernels)

    def get_kernel(self, kernel_id: str) -> AsyncKernelManager:
        """Return the manager of a kernel.

        Raises:
            KeyError: there is no kernel of that id.
        """
        try:
            return self._kernels[kernel_id]
        except KeyError:
            raise KeyError(f"Kernel with id not found: {kernel_id}") from None

    def remove_kernel(self, kernel_id: str) -> AsyncKernelManager | None:
        """Take a kernel off the list, without stopping it; returns its manager, or None where there is none."""
        with self._lock:
            return self._kernels.pop(kernel_id, None)

    def new_kernel_id(self, **options: Any) -> str:
        """Make the id of a new kernel; the options are those of its start."""
        del options
        return str(uuid4())

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start_kernel(self, *, kernel_name: str | None = None, **options: Any) -> str:
        """Start a kernel and return its id: when its process runs, or at once with `use_pending_kernels`.

        Args:
            kernel_name: of its kernelspec; by default `default_kernel_name`.
            options: those of `AsyncKernelManager.start_kernel`.

        Raises:
            DuplicateKernelError: the option `kernel_id` is that of another kernel.
            Exception: what `AsyncKernelManager.start_kernel` raises; not with `use_pending_kernels`.
        """
        kernel_id, task = self._begin_start(kernel_name, options)
        if self.use_pending_kernels:
            return kernel_id
        try:
            await join(task)
        except BaseException:
            self.remove_kernel(kernel_id)
            raise
        return kernel_id

    def start_soon(self, *, kernel_name: str | None = None, **options: Any) -> str:
        """Start a kernel and return its id, at once; needs no loop, in any thread.

        What `start_kernel` does with `use_pending_kernels`, whatever that is.
        """
        return self._begin_start(kernel_name, options)[0]

    def _begin_start(self, kernel_name: str | None, options: dict[str, Any]) -> tuple[str, PortalTask[None]]:
        name = kernel_name or self.default_kernel_name
        kernel_id = options.pop("kernel_id", None) or self.new_kernel_id(kernel_name=name, **options)
        manager = self._create_manager(name, kernel_id)
        with self._lock:
            if kernel_id in self._kernels:
                raise DuplicateKernelError(f"There is a kernel with the id {kernel_id} already: choose another id.")
            self._kernels[kernel_id] = manager
        return kernel_id, manager.begin_start(**options)

    def _create_manager(self, kernel_name: str, kernel_id: str) -> AsyncKernelManager:
        found = {"kernel_spec_manager": self.kernel_spec_manager} if self.kernel_spec_manager is not None else {}
        return import_item(self.kernel_manager_class)(
            parent=self,
            log=self.log,
            kernel_name=kernel_name,
            kernel_id=kernel_id,
            pending_shutdown=self.pending_shutdown,
            **found,
        )

    # ── one kernel ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt a kernel. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).interrupt_kernel()

    async def restart_kernel(self, kernel_id: str, now: bool = False, **options: Any) -> None:
        """Restart a kernel. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).restart_kernel(now=now, **options)

    async def signal_kernel(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a kernel's process group. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).signal_kernel(signum)

    async def is_alive(self, kernel_id: str) -> bool:
        """Say whether a kernel's process runs; KeyError for an unknown id."""
        return await self.get_kernel(kernel_id).is_alive()

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Stop a kernel and take it off the list; with `use_pending_kernels` that happens after this has returned.

        Raises:
            PendingKernelError: it is starting, and `pending_shutdown` is "raise".
            KeyError: there is no kernel of that id.
        """
        task, is_ours = self._begin_stop(kernel_id, now=now, restart=restart)
        if not self.use_pending_kernels:
            await (join(task) if is_ours else settled(task))

    async def shutdown_all(self, now: bool = False) -> None:
        """Stop all kernels at the same time, under one deadline (`shutdown_deadline`).

        Starts on their way are waited for, or cancelled where `pending_shutdown` says so; a second call with `now`,
        or cancelling the first, kills what is left at once.

        Args:
            now: kill them, and cancel the starts.
        """
        await Portal.shared().run(partial(self._shutdown_all, now=now))

    async def _shutdown_all(self, *, now: bool) -> None:
        import asyncio

        cancels = now or (self.use_pending_kernels and self.pending_shutdown == "cancel")
        stops = self._begin_stops(self.list_kernel_ids(), now=now, pending="cancel" if cancels else "wait")
        all_stops = asyncio.gather(*map(settled, stops.values()))
        try:
            await asyncio.wait_for(asyncio.shield(all_stops), self.shutdown_deadline)
        except (TimeoutError, asyncio.CancelledError) as error:
            late = [kernel_id for kernel_id, stop in stops.items() if not stop.done()]
            self._begin_stops(late, now=True, pending="cancel")
            await all_stops
            if not isinstance(error, TimeoutError):
                raise

    def _begin_stops(self, kernel_ids: list[str], *, now: bool, pending: str) -> dict[str, PortalTask[None]]:
        stops: dict[str, PortalTask[None]] = {}
        for kernel_id in kernel_ids:
            if kernel_id in self:
                stops[kernel_id], _ = self._begin_stop(kernel_id, now=now, pending=pending)
        return stops

    def _begin_stop(self, kernel_id: str, **options: Any) -> tuple[PortalTask[None], bool]:
        manager = self.get_kernel(kernel_id)
        task, is_ours = manager.begin_stop(**options)
        if is_ours:
            task.add_done_callback(lambda _: self._forget(kernel_id, manager))
        return task, is_ours

    def _forget(self, kernel_id: str, manager: AsyncKernelManager) -> None:
        with self._lock:
            if self._kernels.get(kernel_id) is manager:
                del self._kernels[kernel_id]
