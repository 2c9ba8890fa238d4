"""What a process has one of, from its first use to the end of the portal; a forked child begins without it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar, Self

from cobnut_kernel.portal import Portal


class PerProcess(ABC):
    """One of its kind in this process, for the portal's thread; `shared` makes it."""

    _of_this_process: ClassVar[Self | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        os.register_at_fork(after_in_child=cls._after_fork)

    @classmethod
    def shared(cls) -> Self:
        """Return this process's, made where there is none; it ends with the portal, before what was there first."""
        if cls._of_this_process is None:
            cls._of_this_process = cls()
            Portal.shared().at_end(cls._of_this_process.close)
        return cls._of_this_process

    def close(self) -> None:
        """Release all it holds; who needs one again gets another."""
        if type(self)._of_this_process is self:
            type(self)._of_this_process = None
        self._release()

    @abstractmethod
    def disown(self) -> None:
        """Let go, in a forked child, of what is the parent's."""

    @abstractmethod
    def _release(self) -> None:
        """Release all it holds."""

    @classmethod
    def _after_fork(cls) -> None:
        parents, cls._of_this_process = cls._of_this_process, None
        if parents is not None:
            parents.disown()
