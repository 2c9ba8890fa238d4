"""A cell run in dialogue with the user at this terminal: what it says is shown, what it asks is asked."""

from __future__ import annotations

import builtins
import os
import select
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cobnut_kernel.client.asking import Content
    from cobnut_kernel.client.run import Run

END_OF_INPUT = "\x04"
"""What a client answers where the user has ended the input."""

_CALL_OFF = b"\0"
"""What ends the wait for an answer; the number of a signal, which comes the same way, is never 0."""

_input = builtins.input  # what stands there later may be somebody's own: a kernel's, or a test's


class Asker(Protocol):
    """A client, as far as questions go."""

    def input(self, string: str, parent: Content | None = None) -> str:
        """Answer a question."""
        ...

    def interrupt(self) -> Any:
        """Interrupt the kernel."""
        ...


# ── output ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def redisplay(message: Content) -> None:
    """Show an iopub message: as an output of the cell that runs here, where this is an IPython kernel, else as text."""
    publish = _publisher()
    content: Content = message["content"]
    match message["msg_type"]:
        case MessageType.STREAM:
            stream = sys.stderr if content.get("name") == "stderr" else sys.stdout
            _write(content.get("text"), stream)
        case MessageType.DISPLAY_DATA | MessageType.EXECUTE_RESULT | MessageType.UPDATE_DISPLAY_DATA if publish:
            is_update = message["msg_type"] == MessageType.UPDATE_DISPLAY_DATA
            publish(content.get("data"), content.get("metadata"), content.get("transient"), is_update)
        case MessageType.DISPLAY_DATA | MessageType.EXECUTE_RESULT:
            _write(f"{content.get('data', {}).get('text/plain', '')}\n", sys.stdout)
        case MessageType.ERROR:
            _write("\n".join([*map(str, content.get("traceback", ())), ""]), sys.stderr)
        case "cobnut.gap":
            _write(f"[{content.get('count')} messages are lost. {content.get('reason')}]\n", sys.stderr)
        case _:
            pass


def _write(text: object, stream: Any) -> None:
    stream.write(str(text))
    stream.flush()


def _publisher() -> Callable[[Any, Any, Any, bool], None] | None:
    """Return what shows rich output of a cell that runs in this process, where it is an IPython kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None

    def publish(data: Any, metadata: Any, transient: Any, is_update: bool) -> None:
        shell.display_pub.publish(data=data, metadata=metadata or {}, transient=transient or {}, update=is_update)

    return publish


# ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def converse(
    run: Run, output_hook: Callable[[Content], object] | None, stdin_hook: Callable[[Content], object]
) -> None:
    """Give the messages of a cell to the hooks until it ends; a question that is open then is called off."""
    show = output_hook or redisplay
    async for message in run:
        if message.msg_type != MessageType.INPUT_REQUEST:
            show(message.as_dict())
        elif isawaitable(asking := stdin_hook(message.as_dict())):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_call_off, run, tasks.cancel_scope)
                await asking
                tasks.cancel_scope.cancel()


async def _call_off(run: Run, question: anyio.CancelScope) -> None:
    """Call a question off when its cell has its reply, or will get none."""
    with suppress(Exception):
        await run.reply()
    question.cancel()


async def ask_in_thread(client: Asker, request: Content) -> None:
    """Ask the user on the terminal, in a thread; cancelling this ends the question."""
    question = Question(request["content"])
    try:
        answer = await anyio.to_thread.run_sync(question.ask, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        question.call_off()
        raise
    client.input(answer, request)


def ask_here(client: Asker, request: Content, until: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
    """Ask the user on the terminal, in this thread; Ctrl-C interrupts the cell.

    Args:
        client: whose cell asks.
        request: the `input_request`.
        until: calls back when the question is to be called off; returns the undo.
    """
    question = Question(request["content"])
    forget = until(question.call_off)
    try:
        answer = question.ask()
    except KeyboardInterrupt:
        _write("\n", sys.stdout)
        client.interrupt()
    except CalledOff:
        pass
    else:
        client.input(answer, request)
    finally:
        forget()


class CalledOff(Exception):  # noqa: N818 - it is no error
    """Nobody waits for the answer any more."""


class Question:
    """A question on the terminal that can be called off from another thread.

    Only where the terminal is our own and hands out whole lines: elsewhere, and where a program has put its own
    `input` in the place of Python's, that is asked, and cannot be called off.
    """

    def __init__(self, content: Content) -> None:
        self._prompt = str(content.get("prompt", ""))
        self._is_secret = bool(content.get("password", False))
        self._reading, self._calling = socket.socketpair()
        for end in (self._reading, self._calling):
            end.setblocking(False)

    def ask(self) -> str:
        """Ask, and return the line, or what stands for the end of the input.

        Raises:
            CalledOff: it was called off.
        """
        try:
            if builtins.input is _input and _is_terminal():
                return self._read_line()
            if self._is_secret:
                from getpass import getpass

                return getpass(self._prompt)
            return builtins.input(self._prompt)
        except EOFError:
            return END_OF_INPUT

    def call_off(self) -> None:
        """End the question; from any thread, and also when it was answered."""
        with suppress(OSError):
            self._calling.send(_CALL_OFF)

    def __del__(self) -> None:
        self._reading.close()
        self._calling.close()

    def _read_line(self) -> str:
        with _hidden() if self._is_secret else _shown():
            _write(self._prompt, sys.stdout)  # only now: what is typed before a secret's is thrown away
            if not self._awaits_line():
                _write("\n", sys.stdout)
                raise CalledOff
            line = sys.stdin.readline()
        if self._is_secret:
            _write("\n", sys.stdout)
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _awaits_line(self) -> bool:
        """Wait until there is a line, True, or the question is called off, False.

        Python sees a signal when it runs, or when that ends its wait. One that comes when it is about to wait - it may
        stand there until it gets rid of its lock - would be seen after it: Ctrl-C right behind the prompt had no
        effect. So signals end the wait a second way.
        """
        owner = -1
        ready: list[Any] = []
        is_called_off = False
        try:
            owner = _wake_on_signals(self._calling.fileno())
            while sys.stdin not in ready and not is_called_off:
                ready, _, _ = select.select([sys.stdin, self._reading], [], [])
                is_called_off = self._hear(owner)
        finally:
            _wake_on_signals(owner)
            self._hear(owner)
        return not is_called_off

    def _hear(self, owner: int) -> bool:
        """Read what has ended the wait: was it called off? Signals are passed on to whose they are, a loop's say."""
        heard = b""
        with suppress(BlockingIOError):
            heard = self._reading.recv(100)
        if owner >= 0 and (numbers := heard.replace(_CALL_OFF, b"")):
            with suppress(OSError):
                os.write(owner, numbers)
        return _CALL_OFF in heard


def _is_terminal() -> bool:
    try:
        return sys.stdin.isatty() and sys.stdin.fileno() >= 0
    except (AttributeError, OSError, ValueError):  # none, closed, or somebody's own
        return False


def _wake_on_signals(descriptor: int) -> int:
    """Have signals written to a descriptor, to none with -1; returns the former one. They are the main thread's."""
    if threading.current_thread() is not threading.main_thread():
        return -1
    return signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)


@contextmanager
def _shown() -> Generator[None]:
    yield


@contextmanager
def _hidden() -> Generator[None]:
    """Let the terminal not show what is typed."""
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    hidden = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(descriptor, termios.TCSAFLUSH, hidden)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
