"""Run code in the event loop of any thread, and wait for it from any other.

Nothing of asyncio or trio is kept from the user: what runs in a loop is a task of that library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cobnut_kernel.caller.caller import Caller
from cobnut_kernel.caller.errors import (
    CallerError,
    CallerMismatchError,
    CallerStoppedError,
    InvalidStateError,
    NoEventLoopError,
    PendingCancelled,
    WouldDeadlockError,
)
from cobnut_kernel.caller.loops import Backend
from cobnut_kernel.caller.options import CallerCreateOptions
from cobnut_kernel.caller.pending import Pending, PendingCreateOptions
from cobnut_kernel.caller.service import CallerState

if TYPE_CHECKING:
    from cobnut_kernel.caller.groups import PendingGroup, PendingTrackerState

__all__ = [
    "Backend",
    "Caller",
    "CallerCreateOptions",
    "CallerError",
    "CallerMismatchError",
    "CallerState",
    "CallerStoppedError",
    "InvalidStateError",
    "NoEventLoopError",
    "Pending",
    "PendingCancelled",
    "PendingCreateOptions",
    "PendingGroup",
    "PendingTrackerState",
    "WouldDeadlockError",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cobnut_kernel.caller import groups  # few need them: they are imported when asked for

    return getattr(groups, name)
