"""Jupyter kernels: the process that runs cells, its clients, and the managers that start it.

Nothing is imported before it is asked for: every kernel process runs this file first.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "AsyncKernelClient": "client.client",
    "AsyncKernelManager": "manager.manager",
    "AsyncMultiKernelManager": "manager.multi",
    "BlockingKernelClient": "client.blocking",
    "Caller": "caller",
    "CallerStoppedError": "caller",
    "CobnutError": "errors",
    "ConnectionFileError": "errors",
    "ConnectionFileMixin": "manager.connection",
    "DeathReport": "manager.lifecycle",
    "DuplicateKernelError": "errors",
    "ForkProvisioner": "provisioning.fork",
    "InvalidStateError": "caller",
    "Kernel": "runtime.kernel",
    "KernelClient": "client.requests",
    "KernelDiedError": "errors",
    "KernelError": "errors",
    "KernelInterruptError": "errors",
    "KernelManager": "manager.blocking",
    "KernelNotReadyError": "errors",
    "KernelProvisionerBase": "provisioning.base",
    "KernelProvisionerFactory": "provisioning.factory",
    "KernelRestarter": "manager.restarter",
    "KernelSpec": "kernelspec",
    "KernelSpecManager": "kernelspec",
    "KernelStartCancelled": "errors",
    "KernelStartError": "errors",
    "KernelState": "manager.lifecycle",
    "LiveKernel": "attachment",
    "LocalProvisioner": "provisioning.local",
    "MultiKernelManager": "manager.blocking",
    "NoEventLoopError": "caller",
    "NoSuchKernel": "errors",
    "Pending": "caller",
    "PendingCancelled": "caller",
    "PendingGroup": "caller",
    "PendingKernelError": "errors",
    "Phase": "manager.lifecycle",
    "Session": "session",
    "Tunnel": "tunnel",
    "TunnelError": "errors",
    "attach": "attachment",
    "find_connection_file": "connection_files",
    "find_kernels": "attachment",
    "live_kernels": "attachment",
    "load_connection_file": "connection_files",
    "run_kernel": "manager.starting",
    "start_new_async_kernel": "manager.starting",
    "start_new_kernel": "manager.starting",
    "tunnel_to_kernel": "connect",
    "write_connection_file": "connection_files",
}
"""The public names and the modules that hold them."""

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll] - the names arrive by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
