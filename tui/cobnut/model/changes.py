"""Which of many things changed since one looked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class ChangeLog:
    """Remembers for each numbered thing when it last changed, the latest at the end."""

    def __init__(self) -> None:
        self.revision: int = 0
        self._changed: dict[int, int] = {}

    def touch(self, index: int) -> int:
        """Note that the thing changed, and give the new revision."""
        self.revision += 1
        self._changed.pop(index, None)
        self._changed[index] = self.revision
        return self.revision

    def since(self, revision: int) -> Iterator[int]:
        """Give the things that changed after `revision`, the latest first."""
        for index, changed in reversed(self._changed.items()):
            if changed <= revision:
                return
            yield index

    def clear(self) -> None:
        """Forget all things; the revision goes on."""
        self.revision += 1
        self._changed.clear()
