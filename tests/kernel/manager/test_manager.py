"""One kernel's manager: every way in, every way out, and nothing left of either."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from itertools import pairwise
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from tests.kernel.leftovers import eventually, is_running, processes_of_group
from tests.kernel.manager.conftest import PHASES, Gate, GatedManager, States, Tiny, pid_of
from traitlets import TraitError

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import (
    KernelDiedError,
    KernelError,
    KernelStartCancelled,
    KernelStartError,
    NoSuchKernel,
    PendingKernelError,
)
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager import answering, stopping
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal, settled
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

MakeManager = "Callable[..., AsyncKernelManager]"


def files() -> list[str]:
    """What lies in our folder besides the record."""
    folder = OwnerDirectory._process_directory
    return sorted({path.name for path in folder.path.iterdir()} - {"owner.json"}) if folder is not None else []


# ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_kernel_starts_answers_and_stops(make_manager: MakeManager, tiny: Tiny, anyio_backend: str) -> None:
    """From any loop: `start_kernel` returns when the process runs, `answered` comes, the stop leaves nothing."""
    del anyio_backend
    manager = make_manager()
    states = States(manager)
    assert (manager.has_kernel, manager.state, manager.ready.done()) == (False, KernelState.STOPPED, False)
    await manager.start_kernel()
    assert manager.ready.done()
    assert manager.has_kernel
    assert await manager.is_alive()
    assert manager.kernel_id
    await manager.answered
    assert manager.state is KernelState.READY
    assert files() == ["1-1", "1-2", "1-3", "1-4", "1-5", f"kernel-{manager.kernel_id}.json"] or len(files()) == 6
    pid = pid_of(manager)
    await manager.shutdown_kernel()
    await manager.ready
    assert not psutil.pid_exists(pid)
    assert not await manager.is_alive()
    assert (manager.has_kernel, manager.death, files()) == (False, None, [])
    await states.until("queued", "provisioning", "starting", "ready", "stopping", "stopped")
    assert tiny.heard() == ["interrupt_request", "shutdown_request"]


async def test_a_kernel_can_be_started_again(make_manager: MakeManager) -> None:
    """After a stop the same manager starts another kernel, with the same id and another key."""
    manager = make_manager()
    await manager.start_kernel()
    first, kernel_id = manager.connection_info, manager.kernel_id
    assert first is not None
    await manager.shutdown_kernel(now=True)
    await manager.start_kernel()
    assert manager.connection_info is not None
    assert manager.connection_info.key != first.key
    assert manager.kernel_id == kernel_id
    await manager.answered
    await manager.shutdown_kernel()


async def test_options_of_the_start_reach_the_kernel(make_manager: MakeManager, tmp_path: Path) -> None:
    """Name, id, folder, environment and arguments are those that are given."""
    manager = make_manager(kernel_name="other")
    manager.kernel_spec_manager.extra_specs = {
        "shown": KernelSpec(argv=["sh", "-c", 'echo "$0 $X $PWD"; exec sleep 60'], env={"X": "${Y}!"})
    }
    await manager.start_kernel(
        kernel_name="shown",
        kernel_id="my-id",
        cwd=str(tmp_path),
        extra_arguments=["more"],
        env={**os.environ, "Y": "why"},
    )
    assert manager.kernel_id == "my-id"
    await eventually(lambda: manager.output_tail() == f"more why! {tmp_path}\n", manager.output_tail())
    await manager.shutdown_kernel(now=True)


async def test_what_is_asked_of_no_kernel_is_refused(make_manager: MakeManager) -> None:
    """Without a kernel nothing can be interrupted, signalled, restarted or connected to; a stop is no error."""
    manager = make_manager()
    for wish in (manager.interrupt_kernel(), manager.signal_kernel(0)):
        with pytest.raises(RuntimeError, match="no kernel is running"):
            await wish
    with pytest.raises(RuntimeError, match="never started"):
        await manager.restart_kernel()
    with pytest.raises(KernelError, match="connection is not known yet"):
        manager.client()
    assert not await manager.is_alive()
    assert manager.output_tail() == ""
    await manager.shutdown_kernel()
    await manager.kill_kernel()
    assert manager.ready.done()


async def test_a_running_kernel_is_not_started_twice(make_manager: MakeManager) -> None:
    """A second start is refused, and disturbs nothing."""
    manager = make_manager()
    await manager.start_kernel()
    with pytest.raises(KernelError, match="runs already"):
        await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()


def broken(tmp_path: Path) -> dict[str, tuple[KernelSpec | None, dict[str, Any], type[Exception], str]]:
    """Starts that fail: spec, options, error and what it says."""
    good = KernelSpec(argv=["sleep", "60"])
    missing = {"kernel_provisioner": {"provisioner_name": "slurm"}}
    return {
        "bad argv": (KernelSpec(argv=["/no/such/kernel", "-f"]), {}, KernelStartError, "/no/such/kernel is not there"),
        "no program": (KernelSpec(argv=[str(tmp_path)]), {}, KernelStartError, "may not be used"),
        "no folder": (good, {"cwd": "/no/such/folder"}, KernelStartError, "there is no such folder"),
        "no spec": (None, {}, NoSuchKernel, "no kernel named 'broken'"),
        "no provisioner": (KernelSpec(argv=["x"], metadata=missing), {}, NoSuchKernel, "provisioner 'slurm'"),
        "odd option": (good, {"colour": "blue"}, KernelStartError, "colour"),
        "no encryption": (good, {"transport_encryption": "required"}, KernelStartError, "'broken' must be encrypted"),
    }


@pytest.mark.parametrize("fault", broken(__import__("pathlib").Path("/")))
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    make_manager: MakeManager, fault: str, tmp_path: Path
) -> None:
    """The caller, `ready`, `answered` and the report all tell the reason; another start is possible."""
    spec, options, error, reason = broken(tmp_path)[fault]
    manager = make_manager()
    states = States(manager)
    good = manager.kernel_spec_manager.extra_specs
    manager.kernel_spec_manager.extra_specs = {**good, **({"broken": spec} if spec is not None else {})}
    with pytest.raises(error, match=reason):
        await manager.start_kernel(kernel_name="broken", **options)
    assert isinstance(manager.ready.exception(), error)
    with pytest.raises(error):
        await manager.answered
    assert manager.death is not None
    assert reason in str(manager.death)
    assert (manager.has_kernel, files()) == (False, [])
    await states.until("queued", "provisioning", "dead")
    manager.kernel_name = "tiny"
    await manager.start_kernel()
    assert manager.death is None
    await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("options", [{"kernel_id": 5}, {"kernel_name": 7}], ids=["id", "name"])
async def test_a_start_whose_names_are_of_no_use_never_begins(
    make_manager: MakeManager, options: dict[str, Any]
) -> None:
    """It is refused in the call, and so is an adoption; the kernel is not pending then, and can be started."""
    manager = make_manager()
    for begin in (lambda: manager.start_kernel(**options), lambda: manager.adopt(options)):
        with pytest.raises(TraitError, match="expected a unicode string"):
            await begin()
        assert (manager.state, manager.phases, manager.ready.done()) == (KernelState.STOPPED, (), False)
    await manager.start_kernel()
    await manager.shutdown_kernel()


async def test_what_zmq_cannot_encrypt_is_known_before_a_start(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trait takes the policies of the field, in any case, and refuses those that would fail; off is the default."""
    assert make_manager().transport_encryption == "disabled"
    assert make_manager(transport_encryption="AUTO").transport_encryption == "auto"
    with pytest.raises(TraitError):
        make_manager(transport_encryption="always")
    monkeypatch.setattr("zmq.has", {"curve": False}.__getitem__)
    with pytest.raises(TraitError, match="install pyzmq with CURVE"):
        make_manager(transport_encryption="required")
    assert make_manager(transport_encryption="disabled").transport_encryption == "disabled"


async def test_a_full_disk_fails_the_start(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the connection file cannot be written there is no kernel, and the system's reason is told."""

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    manager = make_manager()
    with monkeypatch.context() as patch:
        patch.setattr("cobnut_kernel.provisioning.files.write_connection_file", disk_full)
        with pytest.raises(KernelStartError, match=r"connection file .* cannot be written: No space left"):
            await manager.start_kernel()
    assert files() == []


async def test_a_vanished_folder_is_made_again(make_manager: MakeManager, runtime: Path) -> None:
    """Where the runtime folder is removed, at a logout say, a restart makes it again."""
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    rmtree(runtime / "cobnut")
    await manager.restart_kernel(now=True)
    await manager.answered
    await manager.shutdown_kernel()
    assert files() == []


# ── death ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kernel_that_is_killed_from_outside_is_reported(make_manager: MakeManager) -> None:
    """The report names the signal; state, callback, clients and files follow; a restart brings the kernel back."""
    manager = make_manager()
    states = States(manager)
    await manager.start_kernel()
    await manager.answered
    client, connection = manager.client(), manager.connection_info
    async with client:
        running = client.run("sleep")
        os.kill(pid_of(manager), signal.SIGKILL)
        with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
            await running.reply()
        await states.until("queued", "provisioning", "starting", "ready", "dead")
        assert manager.death is not None
        assert (str(manager.death), manager.death.signal, manager.death.exit_code) == (
            "killed by SIGKILL",
            "SIGKILL",
            None,
        )
        assert manager.death.phase is KernelState.READY
        assert (manager.has_kernel, files()) == (False, [])
        await manager.restart_kernel()
        assert manager.connection_info == connection
        assert (await client.run("x").reply()).content["status"] == "ok"
    await manager.shutdown_kernel()


async def test_a_kernel_that_fails_at_import_shows_its_last_words(make_manager: MakeManager) -> None:
    """Exit code and the last 40 lines of stderr are in the report and in the error of who waited for the answer."""
    manager = make_manager("broken")
    await manager.start_kernel()
    with pytest.raises(KernelDiedError, match=r"before it answered: exit code 1(.|\n)*kernel_of_the_day"):
        await manager.answered
    assert manager.death is not None
    assert (manager.death.exit_code, manager.death.signal, manager.death.phase) == (1, None, KernelState.STARTING)
    lines = manager.death.stderr_tail.splitlines()
    assert (len(lines), lines[0]) == (40, "line 61")
    assert "line 0\n" in manager.output_tail()


async def test_a_kernel_that_never_answers_is_ended(make_manager: MakeManager) -> None:
    """After the time for its start it is dead, with the reason."""
    manager = make_manager("mute", startup_timeout=0.2)
    await manager.start_kernel()
    pid = pid_of(manager)
    with pytest.raises(KernelDiedError, match="did not answer"):
        await manager.answered
    assert manager.death is not None
    assert "within 0.2 seconds" in str(manager.death)
    assert manager.death.signal == "SIGKILL"
    assert not psutil.pid_exists(pid)
    assert files() == []


async def test_a_kernel_that_is_busy_with_others_is_up(make_manager: MakeManager) -> None:
    """Whatever it answers to whomever shows that it is up: a cell that came before our question is no silence."""
    manager = make_manager("selfish")
    await manager.start_kernel()
    async with manager.client() as client:
        for _ in range(3):  # our subscription may come too late for the first one
            assert (await client.run("x").reply()).content["status"] == "ok"
            with anyio.move_on_after(0.2):
                await manager.answered
    assert manager.state is KernelState.READY
    await manager.shutdown_kernel()


async def test_a_kernel_is_asked_on_both_channels(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is busy on shell may answer on control."""
    monkeypatch.setattr(answering, "ASK_AGAIN", 0.02)
    manager = make_manager("shy")
    await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()


async def test_what_a_dead_kernel_left_running_ends(make_manager: MakeManager, tiny: Tiny) -> None:
    """Background children of a kernel that dies go with it."""
    manager = make_manager("parent")
    await manager.start_kernel()
    await manager.answered
    child = tiny.child()
    os.kill(pid_of(manager), signal.SIGKILL)
    await eventually(lambda: manager.state is KernelState.DEAD)
    await eventually(lambda: not is_running(child))


NAMELESS = [(signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}")] if hasattr(signal, "SIGRTMIN") else []


@pytest.mark.parametrize(("signum", "name"), [(signal.SIGSEGV, "SIGSEGV"), *NAMELESS])
async def test_a_dead_kernel_is_stopped_without_ado(make_manager: MakeManager, signum: int, name: str) -> None:
    """Stopping what is dead is no error, and the report stays; a signal without a name has a number."""
    manager = make_manager()
    await manager.start_kernel()
    os.kill(pid_of(manager), signum)
    await eventually(lambda: manager.state is KernelState.DEAD)
    await manager.shutdown_kernel()
    await manager.ready
    assert str(manager.death) == f"killed by {name}"
    with pytest.raises(KernelError, match="no kernel is running"):
        await manager.interrupt_kernel()


# ── interrupt and signal ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("interrupt_mode", ["signal", "message"])
async def test_a_cell_is_interrupted_as_the_spec_says(
    make_manager: MakeManager, tiny: Tiny, interrupt_mode: str
) -> None:
    """By SIGINT to the group, or by an interrupt_request on control."""
    manager = make_manager(interrupt_mode=interrupt_mode)
    await manager.start_kernel()
    await manager.answered
    async with manager.client() as client:
        running = client.run("sleep")
        await eventually(lambda: any("sleep" in line for line in tiny.lines))
        await manager.interrupt_kernel()
        assert (await running.reply()).content["status"] == "error"
    assert tiny.heard() == ["execute_request", "SIGINT" if interrupt_mode == "signal" else "interrupt_request"]
    await manager.shutdown_kernel()


async def test_an_interrupt_waits_for_the_first_answer(make_manager: MakeManager, tiny: Tiny) -> None:
    """A signal would end a kernel that is still importing; it gets it when it can bear it."""
    manager = make_manager("slow", interrupt_mode="signal")
    await manager.start_kernel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.interrupt_kernel)
        await eventually(lambda: "up" in tiny.lines)
        await anyio.lowlevel.checkpoint()
        assert tiny.heard() == []
        tiny.go()
    await eventually(lambda: tiny.heard() == ["SIGINT"])
    assert manager.state is KernelState.READY
    await manager.shutdown_kernel()


async def test_an_interrupt_of_a_kernel_that_dies_first_tells_of_its_death(make_manager: MakeManager) -> None:
    """Who waits to interrupt is told that there is nothing left to interrupt."""
    manager = make_manager("broken")
    await manager.start_kernel()
    with pytest.raises(KernelError, match=r"ended before it answered|no kernel is running"):
        await manager.interrupt_kernel()


async def test_a_signal_reaches_the_group(make_manager: MakeManager, tiny: Tiny) -> None:
    """Kernel and children get it."""
    manager = make_manager("parent")
    await manager.start_kernel()
    await manager.answered
    child = tiny.child()
    await manager.signal_kernel(signal.SIGSTOP)
    for pid in (pid_of(manager), child):
        await eventually(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    await manager.shutdown_kernel(now=True)
    await eventually(lambda: not is_running(child))


# ── restart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("now", [False, True])
async def test_a_restarted_kernel_is_where_it_was(make_manager: MakeManager, tiny: Tiny, now: bool) -> None:
    """Another process with the same id and connection; clients go on with it, background children do not."""
    manager = make_manager("parent")
    states = States(manager)
    await manager.start_kernel()
    await manager.answered
    before, connection, child, answered = pid_of(manager), manager.connection_info, tiny.child(), manager.answered
    async with manager.client() as client:
        waiting = client.run("sleep")
        await eventually(lambda: any("sleep" in line for line in tiny.lines))
        await manager.restart_kernel(now=now)
        assert manager.ready.done()
        assert manager.answered is not answered
        await manager.answered
        assert (await client.run("x").reply()).content["status"] == "ok"
        if now:
            with pytest.raises(KernelDiedError, match="restarted"):
                await waiting.reply()
    assert manager.connection_info == connection
    assert pid_of(manager) != before
    await eventually(lambda: processes_of_group(before) == [])
    await eventually(lambda: not is_running(child))
    up = ("provisioning", "starting", "ready")
    await states.until("queued", *up, "restarting", *up)
    told = [line for line in tiny.lines if line.startswith("shutdown_request")]
    assert told == ([] if now else ["shutdown_request {'restart': True}"])
    await manager.shutdown_kernel()


async def test_a_restart_can_move_the_kernel(make_manager: MakeManager) -> None:
    """With `newports` the connection is another one; the clients turn to it."""
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    before = manager.connection_info
    assert before is not None
    async with manager.client() as client:
        await manager.restart_kernel(newports=True)
        assert manager.connection_info is not None
        assert (manager.connection_info.ip, manager.connection_info.key) != (before.ip, before.key)
        assert (await client.run("x").reply()).content["status"] == "ok"
    await manager.shutdown_kernel()


async def test_options_last_through_restarts_and_can_be_replaced(make_manager: MakeManager, tmp_path: Path) -> None:
    """A restart starts as the start did, but for what it says otherwise."""
    manager = make_manager()
    manager.kernel_spec_manager.extra_specs = {"tiny": KernelSpec(argv=["sh", "-c", 'echo "$X $PWD"; exec sleep 60'])}
    await manager.start_kernel(cwd=str(tmp_path), env={**os.environ, "X": "1"})
    await manager.restart_kernel(now=True, env={**os.environ, "X": "2"})
    await eventually(lambda: manager.output_tail() == f"2 {tmp_path}\n", manager.output_tail())
    await manager.shutdown_kernel(now=True)


async def test_a_restart_that_fails_leaves_nothing(make_manager: MakeManager, tmp_path: Path) -> None:
    """Where the kernel cannot come back the old one is gone too, and the reason is told."""
    manager = make_manager()
    await manager.start_kernel()
    with pytest.raises(KernelStartError, match="no such folder"):
        await manager.restart_kernel(now=True, cwd=str(tmp_path / "gone"))
    assert manager.state is KernelState.DEAD
    assert (manager.has_kernel, files()) == (False, [])
    await manager.restart_kernel(cwd=str(tmp_path))
    await manager.answered
    await manager.shutdown_kernel()


# ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("habits", "heard", "last"),
    [
        ((), ["interrupt_request", "shutdown_request"], 0),
        (("deaf",), ["interrupt_request", "shutdown_request", "SIGTERM"], 0),
        (("deaf", "sturdy"), ["interrupt_request", "shutdown_request", "SIGTERM"], -9),
    ],
)
async def test_a_stop_gets_more_resolute(
    make_manager: MakeManager, tiny: Tiny, habits: tuple[str, ...], heard: list[str], last: int
) -> None:
    """A request, half the time; SIGTERM, the other half; SIGKILL to the group."""
    manager = make_manager(*habits, "parent", shutdown_wait_time=2.0)
    await manager.start_kernel()
    await manager.answered
    child, provisioner = tiny.child(), manager.provisioner
    assert provisioner is not None
    await manager.shutdown_kernel()
    assert tiny.heard() == heard
    assert await Portal.shared().run(provisioner.poll) == last
    await eventually(lambda: not is_running(child))
    assert files() == []


async def test_the_signal_mode_interrupts_by_signal_before_the_request(make_manager: MakeManager, tiny: Tiny) -> None:
    """What runs is interrupted first, so that the request is heard."""
    manager = make_manager(interrupt_mode="signal")
    await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()
    assert sorted(tiny.heard()) == ["SIGINT", "shutdown_request"]


async def test_a_stop_now_asks_nobody(make_manager: MakeManager, tiny: Tiny) -> None:
    """With `now`, and by `kill_kernel`, the kernel is killed at once."""
    for stop in (lambda manager: manager.shutdown_kernel(now=True), AsyncKernelManager.kill_kernel):
        manager = make_manager()
        await manager.start_kernel()
        await manager.answered
        await stop(manager)
        assert manager.state is KernelState.STOPPED
    assert tiny.heard() == []


async def test_a_kernel_that_has_not_answered_is_not_asked_either(make_manager: MakeManager, tiny: Tiny) -> None:
    """A starting kernel has nothing to save: it gets SIGTERM, and who waited for its answer is told."""
    manager = make_manager("slow")
    await manager.start_kernel()
    await eventually(lambda: "up" in tiny.lines)
    answered = manager.answered
    await manager.shutdown_kernel()
    with pytest.raises(KernelStartCancelled, match="stopped before it answered"):
        await answered
    assert tiny.heard() == ["SIGTERM"]


async def test_a_second_stop_joins_the_first(make_manager: MakeManager) -> None:
    """Both return when the kernel has stopped; a third one with `now` kills at once."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(manager.shutdown_kernel)
        await eventually(lambda: manager.state is KernelState.STOPPING)
        with pytest.raises(PendingKernelError, match=r"pending state \(stopping\)"):
            await manager.restart_kernel()
        with pytest.raises(PendingKernelError):
            await manager.start_kernel()
        await manager.shutdown_kernel(now=True)
    assert manager.state is KernelState.STOPPED


async def test_who_joins_a_stop_and_gives_up_leaves_it_alone(make_manager: MakeManager) -> None:
    """Only the one who began a stop can cancel it."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(manager.shutdown_kernel)
        await eventually(lambda: manager.state is KernelState.STOPPING)
        with anyio.move_on_after(0.05):
            await manager.shutdown_kernel()
        assert manager.state is KernelState.STOPPING
        await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_stop_that_is_cancelled_is_carried_out_by_force(make_manager: MakeManager, anyio_backend: str) -> None:
    """Who runs out of patience finds the kernel gone."""
    del anyio_backend
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    with anyio.move_on_after(0.05):
        await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert (manager.has_kernel, files()) == (False, [])


async def test_a_process_that_cannot_be_killed_keeps_nobody_waiting(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that hangs in the system is given up after a while, with a warning."""
    monkeypatch.setattr(stopping, "KILL_TIME", 0.05)
    manager = make_manager()
    await manager.start_kernel()
    pid = pid_of(manager)
    with monkeypatch.context() as patch:

        async def fail_to_kill(*_: object, **__: object) -> None: ...

        patch.setattr(LocalProvisioner, "kill", fail_to_kill)
        await manager.shutdown_kernel(now=True)
    assert manager.state is KernelState.STOPPED
    assert "does not end although it was killed" in caplog.text
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not psutil.pid_exists(pid))


async def test_a_failing_cleanup_is_logged_and_the_stop_ends(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be cleaned up does not keep the kernel from being stopped."""
    manager = make_manager()
    await manager.start_kernel()
    with monkeypatch.context() as patch:

        async def fail(*_: object) -> None:
            raise LookupError("of the test")

        patch.setattr(LocalProvisioner, "cleanup", fail)
        await manager.shutdown_kernel(now=True)
    assert manager.state is KernelState.STOPPED
    assert "failed to clean up" in caplog.text
    assert manager.provisioner is not None
    await Portal.shared().run(manager.provisioner.cleanup)


class Rebellious(LocalProvisioner):
    """A provisioner that fails at whatever it is asked to do, once its kernel runs."""

    async def _fail(self, *_: object, **__: object) -> Any:
        raise LookupError("of the test")

    def _fail_at_once(self, *_: object, **__: object) -> Any:
        raise LookupError("of the test")

    shutdown_requested = terminate = cleanup = _fail
    get_shutdown_wait_time = get_stable_start_time = _fail_at_once


class RebelliousManager(AsyncKernelManager):
    """A manager whose provisioner fails."""

    def create_provisioner(self) -> Rebellious:
        """Make it."""
        return Rebellious(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)


@pytest.mark.parametrize("end", ["stop", "death", "restart"])
async def test_a_provisioner_that_fails_keeps_no_end_from_its_end(
    make_manager: MakeManager, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is logged, the next step follows: a stop ends in a kill, a death is told, the manager goes on."""
    manager = make_manager(manager_class=RebelliousManager, shutdown_wait_time=0.1, autorestart=True)
    await manager.start_kernel()
    await manager.answered
    pid, ready = pid_of(manager), manager.ready
    if end == "death":
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: manager.ready is not ready)
        await manager.answered
        assert "does not say when a start is stable" in caplog.text
    elif end == "restart":
        await manager.restart_kernel()
        await manager.answered
    await manager.shutdown_kernel()
    assert (manager.state, manager.has_kernel, manager.ready.result()) == (KernelState.STOPPED, False, None)
    assert not psutil.pid_exists(pid)
    for step in ("ask it to end", "terminate it", "clean up"):
        assert f"failed to {step}" in caplog.text
    assert manager.provisioner is not None
    await Portal.shared().run(LocalProvisioner.cleanup, manager.provisioner)


async def test_a_provisioner_that_cannot_wait_is_logged(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The death is told, without a code; why nobody knows it is in the log."""
    wait = LocalProvisioner.wait

    async def fail(self: LocalProvisioner) -> int | None:
        await wait(self)
        raise LookupError("of the test")

    monkeypatch.setattr(LocalProvisioner, "wait", fail)
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    os.kill(pid_of(manager), signal.SIGKILL)
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert str(manager.death) == "how it ended is not known"
    assert "failed to learn how it ended" in caplog.text
    assert "LookupError: of the test" in caplog.text


async def test_the_end_of_the_portal_ends_the_kernel(make_manager: MakeManager) -> None:
    """Nothing lives longer than what it lives on; the manager can be used again."""
    manager = make_manager("deaf", "sturdy", "parent")
    await manager.start_kernel()
    await manager.answered
    pid = pid_of(manager)
    await anyio.to_thread.run_sync(Portal.shared().stop)
    assert manager.state is KernelState.STOPPED
    await eventually(lambda: processes_of_group(pid) == [])
    await manager.restart_kernel()
    await manager.answered
    await manager.shutdown_kernel(now=True)


# ── pending ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=PHASES)
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    """A gate at each phase of a start in turn."""
    gate = Gate(request.param)
    yield gate
    gate.open()


@pytest.fixture
def gated(make_manager: MakeManager, gate: Gate) -> AsyncKernelManager:
    """The manager of a kernel that waits at the gate."""
    return make_manager(manager_class=GatedManager, gate=gate)


def nothing_is_left(manager: AsyncKernelManager) -> bool:
    """No process but the guard, and no file."""
    return not manager.has_kernel and files() == [] and psutil.Process().children() == guards()


def guards() -> list[psutil.Process]:
    """The guards among our children."""
    return [child for child in psutil.Process().children() if "guard_process.py" in " ".join(child.cmdline())]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_cancelling_who_awaits_a_start_undoes_it(
    gated: AsyncKernelManager, gate: Gate, anyio_backend: str
) -> None:
    """At every phase: when the caller goes on nothing is left, and the futures tell of the cancellation."""
    del anyio_backend
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gated.start_kernel)
            await anyio.to_thread.run_sync(gate.reached.wait)
            assert gated.state is KernelState.PROVISIONING
            scope.cancel()
    assert gated.state is KernelState.STOPPED
    assert gated.ready.cancelled()
    assert gated.answered.cancelled()
    assert nothing_is_left(gated)
    gate.open()
    await gated.start_kernel()
    await gated.answered
    await gated.shutdown_kernel(now=True)


async def test_a_start_is_cancelled_by_anybody(gated: AsyncKernelManager, gate: Gate) -> None:
    """`cancel_start` undoes it at every phase; who awaits the start gets KernelStartCancelled."""
    task = gated.begin_start()
    gate.reached.wait()
    gated.cancel_start()
    with pytest.raises(KernelStartCancelled):
        await gated.ready
    with pytest.raises(KernelStartCancelled):
        task.result()
    assert gated.state is KernelState.STOPPED
    assert nothing_is_left(gated)
    gated.cancel_start()


@pytest.mark.parametrize("again", [False, True])
async def test_a_start_that_is_cancelled_in_its_last_moment_is_undone(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Although it had succeeded: who was cancelled finds no kernel, after a restart neither."""
    manager = make_manager()
    if again:
        await manager.start_kernel()
    scope = anyio.CancelScope()

    async def join_too_late(future: Any) -> None:
        await settled(future)
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr("cobnut_kernel.manager.manager.join", join_too_late)
    with scope:
        await (manager.restart_kernel() if again else manager.start_kernel())
    assert scope.cancelled_caught
    assert manager.state is KernelState.STOPPED
    assert nothing_is_left(manager)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_start_that_fails_at_any_phase_is_undone(make_manager: MakeManager, phase: str) -> None:
    """Whatever raises, nothing is left, and the error is told as what it is for the user: a failed start."""
    gate = Gate(phase, LookupError("of the test"))
    manager = make_manager(manager_class=GatedManager, gate=gate)
    with pytest.raises(KernelStartError, match=r"could not be started: .*of the test") as caught:
        await manager.start_kernel()
    assert isinstance(caught.value.__cause__, LookupError)
    assert manager.state is KernelState.DEAD
    assert nothing_is_left(manager)


async def test_a_pending_kernel_refuses_by_default(gated: AsyncKernelManager, gate: Gate) -> None:
    """While it starts, restart, interrupt, another start and a stop raise PendingKernelError; the start goes on."""
    gated.begin_start()
    gate.reached.wait()
    ready = gated.ready
    for wish in (gated.restart_kernel, gated.interrupt_kernel, gated.shutdown_kernel, gated.start_kernel):
        with pytest.raises(PendingKernelError, match=r"pending state \(provisioning\)"):
            await wish()
    assert gated.ready is ready
    gate.open()
    await gated.ready
    await gated.answered
    await gated.shutdown_kernel()


@pytest.mark.parametrize("now", [False, True])
async def test_a_stop_can_wait_for_the_start(gated: AsyncKernelManager, gate: Gate, now: bool) -> None:
    """With `wait` the start comes to its end first; `ready` is the stop's from the beginning."""
    gated.pending_shutdown = "wait"
    start = gated.begin_start()
    gate.reached.wait()
    started = gated.ready
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: gated.shutdown_kernel(now=now))
        await eventually(lambda: gated.ready is not started)
        assert gated.state is KernelState.PROVISIONING
        gate.open()
    assert started.result() is None
    start.result()
    await gated.ready
    assert gated.state is KernelState.STOPPED
    assert nothing_is_left(gated)


async def test_a_stop_can_cancel_the_start(gated: AsyncKernelManager, gate: Gate) -> None:
    """With `cancel` the start is undone: its future says so, and `ready` is the stop's, which succeeds."""
    gated.pending_shutdown = "cancel"
    start = gated.begin_start()
    gate.reached.wait()
    started = gated.ready
    await gated.shutdown_kernel()
    assert started.cancelled()
    with pytest.raises(KernelStartCancelled):
        start.result()
    await gated.ready
    assert gated.state is KernelState.STOPPED
    assert nothing_is_left(gated)


async def test_a_restart_is_cancelled_like_a_start(make_manager: MakeManager) -> None:
    """On the way up again a kernel is pending too; cancelled, neither the old nor the new one is left."""
    gate = Gate("launched")
    gate.open()
    manager = make_manager(manager_class=GatedManager, gate=gate, pending_shutdown="cancel")
    await manager.start_kernel()
    assert isinstance(manager, GatedManager)
    assert manager.provisioner is not None
    manager.provisioner.gate = Gate("launched")
    async with anyio.create_task_group() as tasks:

        async def restart() -> None:
            with pytest.raises(KernelStartCancelled):
                await manager.restart_kernel(now=True)

        tasks.start_soon(restart)
        await anyio.to_thread.run_sync(manager.provisioner.gate.reached.wait)
        await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert nothing_is_left(manager)


async def test_cancelling_a_restart_while_the_old_kernel_ends_leaves_none(make_manager: MakeManager) -> None:
    """A restart that is given up in its first half has ended the old kernel by force."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    with anyio.move_on_after(0.05):
        await manager.restart_kernel()
    assert manager.state is KernelState.STOPPED
    assert manager.ready.cancelled()
    assert nothing_is_left(manager)


async def test_many_who_ask_at_once_get_one_answer_each(make_manager: MakeManager) -> None:
    """Whatever is asked at the same time, each is done or refused, and in the end nothing is left."""
    manager = make_manager(pending_shutdown="cancel")
    outcomes: list[str] = []

    async def ask(wish: Callable[[], Any]) -> None:
        try:
            await wish()
        except KernelError as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("done")

    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            for wish in (
                manager.start_kernel,
                manager.restart_kernel,
                manager.shutdown_kernel,
                manager.interrupt_kernel,
                manager.shutdown_kernel,
                manager.start_kernel,
                manager.kill_kernel,
            ):
                tasks.start_soon(ask, wish)
    assert len(outcomes) == 35
    await manager.shutdown_kernel(now=True)
    assert manager.ready.done()
    assert nothing_is_left(manager)


# ── callbacks and threads ───────────────────────────────────────────────────────────────────────────────────────────


async def test_state_callbacks_come_in_order_on_the_portals_thread(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """One that fails is logged and disturbs no other; one that is taken back hears no more."""
    manager = make_manager()
    threads: set[str] = set()

    def fail(*_: object) -> None:
        raise LookupError("of the test")

    manager.add_state_callback(fail)
    manager.add_state_callback(lambda *_: threads.add(threading.current_thread().name))
    states, other = States(manager), States(manager)
    undo = manager.add_state_callback(other.note)
    undo()
    undo()
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    await states.until("queued", "provisioning", "starting", "stopping", "stopped")
    assert other.seen == []
    assert threads == {"cobnut-portal"}
    assert caplog.text.count("A state callback") == 5


def test_a_thread_without_a_loop_starts_and_stops_a_kernel(make_manager: MakeManager) -> None:
    """The `begin_` calls need no loop; their futures can be blocked on."""
    manager = make_manager()
    manager.begin_start()
    assert not manager.ready.done() or manager.has_kernel
    manager.answered.result(timeout=20)
    assert manager.state is KernelState.READY
    task, is_ours = manager.begin_stop()
    assert is_ours
    task.result(timeout=20)
    assert manager.state is KernelState.STOPPED


def test_one_manager_serves_several_loops(make_manager: MakeManager) -> None:
    """Started on one loop, interrupted from a second, stopped on a third."""
    manager = make_manager()
    asyncio.run(manager.start_kernel())
    anyio.run(manager.answered._wait, backend="trio")
    asyncio.run(manager.interrupt_kernel())
    anyio.run(manager.shutdown_kernel, backend="trio")
    assert manager.state is KernelState.STOPPED


async def test_twenty_cycles_leave_nothing(make_manager: MakeManager) -> None:
    """Start and stop again and again, of one manager; the fixture counts."""
    manager = make_manager()
    for _ in range(20):
        await manager.start_kernel()
        await manager.shutdown_kernel(now=True)


def test_kernel_name_python_means_python3() -> None:
    """The field's older name still works."""
    manager = AsyncKernelManager(kernel_name="python")
    assert manager.kernel_name == "python3"
    assert isinstance(manager.kernel_spec_manager, KernelSpecManager)
    assert manager.kernel_spec.name == "python3"
    manager.kernel_name = "cobnut"
    assert manager.kernel_spec.name == "cobnut"


# ── stop, phase by phase ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_stop_can_be_made_phase_by_phase(make_manager: MakeManager, tiny: Tiny, anyio_backend: str) -> None:
    """Asked to end, waited for, cleared up after: the documented calls, one by one, do what the one call does."""
    del anyio_backend
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    await manager.request_shutdown()
    stopped = manager.ready
    assert tiny.heard() == ["interrupt_request", "shutdown_request"]
    assert manager.state in {KernelState.STOPPING, KernelState.STOPPED}
    await manager.finish_shutdown()
    assert manager.ready is stopped
    assert (stopped.result(), manager.state, manager.death, files()) == (None, KernelState.STOPPED, None, [])
    await manager.cleanup_resources()
    await manager.finish_shutdown()
    await manager.request_shutdown()
    await manager.start_kernel()
    await manager.answered
    await manager.shutdown_kernel()
    await manager.cleanup_resources()


async def test_a_kernel_that_was_asked_to_end_is_cleared_up_after_by_itself(make_manager: MakeManager) -> None:
    """Whoever asked need not wait: when the process has ended nothing is left, and `ready` tells of it."""
    manager = make_manager()
    await manager.start_kernel()
    await manager.answered
    async with manager.client() as client:
        await manager.request_shutdown()
        await manager.ready
        with pytest.raises(KernelDiedError, match="stopped"):
            await client.run("x").reply()
    assert (manager.state, manager.has_kernel, files()) == (KernelState.STOPPED, False, [])


@pytest.mark.parametrize(
    ("habits", "heard", "last", "waittime"),
    [(("deaf",), ["interrupt_request", "shutdown_request", "SIGTERM"], 0, 3.0), (("deaf", "sturdy"), None, -9, 0.2)],
)
async def test_finishing_gets_more_resolute(
    make_manager: MakeManager, tiny: Tiny, habits: tuple[str, ...], heard: list[str] | None, last: int, waittime: float
) -> None:
    """Half of the time for the request, half for SIGTERM, then SIGKILL to the group."""
    manager = make_manager(*habits, "parent", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    child, provisioner = tiny.child(), manager.provisioner
    assert provisioner is not None
    await manager.request_shutdown()
    await manager.finish_shutdown(waittime, pollinterval=0.1)
    assert heard in (None, tiny.heard())
    assert await Portal.shared().run(provisioner.poll) == last
    await eventually(lambda: not is_running(child))
    assert manager.state is KernelState.STOPPED


async def test_a_stop_goes_on_where_a_request_has_begun(make_manager: MakeManager) -> None:
    """After a request that is not heard the one call ends the kernel, at once if it shall."""
    manager = make_manager("deaf", "sturdy", shutdown_wait_time=3600)
    await manager.start_kernel()
    await manager.answered
    await manager.request_shutdown()
    assert manager.state is KernelState.STOPPING
    with pytest.raises(PendingKernelError):
        await manager.restart_kernel()
    await manager.cleanup_resources()
    assert manager.has_kernel
    await manager.shutdown_kernel(now=True)
    assert (manager.state, files()) == (KernelState.STOPPED, [])


class Flags(LocalProvisioner):
    """Notes what it is told of the start that follows."""

    told: list[tuple[str, bool]]

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Note it."""
        self.told.append(("requested", restart))

    async def terminate(self, restart: bool = False) -> None:
        """Note it."""
        self.told.append(("terminate", restart))
        await super().terminate(restart)

    async def kill(self, restart: bool = False) -> None:
        """Note it."""
        self.told.append(("kill", restart))
        await super().kill(restart)

    async def cleanup(self, restart: bool = False) -> None:
        """Note it."""
        self.told.append(("cleanup", restart))
        await super().cleanup(restart)


class FlagsManager(AsyncKernelManager):
    """A manager whose provisioner notes what it is told."""

    def create_provisioner(self) -> Flags:
        """Make it."""
        made = Flags(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        made.told = []
        return made


@pytest.mark.parametrize("way", ["restart", "stop", "phases"])
async def test_a_provisioner_is_told_that_another_start_follows(make_manager: MakeManager, way: str) -> None:
    """In every phase of the way down, where a restart follows (#1061)."""
    manager = make_manager("deaf", "sturdy", manager_class=FlagsManager, shutdown_wait_time=0.1)
    await manager.start_kernel()
    await manager.answered
    provisioner = manager.provisioner
    assert isinstance(provisioner, Flags)
    if way == "restart":
        await manager.restart_kernel()
    elif way == "stop":
        await manager.shutdown_kernel(restart=True)
    else:
        await manager.request_shutdown(restart=True)
        await manager.finish_shutdown(restart=True)
    steps = ("requested", "terminate", "kill", "cleanup")
    assert provisioner.told == [(step, True) for step in steps]
    await manager.shutdown_kernel(now=True)
    await manager.cleanup_resources()
    assert provisioner.told[-1] == ("cleanup", False)
    assert files() == []


async def test_phases_are_refused_while_the_kernel_starts(gated: AsyncKernelManager, gate: Gate) -> None:
    """As a stop is that may not wait."""
    gated.begin_start()
    gate.reached.wait()
    for wish in (gated.request_shutdown, gated.finish_shutdown):
        with pytest.raises(PendingKernelError):
            await wish()
    await gated.cleanup_resources()
    gate.open()
    await gated.answered
    await gated.shutdown_kernel(now=True)


# ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_tell_of_every_phase_twice(make_manager: MakeManager) -> None:
    """When it begins, and with its length when it is over: in order, on the portal's thread, until taken back."""
    manager = make_manager()
    events: list[tuple[str, bool]] = []
    undo = manager.add_event_callback(lambda _, phase: events.append((str(phase.state), phase.seconds is not None)))
    await manager.start_kernel()
    await manager.answered
    assert [phase.state for phase in manager.phases] == ["queued", "provisioning", "starting", "ready"]
    assert all(phase.seconds is not None for phase in manager.phases[:-1])
    await manager.shutdown_kernel(now=True)
    states = ["queued", "provisioning", "starting", "ready", "stopping", "stopped"]
    expected = [("queued", False)]
    for before, after in pairwise(states):
        expected += [(before, True), (after, False)]
    await eventually(lambda: events == expected, str(events))
    undo()
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    assert events == expected


# ── as a block ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_manager_can_be_entered(make_manager: MakeManager, anyio_backend: str) -> None:
    """What was started meanwhile is stopped at the end of the block."""
    del anyio_backend
    async with make_manager() as manager:
        await manager.start_kernel()
        assert manager.resolve_path("x") is not None
    assert manager.state is KernelState.STOPPED
