"""What there is to choose from: the kernels that are here, those that can be started, the commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cobnut.commands import COMMANDS, Command
from cobnut.screens.picker import Choice
from cobnut.widgets.kernel_list import kernel_line
from cobnut.widgets.lines import line
from cobnut_kernel.kernelspec import OWN_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cobnut.kernel_status import KernelRow
    from cobnut.session import Session
    from cobnut_kernel.kernelspec import KernelSpecManager


def session_choices(sessions: Sequence[Session], rows: Sequence[KernelRow]) -> list[Choice[Session]]:
    """List the kernels that are here, each with its interpreter and folder."""
    lines = [kernel_line(replace(row, selected=False), 32) for row in rows]
    width = max(text.cell_len for text in lines)
    for text in lines:
        text.pad_right(width - text.cell_len)
    return [
        Choice(session, text, f"{session.interpreter}, in {session.folder}")
        for session, text in zip(sessions, lines, strict=True)
    ]


def spec_choices(specs: KernelSpecManager) -> list[Choice[str]]:
    """List the kernels that can be started, our own first, and what is wrong with those that cannot."""
    found = {name: specs.get_kernel_spec(name) for name in specs.get_all_specs()}
    broken = specs.broken_specs()
    width = max((len(name) for name in (*found, *broken)), default=0)
    titles = max((len(spec.display_name) for spec in found.values()), default=0)
    names = sorted(found, key=lambda name: (name != OWN_NAME, name))
    possible = [
        Choice(name, line(f"{name:<{width}}  {found[name].display_name:<{titles}}"), found[name].argv[0])
        for name in names
    ]
    return possible + [
        Choice(name, line(f"{name:<{width}}  {'cannot start':<{titles}}"), reason, is_possible=False)
        for name, reason in sorted(broken.items())
    ]


def command_choices() -> list[Choice[Command]]:
    """List the commands, each with its keys."""
    titles = max(len(command.title) for command in COMMANDS)
    keys = max(len(command.shown_keys) for command in COMMANDS)
    return [
        Choice(command, line(f"{command.title:<{titles}}  {command.shown_keys:<{keys}}"), command.help)
        for command in COMMANDS
    ]
