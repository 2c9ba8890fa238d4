"""A pipe that ends with this process, for kernels that cannot see its end otherwise: in another pid namespace, say."""

from __future__ import annotations

import os

from cobnut_kernel.portal import Portal

VARIABLE = "COBNUT_OWNER_FD"
"""By which a kernel is told of the pipe; wrappers pass it on, and may close the pipe."""


class OwnerPipe:
    """The pipe: kernels inherit its reading end, and nobody the writing end. For the portal's thread."""

    _process_pipe: OwnerPipe | None = None

    def __init__(self) -> None:
        self.reading_end, self._writing_end = os.pipe()

    @classmethod
    def shared(cls) -> OwnerPipe:
        """Return this process's pipe; it ends with the portal."""
        if cls._process_pipe is None:
            cls._process_pipe = cls()
            Portal.shared().at_end(cls._process_pipe.close)
        return cls._process_pipe

    @property
    def name(self) -> str:
        """What the variable says: the number, and what tells the pipe from another one of that number."""
        return f"{self.reading_end}:{os.fstat(self.reading_end).st_ino}"

    def close(self) -> None:
        """Close our ends."""
        if OwnerPipe._process_pipe is self:
            OwnerPipe._process_pipe = None
        for end in (self.reading_end, self._writing_end):
            os.close(end)


def _after_fork() -> None:
    # A child that goes on without us must not look like us.
    if OwnerPipe._process_pipe is not None:
        OwnerPipe._process_pipe.close()


os.register_at_fork(after_in_child=_after_fork)
