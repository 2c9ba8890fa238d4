"""zmq sockets, owned by one thread of the process and used from any other.

Laws of the file:

* A socket is touched in the I/O thread only; what other threads hold is an `Endpoint`.
* Between the I/O thread and a loop stand a deque and one wake-up, never a call that waits.
* Nobody starves: a socket gives at most `_TURN` messages before the next one has its turn.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil
from time import monotonic
from typing import Any, ClassVar, Generic, TypeVar

import anyio
import zmq
from anyio.abc import ObjectReceiveStream
from anyio.lowlevel import checkpoint, current_token

from cobnut_kernel.descriptors import open_socket
from cobnut_kernel.errors import TransportClosedError

T = TypeVar("T")
Frames = Sequence[bytes]

_TURN = 200
"""How many messages one socket may give, and how many calls may run, before the others have their turn."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SocketSpec:
    """What a socket is to be.

    The high-water mark is off by default: a queue that silently drops is never what a kernel's channel wants.
    `linger` is how long the thread's end waits for what was not sent yet, in milliseconds. `monitor` is where an
    inproc PAIR that is open already hears of connections made and lost. One that is `late` waits for its `connect`.
    """

    type: zmq.SocketType
    url: str
    bind: bool = False
    identity: bytes = b""
    subscribe: bytes | None = None
    linger: int = 200
    options: dict[zmq.SocketOption, int | bytes] = field(default_factory=dict[zmq.SocketOption, "int | bytes"])
    monitor: str = ""
    late: bool = False


class Endpoint:
    """A socket as the threads that do not own it see it."""

    def __init__(self, thread: IOThread, spec: SocketSpec, on_frames: Callable[[list[bytes]], None]) -> None:
        self.spec = spec
        self.url: str = spec.url
        self.closed: bool = False
        self._thread = thread
        self._on_frames = on_frames
        self._socket: zmq.Socket[bytes] | None = None
        self._outgoing: deque[Frames] = deque()
        self._flushing: bool = False

    def send(self, frames: Frames) -> None:
        """Send a message, or queue it where the peer is slow or absent; from any thread, at once.

        Raises:
            TransportClosedError: the endpoint is closed.
        """
        if self.closed:
            raise TransportClosedError(f"The socket to {self.url} is closed: open a new one.")
        self._outgoing.append(frames)
        if not self._flushing:  # two threads may both ask: once too often does no harm, not at all would be for ever
            self._flushing = True
            self._thread.call_soon(self._flush)

    def close(self) -> None:
        """Close the socket and wait until it is closed; from any thread but the I/O thread."""
        self._thread.close(self)

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def try_send(self, frames: Frames) -> bool:
        """Send a message now, in the I/O thread; False where the socket takes none."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return False
        return True

    def connect(self) -> None:
        """Connect a socket that is `late`, in the I/O thread."""
        if self._socket is not None:
            self._socket.connect(self.url)

    def set_option(self, option: zmq.SocketOption, value: int | bytes) -> None:
        """Set an option of the open socket, in the I/O thread."""
        if self._socket is not None:
            self._socket.setsockopt(option, value)

    def _flush(self) -> None:
        self._flushing = False
        while self._outgoing:
            try:
                if not self.try_send(self._outgoing[0]):
                    break
            except zmq.ZMQError as error:  # a message that cannot be sent must not stop those behind it
                _log.warning("A message to %s was dropped: %s", self.url, error)
            self._outgoing.popleft()
        if self._socket is not None:
            self._thread.watch(self._socket, writable=bool(self._outgoing))

    def _open(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        opened = open_socket(context, self.spec.type)
        try:
            _configure(opened, self.spec)
            if not self.spec.late:
                (opened.bind if self.spec.bind else opened.connect)(self.spec.url)
        except BaseException:
            opened.close(0)
            raise
        if self.spec.bind:  # a wildcard has become a port
            self.url = opened.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._socket = opened
        return opened

    def _shut(self) -> None:
        opened, self._socket = self._socket, None
        if opened is not None:
            with suppress(zmq.ZMQError):
                while self._outgoing:
                    opened.send_multipart(self._outgoing.popleft(), zmq.NOBLOCK)
            opened.close(self.spec.linger)

    def _on_events(self, events: int) -> None:
        if events & zmq.POLLOUT:
            self._flush()
        opened = self._socket
        if events & zmq.POLLIN and opened is not None:
            for _ in range(_TURN):
                self._on_frames(opened.recv_multipart(zmq.NOBLOCK))
                # The handler may close the socket; EVENTS is cheaper than the exception that an empty socket raises.
                if self._socket is None or not int(opened.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    break


def _configure(opened: zmq.Socket[bytes], spec: SocketSpec) -> None:
    opened.setsockopt(zmq.LINGER, spec.linger)
    opened.setsockopt(zmq.SNDHWM, 0)
    opened.setsockopt(zmq.RCVHWM, 0)
    if spec.identity:
        opened.setsockopt(zmq.IDENTITY, spec.identity)
    for option, value in spec.options.items():
        opened.setsockopt(option, value)
    if spec.subscribe is not None:
        opened.setsockopt(zmq.SUBSCRIBE, spec.subscribe)
    if spec.monitor:
        opened.monitor(spec.monitor, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


class IOThread:
    """The one thread of a process that owns its sockets; it runs while any socket is open."""

    _process_thread: ClassVar[IOThread]

    def __init__(self, name: str = "cobnut-io") -> None:
        self.name = name
        self._lock = threading.RLock()
        self._endpoints: dict[zmq.Socket[bytes], Endpoint] = {}
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = count()
        self._awake: bool = True
        self._stopping: bool = False
        self._thread: threading.Thread | None = None
        self._poller: zmq.Poller = zmq.Poller()
        self._files: dict[int, Callable[[], object]] = {}
        self._bell: socket.socket | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    @classmethod
    def shared(cls) -> IOThread:
        """Return the process's I/O thread; it starts with the first socket and ends with the last."""
        return cls._process_thread

    def open(
        self,
        spec: SocketSpec,
        on_frames: Callable[[list[bytes]], None],
        opening: Callable[[Endpoint], None] = lambda _endpoint: None,  # gets it before any message can come
    ) -> Endpoint:
        """Open a socket; `on_frames` is called with every message, in the I/O thread, and must not wait.

        Raises:
            RuntimeError: called in the I/O thread, which cannot wait for itself.
            zmq.ZMQError: the address cannot be bound or connected to.
        """
        self._refuse_itself()
        endpoint = Endpoint(self, spec, on_frames)
        opening(endpoint)
        with self._lock:
            self._start()
            try:
                self._call(self._add, endpoint)
            finally:
                self._stop_if_unused()
        return endpoint

    def close(self, endpoint: Endpoint) -> None:
        """Close a socket and, after the last one, the thread; waits until that is done.

        Raises:
            RuntimeError: called in the I/O thread, which cannot wait for itself.
        """
        self._refuse_itself()
        with self._lock:
            if endpoint.closed:
                return
            endpoint.closed = True
            if self._thread is not None:
                self._call(self._remove, endpoint)
            self._stop_if_unused()

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback in the I/O thread soon; from any thread, at once."""
        self._calls.append((callback, args))
        if not self._awake:
            self._awake = True
            self._ring()

    def is_current(self) -> bool:
        """Tell whether the caller runs in the I/O thread."""
        return threading.current_thread() is self._thread

    def is_running(self) -> bool:
        """Tell whether the thread runs: only then is what it was asked to do going to be done."""
        return self._thread is not None

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Run a callback after some seconds."""
        heappush(self._timers, (monotonic() + seconds, next(self._order), callback, args))

    def watch(self, opened: zmq.Socket[bytes], *, writable: bool) -> None:
        """Wait for the socket to take messages too, or no longer."""
        self._poller.register(opened, zmq.POLLIN | zmq.POLLOUT if writable else zmq.POLLIN)

    def watch_file(self, fd: int, callback: Callable[[], object]) -> None:
        """Call back once when a file descriptor, a pidfd say, can be read."""
        self._files[fd] = callback
        self._poller.register(fd, zmq.POLLIN)

    def unwatch_file(self, fd: int) -> None:
        """Wait for a file descriptor no longer, before it is closed; in a call of its own, not in a callback's."""
        if self._files.pop(fd, None) is not None:
            self._poller.unregister(fd)

    # ── the thread's life ───────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        if self._thread is not None:
            return
        self._context = zmq.Context()
        answering, self._bell = socket.socketpair()
        for end in (answering, self._bell):
            end.setblocking(False)
        self._stopping, self._awake = False, True
        self._thread = threading.Thread(target=self._run, args=(answering,), name=self.name, daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def _stop_if_unused(self) -> None:
        if not self._endpoints:
            self._stop()

    def _stop(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            atexit.unregister(self._stop)
            self._stopping = True
            self.call_soon(lambda: None)
            thread.join()

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            with suppress(OSError):  # it rings already, or the thread has ended
                bell.send(b"\0")

    def _refuse_itself(self) -> None:
        if self.is_current():
            raise RuntimeError("A handler in the I/O thread cannot open or close a socket: do it in another thread.")

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the I/O thread and wait for its result."""
        future: Future[T] = Future()
        self.call_soon(_resolve, future, function, args)
        return future.result()

    def _add(self, endpoint: Endpoint) -> None:
        assert self._context is not None
        opened = endpoint._open(self._context)
        self._endpoints[opened] = endpoint
        self._poller.register(opened, zmq.POLLIN)

    def _remove(self, endpoint: Endpoint) -> None:
        opened = endpoint._socket
        if opened is not None:
            self._poller.unregister(opened)
            del self._endpoints[opened]
        endpoint._shut()

    def _run(self, answering: socket.socket) -> None:
        self._poller = zmq.Poller()
        self._poller.register(answering.fileno(), zmq.POLLIN)
        try:
            while not self._stopping:
                self._turn(answering)
        finally:
            self._end(answering)

    def _turn(self, answering: socket.socket) -> None:
        timeout = self._run_due()
        self._awake = False
        ready = self._poller.poll(0 if self._calls else timeout)
        self._awake = True
        for source, events in ready:
            if source == answering.fileno():
                answering.recv(4096)
            elif isinstance(source, int):
                self._poller.unregister(source)
                self._guarded(self._files.pop(source))
            elif (endpoint := self._endpoints.get(source)) is not None:
                self._guarded(endpoint._on_events, events)

    def _run_due(self) -> int | None:
        """Run what was asked for; return the milliseconds until the next timer, rounded up."""
        for _ in range(min(len(self._calls), _TURN)):
            callback, args = self._calls.popleft()
            self._guarded(callback, *args)
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, callback, args = heappop(self._timers)
            self._guarded(callback, *args)
        return max(0, ceil((self._timers[0][0] - monotonic()) * 1000)) if self._timers else None

    def _guarded(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:  # one broken message must not silence every other socket
            _log.exception("A handler of the I/O thread failed")

    def _end(self, answering: socket.socket) -> None:
        for endpoint in list(self._endpoints.values()):
            endpoint.closed = True
            endpoint._shut()
        self._endpoints.clear()
        self._calls.clear()
        self._timers.clear()
        context, self._context = self._context, None
        if context is not None:
            context.term()
        bell, self._bell = self._bell, None
        for end in (answering, bell):
            if end is not None:
                end.close()


def _resolve(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(function(*args))
    except BaseException as error:  # whoever waits gets it
        future.set_exception(error)


class Bell:
    """One wake-up for the loop that waits, rung from any thread.

    The waiter says what it waits for, so that a ring between the question and the wait is not missed.
    """

    def __init__(self) -> None:
        self._wake: Callable[[], object] | None = None

    def ring(self) -> None:
        """Wake the waiter, if there is one."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    async def wait(self, ready: Callable[[], object]) -> None:
        """Wait for a ring, unless `ready` says that there is something already."""
        event = anyio.Event()
        self._wake = partial(thread_safe(), event.set)
        if ready():
            return
        await event.wait()


def thread_safe() -> Callable[[Callable[[], object]], None]:
    """Return the running loop's way to be called from other threads; calls into an ended loop are dropped."""
    loop: Any = current_token().native_token
    soon = loop.call_soon_threadsafe if isinstance(loop, AbstractEventLoop) else loop.run_sync_soon

    def call(callback: Callable[[], object]) -> None:
        # RuntimeError is asyncio's for an ended loop, and the base of trio's RunFinishedError.
        with suppress(RuntimeError):
            soon(callback)

    return call


class Inbox(ObjectReceiveStream[T], Generic[T]):
    """A stream that any thread fills and one loop receives from."""

    def __init__(self) -> None:
        self.closed: bool = False
        self._items: deque[T] = deque()
        self._bell = Bell()
        self._received: int = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item; from any thread, at once. After `close` it is dropped."""
        if not self.closed:
            self._items.append(item)
            self._bell.ring()

    def close(self) -> None:
        """End the stream, from any thread: what is in it can still be received."""
        self.closed = True
        self._bell.ring()

    def receive_nowait(self) -> T:
        """Return the next item.

        Raises:
            anyio.WouldBlock: there is none yet.
            anyio.EndOfStream: there will be none.
        """
        if self._items:
            return self._items.popleft()
        raise anyio.EndOfStream if self.closed else anyio.WouldBlock

    async def receive(self) -> T:
        """Wait for the next item.

        Raises:
            anyio.EndOfStream: there will be none.
        """
        while not self._items:
            if self.closed:
                raise anyio.EndOfStream
            await self._bell.wait(lambda: self._items or self.closed)
        self._received += 1
        if self._received % _TURN == 0:  # a flood must not starve the loop's other tasks
            await checkpoint()
        return self._items.popleft()

    def drain(self) -> list[T]:
        """Take all items at once."""
        return [self._items.popleft() for _ in range(len(self._items))]

    async def aclose(self) -> None:
        """Close the stream and drop what is in it."""
        self.close()
        self._items.clear()


def _after_fork() -> None:
    # A child has no I/O thread, and its parent's sockets are not for it to close.
    IOThread._process_thread = IOThread()


IOThread._process_thread = IOThread()
os.register_at_fork(after_in_child=_after_fork)
