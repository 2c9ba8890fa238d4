"""sys.stdout and sys.stderr of the kernel: text goes to the cell that wrote it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cobnut_kernel.runtime.interrupts import Interrupts
    from cobnut_kernel.runtime.job import CurrentJob
    from cobnut_kernel.runtime.sockets import Outbox


class OutStream(io.TextIOBase):
    """A text stream whose text is published as `stream` messages.

    `fileno` is that of the process's own stream, so that what needs a real one (faulthandler, child processes)
    still writes somewhere.
    """

    def __init__(
        self, name: str, outbox: Outbox, current: CurrentJob, interrupts: Interrupts, original: TextIO
    ) -> None:
        super().__init__()
        self._name = name
        self._outbox = outbox
        self._current = current
        self._interrupts = interrupts
        self._original = original

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - the text layer's files have a name
        """The stream's name, as the process's own has one."""
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - fixed here
        """UTF-8: what is written goes out as JSON."""
        return "utf-8"

    @property
    def errors(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - fixed here
        """How text that UTF-8 cannot hold is written."""
        return "backslashreplace"

    def write(self, text: str, /) -> int:
        """Publish text."""
        if self._interrupts.due:
            self._interrupts.checkpoint()
        if type(text) is not str and not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._outbox.write(self._current.parent(), self._name, text)
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - text only
        """Publish several texts as one."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: what is written goes out in order by itself, within 20 ms."""

    def writable(self) -> bool:
        """Say that this stream is for writing."""
        return True

    def isatty(self) -> bool:
        """Say that nobody types here, so that programs ask nothing."""
        return False

    def fileno(self) -> int:
        """Return the descriptor of the process's own stream."""
        return self._original.fileno()


class CapturedStreams:
    """The kernel's streams in the place of the process's, while the context lasts."""

    def __init__(self, outbox: Outbox, current: CurrentJob, interrupts: Interrupts) -> None:
        self._originals = sys.stdout, sys.stderr
        self._ours = (
            OutStream("stdout", outbox, current, interrupts, sys.__stdout__ or sys.stdout),
            OutStream("stderr", outbox, current, interrupts, sys.__stderr__ or sys.stderr),
        )

    def __enter__(self) -> Self:
        sys.stdout, sys.stderr = self._ours
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the process its own streams back."""
        sys.stdout, sys.stderr = self._originals
