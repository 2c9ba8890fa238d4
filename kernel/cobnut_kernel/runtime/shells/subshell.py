"""The shell of a subshell, beside the main one."""

from __future__ import annotations

import atexit
from typing import Any, cast

from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.shells.namespace import NamespaceKind, make_namespace
from cobnut_kernel.runtime.shells.shell import Shell


class Subshell(Shell):
    """A shell beside the main one, with its own count, history, results and hooks.

    The configuration, the formatters and the magics are the main shell's; the names are too, unless it was given a
    namespace of its own.
    """

    def __init__(self, main: Shell, subshell_id: str, kind: NamespaceKind) -> None:
        self.main = main
        self.subshell_id = subshell_id
        self.namespace_kind = kind
        self._ending: bool = False
        module = make_namespace(kind, cast("Any", main).user_module)
        super().__init__(
            config=main.config,
            ipython_dir=cast("Any", main).ipython_dir,
            profile_dir=main.profile_dir,
            user_module=module,
            user_ns=module.__dict__,
        )
        self.kernel = main.kernel
        if self.kernel._settings is not None:
            self.kernel._settings.apply_to_shell(self)
        self.connect(main._outbox, main._current, main._interrupts, main.drain)

    def init_virtualenv(self) -> None:
        """Leave sys.path alone: the main shell has set it up."""

    def init_sys_modules(self) -> None:
        """Leave `__main__` to the main shell."""

    def init_user_ns(self) -> None:
        """Set up In, Out and their like, but in a namespace of our own only."""
        if self.namespace_kind is not NamespaceKind.SHARED:
            super().init_user_ns()

    def push(self, variables: Any, interactive: bool = True) -> None:
        """Put names into the namespace; those of the inputs only into one of our own."""
        if interactive or self.namespace_kind is not NamespaceKind.SHARED or "_i" not in variables:
            super().push(variables, interactive)

    def init_display_formatter(self) -> None:
        """Show things as the main shell does, with what users have registered there."""
        self.display_formatter = self.main.display_formatter

    def init_displayhook(self) -> None:
        """Make a display hook that leaves the main shell's results alone where the names are shared."""
        super().init_displayhook()
        self.displayhook.keeps_results = self.namespace_kind is not NamespaceKind.SHARED

    def init_logstart(self) -> None:
        """Leave the log file to the main shell."""

    def find_line_magic(self, magic_name: str) -> Any:
        """Find a line magic; those that users have registered are the main shell's."""
        return super().find_line_magic(magic_name) or self.main.find_line_magic(magic_name)

    def find_cell_magic(self, magic_name: str) -> Any:
        """Find a cell magic; those that users have registered are the main shell's."""
        return super().find_cell_magic(magic_name) or self.main.find_cell_magic(magic_name)

    def _find_with_lazy_load(self, type_: Any, magic_name: str) -> Any:
        """Find a magic that a cell calls, as above."""
        return super()._find_with_lazy_load(type_, magic_name) or self.main._find_with_lazy_load(type_, magic_name)

    def reset(self, new_session: bool = True, aggressive: bool = False) -> None:
        """Clear the namespace, as `%reset` does; the end of this shell leaves one that is shared alone."""
        if not self._ending or self.namespace_kind is not NamespaceKind.SHARED:
            super().reset(new_session, aggressive)

    def end(self) -> None:
        """End the history's session, and forget what IPython wanted to do at the process's end."""
        self._ending = True
        atexit.unregister(self.atexit_operations)
        with without_user_folder():
            self.atexit_operations()
