"""Environments with a kernel in them: which one is active, and the spec that its files tell; nothing of it is run."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.interpreters import Place, places
from cobnut_kernel.kernelspec import NATIVE_KERNEL_NAME, OWN_NAME, KernelSpec, own_spec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


@dataclass(frozen=True)
class _Maker:
    """A package that makes an environment a kernel."""

    package: str
    distribution: str
    arguments: tuple[str, ...]
    interrupt_mode: str
    spec_name: str


_MAKERS = (
    _Maker("cobnut_kernel", "cobnut", ("-P", "-m", "cobnut_kernel"), "message", OWN_NAME),
    _Maker("ipykernel", "ipykernel", ("-m", "ipykernel_launcher"), "signal", NATIVE_KERNEL_NAME),
)
"""The better one first."""

_NAMELESS = frozenset({".venv", "venv", ".env", "env"})
"""Folder names of environments that say nothing: the folder around them names these."""


def active_environment() -> Path | None:
    """Find the environment at hand: the activated one (VIRTUAL_ENV, CONDA_PREFIX), or `.venv` in this folder."""
    prefixes = [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    with suppress(OSError):  # this folder may be gone
        prefixes.append(Path.cwd() / ".venv")
    return next((prefix for prefix in prefixes if _interpreter(prefix)), None)


@dataclass(frozen=True)
class Environments:
    """The environments at hand.

    Attributes:
        specs: the kernels in them, by their names.
        broken: why an environment that the user has activated, or that belongs to the project, has none.
    """

    specs: dict[str, KernelSpec]
    broken: dict[str, str]


def environment_specs(folder: str | os.PathLike[str] | None = None) -> dict[str, KernelSpec]:
    """Make the specs of the kernels in the environments at hand; see `find_environments`."""
    return find_environments(folder).specs


def find_environments(folder: str | os.PathLike[str] | None = None, taken: Collection[str] = ()) -> Environments:
    """Find the environments at hand that have a kernel in them: the project's, conda's, uv's, and those on PATH.

    Only files are looked at; nothing of them is run. The one that we run in is left out: its kernel is our own.

    Args:
        folder: of the project; by default this one.
        taken: names that they must not have.
    """
    found = Environments({}, {})
    try:
        start = Path(folder) if folder is not None else Path.cwd()
    except OSError:  # this folder is gone
        return found
    seen: set[str] = set()
    for place in places(start.absolute()):
        real = os.path.realpath(place.prefix)
        if real not in seen and not _is_ours(place.prefix):
            seen.add(real)
            _add(found, place, taken)
    return found


def _add(found: Environments, place: Place, taken: Collection[str]) -> None:
    spec = environment_spec(place.prefix)
    if spec is not None:
        spec.name = _free_name(spec.name, place.prefix, {*found.specs, *taken, OWN_NAME, NATIVE_KERNEL_NAME})
        found.specs[spec.name] = spec
    elif place.origin:
        name = _free_name(_environment_name(place.prefix), place.prefix, {*found.broken, *taken})
        found.broken[name] = _fault(place)


def _free_name(name: str, prefix: Path, taken: Collection[str]) -> str:
    """Make a name unique: by the folder around the environment, or else by a number."""
    around = _as_name(prefix.parent.parent.name if prefix.name in _NAMELESS else prefix.parent.name)
    candidates = chain((name, f"{name}-{around}" if around else name), (f"{name}-{number}" for number in count(2)))
    return next(each for each in candidates if each not in taken)


def _fault(place: Place) -> str:
    """Say what is wrong with an environment that should have a kernel, and what to do."""
    python = place.prefix / "bin" / "python"
    if _interpreter(place.prefix) is not None:
        return (
            f"no kernel is installed in {place.prefix} ({place.origin}): install one by"
            f" `{python} -m pip install ipykernel`"
        )
    if python.is_symlink():
        return f"the interpreter {python} ({place.origin}) leads to one that is gone: make the environment again"
    return f"there is no interpreter in {place.prefix} ({place.origin}): make the environment again, or deactivate it"


def environment_spec(prefix: str | os.PathLike[str]) -> KernelSpec | None:
    """Make the spec of the kernel in an environment, cobnut's or else ipykernel's; None where it has neither.

    Only files are looked at; nothing of the environment is run. For the environment that we run in ourselves this
    is our own kernel. The spec is named by the environment's folder.
    """
    prefix = Path(prefix).absolute()
    if _is_ours(prefix):
        return own_spec()
    python = _interpreter(prefix)
    folders = list(_package_folders(prefix))
    maker = next((maker for maker in _MAKERS if any(_has_package(folder, maker) for folder in folders)), None)
    if python is None or maker is None:
        return None
    name = _environment_name(prefix)
    return KernelSpec(
        argv=[str(python), *maker.arguments, "-f", "{connection_file}"],
        name=name,
        display_name=f"Python {_python_version(prefix) or 3} ({name})",
        language="python",
        interrupt_mode=maker.interrupt_mode,
        kernel_protocol_version="5.5",
        env=_activation(prefix),
        metadata=_metadata(prefix, maker),
    )


def _is_ours(prefix: Path) -> bool:
    try:
        return prefix.samefile(sys.prefix)
    except OSError:
        return False


def _interpreter(prefix: Path) -> Path | None:
    for name in ("python", "python3"):  # that of a system may have the second only
        python = prefix / "bin" / name
        if os.access(python, os.X_OK) and python.is_file():
            return python.absolute()
    return None


def _environment_name(prefix: Path) -> str:
    folder = prefix.parent.name if prefix.name in _NAMELESS and prefix.parent.name else prefix.name
    if not _is_environment(prefix) and _interpreter(prefix) is not None:
        return f"python{_python_version(prefix) or 3}"
    name = _as_name(folder) or "environment"
    return f"{name}-{prefix.name.strip('.').lower()}" if name in (OWN_NAME, NATIVE_KERNEL_NAME) else name


def _as_name(folder: str) -> str:
    return re.sub(r"[^a-z0-9._\-]+", "-", folder.lower()).strip("-")


def _is_environment(prefix: Path) -> bool:
    """Say whether a folder is an environment, and no installation of Python as a whole."""
    return (prefix / "pyvenv.cfg").is_file() or (prefix / "conda-meta").is_dir()


def _activation(prefix: Path) -> dict[str, str]:
    """What activating the environment would set, as templates: `$` is doubled."""
    if not _is_environment(prefix):
        return {}
    escaped = str(prefix).replace("$", "$$")
    name = "CONDA_PREFIX" if (prefix / "conda-meta").is_dir() else "VIRTUAL_ENV"
    return {name: escaped, "PATH": f"{escaped}/bin{os.pathsep}${{PATH}}"}


def _settings(prefix: Path) -> dict[str, str]:
    """Read an environment's pyvenv.cfg; empty where it has none."""
    try:
        lines = (prefix / "pyvenv.cfg").read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _python_version(prefix: Path) -> str | None:
    """Tell an environment's version of Python, "3.12" say, by its files; None where they do not tell."""
    settings = _settings(prefix)
    python = (_interpreter(prefix) or prefix).resolve().name
    texts = (settings.get("version", ""), settings.get("version_info", ""), python)
    found = (re.search(r"3\.\d+", text) for text in texts)
    return next((match[0] for match in found if match), None)


def _package_folders(prefix: Path) -> Iterator[Path]:
    """Find the folders in which an environment's interpreter looks for packages."""
    version = _python_version(prefix)
    yield from _globbed(prefix, (f"lib/python{version or '3.*'}/site-packages",))
    settings = _settings(prefix)
    uses_system = settings.get("include-system-site-packages", "").lower() == "true" and settings.get("home")
    if uses_system or not _is_environment(prefix):
        base = Path(settings["home"]).parent if uses_system else prefix
        version = version or "3.*"
        inside = (f"python{version}/site-packages", "python3/dist-packages", f"python{version}/dist-packages")
        yield from _globbed(base, (f"{top}/{rest}" for top in ("lib", "local/lib") for rest in inside))


def _globbed(prefix: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (folder for folder in sorted(prefix.glob(pattern)) if folder.is_dir())


def _metadata(prefix: Path, maker: _Maker) -> dict[str, Any]:
    """Read what the kernel says it can do from the spec that its package has installed; its version may not be ours."""
    with suppress(ValueError):
        return KernelSpec.from_resource_dir(prefix / "share" / "jupyter" / "kernels" / maker.spec_name).metadata
    return {}


def _has_package(folder: Path, maker: _Maker) -> bool:
    """Say whether a folder of packages has one: as a folder, by a .pth file, or as an editable installation."""
    places = (folder, *_linked_folders(folder))
    if any((place / maker.package / "__init__.py").is_file() for place in places):
        return True
    return any(_is_editable(info) for info in folder.glob(f"{maker.distribution}-*.dist-info"))


def _linked_folders(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("*.pth")):
        with suppress(OSError):
            for line in file.read_text("utf-8", "replace").splitlines():
                if line.strip() and not line.startswith(("#", "import ", "import\t")):
                    yield folder / line.strip()


def _is_editable(info: Path) -> bool:
    """Say whether a distribution was installed from a folder that is used in place (PEP 610)."""
    try:
        origin = json.loads((info / "direct_url.json").read_bytes())
        return origin["dir_info"]["editable"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False
