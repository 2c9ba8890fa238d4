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
    number = f"{'>' if row.selected else ' '}{row.number}".ljust(2) + " "
    beside = len(number) + len("● n ")
    state = row.state_text if beside + len(row.state_text) <= width else row.timeless_text
    room = max(1, width - len(number) - 3 - len(state))
    name = shortened(line(row.name), room).plain
    emphasis = "bold" if row.selected else ""
    text = line(
        (number, emphasis),
        (GLYPHS[row.status][0], STYLES[row.status]),
        (f" {name:<{min(9, room)}} ", emphasis),
        (state, STYLES[row.status]),
    )
    return shortened(text, width)


def kernel_strip(rows: Sequence[KernelRow], width: int) -> Text:
    """Write all kernels in one line: `1●scratch 12s+1  2○train`.

    Where not all fit, the selected one comes first, then as many others as fit, then how many are left: `8○train  +7`.
    """
    parts = [_strip_part(row) for row in rows]
    whole = line("  ").join(parts)
    if whole.cell_len <= width:
        return whole
    selected = next((index for index, row in enumerate(rows) if row.selected), 0)
    text, left = parts.pop(selected), len(parts)
    while left and text.cell_len + 2 + parts[0].cell_len + len(f"  +{left - 1}") <= width:
        text.append("  ").append_text(parts.pop(0))
        left -= 1
    rest = f"  +{left}" if left else ""
    return shortened(text, width - len(rest)).append(rest)


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
