"""The first kernel: by name, else the active environment's, else our own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cobnut.scratch import Scratch, choose_scratch
from cobnut_kernel.errors import NoSuchKernel
from cobnut_kernel.kernelspec import KernelSpecManager

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def specs(tmp_path: Path) -> KernelSpecManager:
    """Find kernelspecs in no folder of this machine."""
    return KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")])


def environment(path: Path, package: str = "") -> Path:
    """Make something that looks like a virtual environment, with a package in it."""
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    (path / "pyvenv.cfg").write_text(f"version = {sys.version_info.major}.{sys.version_info.minor}.0\n")
    library = path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    library.mkdir(parents=True)
    if package:
        (library / package).mkdir()
        (library / package / "__init__.py").touch()
        (library / package / "__main__.py").touch()
    return path


def test_our_own_without_an_environment(specs: KernelSpecManager) -> None:
    """With nothing active it is our own kernel, and nothing is to be said."""
    assert choose_scratch(specs, None) == Scratch("cobnut")


def test_the_name_that_is_given_comes_first(
    specs: KernelSpecManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--kernel beats the active environment."""
    monkeypatch.setenv("VIRTUAL_ENV", str(environment(tmp_path / "analysis", "ipykernel")))
    assert choose_scratch(specs, "cobnut") == Scratch("cobnut")


def test_an_unknown_name_is_refused_with_those_there_are(specs: KernelSpecManager) -> None:
    """The error names the kernels that exist."""
    with pytest.raises(NoSuchKernel, match=r"no kernel named 'pyhton'.*cobnut"):
        choose_scratch(specs, "pyhton")


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", ".venv"])
def test_the_active_environment(
    specs: KernelSpecManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """An environment with a kernel in it is used, and its kernel can be started by its name from then on."""
    prefix = tmp_path / (".venv" if variable == ".venv" else "analysis")
    environment(prefix, "ipykernel")
    if variable != ".venv":
        monkeypatch.setenv(variable, str(prefix))
    scratch = choose_scratch(specs, None)
    assert scratch.note == ""
    assert specs.get_kernel_spec(scratch.spec_name).argv[0] == str(prefix / "bin" / "python")


def test_an_environment_without_a_kernel(
    specs: KernelSpecManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is our own, and one line says what to install where."""
    prefix = environment(tmp_path / "bare")
    monkeypatch.setenv("VIRTUAL_ENV", str(prefix))
    scratch = choose_scratch(specs, None)
    assert scratch.spec_name == "cobnut"
    assert f"{prefix}/bin/python -m pip install ipykernel" in scratch.note
    assert "\n" not in scratch.note
