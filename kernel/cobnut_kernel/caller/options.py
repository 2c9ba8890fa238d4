"""What can be said of a caller when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cobnut_kernel.caller.errors import NoEventLoopError
from cobnut_kernel.caller.loops import Backend, running_loop

if TYPE_CHECKING:
    import logging
    from typing import NotRequired

    import zmq

Modifier = Literal["CurrentThread", "MainThread", "NewThread", "manual"]
"""Which caller is wanted."""


class CallerCreateOptions(TypedDict):
    """What can be said of a caller when it is made."""

    name: NotRequired[str]
    """Its name, and that of the thread it starts."""
    log: NotRequired[logging.LoggerAdapter[Any]]
    """Gets what nobody waits for."""
    backend: NotRequired[Backend | Literal["asyncio", "trio"]]
    """The library of its event loop; by default that of the loop that runs, or of the parent."""
    backend_options: NotRequired[dict[str, Any] | None]
    """What anyio's `run` is given for the loop of a new thread: `loop_factory` or `use_uvloop` for asyncio, say."""
    protected: NotRequired[bool]
    """Stop only by force."""
    zmq_context: NotRequired[zmq.Context[Any] | None]
    """A zmq context for its user, and for its children."""


def backend_of(given: str | None) -> Backend:
    """Return the backend that is given; by default that of the loop that runs.

    Raises:
        ValueError: there is none of that name.
        NoEventLoopError: none is given, and no loop runs.
    """
    if given is not None:
        try:
            return Backend(given)
        except ValueError:
            raise ValueError(f"There is no backend {given!r}: use asyncio or trio.") from None
    if (loop := running_loop()) is None:
        raise NoEventLoopError("No event loop runs in this thread: name the backend of the new one, asyncio or trio.")
    return loop.backend
