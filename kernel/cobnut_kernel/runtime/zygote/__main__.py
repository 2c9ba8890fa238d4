"""The fork server's process."""

from __future__ import annotations

import os
import sys

from cobnut_kernel.runtime.zygote.child import SignalHandlers, show_command
from cobnut_kernel.runtime.zygote.owner import Owner
from cobnut_kernel.runtime.zygote.server import Zygote
from cobnut_kernel.runtime.zygote.template import Template


def main(arguments: list[str] | None = None) -> None:
    """Serve an owner; in a forked child, run its kernel."""
    given = sys.argv[1:] if arguments is None else arguments
    if sys.platform != "linux":
        sys.exit("Kernels are forked on Linux only: start them cold here.")
    if len(given) != 1 or not given[0].isdecimal():
        sys.exit("A fork server is started by its owner, with the number of the socket to him.")
    handlers = SignalHandlers()
    zygote = Zygote(Owner.at(int(given[0])), Template(), handlers)
    kernel = zygote.serve()
    if kernel is None:
        os._exit(0)  # what runs at exit belongs to the kernels
    zygote.leave()
    kernel.settle(handlers)
    zygote.template.become(kernel.request)
    show_command(sys.orig_argv)

    from cobnut_kernel.__main__ import main as run_kernel

    run_kernel(list(kernel.request.arguments))


if __name__ == "__main__":
    main()
