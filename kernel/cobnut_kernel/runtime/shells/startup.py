"""What a user's profile has run before the first cell: configuration, extensions, lines and files."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.runtime.imports import without_user_folder

if TYPE_CHECKING:
    from IPython.core.profiledir import ProfileDir
    from traitlets.config import Config

    from cobnut_kernel.runtime.settings import Settings
    from cobnut_kernel.runtime.shells.shell import Shell

CONFIGURATION_FILES = ("ipython_config.py", "ipython_kernel_config.py")
"""The profile's files that configure IPython's kernels, the later over the earlier."""

_log = logging.getLogger(__name__)


def load_configuration(profile: Path) -> Config | None:
    """Read a profile's configuration; None where it has none. A broken file is logged, and passed over."""
    files = [name for name in CONFIGURATION_FILES if (profile / name).is_file()]
    if not files:
        return None
    with without_user_folder():
        from traitlets.config.loader import Config, PyFileConfigLoader
    config = Config()
    for name in files:
        try:
            config.merge(PyFileConfigLoader(name, str(profile)).load_config())
        except Exception:  # the user's own code: whatever is wrong there must not cost the kernel
            _log.exception("The configuration %s is broken and was passed over", profile / name)
    return config


def make_shell(profile: str, settings: Settings | None = None) -> Shell:
    """Make the process's shell, or take the one that a template has made, as profile and settings configure it.

    Raises:
        SettingError: there is no such setting of a shell, or it cannot have that value.
    """
    from IPython.paths import get_ipython_dir

    from cobnut_kernel.runtime.shells.shell import Shell

    folder = Path(get_ipython_dir()) / f"profile_{profile}"
    config = load_configuration(folder)
    if settings is not None:
        chosen = settings.config()
        config = chosen if config is None else _merged(config, chosen)
    options: dict[str, Any] = {"config": config} if config else {}
    if profile != "default":
        options["profile_dir"] = _profile(folder)
    if options and Shell.initialized():  # the template's, whose parts were made without this configuration
        Shell.clear_instance()
    shell = Shell.instance(**options)
    if settings is not None:
        settings.apply_to_shell(shell)
    return shell


def _merged(config: Config, over: Config) -> Config:
    config.merge(over)
    return config


def _profile(folder: Path) -> ProfileDir:
    from IPython.core.profiledir import ProfileDir

    return ProfileDir(location=str(folder))


def has_startup(shell: Shell) -> bool:
    """Tell whether anything is to be run; most users have nothing, and it costs nothing then."""
    profile: ProfileDir = cast("Any", shell).profile_dir
    folder = Path(profile.startup_dir)
    files = any(file.suffix in (".py", ".ipy") for file in folder.iterdir()) if folder.is_dir() else False
    return files or "InteractiveShellApp" in shell.config or "PYTHONSTARTUP" in os.environ


def run_startup(shell: Shell) -> None:
    """Load the extensions and run the lines and files of the profile, as IPython does before its first prompt."""
    with without_user_folder():
        from IPython.core.shellapp import InteractiveShellApp
        from traitlets import List

    class Startup(InteractiveShellApp):
        """IPython's own order of things, for a shell that is there already."""

        log = _log
        profile_dir = cast("Any", shell).profile_dir
        ipython_dir = cast("Any", shell).ipython_dir
        extra_args = List([sys.argv[0]])

        def _exec_file(self, fname: str, shell_futures: bool = False) -> None:
            """Run a file; one that fails is shown and costs the next ones nothing."""
            try:
                super()._exec_file(fname, shell_futures=shell_futures)
            except (Exception, SystemExit):
                _log.warning("The startup file %s has failed", fname)
                shell.showtraceback()

    startup = Startup(config=shell.config)
    startup.shell = shell
    startup.init_extensions()
    startup.init_code()
