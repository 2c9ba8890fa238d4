"""File descriptors 1 and 2: what C code and child processes write reaches the cell, and the log as before.

Both are pipes, read in one place: by the I/O thread's poll loop, or by whoever calls `drain`, one at a time. The
process's own descriptors are kept, and get a copy of all that is read.

The limits: C code that writes while it holds the GIL lets nobody read, so it blocks for ever after `PIPE_SIZE` bytes
(64 KiB where the system grants no more). And what was written but not read when the process is killed is lost, so
faulthandler and the kernel's own log write to the process's own stderr.
"""

from __future__ import annotations

import codecs
import faulthandler
import fcntl
import logging
import os
import select
import stat
import sys
import threading
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ExtensionFileLoader
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, ClassVar, cast

from cobnut_kernel.runtime.imports import without_user_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.transport import IOThread

PIPE_SIZE = 1 << 20
"""Bytes that each pipe holds, where the system grants it."""

_CHUNK = 1 << 16
"""Bytes read at once."""

_ATOMIC = 4096
"""Bytes that a pipe or terminal takes without waiting once it is ready."""

_KEPT = 1 << 18
"""Bytes kept for a log that takes none at the moment; older ones are dropped."""

_LINE_BUFFERED = 1
"""C's `_IOLBF`."""

_NAMES = {1: "stdout", 2: "stderr"}


def own_descriptor(fd: int) -> int:
    """Return the process's own stdout (1) or stderr (2), whether it is captured or not."""
    return CapturedDescriptors.own.get(fd, fd)


class CapturedDescriptors:
    """The process's descriptors 1 and 2 as pipes, from construction until `restore`.

    Args:
        thread: the I/O thread, whose poll loop reads them.
        publish: called with the stream's name and text, by whichever thread has read it, in order.
    """

    own: ClassVar[dict[int, int]] = {}
    """The process's own descriptors by the numbers they had, while they are captured."""

    def __init__(self, thread: IOThread, publish: Callable[[str, str], None]) -> None:
        self._thread = thread
        self._publish = publish
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._library = CLibrary()
        flush_own_streams()
        self._pipes: dict[int, Pipe] = {}
        for fd in _NAMES:
            _occupy(fd)
        for fd in _NAMES:
            self._open(fd)
        self._crash_log = CrashLog(self.own[2])

    def _open(self, fd: int) -> None:
        pipe = Pipe(fd)
        self._pipes[pipe.reading] = pipe
        self._poll.register(pipe.reading, select.POLLIN)
        self.own[fd] = pipe.own
        self._thread.call_soon(self._watch, pipe.reading)

    def drain(self) -> None:
        """Publish what is in the pipes now; from any thread, and cheap where nothing is."""
        self._library.flush()
        flush_own_streams()
        with self._lock:
            for reading, _ in self._poll.poll(0):
                self._read(self._pipes[reading])

    def restore(self) -> None:
        """Put the process's own descriptors in their places; children that live on have nobody to read them."""
        self._library.flush()
        flush_own_streams()
        self._crash_log.close()
        with self._lock:
            for pipe in self._pipes.values():
                pipe.give_back()
                self._read(pipe, last=True)
                del self.own[pipe.fd]
        if self._thread.is_running():
            self._thread.call_soon(self._close)  # it may be waiting for them
        else:
            self._close()

    def leave(self) -> None:
        """Let go of the pipes in a forked child: it writes to them, and must not read its parent's text."""
        self._crash_log.close()
        faulthandler.enable(2)  # its crash is output of the cell
        for pipe in self._pipes.values():
            pipe.close()
        self.own.clear()
        self._pipes, self._poll, self._lock = {}, select.poll(), threading.Lock()

    def _close(self) -> None:
        with self._lock:
            for reading, pipe in self._pipes.items():
                self._thread.unwatch_file(reading)
                self._poll.unregister(reading)
                pipe.write_log()
                pipe.close()
            self._pipes = {}

    def _read(self, pipe: Pipe, *, last: bool = False) -> None:
        """Publish what a pipe holds, but no more than it can hold: a child may write for ever."""
        for _ in range(PIPE_SIZE // _CHUNK + 1):
            text, more = pipe.read(last=last)
            if text:
                self._publish(_NAMES[pipe.fd], text)
            if not more:
                break

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, reading: int) -> None:
        if reading in self._pipes:
            self._thread.watch_file(reading, lambda: self._on_readable(reading))

    def _on_readable(self, reading: int) -> None:
        if not self._lock.acquire(blocking=False):  # who reads now may be waiting for this thread
            self._thread.call_later(0.001, self._watch, reading)
            return
        try:
            pipe = self._pipes.get(reading)
            if pipe is not None:
                self._read(pipe)
                if not pipe.has_ended():
                    self._watch(reading)
        finally:
            self._lock.release()


class Pipe:
    """A pipe in the place of one of the process's descriptors, which is kept."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self._log = Log(self.own)
        self._half = b""
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # the user has as much in pipes as the system allows
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.dup2(writing, fd, inheritable=True)
        os.close(writing)

    def read(self, *, last: bool = False) -> tuple[str, bool]:
        """Read once: the text, and whether there may be more; with `last` half a character at the end is text too."""
        try:
            data = os.read(self.reading, _CHUNK)
        except (BlockingIOError, InterruptedError):
            data = b""
        self._log.write(data)
        # The decoders of `codecs` are Python code, where an interrupt could be raised that loses what was read.
        text, used = codecs.utf_8_decode(self._half + data, "replace", last and not data)
        self._half = (self._half + data)[used:]
        return text, bool(data)

    def has_ended(self) -> bool:
        """Say whether nobody can write any more: user code has closed the descriptor."""
        poll = select.poll()
        poll.register(self.reading, select.POLLIN)
        return any(events & select.POLLHUP and not events & select.POLLIN for _, events in poll.poll(0))

    def give_back(self) -> None:
        """Put the process's own descriptor in its place, unless user code has put something else there."""
        with suppress(OSError):
            if os.path.sameopenfile(self.fd, self.reading):
                os.dup2(self.own, self.fd, inheritable=True)

    def write_log(self) -> None:
        """Write what the log has not taken yet, as far as it takes it soon."""
        self._log.write(patience=0.05)

    def close(self) -> None:
        """Close our ends."""
        os.close(self.reading)
        os.close(self.own)


class Log:
    """The process's own descriptor, written to only where that does not wait: who reads it may have stopped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiting = bytearray()
        self._at_once = _CHUNK if stat.S_ISREG(os.fstat(fd).st_mode) else _ATOMIC
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes = b"", *, patience: float = 0.0) -> None:
        """Write what it takes now, or within some seconds, and keep the rest for the next time."""
        self._waiting += data
        while self._waiting and self._poll.poll(patience * 1000):
            try:
                written = os.write(self._fd, self._waiting[: self._at_once])
            except OSError:  # nobody reads it any more
                written = len(self._waiting)
            del self._waiting[:written]
        del self._waiting[:-_KEPT]


class CrashLog:
    """The process's own stderr for what must be written when it dies: faulthandler's report, and the kernel's log."""

    def __init__(self, fd: int) -> None:
        self._enabled_before: bool = faulthandler.is_enabled()
        self._enable = faulthandler.enable
        self._is_ours: bool = True
        self._file = TextIOWrapper(os.fdopen(os.dup(fd), "wb", 0), "utf-8", "backslashreplace", write_through=True)
        handlers = cast("list[logging.StreamHandler[Any]]", logging.getLogger("cobnut_kernel").handlers)
        self._handlers = [handler for handler in handlers if getattr(handler, "stream", None) is sys.__stderr__]
        for handler in self._handlers:
            handler.setStream(self._file)
        self._enable(self._file)
        faulthandler.enable = self._enable_here

    def _enable_here(self, file: Any = None, all_threads: bool = True, **options: Any) -> None:
        """Enable faulthandler where its report survives the process, unless the user names a file of his own."""
        self._is_ours = file is None or file in (sys.stderr, sys.__stderr__, 2)
        where: Any = self._file if self._is_ours else file
        self._enable(where, all_threads, **options)

    def close(self) -> None:
        """Leave faulthandler and the log as they were found."""
        faulthandler.enable = self._enable
        if self._is_ours:
            faulthandler.disable()
            if self._enabled_before:
                faulthandler.enable(2)
        for handler in self._handlers:
            handler.setStream(sys.__stderr__)
        self._file.close()


class CLibrary:
    """The C library's stdout, which keeps text back until it is flushed, for a pipe is no terminal.

    It is looked for when a C extension has been imported that was not there before: only then can it have text.
    """

    def __init__(self) -> None:
        self._known: set[str] = set(sys.modules)
        self._fflush: Callable[[Any], object] | None = None
        self._stdout: Any = None

    def flush(self) -> None:
        """Write what C code has printed."""
        if self._fflush is not None:
            self._fflush(self._stdout)
        elif len(sys.modules) != len(self._known) and self._has_new_extension():
            self._find()

    def _has_new_extension(self) -> bool:
        new = set(sys.modules) - self._known
        self._known |= new
        return any(map(_is_foreign, new))

    def _find(self) -> None:
        """Find the C library's stdout, and let it keep no whole line back from now on."""
        with without_user_folder():
            ctypes = import_module("ctypes")
        library = ctypes.CDLL(None)
        name = "__stdoutp" if sys.platform == "darwin" else "stdout"
        self._stdout = ctypes.c_void_p.in_dll(library, name)
        self._fflush = library.fflush
        library.fflush(self._stdout)
        library.setvbuf(self._stdout, None, _LINE_BUFFERED, 0)


def _is_foreign(name: str) -> bool:
    """Say whether a module may print from C: it is ctypes, or an extension that is not Python's own."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    own = name.partition(".")[0] in sys.stdlib_module_names
    return name == "ctypes" or (isinstance(loader, ExtensionFileLoader) and not own)


def _occupy(fd: int) -> None:
    """See to it that a descriptor is open: its number would be the next file's."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(fd)
    except OSError:
        os.dup2(nothing, fd, inheritable=True)
    if nothing != fd:
        os.close(nothing)


def flush_own_streams() -> None:
    """Write what Python's own streams hold: it is for before a fork, or the child would write it too."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:  # noqa: SIM105 - its twin is Python code, and this runs with every drain
                stream.flush()
            except (OSError, ValueError, RuntimeError):  # full, closed, or flushed where a signal has come between
                pass


os.register_at_fork(before=flush_own_streams)
