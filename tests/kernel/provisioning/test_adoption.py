"""Kernels that another process has started: found by what it has told, watched, signalled, ended and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.launches import Launched, do
from tests.kernel.leftovers import is_running, until

from cobnut_kernel.connection_files import ProcessIdentity
from cobnut_kernel.errors import KernelError
from cobnut_kernel.kernelspec import own_spec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.provisioning.adoption import AdoptedProcess, read_identity, require_running
from cobnut_kernel.provisioning.fork import ForkProvisioner
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.wire import WireClient

OWNER = """
import json, os
from cobnut_kernel.kernelspec import own_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.fork import ForkProvisioner

async def launch():
    kernel = ForkProvisioner(kernel_id="kept", kernel_spec=own_spec())
    arguments = await kernel.pre_launch(cwd="/", independent=True)
    await kernel.launch_kernel(arguments.pop("cmd"), **arguments)
    return await kernel.get_provisioner_info()

print(json.dumps(Portal.shared().call(launch)))
"""


@pytest.fixture(params=["pidfd", "looking"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """See the end of a process by its pidfd, and without one, as on other systems."""
    if request.param == "looking":

        def forbidden(_: int) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)


@pytest.fixture
def told(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What an owner, who has ended since, has told of a kernel that goes on."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime / "jupyter"))
    output = subprocess.check_output([sys.executable, "-c", OWNER], text=True, cwd=tmp_path)
    told = json.loads(output)
    yield told
    if is_running(told["pid"]):
        os.killpg(told["pid"], signal.SIGKILL)


class Adopted(Launched):
    """A kernel that this process has adopted."""

    def __init__(self, told: dict[str, Any], **changes: Any) -> None:
        self.provisioner = ForkProvisioner(kernel_spec=own_spec())
        self.clients: list[WireClient] = []
        self.options: dict[str, Any] = {"cwd": "/", **changes}
        self.process = self
        do(self.provisioner.load_provisioner_info, {**told, **changes})
        self.info = ConnectionInfo.from_dict(self.provisioner.connection_info)


@pytest.mark.usefixtures("watching")
def test_a_kernel_that_outlives_its_owner_is_adopted(told: dict[str, Any]) -> None:
    """Another process talks to it, interrupts it, sees its end, and leaves nothing of it."""
    kernel = Adopted(told)
    provisioner = kernel.provisioner
    assert (provisioner.kernel_id, provisioner.cwd, provisioner.independent) == ("kept", "/", True)
    assert (provisioner.has_process, kernel.poll(), kernel.pid) == (True, None, told["process"]["pid"])
    client = kernel.connect()
    running = client.send_code("import time; print('asleep', flush=True); time.sleep(60)")
    client.wait_for_text(running, "asleep")
    do(provisioner.send_signal, signal.SIGINT)
    assert client.finish(running).content["ename"] == "KeyboardInterrupt"
    assert kernel.stop() is None  # its exit code is nobody's to know
    assert (provisioner.has_process, kernel.poll()) == (False, 0)
    assert provisioner.output_tail() == provisioner.stderr_tail() == ""
    assert not is_running(kernel.pid)
    assert provisioner.connection_file is not None
    assert list(provisioner.connection_file.parent.iterdir()) == []
    do(provisioner.kill)


def test_an_independent_kernel_knows_nothing_of_its_owner(told: dict[str, Any]) -> None:
    """Its connection file is where Jupyter's tools look, its environment names no owner, and nobody guards it."""
    kernel = Adopted(told)
    assert told["connection_file"].endswith("/jupyter/kernel-kept.json")
    assert told["independent"] is True
    client = kernel.connect()
    names = "[name for name in ('JPY_PARENT_PID', 'COBNUT_OWNER_FD') if name in __import__('os').environ]"
    assert client.execute(names).result == "[]"
    assert Guard.shared()._entries == {}
    kernel.stop(now=True)


def test_an_adopted_kernel_can_end_with_us(told: dict[str, Any]) -> None:
    """Where `independent` is made false the new owner guards it."""
    kernel = Adopted(told, independent=False)
    assert set(Guard.shared()._entries) == {kernel.pid}
    kernel.stop(now=True)
    assert Guard.shared()._entries == {}


def test_an_adopted_kernel_is_restarted(told: dict[str, Any]) -> None:
    """It comes back as a child of ours, where it was, and ends with us if nobody says otherwise."""
    kernel = Adopted(told)
    kernel.options = {"cwd": "/"}
    before, pid = kernel.info, kernel.pid
    kernel.restart()
    assert (kernel.info, kernel.pid == pid) == (before, False)
    assert kernel.value("6 * 7") == "42"
    assert kernel.provisioner.independent is False
    assert kernel.stop() == 0


def test_where_its_sockets_folder_is_gone_a_restart_is_elsewhere(told: dict[str, Any], runtime: Path) -> None:
    """The folder of an owner who has ended may have been swept: sockets and file are ours then."""
    gone = runtime / "gone"
    told["connection_info"]["ip"] = str(gone / "1")
    told["connection_file"] = str(gone / "kernel.json")
    kernel = Adopted(told)
    kernel.options = {"cwd": "/"}
    kernel.restart()
    assert kernel.value("6 * 7") == "42"
    assert not gone.exists()
    kernel.stop()
    for path in (runtime / "jupyter").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pid": 4_000_000}, "has ended"),
        ({"start_time": 1}, "is not the kernel's: it started at"),
        ({"boot_id": "another"}, "before this machine was started anew"),
        ({"namespace": 1}, "another pid namespace"),
        ({"pid": 1}, "names no kernel's process"),
        ({"pid": "12"}, "names no kernel's process"),
        ({"surprise": 1}, "names no kernel's process"),
    ],
)
@pytest.mark.usefixtures("runtime")
def test_another_process_is_not_adopted(change: dict[str, Any], reason: str) -> None:
    """Number, start time, boot and namespace must be the kernel's; the error says what is different."""
    kernel = LocalProvisioner(kernel_spec=own_spec())
    process = {**asdict(ProcessIdentity.of(os.getpid())), **change}
    with pytest.raises(KernelError, match=reason):
        do(kernel.load_provisioner_info, {"kernel_id": "id", "connection_info": {}, "process": process})
    assert (kernel.has_process, kernel.kernel_id, kernel.connection_info) == (False, "", {})


@pytest.mark.usefixtures("runtime")
def test_without_a_process_there_is_nothing_to_adopt() -> None:
    """What is told of a kernel that was never launched, or by a provisioner of another kind, is refused."""
    told = do(LocalProvisioner(kernel_id="id", kernel_spec=own_spec()).get_provisioner_info)
    assert json.loads(json.dumps(told))["process"] is None
    with pytest.raises(KernelError, match="names no kernel's process"):
        do(LocalProvisioner(kernel_spec=own_spec()).load_provisioner_info, told)


@pytest.mark.usefixtures("runtime", "watching")
def test_who_has_its_number_next_gets_no_signal() -> None:
    """A process is signalled as long as it is the same, alone where it leads no group, and no longer."""
    script = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    own = subprocess.Popen(script, stdout=subprocess.PIPE)  # in our group
    assert own.stdout is not None
    own.stdout.readline()
    identity = ProcessIdentity.of(own.pid)

    async def signal_it(identity: ProcessIdentity, signum: int) -> None:
        adopted = AdoptedProcess(identity)
        try:
            adopted.send_signal(signum)
        finally:
            adopted.release()

    require_running(identity)
    do(signal_it, replace(identity, start_time=identity.start_time + 1), signal.SIGKILL)
    assert own.poll() is None
    do(signal_it, identity, signal.SIGTERM)
    with own:
        assert own.wait() == -signal.SIGTERM
    do(signal_it, identity, signal.SIGKILL)
    assert psutil.pid_exists(os.getpid())


def test_an_identity_survives_json() -> None:
    """What is written of a process is read again."""
    identity = ProcessIdentity.of(os.getpid())
    assert read_identity(json.loads(json.dumps(asdict(identity)))) == identity


@pytest.mark.usefixtures("watching", "runtime")
def test_the_end_of_a_group_is_the_end_of_all_of_it() -> None:
    """What an adopted process has left running in its group is ended with it."""
    script = "import subprocess, sys\nprint(subprocess.Popen(['sleep', '60']).pid, flush=True)\nsys.stdin.read()"
    leader = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())

    async def see_the_end() -> None:
        adopted = AdoptedProcess(ProcessIdentity.of(leader.pid))
        assert leader.stdin is not None
        leader.stdin.close()
        assert await adopted.wait() is None

    do(see_the_end)
    leader.wait()
    leader.stdout.close()
    until(lambda: not is_running(child), "its child still runs")
