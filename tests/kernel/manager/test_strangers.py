"""Kernels that others started: attached to, adopted, listed; and left alone where they are not ours."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually, is_running
from tests.kernel.manager.conftest import pid_of

from cobnut_kernel.errors import ConnectionFileError, KernelError, KernelStartCancelled
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.multi import AsyncMultiKernelManager
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

    from cobnut_kernel.manager.manager import AsyncKernelManager

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

MakeManager = "Callable[..., AsyncKernelManager]"


async def told(manager: AsyncKernelManager) -> dict[str, Any]:
    """What a manager tells of its running kernel, as it comes out of a file."""
    return json.loads(json.dumps(await manager.provisioner_info()))


# ── attached to ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kernel_of_somebody_else_is_left_alone(make_manager: MakeManager) -> None:
    """It can be talked to and interrupted; it is neither stopped nor restarted, and taken to be alive."""
    owner = make_manager()
    await owner.start_kernel()
    await owner.answered
    guest = make_manager(owns_kernel=False)
    guest.load_connection_info(owner.get_connection_info())
    guest.attach()
    assert (guest.state, guest.ready.result(), guest.has_kernel) == (KernelState.READY, None, False)
    assert await guest.is_alive()
    async with guest.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
        running = client.run("sleep")
        await guest.interrupt_kernel()
        assert (await running.reply()).content["status"] == "error"
    for wish in (guest.start_kernel, guest.restart_kernel):
        with pytest.raises(KernelError, match="belongs to somebody else"):
            await wish()
    await guest.shutdown_kernel(now=True)
    await guest.request_shutdown()
    await guest.finish_shutdown()
    await guest.cleanup_resources()
    assert await owner.is_alive()
    await owner.shutdown_kernel()


# ── adopted ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kernel_is_adopted_as_a_guest(make_manager: MakeManager) -> None:
    """From what its owner tells: it answers, its death is seen, and a stop does nothing."""
    owner = make_manager()
    with pytest.raises(KernelError, match="Cannot describe the kernel: no kernel is running"):
        await owner.provisioner_info()
    await owner.start_kernel()
    await owner.answered
    guest = make_manager(owns_kernel=False)
    await guest.adopt(await told(owner))
    await guest.answered
    assert (guest.kernel_id, guest.kernel_name, guest.has_kernel) == (owner.kernel_id, "tiny", True)
    assert guest.connection_info == owner.connection_info
    async with guest.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
    await guest.shutdown_kernel(now=True)
    assert await guest.is_alive()
    assert await owner.is_alive()
    with pytest.raises(KernelError, match="runs already"):
        await guest.adopt(await told(owner))
    os.kill(pid_of(owner), signal.SIGKILL)
    await eventually(lambda: guest.state is owner.state is KernelState.DEAD)
    assert not await guest.is_alive()


async def test_what_has_ended_cannot_be_adopted(make_manager: MakeManager) -> None:
    """The text says so; nothing is left of the attempt."""
    owner = make_manager()
    await owner.start_kernel()
    info = await told(owner)
    await owner.shutdown_kernel(now=True)
    manager = make_manager()
    with pytest.raises(KernelError, match="has ended"):
        await manager.adopt(info)
    assert (manager.state, manager.has_kernel) == (KernelState.DEAD, False)
    assert isinstance(manager.ready.exception(), KernelError)


@pytest.mark.parametrize("fault", ["its connection is of no use", "a stop came meanwhile"])
async def test_a_failed_adoption_leaves_the_kernel_alone(
    make_manager: MakeManager, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on, does not end with us, and nothing watches it."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    owner = make_manager()
    await owner.start_kernel(independent=True)
    info = {**await told(owner), "independent": False}
    manager = make_manager()
    if fault == "a stop came meanwhile":
        load = LocalProvisioner.load_provisioner_info

        async def stop_meanwhile(self: LocalProvisioner, info: Mapping[str, Any]) -> None:
            await load(self, info)
            manager.begin_stop(pending="cancel")

        monkeypatch.setattr(LocalProvisioner, "load_provisioner_info", stop_meanwhile)
    else:
        info["connection_info"] = {**info["connection_info"], "transport": "none"}
    with pytest.raises((KernelStartCancelled, ConnectionFileError)):
        await manager.adopt(info)
    await manager.shutdown_kernel()
    assert not manager.has_kernel
    assert await Portal.shared().run(guarded) == []
    assert await owner.is_alive()
    await owner.shutdown_kernel()


async def guarded() -> list[int]:
    """List the processes that end with ours."""
    return list(Guard.shared()._entries)


GUEST = """
import json, sys
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.guard import Guard

async def guarded():
    return list(Guard.shared()._entries)

specs = KernelSpecManager(extra_specs={"tiny": KernelSpec(argv=["tiny"], language="python")}, kernel_dirs=[])
manager = AsyncKernelManager(kernel_name="tiny", kernel_spec_manager=specs, owns_kernel=False)
Portal.shared().call(manager.adopt, json.loads(sys.argv[1]))
print(manager.has_kernel, Portal.shared().call(guarded))
"""


async def test_the_end_of_a_guest_leaves_the_kernel_alone(make_manager: MakeManager) -> None:
    """Another process that has adopted it as a guest does not take it along, however it ends."""
    owner = make_manager()
    await owner.start_kernel()
    await owner.answered
    guest = await anyio.run_process([sys.executable, "-c", GUEST, json.dumps(await told(owner))], stderr=None)
    assert guest.stdout.split() == [b"True", b"[]"]
    async with owner.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
    await owner.shutdown_kernel()


OWNER = """
import json, sys
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.portal import Portal

spec = KernelSpec(argv=json.loads(sys.argv[1]), language="python", interrupt_mode="message")
specs = KernelSpecManager(extra_specs={"tiny": spec}, kernel_dirs=[])
manager = AsyncKernelManager(kernel_name="tiny", kernel_spec_manager=specs)
call = Portal.shared().call
call(manager.start_kernel, **json.loads(sys.argv[2]))
manager.answered.result(timeout=30)
print(json.dumps(call(manager.provisioner_info)), flush=True)
"""


async def test_a_kernel_that_outlives_its_owner_is_adopted_as_ours(
    make_manager: MakeManager, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of by a program that has ended; here it is restarted, and stopped with nothing left."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    arguments = [json.dumps(tiny.spec().argv), json.dumps({"independent": True})]
    done = await anyio.run_process([sys.executable, "-c", OWNER, *arguments], stderr=None)
    info = json.loads(done.stdout)
    manager = make_manager()
    await manager.adopt(info)
    await manager.answered
    pid = pid_of(manager)
    async with manager.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
        await manager.restart_kernel()
        assert (await client.run("x").reply()).content["status"] == "ok"
    assert not is_running(pid)
    assert pid_of(manager) != pid
    await manager.shutdown_kernel()
    assert list((tmp_path / "jupyter").glob("*")) == []


async def test_an_independent_kernel_is_left_alone_at_the_end(
    make_manager: MakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of what it was started by is not its end."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    manager = make_manager()
    await manager.start_kernel(independent=True)
    await manager.answered
    pid, info = pid_of(manager), await told(manager)
    await anyio.to_thread.run_sync(Portal.shared().stop)
    assert is_running(pid)
    heir = make_manager()
    await heir.adopt(info)
    await heir.answered
    await heir.shutdown_kernel()
    await anyio.to_thread.run_sync(os.waitpid, pid, 0)  # it was our child


# ── listed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_living_kernels_of_others_are_listed(make_manager: MakeManager, tmp_path: Path) -> None:
    """As long as they live, by the id in the name of their file; a stop of all leaves them alone."""
    folder = tmp_path / "outside"
    folder.mkdir(mode=0o700)
    owner = make_manager(connection_file=str(folder / "kernel-theirs.json"))
    await owner.start_kernel()
    await owner.answered
    (folder / "kernel-gone.json").write_text((folder / "kernel-theirs.json").read_text().replace("ipc", "none"))
    multi = AsyncMultiKernelManager(
        kernel_spec_manager=owner.kernel_spec_manager, default_kernel_name="tiny", external_connection_dir=str(folder)
    )
    assert multi.list_kernel_ids() == ["theirs"]
    manager = multi.get_kernel("theirs")
    assert (manager.owns_kernel, manager.state, manager.kernel_name) == (False, KernelState.READY, "tiny")
    assert await multi.is_alive("theirs")
    assert multi.get_connection_info("theirs")["key"] == owner.get_connection_info()["key"]
    async with manager.client() as client:
        assert (await client.run("x").reply()).content["status"] == "ok"
    ours = await multi.start_kernel()
    assert multi.list_kernel_ids() == ["theirs", ours]
    assert multi.get_kernel("theirs") is manager
    await multi.shutdown_all()
    assert multi.list_kernel_ids() == ["theirs"]
    assert await owner.is_alive()
    await owner.shutdown_kernel()
    assert multi.list_kernel_ids() == []
    multi.external_connection_dir = None
    assert multi.list_kernel_ids() == []
