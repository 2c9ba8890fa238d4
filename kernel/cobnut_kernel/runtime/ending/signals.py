"""The process's signals while a kernel runs in its main thread."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from cobnut_kernel.runtime.interruption.interrupts import POKE
from cobnut_kernel.runtime.interruption.running import HERE

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.transport import IOThread


class Signals:
    """SIGINT, SIGTERM and SIGHUP, heard whatever the main thread does.

    They are seen by the I/O thread too, through Python's wake-up descriptor: the main thread may be deep in C code
    and run no handler of its own. Handlers of before hear SIGTERM and the poke, too. A SIGHUP that was ignored before
    (`nohup`) stays so.

    Args:
        thread: the I/O thread, in which `stop` and `hang_up` are called.
        interrupts: what hears SIGINT and the poke.
        stop: called at each SIGTERM.
        hang_up: called at each SIGHUP; by default `stop`.
    """

    _current: ClassVar[Signals | None] = None
    _held: ClassVar[threading.local] = threading.local()

    def __init__(
        self,
        thread: IOThread,
        interrupts: Interrupts,
        stop: Callable[[], None],
        hang_up: Callable[[], None] | None = None,
    ) -> None:
        self._thread = thread
        self._interrupts = interrupts
        self._ending: dict[int, Callable[[], None]] = {signal.SIGTERM: stop, signal.SIGHUP: hang_up or stop}
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        handlers = {signal.SIGINT: interrupts.on_signal, POKE: self._on_poke, signal.SIGTERM: self._on_ending}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._on_ending
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in handlers}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        thread.call_soon(thread.watch_file, self._reading.fileno(), self._on_signal)
        Signals._current = self

    @classmethod
    def are_taken(cls) -> bool:
        """Say whether a kernel hears the signals of this process."""
        return cls._current is not None

    def restore(self) -> None:
        """Give the process its handlers back; the sockets must be closed before, so that nothing watches."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        sys.unraisablehook = self._hook_before
        self._reading.close()
        self._writing.close()
        Signals._current = None

    # ── around a fork ───────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def hold(cls) -> None:
        """Hold signals back until the child has handlers of its own: the inherited ones would tell us of its end."""
        if HERE.thread is not None:
            HERE.thread.forks = True  # a signal that another thread gets is handled in the main thread all the same
        if cls._current is not None:
            cls._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, cls._current._before)

    @classmethod
    def let_go(cls) -> None:
        """Let signals come again."""
        if HERE.thread is not None:
            HERE.thread.forks = False
        mask = cls._held.__dict__.pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @classmethod
    def go_on(cls) -> None:
        """Let signals come again after a fork; an interrupt that has come meanwhile found us here, and comes again.

        Code that forks again and again spends most of its time between `hold` and here.
        """
        cls.let_go()
        if cls._current is not None and cls._current._interrupts.due:
            cls._current._interrupts.insist()

    @classmethod
    def leave(cls) -> None:
        """Give a forked child the system's handlers, so that SIGTERM ends it."""
        if cls._current is not None:
            signal.set_wakeup_fd(-1)
            sys.unraisablehook = sys.__unraisablehook__
            for signum in cls._current._before:
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        cls.let_go()

    # ── in the main thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _on_ending(self, signum: int, frame: types.FrameType | None) -> None:
        # The way by the descriptor is enough, unless user code has put its own there (asyncio's add_signal_handler).
        # And ringing lets go of the GIL: C code that holds it but looks for signals would let no other thread run.
        self._thread.call_soon(self._ending[signum])
        if signum == signal.SIGTERM:
            self._pass_on(signum, frame)

    def _on_poke(self, signum: int, frame: types.FrameType | None) -> None:
        self._pass_on(signum, frame)
        self._interrupts.on_poke(signum, frame)

    def _pass_on(self, signum: int, frame: types.FrameType | None) -> None:
        before = self._before.get(signum)
        if callable(before):
            before(signum, frame)

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt again where Python has dropped an interrupt: in a destructor, or in what is called at a fork."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._interrupts.interrupt_again()
        else:
            self._hook_before(unraisable)

    # ── in the I/O thread ───────────────────────────────────────────────────────────────────────────────────────────

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            received = self._reading.recv(4096)
            for signum in self._ending.keys() & set(received):
                self._ending[signum]()
            if signal.SIGINT in received:
                self._interrupts.insist()
        self._thread.watch_file(self._reading.fileno(), self._on_signal)


os.register_at_fork(before=Signals.hold, after_in_parent=Signals.go_on, after_in_child=Signals.leave)
