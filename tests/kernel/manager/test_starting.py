"""A kernel and its client in one call."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.kernel.leftovers import eventually, is_running, until
from tests.kernel.manager.test_blocking import interrupt_when

from cobnut_kernel import run_kernel, start_new_async_kernel, start_new_kernel
from cobnut_kernel.client.blocking import BlockingKernelClient
from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.errors import KernelDiedError, KernelNotReadyError, NoSuchKernel
from cobnut_kernel.manager.blocking import KernelManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture(autouse=True)
def _tiny_kernels(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install tiny kernels with habits as kernelspecs."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    for name in ("tiny", "mute", "broken"):
        folder = tmp_path / "share/kernels" / name
        folder.mkdir(parents=True)
        spec = tiny.spec(*([] if name == "tiny" else [name]))
        (folder / "kernel.json").write_text(json.dumps({**spec.to_dict(), "display_name": name}))


def test_a_kernel_and_a_client_that_it_has_answered() -> None:
    """Both are ready for use; the options are those of a start."""
    manager, client = start_new_kernel(kernel_name="tiny", kernel_id="mine")
    assert (type(manager), type(client)) == (KernelManager, BlockingKernelClient)
    assert (manager.kernel_id, client.channels_running) == ("mine", True)
    assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
    client.stop_channels()
    manager.shutdown_kernel()


def test_by_default_it_is_ipykernel() -> None:
    """As documented: the name is "python"."""
    manager, client = start_new_kernel(cwd="/")
    assert manager.kernel_name == "python3"
    reply = client.execute("import os", user_expressions={"where": "os.getcwd()"}, reply=True, timeout=50)
    assert reply["content"]["user_expressions"]["where"]["data"]["text/plain"] == "'/'"
    client.stop_channels()
    manager.shutdown_kernel()


@pytest.mark.parametrize(("name", "error"), [("mute", KernelNotReadyError), ("broken", KernelDiedError)])
def test_a_kernel_that_does_not_answer_leaves_nothing(name: str, error: type[Exception]) -> None:
    """The channels are closed, the kernel is ended, and the error is raised again."""
    with pytest.raises(error):
        start_new_kernel(startup_timeout=0.3 if name == "mute" else 20, kernel_name=name)
    with pytest.raises(NoSuchKernel):
        start_new_kernel(kernel_name="nobody")


def test_ctrl_c_leaves_nothing(tiny: Tiny) -> None:
    """Who does not want to wait for a kernel that is silent is left without it."""
    thread = interrupt_when(lambda: "up" in tiny.lines)
    with pytest.raises(KeyboardInterrupt):
        start_new_kernel(kernel_name="mute")
    thread.join()


def test_ctrl_c_in_the_last_moment_of_a_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process runs already and the caller does not know it yet."""

    def interrupt(self: KernelManager, **options: Any) -> None:
        start(self, **options)
        raise KeyboardInterrupt

    start = KernelManager.start_kernel
    monkeypatch.setattr(KernelManager, "start_kernel", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_new_kernel(kernel_name="tiny")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.anyio
async def test_the_async_one_does_the_same(anyio_backend: str) -> None:
    """On both loops, with the async manager and client."""
    del anyio_backend
    manager, client = await start_new_async_kernel(kernel_name="tiny", kernel_id="mine")
    assert (type(manager), type(client)) == (AsyncKernelManager, AsyncKernelClient)
    assert manager.kernel_id == "mine"
    assert (await client.execute("x", reply=True, timeout=20))["content"]["status"] == "ok"
    client.stop_channels()
    await manager.shutdown_kernel()
    with pytest.raises(KernelNotReadyError):
        await start_new_async_kernel(startup_timeout=0.3, kernel_name="mute")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.anyio
async def test_cancelling_who_waits_leaves_nothing(tiny: Tiny, anyio_backend: str) -> None:
    """The kernel is gone when the caller goes on."""
    del anyio_backend
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: start_new_async_kernel(kernel_name="mute"))
        await eventually(lambda: "up" in tiny.lines)
        tasks.cancel_scope.cancel()


def test_a_kernel_for_a_while() -> None:
    """`run_kernel` yields its client; at the end both are gone, whatever happened."""
    with run_kernel(kernel_name="tiny") as client:
        assert client.execute("x", reply=True, timeout=20)["content"]["status"] == "ok"
        manager = client.parent
    assert isinstance(manager, KernelManager)
    assert (manager.state, client.channels_running) == (KernelState.STOPPED, False)
    with pytest.raises(LookupError), run_kernel(kernel_name="tiny"):
        raise LookupError


NESTED = """
from cobnut_kernel import run_kernel
with run_kernel(kernel_name="tiny") as client:
    status = client.execute("x", reply=True, timeout=20)["content"]["status"]
"""


@pytest.mark.parametrize("name", ["cobnut", "python3"])
def test_it_works_in_the_cell_of_a_running_kernel(name: str) -> None:
    """Although a loop runs there already, in ours and in ipykernel."""
    with run_kernel(kernel_name=name) as client:
        reply = client.execute(NESTED, user_expressions={"status": "status"}, reply=True, timeout=50)
    assert reply["content"].get("traceback") is None
    assert reply["content"]["user_expressions"]["status"]["data"]["text/plain"] == "'ok'"


def test_a_cell_that_starts_a_kernel_can_be_interrupted(tiny: Tiny) -> None:
    """The cell ends by KeyboardInterrupt, and the kernel that it waited for is gone."""
    with run_kernel(kernel_name="cobnut") as client:
        code = "from cobnut_kernel import start_new_kernel; start_new_kernel(kernel_name='mute')"
        running = client.run(f"import os; {code}")
        until(lambda: "up" in tiny.lines)
        client.parent.interrupt_kernel()
        assert running.reply().content["ename"] == "KeyboardInterrupt"
        reply = client.execute("import psutil; children = psutil.Process().children()", reply=True, timeout=50)
        assert reply["content"]["status"] == "ok"
        shown = client.execute(
            "",
            user_expressions={"n": "sum('tiny_kernel' in ' '.join(c.cmdline()) for c in children)"},
            reply=True,
            timeout=20,
        )
        assert shown["content"]["user_expressions"]["n"]["data"]["text/plain"] == "0"


def test_a_script_that_forgets_its_kernel_ends_and_leaves_none(tiny: Tiny, runtime: Path) -> None:
    """Nothing keeps the process from its end, and nothing of the kernel stays."""
    script = (
        "from cobnut_kernel import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='tiny')\n"
        "print(manager.provisioner.pid)\n"
        "client.stop_channels()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=50)
    until(lambda: not is_running(int(done.stdout)))
    assert done.stderr == ""
    assert [path.name for path in (runtime / "cobnut").iterdir()] == []
    assert tiny.lines[0] == "up"
