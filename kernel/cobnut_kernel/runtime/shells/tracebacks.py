"""How an error becomes the lines of text that front ends show."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence


def holds_group(error: BaseException | None) -> bool:
    """Tell whether an error is a group of errors, or came of one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, BaseExceptionGroup):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def lines_of(drawn: Any) -> list[str]:
    """Return a traceback as the list that the specification wants, whatever a user's own renderer gave."""
    if isinstance(drawn, str):
        return [drawn]
    return [str(line) for line in cast("Sequence[Any]", drawn)] if isinstance(drawn, (list, tuple)) else []


def plain_traceback(error: BaseException | None) -> list[str]:
    """Draw a traceback as Python does, without the frame of IPython that ran the cell."""
    if error is None:
        return []
    trace = error.__traceback__
    return traceback.format_exception(type(error), error, trace.tb_next or trace if trace is not None else None)
