"""IPython's compiler, under whose names a debugger finds the cells.

In a file of its own: the control thread needs the names early, and must not import IPython while the main thread does.
"""

from __future__ import annotations

from typing import ClassVar

from IPython.core.compilerop import CachingCompiler

from cobnut_kernel.runtime.debugging.cells import CELL_FILES


class CellCompiler(CachingCompiler):
    """Compiles cells under the names of their files.

    The kernel's shells share what they know of names: a function of the main shell's cell 3 is shown as that one's
    in a subshell's traceback too.
    """

    _numbers: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._filename_map = self._numbers

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Return the path that a cell is compiled under, by its code before any transformation."""
        CELL_FILES.begin_cell()
        return CELL_FILES.path_of(raw_code)
