"""The kernels at a glance: a line for each at the side, or all in one line on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cobnut.kernel_status import GLYPHS, STYLES, KernelRow
from cobnut.widgets.lines import Lines, line, shortened, spread

if TYPE_CHECKING:
    from rich.text import Text


def kernel_line(row: KernelRow, width: int) -> Text:
    """Write one kernel in a line: `>1 ● scratch   busy 12s +1`; the name gives way, the state never does."""
    state = row.state_text
    room = max(1, width - 6 - len(state))
    name = shortened(line(row.name), room).plain
    emphasis = "bold" if row.selected else ""
    text = line(
        (f"{'>' if row.selected else ' '}{row.number:<2}", emphasis),
        (GLYPHS[row.status][0], STYLES[row.status]),
        (f" {name:<{min(9, room)}} ", emphasis),
        (state, STYLES[row.status]),
    )
    return shortened(text, width)


def kernel_strip(rows: Sequence[KernelRow], width: int) -> Text:
    """Write all kernels in one line, such as `1●scratch 12s+1  2○train`, or those around the selected one."""
    parts = [_strip_part(row) for row in rows]
    first = 0
    selected = next((index for index, row in enumerate(rows) if row.selected), 0)
    while first < selected and sum(part.cell_len + 2 for part in parts[first : selected + 1]) > width - 1:
        first += 1
    text = line("… " if first else "")
    for part in parts[first:]:
        text.append_text(part).append("  ")
    return shortened(text, width)


def _strip_part(row: KernelRow) -> Text:
    emphasis = "bold underline" if row.selected else ""
    text = line(
        (str(row.number), emphasis),
        (GLYPHS[row.status][0], STYLES[row.status]),
        (row.name, emphasis),
    )
    return text.append_text(line((f" {row.brief_text}" if row.brief_text else "", STYLES[row.status])))


def counts(running: int, queued: int) -> Text:
    """Write how many cells run and wait; nothing where none does."""
    parts = [f"{running} running"] * bool(running) + [f"{queued} queued"] * bool(queued)
    return line(("  ".join(parts), "yellow"))


def _ruled(text: Text, width: int) -> Text:
    padded = text.copy()
    padded.pad_right(width - text.cell_len)
    return padded.append("│", "dim")


class Sidebar(Lines[Sequence[KernelRow]]):
    """A heading and a line for each kernel, with a rule at the right edge."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the heading with how many kernels are up, and as many kernels as fit, the selected one among them."""
        inner = width - 1
        up = sum(not row.status.has_ended for row in self.content)
        selected = next((index for index, row in enumerate(self.content) if row.selected), 0)
        first = max(0, selected - (height - 2))
        lines = [spread(line((" KERNELS", "dim")), line((f"{up} up ", "dim")), inner)]
        lines += [kernel_line(row, inner - 1) for row in self.content[first:]]
        lines += [line()] * (height - len(lines))
        return [_ruled(text, inner) for text in lines[:height]]


class KernelStrip(Lines[Sequence[KernelRow]]):
    """All kernels in one line."""

    def compose_lines(self, width: int, height: int) -> Sequence[Text]:
        """Write the line."""
        return [kernel_strip(self.content, width)]
