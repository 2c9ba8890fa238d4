"""What every client can ask of a kernel, whether it awaits the answers or blocks: the field's names and fields."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, TypedDict, Unpack, overload

from traitlets import Bool
from traitlets.config import LoggingConfigurable

from cobnut_kernel.client.asking import Answer, Ask, Content
from cobnut_kernel.client.comms import CommMessages
from cobnut_kernel.client.control import ControlRequests
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.traits import ABCMetaWithTraits


class ExecuteOptions(TypedDict, total=False):
    """What can be said about an execution besides its code; the names of the specification's `execute_request`."""

    silent: bool
    store_history: bool
    user_expressions: dict[str, str] | None
    allow_stdin: bool | None
    stop_on_error: bool
    subshell_id: str | None


class KernelClient(ControlRequests[Answer], CommMessages[Answer], LoggingConfigurable, metaclass=ABCMetaWithTraits):
    """One party that talks to a kernel, of either colour: `AsyncKernelClient` or `BlockingKernelClient`.

    Each client is a party of its own, with a session that no other has: two clients of one kernel both get what
    they asked for. Requests go out at once, from any thread; a kernel that hangs, or is not there yet, delays none.
    """

    allow_stdin = Bool(True, help="Whether the kernel may ask this client for input while it executes.").tag(
        config=True
    )

    # ── running code ────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def execute(
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        subshell_id: str | None = None,
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def execute(
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        subshell_id: str | None = None,
        *,
        reply: Literal[True],
        timeout: float | None = None,
    ) -> Answer: ...
    def execute(  # noqa: PLR0913, PLR0917 - the field's signature
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = True,
        subshell_id: str | None = None,
        *,
        reply: bool = False,
        timeout: float | None = None,
    ) -> str | Answer:
        """Ask to run code; reply and outputs are read with `get_msg`.

        Args:
            code: what to run.
            silent: without output, history and count.
            store_history: remember the code, and count it.
            user_expressions: expressions by name, evaluated after the code; their results are in the reply.
            allow_stdin: whether the code may ask for input; by default this client's `allow_stdin`.
            stop_on_error: whether an error aborts what is queued behind.
            subshell_id: the subshell that is to run it (JEP 91); None is the main one.
            reply: return the reply; the outputs are still read with `get_msg`.
            timeout: for the reply, in seconds.
        """
        ask = self._execution(
            code,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=allow_stdin,
            stop_on_error=stop_on_error,
            subshell_id=subshell_id,
        )
        return self._asked(ask, timeout, reply=reply)

    def _execution(self, code: str, **options: Unpack[ExecuteOptions]) -> Ask:
        allow_stdin = options.get("allow_stdin")
        content = {
            "code": code,
            "silent": options.get("silent", False),
            "store_history": options.get("store_history", True),
            "user_expressions": options.get("user_expressions") or {},
            "allow_stdin": self.allow_stdin if allow_stdin is None else allow_stdin,
            "stop_on_error": options.get("stop_on_error", True),
        }
        return Ask(MessageType.EXECUTE_REQUEST, content, subshell_id=options.get("subshell_id"))

    @abstractmethod
    def input(self, string: str, parent: Content | None = None) -> str:
        r"""Answer the kernel's `input_request`; returns the id of the answer.

        Args:
            string: what the user typed, without the line's end; "\x04" for the end of input.
            parent: the `input_request` that is answered: needed where several cells may ask at once.
        """

    # ── about code ──────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def complete(
        self, code: str, cursor_pos: int | None = None, *, reply: Literal[False] = False, timeout: float | None = None
    ) -> str: ...
    @overload
    def complete(
        self, code: str, cursor_pos: int | None = None, *, reply: Literal[True], timeout: float | None = None
    ) -> Answer: ...
    def complete(
        self, code: str, cursor_pos: int | None = None, *, reply: bool = False, timeout: float | None = None
    ) -> str | Answer:
        """Ask how the code at the cursor may go on; the position counts characters, and is the end by default."""
        content = {"code": code, "cursor_pos": _position(code, cursor_pos)}
        return self._asked(Ask(MessageType.COMPLETE_REQUEST, content), timeout, reply=reply)

    @overload
    def inspect(
        self,
        code: str,
        cursor_pos: int | None = None,
        detail_level: int = 0,
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def inspect(
        self,
        code: str,
        cursor_pos: int | None = None,
        detail_level: int = 0,
        *,
        reply: Literal[True],
        timeout: float | None = None,
    ) -> Answer: ...
    def inspect(
        self,
        code: str,
        cursor_pos: int | None = None,
        detail_level: int = 0,
        *,
        reply: bool = False,
        timeout: float | None = None,
    ) -> str | Answer:
        """Ask what the thing at the cursor is; detail level 1 asks for more, its source say."""
        content = {"code": code, "cursor_pos": _position(code, cursor_pos), "detail_level": detail_level}
        return self._asked(Ask(MessageType.INSPECT_REQUEST, content), timeout, reply=reply)

    @overload
    def is_complete(self, code: str, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def is_complete(self, code: str, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def is_complete(self, code: str, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask whether the code can run as it stands."""
        return self._asked(Ask(MessageType.IS_COMPLETE_REQUEST, {"code": code}), timeout, reply=reply)

    @overload
    def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        *,
        reply: Literal[False] = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> str: ...
    @overload
    def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        *,
        reply: Literal[True],
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Answer: ...
    def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        *,
        reply: bool = False,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> str | Answer:
        """Ask for former inputs; `kwargs` are the specification's fields for the type of access."""
        if hist_access_type == "range":
            kwargs = {"session": 0, "start": 0, **kwargs}
        content = {"raw": raw, "output": output, "hist_access_type": hist_access_type, **kwargs}
        return self._asked(Ask(MessageType.HISTORY_REQUEST, content), timeout, reply=reply)

    # ── about the kernel ────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def kernel_info(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def kernel_info(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def kernel_info(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask what kernel this is."""
        return self._asked(Ask(MessageType.KERNEL_INFO_REQUEST, {}), timeout, reply=reply)

    @overload
    def comm_info(
        self, target_name: str | None = None, *, reply: Literal[False] = False, timeout: float | None = None
    ) -> str: ...
    @overload
    def comm_info(
        self, target_name: str | None = None, *, reply: Literal[True], timeout: float | None = None
    ) -> Answer: ...
    def comm_info(
        self, target_name: str | None = None, *, reply: bool = False, timeout: float | None = None
    ) -> str | Answer:
        """Ask which comms are open, all or those of one target."""
        content = {} if target_name is None else {"target_name": target_name}
        return self._asked(Ask(MessageType.COMM_INFO_REQUEST, content), timeout, reply=reply)

    @overload
    def connect_request(self, *, reply: Literal[False] = False, timeout: float | None = None) -> str: ...
    @overload
    def connect_request(self, *, reply: Literal[True], timeout: float | None = None) -> Answer: ...
    def connect_request(self, *, reply: bool = False, timeout: float | None = None) -> str | Answer:
        """Ask on which ports the kernel listens; deprecated in the specification, and seldom answered."""
        return self._asked(Ask(MessageType.CONNECT_REQUEST, {}), timeout, reply=reply)


def input_reply(string: str) -> Ask:
    """Make the answer to an `input_request`."""
    return Ask(MessageType.INPUT_REPLY, {"value": string}, Channel.STDIN, is_told=True)


def _position(code: str, cursor_pos: int | None) -> int:
    return len(code) if cursor_pos is None else cursor_pos
