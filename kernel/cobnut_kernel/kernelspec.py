"""Which kernels there are: kernelspecs in Jupyter's folders, and our own."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from traitlets import Bool, CaselessStrEnum, Dict, HasTraits, Instance, List, Set, TraitError, Type, Unicode, default
from traitlets.config import LoggingConfigurable

from cobnut_kernel.errors import NoSuchKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from cobnut_kernel.environments import Environments

OWN_NAME = "cobnut"
"""The name of our own kernel; it is there without a folder too."""

NATIVE_KERNEL_NAME = "python3"
"""The name under which Jupyter knows ipykernel."""

PROVISIONER_GROUP = "jupyter_client.kernel_provisioners"
"""The entry-point group in which packages register provisioners."""

LOCAL_PROVISIONER = "local-provisioner"
"""The provisioner of who asks for none: ours."""

OWN_PROVISIONERS = frozenset({"", LOCAL_PROVISIONER, "cobnut-local", "cobnut-fork"})
"""The provisioners that need no entry point, by whatever name they are asked for."""

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


def own_spec(
    name: str = OWN_NAME,
    *,
    display_name: str = "Python 3 (cobnut)",
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> KernelSpec:
    """Make the spec of our own kernel, run by the interpreter that we run on.

    Args:
        name: of the kernelspec.
        display_name: what front ends show.
        settings: the kernel's settings by dotted name.
        env: its environment variables, over those of who starts it; `${NAME}` in a value is one of those.
    """
    options = [part for setting in (settings or {}).items() for part in ("--set", "=".join(setting))]
    return KernelSpec(
        argv=[sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}", *options],
        env=dict(env or {}),
        name=name,
        display_name=display_name,
        language="python",
        interrupt_mode="message",
        kernel_protocol_version="5.5",
        metadata={"debugger": True, "supported_encryption": ["curve"], "cobnut": {"registration": True}},
    )


def native_spec() -> KernelSpec | None:
    """Make the spec of the ipykernel that our interpreter can import; None without one. Nothing of it is imported."""
    from importlib.util import find_spec

    found = find_spec("ipykernel")
    if found is None or found.origin is None:
        return None
    return KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        name=NATIVE_KERNEL_NAME,
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


def supports_curve(spec: KernelSpec) -> bool:
    """Say whether a spec declares that its kernel can encrypt its sockets by CURVE (JEP 145)."""
    declared: Any = spec.metadata.get("supported_encryption")
    schemes = cast("list[object]", declared) if isinstance(declared, list) else [declared]
    return any(isinstance(scheme, str) and scheme.strip().lower() == "curve" for scheme in schemes)


def registers(spec: KernelSpec) -> bool:
    """Say whether a spec declares that its kernel can tell by itself where it listens (JEP 66).

    Not by its protocol version, as the proposal has it: kernels of that version are common, those that can are not.
    """
    own: Any = spec.metadata.get("cobnut")
    return isinstance(own, dict) and cast("dict[str, object]", own).get("registration") is True


def entry_point_names() -> set[str]:
    """Name the provisioners that installed packages register."""
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group=PROVISIONER_GROUP)}


class KernelSpecManager(LoggingConfigurable):
    """Find, read, install and remove kernelspecs.

    A name is looked for in `extra_specs` first, then in `kernel_dirs`, the earlier folder before the later; then
    come the two that need no folder: "cobnut", and "python3" where ipykernel can be imported; last those of the
    environments at hand, where `find_environments` is set.
    """

    kernel_spec_class = Type(KernelSpec, config=True, help="The class of the specs that are read.")
    ensure_native_kernel = Bool(True, config=True, help="Offer 'cobnut' and 'python3' where no folder has them.")
    allowed_kernelspecs = Set(Unicode(), config=True, help="The names to offer; empty for all.")
    find_environments = Bool(
        False, config=True, help="Offer the kernels of the project's environments, conda's, uv's and those on PATH."
    )
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
        found = self._installed()
        if self.find_environments:
            found.update(dict.fromkeys(self._environments(found).specs, ""))
        return {name: path for name, path in found.items() if self._allows(name)}

    def _installed(self) -> dict[str, str]:
        found = {name: spec.resource_dir for name, spec in self.extra_specs.items()}
        for folder in self.kernel_dirs:
            for name, path in _folders(folder):
                if _VALID_NAME.fullmatch(name):
                    found.setdefault(name, str(path))
        if self.ensure_native_kernel:
            found.setdefault(OWN_NAME, "")
            if NATIVE_KERNEL_NAME not in found and (native := native_spec()) is not None:
                found[NATIVE_KERNEL_NAME] = native.resource_dir
        return found

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
        if self.find_environments:
            broken = {**self._environments(()).broken, **broken}
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
        native = native_spec() if self.ensure_native_kernel and name == NATIVE_KERNEL_NAME else None
        spec = native or (self._environments(self._installed()).specs.get(name) if self.find_environments else None)
        return None if spec is None else lambda: spec

    def _environments(self, taken: Collection[str]) -> Environments:
        # Imported here: it builds on this module.
        from cobnut_kernel.environments import Environments, find_environments

        found = find_environments(taken=taken)
        known = [spec.argv for spec in self.extra_specs.values()]
        return Environments({n: spec for n, spec in found.specs.items() if spec.argv not in known}, found.broken)

    def _folder_of(self, name: str) -> Path | None:
        found = (dict(_folders(folder)).get(name) for folder in self.kernel_dirs)
        return next((path for path in found if path is not None), None)

    def _checked(self, name: str, spec: KernelSpec) -> KernelSpec:
        spec.name = name
        spec.display_name = spec.display_name or name
        provisioner = provisioner_stanza(spec)[0]
        if provisioner not in OWN_PROVISIONERS and provisioner not in self._provisioner_names():
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
        place = Path(self.destination(kernel_name or source.name, user=user, prefix=prefix))
        self.kernel_spec_class.from_resource_dir(source)
        if str(place.parent) not in self.kernel_dirs:
            self.log.warning("%s is not among the folders that are looked in: %s", place.parent, self.kernel_dirs)
        _replace_folder(source, place)
        return str(place)

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

    def destination(self, kernel_name: str, *, user: bool = False, prefix: str | None = None) -> str:
        """Return the folder into which a kernelspec would be installed; the arguments are those of the installation.

        Raises:
            ValueError: the name cannot be one, or both `user` and `prefix` are given.
        """
        name = kernel_name.lower()
        if not _VALID_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a kernel: {_NAME_RULE}.")
        if user and prefix:
            raise ValueError("A kernelspec is installed either for the user or below a prefix: choose one.")
        return str(Path(self._kernels_folder(prefix, user=user)) / name)

    def _kernels_folder(self, prefix: str | None, *, user: bool) -> str:
        if user:
            return self.user_kernel_dir
        if prefix:
            return str(Path(prefix) / "share/jupyter/kernels")
        from jupyter_core.paths import SYSTEM_JUPYTER_PATH

        return str(Path(SYSTEM_JUPYTER_PATH[0]) / "kernels")


# ── without a manager of one's own ──────────────────────────────────────────────────────────────────────────────────


def find_kernel_specs() -> dict[str, str]:
    """Find the folder of every kernelspec by its name, as `KernelSpecManager.find_kernel_specs` does."""
    return KernelSpecManager().find_kernel_specs()


def get_kernel_spec(kernel_name: str) -> KernelSpec:
    """Read a kernelspec by its name, as `KernelSpecManager.get_kernel_spec` does.

    Raises:
        NoSuchKernel: there is none, or what is there is broken.
    """
    return KernelSpecManager().get_kernel_spec(kernel_name)


def install_kernel_spec(
    source_dir: str | os.PathLike[str],
    kernel_name: str | None = None,
    user: bool = False,
    replace: bool | None = False,
    prefix: str | None = None,
) -> str:
    """Copy a folder with a kernel.json to where Jupyter finds it, as `KernelSpecManager.install_kernel_spec` does."""
    return KernelSpecManager().install_kernel_spec(source_dir, kernel_name, user, replace, prefix)


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
