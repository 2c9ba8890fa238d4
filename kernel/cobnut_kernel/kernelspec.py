"""Which kernels there are: kernelspecs in Jupyter's folders, environments with a kernel in them, and our own."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from traitlets import Bool, CaselessStrEnum, Dict, HasTraits, Instance, List, Set, TraitError, Type, Unicode, default
from traitlets.config import LoggingConfigurable

from cobnut_kernel.errors import NoSuchKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

OWN_NAME = "cobnut"
"""The name of our own kernel; it is there without a folder too."""

NATIVE_NAME = "python3"
"""The name under which Jupyter knows ipykernel."""

PROVISIONER_GROUP = "jupyter_client.kernel_provisioners"
"""The entry-point group in which packages register provisioners."""

LOCAL_PROVISIONER = "local-provisioner"
"""The provisioner that needs no entry point: ours."""

_VALID_NAME = re.compile(r"[a-z0-9._\-]+")
_NAME_RULE = "a kernel's name may hold only ASCII letters, digits and - . _"


class KernelSpec(HasTraits):
    """What a kernel.json says, and where it lies.

    Source: "Kernel specs" in the Jupyter client documentation.
    """

    argv: List[str] = List(Unicode())
    name = Unicode()
    mimetype = Unicode()
    display_name = Unicode()
    language = Unicode()
    kernel_protocol_version = Unicode()
    env: Dict[str, Any] = Dict()
    resource_dir = Unicode()
    interrupt_mode = CaselessStrEnum(["message", "signal"], default_value="signal")
    metadata: Dict[str, Any] = Dict()

    @classmethod
    def from_resource_dir(cls, resource_dir: str | os.PathLike[str]) -> KernelSpec:
        """Read the kernel.json of a folder; fields that it should not have are left out.

        Raises:
            ValueError: it cannot be read or says nothing that could be started; the text says what is wrong.
        """
        path = Path(resource_dir) / "kernel.json"
        try:
            fields = json.loads(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path} must hold an object, not {json.dumps(fields)[:40]}")  # noqa: TRY004 - it is data
        try:
            return cls._from_fields(cast("dict[str, Any]", fields), os.fspath(resource_dir))
        except (TraitError, ValueError) as error:
            raise ValueError(f"{path} is broken: {error}") from error

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], resource_dir: str) -> KernelSpec:
        if not isinstance(fields.get("argv", []), list):
            raise ValueError("its argv must be a list of texts")  # noqa: TRY004 - it is data
        known = {name: value for name, value in fields.items() if name in cls.class_traits()}
        spec = cls(**{**known, "resource_dir": resource_dir})
        if not spec.argv or not spec.argv[0]:
            raise ValueError("its argv names no program")
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Write what belongs into a kernel.json."""
        names = ["argv", "env", "display_name", "language", "interrupt_mode", "metadata", "kernel_protocol_version"]
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> str:
        """Write the text of a kernel.json."""
        return json.dumps(self.to_dict())


def own_spec() -> KernelSpec:
    """Make the spec of our own kernel, run by the interpreter that we run on."""
    return KernelSpec(
        argv=[sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}"],
        name=OWN_NAME,
        display_name="Python 3 (cobnut)",
        language="python",
        interrupt_mode="message",
        kernel_protocol_version="5.5",
    )


def native_spec() -> KernelSpec | None:
    """Make the spec of the ipykernel that our interpreter can import; None without one. Nothing of it is imported."""
    from importlib.util import find_spec

    found = find_spec("ipykernel")
    if found is None or found.origin is None:
        return None
    return KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        name=NATIVE_NAME,
        display_name="Python 3 (ipykernel)",
        language="python",
        kernel_protocol_version="5.5",
        metadata={"debugger": True},
        resource_dir=str(Path(found.origin).parent / "resources"),
    )


def provisioner_stanza(spec: KernelSpec) -> tuple[str, dict[str, Any]]:
    """Read which provisioner a spec asks for, and with which configuration; an empty name where it asks for none.

    Raises:
        ValueError: the stanza is not what the documentation says.
    """
    stanza: Any = spec.metadata.get("kernel_provisioner") or {}
    if isinstance(stanza, dict):
        fields = cast("dict[str, Any]", stanza)
        name, config = fields.get("provisioner_name", ""), fields.get("config")
        if isinstance(name, str) and isinstance(config, dict | None):
            return name, cast("dict[str, Any]", config or {})
    raise ValueError("its 'kernel_provisioner' must be an object with a 'provisioner_name' and perhaps a 'config'")


def entry_point_names() -> set[str]:
    """Name the provisioners that installed packages register."""
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group=PROVISIONER_GROUP)}


class KernelSpecManager(LoggingConfigurable):
    """Find, read, install and remove kernelspecs.

    A name is looked for in `extra_specs` first, then in `kernel_dirs`, the earlier folder before the later; then
    come the two that need no folder: "cobnut", and "python3" where ipykernel can be imported.
    """

    kernel_spec_class = Type(KernelSpec, config=True, help="The class of the specs that are read.")
    ensure_native_kernel = Bool(True, config=True, help="Offer 'cobnut' and 'python3' where no folder has them.")
    allowed_kernelspecs = Set(Unicode(), config=True, help="The names to offer; empty for all.")
    data_dir = Unicode(help="Jupyter's folder of this user's data.")
    user_kernel_dir = Unicode(help="The folder of this user's kernelspecs.")
    kernel_dirs: List[str] = List(Unicode(), help="The folders to look in, the first one first.")
    extra_specs: Dict[str, KernelSpec] = Dict(
        value_trait=Instance(KernelSpec), key_trait=Unicode(), help="Specs without a folder, by name."
    )

    def __init__(self, *, provisioner_names: Callable[[], Collection[str]] = entry_point_names, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._provisioner_names = provisioner_names

    @default("data_dir")
    def _default_data_dir(self) -> str:
        from jupyter_core.paths import jupyter_data_dir

        return jupyter_data_dir()

    @default("user_kernel_dir")
    def _default_user_kernel_dir(self) -> str:
        return str(Path(self.data_dir) / "kernels")

    @default("kernel_dirs")
    def _default_kernel_dirs(self) -> list[str]:
        from jupyter_core.paths import jupyter_path

        return [*jupyter_path("kernels"), str(Path("~/.ipython/kernels").expanduser())]

    # ── find and read ───────────────────────────────────────────────────────────────────────────────────────────────

    def find_kernel_specs(self) -> dict[str, str]:
        """Find the folder of every kernelspec by its name; empty for one without a folder."""
        found = {name: spec.resource_dir for name, spec in self.extra_specs.items()}
        for folder in self.kernel_dirs:
            for name, path in _folders(folder):
                if _VALID_NAME.fullmatch(name):
                    found.setdefault(name, str(path))
        if self.ensure_native_kernel:
            found.setdefault(OWN_NAME, "")
            if NATIVE_NAME not in found and (native := native_spec()) is not None:
                found[NATIVE_NAME] = native.resource_dir
        return {name: path for name, path in found.items() if self._allows(name)}

    def get_kernel_spec(self, name: str) -> KernelSpec:
        """Read a kernelspec by its name, in upper or lower case.

        Raises:
            NoSuchKernel: there is none, or what is there is broken; the text says what is wrong and what there is.
        """
        name = name.lower()
        read = self._reader(name) if self._allows(name) else None
        if read is None:
            raise NoSuchKernel(name, self._hint(name))
        try:
            return self._checked(name, read())
        except ValueError as error:
            raise NoSuchKernel(name, f"There is a kernelspec of that name, but {error}.") from error

    def get_all_specs(self) -> dict[str, dict[str, Any]]:
        """Read every kernelspec: `{name: {"resource_dir": folder, "spec": dict}}`; the broken ones are left out."""
        specs = {name: spec for name, spec in self._read_all() if isinstance(spec, KernelSpec)}
        return {name: {"resource_dir": spec.resource_dir, "spec": spec.to_dict()} for name, spec in specs.items()}

    def broken_specs(self) -> dict[str, str]:
        """Say of every kernelspec that cannot be used what is wrong with it."""
        broken = {name: reason for name, reason in self._read_all() if isinstance(reason, str)}
        for folder in self.kernel_dirs:
            for name, path in _folders(folder):
                if not _VALID_NAME.fullmatch(name):
                    broken.setdefault(name, f"{path} is ignored: {_NAME_RULE}")
        return broken

    def _read_all(self) -> Iterator[tuple[str, KernelSpec | str]]:
        for name in self.find_kernel_specs():
            read = self._reader(name)
            if read is None:  # removed in this moment
                continue
            try:
                yield name, self._checked(name, read())
            except ValueError as error:
                yield name, str(error)

    def _reader(self, name: str) -> Callable[[], KernelSpec] | None:
        """Find what reads the spec of a name; None where there is none."""
        if name in self.extra_specs:
            return partial(self.extra_specs.__getitem__, name)
        if _VALID_NAME.fullmatch(name) and (path := self._folder_of(name)) is not None:
            return partial(self.kernel_spec_class.from_resource_dir, str(path))
        if self.ensure_native_kernel and name == OWN_NAME:
            return own_spec
        native = native_spec() if self.ensure_native_kernel and name == NATIVE_NAME else None
        return None if native is None else lambda: native

    def _folder_of(self, name: str) -> Path | None:
        found = (dict(_folders(folder)).get(name) for folder in self.kernel_dirs)
        return next((path for path in found if path is not None), None)

    def _checked(self, name: str, spec: KernelSpec) -> KernelSpec:
        spec.name = name
        spec.display_name = spec.display_name or name
        provisioner = provisioner_stanza(spec)[0]
        if provisioner not in ("", LOCAL_PROVISIONER) and provisioner not in self._provisioner_names():
            raise ValueError(f"it needs the provisioner {provisioner!r}: install the package that brings it")
        return spec

    def _allows(self, name: str) -> bool:
        return not self.allowed_kernelspecs or name in self.allowed_kernelspecs

    def _hint(self, name: str) -> str:
        from difflib import get_close_matches

        names = sorted(self.find_kernel_specs())
        if not names:
            return "There is none at all: install one, ipykernel for example."
        close = get_close_matches(name, names, n=1)
        return (f"Did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(names)}."

    # ── install and remove ──────────────────────────────────────────────────────────────────────────────────────────

    def install_kernel_spec(
        self,
        source_dir: str | os.PathLike[str],
        kernel_name: str | None = None,
        user: bool = False,
        replace: bool | None = None,
        prefix: str | None = None,
    ) -> str:
        """Copy a folder with a kernel.json to where Jupyter finds it, and return that place.

        Args:
            source_dir: the folder.
            kernel_name: its name there; by default the folder's.
            user: install it for this user; otherwise for all.
            replace: has no meaning any more: what is there is replaced.
            prefix: install it for the environment of this path, `sys.prefix` for example.

        Raises:
            ValueError: the name cannot be one, the folder is broken, or both `user` and `prefix` are given.
            OSError: it cannot be written; what was there before is still there.
        """
        source = Path(source_dir)
        name = (kernel_name or source.name).lower()
        if not _VALID_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a kernel: {_NAME_RULE}.")
        if user and prefix:
            raise ValueError("A kernelspec is installed either for the user or below a prefix: choose one.")
        self.kernel_spec_class.from_resource_dir(source)
        kernels = Path(self._destination(prefix, user=user))
        if str(kernels) not in self.kernel_dirs:
            self.log.warning("%s is not among the folders that are looked in: %s", kernels, self.kernel_dirs)
        _replace_folder(source, kernels / name)
        return str(kernels / name)

    def remove_kernel_spec(self, name: str) -> str:
        """Remove a kernelspec's folder, or the link to it, and return its path.

        Raises:
            NoSuchKernel: no folder has it.
        """
        path = self._folder_of(name.lower())
        if path is None:
            raise NoSuchKernel(name, "No folder has it, so there is nothing to remove.")
        _remove_folder(path)
        return str(path)

    def _destination(self, prefix: str | None, *, user: bool) -> str:
        if user:
            return self.user_kernel_dir
        if prefix:
            return str(Path(prefix) / "share/jupyter/kernels")
        from jupyter_core.paths import SYSTEM_JUPYTER_PATH

        return str(Path(SYSTEM_JUPYTER_PATH[0]) / "kernels")


def _folders(folder: str) -> Iterator[tuple[str, Path]]:
    """Find the kernelspecs of a folder by their names, in lower case."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if Path(entry.path, "kernel.json").is_file():
            yield entry.name.lower(), Path(entry.path)


def _replace_folder(source: Path, target: Path) -> None:
    """Copy a folder to its place; what was there goes when the copy is whole."""
    from shutil import copytree, rmtree

    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        copytree(source, new)
        if target.is_dir():
            _remove_folder(target)
        new.replace(target)
    except BaseException:
        rmtree(new, ignore_errors=True)
        raise


def _remove_folder(path: Path) -> None:
    from shutil import rmtree

    if path.is_symlink():
        path.unlink()
    else:
        rmtree(path)


# ── environments ────────────────────────────────────────────────────────────────────────────────────────────────────

_KERNELS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "cobnut_kernel": ("cobnut", ("-P", "-m", "cobnut_kernel"), "message"),
    "ipykernel": ("ipykernel", ("-m", "ipykernel_launcher"), "signal"),
}
"""The packages that make an environment a kernel, the better first: their distribution, arguments, interrupt mode."""

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
    package = next((name for name in _KERNELS if any(_has_package(folder, name) for folder in folders)), None)
    if python is None or package is None:
        return None
    _, arguments, interrupt_mode = _KERNELS[package]
    name = _environment_name(prefix)
    return KernelSpec(
        argv=[str(python), *arguments, "-f", "{connection_file}"],
        name=name,
        display_name=f"Python {_python_version(prefix) or 3} ({name})",
        language="python",
        interrupt_mode=interrupt_mode,
        kernel_protocol_version="5.5",
        env=_activation(prefix),
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


def _has_package(folder: Path, package: str) -> bool:
    """Say whether a folder of packages has one: as a folder, by a .pth file, or as an editable installation."""
    places = (folder, *_linked_folders(folder))
    if any((place / package / "__init__.py").is_file() for place in places):
        return True
    distribution = _KERNELS[package][0]
    return any(_is_editable(info) for info in folder.glob(f"{distribution}-*.dist-info"))


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
