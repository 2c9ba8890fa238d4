"""What is asked of one kernel of many: by its id, and handed to its manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cobnut_kernel.manager.traits import MultiManagerTraits

if TYPE_CHECKING:
    from collections.abc import Callable

    import zmq

    from cobnut_kernel.manager.manager import AsyncKernelManager


class KernelsById(MultiManagerTraits):
    """Managers of kernels by the kernels' ids; what they are asked here changes nothing in the list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernels: dict[str, AsyncKernelManager] = {}

    @classmethod
    def section_names(cls) -> list[str]:
        """Name the sections of a configuration that count; this class has none of its own."""
        return [name for name in super().section_names() if name != KernelsById.__name__]

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._kernels

    def __len__(self) -> int:
        return len(self._kernels)

    def get_kernel(self, kernel_id: str) -> AsyncKernelManager:
        """Return the manager of a kernel.

        Raises:
            KeyError: there is no kernel of that id.
        """
        try:
            return self._kernels[kernel_id]
        except KeyError:
            raise KeyError(f"Kernel with id not found: {kernel_id}") from None

    # ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────

    async def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt a kernel. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).interrupt_kernel()

    async def signal_kernel(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a kernel's process group. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).signal_kernel(signum)

    async def is_alive(self, kernel_id: str) -> bool:
        """Say whether a kernel's process runs; KeyError for an unknown id."""
        return await self.get_kernel(kernel_id).is_alive()

    def update_env(self, *, kernel_id: str, env: dict[str, str]) -> None:
        """Change the environment that a kernel's next restart gives it; nothing happens for an unknown id."""
        if kernel_id in self._kernels:
            self._kernels[kernel_id].update_env(env=env)

    def add_restart_callback(self, kernel_id: str, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back when a kernel restarts by itself, or stays dead. Raises what its manager does, and KeyError."""
        self.get_kernel(kernel_id).add_restart_callback(callback, event)

    def remove_restart_callback(self, kernel_id: str, callback: Callable[[], object], event: str = "restart") -> None:
        """Call back no longer. Raises what the kernel's manager does, and KeyError."""
        self.get_kernel(kernel_id).remove_restart_callback(callback, event)

    # ── stop, phase by phase ────────────────────────────────────────────────────────────────────────────────────────

    async def request_shutdown(self, kernel_id: str, restart: bool = False) -> None:
        """Ask a kernel to end; it stays on the list. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).request_shutdown(restart)

    async def finish_shutdown(
        self, kernel_id: str, waittime: float | None = None, pollinterval: float = 0.1, restart: bool = False
    ) -> None:
        """Wait until a kernel has ended, or end it; it stays listed. Raises what its manager does, and KeyError."""
        await self.get_kernel(kernel_id).finish_shutdown(waittime, pollinterval, restart)

    async def cleanup_resources(self, kernel_id: str, restart: bool = False) -> None:
        """Release what a kernel that has ended used; it stays on the list. KeyError for an unknown id."""
        await self.get_kernel(kernel_id).cleanup_resources(restart)

    # ── connection ──────────────────────────────────────────────────────────────────────────────────────────────────

    def get_connection_info(self, kernel_id: str) -> dict[str, Any]:
        """Return where a kernel is reached; KeyError for an unknown id."""
        return self.get_kernel(kernel_id).get_connection_info()

    def connect_shell(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's shell; who asked for it closes it."""
        return self.get_kernel(kernel_id).connect_shell(identity)

    def connect_iopub(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's iopub; who asked for it closes it."""
        return self.get_kernel(kernel_id).connect_iopub(identity)

    def connect_stdin(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's stdin; who asked for it closes it."""
        return self.get_kernel(kernel_id).connect_stdin(identity)

    def connect_control(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's control; who asked for it closes it."""
        return self.get_kernel(kernel_id).connect_control(identity)

    def connect_hb(self, kernel_id: str, identity: bytes | None = None) -> zmq.Socket[bytes]:
        """Return a socket that is connected to a kernel's heartbeat; who asked for it closes it."""
        return self.get_kernel(kernel_id).connect_hb(identity)
