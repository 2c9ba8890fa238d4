"""Which kernels there are: kernelspecs, environments, and our own."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupyter_client.kernelspec
import pytest
from traitlets.config import Config

from cobnut_kernel import kernelspec
from cobnut_kernel.errors import NoSuchKernel
from cobnut_kernel.kernelspec import (
    KernelSpec,
    KernelSpecManager,
    own_spec,
    provisioner_stanza,
    registers,
)

MINIMAL = {"argv": ["prog", "-f", "{connection_file}"], "display_name": "A kernel", "language": "x"}


def write_spec(folder: Path, name: str, content: Any = MINIMAL, **more: Any) -> Path:
    """Write a kernelspec into a folder of kernelspecs."""
    spec = folder / name
    spec.mkdir(parents=True)
    text = content if isinstance(content, str) else json.dumps({**content, **more})
    (spec / "kernel.json").write_text(text)
    return spec


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders of kernelspecs, the first one first."""
    return [tmp_path / "first", tmp_path / "second"]


@pytest.fixture
def manager(folders: list[Path]) -> KernelSpecManager:
    """A manager that looks into the two folders only."""
    return KernelSpecManager(
        kernel_dirs=[str(folder) for folder in folders], ensure_native_kernel=False, provisioner_names=list
    )


# ── specs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_spec_is_read_as_the_documentation_says(tmp_path: Path) -> None:
    """Every field is read, the interrupt mode in any case; the others have their defaults."""
    more = {"interrupt_mode": "MESSAGE", "env": {"A": "1"}, "metadata": {"m": [1]}, "kernel_protocol_version": "5.5"}
    folder = write_spec(tmp_path, "k", **more)
    spec = KernelSpec.from_resource_dir(folder)
    assert (spec.argv, spec.display_name, spec.language) == (MINIMAL["argv"], "A kernel", "x")
    assert (spec.interrupt_mode, spec.env, spec.metadata) == ("message", {"A": "1"}, {"m": [1]})
    assert spec.resource_dir == str(folder)
    assert json.loads(spec.to_json()) == spec.to_dict() == {**MINIMAL, **more, "interrupt_mode": "message"}
    assert KernelSpec(argv=["x"]).interrupt_mode == "signal"


def test_fields_that_a_spec_should_not_have_are_left_out(tmp_path: Path) -> None:
    """An unknown field is no error, as other tools write their own."""
    spec = KernelSpec.from_resource_dir(write_spec(tmp_path, "k", colour="blue"))
    assert "colour" not in spec.to_dict()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "must hold an object, not"),
        ({"argv": "prog"}, "is broken: .*argv"),
        ({"argv": []}, "its argv names no program"),
        ({"argv": ["prog", 1]}, "is broken: .*argv"),
        ({"argv": ["prog"], "interrupt_mode": "shout"}, "is broken: .*interrupt_mode"),
        ({"argv": ["prog"], "env": ["A"]}, "is broken: .*env"),
        ({}, "its argv names no program"),
    ],
)
def test_a_broken_spec_says_what_is_wrong(tmp_path: Path, content: Any, reason: str) -> None:
    """The error names the file and the fault."""
    folder = write_spec(tmp_path, "k", content)
    with pytest.raises(ValueError, match=reason) as caught:
        KernelSpec.from_resource_dir(folder)
    assert str(folder / "kernel.json") in str(caught.value)


def test_our_own_spec_runs_our_interpreter_safely() -> None:
    """Our kernel is run by the interpreter that we run on, away from files of the user's folder."""
    spec = own_spec()
    assert spec.argv == [sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}"]
    assert (spec.name, spec.interrupt_mode, spec.language) == ("cobnut", "message", "python")


def test_our_own_spec_can_have_settings() -> None:
    """They are part of its command; variables of the environment are its own."""
    spec = own_spec("mine", display_name="Mine", settings={"quiet": "false", "shell.timeout": "1"}, env={"A": "${B}"})
    assert spec.argv == [*own_spec().argv, "--set", "quiet=false", "--set", "shell.timeout=1"]
    assert (spec.name, spec.display_name, spec.env) == ("mine", "Mine", {"A": "${B}"})


def test_the_packaged_kernelspec_is_our_own_spec() -> None:
    """Whoever finds the folder that the package installs gets the kernel that we start without one, with pictures."""
    folder = Path(__file__).parents[2] / "kernel" / "kernelspec"
    packaged = KernelSpec.from_resource_dir(folder)
    assert packaged.to_dict() == {**own_spec().to_dict(), "argv": ["python", *own_spec().argv[1:]]}
    assert (folder / "logo-svg.svg").read_text("utf-8").startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    for size in (32, 64):
        data = (folder / f"logo-{size}x{size}.png").read_bytes()
        assert (data[:8], data[16:24]) == (b"\x89PNG\r\n\x1a\n", size.to_bytes(4) * 2)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"cobnut": {"registration": True}}, True),
        ({"cobnut": {"registration": "yes"}}, False),
        ({"cobnut": {}}, False),
        ({"cobnut": True}, False),
        ({}, False),
    ],
)
def test_only_kernels_that_say_so_register(metadata: dict[str, Any], expected: bool) -> None:
    """The protocol's version says nothing of it: what we do not know to be able is given its ports."""
    assert registers(KernelSpec(argv=["x"], kernel_protocol_version="5.6", metadata=metadata)) is expected


# ── find ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_earlier_folder_wins(manager: KernelSpecManager, folders: list[Path]) -> None:
    """Of two specs of a name the one in the earlier folder counts, whatever the case of the names."""
    write_spec(folders[1], "k", display_name="later")
    first = write_spec(folders[0], "K", display_name="earlier")
    other = write_spec(folders[1], "other")
    assert manager.find_kernel_specs() == {"k": str(first), "other": str(other)}
    assert manager.get_kernel_spec("k").display_name == "earlier"
    assert manager.get_kernel_spec("K").name == "k"


def test_folders_without_a_kernel_json_are_no_specs(manager: KernelSpecManager, folders: list[Path]) -> None:
    """Files, empty folders and folders that are not there are passed over."""
    (folders[0] / "empty").mkdir(parents=True)
    (folders[0] / "file").touch()
    assert manager.find_kernel_specs() == {}
    assert manager.get_all_specs() == {}
    assert manager.broken_specs() == {}


def test_broken_specs_are_explained_and_left_out(manager: KernelSpecManager, folders: list[Path]) -> None:
    """A spec that cannot be used hides no other one, and says why it is not offered."""
    write_spec(folders[0], "good")
    write_spec(folders[0], "bad", "{")
    write_spec(folders[0], "worse", {"argv": []})
    write_spec(folders[0], "what a name")
    assert set(manager.find_kernel_specs()) == {"good", "bad", "worse"}
    assert set(manager.get_all_specs()) == {"good"}
    broken = manager.broken_specs()
    assert set(broken) == {"bad", "worse", "what a name"}
    assert "is no JSON" in broken["bad"]
    assert "only ASCII letters" in broken["what a name"]
    with pytest.raises(NoSuchKernel, match=r"There is a kernelspec of that name, but .*argv names no program"):
        manager.get_kernel_spec("worse")


def test_all_specs_come_as_documented(manager: KernelSpecManager, folders: list[Path]) -> None:
    """`get_all_specs` gives folder and content of each."""
    folder = write_spec(folders[0], "k")
    specs = manager.get_all_specs()
    assert specs == {"k": {"resource_dir": str(folder), "spec": KernelSpec.from_resource_dir(folder).to_dict()}}


def test_a_spec_without_a_display_name_is_called_by_its_name(manager: KernelSpecManager, folders: list[Path]) -> None:
    """A kernel always has something to be shown as."""
    write_spec(folders[0], "k", {"argv": ["prog"]})
    assert manager.get_kernel_spec("k").display_name == "k"


def test_an_unknown_name_is_answered_with_what_there_is(manager: KernelSpecManager, folders: list[Path]) -> None:
    """The error lists the names, and the one that was probably meant."""
    with pytest.raises(NoSuchKernel, match="There is none at all"):
        manager.get_kernel_spec("pyhton3")
    write_spec(folders[0], "python3")
    write_spec(folders[0], "ir")
    with pytest.raises(NoSuchKernel, match=r"no kernel named 'pyhton3'\. Did you mean 'python3'\? .*: ir, python3\."):
        manager.get_kernel_spec("pyhton3")
    with pytest.raises(KeyError):
        manager.get_kernel_spec("nothing-like-it")


def test_allowed_kernelspecs_hide_the_others(manager: KernelSpecManager, folders: list[Path]) -> None:
    """Only allowed names are found and read."""
    write_spec(folders[0], "a")
    write_spec(folders[0], "b")
    manager.allowed_kernelspecs = {"b"}
    assert set(manager.find_kernel_specs()) == {"b"}
    with pytest.raises(NoSuchKernel):
        manager.get_kernel_spec("a")


def test_extra_specs_need_no_folder_and_win(manager: KernelSpecManager, folders: list[Path]) -> None:
    """A spec given by the program is found like any other, and before the folders' one of its name."""
    write_spec(folders[0], "k")
    manager.extra_specs = {"k": KernelSpec(argv=["extra"]), "here": own_spec()}
    assert manager.get_kernel_spec("k").argv == ["extra"]
    assert manager.get_kernel_spec("here").name == "here"
    assert manager.find_kernel_specs()["here"] == ""
    assert set(manager.get_all_specs()) == {"k", "here"}


def test_a_spec_whose_provisioner_is_missing_is_broken(folders: list[Path]) -> None:
    """The provisioner is asked for through the callable that the manager is given; it is named when it is missing."""
    write_spec(folders[0], "far", metadata={"kernel_provisioner": {"provisioner_name": "slurm"}})
    write_spec(folders[0], "near", metadata={"kernel_provisioner": {"provisioner_name": "local-provisioner"}})
    options = {"kernel_dirs": [str(folders[0])], "ensure_native_kernel": False}
    without = KernelSpecManager(provisioner_names=list, **options)
    assert set(without.get_all_specs()) == {"near"}
    assert "'slurm': install" in without.broken_specs()["far"]
    with pytest.raises(NoSuchKernel, match="provisioner 'slurm'"):
        without.get_kernel_spec("far")
    assert set(KernelSpecManager(provisioner_names=lambda: ["slurm"], **options).get_all_specs()) == {"far", "near"}


def test_the_provisioner_stanza_is_read_as_documented() -> None:
    """Name and config come from the metadata; what is no stanza is refused."""
    stanza = {"provisioner_name": "p", "config": {"a": 1}}
    assert provisioner_stanza(KernelSpec(argv=["x"], metadata={"kernel_provisioner": stanza})) == ("p", {"a": 1})
    assert provisioner_stanza(KernelSpec(argv=["x"])) == ("", {})
    assert provisioner_stanza(KernelSpec(argv=["x"], metadata={"kernel_provisioner": {"config": {}}})) == ("", {})
    for wrong in ("p", {"provisioner_name": 1}, {"provisioner_name": "p", "config": "c"}):
        with pytest.raises(ValueError, match="'kernel_provisioner' must be"):
            provisioner_stanza(KernelSpec(argv=["x"], metadata={"kernel_provisioner": wrong}))


def test_jupyters_folders_are_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JUPYTER_PATH comes first, then all the folders that `jupyter --paths` shows."""
    monkeypatch.setenv("JUPYTER_PATH", os.pathsep.join(str(tmp_path / name) for name in ("one", "two")))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    write_spec(tmp_path / "two" / "kernels", "k", display_name="second of the path")
    write_spec(tmp_path / "data" / "kernels", "k", display_name="the user's")
    write_spec(tmp_path / "data" / "kernels", "mine")
    manager = KernelSpecManager()
    shown = subprocess.run(
        [sys.executable, "-m", "jupyter_core", "--paths", "--json"], capture_output=True, check=True, timeout=30
    )
    assert manager.kernel_dirs[:-1] == [f"{folder}/kernels" for folder in json.loads(shown.stdout)["data"]]
    assert manager.kernel_dirs[:2] == [str(tmp_path / name / "kernels") for name in ("one", "two")]
    assert manager.kernel_dirs[-1] == str(Path.home() / ".ipython/kernels")
    assert manager.get_kernel_spec("k").display_name == "second of the path"
    assert "mine" in manager.find_kernel_specs()
    assert manager.user_kernel_dir == str(tmp_path / "data" / "kernels")


def test_traits_are_configured_under_the_fields_section_name() -> None:
    """`c.KernelSpecManager` is the section."""
    config = Config({"KernelSpecManager": {"ensure_native_kernel": False}})
    assert not KernelSpecManager(config=config).ensure_native_kernel


# ── without a folder ────────────────────────────────────────────────────────────────────────────────────────────────


def test_our_own_kernel_is_always_there(tmp_path: Path) -> None:
    """'cobnut' is found where no folder has it; a folder that has it counts."""
    manager = KernelSpecManager(kernel_dirs=[str(tmp_path)])
    assert manager.find_kernel_specs()["cobnut"] == ""
    assert manager.get_kernel_spec("cobnut").argv == own_spec().argv
    assert "cobnut" in manager.get_all_specs()
    write_spec(tmp_path, "cobnut")
    assert manager.get_kernel_spec("cobnut").argv[0] == "prog"


def test_python3_is_the_ipykernel_of_our_interpreter_where_no_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ipykernel is offered where it can be imported, without importing it; otherwise there is no python3."""
    manager = KernelSpecManager(kernel_dirs=[str(tmp_path)])
    spec = manager.get_kernel_spec("python3")
    assert spec.argv == [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    assert Path(spec.resource_dir, "logo-64x64.png").is_file()
    assert manager.find_kernel_specs()["python3"] == spec.resource_dir
    monkeypatch.setattr(kernelspec, "native_spec", lambda: None)
    assert "python3" not in manager.find_kernel_specs()
    with pytest.raises(NoSuchKernel):
        manager.get_kernel_spec("python3")


def test_the_native_kernels_can_be_switched_off(manager: KernelSpecManager) -> None:
    """With `ensure_native_kernel` false only folders count."""
    with pytest.raises(NoSuchKernel):
        manager.get_kernel_spec("cobnut")


def test_finding_our_kernel_in_the_programs_specs_imports_nothing_heavy() -> None:
    """The way from an extra spec to its content goes without jupyter_core, importlib.metadata and a loop."""
    script = """
import sys
from cobnut_kernel.environments import environment_spec
from cobnut_kernel.kernelspec import KernelSpecManager, own_spec
KernelSpecManager(extra_specs={"cobnut": own_spec()}).get_kernel_spec("cobnut")
environment_spec("/usr")
print({"jupyter_core", "importlib.metadata", "asyncio", "ssl", "email", "ipykernel"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True, timeout=30)
    assert done.stdout == "set()\n"


# ── install and remove ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_spec_is_installed_below_a_prefix_and_removed(
    manager: KernelSpecManager, folders: list[Path], tmp_path: Path
) -> None:
    """The folder is copied with all that is in it, replaces a former one, and can be removed by name."""
    source = write_spec(tmp_path, "Mine")
    (source / "logo.png").touch()
    manager.kernel_dirs = [str(tmp_path / "prefix/share/jupyter/kernels")]
    place = Path(manager.install_kernel_spec(source, prefix=str(tmp_path / "prefix")))
    assert place == tmp_path / "prefix/share/jupyter/kernels/mine"
    assert (place / "logo.png").exists()
    (source / "logo.png").unlink()
    manager.install_kernel_spec(source, prefix=str(tmp_path / "prefix"))
    assert [path.name for path in place.parent.iterdir()] == ["mine"]
    assert not (place / "logo.png").exists()
    assert manager.remove_kernel_spec("MINE") == str(place)
    assert not place.exists()
    with pytest.raises(NoSuchKernel, match="nothing to remove"):
        manager.remove_kernel_spec("mine")


def test_a_spec_is_installed_for_the_user(tmp_path: Path) -> None:
    """With `user` it lies in the user's own folder, under the name that is given."""
    manager = KernelSpecManager(data_dir=str(tmp_path / "data"))
    place = manager.install_kernel_spec(write_spec(tmp_path, "k"), "Other", user=True)
    assert place == str(tmp_path / "data/kernels/other")


def test_what_cannot_be_installed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A name that is none, a broken folder, or two places at once leave no trace."""
    manager = KernelSpecManager(data_dir=str(tmp_path / "data"))
    good, bad = write_spec(tmp_path, "good"), write_spec(tmp_path, "bad", "{")
    with pytest.raises(ValueError, match="no name for a kernel"):
        manager.install_kernel_spec(good, "a b", user=True)
    with pytest.raises(ValueError, match="choose one"):
        manager.install_kernel_spec(good, user=True, prefix="/p")
    with pytest.raises(ValueError, match="is no JSON"):
        manager.install_kernel_spec(bad, user=True)
    assert not (tmp_path / "data").exists()


def test_a_failed_installation_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former spec is still whole when the copying fails, and nothing else is left."""
    manager = KernelSpecManager(data_dir=str(tmp_path / "data"))
    source = write_spec(tmp_path, "k")
    place = Path(manager.install_kernel_spec(source, user=True))

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", disk_full)
    with pytest.raises(OSError, match="No space"):
        manager.install_kernel_spec(source, user=True)
    assert [path.name for path in place.parent.iterdir()] == ["k"]
    assert (place / "kernel.json").exists()


def test_removing_a_link_leaves_what_it_links_to(manager: KernelSpecManager, folders: list[Path]) -> None:
    """A spec that is a link loses the link only."""
    real = write_spec(folders[1], "real")
    folders[0].mkdir()
    (folders[0] / "link").symlink_to(real)
    manager.remove_kernel_spec("link")
    assert (real / "kernel.json").exists()


# ── without a manager of one's own ──────────────────────────────────────────────────────────────────────────────────


def test_functions_do_what_a_manager_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They find, read and install in Jupyter's folders, and raise what a manager raises."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    source = write_spec(tmp_path, "Source")
    assert "source" not in kernelspec.find_kernel_specs()
    with pytest.raises(kernelspec.NoSuchKernel, match="There is no kernel named 'source'"):
        kernelspec.get_kernel_spec("source")
    place = kernelspec.install_kernel_spec(str(source), user=True)
    assert place == str(tmp_path / "data" / "kernels" / "source")
    assert kernelspec.find_kernel_specs()["source"] == place
    assert kernelspec.get_kernel_spec("source").argv == MINIMAL["argv"]
    assert kernelspec.install_kernel_spec(source, "other", prefix=str(tmp_path)).startswith(str(tmp_path / "share"))
    with pytest.raises(ValueError, match="choose one"):
        kernelspec.install_kernel_spec(source, user=True, prefix=str(tmp_path))
    assert kernelspec.find_kernel_specs() == KernelSpecManager().find_kernel_specs()


@pytest.mark.parametrize("name", ["find_kernel_specs", "get_kernel_spec", "install_kernel_spec"])
def test_functions_are_called_as_those_of_jupyter_client(name: str) -> None:
    """The same names, in the same order, with the same defaults."""
    ours = inspect.signature(getattr(kernelspec, name)).parameters.values()
    theirs = inspect.signature(getattr(jupyter_client.kernelspec, name)).parameters.values()
    assert [(each.name, each.default) for each in ours] == [(each.name, each.default) for each in theirs]
    assert kernelspec.NATIVE_KERNEL_NAME == jupyter_client.kernelspec.NATIVE_KERNEL_NAME
