"""The kernel's own magics."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from IPython.core.magic import Magics, line_magic, magics_class

if TYPE_CHECKING:
    from cobnut_kernel.runtime.shells.shell import Shell


@magics_class
class KernelMagics(Magics):
    """Magics that tell what the kernel is doing."""

    @line_magic
    def subshell(self, _line: str = "") -> None:
        """Show the subshell that runs this cell, and all there are."""
        shell = cast("Shell", self.shell).get_ipython()
        manager = shell.kernel.subshell_manager
        print(f"This cell runs in: {shell.subshell_id or 'the main shell'}")
        print(f"Main shell: next count {manager.main_shell.execution_count}")
        for subshell_id in manager.list_subshells():
            subshell = manager.get(subshell_id)
            print(f"Subshell {subshell_id}: thread {subshell.ident}, next count {subshell.shell.execution_count}")

    @line_magic
    def callers(self, _line: str = "") -> None:
        """Show the event loops that code can be sent to (see `cobnut_kernel.Caller`)."""
        from cobnut_kernel.caller import Caller

        for caller in Caller.all_callers():
            print(f"{caller.name}: {caller.backend}, thread {caller.id}")

    @line_magic
    def connect_info(self, _line: str = "") -> None:
        """Show how another front end reaches this kernel; who has the key can run code as you."""
        kernel = cast("Shell", self.shell).kernel
        print(json.dumps(kernel.get_connection_info(), indent=2))
        if kernel.connection_file:
            print(f"\nTo attach: jupyter console --existing {kernel.connection_file}")
