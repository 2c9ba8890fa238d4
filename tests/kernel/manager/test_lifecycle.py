"""The states of a kernel, and the futures of its transitions."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from itertools import pairwise
from typing import TYPE_CHECKING

import anyio
import pytest

from cobnut_kernel.errors import KernelDiedError, KernelError, KernelStartCancelled, PendingKernelError
from cobnut_kernel.manager.lifecycle import (
    AT_REST,
    BEGINNING,
    RUNNING,
    WAYS,
    DeathReport,
    KernelState,
    Lifecycle,
    Ready,
)
from cobnut_kernel.portal import SIGNAL_TIME, Portal

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = DeathReport(exit_code=3, signal=None, stderr_tail="Traceback", phase=KernelState.READY)
FAILURE = LookupError("no such program")

STOPPED, QUEUED, PROVISIONING, STARTING = (
    KernelState.STOPPED,
    KernelState.QUEUED,
    KernelState.PROVISIONING,
    KernelState.STARTING,
)
READY, STOPPING, DEAD, RESTARTING = KernelState.READY, KernelState.STOPPING, KernelState.DEAD, KernelState.RESTARTING

VERBS: dict[str, Callable[[Lifecycle], object]] = {
    "begin_start": Lifecycle.begin_start,
    "begin_restart": Lifecycle.begin_restart,
    "begin_stop": Lifecycle.begin_stop,
    "provision": Lifecycle.provision,
    "launched": Lifecycle.launched,
    "answer": Lifecycle.answer,
    "die": lambda life: life.die(REPORT),
    "fail": lambda life: life.fail(REPORT, FAILURE),
    "cancel": Lifecycle.cancel,
    "stopped": Lifecycle.stopped,
}

PATHS: dict[KernelState, tuple[str, ...]] = {
    STOPPED: (),
    QUEUED: ("begin_start",),
    PROVISIONING: ("begin_start", "provision"),
    STARTING: ("begin_start", "provision", "launched"),
    READY: ("begin_start", "provision", "launched", "answer"),
    STOPPING: ("begin_start", "provision", "launched", "answer", "begin_stop"),
    DEAD: ("begin_start", "provision", "launched", "answer", "die"),
    RESTARTING: ("begin_start", "provision", "launched", "answer", "begin_restart"),
}

REFUSED = "refused"

# What each verb does in each state: the state that follows, REFUSED (an error), or None (nothing happens).
TABLE: dict[str, dict[KernelState, KernelState | str]] = {
    "begin_start": {
        STOPPED: QUEUED,
        DEAD: QUEUED,
        QUEUED: REFUSED,
        PROVISIONING: REFUSED,
        STARTING: REFUSED,
        READY: REFUSED,
        STOPPING: REFUSED,
        RESTARTING: REFUSED,
    },
    "begin_restart": {
        STARTING: RESTARTING,
        READY: RESTARTING,
        DEAD: RESTARTING,
        STOPPED: REFUSED,
        QUEUED: REFUSED,
        PROVISIONING: REFUSED,
        STOPPING: REFUSED,
        RESTARTING: REFUSED,
    },
    "begin_stop": {
        QUEUED: STOPPING,
        PROVISIONING: STOPPING,
        STARTING: STOPPING,
        READY: STOPPING,
        RESTARTING: STOPPING,
    },
    "provision": {QUEUED: PROVISIONING, RESTARTING: PROVISIONING},
    "launched": {PROVISIONING: STARTING},
    "answer": {STARTING: READY},
    "die": {STARTING: DEAD, READY: DEAD},
    "fail": {QUEUED: DEAD, PROVISIONING: DEAD, RESTARTING: DEAD},
    "cancel": {QUEUED: STOPPED, PROVISIONING: STOPPED, RESTARTING: STOPPED},
    "stopped": {STOPPING: STOPPED},
}


def in_state(state: KernelState) -> Lifecycle:
    """Bring a lifecycle into a state."""
    lifecycle = Lifecycle()
    for verb in PATHS[state]:
        VERBS[verb](lifecycle)
    assert lifecycle.state is state
    return lifecycle


@pytest.mark.parametrize("state", KernelState)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_does_in_every_state_what_the_table_says(verb: str, state: KernelState) -> None:
    """All 80 pairs: a verb leads on, is refused without a trace, or does nothing and says so."""
    lifecycle, seen = in_state(state), list[KernelState]()
    lifecycle._on_change = seen.append
    ready, answered = lifecycle.ready, lifecycle.answered
    expected = TABLE[verb].get(state)
    if expected is REFUSED:
        with pytest.raises(KernelError) as caught:
            VERBS[verb](lifecycle)
        assert isinstance(caught.value, PendingKernelError) == (state in {*BEGINNING, STOPPING})
    elif expected is None:
        assert VERBS[verb](lifecycle) in (False, lifecycle.ready)
    else:
        assert VERBS[verb](lifecycle) in (True, lifecycle.ready)
    if isinstance(expected, KernelState):
        assert (lifecycle.state, seen) == (expected, [expected])
    else:
        assert (lifecycle.state, seen) == (state, [])
        assert lifecycle.answered is answered
        assert lifecycle.ready is ready or (verb == "begin_stop" and state in AT_REST)


def test_the_map_of_ways_is_that_of_the_table() -> None:
    """No way exists that no verb takes, and none is taken that the map lacks."""
    ways = {(state, after) for outcomes in TABLE.values() for state, after in outcomes.items() if after is not REFUSED}
    ways.add((STOPPED, RESTARTING))  # a kernel that was stopped, rather than never started
    assert ways == {(state, after) for state, afters in WAYS.items() for after in afters}


def test_the_states_fall_into_four_kinds() -> None:
    """A kernel is on its way up, running, stopping, or at rest, and is asked which."""
    assert BEGINNING | RUNNING | AT_REST | {STOPPING} == set(KernelState)
    for state in KernelState:
        lifecycle = in_state(state)
        assert (lifecycle.is_beginning, lifecycle.is_running, lifecycle.is_at_rest) == (
            state in BEGINNING,
            state in RUNNING,
            state in AT_REST,
        )


def test_a_stopped_kernel_can_be_restarted_and_a_new_one_cannot() -> None:
    """Only what was started once has something to start again."""
    with pytest.raises(KernelError, match="never started"):
        Lifecycle().begin_restart()
    lifecycle = in_state(STOPPING)
    lifecycle.stopped()
    lifecycle.begin_restart()
    assert lifecycle.state is RESTARTING


def test_phases_tell_where_the_kernel_has_been_and_how_long() -> None:
    """The last one is where it is and has no length yet; the next start or restart begins another list."""
    now = [100.0]
    lifecycle = Lifecycle(clock=lambda: now[0])
    assert lifecycle.phases == ()
    for verb, seconds in (("begin_start", 1.0), ("provision", 2.0), ("launched", 4.0), ("answer", 8.0)):
        VERBS[verb](lifecycle)
        now[0] += seconds
    told = [(phase.state, phase.seconds) for phase in lifecycle.phases]
    assert told == [(QUEUED, 1.0), (PROVISIONING, 2.0), (STARTING, 4.0), (READY, None)]
    began = [phase.began for phase in lifecycle.phases]
    assert began == sorted(began)
    assert began[0] > 1.6e9
    lifecycle.begin_restart()
    assert [phase.state for phase in lifecycle.phases] == [RESTARTING]
    lifecycle.cancel()
    assert [phase.state for phase in lifecycle.phases] == [RESTARTING, STOPPED]
    lifecycle.begin_start()
    assert [phase.state for phase in lifecycle.phases] == [QUEUED]


def test_phases_are_up_to_date_when_a_change_is_told() -> None:
    """Whoever is told of a state finds it in the phases."""
    seen: list[KernelState] = []
    lifecycle = Lifecycle(lambda _: seen.append(lifecycle.phases[-1].state))
    for verb in PATHS[STOPPING]:
        VERBS[verb](lifecycle)
    assert seen == [QUEUED, PROVISIONING, STARTING, READY, STOPPING]


def test_a_strangers_kernel_is_there_at_once() -> None:
    """Nothing of it is started here: its futures are over, and it can be talked to."""
    lifecycle = Lifecycle()
    lifecycle.attach()
    assert lifecycle.state is READY
    assert lifecycle.ready.result() is lifecycle.answered.result() is None


# ── futures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_waits_before_the_first_start_waits_for_it() -> None:
    """The `ready` and `answered` of a new kernel are those of its first start, later starts have their own."""
    lifecycle = Lifecycle()
    ready, answered = lifecycle.ready, lifecycle.answered
    assert lifecycle.begin_start() is lifecycle.ready is ready
    assert lifecycle.answered is answered
    lifecycle.cancel()
    assert lifecycle.begin_start() is lifecycle.ready is not ready
    assert lifecycle.answered is not answered


def test_each_transition_has_one_future_from_its_beginning() -> None:
    """Start, restart and stop each have a future of their own, there when the call returns."""
    lifecycle = in_state(READY)
    futures = [lifecycle.ready]
    for begin in (lifecycle.begin_restart, lifecycle.begin_stop):
        futures.append(begin())
        assert lifecycle.ready is futures[-1]
        assert not futures[-1].done()
    assert len(set(map(id, futures))) == 3
    assert lifecycle.begin_stop() is futures[-1]


def test_a_stop_at_rest_is_over_at_once() -> None:
    """Where nothing runs, nothing has to be waited for."""
    for state in AT_REST:
        lifecycle = in_state(state)
        assert lifecycle.begin_stop().done()
        assert lifecycle.state is state


def test_a_promised_stop_is_the_one_that_comes() -> None:
    """A stop that waits for a start has its future from the beginning, and keeps it."""
    lifecycle = in_state(PROVISIONING)
    promise = lifecycle.await_stop()
    assert lifecycle.ready is promise
    assert lifecycle.state is PROVISIONING
    lifecycle.launched()
    assert lifecycle.begin_stop(promise) is promise
    assert lifecycle.state is STOPPING
    assert not promise.done()


@pytest.mark.parametrize(
    ("state", "verb", "error"),
    [
        (STARTING, "answer", None),
        (STARTING, "die", KernelDiedError),
        (STARTING, "begin_stop", KernelStartCancelled),
        (STARTING, "begin_restart", KernelStartCancelled),
        (QUEUED, "begin_stop", KernelStartCancelled),
        (QUEUED, "cancel", KernelStartCancelled),
        (PROVISIONING, "fail", LookupError),
        (RESTARTING, "begin_stop", KernelStartCancelled),
    ],
)
def test_the_first_answer_comes_or_fails_with_its_reason(
    state: KernelState, verb: str, error: type[Exception] | None
) -> None:
    """`answered` is over with the answer, the death, the stop, the restart, or the failed start, and stays so."""
    lifecycle = in_state(state)
    answered = lifecycle.answered
    assert not answered.done()
    VERBS[verb](lifecycle)
    assert answered.done()
    assert (type(answered.exception()) if error else answered.exception()) is error


def test_a_death_is_reported_until_the_next_start() -> None:
    """The report is there while the kernel is dead, and gone when another start begins."""
    for begin in (Lifecycle.begin_start, Lifecycle.begin_restart):
        lifecycle = in_state(DEAD)
        assert lifecycle.death is REPORT
        begin(lifecycle)
        assert lifecycle.death is None


def test_a_death_before_the_answer_tells_what_was_written() -> None:
    """Who waits for the answer gets the reason with the end of stderr."""
    lifecycle = in_state(STARTING)
    lifecycle.die(DeathReport(None, "SIGKILL", "last words", STARTING))
    with pytest.raises(KernelDiedError, match=r"before it answered: killed by SIGKILL.\nlast words"):
        lifecycle.answered.result()


def test_a_pending_kernel_is_named_with_its_state() -> None:
    """The refusal says that the kernel is pending, where it is, and what to wait for; it is a RuntimeError."""
    with pytest.raises(
        RuntimeError, match=r"pending state \(provisioning\): wait for its `ready` before you interrupt"
    ):
        in_state(PROVISIONING).require_settled("interrupt")
    in_state(STARTING).require_settled("interrupt")


def test_a_report_says_how_it_ended() -> None:
    """Signal, exit code, or the reason for which it was ended."""
    assert str(DeathReport(None, "SIGSEGV", "", READY)) == "killed by SIGSEGV"
    assert str(DeathReport(3, None, "", READY)) == "exit code 3"
    assert str(DeathReport(None, "SIGKILL", "", STARTING, "it did not answer")) == "it did not answer"
    memory = DeathReport(None, "SIGKILL", "", READY, out_of_memory="out of memory at 512 MiB")
    assert str(memory) == "killed by SIGKILL: out of memory at 512 MiB"
    assert str(DeathReport(None, None, "", READY)) == "how it ended is not known"


def test_many_threads_see_one_order() -> None:
    """However many begin at once, one of them does, and every change is told once, in an order that is a way."""
    for _ in range(50):
        seen = [STOPPED]
        lifecycle = Lifecycle(seen.append)
        barrier, begun = threading.Barrier(4), list[str]()

        def begin(
            lifecycle: Lifecycle = lifecycle, barrier: threading.Barrier = barrier, begun: list[str] = begun
        ) -> None:
            barrier.wait()
            try:
                lifecycle.begin_start()
                begun.append("it")
            except PendingKernelError:
                pass
            lifecycle.provision()
            lifecycle.cancel()

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert begun
        assert all(after in WAYS[before] for before, after in pairwise(seen))


# ── Ready ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_future_is_awaited_on_any_loop(anyio_backend: str) -> None:
    """Several tasks await it while another thread ends it; each gets the outcome, and may ask again."""
    ready, done = Ready(), list[str]()

    async def wait() -> None:
        await ready
        done.append(anyio_backend)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.to_thread.run_sync(ready.resolve)
    await ready
    assert done == [anyio_backend] * 3
    failed = Ready()
    failed.resolve(FAILURE)
    with pytest.raises(LookupError):
        await failed


@pytest.mark.anyio
async def test_who_gives_up_waiting_leaves_it_alone() -> None:
    """A cancelled wait ends nothing."""
    ready = Ready()
    with anyio.move_on_after(0):
        await ready
    assert not ready.done()
    ready.resolve()
    await ready


def test_a_thread_without_a_loop_blocks_for_it() -> None:
    """`result` and `exception` wait, with a timeout where one is given."""
    ready = Ready()
    assert not ready.done()
    assert not ready.cancelled()
    with pytest.raises(TimeoutError):
        ready.result(timeout=0)
    called: list[Ready] = []
    ready.add_done_callback(called.append)
    thread = threading.Thread(target=ready.resolve)
    thread.start()
    assert ready.result() is None
    assert ready.exception() is None
    thread.join()
    assert called == [ready]


def test_a_signal_that_wakes_nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread does not wait without looking up: a Ctrl-C just before it waits ends the waiting."""
    waits: list[float | None] = []
    real = Future[None].exception

    def exception(future: Future[None], timeout: float | None = None) -> BaseException | None:
        waits.append(timeout)
        if len(waits) == 3:
            raise KeyboardInterrupt
        return real(future, 0)

    monkeypatch.setattr(Future, "exception", exception)
    with pytest.raises(KeyboardInterrupt):
        Ready().result()
    assert all(timeout is not None and timeout <= SIGNAL_TIME for timeout in waits)


@pytest.mark.parametrize("error", [None, FAILURE])
@pytest.mark.parametrize("state", [QUEUED, RESTARTING, PROVISIONING, STOPPING])
def test_a_transition_that_nobody_carries_out_is_over(state: KernelState, error: Exception | None) -> None:
    """Its future says why, the kernel is at rest, and can be started again."""
    life = in_state(state)
    ready = life.ready
    life.abandon(ready, error)
    assert life.is_at_rest
    with pytest.raises(type(error) if error is not None else KernelStartCancelled):
        ready.result(timeout=0)
    assert life.answered.done()
    assert (life.death is None) == (error is None or state is STOPPING)
    life.begin_start()


def test_a_transition_that_is_over_cannot_be_abandoned() -> None:
    """What is told of it later changes nothing: neither its outcome nor the kernel's state."""
    life = in_state(STARTING)
    life.ready.resolve()
    life.abandon(life.ready, FAILURE)
    assert life.ready.exception(timeout=0) is None
    assert life.state is STARTING


def test_the_first_outcome_stays() -> None:
    """What comes later changes nothing."""
    ready = Ready()
    ready.resolve(KernelStartCancelled("x"))
    ready.resolve()
    assert ready.cancelled()
    assert isinstance(ready.exception(), KernelStartCancelled)


def test_waiting_for_oneself_is_refused() -> None:
    """On the portal's thread a blocking question would never be answered: it raises, unless the answer is there."""

    async def ask(ready: Ready) -> None:
        ready.result()

    with pytest.raises(RuntimeError, match="would wait for itself"):
        Portal.shared().call(ask, Ready())
    over = Ready()
    over.resolve()
    Portal.shared().call(ask, over)
