"""What a cell can see of its kernel's process, as JSON: run in a cold and in a forked kernel, it must say the same."""

import asyncio
import builtins
import decimal
import gc
import json
import locale
import logging
import os
import pathlib
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings

shell = get_ipython()  # noqa: F821 - it runs in a cell


def name(thing):
    """Name a function or an object by its class and module."""
    return getattr(thing, "__qualname__", type(thing).__qualname__) + " of " + str(getattr(thing, "__module__", ""))


def status(field):
    """Return a line of the system's record of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return [line.split(":")[1].strip() for line in lines if line.startswith(field)]


mask = os.umask(0)
os.umask(mask)
history = shell.history_manager
state = {
    "arguments": [sys.argv, sys.orig_argv, sys.flags, sys.path, sys.executable, sys.prefix, sys.warnoptions],
    "import": [[name(finder) for finder in sys.meta_path], [name(hook) for hook in sys.path_hooks]],
    "environment": dict(os.environ),
    "folder": [pathlib.Path.cwd(), shell.starting_dir, list(map(str, history.dir_hist)), shell.home_dir, mask],
    "process": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), status("SigBlk"), status("NoNewPrivs")],
    "signals": [status("SigIgn"), status("SigCgt"), {s.name: name(signal.getsignal(s)) for s in signal.Signals}],
    "limits": [resource.getrlimit(getattr(resource, one)) for one in dir(resource) if one.startswith("RLIMIT")],
    "threads": sorted(thread.name for thread in threading.enumerate() if "history" not in thread.name.lower()),
    "streams": [[s.encoding, s.errors, s.line_buffering] for s in (sys.__stdin__, sys.__stdout__, sys.__stderr__)],
    "ours": [[s.name, s.encoding, s.isatty()] for s in (sys.stdout, sys.stderr)],
    "hooks": [name(hook) for hook in (sys.excepthook, sys.unraisablehook, sys.displayhook, builtins.input)],
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    "places": [locale.getlocale(), locale.setlocale(locale.LC_ALL), time.tzname, time.timezone, tempfile.gettempdir()],
    "loop": name(asyncio.get_running_loop()),
    "other": [sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace() is None, str(decimal.getcontext())],
    "warnings": [str(one) for one in warnings.filters if "Completer" not in str(one)],  # IPython's, once it completes
    "logging": [[name(one) for one in logging.getLogger(log).handlers] for log in ("", "cobnut_kernel")],
    "main": [__name__, sys.modules["__main__"].__dict__ is globals(), sorted(set(globals()) - {"__file__"})],
    "docs": [__doc__, globals().get("__spec__"), globals().get("__file__")],
    "last": [hasattr(sys, one) for one in ("last_value", "last_type", "last_traceback", "last_exc")],
    "cells": [shell.execution_count, In[-1] == shell.history_manager.input_hist_raw[-1], Out, len(In)],  # noqa: F821
    "shell": [shell.ipython_dir, shell.profile_dir.location, str(history.hist_file), history.enabled, shell.colors],
    "last cell": [shell.last_execution_succeeded, shell.last_execution_result is None],
    "parts": [[name(one) for one in shell.configurables], sorted(shell.events.callbacks), len(shell.ast_transformers)],
    "callbacks": {event: [name(one) for one in found] for event, found in shell.events.callbacks.items()},
    "magics": {kind: sorted(found) for kind, found in shell.magics_manager.magics.items()},
    "transformers": [name(one) for one in shell.input_transformer_manager.line_transforms],
    "formatters": {
        kind: [one.enabled, sorted(map(str, one.type_printers))]
        for kind, one in shell.display_formatter.formatters.items()
    },
    "configuration": {
        type(one).__name__: {k: str(v) for k, v in one.trait_values(config=True).items() if " at 0x" not in str(v)}
        for one in [*shell.configurables, shell.display_formatter, *shell.display_formatter.formatters.values()]
    },
    "builtins": sorted(set(dir(builtins))),
}
print(json.dumps(state, default=str, sort_keys=True))
