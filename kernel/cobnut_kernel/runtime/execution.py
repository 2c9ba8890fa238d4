"""Execute requests: from the cell's options to the content of the reply."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.dispatch import Reply, error_content
from cobnut_kernel.runtime.interruption.interrupts import Interrupted
from cobnut_kernel.runtime.loop import end_forked_child
from cobnut_kernel.runtime.modes import CellOptions, cell_options
from cobnut_kernel.runtime.shells.shell import Cell, Outcome, Shell

if TYPE_CHECKING:
    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.job import Job


async def execute(shell: Shell, interrupts: Interrupts, job: Job) -> Reply:
    """Run the cell of an execute request (specification: "Execute").

    Raises:
        TypeError: the request has no code.
    """
    started = datetime.now(UTC).isoformat()
    content = job.message.content
    cell = Cell.from_request(content, job.message.metadata)
    count = shell.reserve(job, store_history=cell.store_history and not _is_empty(cell))
    if not cell.silent:
        shell.publish(MessageType.EXECUTE_INPUT, {"code": cell.code, "execution_count": count})
    outcome = await _run(shell, interrupts, cell, job)
    shell.drain()
    job.stops_queue = outcome.error is not None and not cell.silent and job.options.stop_on_error
    return Reply(_content(job, outcome), {"started": started})


async def _run(shell: Shell, interrupts: Interrupts, cell: Cell, job: Job) -> Outcome:
    try:
        job.options = options = cell_options(job.message.content, job.message.metadata)
    except ValueError as error:
        return shell.refused(error)
    pid = os.getpid()
    limit = options.timeout or (None if cell.silent else shell.timeout or None)
    outcome = await interrupts.run(shell.run(cell), job, limit)
    if os.getpid() != pid:
        end_forked_child(outcome.error)
    if isinstance(outcome, Interrupted):
        outcome = shell.interrupted(outcome.error)
    return _judge(shell, options, outcome)


def _judge(shell: Shell, options: CellOptions, outcome: Outcome) -> Outcome:
    """Say what becomes of a cell's error by its tags."""
    if options.raises and outcome.error is None:
        return shell.refused(RuntimeError("The cell is tagged 'raises-exception', and has raised none."))
    if options.suppressed is not None and outcome.error is not None:
        return Outcome()
    return outcome


def _is_empty(cell: Cell) -> bool:
    return not cell.code or cell.code.isspace()


def _content(job: Job, outcome: Outcome) -> dict[str, Any]:
    content: dict[str, Any] = {
        "status": "ok",
        "execution_count": job.execution_count,
        "user_expressions": outcome.expressions or {},
        "payload": job.payload,
    }
    if outcome.error is not None:
        content |= {"status": "error", **(job.error or error_content(outcome.error))}
    return content
