"""nbclient and papermill execute notebooks on the kernels of our managers, of either colour, given to them as `km`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
import pytest
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tests.kernel.leftovers import leaving_nothing, private_runtime
from traitlets.config import Config

from cobnut_kernel import AsyncKernelManager, KernelDiedError, KernelManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)

Manager = AsyncKernelManager | KernelManager


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep away from the configuration and the history of whoever runs the tests, and leave nothing behind."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for runtime in private_runtime(monkeypatch):
        for _ in leaving_nothing(runtime):
            yield


@pytest.fixture(autouse=True, scope="module")
def _loop() -> None:
    """Make the loop that nbclient keeps for a thread before anything is counted."""
    ensure_event_loop()


@pytest.fixture(params=[AsyncKernelManager, KernelManager])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    """A manager of each colour, whose kernel is ended with the test."""
    made: Manager = request.param(kernel_name="cobnut")
    yield made
    stop(made)


def stop(manager: Manager) -> None:
    """Stop a kernel, whatever the colour of its manager."""
    face = manager if type(manager) is KernelManager else KernelManager.of(manager)  # type: ignore[arg-type]
    face.shutdown_kernel(now=True)


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    """Make a notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@contextmanager
def runner(manager: Manager, *sources: str, **options: Any) -> Iterator[NotebookClient]:
    """Make an nbclient of a manager; it leaves the client of a manager that it was given to whoever gave it."""
    client = NotebookClient(notebook_of(*sources), km=manager, **{"timeout": 60, **options})
    try:
        yield client
    finally:
        if client.kc is not None:
            client.kc.stop_channels()


# ── nbclient ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nbclient_executes_a_notebook(manager: Manager, tmp_path: Path) -> None:
    """Outputs of all kinds, in the notebook's folder; the kernel is started by nbclient, and stays for its owner."""
    sources = ("x = 6\nprint('hazel')", "x * 7", "import os; os.getcwd()", "import sys; print('s', file=sys.stderr)")
    with runner(manager, *sources, resources={"metadata": {"path": str(tmp_path)}}) as client:
        client.execute()
        cells = client.nb.cells
        assert "".join(output["text"] for output in cells[0].outputs) == "hazel\n"
        assert cells[1].outputs[0]["data"]["text/plain"] == "42"
        assert cells[2].outputs[0]["data"]["text/plain"] == repr(str(tmp_path))
        assert cells[3].outputs[0]["name"] == "stderr"
        assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
        assert client.nb.metadata.language_info.name == "python"
        assert manager.has_kernel
        client.execute()
        assert client.nb.cells[1].outputs[0]["data"]["text/plain"] == "42"


def test_nbclient_gives_ipykernel_its_options(manager: Manager) -> None:
    """It asks `ipykernel`, and passes arguments for that kernel's command; the flood of a cell arrives whole."""
    manager.kernel_name = "python3"
    with runner(manager, "for n in range(5000): print(n)", "__import__('sys').argv") as client:
        client.execute()
        assert client.nb.cells[0].outputs[0]["text"].endswith("4999\n")
        assert len(client.nb.cells[0].outputs[0]["text"].splitlines()) == 5000


def test_nbclient_tells_of_a_cell_that_fails(manager: Manager) -> None:
    """The error carries name, text and traceback; cells that may fail do, and the next ones run."""
    with runner(manager, "'before'", "1 / 0", "'after'") as client:
        with pytest.raises(CellExecutionError, match=r"ZeroDivisionError.*: division by zero"):
            client.execute()
        assert client.nb.cells[0].outputs[0]["data"]["text/plain"] == "'before'"
        assert client.nb.cells[2].outputs == []
    with runner(manager, "1 / 0", "'after'", allow_errors=True) as client:
        client.execute()
        assert client.nb.cells[0].outputs[0]["ename"] == "ZeroDivisionError"
        assert client.nb.cells[1].outputs[0]["data"]["text/plain"] == "'after'"


def test_nbclient_ends_a_cell_that_takes_too_long() -> None:
    """It is told by an error; or interrupted, and the next cell runs.

    With the async manager only: while a blocking client waits, nbclient's clock stands still.
    """
    sleeper = "import time\ntime.sleep(60)"
    first, second = (AsyncKernelManager(kernel_name="cobnut") for _ in range(2))
    with runner(first, sleeper, timeout=1) as client, pytest.raises(CellTimeoutError):
        client.execute()
    with runner(second, sleeper, "'after'", timeout=1, interrupt_on_timeout=True, allow_errors=True) as client:
        client.execute()
        assert client.nb.cells[0].outputs[-1]["ename"] == "KeyboardInterrupt"
        assert client.nb.cells[1].outputs[0]["data"]["text/plain"] == "'after'"
    stop(first)
    stop(second)


def death(manager: Manager) -> type[Exception]:
    """What is raised when the kernel dies: nbclient's own error, by its watch, which a blocking client holds up."""
    return DeadKernelError if type(manager) is AsyncKernelManager else KernelDiedError


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_nbclient_tells_of_a_kernel_that_dies(manager: Manager, end: str) -> None:
    """By its own error, or ours with the reason; nobody waits for ever, and the manager knows why."""
    with runner(manager, f"import os\n{end}") as client, pytest.raises(death(manager)):
        client.execute()
    assert str(manager.death) == ("exit code 3" if "exit" in end else "killed by SIGKILL")


@pytest.mark.parametrize("manager_class", [AsyncKernelManager, KernelManager])
def test_nbclient_makes_ends_and_cleans_up_a_manager_of_its_own(manager_class: type[Manager]) -> None:
    """As `kernel_manager_class`, with its configuration; its client goes on through `cleanup_resources`."""
    made: list[Any] = []

    class Mine(NotebookClient):
        def create_kernel_manager(self) -> Any:
            """Make one of ours."""
            self.km: Any = manager_class(kernel_name="cobnut", config=self.config)
            made.append(self.km)
            return self.km

    config = Config({"KernelManager": {"shutdown_wait_time": 7.0}})
    notebook = notebook_of("6 * 7")
    Mine(notebook, timeout=60, config=config).execute()
    assert notebook.cells[0].outputs[0]["data"]["text/plain"] == "42"
    assert (made[0].has_kernel, made[0].shutdown_wait_time) == (False, 7.0)


@pytest.mark.anyio
async def test_nbclient_in_a_running_loop(manager: Manager) -> None:
    """Its coroutines run on the loop of whoever calls them."""
    with runner(manager, "6 * 7") as client:
        await client.async_execute()
        assert client.nb.cells[0].outputs[0]["data"]["text/plain"] == "42"
        await client.async_execute(cleanup_kc=True)
    assert not manager.has_kernel


def test_nbclient_takes_a_kernel_that_runs_already(manager: Manager) -> None:
    """What others have done in it is there."""
    face = manager if type(manager) is KernelManager else KernelManager.of(manager)  # type: ignore[arg-type]
    face.start_kernel()
    with face.client() as client:
        client.wait_for_ready(timeout=60)
        client.execute("x = 42", reply=True, timeout=60)
    with runner(manager, "x") as notebook_client:
        notebook_client.execute()
        assert notebook_client.nb.cells[0].outputs[0]["data"]["text/plain"] == "42"


# ── papermill ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A notebook with parameters."""
    notebook = notebook_of("numbers, end = 3, False", "import os\nif end: os._exit(3)", "sum(range(numbers))")
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "cobnut", "display_name": "cobnut", "language": "python"}
    path = tmp_path / "template.ipynb"
    nbformat.write(notebook, path)
    return path


def papermill_with(manager: Manager, template: Path, **parameters: Any) -> list[Any]:
    """Fill in and execute a notebook with our manager, which goes through papermill's engine to nbclient."""
    result = template.with_name("result.ipynb")
    try:
        papermill.execute_notebook(template, result, parameters=parameters, progress_bar=False, km=manager)
    finally:
        cells = json.loads(result.read_text())["cells"]
    return cells


# It does not stop the client of a manager that it was given, and nobody else can.
@pytest.mark.filterwarnings("ignore:A kernel client was dropped:ResourceWarning")
def test_papermill_fills_in_and_executes_a_notebook(manager: Manager, template: Path) -> None:
    """The parameters count; a cell that fails and a kernel that dies are told, and what was done is written."""
    cells = papermill_with(manager, template, numbers=10)
    assert cells[-1]["outputs"][0]["data"]["text/plain"] == ["45"]
    assert manager.has_kernel
    with pytest.raises(PapermillExecutionError, match="'str' object cannot be interpreted as an integer"):
        papermill_with(manager, template, numbers="many")
    with pytest.raises(death(manager)):
        papermill_with(manager, template, end=True)
    assert str(manager.death) == "exit code 3"
