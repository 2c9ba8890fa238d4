"""What the field expects of a kernel: its conformance suite, and its stock clients, on our kernelspecs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupyter_kernel_test
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager, start_new_async_kernel, start_new_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = "cobnut"


class StartedByTheStockManager:
    """Kernels of a class of tests: its own kernelspec, installed by our command line, and its own transport."""

    backend = "asyncio"
    transport = "tcp"
    folder: Path

    @classmethod
    def make_manager(cls) -> KernelManager:
        """Install the kernelspec in a folder of the class, and return jupyter_client's manager for it."""
        cls.folder = Path(tempfile.mkdtemp(prefix="cobnut-"))
        install = (sys.executable, "-P", "-m", "cobnut_kernel", "install", "tested", "--backend", cls.backend)
        subprocess.run([*install, "--prefix", str(cls.folder)], check=True, capture_output=True)
        return KernelManager(
            kernel_name="tested",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(cls.folder / "share/jupyter/kernels")]),
            transport=cls.transport,
            connection_file=str(cls.folder / "kernel.json"),  # whose name the sockets' begins with
        )

    @classmethod
    def check_that_nothing_is_left(cls) -> None:
        """Remove the folder; the kernel's own files are gone already."""
        left = [path.name for path in cls.folder.iterdir() if path.name != "share"]
        shutil.rmtree(cls.folder)
        assert left == []


class Conformance(StartedByTheStockManager, jupyter_kernel_test.KernelTests):
    """jupyter_kernel_test, whole, and nothing in it skipped."""

    __test__ = False

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_execute_result = ({"code": "6*7", "result": "42"}, {"code": "1+2*3", "result": "7"})
    code_generate_error = "raise ValueError('on purpose')"
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
    )
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_page_something = "zip?"
    completion_samples = ({"text": "zi", "matches": {"zip"}}, {"text": "import zipimpor", "matches": {"zipimport"}})
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n", "%%time\nf()\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_inspect_sample = "zip"
    supported_history_operations = ("tail", "range", "search")
    code_history_pattern = "1?2*"

    @classmethod
    def setUpClass(cls) -> None:
        """Start the kernel and a client, as `start_new_kernel` does."""
        cls.km = cls.make_manager()
        cls.km.start_kernel()
        cls.kc = cls.km.client()
        cls.kc.start_channels()
        cls.kc.wait_for_ready(timeout=60)

    @classmethod
    def tearDownClass(cls) -> None:
        """End them."""
        super().tearDownClass()
        cls.check_that_nothing_is_left()

    @contextmanager
    def subTest(self, *_: Any, **__: Any) -> Iterator[None]:  # noqa: N802 - unittest's name
        """Let a part that fails fail the test, whatever runs it."""
        yield

    def test_the_kernel_is_the_one_that_is_meant(self) -> None:
        """Its event loop and its transport are those of the class."""
        self.flush_channels()
        code = (
            "import sniffio\nget_ipython().kernel.get_connection_info()['transport'], sniffio.current_async_library()"
        )
        _reply, [output] = self.execute_helper(code)
        assert output["content"]["data"]["text/plain"] == repr((self.transport, self.backend))


class TestAsyncioTcp(Conformance):
    """The kernel as most people have it."""

    __test__ = True


class TestAsyncioIpc(Conformance):
    """The kernel of one machine's users: no port, no other user."""

    __test__ = True
    transport = "ipc"


class TestTrioTcp(Conformance):
    """The kernel whose cells run in trio's event loop."""

    __test__ = True
    backend = "trio"


class TestTrioIpc(Conformance):
    """And that one without ports."""

    __test__ = True
    backend = "trio"
    transport = "ipc"


class Welcome(StartedByTheStockManager, jupyter_kernel_test.IopubWelcomeTests):
    """The first thing that a new subscriber hears is the welcome (JEP 65)."""

    __test__ = False
    support_iopub_welcome = True

    @classmethod
    def setUpClass(cls) -> None:
        """Start the kernel, and connect no client yet."""
        cls.km = cls.make_manager()
        cls.km.start_kernel()
        cls.kc = cls.km.client()

    @classmethod
    def tearDownClass(cls) -> None:
        """End it."""
        super().tearDownClass()
        cls.check_that_nothing_is_left()


class TestWelcomeTcp(Welcome):
    """Over tcp."""

    __test__ = True


class TestWelcomeIpc(Welcome):
    """Over unix sockets."""

    __test__ = True
    transport = "ipc"


def test_the_stock_blocking_client_runs_cells_by_the_name_of_our_kernelspec() -> None:
    """jupyter_client finds the kernelspec, starts the kernel, and gets result, text and reply."""
    manager, client = start_new_kernel(kernel_name=KERNEL)
    try:
        seen: list[tuple[str, Any]] = []
        reply = client.execute_interactive(
            "print('hazel'); 6*7", timeout=30, output_hook=lambda m: seen.append((m["msg_type"], m["content"]))
        )
        outputs = dict(seen)
        assert reply["content"]["status"] == "ok"
        assert "".join(content["text"] for kind, content in seen if kind == "stream") == "hazel\n"
        assert outputs["execute_result"]["data"] == {"text/plain": "42"}
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


@pytest.mark.anyio
async def test_the_stock_async_client_runs_cells_by_the_name_of_our_kernelspec() -> None:
    """So does jupyter_client's async side."""
    manager, client = await start_new_async_kernel(kernel_name=KERNEL)
    try:
        assert isinstance(client, AsyncKernelClient)
        reply = await client.execute("6*7", reply=True, timeout=30)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel()


def test_input_is_asked_of_the_stock_client() -> None:
    """A cell that calls `input()` or `getpass()` asks the client that ran it, and gets its answer (R15)."""
    manager, client = start_new_kernel(kernel_name=KERNEL)
    asked: list[tuple[str, bool]] = []

    def answer(message: dict[str, Any]) -> None:
        asked.append((message["content"]["prompt"], message["content"]["password"]))
        client.input(f"answer {len(asked)}")

    try:
        seen: list[Any] = []
        reply = client.execute_interactive(
            "from getpass import getpass\ninput('name? '), getpass('secret? ')",
            allow_stdin=True,
            timeout=30,
            stdin_hook=answer,
            output_hook=seen.append,
        )
        assert reply["content"]["status"] == "ok"
        assert asked == [("name? ", False), ("secret? ", True)]
        [result] = [message["content"] for message in seen if message["msg_type"] == "execute_result"]
        assert result["data"]["text/plain"] == "('answer 1', 'answer 2')"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
