"""Environments with a kernel in them: found by their files, named, activated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.environments import (
    Environments,
    active_environment,
    environment_spec,
    environment_specs,
    find_environments,
)
from cobnut_kernel.kernelspec import KernelSpec, KernelSpecManager, own_spec

if TYPE_CHECKING:
    from pathlib import Path


def make_environment(prefix: Path, version: str = "3.12", **settings: str) -> Path:
    """Make the files of a virtual environment; its interpreter cannot run."""
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").touch(mode=0o755)
    lines = {"home": "/usr/bin", "version": f"{version}.4", **settings}
    (prefix / "pyvenv.cfg").write_text("".join(f"{key.replace('_', '-')} = {value}\n" for key, value in lines.items()))
    packages = prefix / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    return packages


def add_package(folder: Path, name: str) -> None:
    """Put a package into a folder of packages."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()


@pytest.mark.parametrize(
    ("packages", "module", "interrupt_mode"),
    [
        (["ipykernel"], "ipykernel_launcher", "signal"),
        (["cobnut_kernel"], "cobnut_kernel", "message"),
        (["ipykernel", "cobnut_kernel"], "cobnut_kernel", "message"),
    ],
)
def test_an_environment_with_a_kernel_in_it_is_one(
    tmp_path: Path, packages: list[str], module: str, interrupt_mode: str
) -> None:
    """Its interpreter runs cobnut's kernel, or else ipykernel, as if the environment was activated."""
    prefix = tmp_path / "Data Science"
    for name in packages:
        add_package(make_environment(prefix) if not prefix.exists() else next(prefix.glob("lib/*/site-packages")), name)
    spec = environment_spec(prefix)
    assert spec is not None
    assert spec.argv[0] == str(prefix / "bin" / "python")
    assert spec.argv[-3:] == [module, "-f", "{connection_file}"]
    assert spec.interrupt_mode == interrupt_mode
    assert (spec.name, spec.display_name) == ("data-science", "Python 3.12 (data-science)")
    assert spec.env == {"VIRTUAL_ENV": str(prefix), "PATH": f"{prefix}/bin:${{PATH}}"}


def test_an_environment_without_a_kernel_is_none(tmp_path: Path) -> None:
    """Nothing is offered that could not start: no package, a left-over folder, no interpreter, no environment."""
    packages = make_environment(tmp_path / "bare")
    assert environment_spec(tmp_path / "bare") is None
    (packages / "ipykernel").mkdir()  # an uninstalled package may leave its caches
    assert environment_spec(tmp_path / "bare") is None
    add_package(make_environment(tmp_path / "broken"), "ipykernel")
    python = tmp_path / "broken" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "removed")
    assert environment_spec(tmp_path / "broken") is None
    assert environment_spec(tmp_path / "nothing") is None


def test_editable_installations_are_seen(tmp_path: Path) -> None:
    """A package that is used in place, by a path or by an import hook, is installed too."""
    add_package(tmp_path / "source", "cobnut_kernel")
    packages = make_environment(tmp_path / "by-path")
    (packages / "_cobnut.pth").write_text(f"# a comment\nimport nothing\n{tmp_path / 'source'}\n")
    by_path = environment_spec(tmp_path / "by-path")
    assert by_path is not None
    assert "cobnut_kernel" in by_path.argv

    info = make_environment(tmp_path / "by-hook") / "ipykernel-7.0.dist-info"
    info.mkdir()
    assert environment_spec(tmp_path / "by-hook") is None
    (info / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {"editable": true}}')
    by_hook = environment_spec(tmp_path / "by-hook")
    assert by_hook is not None
    assert "ipykernel_launcher" in by_hook.argv
    for other in ('{"url": "file:///x", "dir_info": {}}', "[", "[]"):
        (info / "direct_url.json").write_text(other)
        assert environment_spec(tmp_path / "by-hook") is None


def test_packages_of_the_system_count_where_the_environment_uses_them(tmp_path: Path) -> None:
    """With `include-system-site-packages` the base interpreter's packages are looked at too."""
    for inside in ("lib/python3.12/site-packages", "lib/python3/dist-packages", "local/lib/python3.12/dist-packages"):
        base = tmp_path / inside.replace("/", "_")
        add_package(base / inside, "ipykernel")
        for number, used in enumerate(("true", "false")):
            prefix = tmp_path / f"{base.name}-{number}"
            make_environment(prefix, home=str(base / "bin"), include_system_site_packages=used)
            assert (environment_spec(prefix) is not None) == (used == "true")


def test_packages_for_another_python_do_not_count(tmp_path: Path) -> None:
    """An upgraded environment keeps the old version's packages, which its interpreter does not see."""
    make_environment(tmp_path / "env", "3.13")
    add_package(tmp_path / "env/lib/python3.12/site-packages", "ipykernel")
    assert environment_spec(tmp_path / "env") is None


def test_a_conda_environment_is_one(tmp_path: Path) -> None:
    """Conda has no pyvenv.cfg: the version is the interpreter's name."""
    prefix = tmp_path / "envs" / "science"
    add_package(prefix / "lib/python3.11/site-packages", "ipykernel")
    (prefix / "conda-meta").mkdir()
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python3.11").touch(mode=0o755)
    (prefix / "bin" / "python").symlink_to("python3.11")
    spec = environment_spec(prefix)
    assert spec is not None
    assert (spec.name, spec.display_name) == ("science", "Python 3.11 (science)")
    assert spec.env["CONDA_PREFIX"] == str(prefix)
    assert spec.argv[0] == str(prefix / "bin" / "python")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("thing/.venv", "thing"),
        ("thing/venv", "thing"),
        ("thing/py312", "py312"),
        ("cobnut/.venv", "cobnut-venv"),
        ("python3", "python3-python3"),
        ("Ünïcode", "n-code"),
    ],
)
def test_an_environment_is_named_by_the_folder_that_says_most(tmp_path: Path, folder: str, name: str) -> None:
    """`.venv` is named by its project; the names of our own and the native kernel are not taken."""
    add_package(make_environment(tmp_path / folder), "ipykernel")
    spec = environment_spec(tmp_path / folder)
    assert spec is not None
    assert spec.name == name


def test_a_dollar_in_a_folders_name_is_no_variable(tmp_path: Path) -> None:
    """The values of a spec's env are templates: what is meant literally is escaped."""
    add_package(make_environment(tmp_path / "cash$HOME"), "ipykernel")
    spec = environment_spec(tmp_path / "cash$HOME")
    assert spec is not None
    assert spec.env["VIRTUAL_ENV"] == f"{tmp_path}/cash$$HOME"


def test_the_environment_we_run_in_is_our_own_kernel(tmp_path: Path) -> None:
    """For our own prefix, by whatever path, the kernel is ours."""
    (tmp_path / "link").symlink_to(sys.prefix)
    for prefix in (sys.prefix, tmp_path / "link"):
        spec = environment_spec(prefix)
        assert spec is not None
        assert (spec.name, spec.argv) == ("cobnut", own_spec().argv)


def test_the_active_environment_is_the_activated_one_or_this_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VIRTUAL_ENV, then CONDA_PREFIX, then `.venv` here; what has no interpreter is passed over."""
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.chdir(tmp_path)
    assert active_environment() is None
    for name in (".venv", "conda", "virtual"):
        make_environment(tmp_path / name)
    assert active_environment() == tmp_path / ".venv"
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    assert active_environment() == tmp_path / "conda"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "virtual"))
    assert active_environment() == tmp_path / "virtual"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "removed"))
    assert active_environment() == tmp_path / "conda"


def test_a_removed_working_folder_has_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this folder is gone, there is nothing in it, and no error."""
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert active_environment() is None


def test_an_environments_kernel_can_do_what_its_own_spec_says(tmp_path: Path) -> None:
    """The metadata come from the kernel.json that the package installed there; a broken or missing one says nothing."""
    add_package(make_environment(tmp_path / "env"), "ipykernel")
    folder = tmp_path / "env/share/jupyter/kernels/python3"
    folder.mkdir(parents=True)
    for content, metadata in (
        ('{"argv": ["python"], "metadata": {"supported_encryption": ["curve"]}}', {"supported_encryption": ["curve"]}),
        ('{"argv": ["python"]}', {}),
        ("{", {}),
    ):
        (folder / "kernel.json").write_text(content)
        spec = environment_spec(tmp_path / "env")
        assert spec is not None
        assert spec.metadata == metadata


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which no environment is at hand, with a home of its own."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON_INSTALL_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "project" / "inside").mkdir(parents=True)
    return tmp_path / "project" / "inside"


def with_kernel(prefix: Path, version: str = "3.12") -> Path:
    """Make an environment with ipykernel in it."""
    add_package(make_environment(prefix, version), "ipykernel")
    return prefix


def test_the_environments_at_hand_are_kernels(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The activated one, the project's, conda's, uv's and that on PATH, each once, named by its folder."""
    assert environment_specs(bare) == {}
    with_kernel(bare.parent / ".venv")
    monkeypatch.setenv("VIRTUAL_ENV", str(with_kernel(tmp_path / "active")))
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", "../uv-env")
    with_kernel(bare.parent / "uv-env")
    with_kernel(tmp_path / "conda/envs/science")
    monkeypatch.setenv("CONDA_PREFIX", str(with_kernel(tmp_path / "conda/envs/active-conda")))
    (tmp_path / "home/.conda").mkdir(parents=True)
    (tmp_path / "home/.conda/environments.txt").write_text(
        f"{with_kernel(tmp_path / 'listed')}\n\n{tmp_path}/gone\n{tmp_path}/active\n"
    )
    with_kernel(tmp_path / "home/.local/share/uv/python/cpython-3.13", "3.13")
    make_environment(tmp_path / "home/.local/share/uv/python/cpython-bare", "3.13")
    (with_kernel(tmp_path / "on-path") / "bin/python3.12").touch(mode=0o755)
    (with_kernel(tmp_path / "linked") / "bin/python3.12").touch(mode=0o755)
    (tmp_path / "shims").mkdir()
    (tmp_path / "shims/python3.11").touch(mode=0o755)
    (tmp_path / "shims/python3.12").symlink_to(tmp_path / "linked/bin/python3.12")
    monkeypatch.setenv("PATH", f"{tmp_path}/on-path/bin::{tmp_path}/shims:{tmp_path}/missing:{tmp_path}/on-path/bin")
    specs = environment_specs(bare)
    assert list(specs) == [
        "active", "active-conda", "uv-env", "project", "listed", "science", "cpython-3.13", "on-path",
    ]  # fmt: skip
    assert all(spec.name == name for name, spec in specs.items())
    assert specs["project"].argv[0] == str(bare.parent / ".venv/bin/python")


def test_an_installation_of_python_is_named_by_its_version(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter on PATH that is no environment, by a link too, is found with the system's packages."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.12").touch(mode=0o755)
    (tmp_path / "usr/bin/python3").symlink_to("python3.12")
    (tmp_path / "usr/lib/python3.12").mkdir(parents=True)
    (tmp_path / "usr/lib/python3.12/os.py").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3.12").symlink_to(tmp_path / "usr/bin/python3.12")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{tmp_path}/usr/bin")
    assert environment_specs(bare) == {}
    add_package(tmp_path / "usr/lib/python3/dist-packages", "ipykernel")
    specs = environment_specs(bare)
    assert list(specs) == ["python3.12"]
    assert specs["python3.12"].argv[0] == str(tmp_path / "usr/bin/python3")
    assert specs["python3.12"].env == {}


def test_names_are_unique(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments of the same name get that of the folder around them, or a number; other kernels keep theirs."""
    (tmp_path / "home/.conda").mkdir(parents=True)
    prefixes = [tmp_path / "a/science", tmp_path / "b/science", tmp_path / "c/b/science", tmp_path / "a/taken"]
    (tmp_path / "home/.conda/environments.txt").write_text("\n".join(str(with_kernel(prefix)) for prefix in prefixes))
    found = find_environments(bare, taken={"taken"})
    assert list(found.specs) == ["science", "science-b", "science-2", "taken-a"]


def test_what_is_wrong_with_an_environment_is_told(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the user has activated or the project has is explained; one that merely lies around is passed over."""
    make_environment(bare / ".venv")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "dangling"))
    (tmp_path / "dangling/bin").mkdir(parents=True)
    (tmp_path / "dangling/bin/python").symlink_to(tmp_path / "removed")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "gone"))
    (tmp_path / "home/.conda").mkdir(parents=True)
    (tmp_path / "home/.conda/environments.txt").write_text(f"{tmp_path}/nothing\n")
    found = find_environments(bare)
    assert found.specs == {}
    assert set(found.broken) == {"inside", "dangling", "gone"}
    assert f"{bare}/.venv/bin/python -m pip install ipykernel" in found.broken["inside"]
    assert "leads to one that is gone: make the environment again" in found.broken["dangling"]
    assert "there is no interpreter" in found.broken["gone"]


def test_the_one_we_run_in_is_left_out(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is our own, under our own name."""
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert find_environments(bare) == Environments({}, {})


def test_kernelspecs_and_environments_are_offered_together(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With find_environments set they can be started by name, and explained; a kernelspec keeps its name."""
    with_kernel(bare.parent / ".venv")
    monkeypatch.chdir(bare)
    make_environment(tmp_path / "empty")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "empty"))
    assert "project" not in KernelSpecManager(kernel_dirs=[]).find_kernel_specs()
    specs = KernelSpecManager(kernel_dirs=[], find_environments=True)
    assert "project" in specs.find_kernel_specs()
    assert specs.get_kernel_spec("project").argv[0] == str(bare.parent / ".venv/bin/python")
    assert "project" in specs.get_all_specs()
    assert "pip install ipykernel" in specs.broken_specs()["empty"]
    installed = KernelSpec(argv=["x"], display_name="mine")
    both = KernelSpecManager(kernel_dirs=[], find_environments=True, extra_specs={"project": installed})
    assert both.get_kernel_spec("project") is installed
    assert both.get_kernel_spec("project-" + tmp_path.name.lower().replace("[", "-").strip("-")).argv != ["x"]


def test_an_environment_that_is_offered_already_is_not_offered_twice(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its spec was given by hand, as the console does with its first kernel, there is no second name for it."""
    with_kernel(bare.parent / ".venv")
    monkeypatch.chdir(bare)
    spec = environment_spec(bare.parent / ".venv")
    assert spec is not None
    both = KernelSpecManager(kernel_dirs=[], find_environments=True, extra_specs={"mine": spec})
    assert [name for name in both.find_kernel_specs() if "project" in name] == []
