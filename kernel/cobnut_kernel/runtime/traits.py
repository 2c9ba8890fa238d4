"""What can be set of a kernel."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from traitlets import (
    Bool,
    CaselessStrEnum,
    Dict,
    Float,
    HasTraits,
    Instance,
    Integer,
    List,
    TraitError,
    Unicode,
    default,
    validate,
)

if TYPE_CHECKING:
    from cobnut_kernel.runtime.ending.lifetime import Budget


class KernelTraits(HasTraits):
    """The kernel's settings: arguments of its class, names of `load_settings`, options of its command line."""

    anyio_backend = CaselessStrEnum(["asyncio", "trio"], help="The event loops that run cells.")
    anyio_backend_options: Dict[str, Any] = Dict(
        help="By backend, what anyio.run takes: {'asyncio': {'use_uvloop': True}}."
    )
    connection_file = Unicode(help="JSON file with the connection; it is written where it does not exist.")
    kernel_name = Unicode("cobnut", help="The kernel's name; with 'trio' in it the backend is trio, if none is set.")
    transport = CaselessStrEnum(["tcp", "ipc"], default_value="tcp", help="Transport, where no file says it.")
    ip = Unicode("127.0.0.1", help="The address to listen on, where no file says it; for ipc the path's beginning.")
    profile = Unicode("default", help="The IPython profile: its configuration, startup files and history.")
    help_links: List[dict[str, str]] = List(help="The links that kernel_info names.")
    quiet = Bool(True, help="Show output to clients only; else on the process's own stdout and stderr too.")
    capture_fd_output = Bool(
        True, help="Show what C code and child processes write to the process's stdout and stderr."
    )
    thread_output = CaselessStrEnum(
        ["cell", "latest"],
        default_value="cell",
        help="Whose a thread's output is: the cell's that started it, or the latest's.",
    )
    journal_memory = Integer(32 << 20, help="Bytes of output that are kept in memory for clients that were away.")
    journal_file = Integer(512 << 20, help="Bytes of output that are kept in a file beyond that.")
    print_kernel_messages = Bool(True, help="Say on the terminal that started the kernel when it starts and stops.")
    log = Instance(logging.LoggerAdapter, help="Where the kernel reports its own troubles.")
    when_abandoned = Unicode(
        "die",
        help="What SIGHUP and the owner's death do: 'die'; 'keep'; or 'keep 10m' (s, m, h, d) after the last request.",
    )
    cell_grace = Float(0.15, help="Seconds for interrupted cells to end when the kernel stops.")
    thread_grace = Float(0.25, help="Seconds from the stop for threads that are no daemons.")
    atexit_grace = Float(1.0, help="Seconds for atexit functions, all together.")
    child_grace = Float(0.5, help="Seconds between SIGTERM and SIGKILL of child processes.")

    @property
    def budget(self) -> Budget:
        """What the parts of the process's end may take."""
        from cobnut_kernel.runtime.ending.lifetime import Budget

        return Budget(self.cell_grace, self.thread_grace, self.atexit_grace, self.child_grace)

    def tell(self, text: str) -> None:
        """Say something to who has started the kernel by hand; where it was started by a program nobody reads it."""
        if self.print_kernel_messages and sys.__stderr__ is not None and sys.__stderr__.isatty():
            sys.__stderr__.write(f"{text}\n")

    @default("anyio_backend")
    def _default_backend(self) -> str:
        return "trio" if "trio" in self.kernel_name.lower() else "asyncio"

    @default("log")
    def _default_log(self) -> logging.LoggerAdapter[logging.Logger]:
        return logging.LoggerAdapter(logging.getLogger("cobnut_kernel.kernel"))

    @validate("when_abandoned")
    def _check_policy(self, proposal: dict[str, Any]) -> str:
        from cobnut_kernel.runtime.ending.owner import Policy

        try:
            Policy.parse(proposal["value"])
        except ValueError as error:
            raise TraitError(str(error)) from error
        return proposal["value"]
