"""A value as front ends show it: the representations that a cell's result would have."""

from __future__ import annotations

import builtins
from typing import Any

from cobnut_kernel.protocol.json import dumps


def represent(value: Any) -> dict[str, Any]:
    """Return `data` and `metadata` of a value's mime bundle, as this context's shell draws it."""
    shell: Any = builtins.__dict__["get_ipython"]()
    data, metadata = shell.display_formatter.format(value)
    return {"data": data, "metadata": {kind: each for kind, each in metadata.items() if kind in data}}


def represent_as_text(value: Any) -> str:
    """Return the same as JSON: pydevd hands out the text of what it evaluates in a stopped thread."""
    return dumps(represent(value)).decode()
