"""The threads that front ends are told of, and which of them a request is about."""

from __future__ import annotations

from typing import Any

from cobnut_kernel.runtime.debugging.threads import DebuggedThreads


def event(name: str, **body: Any) -> dict[str, Any]:
    """Make an event of the debug adapter protocol."""
    return {"event": name, "body": body}


def stopped(*ids: int) -> DebuggedThreads:
    """Make threads that have stopped one after the other."""
    threads = DebuggedThreads()
    for each in ids:
        assert threads.note(event("stopped", threadId=each))
    return threads


def test_a_request_is_about_the_thread_that_it_names_if_that_is_stopped() -> None:
    """Else about the one that stopped last, which may have stopped before too; about none where none is stopped."""
    threads = stopped(1, 2, 3, 2)
    assert threads.stopped == [1, 3, 2]
    assert threads.stopped_one(1) == 1
    assert [threads.stopped_one(named) for named in (4, None, "1")] == [2, 2, 2]
    assert DebuggedThreads().stopped_one(1) is None


def test_the_kernels_own_threads_are_neither_listed_nor_heard() -> None:
    """What they do is for no front end; the threads of subshells and thread cells are the user's."""
    threads = DebuggedThreads()
    listed = [{"id": 1, "name": "MainThread"}, {"id": 2, "name": "cobnut-io"}, {"id": 3, "name": "cobnut-subshell-1"}]
    assert [each["id"] for each in threads.users(listed)] == [1, 3]
    assert not threads.note(event("stopped", threadId=2))
    assert threads.note(event("stopped", threadId=3))
    assert threads.stopped == [3]


def test_a_thread_that_stops_again_has_gone_on_in_between() -> None:
    """Whoever waits for it to go on would wait for ever otherwise: the next breakpoint may be the next line."""
    threads = stopped(1, 2)
    one, all_of_them = threads.stops(1), threads.stops()
    assert not threads.have_gone_on(one)
    threads.note(event("continued", threadId=1))
    assert threads.have_gone_on(one)
    threads.note(event("stopped", threadId=1))
    assert threads.have_gone_on(one)
    assert not threads.have_gone_on(all_of_them)
    assert threads.stops(3) == {}


def test_a_thread_that_has_ended_or_gone_on_is_stopped_no_longer() -> None:
    """All of them have gone on where the event says so, and when the debugger is gone; other events change nothing."""
    threads = stopped(1, 2, 3)
    threads.note(event("thread", threadId=4, reason="started"))
    threads.note({"event": "initialized"})
    assert threads.stopped == [1, 2, 3]
    threads.note(event("thread", threadId=2, reason="exited"))
    assert threads.stopped == [1, 3]
    threads.note(event("continued", threadId=1, allThreadsContinued=True))
    assert threads.stopped == []
    threads = stopped(1, 2)
    threads.note(event("terminated"))
    assert threads.stopped == []
    threads = stopped(1, 2)
    threads.clear()
    assert threads.stopped == []
