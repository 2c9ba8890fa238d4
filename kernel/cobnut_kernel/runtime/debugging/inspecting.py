"""Jupyter's own requests, those that need no debugger: cells' files, sources, modules and variables."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.runtime.debugging.adapter import in_service_thread
from cobnut_kernel.runtime.debugging.cells import CELL_FILES
from cobnut_kernel.runtime.debugging.exploring import Explorer
from cobnut_kernel.runtime.debugging.requests import Request, RequestError
from cobnut_kernel.runtime.debugging.rich import represent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cobnut_kernel.runtime.shells.shell import Shell

    Content = dict[str, Any]
    Handler = Callable[[Request], Awaitable[Content]]


class Inspection:
    """Answers what can be asked while nothing is stopped; `handlers` by command, each returns a response's body.

    Args:
        shell: finds the shell that a request is about; waits until there is one.
    """

    def __init__(self, shell: Callable[[], Shell]) -> None:
        self._shell = shell
        self._explorer = Explorer()
        self.handlers: dict[str, Handler] = {
            "source": self._source,
            "dumpCell": self._dump_cell,
            "inspectVariables": self._inspect_variables,
            "modules": self._modules,
        }

    def holds(self, reference: int) -> bool:
        """Tell whether a reference to variables is one of those that `inspectVariables` has given."""
        return self._explorer.holds(reference)

    async def children(self, request: Request) -> Content:
        """Return the children of a variable that `inspectVariables` has described."""
        numbers = (request.number("variablesReference"), request.number("start", 0), request.number("count", 0))
        return {"variables": await in_service_thread(self._explorer.children, *numbers)}

    async def represent(self, request: Request) -> Content:
        """Draw a variable of the user's namespace as a cell's result would be."""
        return await in_service_thread(self._represent, request.identifier("variableName"))

    def _represent(self, name: str) -> Content:
        shell = self._shell()
        if name not in shell.user_ns:
            raise RequestError(f"There is no variable {name!r}.")
        with shell.entered():
            return represent(shell.user_ns[name])

    async def _inspect_variables(self, _request: Request) -> Content:
        return {"variables": await in_service_thread(self._variables)}

    def _variables(self) -> list[Content]:
        return self._explorer.variables(cast("dict[str, Any]", self._shell().user_ns))

    async def _dump_cell(self, request: Request) -> Content:
        return {"sourcePath": CELL_FILES.dump(request.text("code"))}

    async def _source(self, request: Request) -> Content:
        return {"content": await in_service_thread(_read_source, request.source_path())}

    async def _modules(self, request: Request) -> Content:
        """Name the modules that are there and have a file of Python."""
        loaded = list(sys.modules.copy().values())
        start, limit = request.number("startModule", 0), request.number("moduleCount", 0)
        chosen = list(enumerate(loaded))[start : start + limit if limit else None]
        described = ((number, module, _file_of(module)) for number, module in chosen)
        found = [{"id": number, "name": module.__name__, "path": file} for number, module, file in described if file]
        return {"modules": found, "totalModules": len(loaded)}


def _read_source(path: str) -> str:
    """Return the text of a file, or of a cell that was run and has no file yet."""
    if Path(path).is_file():
        return Path(path).read_text("utf-8", "replace")
    if lines := linecache.getlines(path):
        return "".join(lines)
    raise RequestError(f"There is no source of {path}.")


def _file_of(module: Any) -> str | None:
    file = getattr(getattr(module, "__spec__", None), "origin", None)
    return file if isinstance(file, str) and file.endswith(".py") else None
