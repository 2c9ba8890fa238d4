"""What a cell shows: results, display data and their updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    Publish = Callable[[MessageType, dict[str, Any]], None]


class Publisher(DisplayPublisher):
    """IPython's display publisher, which publishes on iopub. `send` is set by the shell that owns it."""

    send: Publish

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
        self.send(MessageType.UPDATE_DISPLAY_DATA if update else MessageType.DISPLAY_DATA, content)

    def clear_output(self, wait: bool = False) -> None:
        """Clear what the cell has shown; with `wait` when it shows the next thing."""
        self.send(MessageType.CLEAR_OUTPUT, {"wait": wait})


class ResultHook(DisplayHook):
    """IPython's display hook, which publishes the result on iopub.

    `send` and `count`, the execution count of the running cell, are set by the shell that owns it.
    """

    send: Publish
    count: Callable[[], int]

    def start_displayhook(self) -> None:
        """Begin a result; nothing is to be done."""

    def write_output_prompt(self) -> None:
        """Leave the prompt to the front end."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        """Publish the result's mime bundle."""
        content = {"execution_count": self.count(), "data": format_dict, "metadata": md_dict or {}}
        self.send(MessageType.EXECUTE_RESULT, content)

    def finish_displayhook(self) -> None:
        """End a result; nothing is to be done."""
