"""The payloads of an execute reply: pages of help, the next input, a file to edit.

Source: "Payloads" in the Jupyter messaging specification; the shapes of pages and files are ipykernel's, which front
ends read. They belong to the cell that asked, whichever of the cells that run it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.payload import PayloadManager

from cobnut_kernel.protocol.json import dumps

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.core.interactiveshell import InteractiveShell

    Payload = dict[str, Any]


class Payloads(PayloadManager):
    """IPython's payload manager, which writes to the list of the running cell.

    Args:
        find: returns that list.
    """

    def __init__(self, find: Callable[[], list[Payload]], **options: Any) -> None:
        super().__init__(**options)
        self._find = find

    def write_payload(self, data: Payload, single: bool = True) -> None:
        """Add a payload; with `single` it takes the place of one of its kind. Pages are joined: none hides another.

        Raises:
            TypeError: it is no dict, or has no JSON form.
        """
        if not isinstance(data, dict):
            raise TypeError(f"A payload must be a dict, not {type(data).__name__}.")
        dumps(data)
        payloads = self._find()
        place = next((n for n, held in enumerate(payloads) if held.get("source") == data.get("source")), None)
        if place is None or not single:
            payloads.append(data)
        else:
            payloads[place] = _joined(payloads[place], data) if data.get("source") == "page" else data

    def read_payload(self) -> list[Payload]:
        """Return the running cell's payloads."""
        return self._find()

    def clear_payload(self) -> None:
        """Take back the running cell's payloads."""
        self._find().clear()


def page(data: str | dict[str, Any], start: int = 0) -> Payload:
    """Describe a page to show beside the outputs: text or a mime bundle, from a line on."""
    return {"source": "page", "data": data if isinstance(data, dict) else {"text/plain": data}, "start": max(0, start)}


def next_input(text: str, replace: bool = False) -> Payload:
    """Describe the text of the next cell, or with `replace` of this one."""
    return {"source": "set_next_input", "text": text, "replace": replace}


def show_in_pager(shell: InteractiveShell, data: str | dict[str, Any], start: int = 0, screen_lines: int = 0) -> None:
    """Show text in the front end; IPython's hook of that name."""
    del screen_lines  # the front end knows its screen
    cast("Payloads", shell.payload_manager).write_payload(page(data, start))


def _joined(first: Payload, second: Payload) -> Payload:
    """Join two pages: of the forms that both have, those that are text, one below the other."""
    forms = {
        mime: f"{first['data'][mime]}\n\n{form}"
        for mime, form in second["data"].items()
        if isinstance(form, str) and isinstance(first["data"].get(mime), str) and mime.startswith("text/")
    }
    return {**first, "data": forms} if forms else second


@magics_class
class EditMagic(Magics):
    """`%edit`, which lets the front end open the file: it has the editor."""

    def __init__(self, shell: InteractiveShell | None = None, **options: Any) -> None:
        super().__init__(shell=shell, **options)
        self._last = ["", ""]

    @line_magic
    def edit(self, parameter_s: str = "") -> None:
        """Open a file in the front end's editor; it is not run when the editor closes.

        ``%edit`` opens an empty file; ``%edit name`` the file where an object was defined, at its line, or the file of
        that name, or a new one with a text that a variable holds; ``%edit 3-5 8`` one with these inputs.

        Options:
          -n NUMBER: at this line.
          -p: what was edited last.
          -r: inputs as they were typed, not as they were run.

        Raises:
            UsageError: it is a macro, or the line no number.
        """
        from IPython.core.magics.code import CodeMagics, InteractivelyDefined, MacroToEdit

        options, arguments = cast("tuple[dict[str, Any], str]", self.parse_options(parameter_s, "prn:"))
        find: Any = vars(CodeMagics)["_find_edit_target"]
        try:
            found = find(self.shell, arguments, options, self._last)
        except InteractivelyDefined as defined:  # in a cell: its text is opened
            found = find(self.shell, str(cast("Any", defined).index), options, self._last)
        except MacroToEdit as error:
            raise UsageError(
                "A macro is in no file: show it by %macro, change its cells, and make it again."
            ) from error
        file, line, _ = cast("tuple[str | None, Any, Any]", found)
        if file is not None:
            payload = {"source": "edit_magic", "filename": str(Path(file).resolve()), "line_number": _line(line)}
            cast("Any", self.shell).payload_manager.write_payload(payload)


def _line(line: Any) -> int:
    try:
        return int(line or 0)
    except ValueError as error:
        raise UsageError(f"%edit -n needs the number of a line, not {line!r}.") from error
