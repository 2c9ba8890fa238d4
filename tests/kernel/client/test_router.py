"""Who gets a message, decided without a socket or a loop."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from cobnut_kernel.client.channels import UNREAD_LIMIT
from cobnut_kernel.client.router import KernelSession, OpenRequest, Router
from cobnut_kernel.client.waiting import SharedFuture
from cobnut_kernel.errors import KernelDiedError, TransportClosedError
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Header, Message

if TYPE_CHECKING:
    from collections.abc import Callable

ours = Codec(b"")
kernels = Codec(b"")


class Sink:
    """Takes outputs, and notes each."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.wakes = 0

    def put(self, message: Message) -> None:
        """Note a message's type."""
        self.types.append(message.msg_type)

    def wake(self) -> None:
        """Count."""
        self.wakes += 1


@pytest.fixture
def router() -> Router:
    """Be a router whose sockets are open."""
    router = Router(logging.getLogger("test"))
    router.open()
    return router


def unread(router: Router, channel: Channel) -> list[str]:
    """Take what a channel's readers would get; name the types."""
    queue = router.queues[channel]
    types: list[str] = []
    while (message := queue._take()) is not None:
        types.append(message.msg_type)
    return types


def answer(parent: Header | None, msg_type: str, by: Codec = kernels, **content: Any) -> Message:
    """Make a kernel's message."""
    return by.message(msg_type, content, parent=parent)


def idle(parent: Header | None, by: Codec = kernels) -> Message:
    """Make the message that ends a request."""
    return answer(parent, "status", by, execution_state="idle")


def expect(router: Router, request: OpenRequest) -> Header:
    """Open a request."""
    header = ours.header("execute_request")
    router.expect(header.msg_id, request)
    return header


def claim(router: Router) -> tuple[Header, SharedFuture[Message], Sink]:
    """Open a request whose answers are claimed; its outputs as long as the sink is held."""
    reply = SharedFuture[Message]()
    sink = Sink()
    return expect(router, OpenRequest(reply, weakref.ref(sink))), reply, sink


def test_messages_go_to_the_channel_they_came_on(router: Router) -> None:
    """What nobody claims waits in its channel's queue."""
    router.deliver(Channel.IOPUB, answer(None, "iopub_welcome"))
    router.deliver(Channel.SHELL, answer(ours.header("x"), "history_reply"))
    router.deliver(Channel.CONTROL, answer(ours.header("x"), "interrupt_reply"))
    router.deliver(Channel.STDIN, answer(ours.header("x"), "input_request"))
    assert [unread(router, channel) for channel in (Channel.IOPUB, Channel.SHELL, Channel.CONTROL, Channel.STDIN)] == [
        ["iopub_welcome"],
        ["history_reply"],
        ["interrupt_reply"],
        ["input_request"],
    ]


def test_claimed_answers_reach_no_queue(router: Router) -> None:
    """Reply and outputs of a claimed request go to who claimed them, and to nobody else."""
    parent, reply, sink = claim(router)
    router.deliver(Channel.IOPUB, answer(parent, "status", execution_state="busy"))
    router.deliver(Channel.IOPUB, answer(parent, "stream"))
    router.deliver(Channel.SHELL, answer(parent, "execute_reply"))
    assert reply.done()
    assert sink.types == ["status", "stream"]
    assert unread(router, Channel.IOPUB) == unread(router, Channel.SHELL) == []


@pytest.mark.parametrize("idle_first", [True, False])
def test_request_is_forgotten_after_reply_and_idle(router: Router, idle_first: bool) -> None:
    """Whichever comes first, after both the request is open no more, and late outputs go to the channel."""
    parent, _, sink = claim(router)
    steps: list[Callable[[], None]] = [
        lambda: router.deliver(Channel.SHELL, answer(parent, "execute_reply")),
        lambda: router.deliver(Channel.IOPUB, idle(parent)),
    ]
    for step in reversed(steps) if idle_first else steps:
        assert router.open_requests() == [parent.msg_id]
        step()
    assert router.open_requests() == []
    router.deliver(Channel.IOPUB, answer(parent, "stream"))
    assert sink.types == ["status"]
    assert unread(router, Channel.IOPUB) == ["stream"]


def test_idle_of_another_request_ends_nothing(router: Router) -> None:
    """Busy and idle belong to their parent (P6)."""
    parent, _, _ = claim(router)
    router.deliver(Channel.SHELL, answer(parent, "execute_reply"))
    router.deliver(Channel.IOPUB, idle(ours.header("complete_request")))
    router.deliver(Channel.IOPUB, idle(None))
    assert router.open_requests() == [parent.msg_id]


def test_second_reply_is_for_the_channel(router: Router) -> None:
    """Only the first reply counts; another neither replaces it nor disappears."""
    parent, reply, _ = claim(router)
    for _ in range(2):
        router.deliver(Channel.SHELL, answer(parent, "execute_reply"))
    assert reply.done()
    assert unread(router, Channel.SHELL) == ["execute_reply"]


def test_input_request_of_a_claimed_request_goes_to_the_channel(router: Router) -> None:
    """A kernel that asks for input is heard on stdin, whoever runs the code."""
    parent, reply, _ = claim(router)
    router.deliver(Channel.STDIN, answer(parent, "input_request"))
    assert not reply.done()
    assert unread(router, Channel.STDIN) == ["input_request"]


def test_outputs_nobody_holds_are_dropped(router: Router) -> None:
    """Where the run was left, its outputs are kept nowhere, though the request is still open."""
    reply = SharedFuture[Message]()
    parent = expect(router, OpenRequest(reply, weakref.ref(Sink())))
    router.deliver(Channel.IOPUB, answer(parent, "stream"))
    assert unread(router, Channel.IOPUB) == []
    assert router.open_requests() == [parent.msg_id]


def test_answers_read_from_the_channel_are_never_dropped(router: Router) -> None:
    """What answers an open request of `execute` stays until it is read; others' messages are bounded."""
    parent = expect(router, OpenRequest())
    for _ in range(UNREAD_LIMIT + 10):
        router.deliver(Channel.IOPUB, answer(parent, "stream"))
        router.deliver(Channel.IOPUB, answer(None, "display_data"))
    types = unread(router, Channel.IOPUB)
    assert types.count("stream") == UNREAD_LIMIT + 10
    assert types.count("display_data") == UNREAD_LIMIT


def test_channel_that_nobody_reads_does_not_grow_beside_a_listener(router: Router) -> None:
    """Where a listener takes every message, unread copies are bounded, until somebody reads the channel."""
    router.listen(lambda channel, message: None)
    parent = expect(router, OpenRequest())
    for _ in range(UNREAD_LIMIT + 10):
        router.deliver(Channel.IOPUB, answer(parent, "stream"))
    assert len(unread(router, Channel.IOPUB)) == UNREAD_LIMIT
    assert not router.queues[Channel.IOPUB].msg_ready()
    for _ in range(UNREAD_LIMIT + 10):
        router.deliver(Channel.IOPUB, answer(parent, "stream"))
    assert len(unread(router, Channel.IOPUB)) == UNREAD_LIMIT + 10


# ── listeners ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_listener_gets_every_message(router: Router) -> None:
    """Listeners get claimed and unclaimed messages of all channels, in order."""
    heard: list[tuple[Channel, str]] = []
    router.listen(lambda channel, message: heard.append((channel, message.msg_type)))
    parent, _, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(parent, "stream"))
    router.deliver(Channel.SHELL, answer(parent, "execute_reply"))
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert heard == [(Channel.IOPUB, "stream"), (Channel.SHELL, "execute_reply"), (Channel.IOPUB, "stream")]


def test_failing_listener_stops_nobody(router: Router, caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged; the others and the queue get the message."""
    heard: list[str] = []

    def broken(channel: Channel, message: Message) -> None:
        raise ValueError("a listener's own fault")

    router.listen(broken)
    router.listen(lambda channel, message: heard.append(message.msg_type))
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert heard == ["stream"]
    assert unread(router, Channel.IOPUB) == ["stream"]
    assert "a listener's own fault" in caplog.text


def test_undo_removes_one_registration(router: Router) -> None:
    """A callback registered twice is called once after one undo; undoing twice is harmless."""
    heard: list[str] = []

    def listener(channel: Channel, message: Message) -> None:
        heard.append(message.msg_type)

    undo = router.listen(listener)
    router.listen(listener)
    undo()
    undo()
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert heard == ["stream"]


def test_listener_may_send_requests(router: Router) -> None:
    """A listener runs outside the router's lock: it can open a request."""
    router.listen(lambda channel, message: router.expect("another", OpenRequest()))
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert router.open_requests() == ["another"]


# ── the kernel's life ───────────────────────────────────────────────────────────────────────────────────────────────


def failure(reply: SharedFuture[Message]) -> Exception | None:
    """Look at the error that a reply became."""
    return reply._error


def test_close_fails_all_who_wait(router: Router) -> None:
    """Every open request ends with the given error, and every channel."""
    _, first, sink = claim(router)
    _, second, _ = claim(router)
    router.close(TransportClosedError("stopped"))
    assert [str(failure(first)), str(failure(second))] == ["stopped", "stopped"]
    assert sink.wakes == 1
    assert router.open_requests() == []


def test_dead_kernel_takes_no_requests(router: Router) -> None:
    """After a death requests are refused; those open before may be answered until the matter is settled."""
    answered, reply, _ = claim(router)
    _, lost, _ = claim(router)
    router.kernel_died(KernelDiedError("killed"))
    with pytest.raises(KernelDiedError, match="killed"):
        router.expect("another", OpenRequest())
    router.deliver(Channel.SHELL, answer(answered, "execute_reply"))
    router.deliver(Channel.IOPUB, idle(answered))
    assert failure(lost) is None
    router.settle()
    assert isinstance(failure(lost), KernelDiedError)
    assert failure(reply) is None


def test_started_kernel_takes_requests_again(router: Router) -> None:
    """After a restart requests are taken; what was open before is settled first, and late timers do no harm."""
    _, lost, _ = claim(router)
    router.kernel_died(KernelDiedError("killed"))
    router.kernel_started()
    assert isinstance(failure(lost), KernelDiedError)
    _, reply, _ = claim(router)
    router.settle()
    assert not reply.done()


def test_new_session_means_a_restart(router: Router) -> None:
    """A session never heard before resolves what the former kernel left open, but not what it answers itself."""
    known, _, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(known, "status", execution_state="busy"))
    _, lost, sink = claim(router)
    parent, spared, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(parent, "status", Codec(b""), execution_state="busy"))
    assert "restarted" in str(failure(lost))
    assert sink.wakes == 1
    assert not spared.done()
    assert router.open_requests() == [parent.msg_id]


def test_first_session_is_no_restart(router: Router) -> None:
    """The first message of a kernel resolves nothing."""
    _, reply, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(None, "status", execution_state="starting"))
    assert not reply.done()


def test_announced_restart_spares_what_the_new_kernel_was_asked(router: Router) -> None:
    """Requests made after the restart was announced belong to the new kernel, whatever it says first."""
    router.deliver(Channel.IOPUB, answer(None, "status", execution_state="idle"))
    router.kernel_died(KernelDiedError("killed"))
    router.kernel_started()
    _, reply, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(None, "status", Codec(b""), execution_state="starting"))
    assert not reply.done()


def test_new_session_ends_a_death(router: Router) -> None:
    """Where nobody says that the kernel was restarted, its own voice does."""
    router.deliver(Channel.IOPUB, answer(None, "status", execution_state="idle"))
    router.kernel_died(KernelDiedError("killed"))
    router.deliver(Channel.IOPUB, answer(None, "status", Codec(b""), execution_state="starting"))
    claim(router)


def test_last_words_do_not_raise_the_dead(router: Router) -> None:
    """A late message of the dead kernel neither ends its death nor counts as heard from the next."""
    router.deliver(Channel.IOPUB, answer(None, "status", execution_state="idle"))
    router.kernel_died(KernelDiedError("killed"))
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert not router.heard.done()
    with pytest.raises(KernelDiedError):
        claim(router)


def test_late_message_of_the_former_kernel_is_no_restart(router: Router) -> None:
    """Sessions alternate for a moment when two sockets are read: only a new one counts."""
    new = Codec(b"")
    router.deliver(Channel.IOPUB, answer(None, "status", execution_state="idle"))
    router.deliver(Channel.SHELL, answer(ours.header("x"), "x_reply", new))
    _, reply, _ = claim(router)
    assert not router.heard.done()
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert not router.heard.done()
    router.deliver(Channel.IOPUB, answer(None, "stream", new))
    assert router.heard.done()
    assert not reply.done()


def test_kernels_that_echo_the_session_never_seem_restarted(router: Router) -> None:
    """Kernels that write their client's session into their headers are not judged by it."""
    router.deliver(Channel.IOPUB, answer(ours.header("x"), "stream", ours))
    _, reply, _ = claim(router)
    other = Codec(b"")
    router.deliver(Channel.IOPUB, answer(other.header("x"), "stream", other))
    assert not reply.done()


def test_kernels_with_a_session_per_message_never_seem_restarted(router: Router) -> None:
    """Two sessions for one request show that the session says nothing about the process."""
    parent, _, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(parent, "status", Codec(b""), execution_state="busy"))
    router.deliver(Channel.IOPUB, answer(parent, "stream", Codec(b"")))
    _, reply, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(None, "stream", Codec(b"")))
    assert not reply.done()


def test_kernel_with_one_session_for_ever_is_heard_after_a_restart(router: Router) -> None:
    """A kernel whose session outlives its process is heard again once its restart was announced."""
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    router.kernel_died(KernelDiedError("killed"))
    router.kernel_started()
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    assert router.heard.done()


def test_new_sockets_may_find_another_kernel(router: Router) -> None:
    """A kernel that was replaced while the client was stopped is no restart of the one that is asked now."""
    router.deliver(Channel.IOPUB, answer(None, "stream"))
    router.close(TransportClosedError("stopped"))
    router.open()
    _, reply, _ = claim(router)
    router.deliver(Channel.IOPUB, answer(None, "stream", Codec(b"")))
    assert not reply.done()


def test_kernel_without_session_says_nothing() -> None:
    """A header without a session is no news of a restart."""
    session = KernelSession()
    assert not session.hear(Message(Header("1", "stream"), None, {}, {}), None)
    assert session.current == ""
