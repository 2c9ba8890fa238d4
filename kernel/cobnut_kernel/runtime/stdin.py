"""Questions to the user: `input` and `getpass` ask the front end that sent the cell.

Laws of the file:

* A question is open from the moment it goes out: an answer that was on its way before is nobody's, and dropped.
* An answer that names its question goes to that one; one that names nothing goes to the question that has waited
  longest among those of the same client.
* Who waits for an answer stands in `threading.Event.wait`, where interrupts reach every thread that runs cells.
"""

from __future__ import annotations

import builtins
import getpass
import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Channel, Message, MessageType
from cobnut_kernel.runtime.output.outbox import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.output.outbox import Outbox
    from cobnut_kernel.runtime.output.routing import CurrentJob

END_OF_INPUT = "\x04"
"""What a front end answers where the user pressed Ctrl-D."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Question:
    """A question and, once `answered` is set, the answer; None where there will be none."""

    job: Job
    prompt: str
    password: bool
    msg_id: str = ""
    answer: str | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    def is_for(self, client: tuple[bytes, ...]) -> bool:
        """Say whether this client was asked."""
        return self.job.message.identities == client


class Stdin:
    """The kernel's questions, several at once: each cell, subshell and thread may have one."""

    def __init__(self, outbox: Outbox, current: CurrentJob, interrupts: Interrupts) -> None:
        self._outbox = outbox
        self._current = current
        self._interrupts = interrupts
        self._thread = outbox._thread
        self._open: list[Question] = []
        self._asking: set[Question] = set()
        self._closed: bool = False
        self._before: tuple[Callable[..., str], Callable[..., str]] | None = None

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def raw_input(self, prompt: object = "", /) -> str:
        """Ask for a line, as the built-in `input` does.

        Raises:
            StdinNotImplementedError: the cell's front end takes no questions, or no cell asks.
            EOFError: the user ended the input, or the kernel stops.
            KeyboardInterrupt: the cell was interrupted.
        """
        return self._ask(str(prompt), password=False)

    def getpass(self, prompt: str = "Password: ", stream: object = None, *, echo_char: str | None = None) -> str:
        """Ask for a line that is not shown while it is typed, as `getpass.getpass` does.

        `stream` and `echo_char` are that function's; a front end shows the question in its own way.

        Raises:
            StdinNotImplementedError: the cell's front end takes no questions, or no cell asks.
            EOFError: the user ended the input, or the kernel stops.
            KeyboardInterrupt: the cell was interrupted.
        """
        return self._ask(str(prompt), password=True)

    def _ask(self, prompt: str, *, password: bool) -> str:
        question = Question(self._job(), prompt, password)
        try:
            self._asking.add(question)
            # Two turns of the I/O thread: in between it receives answers that are there already, and drops them.
            self._thread.call_soon(self._thread.call_soon, self._send, question)
            if not self._closed:
                question.answered.wait()
        finally:
            self._asking.discard(question)
        if question.answer is None:
            raise EOFError("The kernel stopped while input() waited for an answer.")
        if question.answer == END_OF_INPUT:
            raise EOFError("The user ended the input.")
        return question.answer

    def _job(self) -> Job:
        """Return the job that asks.

        Raises:
            StdinNotImplementedError: it may not.
        """
        job = self._current.get()
        if job is not None and job.message.content.get("allow_stdin", False):
            return job
        from IPython.core.error import StdinNotImplementedError

        raise StdinNotImplementedError(
            "input() was called, but who sent this cell takes no questions: put the value into the code."
        )

    def close(self) -> None:
        """Answer no more: who waits gets EOFError. For the kernel's end, from any thread."""
        self._closed = True
        for question in list(self._asking):
            question.answered.set()

    # ── in the place of Python's own ────────────────────────────────────────────────────────────────────────────────

    def install(self) -> None:
        """Let `input` and `getpass.getpass` ask here."""
        self._before = builtins.input, getpass.getpass
        builtins.input, getpass.getpass = self.raw_input, self.getpass

    def restore(self) -> None:
        """Give the process its own ones back."""
        if self._before is not None:
            builtins.input, getpass.getpass = self._before
            self._before = None

    # ── only in the I/O thread ──────────────────────────────────────────────────────────────────────────────────────

    def _send(self, question: Question) -> None:
        """Send a question, behind all that was said until now, and open it."""
        if question not in self._asking:  # it was interrupted before
            return
        message = question.job.message
        header = self._outbox.codec.header(MessageType.INPUT_REQUEST, subshell_id=message.header.subshell_id)
        question.msg_id = header.msg_id
        self._open.append(question)
        self._outbox.post(
            Outgoing(
                Channel.STDIN,
                MessageType.INPUT_REQUEST,
                dumps({"prompt": question.prompt, "password": question.password}),
                message.header_json,
                identities=message.identities,
                header=dumps(header.as_dict()),
            )
        )

    def on_reply(self, message: Message) -> None:
        """Take an input_reply; called in the I/O thread. `parent_header` and `status` may be absent."""
        self._open = [question for question in self._open if question in self._asking]
        question = self._asked_by(message)
        if question is None:
            _log.info("An input_reply was dropped: nobody waits for it.")
            return
        self._open.remove(question)
        question.answer = _value(message.content)
        question.answered.set()

    def _asked_by(self, message: Message) -> Question | None:
        """Find the question of an answer: clients name the question, the cell that asks, or nothing."""
        if message.parent_id is None:
            return next((question for question in self._open if question.is_for(message.identities)), None)
        for question in self._open:
            if message.parent_id in (question.msg_id, question.job.message.msg_id):
                return question
        return None


def _value(content: dict[str, Any]) -> str:
    """Read what was typed; a reply without it, an error say, ends the input."""
    value = content.get("value")
    return END_OF_INPUT if value is None else str(value)
