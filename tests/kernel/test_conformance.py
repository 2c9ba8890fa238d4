"""What the field expects of a kernel: its conformance suite, and its stock clients, on our kernelspec."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jupyter_kernel_test
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import start_new_async_kernel, start_new_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

NEXT = "the next step brings it"
KERNEL = "cobnut"


def later(test: Any) -> Any:
    """Mark what is not there yet: the day it works, the mark must go."""
    return pytest.mark.xfail(strict=True, reason=NEXT)(test)


class TestConformance(jupyter_kernel_test.KernelTests):
    """jupyter_kernel_test, whole; what our kernel does not do yet is expected to fail."""

    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_execute_result = ({"code": "6*7", "result": "42"},)
    code_generate_error = "raise ValueError('on purpose')"
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
    )
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_page_something = "zip?"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_inspect_sample = "zip"
    supported_history_operations = ("tail", "range", "search")
    code_history_pattern = "1?2*"

    @contextmanager
    def subTest(self, *_: Any, **__: Any) -> Iterator[None]:  # noqa: N802 - unittest's name
        """Let a part that fails fail the test: a strict expected failure sees only the whole."""
        yield

    test_completion = later(jupyter_kernel_test.KernelTests.test_completion)
    test_history = later(jupyter_kernel_test.KernelTests.test_history)
    test_inspect = later(jupyter_kernel_test.KernelTests.test_inspect)
    test_is_complete = later(jupyter_kernel_test.KernelTests.test_is_complete)
    test_pager = later(jupyter_kernel_test.KernelTests.test_pager)


class TestWelcome(jupyter_kernel_test.IopubWelcomeTests):
    """The first thing that a new subscriber hears is the welcome (JEP 65)."""

    kernel_name = KERNEL
    support_iopub_welcome = True


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


@later
def test_input_is_asked_of_the_stock_client() -> None:
    """A cell that calls `input()` asks the client that ran it, and gets its answer."""
    manager, client = start_new_kernel(kernel_name=KERNEL)
    try:
        client.execute("input('name? ')", allow_stdin=True)
        assert client.get_stdin_msg(timeout=2)["content"]["prompt"] == "name? "
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
