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
    "Caller": "caller",
    "CallerStoppedError": "caller",
    "InvalidStateError": "caller",
    "Kernel": "runtime.kernel",
    "KernelInterruptError": "errors",
    "KernelProvisionerBase": "provisioning.base",
    "KernelProvisionerFactory": "provisioning.factory",
    "KernelSpec": "kernelspec",
    "KernelSpecManager": "kernelspec",
    "LocalProvisioner": "provisioning.local",
    "NoEventLoopError": "caller",
    "Pending": "caller",
    "PendingCancelled": "caller",
    "PendingGroup": "caller",
    "Session": "session",
}
"""The public names and the modules that hold them."""

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll] - the names arrive by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
