"""What is asked on the control channel, which a kernel answers while cells run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from cobnut_kernel.client.asking import Answer, Ask, Asking, Content
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Iterable

MAIN: Any = object()
"""Stands for "not given" where None names the main shell."""


class ControlRequests(Asking[Answer]):
    """Requests about the kernel as a whole: its end, its interrupts, its subshells, what it is doing."""

    @overload
    def shutdown(
        self, restart: bool = False, *, reply: Literal[False] = False, timeout: float | None = None
    ) -> str: ...
    @overload
    def shutdown(self, restart: bool = False, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def shutdown(self, restart: bool = False, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask the kernel to end; `restart` tells it that another will follow."""
        return self._control(MessageType.SHUTDOWN_REQUEST, {"restart": restart}, timeout, reply=reply)

    # ── interrupts ──────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def interrupt(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def interrupt(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def interrupt(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask the kernel to interrupt what it runs; kernels whose spec has interrupt mode "message" do."""
        return self._control(MessageType.INTERRUPT_REQUEST, {}, timeout, reply=reply)

    @overload
    def interrupt_cells(
        self,
        msg_ids: Iterable[str] | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def interrupt_cells(
        self,
        msg_ids: Iterable[str] | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: Literal[True],
        timeout: float | None = None,
    ) -> Answer: ...
    def interrupt_cells(
        self,
        msg_ids: Iterable[str] | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: bool = False,
        timeout: float | None = None,
    ) -> str | Answer:
        """Ask our kernel to interrupt some cells, and to refuse those of them that wait; a message of ours.

        Args:
            msg_ids: the ids of the cells' requests; by default all.
            subshell_id: the subshell whose cells are meant, None for the main one; by default any.
            reply: return the reply: `interrupted` and `dequeued` are lists of ids, `pending` says what goes on.
            timeout: for the reply, in seconds.

        Raises:
            ValueError: neither is given: `interrupt` is for all.
        """
        if msg_ids is None and subshell_id is MAIN:
            raise ValueError("Name the cells to interrupt by msg_ids or subshell_id; interrupt() is for all.")
        content: Content = {} if msg_ids is None else {"msg_ids": list(msg_ids)}
        if subshell_id is not MAIN:
            content["subshell_id"] = subshell_id
        return self._control(MessageType.INTERRUPT_CELLS_REQUEST, content, timeout, reply=reply)

    # ── subshells (JEP 91) ──────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def create_subshell(
        self, namespace: str | None = None, *, reply: Literal[False] = False, timeout: float | None = None
    ) -> str: ...
    @overload
    def create_subshell(
        self, namespace: str | None = None, *, reply: Literal[True], timeout: float | None = None
    ) -> Answer: ...
    def create_subshell(
        self, namespace: str | None = None, *, reply: bool = False, timeout: float | None = None
    ) -> str | Answer:
        """Ask for another shell of the kernel; the reply's content names its `subshell_id`.

        Args:
            namespace: of our kernel: "shared" (the default), "private", or "copy".
            reply: return the reply.
            timeout: for the reply, in seconds.
        """
        content = {} if namespace is None else {"namespace": namespace}
        return self._control(MessageType.CREATE_SUBSHELL_REQUEST, content, timeout, reply=reply)

    @overload
    def delete_subshell(
        self, subshell_id: str, *, reply: Literal[False] = False, timeout: float | None = None
    ) -> str: ...
    @overload
    def delete_subshell(self, subshell_id: str, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def delete_subshell(self, subshell_id: str, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask the kernel to end a subshell."""
        content = {"subshell_id": subshell_id}
        return self._control(MessageType.DELETE_SUBSHELL_REQUEST, content, timeout, reply=reply)

    @overload
    def list_subshells(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def list_subshells(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def list_subshells(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask which subshells there are; the reply's content lists them as `subshell_id`."""
        return self._control(MessageType.LIST_SUBSHELL_REQUEST, {}, timeout, reply=reply)

    # ── what the kernel is doing ────────────────────────────────────────────────────────────────────────────────────

    @overload
    def debug(self, request: Content, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def debug(self, request: Content, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def debug(self, request: Content, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask the kernel's debugger; `request` is one of the debug adapter protocol. Events come on iopub."""
        return self._control(MessageType.DEBUG_REQUEST, request, timeout, reply=reply)

    @overload
    def stack(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def stack(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def stack(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask our kernel where every cell, task and thread is; a message of ours."""
        return self._control(MessageType.STACK_REQUEST, {}, timeout, reply=reply)

    @overload
    def variables(
        self,
        limit: int | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def variables(
        self,
        limit: int | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: Literal[True],
        timeout: float | None = None,
    ) -> Answer: ...
    def variables(
        self,
        limit: int | None = None,
        subshell_id: str | None = MAIN,
        *,
        reply: bool = False,
        timeout: float | None = None,
    ) -> str | Answer:
        """Ask our kernel for the names, types, shapes and sizes of the user's variables; a message of ours.

        Args:
            limit: how many to name; by default the kernel's own limit.
            subshell_id: whose, None for the main shell's, which it is by default too.
            reply: return the reply.
            timeout: for the reply, in seconds.
        """
        content: Content = {} if limit is None else {"limit": limit}
        if subshell_id is not MAIN:
            content["subshell_id"] = subshell_id
        return self._control(MessageType.VARIABLES_REQUEST, content, timeout, reply=reply)

    @overload
    def usage(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def usage(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def usage(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask what the kernel uses of its machine, as ipykernel and ours tell it."""
        return self._control(MessageType.USAGE_REQUEST, {}, timeout, reply=reply)

    @overload
    def journal(
        self,
        since: int,
        until: int | None = None,
        limit: int | None = None,
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def journal(
        self,
        since: int,
        until: int | None = None,
        limit: int | None = None,
        *,
        reply: Literal[True],
        timeout: float | None = None,
    ) -> Answer: ...
    def journal(
        self,
        since: int,
        until: int | None = None,
        limit: int | None = None,
        *,
        reply: bool = False,
        timeout: float | None = None,
    ) -> str | Answer:
        """Ask our kernel for what it has said on iopub; a message of ours, which the client sends by itself for gaps.

        Args:
            since: the number seen last; 0 for everything.
            until: the last number wanted; by default the last there is.
            limit: the size of the answer in bytes; by default 1 MiB.
            reply: return the reply: `messages`, `next` (the next page's `since`), `last`, `cut`.
            timeout: for the reply, in seconds.
        """
        wanted = {"since": since, "until": until, "limit": limit}
        content = {name: value for name, value in wanted.items() if value is not None}
        return self._control(MessageType.JOURNAL_REQUEST, content, timeout, reply=reply)

    def _control(self, msg_type: str, content: Content, timeout: float | None, *, reply: bool) -> str | Answer:
        return self._asked(Ask(msg_type, content, Channel.CONTROL), timeout, reply=reply)
