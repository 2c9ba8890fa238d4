"""The managers that block: in a script, in threads, inside running loops, and when somebody presses Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import until
from tests.kernel.manager.conftest import Gate, GatedManager

from cobnut_kernel.errors import (
    DuplicateKernelError,
    KernelDiedError,
    KernelError,
    KernelStartCancelled,
    KernelStartError,
    NoSuchKernel,
    PendingKernelError,
)
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.blocking import KernelManager, MultiKernelManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal, PortalTask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

pytestmark = pytest.mark.usefixtures("runtime")

MakeManager = "Callable[..., KernelManager]"
MakeMulti = "Callable[..., MultiKernelManager]"


class WaitingManager(GatedManager):
    """A manager whose kernel waits at the gate of the test."""

    gate_of_the_test = Gate("nowhere")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gate=self.gate_of_the_test, **kwargs)


class Gated(KernelManager):
    """A blocking manager with a gate inside."""

    asynchronous_class = WaitingManager


@pytest.fixture
def make_blocking(make_manager: Callable[..., Any]) -> MakeManager:
    """Make blocking managers of tiny kernels with habits."""

    def make(*habits: str, **options: Any) -> KernelManager:
        return make_manager(*habits, **{"manager_class": KernelManager, **options})

    return make


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate in the middle of a start."""
    gate = Gate("launched")
    monkeypatch.setattr(WaitingManager, "gate_of_the_test", gate)
    yield gate
    gate.open()


def interrupt_when(condition: Callable[[], object]) -> threading.Thread:
    """Press Ctrl-C as soon as a condition holds."""

    def press() -> None:
        until(condition)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


# ── one kernel ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_starts_answers_and_stops(make_blocking: MakeManager, tiny: Tiny) -> None:
    """Each call returns when it is done, and everything is told as by the async manager."""
    manager = make_blocking()
    assert (manager.has_kernel, manager.is_alive(), manager.state) == (False, False, KernelState.STOPPED)
    manager.start_kernel()
    assert (manager.has_kernel, manager.is_alive(), manager.ready.done()) == (True, True, True)
    manager.answered.result(timeout=20)
    assert manager.state is KernelState.READY
    assert [str(phase.state) for phase in manager.phases] == ["queued", "provisioning", "starting", "ready"]
    assert manager.provisioner is manager.asynchronous.provisioner is not None
    assert manager.connection_info == manager.asynchronous.connection_info
    assert manager.resolve_path("x") == os.path.realpath("x")
    manager.interrupt_kernel()
    manager.signal_kernel(0)
    manager.restart_kernel(now=True)
    manager.answered.result(timeout=20)
    until(lambda: "bound" in manager.output_tail())
    manager.shutdown_kernel()
    assert (manager.has_kernel, manager.death, manager.state) == (False, None, KernelState.STOPPED)
    assert tiny.heard() == ["interrupt_request", "interrupt_request", "shutdown_request"]
    manager.kill_kernel()


def test_the_end_of_a_with_stops_the_kernel(make_blocking: MakeManager) -> None:
    """Whatever happens in between."""
    manager = make_blocking()
    with manager:
        manager.start_kernel()
    assert not manager.has_kernel
    manager.start_kernel()
    with pytest.raises(KernelError, match="runs already"), manager:
        manager.start_kernel()
    assert not manager.has_kernel


def test_what_fails_raises_what_the_async_manager_raises(make_blocking: MakeManager) -> None:
    """Starts that cannot be, and wishes without a kernel."""
    manager = make_blocking()
    for wish in (manager.interrupt_kernel, lambda: manager.signal_kernel(0), manager.client):
        with pytest.raises(KernelError):
            wish()
    with pytest.raises(KernelError, match="never started"):
        manager.restart_kernel()
    with pytest.raises(NoSuchKernel):
        manager.start_kernel(kernel_name="nobody")
    assert isinstance(manager.ready.exception(), NoSuchKernel)
    with pytest.raises(KernelStartError, match="no such folder"):
        manager.start_kernel(kernel_name="tiny", cwd="/no/such/folder")
    assert "no such folder" in str(manager.death)


def test_settings_are_those_of_the_manager_inside(make_blocking: MakeManager) -> None:
    """Set on either before or after, they are the other's too; what a launch came to is told by both."""
    manager = make_blocking(shutdown_wait_time=7.0)
    inside = manager.asynchronous
    assert (inside.shutdown_wait_time, inside.kernel_spec_manager) == (7.0, manager.kernel_spec_manager)
    manager.startup_timeout = 3.0
    inside.kernel_id = "mine"
    assert (inside.startup_timeout, manager.kernel_id) == (3.0, "mine")
    assert manager.session is inside.session
    changes: list[Any] = []
    manager.observe(lambda change: changes.append(change["new"]), "connection_file")
    manager.start_kernel()
    assert manager.connection_info is not None
    assert manager.connection_file == inside.connection_file == changes[-1]
    assert manager.ports == inside.ports
    assert manager.session.key == manager.connection_info.key
    assert manager.get_connection_info()["ip"] == manager.connection_info.ip
    manager.shutdown_kernel(now=True)


def test_a_start_gets_its_options(make_blocking: MakeManager, tmp_path: Path) -> None:
    """Name, id, folder, environment and arguments reach the kernel, and the next restart has the changed ones."""
    manager = make_blocking()
    shown = KernelSpec(argv=["sh", "-c", 'echo "$0 $X $PWD"; exec sleep 60'])
    manager.kernel_spec_manager.extra_specs = {"shown": shown}
    options: dict[str, Any] = {"kernel_id": "my-id", "cwd": str(tmp_path), "extra_arguments": ["more"]}
    manager.start_kernel(kernel_name="shown", env={**os.environ, "X": "1"}, **options)
    assert (manager.kernel_id, manager.kernel_name) == ("my-id", "shown")
    until(lambda: manager.output_tail() == f"more 1 {tmp_path}\n")
    manager.update_env(env={"X": "2"})
    manager.restart_kernel(now=True, newports=True)
    until(lambda: manager.output_tail() == f"more 2 {tmp_path}\n")
    manager.shutdown_kernel(now=True)


def test_callbacks_are_given_the_blocking_manager(make_blocking: MakeManager) -> None:
    """Of every state, until they are taken back."""
    manager = make_blocking()
    seen: list[tuple[KernelManager, KernelState]] = []
    undo = manager.add_state_callback(lambda who, state: seen.append((who, state)))
    manager.start_kernel()
    until(lambda: len(seen) >= 3)
    undo()
    manager.shutdown_kernel(now=True)
    assert {who for who, _ in seen} == {manager}


def test_a_stop_by_steps(make_blocking: MakeManager, tiny: Tiny) -> None:
    """Asked to end, waited for, cleaned up: the documented three."""
    manager = make_blocking()
    manager.start_kernel()
    manager.answered.result(timeout=20)
    manager.request_shutdown()
    manager.finish_shutdown(waittime=20)
    manager.cleanup_resources()
    assert not manager.is_alive()
    assert tiny.heard() == ["interrupt_request", "shutdown_request"]
    manager.shutdown_kernel()


def test_the_restarter_restarts_and_tells(make_blocking: MakeManager) -> None:
    """Switched on, it brings a kernel back that has answered; switched off, the kernel stays dead."""
    manager = make_blocking(autorestart=True)
    told = threading.Event()
    manager.add_restart_callback(told.set)
    manager.start_kernel()
    manager.answered.result(timeout=20)
    first = manager.answered
    os.kill(manager.asynchronous.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert told.wait(20)
    until(lambda: manager.answered is not first)
    manager.answered.result(timeout=20)
    manager.remove_restart_callback(told.set)
    manager.stop_restarter()
    manager.signal_kernel(signal.SIGKILL)
    until(lambda: manager.state is KernelState.DEAD)
    manager.start_restarter()
    manager.shutdown_kernel()


def test_a_kernel_of_somebody_else_is_left_alone(make_blocking: MakeManager) -> None:
    """Attached to by its connection, or adopted by what its owner tells, it is talked to, and not stopped."""
    owner = make_blocking()
    owner.start_kernel()
    owner.answered.result(timeout=20)
    guest, adopter = (make_blocking(owns_kernel=False) for _ in range(2))
    guest.load_connection_file(owner.connection_file)
    guest.attach()
    adopter.adopt(json.loads(json.dumps(owner.provisioner_info())))
    for manager in (guest, adopter):
        manager.answered.result(timeout=20)
        assert manager.is_alive()
        with manager.client() as client:
            assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
        with pytest.raises(KernelError, match="belongs to somebody else"):
            manager.restart_kernel()
        manager.shutdown_kernel(now=True)
    assert (guest.has_kernel, adopter.has_kernel, owner.is_alive()) == (False, True, True)
    owner.shutdown_kernel()


# ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_clients_block_and_are_told_of_deaths(make_blocking: MakeManager) -> None:
    """`client` makes a blocking one, which hears from the manager that the kernel is dead, and that it is back."""
    from cobnut_kernel.client.blocking import BlockingKernelClient

    manager = make_blocking()
    manager.start_kernel()
    client = manager.client()
    assert isinstance(client, BlockingKernelClient)
    client.start_channels()
    client.wait_for_ready(timeout=20)
    assert client.is_alive()
    assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
    manager.signal_kernel(signal.SIGKILL)
    until(lambda: manager.state is KernelState.DEAD)
    with pytest.raises(KernelDiedError, match="SIGKILL"):
        client.execute("x", reply=True, timeout=20)
    assert not client.is_alive()
    manager.restart_kernel()
    client.wait_for_ready(timeout=20)
    assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_async_manager_makes_blocking_clients_too(make_manager: Callable[..., AsyncKernelManager]) -> None:
    """`blocking_client` is documented for both colours."""
    manager = make_manager()
    KernelManager.of(manager).start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=20)
    client.stop_channels()
    KernelManager.of(manager).shutdown_kernel(now=True)
    assert KernelManager.of(manager) is KernelManager.of(manager) is manager.twin


# ── where it is called ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_works_inside_a_running_loop(make_blocking: MakeManager, backend: str) -> None:
    """The loop stands still meanwhile, as documented, and nothing waits for it."""
    manager = make_blocking()

    async def main() -> None:
        manager.start_kernel()
        await manager.answered
        manager.shutdown_kernel()

    anyio.run(main, backend=backend)
    assert manager.state is KernelState.STOPPED


def test_it_works_in_many_threads_at_once(make_blocking: MakeManager) -> None:
    """Each with a manager of its own, and several with one: what is asked is done or refused, and all return."""
    shared = make_blocking(pending_shutdown="cancel")

    def live(_: int) -> KernelState:
        manager = make_blocking()
        manager.start_kernel()
        manager.answered.result(timeout=20)
        manager.shutdown_kernel(now=True)
        return manager.state

    def ask(number: int) -> str:
        wishes = (shared.start_kernel, shared.interrupt_kernel, shared.restart_kernel, shared.shutdown_kernel)
        try:
            wishes[number % 4]()
        except KernelError as error:
            return type(error).__name__
        return "done"

    with ThreadPoolExecutor(12) as threads:
        lives = threads.map(live, range(6))
        answers = threads.map(ask, range(24))
        assert list(lives) == [KernelState.STOPPED] * 6
        assert len(list(answers)) == 24
    shared.shutdown_kernel(now=True)
    assert not shared.has_kernel


def test_on_the_portals_thread_it_says_what_to_do(make_blocking: MakeManager) -> None:
    """It would wait for itself: a state callback that calls it gets an error, not a program that hangs."""
    manager = make_blocking()
    errors: list[str] = []

    def call(*_: object) -> None:
        try:
            manager.shutdown_kernel()
        except RuntimeError as error:
            errors.append(str(error))

    manager.add_state_callback(call)
    manager.start_kernel()
    until(lambda: errors)
    assert "AsyncKernelManager.shutdown_kernel would wait for itself on the portal's thread: await it" in errors[0]
    manager.asynchronous.cancel_start()
    manager.shutdown_kernel(now=True)


def test_it_works_again_when_the_portal_has_ended(make_blocking: MakeManager) -> None:
    """The kernel goes with it, and the next call has a new one."""
    manager = make_blocking()
    manager.start_kernel()
    Portal.shared().stop()
    assert not manager.is_alive()
    manager.restart_kernel()
    assert manager.is_alive()
    manager.shutdown_kernel(now=True)


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_undoes_a_start(make_blocking: MakeManager, gate: Gate) -> None:
    """When KeyboardInterrupt is raised nothing of the start is left, and another one is possible."""
    manager = make_blocking(manager_class=Gated)
    thread = interrupt_when(gate.reached.is_set)
    with pytest.raises(KeyboardInterrupt):
        manager.start_kernel()
    thread.join()
    assert (manager.state, manager.has_kernel) == (KernelState.STOPPED, False)
    assert manager.ready.cancelled()
    gate.open()
    manager.start_kernel()
    manager.shutdown_kernel(now=True)


def test_ctrl_c_while_a_kernel_stops_ends_it_by_force(make_blocking: MakeManager) -> None:
    """Who runs out of patience finds the kernel gone."""
    manager = make_blocking("deaf", "sturdy", shutdown_wait_time=3600)
    manager.start_kernel()
    manager.answered.result(timeout=20)
    thread = interrupt_when(lambda: manager.state is KernelState.STOPPING)
    with pytest.raises(KeyboardInterrupt):
        manager.shutdown_kernel()
    thread.join()
    assert (manager.state, manager.has_kernel) == (KernelState.STOPPED, False)


@pytest.fixture
def late_interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make Ctrl-C come when the next call is done and its caller does not know it yet."""

    def prepare() -> None:
        result = PortalTask[Any].result

        def interrupted(task: PortalTask[Any], timeout: float | None = None) -> Any:
            result(task, timeout)
            monkeypatch.setattr(PortalTask, "result", result)
            raise KeyboardInterrupt

        monkeypatch.setattr(PortalTask, "result", interrupted)

    return prepare


@pytest.mark.parametrize("wish", ["start", "restart"])
def test_ctrl_c_in_the_last_moment_leaves_no_kernel(
    make_blocking: MakeManager, late_interrupt: Callable[[], None], wish: str
) -> None:
    """Who is told that he interrupted it finds nothing running."""
    manager = make_blocking()
    if wish == "restart":
        manager.start_kernel()
    late_interrupt()
    with pytest.raises(KeyboardInterrupt):
        manager.start_kernel() if wish == "start" else manager.restart_kernel()
    assert (manager.state, manager.has_kernel) == (KernelState.STOPPED, False)
    manager.start_kernel()
    manager.shutdown_kernel(now=True)


# ── many kernels ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make_multi(tiny: Tiny) -> MakeMulti:
    """Make blocking multi-kernel managers that know tiny kernels."""

    def make(multi_class: type[MultiKernelManager] = MultiKernelManager, **traits: Any) -> MultiKernelManager:
        specs = {
            "tiny": tiny.spec(),
            "stubborn": tiny.spec("deaf", "sturdy"),
            "missing": KernelSpec(argv=["/no/such/kernel"]),
        }
        manager = KernelSpecManager(extra_specs=specs, kernel_dirs=[])
        return multi_class(kernel_spec_manager=manager, default_kernel_name="tiny", **traits)

    return make


def test_kernels_come_and_go_by_their_ids(make_multi: MakeMulti) -> None:
    """Everything that is asked of one kernel is asked by id."""
    multi = make_multi()
    first = multi.start_kernel()
    assert multi.start_kernel(kernel_name="tiny", kernel_id="mine") == "mine"
    assert multi.list_kernel_ids() == [first, "mine"]
    assert (len(multi), first in multi, "nobody" in multi) == (2, True, False)
    manager = multi.get_kernel(first)
    assert type(manager) is KernelManager
    assert manager is multi.get_kernel(first)
    assert (manager.parent, manager.kernel_id, manager.has_kernel) == (multi, first, True)
    manager.answered.result(timeout=20)
    assert multi.is_alive(first)
    multi.interrupt_kernel(first)
    multi.signal_kernel(first, 0)
    multi.update_env(kernel_id=first, env={"X": "1"})
    multi.add_restart_callback(first, print)
    multi.remove_restart_callback(first, print)
    multi.restart_kernel(first, now=True)
    assert multi.get_connection_info(first) == manager.get_connection_info()
    multi.cancel_start(first)
    multi.shutdown_kernel(first)
    assert not manager.has_kernel
    with pytest.raises(DuplicateKernelError):
        multi.start_kernel(kernel_id="mine")
    multi.kill_kernel("mine")
    assert len(multi) == 0
    for wish in (multi.shutdown_kernel, multi.restart_kernel, multi.interrupt_kernel, multi.is_alive, multi.get_kernel):
        with pytest.raises(KeyError, match="Kernel with id not found: nobody"):
            wish("nobody")
    with pytest.raises(KernelStartError):
        multi.start_kernel(kernel_name="missing")
    assert len(multi) == 0
    assert multi.remove_kernel("nobody") is None


def test_many_threads_use_one_manager(make_multi: MakeMulti) -> None:
    """Each starts a kernel of its own, restarts it and stops it; none disturbs another."""
    multi = make_multi()

    def live(_: int) -> str:
        kernel_id = multi.start_kernel()
        manager = multi.get_kernel(kernel_id)
        manager.answered.result(timeout=20)
        multi.restart_kernel(kernel_id, now=True)
        with manager.client() as client:
            status = client.execute("x", reply=True, timeout=20)["content"]["status"]
        multi.shutdown_kernel(kernel_id)
        return status

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(live, range(8))) == ["ok"] * 8
    assert len(multi) == 0


def test_sockets_of_a_kernel_by_its_id(make_multi: MakeMulti) -> None:
    """All five, each of its own kind; a kernel that is removed goes on."""
    import zmq

    with zmq.Context() as context:
        multi = make_multi(context=context)
        kernel_id = multi.start_kernel()
        kinds = {
            multi.connect_shell: zmq.DEALER,
            multi.connect_control: zmq.DEALER,
            multi.connect_stdin: zmq.DEALER,
            multi.connect_iopub: zmq.SUB,
            multi.connect_hb: zmq.REQ,
        }
        for connect, kind in kinds.items():
            with connect(kernel_id, identity=b"me") as sock:
                assert (sock.getsockopt(zmq.TYPE), sock.getsockopt(zmq.IDENTITY)) == (kind, b"me")
        removed = multi.remove_kernel(kernel_id)
        assert removed is not None
        assert removed.is_alive()
        removed.shutdown_kernel(now=True)


def test_a_stop_by_steps_by_id(make_multi: MakeMulti) -> None:
    """The documented three; the kernel stays listed until it is removed or shut down."""
    multi = make_multi()
    kernel_id = multi.start_kernel()
    multi.get_kernel(kernel_id).answered.result(timeout=20)
    multi.request_shutdown(kernel_id)
    multi.finish_shutdown(kernel_id, waittime=20)
    multi.cleanup_resources(kernel_id)
    assert not multi.is_alive(kernel_id)
    multi.shutdown_kernel(kernel_id)
    assert len(multi) == 0


def test_kernels_of_others_are_listed(make_multi: MakeMulti, tmp_path: Path) -> None:
    """Those whose connection files lie in `external_connection_dir`; they are talked to, and not stopped."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o700)
    owner, multi = make_multi(connection_dir=str(folder)), make_multi(external_connection_dir=str(folder))
    kernel_id = owner.start_kernel()
    owner.get_kernel(kernel_id).answered.result(timeout=20)
    (found,) = map(multi.get_kernel, multi.list_kernel_ids())
    assert (type(found), found.owns_kernel) == (KernelManager, False)
    with found.client() as client:
        assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
    multi.shutdown_all(now=True)
    assert owner.is_alive(kernel_id)
    owner.shutdown_all(now=True)
    assert multi.list_kernel_ids() == []


def test_the_end_of_a_with_stops_all(make_multi: MakeMulti) -> None:
    """No kernel is left."""
    with make_multi() as multi:
        managers = [multi.get_kernel(multi.start_kernel()) for _ in range(3)]
    assert (len(multi), [manager.has_kernel for manager in managers]) == (0, [False] * 3)


@pytest.mark.parametrize("name", ["manager.AsyncKernelManager", "blocking.KernelManager"])
@pytest.mark.parametrize("multi_class", [MultiKernelManager, None])
def test_a_kernels_manager_may_be_of_either_colour(
    make_multi: MakeMulti, multi_class: type[MultiKernelManager] | None, name: str
) -> None:
    """Both multi-kernel managers take both; what they return is of their own colour."""
    from cobnut_kernel.manager.multi import AsyncMultiKernelManager

    multi: Any = make_multi(multi_class or AsyncMultiKernelManager)
    multi.kernel_manager_class = f"cobnut_kernel.manager.{name}"
    if multi_class is None:
        kernel_id = asyncio.run(multi.start_kernel())
        assert isinstance(multi.get_kernel(kernel_id), AsyncKernelManager)
        asyncio.run(multi.shutdown_all(now=True))
    else:
        kernel_id = multi.start_kernel()
        assert type(multi.get_kernel(kernel_id)) is KernelManager
        multi.shutdown_all(now=True)
    assert len(multi) == 0


class Numbered(MultiKernelManager):
    """A multi-kernel manager that numbers its kernels, and prepares their starts."""

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Count."""
        del kwargs
        return f"kernel-{len(self) + 1}"

    def pre_start_kernel(self, kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[Any, str, str]:
        """Give every kernel a variable."""
        kwargs["env"] = {**os.environ, "PREPARED": "yes"}
        return super().pre_start_kernel(kernel_name, kwargs)


def test_what_may_be_overridden_is_asked(make_multi: MakeMulti) -> None:
    """Ids and starts are those of the derived class."""
    multi = make_multi(Numbered)
    assert multi.kernel_spec_manager is not None
    multi.kernel_spec_manager.extra_specs = {"tiny": KernelSpec(argv=["sh", "-c", "echo $PREPARED; exec sleep 60"])}
    assert [multi.start_kernel(), multi.start_kernel()] == ["kernel-1", "kernel-2"]
    until(lambda: multi.get_kernel("kernel-2").output_tail() == "yes\n")
    multi.shutdown_all(now=True)


@pytest.mark.parametrize("is_pending", [False, True])
def test_ctrl_c_in_the_last_moment_leaves_none_listed(
    make_multi: MakeMulti, late_interrupt: Callable[[], None], is_pending: bool
) -> None:
    """Nobody has its id: a kernel that was started all the same is taken back, a pending one too."""
    multi = make_multi(use_pending_kernels=is_pending)
    late_interrupt()
    with pytest.raises(KeyboardInterrupt):
        multi.start_kernel()
    assert len(multi) == 0


# ── pending kernels ─────────────────────────────────────────────────────────────────────────────────────────────────


class GatedMulti(MultiKernelManager):
    """A multi-kernel manager whose kernels wait at the gate of the test."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_manager_class = f"{__name__}.Gated"


def test_a_pending_start_and_a_pending_stop_return_at_once(make_multi: MakeMulti, gate: Gate) -> None:
    """`ready` is the outcome of each; while it is pending the documented methods raise RuntimeError."""
    gate.phase = "prepared"
    multi = make_multi(GatedMulti, use_pending_kernels=True)
    kernel_id = multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    assert not manager.ready.done()
    assert not multi.is_alive(kernel_id)
    assert gate.reached.wait(20)
    for wish in (multi.restart_kernel, multi.interrupt_kernel, multi.shutdown_kernel):
        with pytest.raises(PendingKernelError, match="pending state"):
            wish(kernel_id)
    gate.open()
    assert manager.ready.result(timeout=20) is None
    assert manager.ready.exception() is None
    assert multi.is_alive(kernel_id)
    stubborn = multi.get_kernel(multi.start_kernel(kernel_name="stubborn"))
    stubborn.shutdown_wait_time = 3600
    stubborn.answered.result(timeout=20)
    multi.shutdown_kernel(stubborn.kernel_id)
    assert not stubborn.ready.done()
    multi.shutdown_kernel(stubborn.kernel_id, now=True)
    stubborn.ready.result(timeout=20)
    multi.shutdown_all()
    assert len(multi) == 0


def test_a_pending_start_that_fails_stays_listed(make_multi: MakeMulti) -> None:
    """With its reason, until it is shut down."""
    multi = make_multi(use_pending_kernels=True)
    kernel_id = multi.start_kernel(kernel_name="missing")
    manager = multi.get_kernel(kernel_id)
    assert isinstance(manager.ready.exception(timeout=20), KernelStartError)
    assert multi.list_kernel_ids() == [kernel_id]
    multi.shutdown_kernel(kernel_id)
    manager.ready.result(timeout=20)
    until(lambda: len(multi) == 0)


@pytest.mark.parametrize("policy", ["wait", "cancel"])
def test_a_stop_of_a_pending_kernel_waits_or_cancels(make_multi: MakeMulti, gate: Gate, policy: str) -> None:
    """As `pending_shutdown` says, on the multi-kernel manager or on one; `shutdown_all` too."""
    multi = make_multi(GatedMulti, use_pending_kernels=True, pending_shutdown=policy)
    manager = multi.get_kernel(multi.start_kernel())
    assert gate.reached.wait(20)
    started = manager.ready
    multi.shutdown_kernel(manager.kernel_id)
    if policy == "wait":
        assert not started.done()
        gate.open()
    manager.ready.result(timeout=20)
    assert manager.ready is not started
    assert isinstance(started.exception(), KernelStartCancelled if policy == "cancel" else type(None))
    assert manager.state is KernelState.STOPPED
    until(lambda: len(multi) == 0)


def test_a_start_can_be_cancelled_from_another_thread(make_multi: MakeMulti, gate: Gate) -> None:
    """Who blocks in it gets KernelStartCancelled, and nothing is listed."""
    multi = make_multi(GatedMulti)

    def cancel() -> None:
        gate.reached.wait(20)
        (kernel_id,) = multi.list_kernel_ids()
        multi.cancel_start(kernel_id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(KernelStartCancelled):
        multi.start_kernel()
    thread.join()
    assert len(multi) == 0


def test_events_and_queue_are_those_inside(make_multi: MakeMulti) -> None:
    """Every phase of every kernel is told by id; the queue is there to look at."""
    multi = make_multi()
    told: list[tuple[str, str]] = []
    undo = multi.add_event_callback(lambda kernel_id, phase: told.append((kernel_id, str(phase.state))))
    kernel_id = multi.start_kernel()
    multi.get_kernel(kernel_id).answered.result(timeout=20)
    until(lambda: (kernel_id, "ready") in told)
    undo()
    assert multi.start_queue.waiting == ()
    multi.shutdown_all(now=True)
