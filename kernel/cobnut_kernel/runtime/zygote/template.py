"""What a fork server has ready for its kernels: all that a kernel imports, and the shell, as they are at its start.

Laws of the file:

* No thread, no zmq context, no event loop and no open database: none of them outlives a fork.
* What a kernel would read of its environment while it starts is written down; one that wants it otherwise is not
  forked.
* So are the files and folders that it would import from: when they change, the template is of no use any more.

One thing kernels of a template share that cold ones do not: the seed of Python's hashes, and so the order of sets of
texts. Random numbers, names of temporary files and all that comes from the system's source differ.
"""

from __future__ import annotations

import gc
import os
import site
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel import runtime
from cobnut_kernel.protocol.fork import Fork, differing_variables, start_variables

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from IPython.core.formatters import DisplayFormatter

    from cobnut_kernel.runtime.shells.shell import Shell

_NEEDED = (
    "cobnut_kernel.__main__",
    "cobnut_kernel.command_line",
    "anyio._backends._asyncio",
    "bdb",
    "IPython.core.logger",
    "IPython.core.magics.execution",
    "IPython.core.magics.namespace",
    "pexpect",
    "jedi",
)
"""What a kernel imports, beside its own modules, until it has done everything once."""


class Template:
    """This process, in the state of a kernel that has not begun.

    Attributes:
        variables: the values that a kernel's environment must have, None where it must not have them.
        shell: the shell of every kernel.
    """

    def __init__(self) -> None:
        given = _given_environment()
        folders = modification_times(sys.path)
        gc.disable()  # until a kernel runs: a collection would write to every page that the kernels share
        with variables_read() as names:
            _import_all()
            from cobnut_kernel.runtime.shells.shell import Shell

            self.shell: Shell = Shell.instance()
            _warm(self.shell)
        self.variables: dict[str, str | None] = {**{name: given.get(name) for name in names}, **start_variables(given)}
        # Python itself sets LC_CTYPE where there is no locale (PEP 538), and a module may set what it likes.
        self._set: dict[str, str | None] = {
            name: os.environ.get(name)
            for name in given.keys() | os.environ.keys()
            if given.get(name) != os.environ.get(name)
        }
        used = folders_used()
        self._times: dict[str, int] = {path: at for path, at in folders.items() if path in used}
        self._times |= modification_times([sys.executable, *own_files()])
        gc.collect()
        gc.freeze()

    def stale(self) -> str:
        """Return what has changed since the template was made; empty where nothing has."""
        now = modification_times(self._times)
        changed = [path for path, at in self._times.items() if now.get(path) != at]
        return f"{changed[0]} has changed." if changed else ""

    def differs(self, env: Mapping[str, str]) -> str:
        """Return by which variables an environment is another than that of the template; empty where it fits."""
        names = differing_variables(self.variables, env)
        return f"Other values than the template's: {', '.join(names)}." if names else ""

    def threaded(self) -> str:
        """Return which threads of the process would not survive a fork; empty where there are none."""
        names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if not names and len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 - it is not about their paths
            names = ["one that Python does not know"]
        return f"The template has threads, which do not survive a fork: {', '.join(names)}." if names else ""

    def become(self, kernel: Fork) -> None:
        """Make a forked child's state that of a process which was started as the kernel asks."""
        env = {**kernel.env, **{name: value for name, value in self._set.items() if value is not None}}
        os.environ.clear()
        os.environ.update({name: value for name, value in env.items() if self._set.get(name, value) is not None})
        time.tzset()
        sys.argv = [str(import_module("cobnut_kernel.__main__").__file__), *kernel.arguments]
        sys.orig_argv = [sys.executable, "-P", "-m", "cobnut_kernel", *kernel.arguments]
        with suppress(OSError):  # the folder was removed a moment ago
            self.shell.starting_dir = str(Path.cwd())
            self.shell.history_manager.dir_hist[:] = [Path.cwd()]
        gc.enable()


def _import_all() -> None:
    """Import what a kernel ever needs of its own, and what it needs of others at its start and the first time."""
    prefix = f"{runtime.__name__}."
    ours = (module.name for module in walk_packages(runtime.__path__, prefix))
    seldom = (f"{prefix}debugging.", f"{prefix}zygote.")
    for name in (*(name for name in ours if not name.startswith(seldom)), *_NEEDED):
        with suppress(ImportError):  # what is for a library that is not here
            import_module(name)


def _warm(shell: Shell) -> None:
    """Do once what takes long the first time; of this nothing is to be seen afterwards."""
    touch(shell)
    try:
        exec(compile("1 / 0", __file__, "exec"), {})
    except ZeroDivisionError as error:
        shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)
    with suppress(ImportError):
        import_module("parso").load_grammar().parse("6 * 7")


def touch(shell: Shell) -> None:
    """Run a first cell; of this nothing is to be seen afterwards."""
    shell.run_cell("6 * 7", silent=True, store_history=False)
    shell.last_execution_result = None
    cast("DisplayFormatter", shell.display_formatter).format("6 * 7")


# ── what it was made of ─────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def variables_read() -> Generator[set[str]]:
    """Write down the names of the environment variables that are read while the context lasts."""
    names: set[str] = set()
    kind: Any = type(os.environ)  # not another type for it: what is imported now may keep the type
    read = kind.__getitem__

    def record_and_read(environ: Mapping[str, str], name: str) -> str:
        names.add(name)
        return read(environ, name)

    kind.__getitem__ = record_and_read
    try:
        yield names
    finally:
        kind.__getitem__ = read


def _given_environment() -> dict[str, str]:
    """Return the environment that the process was started with, before Python and its modules have changed it."""
    pairs = Path("/proc/self/environ").read_bytes().split(b"\0")
    return {
        os.fsdecode(name): os.fsdecode(value) for name, _, value in (pair.partition(b"=") for pair in pairs) if name
    }


def modification_times(paths: Iterable[str]) -> dict[str, int]:
    """Return when files and folders were changed last, in nanoseconds; those that are not there are left out."""
    times: dict[str, int] = {}
    for path in paths:
        with suppress(OSError, ValueError):
            times[path] = os.stat(path).st_mtime_ns  # noqa: PTH116 - many, for every kernel
    return times


def folders_used() -> set[str]:
    """Return the folders on sys.path that something was imported from, and those that may hold `.pth` files."""
    files = [file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    used = {path for path in sys.path if path and any(str(file).startswith(path + os.sep) for file in files)}
    return used | {path for path in (*site.getsitepackages(), site.getusersitepackages()) if path in sys.path}


def own_files() -> list[str]:
    """Return the files of the modules that were not installed, but lie where somebody works on them."""
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    files = [str(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    return [file for file in files if not file.startswith(installed)]
