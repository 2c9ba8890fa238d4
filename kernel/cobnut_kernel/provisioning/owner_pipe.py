"""A pipe that ends with this process, for kernels that cannot see its end otherwise: in another pid namespace, say."""

from __future__ import annotations

import os

from cobnut_kernel.provisioning.per_process import PerProcess

VARIABLE = "COBNUT_OWNER_FD"
"""By which a kernel is told of the pipe; wrappers pass it on, and may close the pipe."""


class OwnerPipe(PerProcess):
    """The pipe: kernels inherit its reading end, and nobody the writing end."""

    def __init__(self) -> None:
        self.reading_end, self._writing_end = os.pipe()

    @property
    def name(self) -> str:
        """What the variable says: the number, and what tells the pipe from another one of that number."""
        return f"{self.reading_end}:{os.fstat(self.reading_end).st_ino}"

    def disown(self) -> None:
        """Close our ends in a forked child: one that goes on without us must not look like us."""
        self._release()

    def _release(self) -> None:
        for end in (self.reading_end, self._writing_end):
            os.close(end)
