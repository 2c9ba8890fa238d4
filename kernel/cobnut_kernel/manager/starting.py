"""Start a kernel and a client of it in one call."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    from cobnut_kernel.client.blocking import BlockingKernelClient
    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.blocking import KernelManager
    from cobnut_kernel.manager.manager import AsyncKernelManager


def start_new_kernel(
    startup_timeout: float = 60, kernel_name: str = "python", **kwargs: Any
) -> tuple[KernelManager, BlockingKernelClient]:
    """Start a kernel and return its manager and a client that it has answered.

    Args:
        startup_timeout: seconds that it may take to answer, once its process runs.
        kernel_name: of its kernelspec; "python" is ipykernel's.
        kwargs: those of `KernelManager.start_kernel`.

    Raises:
        KernelNotReadyError: it did not answer in time.
        KernelDiedError: it died before it answered.
        Exception: what `KernelManager.start_kernel` raises. Whatever it is, nothing is left of the attempt.
    """
    from cobnut_kernel.manager.blocking import KernelManager

    manager = KernelManager(kernel_name=kernel_name)
    try:
        manager.start_kernel(**kwargs)
        return manager, _connected(manager.client(), startup_timeout)
    except BaseException:
        manager.shutdown_kernel(now=True)
        raise


async def start_new_async_kernel(
    startup_timeout: float = 60, kernel_name: str = "python", **kwargs: Any
) -> tuple[AsyncKernelManager, AsyncKernelClient]:
    """Start a kernel and return its manager and a client that it has answered; under asyncio or trio.

    The arguments are those of `start_new_kernel`, and so is what it raises. Cancelled, it leaves nothing either.
    """
    import anyio

    from cobnut_kernel.manager.manager import AsyncKernelManager

    manager = AsyncKernelManager(kernel_name=kernel_name)
    try:
        await manager.start_kernel(**kwargs)
        return manager, await _connected_async(manager.client(), startup_timeout)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await manager.shutdown_kernel(now=True)
        raise


@contextmanager
def run_kernel(**kwargs: Any) -> Generator[BlockingKernelClient]:
    """Have a new kernel for a while: yields a client that it has answered; at the end nothing is left of either.

    To run a kernel in this process is `Kernel().run()`.

    Args:
        kwargs: those of `start_new_kernel`.

    Raises:
        Exception: what `start_new_kernel` raises.
    """
    manager, client = start_new_kernel(**kwargs)
    try:
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _connected(client: BlockingKernelClient, timeout: float) -> BlockingKernelClient:
    try:
        client.start_channels()
        client.wait_for_ready(timeout)
    except BaseException:
        client.stop_channels()
        raise
    return client


async def _connected_async(client: AsyncKernelClient, timeout: float) -> AsyncKernelClient:
    try:
        client.start_channels()
        await client.wait_for_ready(timeout)
    except BaseException:
        client.stop_channels()
        raise
    return client
