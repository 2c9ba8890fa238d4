"""What a cell shows: results, display data and their updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from IPython.core.interactiveshell import InteractiveShell

    from cobnut_kernel.runtime.job import Job

    Publish = Callable[..., None]


class Publisher(DisplayPublisher):
    """IPython's display publisher, which publishes on iopub. `send` is set by the shell that owns it."""

    send: Publish

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hooks: list[Callable[[dict[str, Any]], dict[str, Any] | None]] = []

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Publish a mime bundle; with `update` in the place of all that have its `display_id`."""
        self._validate_data(data, metadata)
        content = {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        self._publish(MessageType.UPDATE_DISPLAY_DATA if update else MessageType.DISPLAY_DATA, content)

    def clear_output(self, wait: bool = False) -> None:
        """Clear what the cell has shown; with `wait` when it shows the next thing."""
        self._publish(MessageType.CLEAR_OUTPUT, {"wait": wait})

    def register_hook(self, hook: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Let a function see every message before it is published; it returns the message, or None to keep it.

        ipywidgets' Output catches what is shown in it this way.
        """
        self._hooks.append(hook)

    def unregister_hook(self, hook: Callable[[dict[str, Any]], dict[str, Any] | None]) -> bool:
        """Take a hook away; False if it was not registered."""
        if hook not in self._hooks:
            return False
        self._hooks.remove(hook)
        return True

    def _publish(self, msg_type: MessageType, content: dict[str, Any]) -> None:
        for hook in self._hooks:
            message = hook({"header": {"msg_type": str(msg_type)}, "msg_type": str(msg_type), "content": content})
            if message is None:
                return
            content = message["content"]
        self.send(msg_type, content)


class ResultHook(DisplayHook):
    """IPython's display hook, which publishes the result on iopub.

    Cells that run at the same time share it: what belongs to one of them is kept with its job.
    """

    _send: Publish
    _job: Callable[[], Job | None]
    keeps_results: bool = True

    def connect(self, send: Publish, job: Callable[[], Job | None]) -> None:
        """Say where messages go, and how the running cell's job is found."""
        self._send = send
        self._job = job

    @property
    def prompt_count(self) -> int:
        """The execution count of the running cell."""
        job = self._job() if "_job" in self.__dict__ else None
        return job.execution_count if job is not None and job.execution_count is not None else 0

    @property
    def exec_result(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride] - a trait of IPython's
        """IPython's account of the running cell."""
        job = self._job() if "_job" in self.__dict__ else None
        return job.result if job is not None else None

    @exec_result.setter
    def exec_result(self, result: Any) -> None:
        job = self._job() if "_job" in self.__dict__ else None
        if job is not None:
            job.result = result

    def update_user_ns(self, result: Any) -> None:
        """Keep the result as `_`, and in `Out`, unless that is another shell's."""
        if self.keeps_results:
            super().update_user_ns(result)
        else:
            cast("InteractiveShell", self.shell).push({"_": result}, interactive=False)

    def start_displayhook(self) -> None:
        """Begin a result; nothing is to be done."""

    def write_output_prompt(self) -> None:
        """Leave the prompt to the front end."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        """Publish the result's mime bundle."""
        content = {"execution_count": self.prompt_count, "data": format_dict, "metadata": md_dict or {}}
        self._send(MessageType.EXECUTE_RESULT, content)

    def finish_displayhook(self) -> None:
        """End a result; nothing is to be done."""
