"""AsyncMultiKernelManager: many kernels, by their ids."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from cobnut_kernel.errors import DuplicateKernelError
from cobnut_kernel.manager.by_id import KernelsById
from cobnut_kernel.manager.callbacks import Callbacks
from cobnut_kernel.manager.culling import Activity, Culler
from cobnut_kernel.manager.lifecycle import KernelState, Phase
from cobnut_kernel.manager.start_queue import StartQueue
from cobnut_kernel.portal import Portal, PortalTask, join, settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cobnut_kernel.attachment import LiveKernel
    from cobnut_kernel.manager.manager import AsyncKernelManager


class AsyncMultiKernelManager(KernelsById):
    """Kernels by id; see `AsyncKernelManager` for what can be done with one.

    With `use_pending_kernels` a start and a stop return at once and go on by themselves; the manager's `ready` is
    their outcome. A kernel whose pending start failed stays listed, DEAD with its report, until it is shut down or
    removed.

    Attributes:
        start_queue: the starts that wait for their turn, where more were asked for than `max_concurrent_starts`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lock = threading.Lock()
        self._external: set[str] = set()
        self._on_event = Callbacks[str, Phase](self.log, "event")
        self._culler = Culler(self, self._begin_stop)
        self._listening: Portal | None = None
        self.start_queue: StartQueue = StartQueue(self.max_concurrent_starts, self.start_turn_time)
        self.observe(self._on_queue_trait, ["max_concurrent_starts", "start_turn_time"])
        self.observe(self._on_cull_idle_timeout, ["cull_idle_timeout"])

    def _on_queue_trait(self, _change: Any) -> None:
        self.start_queue.turn_time = self.start_turn_time
        self.start_queue.limit = self.max_concurrent_starts

    def _on_cull_idle_timeout(self, _change: Any) -> None:
        for kernel_id, manager in tuple(self._kernels.items()):
            self._attend(kernel_id, manager)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown_all()

    # ── which there are ─────────────────────────────────────────────────────────────────────────────────────────────

    def list_kernel_ids(self) -> list[str]:
        """List the ids, in the order of the starts; with `external_connection_dir` those of living strangers too."""
        self._look_outside()
        return list(self._kernels)

    def remove_kernel(self, kernel_id: str) -> AsyncKernelManager | None:
        """Take a kernel off the list, without stopping it; returns its manager, or None where there is none."""
        with self._lock:
            removed = self._kernels.pop(kernel_id, None)
        if removed is not None:
            self._dismiss(kernel_id, removed)
        return removed

    def _look_outside(self) -> None:
        """Take in the kernels of others that live, and take out those that do not any longer."""
        if not (self.external_connection_dir or self._external):
            return
        from cobnut_kernel.attachment import find_kernels  # late: most managers mind their own kernels

        folders = [Path(self.external_connection_dir)] if self.external_connection_dir else []
        living = {kernel.kernel_id: kernel for kernel in find_kernels(folders) if kernel.kernel_name}
        with self._lock:
            for kernel_id in self._external - set(living):
                self._kernels.pop(kernel_id, None)
            new = {kernel_id: self._attached(living[kernel_id]) for kernel_id in living.keys() - set(self._kernels)}
            self._kernels.update(new)
            self._external = (self._external & set(living)) | set(new)

    def _attached(self, kernel: LiveKernel) -> AsyncKernelManager:
        """Make the manager of a stranger."""
        file = str(kernel.connection_file)
        made = self._create_manager(kernel.kernel_name, kernel.kernel_id, owns_kernel=False, connection_file=file)
        manager: AsyncKernelManager = getattr(made, "asynchronous", made)
        manager.load_connection_info(kernel.connection_info.as_dict())
        manager.attach()
        return manager

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
        kernel_id, manager, task = self._begin_start(kernel_name, options)
        if self.use_pending_kernels:
            return kernel_id
        try:
            await manager.join_start(task)
        except BaseException:
            self._forget(kernel_id, manager)
            raise
        return kernel_id

    def start_soon(self, *, kernel_name: str | None = None, **options: Any) -> str:
        """Start a kernel and return its id, at once; needs no loop, in any thread.

        What `start_kernel` does with `use_pending_kernels`, whatever that is.
        """
        return self._begin_start(kernel_name, options)[0]

    def pre_start_kernel(self, kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[AsyncKernelManager, str, str]:
        """Make the manager of a kernel that is about to start, and settle its name and its id; to be overridden.

        Args:
            kernel_name: of its kernelspec; None is `default_kernel_name`.
            kwargs: the options of the start; what does not concern the kernel's manager is taken out.

        Raises:
            DuplicateKernelError: the option `kernel_id` is that of another kernel.
        """
        name = kernel_name or self.default_kernel_name
        kernel_id = kwargs.pop("kernel_id", None) or self.new_kernel_id(kernel_name=name, **kwargs)
        self._require_new(kernel_id)
        return self._create_manager(name, kernel_id), name, kernel_id

    def cancel_start(self, kernel_id: str) -> None:
        """Cancel a start or restart on its way, one that waits for its turn too; when it is undone the id is gone.

        Nothing happens where the kernel is not on its way up.

        Raises:
            KeyError: there is no kernel of that id.
        """
        manager = self.get_kernel(kernel_id)
        ready = manager.ready
        manager.cancel_start()
        ready.add_done_callback(lambda _: self._forget_stopped(kernel_id, manager))

    def _begin_start(
        self, kernel_name: str | None, options: dict[str, Any]
    ) -> tuple[str, AsyncKernelManager, PortalTask[None]]:
        made, _, kernel_id = self.pre_start_kernel(kernel_name, options)
        manager: AsyncKernelManager = getattr(made, "asynchronous", made)  # a blocking one has one of ours inside
        manager.start_queue = self.start_queue
        manager.add_event_callback(lambda _, phase: self._on_event.tell(kernel_id, phase))
        with self._lock:
            self._require_new(kernel_id)
            self._kernels[kernel_id] = manager
        try:
            task = manager.begin_start(kernel_id=kernel_id, **options)
        except BaseException:
            self.remove_kernel(kernel_id)
            raise
        self._attend(kernel_id, manager)
        return kernel_id, manager, task

    def _require_new(self, kernel_id: str) -> None:
        if kernel_id in self._kernels:
            raise DuplicateKernelError(f"There is a kernel with the id {kernel_id} already: choose another id.")

    def _create_manager(self, kernel_name: str, kernel_id: str, **traits: Any) -> Any:
        traits["pending_shutdown"] = self.pending_shutdown
        if self.autorestart is not None:
            traits["autorestart"] = self.autorestart
        if self.kernel_spec_manager is not None:
            traits["kernel_spec_manager"] = self.kernel_spec_manager
        if self.connection_dir and "connection_file" not in traits:
            traits["connection_file"] = str(Path(self.connection_dir) / f"kernel-{kernel_id}.json")
        return self.kernel_manager_factory(
            parent=self, log=self.log, kernel_name=kernel_name, kernel_id=kernel_id, **traits
        )

    # ── one kernel ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def restart_kernel(self, kernel_id: str, now: bool = False, **options: Any) -> None:
        """Restart a kernel; cancelling that leaves none. Raises what its manager does, and KeyError."""
        manager = self.get_kernel(kernel_id)
        try:
            await manager.restart_kernel(now=now, **options)
        finally:
            self._forget_stopped(kernel_id, manager)

    def activity(self, kernel_id: str) -> Activity | None:
        """Tell how a kernel is used; None where culling is off, and nobody listens."""
        return self._culler.activity(kernel_id)

    def add_event_callback(self, callback: Callable[[str, Phase], object]) -> Callable[[], None]:
        """Call back with every kernel's id and phases, when they begin and again when they are over; see its manager.

        In order, on the portal's thread: it must not wait. Returns the undo.
        """
        return self._on_event.add(callback)

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

    async def kill_kernel(self, kernel_id: str) -> None:
        """Stop a kernel by SIGKILL and take it off the list. Raises as `shutdown_kernel` does."""
        await self.shutdown_kernel(kernel_id, now=True)

    async def shutdown_all(self, now: bool = False) -> None:
        """Stop all kernels at the same time, under one deadline (`shutdown_deadline`).

        Starts on their way are waited for, or cancelled where `pending_shutdown` says so; those that still wait for
        their turn are cancelled. A second call with `now`, or cancelling the first, kills what is left at once.

        Args:
            now: kill them, and cancel the starts.
        """
        await Portal.shared().run(partial(self._shutdown_all, now=now))

    async def _shutdown_all(self, *, now: bool) -> None:
        import asyncio

        cancels = now or (self.use_pending_kernels and self.pending_shutdown == "cancel")
        stops = self._begin_stops(list(self.start_queue.waiting), now=now, pending="cancel")  # first: none moves up
        stops |= self._begin_stops(list(self._kernels), now=now, pending="cancel" if cancels else "wait")
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
        self._dismiss(kernel_id, manager)

    def _forget_stopped(self, kernel_id: str, manager: AsyncKernelManager) -> None:
        if manager.state is KernelState.STOPPED:
            self._forget(kernel_id, manager)

    # ── culling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _attend(self, kernel_id: str, manager: AsyncKernelManager) -> None:
        """Listen to how a kernel is used, where that decides about its end."""
        if self.cull_idle_timeout > 0 and manager.owns_kernel:
            portal = self._listening = Portal.shared()
            portal.call_soon(self._listen, portal, kernel_id, manager)
        else:
            self._dismiss(kernel_id, manager)

    def _listen(self, portal: Portal, kernel_id: str, manager: AsyncKernelManager) -> None:
        if self._kernels.get(kernel_id) is manager:  # its start may have failed meanwhile
            self._culler.attend(portal, kernel_id, manager)

    def _dismiss(self, kernel_id: str, manager: AsyncKernelManager) -> None:
        """Listen no longer; in the order of the calls, whatever the portal has come to."""
        if self._listening is not None:
            with suppress(RuntimeError):  # the portal is ending, and with it the listening
                self._listening.call_soon(self._culler.dismiss, kernel_id, manager)
