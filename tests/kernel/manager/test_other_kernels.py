"""The managers with kernels of several makers and languages: each lives its whole life, and leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import eventually
from tests.kernel.manager.conftest import pid_of
from tests.kernel.packages import require_r_package

from cobnut_kernel.errors import KernelDiedError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, native_spec, own_spec
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.client.run import Run

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]


@dataclass(frozen=True)
class Language:
    """How a kernel is started, and how its language says what the tests say.

    Attributes:
        spec: makes its kernelspec, or skips the test.
        transport: on which it is reached.
        keep: a cell that keeps 42 in a variable.
        show: a cell that prints the variable, or something else where there is none.
        fail: a cell that fails.
        failure: what its traceback, or its stderr, says then.
        sleep: a cell that prints "asleep" and sleeps for a minute.
        interrupted: the status of its reply when it was interrupted; empty where the kernel does not survive that.
        sleeper: the program that sleeps for the cell; empty where the kernel does so itself.
        ends: whether it ends whenever it is asked to. bash_kernel does not, one time in seven: its control thread
            flushes by a thread that ipykernel has ended before (8 of 55; ipykernel's own kernel 0 of 60).
    """

    spec: Callable[[], KernelSpec]
    transport: str
    keep: str
    show: str
    fail: str
    failure: str
    sleep: str
    interrupted: str = "error"
    sleeper: str = ""
    ends: bool = True


def installed_spec(name: str) -> KernelSpec:
    """Read a kernelspec that a package of the tests has installed beside our interpreter."""
    return KernelSpec.from_resource_dir(str(Path(sys.prefix, "share", "jupyter", "kernels", name)))


def bash_spec() -> KernelSpec:
    """Make bash_kernel's kernelspec, as its own installer writes it."""
    return KernelSpec(
        argv=[sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"],
        display_name="Bash",
        language="bash",
        env={"PS1": "$"},
    )


def r_spec() -> KernelSpec:
    """Make IRkernel's kernelspec, as its own installer writes it."""
    program = require_r_package("IRkernel", package="r-cran-irkernel")
    return KernelSpec(
        argv=[program, "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"],
        display_name="R",
        language="R",
    )


PYTHON: dict[str, Any] = {
    "keep": "kept = 42",
    "show": "print(globals().get('kept', 'nothing'))",
    "fail": "1/0",
    "failure": "ZeroDivisionError: division by zero",
    "sleep": "print('asleep', flush=True)\nimport time; time.sleep(60)",
}
LANGUAGES = {
    "cobnut": Language(own_spec, "ipc", **PYTHON),
    "ipykernel": Language(lambda: native_spec() or pytest.fail("ipykernel is not installed"), "ipc", **PYTHON),
    "xeus-python": Language(lambda: installed_spec("xpython"), "ipc", interrupted="", **PYTHON),
    "bash_kernel": Language(
        bash_spec,
        "tcp",
        keep="kept=42",
        show="echo ${kept:-nothing}",
        fail="cd /no/such/folder",
        failure="/no/such/folder: No such file or directory",
        sleep="echo asleep; sleep 60",
        interrupted="abort",
        sleeper="sleep",
        ends=False,
    ),
    "IRkernel": Language(
        r_spec,
        "tcp",
        keep="kept <- 42",
        show="cat(if (exists('kept')) kept else 'nothing')",
        fail="stop('of the test')",
        failure="of the test",
        sleep="cat('asleep\\n'); flush.console(); Sys.sleep(60)",
        interrupted="abort",
    ),
}


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> Language:
    """Each kernel in turn."""
    return LANGUAGES[request.param]


@pytest.fixture
def manager(language: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncKernelManager:
    """The manager of that kernel."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    specs = KernelSpecManager(extra_specs={"k": language.spec()}, kernel_dirs=[])
    # Long, so that on a busy machine too a kernel ends because it was asked to, and not by SIGTERM.
    patience = 30.0 if language.ends else 5.0
    return AsyncKernelManager(kernel_name="k", kernel_spec_manager=specs, shutdown_wait_time=patience)


async def said(run: Run) -> str:
    """Wait for the end of a cell and return all that it printed, showed and complained of, without colours."""
    parts: list[str] = []
    async for message in run:
        content = message.content
        match message.msg_type:
            case "stream":
                parts.append(content["text"])
            case "error":
                parts.append("\n".join((f"{content['ename']}: {content['evalue']}", *content["traceback"])))
            case _:
                continue
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))


def sleeps(pid: int, sleeper: str) -> bool:
    """Tell whether the program that sleeps for a cell runs beneath the kernel, if there is to be one."""
    return not sleeper or sleeper in {child.name() for child in psutil.Process(pid).children(recursive=True)}


async def interrupt(manager: AsyncKernelManager, language: Language, sleeping: Run) -> None:
    """Interrupt a cell when it sleeps, and wait for the last that comes of it."""
    async for message in sleeping:
        if message.msg_type == "stream" and "asleep" in message.content["text"]:
            # bash_kernel types Ctrl-C for its shell, which loses one that comes while it starts a program (2 of 3000).
            await eventually(lambda: sleeps(pid_of(manager), language.sleeper))
            await manager.interrupt_kernel()


async def text_of(client: AsyncKernelClient, code: str) -> str:
    """Run a cell and return what it printed, without white space around it."""
    return (await said(client.run(code))).strip()


async def test_it_starts_answers_and_ends_when_it_is_asked_to(manager: AsyncKernelManager, language: Language) -> None:
    """A start is over when the process runs; then it answers, runs cells, tells of errors, and ends by itself."""
    await manager.start_kernel()
    assert manager.ready.done()
    assert await manager.is_alive()
    await manager.answered
    assert manager.state is KernelState.READY
    assert manager.connection_info is not None
    assert manager.connection_info.transport == language.transport
    async with manager.client() as client:
        reply = await client.wait_for_ready()
        assert reply.content["language_info"]["name"].lower() in ("python", "bash", "r")
        assert await text_of(client, language.keep) == ""
        assert await text_of(client, language.show) == "42"
        assert language.failure in await text_of(client, language.fail)
        assert await text_of(client, language.show) == "42"
    provisioner, pid = manager.provisioner, pid_of(manager)
    await manager.shutdown_kernel()
    assert manager.state is KernelState.STOPPED
    assert not await manager.is_alive()
    assert not psutil.pid_exists(pid)
    assert provisioner is not None
    # bash_kernel's ipykernel aborts in libzmq on its way out now and then: that is no signal of ours.
    insisted = {-signal.SIGTERM, -signal.SIGKILL} if language.ends else {-signal.SIGKILL}
    assert await provisioner.poll() not in insisted, manager.output_tail()


async def test_two_clients_are_both_heard_and_come_back(manager: AsyncKernelManager, language: Language) -> None:
    """A second client does not make the first one deaf; one that closes its channels and opens them is heard again."""
    await manager.start_kernel()
    async with manager.client() as first, manager.client() as second:
        for client in (first, second):
            await client.wait_for_ready()
        await text_of(first, language.keep)
        assert [await text_of(client, language.show) for client in (second, first, second)] == ["42"] * 3
        first.stop_channels()
        assert await text_of(second, language.show) == "42"
        first.start_channels()
        await first.wait_for_ready()
        assert [await text_of(client, language.show) for client in (first, second)] == ["42"] * 2
    await manager.shutdown_kernel()


async def test_its_cell_is_interrupted(manager: AsyncKernelManager, language: Language) -> None:
    """In the way that its kernelspec names; the kernel keeps what it had and runs the next cell."""
    await manager.start_kernel()
    async with manager.client() as client:
        await client.wait_for_ready()
        await text_of(client, language.keep)
        sleeping = client.run(language.sleep)
        if not language.interrupted:  # its kernelspec asks for SIGINT, by which it ends, whoever sends it
            with pytest.raises(KernelDiedError, match="exit code 0"):
                await interrupt(manager, language, sleeping)
            await eventually(lambda: manager.state is KernelState.DEAD)
            return
        await interrupt(manager, language, sleeping)
        assert (await sleeping.reply()).content["status"] == language.interrupted
        assert await text_of(client, language.show) == "42"
    await manager.shutdown_kernel(now=True)  # ipykernel's end, on which bash_kernel stands, may wait for itself


@pytest.mark.parametrize("now", [False, True])
async def test_it_is_restarted_where_it_was(manager: AsyncKernelManager, language: Language, now: bool) -> None:
    """Another process behind the same connection, without what the first one knew; clients find it by themselves."""
    await manager.start_kernel()
    await manager.answered
    connection, pid = manager.connection_info, pid_of(manager)
    async with manager.client() as client:
        await client.wait_for_ready()
        await text_of(client, language.keep)
        await manager.restart_kernel(now=now)
        assert manager.connection_info == connection
        assert pid_of(manager) != pid
        assert not psutil.pid_exists(pid)
        await client.wait_for_ready()
        assert await text_of(client, language.show) == "nothing"
    await manager.shutdown_kernel(now=True)
    assert manager.state is KernelState.STOPPED


async def test_its_death_is_noticed(manager: AsyncKernelManager, language: Language) -> None:
    """Whoever waits for its cell is told, the report names the signal, and it can be started again."""
    await manager.start_kernel()
    async with manager.client() as client:
        await client.wait_for_ready()
        sleeping = client.run(language.sleep)
        async for message in sleeping:
            if message.msg_type == "stream":
                break
        started = psutil.Process(pid_of(manager)).children(recursive=True)
        os.kill(pid_of(manager), signal.SIGKILL)
        for child in started:  # bash_kernel's shell has a session of its own: it ends as it likes
            with suppress(psutil.NoSuchProcess):
                child.kill()
        with pytest.raises(KernelDiedError, match="killed by SIGKILL"):
            await sleeping.reply()
        await eventually(lambda: manager.state is KernelState.DEAD)
        assert str(manager.death) == "killed by SIGKILL"
        assert not await manager.is_alive()
        await manager.restart_kernel()
        await client.wait_for_ready()
        assert await text_of(client, language.show) == "nothing"
    await manager.shutdown_kernel(now=True)
