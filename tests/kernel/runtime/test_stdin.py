"""input() and getpass(): the right client is asked, the right question answered, and nobody waits for ever."""

from __future__ import annotations

import builtins
import getpass
import threading
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from IPython.core.error import StdinNotImplementedError
from tests.kernel.wire import wait_until

from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import Channel, Header, Message, MessageType
from cobnut_kernel.runtime.output.routing import CurrentJob
from cobnut_kernel.runtime.stdin import Stdin
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.kernel.wire import Exchange, KernelProcess, WireClient

CLIENT, OTHER = (b"client",), (b"other",)


@dataclass(eq=False)
class FakeJob:
    """As much of a job as questions know of."""

    message: Message


def job(name: str, client: tuple[bytes, ...] = CLIENT, *, subshell: str | None = None, **content: Any) -> Any:
    """Make the job of a cell that this client has sent."""
    header = Header(name, MessageType.EXECUTE_REQUEST, subshell_id=subshell)
    content = {"allow_stdin": True, **content}
    return FakeJob(Message(header, None, {}, content, identities=client, header_json=dumps(header.as_dict())))


def reply(value: object, parent: str | None = None, client: tuple[bytes, ...] = CLIENT, **content: Any) -> Message:
    """Make an input_reply as a client sends it."""
    named = Header(parent, MessageType.INPUT_REQUEST) if parent is not None else None
    header = Header("reply", MessageType.INPUT_REPLY)
    return Message(header, named, {}, {"value": value, **content}, identities=client)


class FakeOutbox:
    """Keeps what is posted."""

    def __init__(self, thread: IOThread) -> None:
        self._thread = thread
        self.codec = Codec(b"")
        self.posted: list[Any] = []

    def post(self, message: Any) -> None:
        """Keep it."""
        self.posted.append(message)


class Desk:
    """Questions, those who ask them, and the client that may answer."""

    def __init__(self, thread: IOThread) -> None:
        self.current = CurrentJob()
        self.outbox = FakeOutbox(thread)
        self.stdin = Stdin(self.outbox, self.current, object())  # type: ignore[arg-type]
        self.askers: list[threading.Thread] = []
        self._thread = thread

    def ask(self, cell: Any, question: Callable[[], str] | None = None) -> list[Any]:
        """Let a cell ask, in a thread; return the list that its answer, or its error, will be in."""
        outcome: list[Any] = []

        def work() -> None:
            self.current.begin(cell)
            try:
                outcome.append((question or self.stdin.raw_input)())
            except EOFError as error:
                outcome.append(error)

        asked = len(self.outbox.posted)
        self.askers.append(threading.Thread(target=copy_context().run, args=(work,)))
        self.askers[-1].start()
        wait_until(lambda: len(self.outbox.posted) > asked, "the question")
        return outcome

    def answer(self, message: Message) -> None:
        """Let an answer arrive."""
        self._thread._call(self.stdin.on_reply, message)

    def requests(self) -> list[str]:
        """Return the ids of the questions, in their order."""
        return [loads(message.header)["msg_id"] for message in self.outbox.posted]


@pytest.fixture
def desk() -> Iterator[Desk]:
    """Nobody has asked anything; at the end nobody waits."""
    thread = IOThread("test-io")
    endpoint = thread.open(SocketSpec(zmq.PULL, "inproc://nobody", bind=True), lambda _: None)
    desk = Desk(thread)
    yield desk
    desk.stdin.close()
    for asker in desk.askers:
        asker.join(10)
    endpoint.close()
    assert not any(asker.is_alive() for asker in desk.askers)


def wait_for(outcome: list[Any]) -> Any:
    """Wait for an answer."""
    wait_until(lambda: outcome, "the answer")
    return outcome[0]


# ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_client_that_sent_the_cell_is_asked(desk: Desk) -> None:
    """The request carries its identity, its header as the parent, the prompt, and the subshell (JEP 91)."""
    cell = job("cell", subshell="s1")
    outcome = desk.ask(cell, lambda: desk.stdin.raw_input("name? "))
    [message] = desk.outbox.posted
    assert (message.channel, message.msg_type) == (Channel.STDIN, MessageType.INPUT_REQUEST)
    assert (message.identities, message.parent) == (CLIENT, cell.message.header_json)
    assert loads(message.content) == {"prompt": "name? ", "password": False}
    assert loads(message.header)["subshell_id"] == "s1"
    desk.answer(reply("Ada"))
    assert wait_for(outcome) == "Ada"


def test_a_password_is_asked_for_as_such(desk: Desk) -> None:
    """And Python's own arguments are taken."""
    outcome = desk.ask(job("cell"), lambda: desk.stdin.getpass("PIN: ", None))
    assert loads(desk.outbox.posted[0].content) == {"prompt": "PIN: ", "password": True}
    desk.answer(reply("1234"))
    assert wait_for(outcome) == "1234"


@pytest.mark.parametrize("content", [{"allow_stdin": False}, {"allow_stdin": None}])
def test_who_takes_no_questions_gets_none(desk: Desk, content: dict[str, Any]) -> None:
    """The error comes at once, and nothing is sent."""

    def work() -> None:
        desk.current.begin(job("cell", **content))
        with pytest.raises(StdinNotImplementedError, match="takes no questions"):
            desk.stdin.raw_input()

    copy_context().run(work)
    assert desk.outbox.posted == []


def test_where_no_cell_runs_nobody_can_be_asked(desk: Desk) -> None:
    """Before the first cell there is no client."""
    with pytest.raises(StdinNotImplementedError):
        desk.stdin.raw_input()


def test_a_prompt_is_what_str_makes_of_it(desk: Desk) -> None:
    """As with Python's own `input`."""
    outcome = desk.ask(job("cell"), lambda: desk.stdin.raw_input(42))
    assert loads(desk.outbox.posted[0].content)["prompt"] == "42"
    desk.answer(reply(""))
    assert wait_for(outcome) == ""


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", ["question", "cell", None])
@pytest.mark.parametrize("status", [{}, {"status": "ok"}])
def test_every_clients_way_to_answer_is_taken(desk: Desk, named: str | None, status: dict[str, str]) -> None:
    """JupyterLab names the question, stock jupyter_client neither parent nor status (R15)."""
    outcome = desk.ask(job("cell"))
    [question] = desk.requests()
    desk.answer(reply("yes", {"question": question, "cell": "cell"}.get(named or ""), **status))
    assert wait_for(outcome) == "yes"


def test_answers_go_to_their_questions(desk: Desk) -> None:
    """Two questions of one client, answered by name in the other order."""
    first, second = desk.ask(job("one")), desk.ask(job("two"))
    ids = desk.requests()
    desk.answer(reply("for two", ids[1]))
    desk.answer(reply("for one", ids[0]))
    assert (wait_for(first), wait_for(second)) == ("for one", "for two")


def test_answers_without_a_name_go_in_turn(desk: Desk) -> None:
    """First asked, first answered."""
    outcomes = [desk.ask(job(name)) for name in ("one", "two", "three")]
    for value in ("1", "2", "3"):
        desk.answer(reply(value))
    assert [wait_for(outcome) for outcome in outcomes] == ["1", "2", "3"]


def test_a_client_answers_its_own_questions_alone(desk: Desk) -> None:
    """An answer without a name is never taken for another client's question."""
    mine, others = desk.ask(job("mine", CLIENT)), desk.ask(job("others", OTHER))
    desk.answer(reply("other", client=OTHER))
    assert wait_for(others) == "other"
    assert not mine
    desk.answer(reply("stranger", client=(b"stranger",)))
    desk.answer(reply("mine"))
    assert wait_for(mine) == "mine"


def test_an_answer_that_comes_too_late_is_dropped(desk: Desk) -> None:
    """What answers a question that nobody waits for any more, or none, is not kept for the next one."""
    desk.answer(reply("stale"))
    desk.answer(reply("stale", "gone"))
    outcome = desk.ask(job("cell"))
    desk.answer(reply("of another question", "gone"))
    desk.answer(reply("fresh"))
    desk.answer(reply("twice"))
    assert wait_for(outcome) == "fresh"


def test_what_has_arrived_before_the_question_is_no_answer(desk: Desk) -> None:
    """The question opens behind what the I/O thread has to do already, received messages among it."""
    thread = desk.outbox._thread
    begin = threading.Event()
    thread.call_soon(begin.wait, 10)
    outcome: list[Any] = []

    def ask() -> None:
        desk.current.begin(job("cell"))
        outcome.append(desk.stdin.raw_input())

    desk.askers.append(threading.Thread(target=copy_context().run, args=(ask,)))
    desk.askers[-1].start()
    wait_until(lambda: desk.stdin._asking, "the question")
    thread.call_soon(desk.stdin.on_reply, reply("stale"))
    begin.set()
    wait_until(lambda: desk.outbox.posted, "the question to be sent")
    desk.answer(reply("fresh"))
    assert wait_for(outcome) == "fresh"


@pytest.mark.parametrize("message", [reply("\x04"), reply(None), reply(None, status="error", ename="Cancelled")])
def test_the_end_of_input_is_an_eoferror(desk: Desk, message: Message) -> None:
    """Ctrl-D, and a reply that has no value."""
    outcome = desk.ask(job("cell"))
    desk.answer(message)
    assert isinstance(wait_for(outcome), EOFError)


def test_a_value_that_is_no_text_becomes_text(desk: Desk) -> None:
    """`input` returns text, whatever a client sends."""
    outcome = desk.ask(job("cell"))
    desk.answer(reply(5))
    assert wait_for(outcome) == "5"


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_closing_frees_who_waits(desk: Desk) -> None:
    """A thread that asks a client which is gone does not hold up the kernel's end; who asks later is not heard."""
    outcomes = [desk.ask(job("one")), desk.ask(job("two"))]
    desk.stdin.close()
    assert [type(wait_for(outcome)) for outcome in outcomes] == [EOFError, EOFError]
    desk.current.begin(job("three"))
    with pytest.raises(EOFError):
        desk.stdin.raw_input()


def test_pythons_own_functions_come_back(desk: Desk) -> None:
    """While installed, `input` and `getpass.getpass` ask here."""
    before = builtins.input, getpass.getpass
    desk.stdin.install()
    try:
        assert (builtins.input, getpass.getpass) == (desk.stdin.raw_input, desk.stdin.getpass)
    finally:
        desk.stdin.restore()
    assert (builtins.input, getpass.getpass) == before
    desk.stdin.restore()  # twice does no harm
    assert (builtins.input, getpass.getpass) == before


# ── over the wire ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def asked(kernel: KernelProcess) -> WireClient:
    """A client with an identity, so that it can be asked."""
    return kernel.connect(identity=b"somebody")


def question(client: WireClient, cell: Exchange) -> Message:
    """Wait until a cell asks, and return the request."""

    def requests() -> list[Message]:
        return [message for channel, message in cell.replies if channel is Channel.STDIN]

    client.wait(requests, "the input_request")
    return requests()[-1]


def send(client: WireClient, value: str, **options: Any) -> None:
    """Answer, as stock clients do: without a parent."""
    message = client.codec.message(MessageType.INPUT_REPLY, {"value": value}, **options)
    client.sockets[Channel.STDIN].send_multipart(client.codec.encode(message))


def shell_reply(client: WireClient, cell: Exchange) -> Message:
    """Wait for the cell's end and return its reply."""
    client.wait(lambda: cell.idle and any(channel is Channel.SHELL for channel, _ in cell.replies), "the cell's end")
    return next(message for channel, message in cell.replies if channel is Channel.SHELL)


@pytest.mark.parametrize("call", ["input('? ')", "__import__('getpass').getpass('? ')"])
def test_a_cell_asks_and_goes_on_with_the_answer(asked: WireClient, call: str) -> None:
    """What it printed before is there before the question."""
    cell = asked.send_code(f"print('before', end=''); answer = {call}; answer", allow_stdin=True)
    request = question(asked, cell)
    assert request.content == {"prompt": "? ", "password": "getpass" in call}
    asked.wait_for_text(cell, "before")
    send(asked, "the answer")
    assert shell_reply(asked, cell).content["status"] == "ok"
    assert cell.result == "'the answer'"


def test_two_cells_at_once_get_their_own_answers(asked: WireClient) -> None:
    """Cells that run as tasks of one thread cannot both block it: these ask in threads."""
    code = "import asyncio; await asyncio.to_thread(input, '{0}? ')"
    cells = [asked.send_code("# task\n" + code.format(name), allow_stdin=True) for name in "ab"]
    requests = [question(asked, cell) for cell in cells]
    for request, value in zip(reversed(requests), "ba", strict=True):
        send(asked, value, parent=request.header)
    for cell, value in zip(cells, "ab", strict=True):
        assert shell_reply(asked, cell).content["status"] == "ok"
        assert cell.result == f"'{value}'"


def test_who_cannot_be_asked_is_told_so(client: WireClient) -> None:
    """Without allow_stdin the error comes at once."""
    assert client.execute("input('? ')").error["ename"] == "StdinNotImplementedError"


@contextmanager
def asking(client: WireClient, code: str = "input('? ')") -> Generator[Exchange]:
    """A cell that waits for an answer, and has ended afterwards."""
    cell = client.send_code(code, allow_stdin=True)
    question(client, cell)
    yield cell
    shell_reply(client, cell)


def test_an_interrupt_ends_a_question_and_its_late_answer_is_dropped(asked: WireClient) -> None:
    """The next question is not answered by what was meant for the one before."""
    with asking(asked) as first:
        asked.ask(MessageType.INTERRUPT_REQUEST, channel=Channel.CONTROL)
    assert first.error["ename"] == "KeyboardInterrupt"
    send(asked, "late")
    with asking(asked) as second:
        send(asked, "in time")
    assert second.result == "'in time'"


def test_the_end_of_input_ends_a_cell(asked: WireClient) -> None:
    """Ctrl-D is an EOFError."""
    with asking(asked) as cell:
        send(asked, "\x04")
    assert cell.error["ename"] == "EOFError"


def test_a_kernel_ends_although_a_thread_waits_for_an_answer(start_kernel: Callable[..., KernelProcess]) -> None:
    """Nor does it wait for a client that has gone away."""
    kernel = start_kernel()
    client = kernel.connect(identity=b"somebody")
    cell = client.send_code("import threading; t = threading.Thread(target=input); t.start()", allow_stdin=True)
    question(client, cell)
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    assert kernel.wait() == 0
