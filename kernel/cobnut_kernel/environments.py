"""Environments with a kernel in them: which one is active, and the spec that its files tell; nothing of it is run."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cobnut_kernel.kernelspec import NATIVE_NAME, OWN_NAME, KernelSpec, own_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
    _Maker("ipykernel", "ipykernel", ("-m", "ipykernel_launcher"), "signal", NATIVE_NAME),
)
"""The better one first."""

_NAMELESS = frozenset({".venv", "venv", ".env", "env"})
"""Folder names of environments that say nothing: the folder around them names these."""


def active_environment() -> Path | None:
    """Find the environment at hand: the activated one (VIRTUAL_ENV, CONDA_PREFIX), or `.venv` in this folder."""
    places = [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    with suppress(OSError):  # this folder may be gone
        places.append(Path.cwd() / ".venv")
    return next((place for place in places if _interpreter(place)), None)


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
    python = prefix / "bin" / "python"
    return python.absolute() if os.access(python, os.X_OK) and python.is_file() else None


def _environment_name(prefix: Path) -> str:
    folder = prefix.parent.name if prefix.name in _NAMELESS and prefix.parent.name else prefix.name
    name = re.sub(r"[^a-z0-9._\-]+", "-", folder.lower()).strip("-") or "environment"
    return f"{name}-{prefix.name.strip('.').lower()}" if name in (OWN_NAME, NATIVE_NAME) else name


def _activation(prefix: Path) -> dict[str, str]:
    """What activating the environment would set, as templates: `$` is doubled."""
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
    texts = (settings.get("version", ""), settings.get("version_info", ""), (prefix / "bin" / "python").resolve().name)
    found = (re.search(r"3\.\d+", text) for text in texts)
    return next((match[0] for match in found if match), None)


def _package_folders(prefix: Path) -> Iterator[Path]:
    """Find the folders in which an environment's interpreter looks for packages."""
    version = _python_version(prefix)
    yield from _globbed(prefix, (f"lib/python{version or '3.*'}/site-packages",))
    settings = _settings(prefix)
    if settings.get("include-system-site-packages", "").lower() == "true" and settings.get("home"):
        base, version = Path(settings["home"]).parent, version or "3.*"
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
