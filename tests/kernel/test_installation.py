"""Kernelspecs from the command line: installed whole, never over another one by accident, listed, uninstalled."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager as StockManager

from cobnut_kernel import installation
from cobnut_kernel.command_line import main
from cobnut_kernel.kernelspec import KernelSpecManager, own_spec
from cobnut_kernel.manager.manager import AsyncKernelManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Command = Callable[..., tuple[Any, str, str]]


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's kernelspecs; no other one is looked in."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    return tmp_path / "data" / "kernels"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command; returns its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        status: Any = 0
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def content(folder: Path) -> dict[str, Any]:
    """Read a kernelspec."""
    return json.loads((folder / "kernel.json").read_text())


# ── install ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_is_installed_as_asked(command: Command, kernels: Path) -> None:
    """Name, display name, settings, backend and environment are in its spec, our pictures beside it."""
    status, out, err = command(
        "install", "Science", "--display-name", "The science", "--backend", "trio", "--set", "transport=ipc",
        "--Kernel.ip=/run/x", "--env", "A", "${HOME}/a", "--env", "B", "b=c", "--HistoryManager.hist_file=:memory:",
    )  # fmt: skip
    place = kernels / "science"
    assert (status, out, err) == (0, f"Installed 'The science' as 'science' in {place}\n", "")
    settings = ["anyio_backend=trio", "transport=ipc", "Kernel.ip=/run/x", "HistoryManager.hist_file=:memory:"]
    assert content(place) == {
        **own_spec().to_dict(),
        "argv": [*own_spec().argv, *(part for setting in settings for part in ("--set", setting))],
        "display_name": "The science",
        "env": {"A": "${HOME}/a", "B": "b=c"},
    }
    assert (place / "logo-svg.svg").read_text().startswith("<svg")
    assert (place.stat().st_mode & 0o777, (place / "kernel.json").stat().st_mode & 0o777) == (0o755, 0o644)


def test_what_is_installed_is_found_by_everybody(command: Command, kernels: Path) -> None:
    """Jupyter's own manager and ours read the same spec."""
    command("install", "science")
    stock = StockManager(data_dir=str(kernels.parent)).get_kernel_spec("science")
    ours = KernelSpecManager().get_kernel_spec("science")
    assert stock.resource_dir == ours.resource_dir == str(kernels / "science")
    assert stock.argv == ours.argv == own_spec().argv
    assert (stock.display_name, stock.interrupt_mode, stock.metadata) == (
        "Python 3 (science)",
        "message",
        ours.metadata,
    )


@pytest.mark.anyio
async def test_what_is_installed_runs(command: Command, tmp_path: Path) -> None:
    """With its environment and settings, in a process of the interpreter that installed it."""
    links = '[{"text": "Hazel", "url": "https://example.org"}]'
    command("install", "mine", "--env", "NUTS", "${USER}-3", "--set", f"help_links={links}")
    manager = AsyncKernelManager(kernel_name="mine")
    await manager.start_kernel(cwd=str(tmp_path), env={**os.environ, "USER": "hazel"})
    async with manager.client() as client:
        assert (await client.wait_for_ready(30)).content["help_links"] == json.loads(links)
        code = "import os, sys; print(os.environ['NUTS'], sys.executable)"
        text = "".join([m.content["text"] async for m in client.run(code) if m.msg_type == "stream"])
        assert text == f"hazel-3 {sys.executable}\n"
    await manager.shutdown_kernel()


def test_no_kernel_is_replaced_by_accident(command: Command, kernels: Path) -> None:
    """A name that is taken needs --replace; then everything of the former one is gone."""
    command("install", "science", "--display-name", "First")
    (kernels / "science" / "old").touch()
    status, out, err = command("install", "SCIENCE", "--display-name", "Second")
    assert (status, out) == (1, "")
    assert (
        f"There is a kernelspec 'science' already, in {kernels / 'science'}: choose another name, or give --rep" in err
    )
    assert content(kernels / "science")["display_name"] == "First"
    assert command("install", "science", "--display-name", "Second", "--replace")[0] == 0
    assert content(kernels / "science")["display_name"] == "Second"
    assert not (kernels / "science" / "old").exists()


def test_a_place_below_a_prefix_is_told_if_nobody_looks_there(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--prefix` names any environment, `--sys-prefix` ours."""
    status, out, _ = command("install", "x", "--prefix", str(tmp_path / "opt"))
    assert (status, (tmp_path / "opt/share/jupyter/kernels/x/kernel.json").exists()) == (0, True)
    assert f"Jupyter does not look there yet: add {tmp_path / 'opt/share/jupyter'} to JUPYTER_PATH." in out
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    assert command("install", "x", "--sys-prefix")[0] == 0
    assert (tmp_path / "env/share/jupyter/kernels/x/kernel.json").exists()


def test_a_kernelspec_in_the_shadow_of_another_is_told(command: Command, tmp_path: Path) -> None:
    """Where a folder that comes first has the name, the one that was installed would never be run."""
    first = tmp_path / "path/kernels/x"
    first.mkdir(parents=True)
    (first / "kernel.json").write_text(own_spec().to_json())
    assert f"Another kernelspec of that name comes first: {first}" in command("install", "x")[1]


def test_an_installation_that_fails_leaves_nothing(
    command: Command, kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's reason is told with the file; neither half a kernelspec nor a temporary folder is there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for error, reason in (
        (PermissionError(13, "Permission denied", "/opt/x"), "/opt/x: Permission denied. Choose another place: --user"),
        (OSError(28, "No space left on device", "/opt/x"), "/opt/x: No space left on device."),
        (OSError("something"), "something"),
    ):

        def fail(*_: object, error: OSError = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("shutil.copytree", fail)
            status, out, err = command("install", "science")
        assert (status, out) == (1, "")
        assert reason in err
    assert list(kernels.iterdir()) == []
    assert not list(tmp_path.glob("cobnut-*"))


# ── uninstall ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kernel_is_uninstalled(command: Command, kernels: Path) -> None:
    """Its folder is gone, and it is not there a second time."""
    command("install", "science")
    assert command("uninstall", "Science") == (0, f"Removed {kernels / 'science'}\n", "")
    assert list(kernels.iterdir()) == []
    status, _, err = command("uninstall", "science")
    assert (status, "There is no kernel named 'science'" in err) == (1, True)


def test_only_what_was_installed_by_us_is_uninstalled(
    command: Command, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of others, broken ones, the one without a folder and the package's own stay."""
    (kernels / "r").mkdir(parents=True)
    (kernels / "r" / "kernel.json").write_text('{"argv": ["R"]}')
    (kernels / "bad").mkdir()
    (kernels / "bad" / "kernel.json").write_text("{")
    (kernels / "packaged").mkdir()
    (kernels / "packaged" / "kernel.json").write_text(own_spec().to_json())
    monkeypatch.setattr(installation, "_packaged_folder", lambda: kernels / "packaged")
    for name, reason in {
        "r": "not one of cobnut's kernels: `jupyter kernelspec uninstall r`",
        "bad": "is no JSON",
        "packaged": "came with the package",
    }.items():
        status, out, err = command("uninstall", name)
        assert (status, out, reason in err) == (1, "", True)
    assert sorted(path.name for path in kernels.iterdir()) == ["bad", "packaged", "r"]


def test_the_kernel_without_a_folder_cannot_be_uninstalled(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own kernel is there as long as the package is."""
    monkeypatch.setattr("jupyter_core.paths.ENV_JUPYTER_PATH", [])
    monkeypatch.setattr("jupyter_core.paths.SYSTEM_JUPYTER_PATH", [])
    status, _, err = command("uninstall", "cobnut")
    assert (status, "nothing to remove" in err) == (1, True)


# ── list ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_shows_what_jupyter_finds(command: Command, kernels: Path) -> None:
    """Ours with a star, those of others without, broken ones with what is wrong."""
    command("install", "science", "--display-name", "The science")
    (kernels / "r").mkdir()
    (kernels / "r" / "kernel.json").write_text('{"argv": ["R"], "display_name": "R 4"}')
    (kernels / "bad").mkdir()
    (kernels / "bad" / "kernel.json").write_text("{")
    status, out, err = command("list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert any(line.split() == ["*", "science", "The", "science", str(kernels / "science")] for line in lines)
    assert any(line.split() == ["r", "R", "4", str(kernels / "r")] for line in lines)
    assert any(line.startswith("! bad: ") and "is no JSON" in line for line in lines)
