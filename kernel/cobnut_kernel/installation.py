"""The command line's kernelspecs: install, uninstall and list them."""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, cast

from cobnut_kernel.command_line import PROGRAM, add_settings_option, fail
from cobnut_kernel.errors import CobnutError
from cobnut_kernel.kernelspec import OWN_NAME, KernelSpec, KernelSpecManager, own_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_LOGOS = "logo-*"
"""The files of a kernelspec that front ends show."""


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Do what one of the commands says; ends the program where it cannot."""
    parser, carry_out = _COMMANDS[command]()
    options = parser.parse_args(arguments)
    try:
        carry_out(parser, options)
    except CobnutError as error:
        fail(str(error))
    except PermissionError as error:
        fail(f"{error.filename}: {error.strerror}. Choose another place: --user, --sys-prefix, or --prefix FOLDER.")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}." if error.filename else str(error))


# ── install ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _install_parser() -> tuple[argparse.ArgumentParser, Callable[..., None]]:
    parser = _parser(
        "install",
        "Tell Jupyter of a kernel: notebooks and consoles offer it from then on. It is run by the Python that runs this"
        f" command, {sys.executable}, with the settings given here.",
        f"""\
examples:
  {PROGRAM} install science --display-name "Science"
  {PROGRAM} install science-trio --backend trio --sys-prefix
  {PROGRAM} install fast --set 'anyio_backend_options={{"asyncio": {{"use_uvloop": true}}}}'
  {PROGRAM} install four --env OMP_NUM_THREADS 4 --env DATA '${{HOME}}/data'
""",
    )
    parser.add_argument("name", metavar="NAME", help="ASCII letters, digits and - . _ ; it is written in lower case")
    parser.add_argument("--display-name", metavar="TEXT", help="what front ends show; by default 'Python 3 (NAME)'")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for you alone; this is the default")
    place.add_argument("--sys-prefix", action="store_true", help=f"for this Python's environment, {sys.prefix}")
    place.add_argument(
        "--prefix", metavar="FOLDER", help="for the environment in a folder; /usr/local is for everybody"
    )
    parser.add_argument("--backend", choices=("asyncio", "trio"), help="the event loop that runs cells")
    add_settings_option(parser)
    parser.add_argument(
        "--env",
        nargs=2,
        metavar=("NAME", "VALUE"),
        action="append",
        default=[],
        help="an environment variable of the kernel; ${NAME} in it is one of whoever starts it",
    )
    parser.add_argument("--replace", action="store_true", help="replace a kernelspec of that name")
    return parser, _install


def _install(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    manager = KernelSpecManager()
    prefix = sys.prefix if options.sys_prefix else options.prefix
    try:
        place = Path(manager.destination(options.name, user=not prefix, prefix=prefix))
    except ValueError as error:
        parser.error(str(error))
    spec = _spec(parser, options)
    if place.exists() and not options.replace:
        fail(f"There is a kernelspec {place.name!r} already, in {place}: choose another name, or give --replace.")
    is_looked_in = str(place.parent) in manager.kernel_dirs
    if not is_looked_in:  # the manager would say so too
        manager.kernel_dirs = [*manager.kernel_dirs, str(place.parent)]
    _write(manager, spec, place, prefix)
    _say(f"Installed {spec.display_name!r} as {place.name!r} in {place}")
    if not is_looked_in:
        _say(f"Jupyter does not look there yet: add {place.parent.parent} to JUPYTER_PATH.")
    elif (found := manager.find_kernel_specs().get(place.name)) != str(place):
        _say(f"Another kernelspec of that name comes first: {found}")


def _spec(parser: argparse.ArgumentParser, options: argparse.Namespace) -> KernelSpec:
    """Make the spec that is asked for; what no kernel could be set to is refused now, not when it starts."""
    from cobnut_kernel.runtime.kernel import Kernel
    from cobnut_kernel.runtime.settings import SettingError, check_settings, parse_setting

    name = options.name.lower()
    try:
        settings = {"anyio_backend": options.backend} if options.backend else {}
        settings |= dict(parse_setting(text) for text in cast("list[str]", options.set))
        check_settings(Kernel, settings)
    except SettingError as error:
        parser.error(str(error))
    env = dict(cast("list[tuple[str, str]]", options.env))
    for variable in env:
        if not variable or "=" in variable:
            parser.error(f"{variable!r} is no name of an environment variable: write --env NAME VALUE")
    return own_spec(name, display_name=options.display_name or f"Python 3 ({name})", settings=settings, env=env)


def _write(manager: KernelSpecManager, spec: KernelSpec, place: Path, prefix: str | None) -> None:
    from shutil import copy
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="cobnut-") as folder:
        (Path(folder) / "kernel.json").write_text(json.dumps(spec.to_dict(), indent=1) + "\n", "utf-8")
        Path(folder).chmod(0o755)  # it is copied with its permissions
        for logo in _logos():
            copy(logo, folder)
        manager.install_kernel_spec(folder, place.name, user=not prefix, prefix=prefix)


def _logos() -> list[Path]:
    """Find our pictures: beside the package where it is used in place, else where our own kernelspec was installed."""
    places = (Path(__file__).parents[1] / "kernelspec", _packaged_folder())
    for place in places:
        if logos := sorted(place.glob(_LOGOS)):
            return logos
    return []


# ── uninstall ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _uninstall_parser() -> tuple[argparse.ArgumentParser, Callable[..., None]]:
    parser = _parser(
        "uninstall",
        "Let Jupyter forget a kernel: remove its kernelspec, which must be one of cobnut's. Kernels that run go on.",
        f"example:\n  {PROGRAM} uninstall science\n",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of those that `{PROGRAM} list` shows with a star")
    return parser, _uninstall


def _uninstall(_: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    manager = KernelSpecManager()
    spec = manager.get_kernel_spec(options.name)
    if not _is_ours(spec):
        fail(
            f"{spec.name!r} is not one of cobnut's kernels: `jupyter kernelspec uninstall {spec.name}` removes others."
        )
    if Path(spec.resource_dir) == _packaged_folder():
        fail(f"{spec.name!r} came with the package and goes with it: `pip uninstall cobnut` removes both.")
    _say(f"Removed {manager.remove_kernel_spec(spec.name)}")


def _packaged_folder() -> Path:
    """Name the folder into which the package itself is installed as a kernelspec."""
    return Path(sysconfig.get_path("data")) / "share" / "jupyter" / "kernels" / OWN_NAME


def _is_ours(spec: KernelSpec) -> bool:
    return "cobnut_kernel" in spec.argv


# ── list ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _list_parser() -> tuple[argparse.ArgumentParser, Callable[..., None]]:
    text = "Show the kernels that Jupyter finds, with the folders of their kernelspecs; a star marks those of cobnut."
    return _parser("list", text, ""), _list


def _list(_: argparse.ArgumentParser, __: argparse.Namespace) -> None:
    manager = KernelSpecManager()
    names = sorted(manager.get_all_specs())
    specs = [manager.get_kernel_spec(name) for name in names]
    rows = [
        ("*" if _is_ours(spec) else " ", spec.name, spec.display_name, spec.resource_dir or "(needs no folder)")
        for spec in specs
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        _say(" ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]))
    for name, reason in sorted(manager.broken_specs().items()):
        _say(f"! {name}: {reason}")


# ── for all of them ─────────────────────────────────────────────────────────────────────────────────────────────────


def _parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{PROGRAM} {command}",
        description=fill(description, 100),
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _say(text: str) -> None:
    print(text)  # noqa: T201 - it is what was asked for


_COMMANDS: dict[str, Callable[[], tuple[argparse.ArgumentParser, Callable[..., None]]]] = {
    "install": _install_parser,
    "uninstall": _uninstall_parser,
    "list": _list_parser,
}
