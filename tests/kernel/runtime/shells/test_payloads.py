"""What a cell asks the front end to do: show a page, set the next input, edit a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from cobnut_kernel.runtime.shells.payloads import EditMagic, Payloads, next_input, page, show_in_pager

if TYPE_CHECKING:
    from collections.abc import Iterator


class PayloadShell(InteractiveShell):
    """IPython's shell with our payloads, as the kernel's has them."""

    written: list[dict[str, Any]]

    def init_hooks(self) -> None:
        """Set the pager's hook."""
        super().init_hooks()
        self.set_hook("show_in_pager", show_in_pager, 99)

    def init_payload(self) -> None:
        """Make the payload manager."""
        self.written = []
        self.payload_manager = Payloads(lambda: self.written, parent=self)

    def init_magics(self) -> None:
        """Add %edit."""
        super().init_magics()
        self.register_magics(EditMagic)

    def set_next_input(self, s: str, replace: bool = False) -> None:
        """Set the next input."""
        assert self.payload_manager is not None
        self.payload_manager.write_payload(next_input(s, replace))


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[PayloadShell]:
    """A shell that is the process's for the test: IPython's pager looks for that one."""
    shell = PayloadShell(config=Config({"HistoryManager": {"enabled": False}}))
    monkeypatch.setattr(InteractiveShell, "_instance", shell)
    yield shell
    shell.displayhook.flush()


def run(shell: PayloadShell, code: str) -> list[dict[str, Any]]:
    """Run a cell and return its payloads."""
    shell.written = []
    result = shell.run_cell(code)
    result.raise_error()
    return shell.written


@pytest.mark.parametrize(
    ("code", "text"),
    [("zip?", "iter"), ("%pinfo zip", "iter"), ("%pdoc zip", "iter"), ("print??", "Prints the values")],
)
def test_help_is_a_page(shell: PayloadShell, code: str, text: str) -> None:
    """`zip?` and its like give one page with the text."""
    (payload,) = run(shell, code)
    assert payload["source"] == "page"
    assert payload["start"] == 0
    assert text in payload["data"]["text/plain"]


def test_pages_of_one_cell_are_joined(shell: PayloadShell) -> None:
    """A cell that asks twice gets both answers, in one page."""
    (payload,) = run(shell, "zip?\nlen?")
    assert "iter" in payload["data"]["text/plain"]
    assert "Return the number of items" in payload["data"]["text/plain"]


def test_a_page_of_text() -> None:
    """Text and mime bundles can be paged; a start below the first line is the first."""
    assert page("text", -3) == {"source": "page", "data": {"text/plain": "text"}, "start": 0}
    assert page({"text/html": "<b>"}, 2) == {"source": "page", "data": {"text/html": "<b>"}, "start": 2}


def test_the_last_next_input_wins(shell: PayloadShell) -> None:
    """Of several there is one, the last."""
    payloads = run(shell, "for i in range(3): get_ipython().set_next_input(f'x = {i}')")
    assert payloads == [{"source": "set_next_input", "text": "x = 2", "replace": False}]


def test_load_replaces_the_cell(shell: PayloadShell, tmp_path: Path) -> None:
    """`%load` puts a file's text in the place of the cell."""
    (tmp_path / "code.py").write_text("loaded = 1\n")
    (payload,) = run(shell, f"%load {tmp_path}/code.py")
    assert (payload["source"], payload["replace"]) == ("set_next_input", True)
    assert "loaded = 1" in payload["text"]


def test_pages_and_inputs_live_side_by_side(shell: PayloadShell) -> None:
    """Payloads of different kinds are kept, in their order."""
    payloads = run(shell, "get_ipython().set_next_input('x')\nzip?")
    assert [payload["source"] for payload in payloads] == ["set_next_input", "page"]


def test_each_cell_has_payloads_of_its_own(shell: PayloadShell) -> None:
    """What one asked for is not repeated by the next."""
    assert run(shell, "zip?")
    assert run(shell, "x = 1") == []


def test_payloads_of_others(shell: PayloadShell) -> None:
    """What an extension writes itself is sent; what cannot be sent is its error."""
    manager = shell.payload_manager
    assert manager is not None
    manager.write_payload({"source": "own", "x": 1})
    manager.write_payload({"source": "own", "x": 2}, single=False)
    assert manager.read_payload() == [{"source": "own", "x": 1}, {"source": "own", "x": 2}]
    with pytest.raises(TypeError):
        manager.write_payload({"source": "own", "x": object()})
    with pytest.raises(TypeError, match="must be a dict, not str"):
        manager.write_payload("text")
    manager.clear_payload()
    assert shell.written == []


def test_edit_a_file(shell: PayloadShell, tmp_path: Path) -> None:
    """`%edit` names the file, whole, and the line."""
    (tmp_path / "code.py").write_text("x = 1\n")
    payloads = run(shell, f"%edit -n 7 {tmp_path}/code.py")
    assert payloads == [{"source": "edit_magic", "filename": f"{tmp_path}/code.py", "line_number": 7}]
    assert run(shell, f"%ed {tmp_path}/code.py")[0]["line_number"] == 0


def test_edit_where_an_object_is_defined(shell: PayloadShell) -> None:
    """An object's file is opened at its line."""
    (payload,) = run(shell, "import textwrap\n%edit textwrap.dedent")
    assert payload["filename"].endswith("textwrap.py")
    assert payload["line_number"] > 100


def test_edit_text(shell: PayloadShell, capsys: pytest.CaptureFixture[str]) -> None:
    """A variable's text, or nothing, is put into a new file."""
    (payload,) = run(shell, "text = 'y = 2'\n%edit text")
    assert Path(payload["filename"]).read_text() == "y = 2"
    (payload,) = run(shell, "%edit")
    assert Path(payload["filename"]).read_text() == ""
    capsys.readouterr()


def test_edit_what_cannot_be_edited(shell: PayloadShell) -> None:
    """A macro and a line that is no number are refused with a word on what to do."""
    shell.run_cell("m = 1", store_history=True)
    run(shell, "from IPython.core.macro import Macro\nm = Macro('x = 1')")
    with pytest.raises(UsageError, match="macro"):
        shell.run_line_magic("edit", "m")
    with pytest.raises(UsageError, match="number of a line"):
        shell.run_line_magic("edit", "-n seven")
