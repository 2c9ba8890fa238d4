"""The layers hold: in the import graph, and in the modules that a live kernel has loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[2]
NEVER_IN_A_KERNEL = {
    "cobnut", "cobnut_kernel.client", "cobnut_kernel.manager", "cobnut_kernel.provisioning",
    "textual", "jupyter_client", "tornado", "ipykernel",
}  # fmt: skip
NOT_BEFORE_IT_IS_NEEDED = {
    "jedi",
    "parso",
    "debugpy",
    "nbformat",
    "matplotlib",
    "PIL",
    "markdown",
    "stack_data",
    "pexpect",
}
HEAVY = {"zmq", "anyio", "asyncio", "IPython", "traitlets", "textual", "orjson"}


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    report = "import sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def with_parts(modules: set[str], names: set[str]) -> set[str]:
    """Return those names that are loaded, themselves or as a package of what is loaded."""
    return {name for name in names if any(module == name or module.startswith(name + ".") for module in modules)}


def test_the_contracts_of_the_import_graph_hold() -> None:
    """import-linter keeps every contract of pyproject.toml."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_live_kernel_has_loaded_nothing_of_other_layers_and_nothing_too_early() -> None:
    """After its first cell a kernel holds no client, manager or terminal, and nothing that only later work needs."""
    manager, client = start_new_kernel(kernel_name="cobnut")
    try:
        texts: list[str] = []
        client.execute_interactive(
            "import sys; print('\\n'.join(sys.modules))",
            timeout=30,
            output_hook=lambda message: texts.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    modules = set("".join(texts).split())
    assert "cobnut_kernel.runtime.kernel" in modules
    assert with_parts(modules, NEVER_IN_A_KERNEL | NOT_BEFORE_IT_IS_NEEDED) == set()


def test_the_package_alone_imports_nothing() -> None:
    """`import cobnut_kernel` is free: every kernel process runs it first."""
    assert with_parts(modules_after("import cobnut_kernel"), HEAVY | {"cobnut_kernel.errors"}) == set()


@pytest.mark.parametrize("module", ["messages", "json", "codec", "connection", "fork"])
def test_the_protocol_imports_no_input_or_output(module: str) -> None:
    """Each module of the protocol loads without sockets, loops and IPython."""
    modules = modules_after(f"import cobnut_kernel.protocol.{module}")
    assert with_parts(modules, {"zmq", "anyio", "asyncio", "IPython", "traitlets", "socket"}) == set()


def test_the_model_and_the_managers_import_no_textual() -> None:
    """The document and everything of kernels load without the terminal's library."""
    code = (
        "import cobnut.model.document, cobnut.model.history, cobnut_kernel.manager.multi, cobnut_kernel.client.client"
    )
    assert with_parts(modules_after(code), {"textual", "rich"}) == set()


def test_every_public_name_can_be_imported_from_the_root() -> None:
    """What `cobnut_kernel.__all__` promises is there, and another name is an AttributeError that names it."""
    code = "import cobnut_kernel; assert all(getattr(cobnut_kernel, name) for name in cobnut_kernel.__all__)"
    modules_after(code)
    import cobnut_kernel

    with pytest.raises(AttributeError, match="no_such_name"):
        cobnut_kernel.no_such_name  # noqa: B018 - the access is the test
