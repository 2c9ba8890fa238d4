"""What callers and pendings raise.

```
CobnutError
├── CallerError                   a caller cannot do what was asked
│   ├── NoEventLoopError            no event loop runs where one is needed
│   ├── CallerStoppedError          it was stopped, or its event loop has ended
│   ├── CallerMismatchError         there is one already, of another name or backend
│   └── WouldDeadlockError          the wait could never end: it stops what it waits for
├── PendingCancelled              what was waited for was cancelled
└── InvalidStateError             a pending is not done yet, or is done already
```
"""

from __future__ import annotations

from cobnut_kernel.errors import CobnutError


class CallerError(CobnutError, RuntimeError):
    """A caller cannot do what was asked."""


class NoEventLoopError(CallerError):
    """No event loop runs where one is needed."""


class CallerStoppedError(CallerError):
    """A caller was stopped, or its event loop has ended."""


class CallerMismatchError(CallerError, ValueError):
    """There is a caller already, and it has another name or backend."""


class WouldDeadlockError(CallerError):
    """A wait could never end, because it stops what it waits for."""


class PendingCancelled(CobnutError):  # noqa: N818 - the documented name
    """What was waited for was cancelled."""


class InvalidStateError(CobnutError, RuntimeError):
    """A pending is not done yet, or is done already."""
