"""A kernel that has answered on unix sockets gets them from then on, until it does not answer on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.leftovers import eventually

from cobnut_kernel.errors import KernelDiedError
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.manager import AsyncKernelManager
from cobnut_kernel.provisioning.socket_proof import SocketProof

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("runtime")]

TINY = str(Path(__file__).with_name("tiny_kernel.py"))

MOODY = """
if grep -q ipc "$1"; then
    test ! -e "$2.dies" || exit 3
    test ! -e "$2.waits" || set -- "$1" "$2" mute
fi
exec "$0" "$@"
"""
"""Dies, or stays silent, where it is told to, and listens on unix sockets."""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any kernel."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def mood(tmp_path: Path) -> Callable[[str], Path]:
    """The file that makes a moody kernel die, or wait, while it is there."""
    return lambda wish: tmp_path / f"log.{wish}"


@pytest.fixture
def manage(tmp_path: Path) -> Callable[..., AsyncKernelManager]:
    """Make managers of one and the same kernel, which is not known to take unix sockets."""

    def make(metadata: dict[str, Any] | None = None, **traits: Any) -> AsyncKernelManager:
        argv = ["sh", "-c", MOODY.replace('"$0" "$@"', f'"$0" {TINY} "$@"'), sys.executable]
        argv += ["{connection_file}", str(tmp_path / "log")]
        spec = KernelSpec(argv=argv, language="none", interrupt_mode="message", metadata=metadata or {})
        specs = KernelSpecManager(extra_specs={"moody": spec}, kernel_dirs=[])
        return AsyncKernelManager(kernel_name="moody", kernel_spec_manager=specs, **traits)

    return make


def proof_of(manager: AsyncKernelManager) -> SocketProof:
    """Return what is known of a manager's kernel."""
    return SocketProof(manager.kernel_spec, manager.log)


def transport_of(manager: AsyncKernelManager) -> str:
    """Return how its kernel is reached."""
    assert manager.connection_info is not None
    return manager.connection_info.transport


async def answers_on(manager: AsyncKernelManager) -> str:
    """Start a kernel and stop it when it has answered; return how it was reached."""
    await manager.start_kernel()
    await manager.answered
    transport = transport_of(manager)
    await manager.shutdown_kernel()
    return transport


@pytest.mark.parametrize(
    "wish", [{"transport": "ipc"}, {"metadata": {"cobnut": {"transport": "ipc"}}}], ids=["manager", "kernelspec"]
)
async def test_who_answered_once_gets_them_from_then_on(manage: Callable[..., Any], wish: dict[str, Any]) -> None:
    """Ports before; sockets by hand; then sockets by themselves, in any manager, as long as nobody asks for ports."""
    assert await answers_on(manage()) == "tcp"
    assert not proof_of(manage()).is_given
    assert await answers_on(manage(**wish)) == "ipc"
    assert proof_of(manage()).is_given
    manager = manage()
    assert await answers_on(manager) == "ipc"
    assert manager.transport == "ipc"
    assert await answers_on(manager) == "ipc"
    assert await answers_on(manage(transport="tcp")) == "tcp"
    assert proof_of(manage()).is_given


async def test_its_proof_is_that_of_its_command(manage: Callable[..., Any], tmp_path: Path) -> None:
    """A command in place of the kernelspec's shows nothing of that, and one that changes has shown nothing yet."""
    file = str(tmp_path / "connection.json")
    manager = manage(transport="ipc", connection_file=file)
    command = [file if part == "{connection_file}" else part for part in manager.kernel_spec.argv]
    await manager.start_kernel(cmd=command)
    await manager.answered
    assert transport_of(manager) == "ipc"
    await manager.shutdown_kernel()
    assert not proof_of(manager).is_given
    assert await answers_on(manage(transport="ipc")) == "ipc"
    changed = manage()
    changed.kernel_spec.env = {"NEW": "1"}
    assert await answers_on(changed) == "tcp"
    assert await answers_on(manage()) == "ipc"


async def test_who_dies_on_them_gets_ports_again(manage: Callable[..., Any], mood: Callable[[str], Path]) -> None:
    """The proof is forgotten when the kernel ends before it has answered; restart and start use ports at once."""
    assert await answers_on(manage(transport="ipc")) == "ipc"
    mood("dies").touch()
    manager, other = manage(), manage()
    await manager.start_kernel()
    assert transport_of(manager) == "ipc"
    with pytest.raises(KernelDiedError, match="exit code 3"):
        await manager.answered
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert not proof_of(manager).is_given
    await manager.restart_kernel()
    await manager.answered
    assert transport_of(manager) == "tcp"
    assert not list(Path(manager.provisioner.connection_file).parent.glob("*-[1-5]"))
    await manager.restart_kernel()
    await manager.answered
    assert transport_of(manager) == "tcp"
    await manager.shutdown_kernel()
    assert await answers_on(other) == "tcp"


async def test_who_is_silent_on_them_gets_ports_again(manage: Callable[..., Any], mood: Callable[[str], Path]) -> None:
    """The proof is forgotten when the time for a start is over."""
    assert await answers_on(manage(transport="ipc")) == "ipc"
    mood("waits").touch()
    manager = manage(startup_timeout=0.5)
    await manager.start_kernel()
    with pytest.raises(KernelDiedError, match=r"did not answer within 0\.5 seconds"):
        await manager.answered
    assert not proof_of(manager).is_given
    await eventually(lambda: manager.state is KernelState.DEAD)
    assert await answers_on(manage()) == "tcp"


async def test_who_dies_after_a_restart_comes_back_on_ports(
    manage: Callable[..., Any], mood: Callable[[str], Path]
) -> None:
    """The restarter's second attempt, of a kernel that answered before, is on ports, and its clients find it there."""
    assert await answers_on(manage(transport="ipc")) == "ipc"
    manager = manage(autorestart=True)
    await manager.start_kernel()
    await manager.answered
    assert transport_of(manager) == "ipc"
    async with manager.client() as client:
        await client.wait_for_ready()
        mood("dies").touch()
        await manager.signal_kernel(9)
        await eventually(lambda: manager.state is KernelState.READY and transport_of(manager) == "tcp")
        await client.wait_for_ready()
    assert [decision.newports for decision in manager.restarter.decisions] == [False, True]
    await manager.shutdown_kernel()


async def test_a_stop_says_nothing_of_it(manage: Callable[..., Any], mood: Callable[[str], Path]) -> None:
    """A kernel that is stopped before it answers keeps its proof."""
    assert await answers_on(manage(transport="ipc")) == "ipc"
    mood("waits").touch()
    manager = manage()
    await manager.start_kernel()
    await manager.shutdown_kernel(now=True)
    assert proof_of(manager).is_given


async def test_what_is_asked_for_stays(manage: Callable[..., Any], mood: Callable[[str], Path]) -> None:
    """Who asks for unix sockets by hand gets them, where they were, although the kernel has just died on them."""
    mood("dies").touch()
    manager = manage(transport="ipc")
    await manager.start_kernel()
    connection = manager.connection_info
    await eventually(lambda: manager.state is KernelState.DEAD)
    mood("dies").unlink()
    await manager.restart_kernel()
    await manager.answered
    assert manager.connection_info == connection
    await manager.shutdown_kernel()
    assert proof_of(manager).is_given


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"transport": "carrier pigeon"}'])
async def test_a_broken_file_is_in_nobodys_way(manage: Callable[..., Any], content: str) -> None:
    """The kernel starts on ports, as one that nothing is known of, and can show again what it can."""
    path = proof_of(manage()).path
    path.parent.mkdir(mode=0o700, parents=True)
    path.write_text(content)
    assert await answers_on(manage()) == "tcp"
    assert await answers_on(manage(transport="ipc")) == "ipc"
    assert await answers_on(manage()) == "ipc"


async def test_bash_kernel_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of another language shows that it can, and is reached by unix sockets afterwards."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    argv = [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]
    specs = KernelSpecManager(extra_specs={"bash": KernelSpec(argv=argv, language="bash", env={"PS1": "$"})})
    for wish, expected in (("auto", "tcp"), ("ipc", "ipc"), ("auto", "ipc")):
        manager = AsyncKernelManager(kernel_name="bash", kernel_spec_manager=specs, transport=wish)
        assert await answers_on(manager) == expected
