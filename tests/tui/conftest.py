"""A console without processes: doubles of manager, client and kernel, and ways to press keys and read the screen."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from logging import ERROR
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from textual import events
from textual.keys import REPLACED_KEYS, key_to_character

from cobnut.app import CobnutApp
from cobnut.kernels import Kernels
from cobnut.terminal.keys import KeyReader
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState, Ready
from cobnut_kernel.protocol.codec import Codec
from cobnut_kernel.protocol.messages import Channel, Header, Message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cobnut.session import Session

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


class _Clock:
    """Stands where a test puts it; what the kernel double sends carries its time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    @property
    def date(self) -> str:
        return (NOON + timedelta(seconds=self.now)).isoformat()


class _FakeClient:
    """Takes requests for the kernel double, and gives its messages to the listeners."""

    def __init__(self, kernel: _FakeKernel) -> None:
        self.kernel = kernel
        self.listeners: list[Callable[[Channel, Message], None]] = []
        self.inputs: list[str] = []
        self.is_open = False

    def listen(self, callback: Callable[[Channel, Message], None]) -> None:
        self.listeners.append(callback)

    def start_channels(self) -> None:
        self.is_open = True

    def stop_channels(self) -> None:
        self.is_open = False

    async def wait_for_ready(self, timeout: float) -> Message:
        await self.kernel.manager.answered
        language = {"name": self.kernel.spec.language, "version": "3.11.9"}
        return self.kernel.message("kernel_info_reply", {"status": "ok", "language_info": language}, "")

    async def request(self, msg_type: str, content: dict[str, Any], *, timeout: float) -> Message:
        self.kernel.asked.append(content["code"])
        return self.kernel.message("is_complete_reply", {"status": self.kernel.verdict}, "")

    def execute(self, code: str, *, allow_stdin: bool) -> str:
        assert not allow_stdin
        return self.kernel.execute(code)

    def input(self, text: str) -> None:
        self.inputs.append(text)


class _FakeManager:
    """The life of the kernel double: it does what the test says, and what is asked for."""

    def __init__(self, kernel: _FakeKernel) -> None:
        self.kernel = kernel
        self.kernel_spec = kernel.spec
        self.state = KernelState.QUEUED
        self.death: DeathReport | None = None
        self.ready, self.answered = Ready(), Ready()
        self.clients: list[_FakeClient] = []
        self._callbacks: list[Callable[[_FakeManager, KernelState], object]] = []

    def add_state_callback(self, callback: Callable[[_FakeManager, KernelState], object]) -> None:
        self._callbacks.append(callback)

    def client(self, **_: Any) -> _FakeClient:
        self.clients.append(_FakeClient(self.kernel))
        return self.clients[-1]

    def become(self, state: KernelState) -> None:
        self.state = state
        for callback in self._callbacks:
            callback(self, state)

    def come_up(self) -> None:
        self.ready.resolve()
        self.become(KernelState.STARTING)
        self.answered.resolve()
        self.become(KernelState.READY)

    def die(self, report: DeathReport) -> None:
        self.death = report
        self.become(KernelState.DEAD)

    async def interrupt_kernel(self) -> None:
        self.kernel.interrupts += 1
        self.kernel.interrupt()

    async def restart_kernel(self) -> None:
        self.kernel.restarts += 1
        self.kernel.running, self.kernel.count, self.death = "", 0, None
        self.ready, self.answered = Ready(), Ready()
        self.become(KernelState.RESTARTING)
        self.come_up()

    async def shutdown_kernel(self, now: bool = False) -> None:
        self.become(KernelState.STOPPING)
        self.become(KernelState.STOPPED)


@dataclass
class _FakeKernel:
    """Answers execute requests as told: `outputs` maps code to messages, `endless` names code that runs on."""

    clock: _Clock
    spec: KernelSpec
    outputs: dict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=dict)
    endless: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    verdict: str = "complete"
    interrupts: int = 0
    restarts: int = 0
    running: str = ""
    count: int = 0

    def __post_init__(self) -> None:
        self.manager = _FakeManager(self)
        self.codec = Codec(b"key")

    def message(self, msg_type: str, content: dict[str, Any], parent: str) -> Message:
        message = self.codec.message(msg_type, content, parent=Header(parent, "execute_request") if parent else None)
        return message._replace(header=message.header._replace(date=self.clock.date))

    def say(self, msg_type: str, content: dict[str, Any], parent: str = "", channel: Channel = Channel.IOPUB) -> None:
        for client in self.manager.clients:
            for listener in client.listeners:
                listener(channel, self.message(msg_type, content, parent or self.running))

    def execute(self, code: str) -> str:
        self.executed.append(code)
        msg_id = f"cell-{len(self.executed)}-{id(self)}"
        if not self.running:
            self.begin(msg_id, code)
        return msg_id

    def begin(self, msg_id: str, code: str) -> None:
        self.running = msg_id
        self.count += 1
        self.say("status", {"execution_state": "busy"})
        self.say("execute_input", {"code": code, "execution_count": self.count})
        outputs = self.outputs.get(code, [])
        for msg_type, content in outputs:
            self.say(msg_type, content)
        if code not in self.endless:
            self.clock.now += 0.014
            self.finish("error" if any(kind == "error" for kind, _ in outputs) else "ok")

    def finish(self, status: str = "ok", **content: Any) -> None:
        self.say("execute_reply", {"status": status, "execution_count": self.count, **content}, channel=Channel.SHELL)
        self.say("status", {"execution_state": "idle"})
        self.running = ""

    def interrupt(self) -> None:
        if self.running:
            self.say("error", {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt: "]})
            self.finish("error", ename="KeyboardInterrupt", evalue="")


class _FakeSpecs:
    """The kernelspecs there are: ours, R, and one that is broken."""

    def __init__(self) -> None:
        self.specs = {
            "cobnut": KernelSpec(
                name="cobnut", display_name="Python 3 (cobnut)", language="python", argv=["/usr/bin/python3"]
            ),
            "ir": KernelSpec(name="ir", display_name="R", language="R", argv=["R"]),
        }

    def get_all_specs(self) -> dict[str, Any]:
        return {name: {} for name in self.specs}

    def get_kernel_spec(self, name: str) -> KernelSpec:
        return self.specs[name]

    def broken_specs(self) -> dict[str, str]:
        return {"julia": "/usr/share/jupyter/kernels/julia/kernel.json is no JSON"}


class _FakeMultiManager:
    """Kernels by id, without processes."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        self.kernel_spec_manager = _FakeSpecs()
        self.kernels: dict[str, _FakeKernel] = {}
        self.shutdowns: list[bool] = []
        self.comes_up_at_once = True
        self.holds_shutdown: anyio.Event | None = None

    def start_soon(self, *, kernel_name: str) -> str:
        kernel_id = f"id-{len(self.kernels) + 1}"
        kernel = _FakeKernel(self.clock, self.kernel_spec_manager.get_kernel_spec(kernel_name))
        self.kernels[kernel_id] = kernel
        if self.comes_up_at_once:
            kernel.manager.come_up()
        return kernel_id

    def get_kernel(self, kernel_id: str) -> _FakeManager:
        return self.kernels[kernel_id].manager

    def remove_kernel(self, kernel_id: str) -> None:
        del self.kernels[kernel_id]

    async def shutdown_all(self, now: bool = False) -> None:
        self.shutdowns.append(now)
        if self.holds_shutdown is not None and not now:
            await self.holds_shutdown.wait()


class _Terminal:
    """A running console, its keys and its screen."""

    def __init__(self, app: CobnutApp, pilot: Any, manager: Any) -> None:
        self.app = app
        self.pilot = pilot
        self.manager = manager

    @property
    def kernels(self) -> list[_FakeKernel]:
        return list(self.manager.kernels.values())

    @property
    def kernel(self) -> _FakeKernel:
        return self.kernels[0]

    @property
    def sessions(self) -> list[Session]:
        return self.app.kernels.sessions

    @property
    def session(self) -> Session:
        """The kernel that is shown."""
        return self.app.console_screen.session

    @property
    def prompt(self) -> str:
        return self.app.console_screen.pane.editor.text

    async def press(self, *keys: str) -> None:
        """Press keys, named as Textual names them, as fast as a line may deliver them: all at once."""
        driver = self.app._driver
        assert driver is not None
        for key in keys:
            driver.process_message(events.Key(key, key_to_character(REPLACED_KEYS.get(key, key))))
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Type characters; a newline is Enter."""
        await self.receive(text.replace("\n", "\r").encode())

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds; says what is on the screen if it never does."""
        try:
            with anyio.fail_after(10):
                while not holds():  # noqa: ASYNC110 - whatever is waited for sets no event
                    await anyio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"it never came to hold; on the screen:\n{self.text}")
        await self.pilot.pause()

    async def until_shown(self, pattern: str) -> None:
        await self.until(lambda: re.search(pattern, self.text))

    async def receive(self, data: bytes) -> None:
        """Take bytes as the terminal sends them, all at once."""
        driver = self.app._driver
        assert driver is not None
        for event in KeyReader().feed(data, 0.0):
            driver.process_message(event)
        await self.pilot.pause()

    async def open_second_kernel(self) -> _FakeKernel:
        """Start another kernel with the keys for it, and be there."""
        await self.press("escape", "n", "enter")
        await self.until(lambda: len(self.sessions) == 2 and self.sessions[1].client is not None)
        return self.kernels[1]

    @property
    def lines(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def picture(self, name: str) -> None:
        """Write the screen into `screenshots/`, without the fonts that it would load from elsewhere."""
        svg = self.app.export_screenshot(title="cobnut", simplify=True)
        svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        SCREENSHOTS.mkdir(exist_ok=True)
        (SCREENSHOTS / f"{name}.svg").write_text(svg + "\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """A clock that stands, in place of the program's."""
    clock = _Clock()
    for module in ("cobnut.kernels", "cobnut.widgets.cells", "cobnut.widgets.prompt", "cobnut.screens.console"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def manager(clock: _Clock) -> _FakeMultiManager:
    """The double of the multi-kernel manager."""
    return _FakeMultiManager(clock)


@pytest.fixture
def open_terminal(manager: _FakeMultiManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Open the console in a terminal of some size, in a folder that is called ~/proj."""
    (tmp_path / "proj").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "proj")

    @asynccontextmanager
    async def open_it(
        columns: int = 120, rows: int = 36, *, spec_name: str = "cobnut", ascii_only: bool = False
    ) -> AsyncIterator[_Terminal]:
        kernels = Kernels(manager)  # pyright: ignore[reportArgumentType] - it is a double
        kernels.add(manager.start_soon(kernel_name=spec_name), spec_name, "scratch")
        app = CobnutApp(kernels, ascii_only=ascii_only)
        async with app.run_test(size=(columns, rows)) as pilot:
            await pilot.pause()
            yield _Terminal(app, pilot, manager)

    return open_it


@pytest.fixture
def open_real_terminal() -> Callable[..., Any]:
    """Open the console with a real manager and a real kernel."""

    @asynccontextmanager
    async def open_it(spec_name: str) -> AsyncIterator[_Terminal]:
        from cobnut_kernel.kernelspec import KernelSpecManager
        from cobnut_kernel.manager.multi import AsyncMultiKernelManager

        manager = AsyncMultiKernelManager(
            kernel_spec_manager=KernelSpecManager(),
            use_pending_kernels=True,
            pending_shutdown="cancel",
            autorestart=False,
        )
        kernels = Kernels(manager)
        kernels.add(manager.start_soon(kernel_name=spec_name), spec_name, "scratch")
        app = CobnutApp(kernels)
        try:
            async with app.run_test(size=(100, 30)) as pilot:
                yield _Terminal(app, pilot, manager)
        finally:
            await manager.shutdown_all(now=True)

    return open_it


@pytest.fixture(autouse=True)
def _nothing_fails_silently(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What fails in an action or in the bridge is shown and logged, and the program goes on; a test must not."""
    yield
    failures = [record for record in caplog.records if record.name.startswith("cobnut.") and record.levelno >= ERROR]
    assert not failures or getattr(caplog, "failures_are_expected", False), failures[0].exc_info
