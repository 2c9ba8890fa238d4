"""Many kernels by their ids."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import zmq
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import Gate, GatedManager, Tiny
from traitlets.config import Config

from cobnut_kernel.errors import (
    DuplicateKernelError,
    KernelStartCancelled,
    KernelStartError,
    NoSuchKernel,
    PendingKernelError,
)
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState, Phase
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from pathlib import Path

    from cobnut_kernel.provisioning.base import KernelProvisionerBase

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

MakeMulti = "Callable[..., AsyncMultiKernelManager]"


class MultiGatedManager(GatedManager):
    """A manager whose gate is that of its multi-kernel manager."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gate=kwargs["parent"].gate, **kwargs)


class Multi(AsyncMultiKernelManager):
    """A multi-kernel manager with a gate for its kernels, open at first."""

    gate = Gate("nowhere")


@pytest.fixture
def make_multi(tiny: Tiny) -> MakeMulti:
    """Make multi-kernel managers that know a tiny kernel, one that never stops when asked, and a broken one."""

    def make(**traits: Any) -> Multi:
        specs = {
            "tiny": tiny.spec(),
            "stubborn": tiny.spec("deaf", "sturdy"),
            "missing": KernelSpec(argv=["/no/such/kernel"]),
        }
        multi = Multi(
            kernel_spec_manager=KernelSpecManager(extra_specs=specs, kernel_dirs=[]),
            default_kernel_name="tiny",
            **traits,
        )
        multi.kernel_manager_class = f"{__name__}.MultiGatedManager"
        return multi

    return make


# ── without pending kernels ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_kernels_come_and_go_by_their_ids(make_multi: MakeMulti, anyio_backend: str) -> None:
    """A start returns the id of a running kernel; it is listed until it is shut down."""
    del anyio_backend
    multi = make_multi()
    first = await multi.start_kernel()
    second = await multi.start_kernel(kernel_name="tiny", kernel_id="mine")
    assert second == "mine"
    assert multi.list_kernel_ids() == [first, "mine"]
    assert (len(multi), first in multi, "nobody" in multi) == (2, True, False)
    manager = multi.get_kernel(first)
    assert (manager.kernel_id, manager.has_kernel, manager.ready.done()) == (first, True, True)
    assert await multi.is_alive(first)
    await manager.answered
    await multi.interrupt_kernel(first)
    await multi.signal_kernel(first, 0)
    await multi.restart_kernel(first, now=True)
    await multi.shutdown_kernel(first)
    assert not manager.has_kernel
    assert multi.list_kernel_ids() == ["mine"]
    await multi.shutdown_kernel("mine", now=True)
    assert len(multi) == 0


async def test_an_unknown_id_is_a_key_error(make_multi: MakeMulti) -> None:
    """Whatever is asked of a kernel that is not there says so; removing it is no error."""
    multi = make_multi()
    for wish in (multi.shutdown_kernel, multi.restart_kernel, multi.interrupt_kernel, multi.is_alive):
        with pytest.raises(KeyError, match="Kernel with id not found: nobody"):
            await wish("nobody")
    assert multi.remove_kernel("nobody") is None


async def test_an_id_is_given_once(make_multi: MakeMulti) -> None:
    """A second kernel of an id is refused, and the first one goes on."""
    multi = make_multi()
    await multi.start_kernel(kernel_id="mine")
    with pytest.raises(DuplicateKernelError, match="mine already"):
        await multi.start_kernel(kernel_id="mine")
    assert await multi.is_alive("mine")
    await multi.shutdown_all(now=True)


async def test_a_removed_kernel_is_only_taken_off_the_list(make_multi: MakeMulti) -> None:
    """Its manager is returned, and whoever took it stops it."""
    multi = make_multi()
    kernel_id = await multi.start_kernel()
    manager = multi.remove_kernel(kernel_id)
    assert manager is not None
    assert (kernel_id in multi, manager.has_kernel) == (False, True)
    await manager.shutdown_kernel(now=True)


async def test_a_failed_start_is_not_listed(make_multi: MakeMulti) -> None:
    """The error is raised, and no id is left of it."""
    multi = make_multi()
    with pytest.raises(KernelStartError, match="/no/such/kernel is not there"):
        await multi.start_kernel(kernel_name="missing")
    with pytest.raises(NoSuchKernel):
        await multi.start_kernel(kernel_name="unknown")
    assert len(multi) == 0


async def test_a_cancelled_start_is_not_listed(make_multi: MakeMulti) -> None:
    """Who gives up waiting for a start finds nothing left of it."""
    multi = make_multi()
    multi.gate = Gate("launched")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(multi.start_kernel)
            await anyio.to_thread.run_sync(multi.gate.reached.wait)
            assert len(multi) == 1
            scope.cancel()
    assert len(multi) == 0


async def test_shutdown_all_waits_for_a_start_on_its_way(make_multi: MakeMulti) -> None:
    """Without pending kernels a start that somebody awaits is not taken away: it returns its id, then it is stopped."""
    multi, ids = make_multi(), list[str]()
    multi.gate = Gate("prepared")

    async def start() -> None:
        ids.append(await multi.start_kernel())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        await anyio.to_thread.run_sync(multi.gate.reached.wait)
        (manager,) = map(multi.get_kernel, multi.list_kernel_ids())
        started = manager.ready
        tasks.start_soon(multi.shutdown_all)
        await eventually(lambda: manager.ready is not started)
        assert manager.state is KernelState.PROVISIONING
        multi.gate.open()
    assert len(ids) == 1
    assert len(multi) == 0


# ── pending kernels ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_pending_start_returns_at_once(make_multi: MakeMulti) -> None:
    """The id is there before the process; `ready` is the start's, awaited by whoever needs it."""
    multi = make_multi(use_pending_kernels=True)
    multi.gate = Gate("before")
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    assert not manager.ready.done()
    assert manager.kernel_id == kernel_id
    assert not await multi.is_alive(kernel_id)
    for wish in (multi.restart_kernel, multi.interrupt_kernel, multi.shutdown_kernel):
        with pytest.raises(PendingKernelError):
            await wish(kernel_id)
    multi.gate.open()
    await manager.ready
    assert manager.ready.result() is None
    assert await multi.is_alive(kernel_id)
    await multi.shutdown_kernel(kernel_id, now=True)
    await manager.ready
    assert manager.state is KernelState.STOPPED
    await eventually(lambda: len(multi) == 0)


async def test_a_pending_stop_returns_at_once(make_multi: MakeMulti) -> None:
    """The kernel stays listed until it has stopped; `ready` is the stop's from the moment of the call."""
    multi = make_multi(use_pending_kernels=True)
    kernel_id = await multi.start_kernel(kernel_name="stubborn")
    manager = multi.get_kernel(kernel_id)
    manager.shutdown_wait_time = 3600
    await manager.answered
    await multi.shutdown_kernel(kernel_id)
    assert not manager.ready.done()
    assert manager.state is KernelState.STOPPING
    assert kernel_id in multi
    with pytest.raises(PendingKernelError, match=r"pending state \(stopping\)"):
        await multi.interrupt_kernel(kernel_id)
    await multi.shutdown_kernel(kernel_id, now=True)
    await manager.ready
    await eventually(lambda: kernel_id not in multi)


async def test_a_failed_pending_start_stays_listed_with_its_reason(make_multi: MakeMulti) -> None:
    """The error is `ready`'s; the kernel is dead until it is shut down."""
    multi = make_multi(use_pending_kernels=True)
    kernel_id = await multi.start_kernel(kernel_name="missing")
    manager = multi.get_kernel(kernel_id)
    with pytest.raises(KernelStartError):
        await manager.ready
    assert multi.list_kernel_ids() == [kernel_id]
    assert manager.state is KernelState.DEAD
    assert "is not there" in str(manager.death)
    await multi.shutdown_kernel(kernel_id)
    await manager.ready
    await eventually(lambda: len(multi) == 0)


async def test_a_pending_kernel_can_be_cancelled(make_multi: MakeMulti) -> None:
    """With `pending_shutdown` "cancel" a shutdown undoes the start."""
    multi = make_multi(use_pending_kernels=True, pending_shutdown="cancel")
    multi.gate = Gate("launched")
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    await anyio.to_thread.run_sync(multi.gate.reached.wait)
    started = manager.ready
    await multi.shutdown_kernel(kernel_id)
    await manager.ready
    assert started.cancelled()
    assert manager.state is KernelState.STOPPED
    await eventually(lambda: len(multi) == 0)


def test_a_thread_without_a_loop_starts_a_kernel_soon(make_multi: MakeMulti) -> None:
    """`start_soon` returns the id at once, whatever `use_pending_kernels` is; the kernel comes up by itself."""
    multi = make_multi()
    ids: list[str] = []
    thread = threading.Thread(target=lambda: ids.append(multi.start_soon(kernel_name="tiny", kernel_id="soon")))
    thread.start()
    thread.join()
    assert ids == multi.list_kernel_ids() == ["soon"]
    manager = multi.get_kernel("soon")
    manager.answered.result(timeout=20)
    assert manager.state is KernelState.READY
    missing = multi.start_soon(kernel_name="missing")
    assert isinstance(multi.get_kernel(missing).ready.exception(timeout=20), KernelStartError)
    anyio.run(multi.shutdown_all)
    assert len(multi) == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_pending_kernels_are_awaited_on_any_loop_and_in_any_thread(
    make_multi: MakeMulti, anyio_backend: str
) -> None:
    """The same `ready` is awaited by tasks and blocked on by a thread; a restart and a stop have theirs."""
    del anyio_backend
    multi = make_multi(use_pending_kernels=True)
    multi.gate = Gate("launched")
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    outcomes: list[object] = []

    async def wait() -> None:
        outcomes.append(await manager.ready)

    async def block() -> None:
        outcomes.append(await anyio.to_thread.run_sync(manager.ready.result))

    async with anyio.create_task_group() as tasks:
        for waiting in (wait, block, wait):
            tasks.start_soon(waiting)
        await anyio.to_thread.run_sync(multi.gate.reached.wait)
        assert (outcomes, manager.ready.done()) == ([], False)
        multi.gate.open()
    assert outcomes == [None, None, None]
    await multi.restart_kernel(kernel_id, now=True)
    assert manager.ready.result() is None
    await multi.shutdown_kernel(kernel_id)
    await manager.ready
    assert manager.state is KernelState.STOPPED
    await eventually(lambda: len(multi) == 0)


async def test_a_pending_shutdown_is_joined_and_hurried(make_multi: MakeMulti) -> None:
    """While it stops a second shutdown joins the first, and one that shall be now kills at once; neither raises."""
    multi = make_multi(use_pending_kernels=True)
    kernel_id = await multi.start_kernel(kernel_name="stubborn")
    manager = multi.get_kernel(kernel_id)
    manager.shutdown_wait_time = 3600
    await manager.answered
    await multi.shutdown_kernel(kernel_id)
    stop = manager.ready
    await multi.shutdown_kernel(kernel_id)
    assert (manager.ready is stop, stop.done()) == (True, False)
    await multi.kill_kernel(kernel_id)
    assert manager.ready is stop
    await stop
    await eventually(lambda: kernel_id not in multi)


async def test_waiting_for_a_pending_start_before_the_stop(make_multi: MakeMulti) -> None:
    """With `wait` a shutdown returns at once, the start comes to its end, then the kernel is stopped."""
    multi = make_multi(use_pending_kernels=True, pending_shutdown="wait")
    multi.gate = Gate("launched")
    manager = multi.get_kernel(await multi.start_kernel())
    await anyio.to_thread.run_sync(multi.gate.reached.wait)
    started = manager.ready
    await multi.shutdown_kernel(str(manager.kernel_id))
    assert (manager.ready is started, manager.state) == (False, KernelState.PROVISIONING)
    multi.gate.open()
    assert await started is None
    await manager.ready
    await eventually(lambda: len(multi) == 0)


# ── all of them ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_all_are_stopped_at_the_same_time(make_multi: MakeMulti) -> None:
    """Twenty kernels start at once and stop at once; no id is left."""
    multi = make_multi()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(multi.start_kernel)
    managers = [multi.get_kernel(kernel_id) for kernel_id in multi.list_kernel_ids()]
    assert len(managers) == 20
    for manager in managers:
        await manager.answered
    await multi.shutdown_all()
    assert [manager.state for manager in managers] == [KernelState.STOPPED] * 20
    assert len(multi) == 0


async def test_one_deadline_holds_for_all(make_multi: MakeMulti) -> None:
    """What has not stopped by then is killed."""
    multi = make_multi(shutdown_deadline=0.1)
    for name in ("stubborn", "tiny", "stubborn"):
        await multi.start_kernel(kernel_name=name)
    managers = [multi.get_kernel(kernel_id) for kernel_id in multi.list_kernel_ids()]
    for manager in managers:
        manager.shutdown_wait_time = 3600
        await manager.answered
    await multi.shutdown_all()
    assert [manager.state for manager in managers] == [KernelState.STOPPED] * 3
    assert len(multi) == 0


async def test_the_second_call_kills_at_once(make_multi: MakeMulti) -> None:
    """Who asks again with `now` waits no longer, and the first call returns as well."""
    multi = make_multi(shutdown_deadline=3600)
    manager = multi.get_kernel(await multi.start_kernel(kernel_name="stubborn"))
    manager.shutdown_wait_time = 3600
    await manager.answered
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(multi.shutdown_all)
        await eventually(lambda: manager.state is KernelState.STOPPING)
        await multi.shutdown_all(now=True)
    assert manager.state is KernelState.STOPPED


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_cancelling_the_stop_of_all_kills_them(make_multi: MakeMulti, anyio_backend: str) -> None:
    """Who runs out of patience finds all of them gone."""
    del anyio_backend
    multi = make_multi(shutdown_deadline=3600)
    manager = multi.get_kernel(await multi.start_kernel(kernel_name="stubborn"))
    manager.shutdown_wait_time = 3600
    await manager.answered
    with anyio.move_on_after(0.05):
        await multi.shutdown_all()
    assert manager.state is KernelState.STOPPED
    assert len(multi) == 0


@pytest.mark.parametrize(("now", "policy"), [(True, "raise"), (False, "cancel"), (True, "wait")])
async def test_starts_on_their_way_are_cancelled_where_that_is_asked_for(
    make_multi: MakeMulti, now: bool, policy: str
) -> None:
    """With `now`, or by the trait, pending starts do not hold up the end."""
    multi = make_multi(use_pending_kernels=True, pending_shutdown=policy)
    multi.gate = Gate("launched")
    manager = multi.get_kernel(await multi.start_kernel())
    await anyio.to_thread.run_sync(multi.gate.reached.wait)
    started = manager.ready
    await multi.shutdown_all(now=now)
    assert started.cancelled()
    assert (manager.state, len(multi)) == (KernelState.STOPPED, 0)


async def test_a_start_that_hangs_is_cancelled_at_the_deadline(make_multi: MakeMulti) -> None:
    """Pending starts are waited for, but not for ever."""
    multi = make_multi(use_pending_kernels=True, shutdown_deadline=0.1)
    multi.gate = Gate("before")
    manager = multi.get_kernel(await multi.start_kernel())
    started = manager.ready
    await multi.shutdown_all()
    with pytest.raises(KernelStartCancelled):
        await started
    assert (manager.state, len(multi)) == (KernelState.STOPPED, 0)


async def test_nothing_to_stop_is_no_error(make_multi: MakeMulti) -> None:
    """Without kernels, and with dead ones, all are stopped at once."""
    multi = make_multi(autorestart=False)
    await multi.shutdown_all()
    manager = multi.get_kernel(await multi.start_kernel())
    await manager.answered
    assert manager.provisioner is not None
    await manager.signal_kernel(9)
    await eventually(lambda: manager.state is KernelState.DEAD)
    await multi.shutdown_all()
    assert len(multi) == 0


# ── by their ids ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kernel_is_stopped_phase_by_phase_by_its_id(make_multi: MakeMulti) -> None:
    """The documented calls leave it on the list: whoever makes them removes it."""
    multi = make_multi()
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)
    await manager.answered
    await multi.request_shutdown(kernel_id)
    await multi.finish_shutdown(kernel_id, 5.0, 0.1)
    await multi.cleanup_resources(kernel_id)
    assert (manager.state, manager.has_kernel, multi.list_kernel_ids()) == (KernelState.STOPPED, False, [kernel_id])
    assert multi.remove_kernel(kernel_id) is manager
    for wish in (multi.request_shutdown, multi.finish_shutdown, multi.cleanup_resources, multi.kill_kernel):
        with pytest.raises(KeyError):
            await wish(kernel_id)


async def test_events_of_all_kernels_come_with_their_ids(make_multi: MakeMulti) -> None:
    """Every phase when it begins, and again with its length; who takes his callback back hears no more."""
    multi = make_multi()
    events: list[tuple[str, str]] = []
    lengths: list[float] = []

    def note(kernel_id: str, phase: Phase) -> None:
        if phase.seconds is None:
            events.append((kernel_id, str(phase.state)))
        else:
            lengths.append(phase.seconds)

    undo = multi.add_event_callback(note)
    for kernel_id in ("a", "b"):
        await multi.start_kernel(kernel_id=kernel_id)
        await multi.get_kernel(kernel_id).answered
        await multi.kill_kernel(kernel_id)
    states = ("queued", "provisioning", "starting", "ready", "stopping", "stopped")
    expected = [(kernel_id, state) for kernel_id in ("a", "b") for state in states]
    await eventually(lambda: events == expected, str(events))
    assert len(lengths) == 10
    assert all(seconds >= 0 for seconds in lengths)
    undo()
    await multi.kill_kernel(await multi.start_kernel(kernel_id="c"))
    assert events == expected


async def test_kernels_that_die_are_restarted_by_default(make_multi: MakeMulti) -> None:
    """As documented; callbacks are added and removed by id, and the trait switches it off for all."""
    multi = make_multi()
    told: list[str] = []
    kernel_id = await multi.start_kernel()
    manager = multi.get_kernel(kernel_id)

    def unwanted() -> None:
        told.append("unwanted")

    multi.add_restart_callback(kernel_id, lambda: told.append("restart"))
    multi.add_restart_callback(kernel_id, unwanted, "restart")
    multi.remove_restart_callback(kernel_id, unwanted)
    await manager.answered
    ready = manager.ready
    await multi.signal_kernel(kernel_id, 9)
    await eventually(lambda: manager.ready is not ready)
    await manager.answered
    await eventually(lambda: told == ["restart"])
    multi.autorestart = False
    other = multi.get_kernel(await multi.start_kernel())
    assert (manager.autorestart, other.autorestart) == (True, False)
    await multi.shutdown_all()
    with pytest.raises(KeyError):
        multi.add_restart_callback(kernel_id, unwanted)


async def test_a_kernels_connection_is_known_by_its_id(make_multi: MakeMulti) -> None:
    """Its fields, and sockets to each of its channels, of the context that was given; whoever asked closes them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    multi = make_multi(context=context)
    kernel_id = await multi.start_kernel()
    info = multi.get_connection_info(kernel_id)
    connection = multi.get_kernel(kernel_id).connection_info
    assert connection is not None
    assert (info["ip"], info["key"]) == (connection.ip, connection.key)
    for channel in ("shell", "iopub", "stdin", "control", "hb"):
        made = getattr(multi, f"connect_{channel}")(kernel_id)
        assert made.LAST_ENDPOINT.decode().rstrip("\0") == connection.url(Channel(channel))
        made.close()
    context.term()
    multi.update_env(kernel_id="nobody", env={"X": "1"})
    await multi.shutdown_all()


async def test_the_environment_of_the_next_restart_can_be_changed(make_multi: MakeMulti) -> None:
    """By the kernel's id, where the start was given one."""
    multi = make_multi()
    multi.kernel_spec_manager.extra_specs = {"shown": KernelSpec(argv=["sh", "-c", 'echo "$X"; exec sleep 60'])}
    kernel_id = await multi.start_kernel(kernel_name="shown", env={**os.environ, "X": "1"})
    manager = multi.get_kernel(kernel_id)
    await eventually(lambda: manager.output_tail() == "1\n")
    multi.update_env(kernel_id=kernel_id, env={"X": "2"})
    await multi.restart_kernel(kernel_id, now=True)
    await eventually(lambda: manager.output_tail() == "2\n", manager.output_tail())
    await multi.shutdown_all(now=True)


class Hooked(AsyncMultiKernelManager):
    """A multi-kernel manager that has its own ideas of names and ids."""

    def new_kernel_id(self, **options: Any) -> str:
        """Make one of the options."""
        return f"{options['kernel_name']}-{len(self)}"

    def pre_start_kernel(self, kernel_name: str | None, kwargs: dict[str, Any]) -> tuple[AsyncKernelManager, str, str]:
        """Take what is not for the start."""
        mark = kwargs.pop("mark")
        manager, name, kernel_id = super().pre_start_kernel(kernel_name, kwargs)
        manager.shutdown_wait_time = mark
        return manager, name, kernel_id


async def test_the_hooks_of_a_start_are_called(tiny: Tiny, tmp_path: Path) -> None:
    """A subclass decides about the id and takes part in every start; connection files lie where that is asked for."""
    specs = KernelSpecManager(extra_specs={"tiny": tiny.spec()}, kernel_dirs=[])
    folder = tmp_path / "files"
    folder.mkdir(mode=0o700)
    multi = Hooked(kernel_spec_manager=specs, default_kernel_name="tiny", connection_dir=str(folder))
    assert await multi.start_kernel(mark=7) == "tiny-0"
    assert await multi.start_kernel(mark=8, kernel_id="mine") == "mine"
    assert [multi.get_kernel(each).shutdown_wait_time for each in multi.list_kernel_ids()] == [7, 8]
    assert sorted(path.name for path in folder.iterdir()) == ["kernel-mine.json", "kernel-tiny-0.json"]
    await multi.shutdown_all()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_multi_kernel_manager_can_be_entered(make_multi: MakeMulti, anyio_backend: str) -> None:
    """What was started meanwhile is stopped at the end of the block."""
    del anyio_backend
    async with make_multi() as multi:
        await multi.start_kernel()
    assert len(multi) == 0


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_kernels_are_configured_with_their_manager(runtime: object, tiny: Tiny) -> None:
    """Section names are the documented ones, and reach manager and provisioner."""
    config = Config(
        {
            "AsyncMultiKernelManager": {"default_kernel_name": "tiny", "pending_shutdown": "wait"},
            "AsyncKernelManager": {"shutdown_wait_time": 7.0},
            "LocalProvisioner": {"transport": "tcp"},
        }
    )
    specs = KernelSpecManager(extra_specs={"tiny": tiny.spec()}, kernel_dirs=[])
    multi = AsyncMultiKernelManager(config=config, kernel_spec_manager=specs)
    manager = multi.get_kernel(await multi.start_kernel())
    assert type(manager) is AsyncKernelManager
    assert (manager.shutdown_wait_time, manager.pending_shutdown) == (7.0, "wait")
    provisioner: KernelProvisionerBase | None = manager.provisioner
    assert provisioner is not None
    assert provisioner.get_shutdown_wait_time(7.0) == 7.0
    assert manager.connection_info is not None
    assert manager.connection_info.transport == "tcp"
    await manager.answered
    await multi.shutdown_all()


def test_importing_the_managers_imports_nothing_heavy() -> None:
    """What the terminal imports before its first screen brings no loop, no sockets and no search for packages."""
    heavy = {
        "asyncio",
        "ssl",
        "email",
        "importlib.metadata",
        "jupyter_core",
        "zmq",
        "anyio",
        "orjson",
        "IPython",
        "textual",
    }
    script = f"import sys, cobnut_kernel.manager.multi; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=30)
    assert done.stdout == "set()\n"
