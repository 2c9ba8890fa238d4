"""sys.stdout and sys.stderr of the kernel: text goes to the cell that wrote it."""

from __future__ import annotations

import codecs
import io
import os
import sys
import threading
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self, TextIO

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.output.capture import CapturedDescriptors, Log, own_descriptor
from cobnut_kernel.runtime.output.outbox import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.output.outbox import Outbox
    from cobnut_kernel.runtime.output.routing import CurrentJob

_PAUSE = 50e-6
"""Seconds without output after which a child process or C code may have written meanwhile: its text comes first."""


class Sink(Protocol):
    """Where the text of streams goes."""

    def write(self, parent: bytes, stream: str, text: str, writer: int = 0, /) -> object:
        """Take text of a stream, which belongs to the request with that header; the writer is the thread."""
        ...

    def write_guessed(self, parent: bytes, metadata: bytes, stream: str, text: str, /) -> object:
        """Take text whose request is a guess, as the metadata say, if there are any."""
        ...

    def flush(self) -> object:
        """Let no text wait for more."""
        ...


class Publishing:
    """A sink that publishes text on iopub, in order, soon and by itself."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.write = outbox.write

    def write_guessed(self, parent: bytes, metadata: bytes, stream: str, text: str, /) -> None:
        """Publish text whose request is a guess, unless the metadata are empty."""
        if metadata == EMPTY:
            self.write(parent, stream, text)
        else:
            content = dumps({"name": stream, "text": text})
            self._outbox.post(Outgoing(Channel.IOPUB, MessageType.STREAM, content, parent, metadata))

    def flush(self) -> None:
        """Do nothing: what is written goes out by itself, in 1 ms at best, in 40 at most."""


class Echoing:
    """A sink that hands text on to another one, and shows it on the process's own stdout and stderr too."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._logs = {"stdout": Log(own_descriptor(1)), "stderr": Log(own_descriptor(2))}
        self.flush = sink.flush

    def write(self, parent: bytes, stream: str, text: str, writer: int = 0, /) -> None:
        """Publish and show text."""
        self._sink.write(parent, stream, text, writer)
        self._show(stream, text)

    def write_guessed(self, parent: bytes, metadata: bytes, stream: str, text: str, /) -> None:
        """Publish and show text."""
        self._sink.write_guessed(parent, metadata, stream, text)
        self._show(stream, text)

    def _show(self, stream: str, text: str) -> None:
        with self._lock:
            self._logs[stream].write(text.encode("utf-8", "backslashreplace"))


class Descriptor:
    """A sink that writes to a file descriptor: in forked children, and after the kernel's end."""

    def __init__(self, fd: int) -> None:
        self._file: TextIO | None = None
        try:
            raw = os.fdopen(fd, "wb", closefd=False)
        except OSError:  # it is closed: there is nobody to write to
            return
        self._file = io.TextIOWrapper(raw, "utf-8", "backslashreplace", newline="\n", line_buffering=True)

    def write(self, _parent: bytes, _stream: str, text: str, _writer: int = 0, /) -> None:
        """Write text, whole lines at once."""
        if self._file is not None:
            self._file.write(text)

    def write_guessed(self, parent: bytes, _metadata: bytes, stream: str, text: str, /) -> None:
        """Write text."""
        self.write(parent, stream, text)

    def flush(self) -> None:
        """Write the line that has no end yet."""
        if self._file is not None:
            self._file.flush()


class OutStream(io.TextIOBase):
    """A text stream whose text is published as `stream` messages.

    What is written is text on the wire, so `encoding` and `errors` count for the bytes of `buffer` only. `close` does
    not close it: cells to come write to it too. `fileno` is what child processes may write to, to the same end.
    """

    def __init__(self, name: str, fd: int, sink: Sink, current: CurrentJob, interrupts: Interrupts) -> None:
        super().__init__()
        self.name = f"<{name}>"
        self.mode = "w"
        self.line_buffering: bool = False
        self.write_through: bool = False
        self.buffer = OutBuffer(self)
        self._stream = name
        self._fd = fd
        self._sink = sink
        self._current = current
        self._interrupts = interrupts
        self._encoding: str = "utf-8"
        self._errors: str = "backslashreplace"
        self._captured: CapturedDescriptors | None = None
        self.connect()

    def connect(self, sink: Sink | None = None, captured: CapturedDescriptors | None = None) -> None:
        """Say where text goes from now on, if not as before, and whose text may lie in front of it."""
        self._sink = sink or self._sink
        self._captured = captured
        self.write = self._writer()

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, text: str, /) -> int:
        """Publish text."""
        return self._writer()(text)

    def _writer(self) -> Callable[[str], int]:
        """Make the `write` of this stream, which nothing in it has to be looked up for: a fifth of a `print`'s time."""
        interrupts, captured, here, stream = self._interrupts, self._captured, self._current.here.get, self._stream
        publish, publish_guess, written_at = self._sink.write, self._write_guessed, 0.0

        def write(text: str, /) -> int:
            nonlocal written_at
            if interrupts.due:
                interrupts.checkpoint()
            if type(text) is not str and not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            if text != "\n":  # which is the end of what `print` has written just now
                if not text:
                    return 0
                now = monotonic()
                if now - written_at > _PAUSE and captured is not None:
                    captured.drain()
                written_at = now
            job = here()
            if job is not None:
                publish(job.message.header_json, stream, text, get_ident())
            else:
                publish_guess(text)
            return len(text)

        return write

    def _write_guessed(self, text: str) -> None:
        """Publish text of a thread that nobody knows."""
        self._sink.write_guessed(*self._current.of_unknown_thread(), self._stream, text)

    def writelines(self, lines: Iterable[str], /) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - text only
        """Publish several texts as one."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Return at once: what is written goes out in order by itself, in 1 ms at best, in 40 at most."""
        self._sink.flush()

    def close(self) -> None:
        """Flush: the stream stays open, for the cells to come."""
        self.flush()

    # ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - may be configured
        """The encoding of what is written to `buffer`."""
        return self._encoding

    @property
    def errors(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] - may be configured
        """How text that the encoding cannot hold would be written."""
        return self._errors

    def reconfigure(
        self,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        line_buffering: bool | None = None,
        write_through: bool | None = None,
    ) -> None:
        """Change settings as `io.TextIOWrapper` does, those that mean something here.

        Raises:
            LookupError: there is no such encoding, or no such way to handle errors.
            ValueError: line ends were to be changed.
        """
        if newline not in (None, "", "\n"):
            raise ValueError(f"This stream publishes line ends as they are written: newline cannot be {newline!r}.")
        if encoding is not None:
            codecs.lookup(encoding)
            self._encoding = encoding
        if errors is not None:
            codecs.lookup_error(errors)
            self._errors = errors
        if line_buffering is not None:
            self.line_buffering = bool(line_buffering)
        if write_through is not None:
            self.write_through = bool(write_through)

    def writable(self) -> bool:
        """Say that this stream is for writing."""
        return True

    def isatty(self) -> bool:
        """Say that nobody types here, so that programs ask nothing."""
        return False

    def fileno(self) -> int:
        """Return the descriptor of the process that goes by the stream's name."""
        return self._fd

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


class OutBuffer(io.BufferedIOBase):
    """The binary side of a stream: bytes become the text that they encode; half a character waits for its rest."""

    def __init__(self, stream: OutStream) -> None:
        super().__init__()
        self.mode = "wb"
        self._stream = stream
        self._halves: dict[bytes, tuple[bytes, int]] = {}

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._stream.name

    def write(self, data: Buffer, /) -> int:
        """Publish the text that bytes encode."""
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        given = bytes(data)
        self._decode(given)
        return len(given)

    def flush(self) -> None:
        """Return at once, as the text stream does."""
        self._stream.flush()

    def finish(self) -> None:
        """Publish what was left of half a character: the cell has ended."""
        if self._halves:
            self._decode(b"", final=True)

    def _decode(self, data: bytes, *, final: bool = False) -> None:
        parent = self._stream._current.parent()
        decoder = codecs.getincrementaldecoder(self._stream.encoding)("replace")
        decoder.setstate(self._halves.pop(parent, (b"", 0)))
        text = decoder.decode(data, final)
        state = decoder.getstate()
        if state[0]:
            self._halves[parent] = state
        self._stream.write(text)

    def close(self) -> None:
        """Flush, as the text stream does."""
        self.flush()

    def writable(self) -> bool:
        """Say that this stream is for writing."""
        return True

    def isatty(self) -> bool:
        """Say that nobody types here."""
        return False

    def fileno(self) -> int:
        """Return the descriptor of the process that goes by the stream's name."""
        return self._stream.fileno()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")


class CapturedStreams:
    """The kernel's streams in the place of the process's, while the context lasts.

    Args:
        capture_fds: whether what C code and child processes write to descriptors 1 and 2 is published too.
        quiet: whether what Python code writes is published only, and not shown on the process's own streams.
    """

    def __init__(
        self,
        outbox: Outbox,
        current: CurrentJob,
        interrupts: Interrupts,
        capture_fds: bool = True,
        quiet: bool = True,
    ) -> None:
        self._thread = outbox._thread
        self._current = current
        self._capture_fds = capture_fds
        self._quiet = quiet
        self._sink = Publishing(outbox)
        self._before = sys.stdout, sys.stderr
        self._ours = (
            OutStream("stdout", 1, self._sink, current, interrupts),
            OutStream("stderr", 2, self._sink, current, interrupts),
        )
        self._captured: CapturedDescriptors | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        if self._capture_fds:
            self._captured = CapturedDescriptors(self._thread, self._publish)
        for stream in self._ours:
            stream.connect(self._sink if self._quiet else Echoing(self._sink), self._captured)
        sys.stdout, sys.stderr = self._ours
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def drain(self) -> None:
        """Publish what has been written until now, whoever wrote it: for the end of a cell, in its thread."""
        for stream in self._ours:
            stream.buffer.finish()
        if self._captured is not None:
            self._captured.drain()

    def restore(self) -> None:
        """Give the process its own streams back; a stream of ours that somebody has kept writes there too.

        In a forked child what it writes goes on to the cell, by the descriptors: it has no I/O thread.
        """
        captured, self._captured = self._captured, None
        for stream in self._ours:
            stream.connect(Descriptor(stream.fileno()), None)
        if os.getpid() != self._pid:
            if captured is not None:
                captured.leave()
            return
        sys.stdout, sys.stderr = self._before
        if captured is not None:
            captured.restore()

    def _publish(self, name: str, text: str) -> None:
        """Publish what came from outside Python."""
        self._sink.write_guessed(*self._current.of_processes(), name, text)
