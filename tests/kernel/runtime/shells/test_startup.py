"""The user's profile: configuration, extensions, lines and files, as IPython has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.wire import KernelProcess, WireClient

Start = "Callable[..., KernelProcess]"


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default profile of an IPython folder of its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("PYTHONSTARTUP", raising=False)
    folder = tmp_path / "profile_default"
    (folder / "startup").mkdir(parents=True)
    return folder


def connect(start_kernel: Callable[..., KernelProcess]) -> WireClient:
    """Start a kernel and connect to it."""
    return start_kernel().connect()


def test_startup_files_run_before_the_first_cell_in_order(
    profile: Path, start_kernel: Callable[..., KernelProcess]
) -> None:
    """Python files and IPython ones; their names are the user's."""
    (profile / "startup" / "10-first.py").write_text("order = ['first']")
    (profile / "startup" / "20-second.ipy").write_text("order.append('second')\n%who_ls")
    assert connect(start_kernel).execute("order").result == "['first', 'second']"


def test_a_startup_file_that_fails_costs_the_others_nothing(
    profile: Path, start_kernel: Callable[..., KernelProcess]
) -> None:
    """The kernel starts, and the next file runs."""
    (profile / "startup" / "10-broken.py").write_text("1 / 0")
    (profile / "startup" / "20-exits.py").write_text("import sys; sys.exit(3)")
    (profile / "startup" / "30-good.py").write_text("good = True")
    assert connect(start_kernel).execute("good").result == "True"


def test_kernel_info_is_answered_while_startup_files_run(
    profile: Path, start_kernel: Callable[..., KernelProcess]
) -> None:
    """And an interrupt ends them (R56)."""
    (profile / "startup" / "slow.py").write_text("import time\nnapping = True\ntime.sleep(60)")
    client = connect(start_kernel)
    assert client.ask(MessageType.KERNEL_INFO_REQUEST).content["status"] == "ok"
    cell = client.send_code("napping")
    while not cell.idle:  # until the file runs there is nothing to interrupt
        client.control(MessageType.INTERRUPT_CELLS_REQUEST, msg_ids=[""])
        client.control(MessageType.INTERRUPT_REQUEST) if not cell.iopub else None
        client.receive(0.1)
        if cell.replies and cell.content["status"] == "aborted":
            cell = client.send_code("napping")
    assert cell.result == "True"


def test_the_configuration_is_that_of_the_profile(profile: Path, start_kernel: Callable[..., KernelProcess]) -> None:
    """IPython's own file and the one for kernels, the later over the earlier; lines and extensions are run."""
    (profile / "ipython_config.py").write_text(
        "c = get_config()\nc.InteractiveShell.ast_node_interactivity = 'all'\n"
        "c.InteractiveShellApp.exec_lines = ['line = 1']\n"
        "c.InteractiveShellApp.extensions = ['IPython.extensions.autoreload', 'no_such_extension']\n"
        "c.IPCompleter.use_jedi = True"
    )
    (profile / "ipython_kernel_config.py").write_text("c.IPCompleter.use_jedi = False")
    client = connect(start_kernel)
    cell = client.execute(
        "line\nget_ipython().Completer.use_jedi\n'autoreload' in get_ipython().magics_manager.magics['line']"
    )
    results = [content["data"]["text/plain"] for content in cell.of_type(MessageType.EXECUTE_RESULT)]
    assert results == ["1", "False", "True"]


def test_a_broken_configuration_is_passed_over(profile: Path, start_kernel: Callable[..., KernelProcess]) -> None:
    """The log says which file, and the kernel runs."""
    (profile / "ipython_config.py").write_text("this is no Python")
    kernel = start_kernel()
    assert kernel.connect().execute("6 * 7").result == "42"
    assert "ipython_config.py is broken" in kernel.stderr


def test_the_file_of_pythonstartup_runs(
    profile: Path, start_kernel: Callable[..., KernelProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Python's own prompt."""
    file = profile / "python.py"
    file.write_text("from_python = 1")
    monkeypatch.setenv("PYTHONSTARTUP", str(file))
    assert connect(start_kernel).execute("from_python").result == "1"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("%subshell", "This cell runs in: the main shell"),
        ("%connect_info", '"shell_port"'),
        ("%store", "Stored variables"),
        ("%autoawait", "IPython autoawait is `on`"),
    ],
)
def test_magics_of_kernels_are_there(client: WireClient, code: str, text: str) -> None:
    """Ours, and those that IPython's own programs load."""
    assert text in client.execute(code).text()
