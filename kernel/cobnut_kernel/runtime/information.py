"""What a kernel says of itself."""

from __future__ import annotations

import platform
from functools import cache
from importlib.util import find_spec
from typing import Any

from cobnut_kernel import __version__
from cobnut_kernel.protocol.messages import PROTOCOL_VERSION

FEATURES = (
    "kernel subshells",
    "cobnut.interrupt_cells",
    "cobnut.journal",
    "cobnut.stack",
    "cobnut.variables",
)
"""What the kernel can do beyond the specification's oldest version; ours begin with our name."""


@cache
def has_debugger() -> bool:
    """Tell whether the debugger's package is installed; it is imported with the first debug request."""
    return find_spec("debugpy") is not None


def kernel_info(help_links: list[dict[str, str]], *, debugger: bool) -> dict[str, Any]:
    """Return the content of kernel_info_reply (specification: "Kernel info")."""
    version = platform.python_version()
    return {
        "status": "ok",
        "protocol_version": PROTOCOL_VERSION,
        "implementation": "cobnut",
        "implementation_version": __version__,
        "language_info": {
            "name": "python",
            "version": version,
            "mimetype": "text/x-python",
            "file_extension": ".py",
            "pygments_lexer": "ipython3",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "nbconvert_exporter": "python",
        },
        "banner": f"Python {version} · cobnut {__version__}",
        "help_links": help_links,
        "debugger": debugger,
        "supported_features": [*FEATURES, *(["debugger"] if debugger else [])],
    }
