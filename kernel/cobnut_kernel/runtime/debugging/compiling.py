"""IPython's compiler, under whose names a debugger finds the cells.

In a file of its own: the control thread needs the names early, and must not import IPython while the main thread does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from IPython.core.compilerop import CachingCompiler

from cobnut_kernel.runtime.debugging.cells import CELL_FILES

if TYPE_CHECKING:
    import ast

_ATTEMPTS = 10
"""How often code is compiled that another thread's compilation has disturbed."""


class CellCompiler(CachingCompiler):
    """Compiles cells under the names of their files.

    The kernel's shells share what they know of names: a function of the main shell's cell 3 is shown as that one's
    in a subshell's traceback too. Some versions of CPython count the depth of syntax trees for all threads together,
    and raise SystemError where another one has counted in between (cpython #106905): then it is done again.
    """

    _numbers: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._filename_map = self._numbers

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        """Return the path that a cell is compiled under, by its code before any transformation."""
        CELL_FILES.begin_cell()
        return CELL_FILES.path_of(raw_code)

    def ast_parse(self, source: str, filename: str = "<unknown>", symbol: str = "exec") -> ast.AST:
        """Parse code to a syntax tree."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return super().ast_parse(source, filename, symbol)
            except SystemError:
                continue
        return super().ast_parse(source, filename, symbol)

    def __call__(self, source: Any, filename: str, symbol: str, *args: Any, **options: Any) -> Any:
        """Compile code, or a syntax tree."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return super().__call__(source, filename, symbol, *args, **options)
            except SystemError:
                continue
        return super().__call__(source, filename, symbol, *args, **options)
