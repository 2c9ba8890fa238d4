"""The answer to each request: one coroutine for each, named after it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from cobnut_kernel.errors import UnknownSubshellError
from cobnut_kernel.protocol.connection import PORT_NAMES
from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.dispatch import Reply
from cobnut_kernel.runtime.imports import without_user_folder
from cobnut_kernel.runtime.information import has_debugger, kernel_info
from cobnut_kernel.runtime.traits import KernelTraits

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.runtime.comms import CommManager
    from cobnut_kernel.runtime.interruption.interrupts import Interrupts
    from cobnut_kernel.runtime.job import Job
    from cobnut_kernel.runtime.output.routing import CurrentJob
    from cobnut_kernel.runtime.service import Service
    from cobnut_kernel.runtime.shells.shell import Shell

    Content = dict[str, Any]
    Select = Callable[[Job], bool]

_EXIT_DELAY = 0.25
"""Seconds from the end of a cell that exits to the kernel's: jupyter console reads a reply while the kernel lives."""

_log = logging.getLogger(__name__)


class Handlers(KernelTraits):
    """Answers requests by the parts of the kernel; a subclass steps in at the coroutine named after a request.

    A handler returns the content of the reply, or a `Reply` where there is more, or None where there is no reply. What
    it raises becomes the reply.
    """

    interrupts: set[Callable[[], object]]
    _interrupts: Interrupts
    _jobs: CurrentJob

    @property
    def _running(self) -> Service:
        raise NotImplementedError

    @property
    def comm_manager(self) -> CommManager:
        """The comms of this kernel."""
        if self._running.comms is None:
            raise RuntimeError("The kernel has no comms before it has started.")
        return self._running.comms

    @property
    def kernel_info(self) -> Content:
        """What kernel_info_reply says (specification: "Kernel info")."""
        return kernel_info(self.help_links, debugger=has_debugger())

    async def kernel_info_request(self, _job: Job) -> Content:
        """Answer what this kernel is."""
        return self.kernel_info

    async def connect_request(self, _job: Job) -> Content:
        """Answer on which ports the kernel listens (specification: "Connect"; deprecated there)."""
        connection = self._running.connection.as_dict()
        return {"status": "ok", **{name: connection[name] for name in PORT_NAMES}}

    async def usage_request(self, _job: Job) -> Content:
        """Answer what the kernel uses of its machine."""
        with without_user_folder():
            from cobnut_kernel.runtime.introspection.usage import usage_report

        return {"status": "ok", **usage_report()}

    # ── cells ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def execute_request(self, job: Job) -> Reply:
        """Run a cell."""
        from cobnut_kernel.runtime.execution import execute

        shell = self._shell_of(job)
        reply = await execute(shell, self._interrupts, job)
        if shell.exit_requested:
            io_thread = self._running.io_thread
            io_thread.call_soon(io_thread.call_later, _EXIT_DELAY, lambda: self._end(restart=False))
        return reply

    async def interrupt_request(self, job: Job) -> Content:
        """Interrupt all cells that run, and refuse those that wait; where there are none, nothing happens."""
        _, _, pending = await self._interrupt(job, lambda _: True)
        return {"status": "ok", **({"pending": pending} if pending else {})}

    async def interrupt_cells_request(self, job: Job) -> Content:
        """Interrupt or refuse the cells of one subshell, or those that are named by their requests' ids."""
        interrupted, dequeued, pending = await self._interrupt(job, _selection(job.message.content))
        return {"status": "ok", "interrupted": interrupted, "dequeued": dequeued, "pending": pending}

    async def _interrupt(self, job: Job, select: Select) -> tuple[list[str], list[str], list[Content]]:
        for callback in list(self.interrupts):
            try:
                callback()
            except Exception:  # one broken callback must not keep the interrupt from the cells
                _log.exception("A callback of kernel.interrupts has failed")
        waiting = self._running.subshells.abort(
            lambda cell: _is_cell(cell) and cell.number < job.number and select(cell)
        )
        whole = job.message.msg_type == MessageType.INTERRUPT_REQUEST
        cells = self._interrupts.interrupt(None if whole else select, before=job.number)
        pending = await self._interrupts.stuck(cells)
        return [cell.job.message.msg_id for cell in cells], [cell.message.msg_id for cell in waiting], pending

    # ── the user's objects ──────────────────────────────────────────────────────────────────────────────────────────

    async def complete_request(self, job: Job) -> Content:
        """Answer how the code at the cursor can go on."""
        return self._running.language.complete(self._shell_of(job), job.message.content)

    async def inspect_request(self, job: Job) -> Content:
        """Answer what the code at the cursor is."""
        return self._running.language.inspect(self._shell_of(job), job.message.content)

    async def is_complete_request(self, job: Job) -> Content:
        """Answer whether code can be run as it is."""
        return self._running.language.is_complete(self._shell_of(job), job.message.content)

    async def history_request(self, job: Job) -> Content:
        """Answer which cells were run."""
        return self._running.language.history(self._shell_of(job), job.message.content)

    async def variables_request(self, job: Job) -> Content:
        """Answer which variables there are; a message of ours."""
        with without_user_folder():
            from cobnut_kernel.runtime.introspection.stacks import variables

        named = job.message.content.get("subshell_id", job.subshell_id)
        names: Content = cast("Any", self._running.subshells.get_shell(named)).user_ns
        return variables(names, job.message.content)

    async def stack_request(self, _job: Job) -> Content:
        """Answer where every cell and thread is; a message of ours."""
        with without_user_folder():
            from cobnut_kernel.runtime.introspection.stacks import stacks

        return stacks(self._interrupts.running())

    # ── output that was missed ──────────────────────────────────────────────────────────────────────────────────────

    async def journal_request(self, job: Job) -> Reply:
        """Answer with what a client has missed of iopub; a message of ours."""
        content, buffers = self._running.outbox.journal.page(job.message.content)
        return Reply(content, buffers=buffers)

    # ── comms ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def comm_info_request(self, job: Job) -> Content:
        """Answer which comms are open."""
        comms = self._running.comms
        target = job.message.content.get("target_name")
        return {"status": "ok", "comms": comms.info(target) if comms is not None else {}}

    async def comm_open(self, job: Job) -> None:
        """Open a comm that a front end asks for."""
        await self._tell_comm(self.comm_manager.comm_open, job)

    async def comm_msg(self, job: Job) -> None:
        """Hand a message to its comm."""
        await self._tell_comm(self.comm_manager.comm_msg, job)

    async def comm_close(self, job: Job) -> None:
        """Close a comm that a front end has closed."""
        await self._tell_comm(self.comm_manager.comm_close, job)

    async def _tell_comm(self, handle: Callable[..., None], job: Job) -> None:
        """Call the user's code for a message, so that it can be interrupted."""

        async def call() -> None:
            handle(None, None, job.message.as_dict())

        outcome = await self._interrupts.run(call(), job)
        if outcome is not None:
            self._shell_of(job).interrupted(outcome.error)

    # ── subshells and the debugger ──────────────────────────────────────────────────────────────────────────────────

    async def create_subshell_request(self, job: Job) -> Content:
        """Start a subshell (JEP 91); `namespace` may ask for a private one or a copy."""
        namespace = job.message.content.get("namespace") or "shared"
        return {"status": "ok", "subshell_id": self._running.subshells.create_subshell(namespace)}

    async def delete_subshell_request(self, job: Job) -> Content:
        """Take a subshell away (JEP 91): its cell is interrupted, what waits is refused."""
        subshell_id = job.message.content.get("subshell_id")
        if not isinstance(subshell_id, str):
            raise UnknownSubshellError(str(subshell_id))
        ended = await self._running.subshells.delete_soon(subshell_id)
        return {
            "status": "ok",
            **({} if ended else {"pending": await self._interrupts.stuck(self._cells_of(subshell_id))}),
        }

    async def list_subshell_request(self, _job: Job) -> Content:
        """Answer which subshells there are (JEP 91)."""
        return {"status": "ok", "subshell_id": self._running.subshells.list_subshells()}

    async def debug_request(self, job: Job) -> Content:
        """Answer a request of the debug adapter protocol (specification: "Debug request")."""
        return await self._running.debugger.request(job.message.content)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def shutdown_request(self, job: Job) -> Content:
        """Stop the kernel, and tell every client (specification: "Kernel shutdown")."""
        restart = bool(job.message.content.get("restart", False))
        content = {"status": "ok", "restart": restart}
        self._running.publish(MessageType.SHUTDOWN_REPLY, content, job)
        self._end(restart=restart)
        return content

    def _end(self, *, restart: bool) -> None:
        raise NotImplementedError

    def _shell_of(self, job: Job) -> Shell:
        return self._running.subshells.get_shell(job.subshell_id)

    def _cells_of(self, subshell_id: str) -> list[Any]:
        return [cell for cell in self._interrupts.running() if cell.job.subshell_id == subshell_id]


def _is_cell(job: Job) -> bool:
    return job.message.msg_type == MessageType.EXECUTE_REQUEST


def _selection(content: Content) -> Select:
    """Read which cells are meant: those of `msg_ids`, those of `subshell_id` (None is the main shell), or both."""
    ids = cast("list[object] | None", content.get("msg_ids"))
    if ids is not None and not isinstance(ids, list):
        raise TypeError("The 'msg_ids' of an interrupt_cells_request are a list of the cells' message ids.")
    if ids is None and "subshell_id" not in content:
        raise ValueError(
            "An interrupt_cells_request names cells by 'msg_ids' or 'subshell_id'; interrupt_request is for all."
        )
    named = None if ids is None else set(ids)

    def select(job: Job) -> bool:
        if named is not None and job.message.msg_id not in named:
            return False
        return "subshell_id" not in content or job.subshell_id == content["subshell_id"]

    return select
