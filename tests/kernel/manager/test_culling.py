"""Idle kernels are ended where that is asked for: which ones, and which never."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import Gate, GatedManager, Tiny

from cobnut_kernel.errors import NoSuchKernel
from cobnut_kernel.kernelspec import KernelSpecManager, own_spec
from cobnut_kernel.manager import culling
from cobnut_kernel.manager.culling import Activity, CullingPolicy, Standing, is_culled
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.messages import Header, Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cobnut_kernel.manager.manager import AsyncKernelManager

POLICY = CullingPolicy(idle_timeout=10.0)

# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing(10.0), True),
        (Standing(9.9), False),
        (Standing(99.0, is_pending=True), False),
        (Standing(99.0, is_busy=True), False),
        (Standing(99.0, is_kept=True), False),
        (Standing(99.0, connections=1), False),
    ],
)
def test_only_what_nobody_uses_is_ended(standing: Standing, expected: bool) -> None:
    """Idle for long enough, and neither pending, busy, kept nor attached."""
    assert is_culled(standing, POLICY) is expected


@pytest.mark.parametrize(
    ("policy", "standing", "expected"),
    [
        (CullingPolicy(), Standing(1e9), False),
        (CullingPolicy(-1), Standing(1e9), False),
        (CullingPolicy(10, culls_busy=True), Standing(99.0, is_busy=True), True),
        (CullingPolicy(10, culls_busy=True), Standing(99.0, is_busy=True, connections=1), False),
        (CullingPolicy(10, culls_connected=True), Standing(99.0, connections=1), True),
        (CullingPolicy(10, culls_connected=True), Standing(99.0, connections=1, is_busy=True), False),
        (CullingPolicy(10, culls_busy=True, culls_connected=True), Standing(99.0, is_kept=True), False),
    ],
)
def test_a_policy_may_be_harder_but_keeps_what_is_kept(
    policy: CullingPolicy, standing: Standing, expected: bool
) -> None:
    """Without a time nothing is ended; busy and attached kernels are where the policy says so, kept ones never."""
    assert is_culled(standing, policy) is expected


# ── use ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Kernel:
    """What a kernel publishes, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.activity = Activity(clock=lambda: self.now)

    def publish(self, msg_type: str, parent: tuple[str, str] | None, **content: Any) -> None:
        """Publish a message of a request, given by its id and its type."""
        header = Header(parent[0], parent[1], "user") if parent is not None else None
        self.activity.hear(Message(Header("x", msg_type, "kernel"), header, {}, content))

    def status(self, state: str, msg_id: str, msg_type: str = "execute_request") -> None:
        """Publish a status."""
        self.publish("status", (msg_id, msg_type), execution_state=state)


def test_a_kernel_is_busy_while_a_request_is_open() -> None:
    """Each request by its own id: with subshells several are open, in any order."""
    kernel = Kernel()
    assert kernel.activity.execution_state == "idle"
    for msg_id in "ab":
        kernel.status("busy", msg_id)
    kernel.status("idle", "a")
    assert (kernel.activity.is_busy, kernel.activity.execution_state) == (True, "busy")
    kernel.now = 50.0
    assert (kernel.activity.idle_seconds, kernel.activity.silent_seconds) == (0.0, 50.0)
    kernel.status("idle", "b")
    kernel.status("idle", "b")
    assert not kernel.activity.is_busy
    kernel.now = 55.0
    assert kernel.activity.idle_seconds == 5.0


def test_questions_about_the_kernel_are_no_use_of_it() -> None:
    """Whoever watches it asks all the time; a completion shows somebody who types, and makes nothing busy."""
    kernel = Kernel()
    kernel.now = 7.0
    for msg_type in (
        "kernel_info_request",
        "comm_info_request",
        "usage_request",
        "interrupt_request",
        "shutdown_request",
    ):
        kernel.status("busy", msg_type, msg_type)
    kernel.publish("status", None, execution_state="starting")
    assert (kernel.activity.is_busy, kernel.activity.idle_seconds) == (False, 7.0)
    kernel.status("busy", "c", "complete_request")
    assert (kernel.activity.is_busy, kernel.activity.idle_seconds) == (False, 0.0)
    kernel.status("busy", "w", "comm_msg")
    assert kernel.activity.is_busy


def test_what_a_task_in_the_background_prints_is_use() -> None:
    """After its cell has ended as well."""
    kernel = Kernel()
    kernel.status("busy", "a")
    kernel.status("idle", "a")
    kernel.now = 9.0
    before = kernel.activity.last_activity
    kernel.publish("stream", ("a", "execute_request"), text="tick")
    assert kernel.activity.idle_seconds == 0.0
    assert kernel.activity.last_activity >= before > 1.6e9


def test_another_process_owes_nothing() -> None:
    """What the former one left open will never be closed (#1395)."""
    kernel = Kernel()
    kernel.status("busy", "a")
    kernel.now = 9.0
    kernel.activity.begin_anew()
    assert (kernel.activity.is_busy, kernel.activity.idle_seconds) == (False, 0.0)


# ── with kernels ────────────────────────────────────────────────────────────────────────────────────────────────────


class CulledManager(GatedManager):
    """A manager whose gate is that of its multi-kernel manager."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gate=kwargs["parent"].gate, **kwargs)


class Multi(AsyncMultiKernelManager):
    """A multi-kernel manager with a gate for its kernels."""

    gate = Gate("nowhere")


SOON: dict[str, Any] = {"cull_idle_timeout": 0.05, "cull_interval": 0.01}
"""Traits of a manager that ends idle kernels at once."""

LATER: dict[str, Any] = {**SOON, "cull_idle_timeout": 3600}
"""Traits of one that will do so when its time is set."""


@pytest.fixture
def make_multi(tiny: Tiny) -> Callable[..., Multi]:
    """Make multi-kernel managers of tiny kernels."""

    def make(metadata: dict[str, Any] | None = None, **traits: Any) -> Multi:
        spec = tiny.spec()
        spec.metadata = metadata or {}
        specs = KernelSpecManager(extra_specs={"tiny": spec, "own": own_spec()}, kernel_dirs=[])
        multi = Multi(kernel_spec_manager=specs, default_kernel_name="tiny", **traits)
        multi.kernel_manager_class = f"{__name__}.CulledManager"
        return multi

    return make


async def started(multi: Multi, **options: Any) -> AsyncKernelManager:
    """Start a kernel that answers."""
    manager = multi.get_kernel(await multi.start_kernel(**options))
    await manager.answered
    return manager


async def heard(multi: Multi, manager: AsyncKernelManager) -> None:
    """Wait until the kernel's iopub is heard: a subscription takes effect some time after the kernel answers."""
    await eventually(lambda: str(manager.kernel_id) in multi._culler._listeners)
    client = multi._culler._listeners[str(manager.kernel_id)]._client
    assert client is not None
    await client.wait_for_ready()


async def looked_at(multi: Multi, manager: AsyncKernelManager, times: int = 3) -> None:
    """Wait until the culler has looked at a kernel so often since it was idle for long enough."""
    await eventually(lambda: str(manager.kernel_id) in multi._culler._listeners)
    listener = multi._culler._listeners[str(manager.kernel_id)]
    await eventually(lambda: listener.activity.silent_seconds > multi.cull_idle_timeout)
    looks, original = [0], listener.standing

    def counted() -> Standing:
        looks[0] += 1
        return original()

    listener.standing = counted
    await eventually(lambda: looks[0] >= times)


@pytest.mark.anyio
@pytest.mark.usefixtures("runtime")
class TestWithKernels:
    """With kernels that nobody uses."""

    @pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
    async def test_an_idle_kernel_is_ended(
        self, make_multi: Callable[..., Multi], caplog: pytest.LogCaptureFixture, anyio_backend: str
    ) -> None:
        """It is asked to end like any other, is listed no more, and the log says why."""
        del anyio_backend
        multi = make_multi(**LATER)
        manager = await started(multi)
        multi.cull_idle_timeout = 0.05
        await eventually(lambda: len(multi) == 0)
        assert (manager.state, manager.death) == (KernelState.STOPPED, None)
        assert "is ended: nobody used it for 0 seconds" in caplog.text

    async def test_nothing_is_ended_and_nobody_listens_by_default(self, make_multi: Callable[..., Multi]) -> None:
        """It is off unless asked for."""
        multi = make_multi()
        manager = await started(multi)
        assert multi.activity(str(manager.kernel_id)) is None
        assert multi._culler._listeners == {}
        await multi.shutdown_all()

    async def test_nobody_listens_to_kernels_that_are_gone(self, make_multi: Callable[..., Multi]) -> None:
        """Those whose start fails at once, and those that are taken off the list while they start."""
        multi = make_multi(**LATER)
        for _ in range(20):
            with pytest.raises(NoSuchKernel):
                await multi.start_kernel(kernel_name="nonesuch")
            multi.remove_kernel(multi.start_soon(kernel_name="nonesuch"))
        await Portal.shared().run(anyio.lowlevel.checkpoint)  # what was asked of the portal before is done
        assert multi._culler._listeners == {}

    async def test_another_kernel_with_the_same_id_is_listened_to(self, make_multi: Callable[..., Multi]) -> None:
        """The end of the one that had it before makes nobody deaf to it."""
        multi = make_multi(**LATER)
        before = await started(multi, kernel_id="id")
        multi.remove_kernel("id")
        manager = await started(multi, kernel_id="id")
        multi._forget("id", before)
        await Portal.shared().run(anyio.lowlevel.checkpoint)
        assert multi._culler._listeners["id"].manager is manager
        await before.shutdown_kernel()
        await multi.shutdown_all()

    async def test_a_kept_kernel_stays_until_it_is_kept_no_more(self, make_multi: Callable[..., Multi]) -> None:
        """Somebody wants it, and says so."""
        multi = make_multi(**LATER)
        manager = await started(multi)
        manager.keep = True
        multi.cull_idle_timeout = 0.05
        await looked_at(multi, manager)
        assert manager.state is KernelState.READY
        manager.keep = False
        await eventually(lambda: len(multi) == 0)

    async def test_an_attached_kernel_stays_until_its_client_goes(self, make_multi: Callable[..., Multi]) -> None:
        """A client with open channels looks at it; where that does not count, it is ended all the same."""
        multi = make_multi(**LATER, cull_connected=False)
        manager = await started(multi)
        async with manager.client():
            multi.cull_idle_timeout = 0.05
            await looked_at(multi, manager)
            assert manager.state is KernelState.READY
        await eventually(lambda: len(multi) == 0)
        multi.cull_connected, multi.cull_idle_timeout = True, 3600
        manager = await started(multi)
        async with manager.client():
            multi.cull_idle_timeout = 0.05
            await eventually(lambda: len(multi) == 0)

    async def test_a_busy_kernel_stays_until_its_cell_ends(self, make_multi: Callable[..., Multi]) -> None:
        """Whoever sent the cell, and although nobody is attached."""
        multi = make_multi(**LATER, cull_connected=True)
        manager = await started(multi)
        kernel_id = str(manager.kernel_id)
        await heard(multi, manager)
        async with manager.client() as client:
            client.execute("sleep")
            activity = multi.activity(kernel_id)
            assert activity is not None
            await eventually(lambda: activity.execution_state == "busy")
        multi.cull_idle_timeout = 0.05
        await looked_at(multi, manager)
        assert manager.state is KernelState.READY
        await manager.interrupt_kernel()
        await eventually(lambda: len(multi) == 0)

    async def test_busy_kernels_can_be_ended_too(self, make_multi: Callable[..., Multi]) -> None:
        """Where that is asked for: after as long a silence."""
        multi = make_multi(**LATER, cull_connected=True, cull_busy=True)
        manager = await started(multi)
        async with manager.client() as client:
            client.execute("sleep")
            multi.cull_idle_timeout = 0.05
            await eventually(lambda: len(multi) == 0)

    async def test_a_kernel_that_does_not_answer_is_busy(
        self, make_multi: Callable[..., Multi], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A cell that began before anybody listened is noticed: the kernel is asked before it is ended."""
        monkeypatch.setattr(culling, "ANSWER_TIME", 0.05)
        multi = make_multi(cull_interval=0.01)
        manager = await started(multi, kernel_name="own")
        async with manager.client() as client:
            waiting = client.run("import time\nprint('asleep', flush=True)\ntime.sleep(3600)")
            async for message in waiting:
                if message.msg_type == "stream":
                    break
        multi.cull_idle_timeout = 0.05
        kernel_id = str(manager.kernel_id)
        await eventually(lambda: multi.activity(kernel_id) is not None)
        activity = multi.activity(kernel_id)
        assert activity is not None
        noted = [0]

        def note() -> None:
            noted[0] += 1
            Activity.note(activity)

        monkeypatch.setattr(activity, "note", note)
        await eventually(lambda: noted[0] >= 2, "it was never asked")
        assert manager.state is KernelState.READY
        assert not activity.is_busy
        await manager.interrupt_kernel()
        await eventually(lambda: len(multi) == 0)

    async def test_a_pending_kernel_is_left_alone(self, make_multi: Callable[..., Multi]) -> None:
        """What starts is in use; what died is taken off the list in time."""
        multi = make_multi(**SOON, use_pending_kernels=True, autorestart=False)
        multi.gate = Gate("launched")
        manager = multi.get_kernel(await multi.start_kernel())
        await anyio.to_thread.run_sync(multi.gate.reached.wait)
        await looked_at(multi, manager)
        assert manager.state is KernelState.PROVISIONING
        manager.keep = True
        multi.gate.open()
        await manager.answered
        await manager.signal_kernel(9)
        await eventually(lambda: manager.state is KernelState.DEAD)
        manager.keep = False
        await eventually(lambda: len(multi) == 0)
        assert manager.state is KernelState.DEAD

    async def test_a_restart_begins_anew(self, make_multi: Callable[..., Multi]) -> None:
        """The new kernel has nothing open, and is listened to as the old one was."""
        multi = make_multi(cull_idle_timeout=3600)
        manager = await started(multi)
        activity = multi.activity(str(manager.kernel_id))
        assert activity is not None
        await heard(multi, manager)
        async with manager.client() as client:
            client.execute("sleep")
            await eventually(lambda: activity.is_busy)
            await manager.restart_kernel(now=True)
            await manager.answered
            assert not activity.is_busy
            await heard(multi, manager)
            client.execute("sleep")
            await eventually(lambda: activity.is_busy)
        await multi.shutdown_all(now=True)

    @pytest.mark.parametrize(
        ("metadata", "is_ended"), [({"cull_idle_timeout": 0.05}, True), ({"cull_idle_timeout": 0}, False)]
    )
    async def test_a_kernelspec_has_its_own_time(
        self, make_multi: Callable[..., Multi], metadata: dict[str, Any], is_ended: bool
    ) -> None:
        """Where culling is on its metadata counts: another time, or never."""
        multi = make_multi(metadata, cull_idle_timeout=3600 if is_ended else 0.05, cull_interval=0.01)
        manager = multi.get_kernel(await multi.start_kernel())
        if is_ended:
            await eventually(lambda: len(multi) == 0)
        else:
            await manager.answered
            await looked_at(multi, manager)
            assert manager.state is KernelState.READY
            await multi.shutdown_all()

    async def test_one_that_cannot_be_considered_spares_no_other(
        self, make_multi: Callable[..., Multi], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What goes wrong with one kernel is logged, and the others are looked at; odd metadata count for nothing."""
        multi = make_multi({"cull_idle_timeout": "soon"}, **LATER)
        first, second = await started(multi), await started(multi)

        def fail() -> Standing:
            raise LookupError("of the test")

        monkeypatch.setattr(multi._culler._listeners[str(first.kernel_id)], "standing", fail)
        multi.cull_idle_timeout = 0.05
        await eventually(lambda: multi.list_kernel_ids() == [first.kernel_id])
        assert "could not be culled" in caplog.text
        assert second.state is KernelState.STOPPED
        await multi.shutdown_all()

    async def test_it_can_be_switched_on_and_off(self, make_multi: Callable[..., Multi]) -> None:
        """While kernels run: they are listened to from then on, and no longer."""
        multi = make_multi(cull_interval=0.01)
        manager = await started(multi)
        multi.cull_idle_timeout = 3600.0
        await eventually(lambda: multi.activity(str(manager.kernel_id)) is not None)
        multi.cull_idle_timeout = 0
        await eventually(lambda: multi.activity(str(manager.kernel_id)) is None)
        multi.cull_idle_timeout = 0.05
        await eventually(lambda: len(multi) == 0)

    async def test_a_removed_kernel_is_no_longer_listened_to(self, make_multi: Callable[..., Multi]) -> None:
        """Whoever took it is responsible for it."""
        multi = make_multi(**LATER)
        manager = await started(multi)
        multi.remove_kernel(str(manager.kernel_id))
        await eventually(lambda: multi.activity(str(manager.kernel_id)) is None)
        assert manager.state is KernelState.READY
        await manager.shutdown_kernel()


def test_the_traits_are_documented_names(tmp_path: Path) -> None:
    """They can be configured by the section of the manager."""
    from traitlets.config import Config

    config = Config({"AsyncMultiKernelManager": {"cull_idle_timeout": 60, "cull_busy": True}})
    multi = AsyncMultiKernelManager(config=config, connection_dir=str(tmp_path))
    assert (multi.cull_idle_timeout, multi.cull_interval, multi.cull_busy, multi.cull_connected) == (
        60,
        300,
        True,
        False,
    )
