"""Kernels that are forked where they can be, and started cold where there is any doubt, without a difference to see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.kernel.launches import Launched, do, on_portal, open_files, servers, wait_for_end, warm
from tests.kernel.leftovers import eventually, is_running, until

from cobnut_kernel.connection_files import OwnerDirectory
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import KernelSpec, own_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.fork import RefusalReason, Refused
from cobnut_kernel.provisioning import circumstances, fork_server, templates
from cobnut_kernel.provisioning.fork import ForkProvisioner
from cobnut_kernel.provisioning.fork_server import ForkServer
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.templates import Templates, kernel_environment

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]


def provisioner(spec: KernelSpec | None = None, **traits: Any) -> ForkProvisioner:
    """Make a provisioner of our own kernel."""
    return ForkProvisioner(kernel_id=os.urandom(4).hex(), kernel_spec=spec or own_spec(), **traits)


@pytest.fixture
def server(runtime: Path) -> ForkServer:
    """A fork server that is ready."""
    del runtime
    return warm()


# ── the life of one ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_is_cold_and_the_next_is_forked() -> None:
    """Nobody waits for a fork server: it gets ready after the first kernel, whose restart goes through it."""
    first = Launched()
    assert not first.is_forked
    until(lambda: servers() and servers()[0].is_ready)
    second = Launched()
    assert second.is_forked
    assert (first.value("6 * 7"), second.value("6 * 7")) == ("42", "42")
    first.restart()
    assert first.is_forked
    assert first.value("6 * 7") == "42"
    assert first.stop() == second.stop() == 0
    assert [path.name for path in OwnerDirectory.shared().path.iterdir()] == ["owner.json"]


def test_a_second_demand_is_met_at_once() -> None:
    """Where more than one kernel is started cold the fork server for the next ones does not wait for the first."""
    kernels = [Launched()]
    assert servers() == []
    kernels.append(Launched())
    assert len(servers()) == 1
    kernels.append(Launched())  # nobody has asked for it, so nobody waits
    assert not any(kernel.is_forked for kernel in kernels)
    for kernel in kernels:
        kernel.stop(now=True)


def test_who_warms_up_waits_for_the_fork_server() -> None:
    """Where one was asked for at once the first kernel waits for it and is forked."""
    Templates.warm()
    kernel = Launched()
    assert kernel.is_forked
    assert kernel.value("6 * 7") == "42"
    kernel.stop()


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel is started cold where the fork server ends before it is ready, and where it takes too long."""
    with monkeypatch.context() as patch:
        patch.setattr("cobnut_kernel.provisioning.fork_server.MODULE", "no.such.module")
        Templates.warm()
        first = Launched()
    monkeypatch.setattr(templates, "BOOT_TIME", 0.0)
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    Templates.warm(env)
    second = Launched(env=env)
    assert not first.is_forked
    assert not second.is_forked
    for kernel in (first, second):
        kernel.stop(now=True)


def test_who_gives_up_while_it_gets_ready_has_started_nothing() -> None:
    """Cancelled while it waits for the fork server, a launch leaves no kernel."""
    kernel = provisioner()

    async def give_up() -> None:
        Templates.warm()
        arguments = await kernel.pre_launch(cwd="/")
        launching = asyncio.ensure_future(kernel.launch_kernel(arguments.pop("cmd"), **arguments))
        await eventually(lambda: servers() and servers()[0]._settled._waiters)
        launching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launching
        await kernel.cleanup()

    do(give_up)
    assert not kernel.has_process
    assert [child.pid for child in psutil.Process().children()] == [server.pid for server in servers()]


@pytest.mark.usefixtures("server")
def test_its_process_is_as_that_of_a_child() -> None:
    """It leads a group of its own, what it writes is kept, signals reach it, and its exit code is known."""
    kernel = Launched()
    assert kernel.is_forked
    assert (kernel.provisioner.pgid, kernel.poll(), kernel.provisioner.has_process) == (kernel.pid, None, True)
    until(lambda: os.getpgid(kernel.pid) == kernel.pid)  # at once, or a moment later
    client = kernel.connect()
    client.execute("import os; os.write(2, b'last words\\n') and None", silent=True)
    client.execute("import sys; sys.__stderr__.write('and more\\n')")
    running = client.send_code("import time; print('asleep', flush=True); time.sleep(60)")
    client.wait_for_text(running, "asleep")
    do(kernel.provisioner.send_signal, signal.SIGINT)
    assert client.finish(running).content["ename"] == "KeyboardInterrupt"
    assert kernel.stop(now=True) == -signal.SIGKILL
    assert not psutil.pid_exists(kernel.pid)
    assert kernel.provisioner.stderr_tail() == kernel.provisioner.output_tail()
    do(kernel.provisioner.kill)  # nobody is hit


@pytest.mark.usefixtures("server")
def test_it_has_the_environment_folder_and_connection_asked_for(tmp_path: Path) -> None:
    """Variables, folder and umask are as in a cold start; it is reached where a cold one would be."""
    spec = own_spec(env={"GREETING": "${HOME}!"})
    kernel = Launched(provisioner(spec), cwd=tmp_path, env={**os.environ, "HOME": os.environ["HOME"], "MINE": "1"})
    assert kernel.is_forked
    client = kernel.connect()
    seen = "os.environ['MINE'], os.environ['GREETING'], os.getcwd(), os.environ['JPY_PARENT_PID']"
    told = client.execute(f"import os; print(*({seen}))").text().split()
    assert told == ["1", f"{os.environ['HOME']}!", str(tmp_path), str(os.getpid())]
    assert kernel.info.transport == "ipc"
    kernel.stop()


@pytest.mark.usefixtures("server")
def test_ports_are_told_by_a_forked_kernel_too() -> None:
    """On ports it chooses them itself and registers."""
    kernel = Launched(provisioner(transport="tcp"))
    assert kernel.is_forked
    assert kernel.info.transport == "tcp"
    assert kernel.value("6 * 7") == "42"
    ports = kernel.info
    kernel.restart(now=False)
    assert kernel.is_forked
    assert kernel.info == ports
    assert kernel.value("6 * 7") == "42"
    kernel.stop()


@pytest.mark.usefixtures("server")
def test_a_restart_is_where_it_was() -> None:
    """Connection and key are those of the life before; only the process is another one."""
    kernel = Launched()
    before, pid = kernel.info, kernel.pid
    client = kernel.connect()
    client.execute("x = 1")
    kernel.clients.clear()
    kernel.restart()
    assert kernel.is_forked
    assert (kernel.info, kernel.pid == pid) == (before, False)
    client.wait(lambda: len(client.welcomes) == 2, "the iopub_welcome of the new kernel")
    assert client.execute("'x' in globals()").result == "False"
    client.close()
    kernel.stop()


@pytest.mark.usefixtures("server")
def test_fifty_lives_leave_nothing() -> None:
    """Descriptors, processes and files are after fifty starts and stops what they were before."""
    Launched().stop()

    def possessions() -> tuple[Any, int]:
        return open_files(), len(psutil.Process().children(recursive=True))

    until(lambda: possessions()[1] == 2, "there is no spare kernel beside the fork server")
    before = possessions()
    for _ in range(50):
        kernel = Launched()
        assert kernel.is_forked
        kernel.stop(now=True)
    until(lambda: possessions()[1] == 2, "another process is there, or no spare kernel")
    assert possessions() == before
    assert [path.name for path in OwnerDirectory.shared().path.iterdir()] == ["owner.json"]
    assert Guard.shared()._entries == {}


# ── cold, where there is a doubt ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (KernelSpec(argv=[sys.executable, "-m", "cobnut_kernel", "-f", "{connection_file}"], language="python"), {}),
        (own_spec(env={"PYTHONHASHSEED": "7"}), {}),
        (own_spec(), {"env": {**os.environ, "LC_ALL": "C"}}),
        (own_spec(), {"umask": 0o077}),
        (own_spec(), {"independent": True}),
    ],
    ids=["another command", "a spec's start variable", "a given start variable", "an option of Popen", "independent"],
)
def test_what_is_not_the_same_is_started_cold(
    server: ForkServer, spec: KernelSpec, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command, another start-time environment, options for Popen, a kernel that outlives us: no fork."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    kernel = Launched(provisioner(spec), **options)
    assert not kernel.is_forked
    assert kernel.value("6 * 7") == "42"
    kernel.stop()
    assert server.is_ready


def test_another_environment_gets_a_fork_server_of_its_own(server: ForkServer) -> None:
    """The second kernel of an environment is forked; there are as many fork servers as environments, up to three."""
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    first = Launched(env=env)
    assert not first.is_forked
    until(lambda: len(servers()) == 2 and servers()[1].is_ready)
    second = Launched(env=env)
    assert second.is_forked
    assert second.value("__import__('os').environ['PYTHONHASHSEED']") == "'7'"
    others = [Launched(env={**os.environ, "PYTHONHASHSEED": str(number)}) for number in (8, 9)]
    until(lambda: len(servers()) == 3)
    on_portal(lambda: Templates.shared().prepare({**os.environ, "PYTHONHASHSEED": "10"}))
    assert len(servers()) == 3
    assert not any(other.is_forked for other in others)
    assert server.is_ready
    for kernel in (first, second, *others):
        kernel.stop(now=True)


@pytest.mark.parametrize("reason", RefusalReason)
def test_a_refusal_means_a_cold_start(
    server: ForkServer, reason: RefusalReason, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the fork server says against it, the kernel starts, and nobody is told at a level that is read."""

    async def refuse(_: ForkServer, *_arguments: Any) -> Refused:
        return Refused("1", reason, "It was refused.")

    with monkeypatch.context() as patch:
        patch.setattr(ForkServer, "fork", refuse)
        kernel = Launched()
    assert not kernel.is_forked
    assert kernel.value("6 * 7") == "42"
    assert not [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")]
    assert server.is_retired == (reason is RefusalReason.STALE)
    if server.is_retired:
        until(lambda: server not in servers() and servers()[0].is_ready)
        kernel.restart()
        assert kernel.is_forked
    kernel.stop()


def test_a_stale_fork_server_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a module that it has imported changes it is asked once more, in vain, and there is a new one."""
    module = tmp_path / "sitecustomize.py"
    module.write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = warm()
    forked = Launched()
    assert forked.is_forked
    module.write_text("import os; os.environ['CHANGED'] = '1'")
    (tmp_path / "another.py").touch()
    cold = Launched()
    assert not cold.is_forked
    until(lambda: any(server is not first and server.is_ready for server in servers()))
    assert first.is_retired
    anew = Launched()
    assert anew.is_forked
    assert anew.value("__import__('os').environ['CHANGED']") == "'1'"
    assert forked.value("6 * 7") == "42"  # its own goes on
    forked.stop()
    until(lambda: first not in servers(), "the old one has not ended after its last kernel")
    cold.stop()
    anew.stop()


@pytest.mark.usefixtures("server")
def test_what_cannot_start_says_why_as_ever() -> None:
    """A folder that is not there is refused by the fork server, and explained by the cold start."""
    with pytest.raises(KernelStartError, match="cannot start in /no/such/folder: there is no such folder"):
        Launched(cwd="/no/such/folder")


def test_what_takes_effect_at_our_own_start_is_seen(server: ForkServer) -> None:
    """Limits and the mask of the owner are the kernel's, also where he has changed them since."""
    import resource

    old = os.umask(0o027)
    try:
        kernel = Launched()
        assert kernel.is_forked
        assert kernel.value("__import__('os').umask(0)") == str(0o027)
        kernel.stop()
    finally:
        os.umask(old)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(hard, 4096) if hard > 0 else 4096, hard))
    try:
        changed = resource.getrlimit(resource.RLIMIT_CORE)
        kernel = Launched()
        assert not kernel.is_forked
        seen = "__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE)"
        assert kernel.value(seen) == repr(changed)
        kernel.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert server.is_ready


def writes(pid: int, pipes: set[str]) -> bool:
    """Say whether a process can write into one of some pipes."""
    return any(circumstances._writes(entry, pipes) for entry in Path(f"/proc/{pid}/fd").iterdir())


# ── cancelled, and killed ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stopped", [False, True], ids=["it answers late", "it never answers"])
def test_a_cancelled_request_leaves_no_kernel(server: ForkServer, stopped: bool) -> None:
    """Who gives up between request and answer goes on when the kernel that came is gone again."""
    kernel = provisioner()

    async def give_up() -> None:
        arguments = await kernel.pre_launch(cwd="/")
        os.kill(server.pid, signal.SIGSTOP)
        launching = asyncio.ensure_future(kernel.launch_kernel(arguments.pop("cmd"), **arguments))
        await eventually(lambda: server._asked)
        launching.cancel()
        ended, _ = await asyncio.wait({launching}, timeout=0.05)
        assert not ended
        if not stopped:
            os.kill(server.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await launching
        await kernel.cleanup()

    do(give_up)
    assert psutil.Process().children(recursive=True) == [] or [server.pid] == [
        process.pid for process in psutil.Process().children(recursive=True)
    ]
    assert server.is_ready != stopped
    assert [path.name for path in OwnerDirectory.shared().path.iterdir()] == ["owner.json"]


def test_a_request_is_given_up_while_its_fork_server_is_ended(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives up after the fork server's time is over, and before it has ended, does not keep its end from us."""
    monkeypatch.setattr(fork_server, "ANSWER_TIME", 0.01)
    reasons: list[str] = []
    kernel = provisioner()

    async def give_up() -> None:
        arguments = await kernel.pre_launch(cwd="/")
        os.kill(server.pid, signal.SIGSTOP)
        monkeypatch.setattr(server, "end", reasons.append)  # its end takes a while
        launching = asyncio.ensure_future(kernel.launch_kernel(arguments.pop("cmd"), **arguments))
        await eventually(lambda: reasons)
        launching.cancel()
        ended, _ = await asyncio.wait({launching}, timeout=0.05)
        assert not ended
        server._child.kill()
        with pytest.raises(asyncio.CancelledError):
            await launching
        await kernel.cleanup()

    do(give_up)
    until(lambda: server not in servers(), "its end was not noticed")
    assert [path.name for path in OwnerDirectory.shared().path.iterdir()] == ["owner.json"]


def test_a_fork_server_that_hangs_is_given_up(server: ForkServer) -> None:
    """One that does not answer is ended after a moment, and the kernel started cold."""
    os.kill(server.pid, signal.SIGSTOP)
    kernel = Launched()
    assert not kernel.is_forked
    assert not is_running(server.pid)
    assert kernel.value("6 * 7") == "42"
    kernel.stop()


def test_a_kernel_is_ended_although_its_fork_server_hangs(server: ForkServer) -> None:
    """A SIGKILL that a fork server does not pass on is sent without it."""
    kernel = Launched()
    kernel.value("1")
    os.kill(server.pid, signal.SIGSTOP)
    assert kernel.stop(now=True) is None
    assert not is_running(server.pid)
    assert not is_running(kernel.pid)


def test_kernels_outlive_their_fork_server(server: ForkServer) -> None:
    """When it is killed they go on, can be signalled and stopped, and their end is seen; the guard has them at once."""
    kernels = [Launched() for _ in range(2)]
    clients = [kernel.connect() for kernel in kernels]
    assert Guard.shared().pid is None  # it guards them itself
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: Guard.shared().pid is not None, "no guard has taken over")
    assert set(Guard.shared()._entries) == {kernel.pid for kernel in kernels}
    assert [client.execute("6 * 7").result for client in clients] == ["42", "42"]
    assert all(kernel.provisioner.has_process for kernel in kernels)
    running = clients[0].send_code("import time; print('asleep', flush=True); time.sleep(60)")
    clients[0].wait_for_text(running, "asleep")
    do(kernels[0].provisioner.send_signal, signal.SIGINT)
    assert clients[0].finish(running).content["ename"] == "KeyboardInterrupt"
    assert kernels[0].stop(now=True) is None  # nobody knows
    assert do(kernels[0].provisioner.poll) == 0
    os.kill(kernels[1].pid, signal.SIGKILL)
    until(lambda: not kernels[1].provisioner.has_process, "its end was not seen")
    kernels[1].stop()
    assert Guard.shared()._entries == {}


def test_a_kernel_that_nobody_was_told_of_is_ended(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a fork server dies between fork and answer the kernel is found by its pipes, and another is started."""
    hear = ForkServer._hear
    monkeypatch.setattr(ForkServer, "_hear", lambda _: None)  # what it says is lost
    kernel = provisioner()

    async def launch() -> None:
        arguments = await kernel.pre_launch(cwd="/")
        launching = asyncio.ensure_future(kernel.launch_kernel(arguments.pop("cmd"), **arguments))
        while not strays:
            await asyncio.sleep(0.001)
            pipes = next(iter(server._asked.values())).outputs.inodes() if server._asked else set()
            strays.extend(child.pid for child in psutil.Process(server.pid).children() if writes(child.pid, pipes))
        os.kill(server.pid, signal.SIGKILL)
        await launching

    strays: list[int] = []
    # The socket is not read any more: its end is noticed by that of the process.
    on_portal(lambda: server._loop.remove_reader(server._socket))
    do(launch)
    monkeypatch.setattr(ForkServer, "_hear", hear)
    assert kernel.pid not in strays
    for pid in strays:
        wait_for_end(pid)
    assert kernel.has_process
    do(kernel.kill)
    do(kernel.wait)
    do(kernel.cleanup)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_death_of_a_forked_kernel_is_told(signum: signal.Signals) -> None:
    """By its code: the signal that ended it, or 0 where it ended by itself."""
    kernel = Launched()
    kernel.value("1")
    os.kill(kernel.pid, signum)
    until(lambda: not kernel.provisioner.has_process, "its end was not seen")
    assert kernel.poll() == (0 if signum == signal.SIGTERM else -signum)
    kernel.stop()


def test_many_at_once_are_forked(server: ForkServer) -> None:
    """Twenty that are asked for together all come, more than fit into the socket with their environments."""
    kernels = [provisioner() for _ in range(20)]
    env = {**os.environ, "LARGE": "x" * 30_000}

    async def launch(kernel: ForkProvisioner) -> None:
        arguments = await kernel.pre_launch(env=env, cwd="/")
        await kernel.launch_kernel(arguments.pop("cmd"), **arguments)

    async def launch_all() -> None:
        await asyncio.gather(*map(launch, kernels))

    async def end(kernel: ForkProvisioner) -> None:
        await kernel.kill()
        await kernel.wait()
        await kernel.cleanup()

    do(launch_all)
    assert len({kernel.pid for kernel in kernels}) == 20
    assert server.is_ready
    assert len(server._kernels) == 20
    for kernel in kernels:
        do(end, kernel)


def test_an_environment_too_large_for_a_packet_is_no_hindrance(server: ForkServer) -> None:
    """What does not fit into a request is started cold."""
    kernel = Launched(env={**os.environ, "LARGE": "x" * 70_000, "LARGER": "y" * 70_000})
    assert not kernel.is_forked
    assert kernel.value("len(__import__('os').environ['LARGER'])") == "70000"
    kernel.stop()
    assert server.is_ready


@pytest.mark.usefixtures("server")
def test_kernels_end_with_the_portal() -> None:
    """Kernels that nobody has stopped end with the portal, and so do the fork server and their files."""
    kernels = [Launched() for _ in range(2)]
    kernels[0].value("1")
    pids = [kernel.pid for kernel in kernels]
    folder = OwnerDirectory.shared().path
    Portal.shared().stop()
    for pid in pids:
        wait_for_end(pid)
    assert not folder.exists()


def test_none_is_started_at_the_portals_end() -> None:
    """What was put off, and is due when all has ended, starts no fork server that nobody would end."""
    kept: list[Templates] = []
    on_portal(lambda: kept.append(Templates.shared()))
    on_portal(kept[0].close)
    on_portal(lambda: kept[0].prepare(kernel_environment()))
    assert not kept[0]._servers
    assert not psutil.Process().children()


def test_the_information_about_it_is_json(server: ForkServer) -> None:
    """A forked kernel can be adopted as any other."""
    kernel = Launched()
    told = json.loads(json.dumps(do(kernel.provisioner.get_provisioner_info)))
    assert told["process"]["pid"] == kernel.pid
    assert told["process"]["start_time"] > 0
    assert server.is_ready
    kernel.stop()
