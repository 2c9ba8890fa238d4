"""Callbacks that are told of what happens: one that fails is logged and disturbs no other."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger, LoggerAdapter

Ts = TypeVarTuple("Ts")


class Callbacks(Generic[*Ts]):
    """Those who want to be told of one kind of thing.

    Args:
        log: where failures go.
        kind: what a callback is called there.
    """

    def __init__(self, log: Logger | LoggerAdapter[Logger], kind: str) -> None:
        self._log = log
        self._kind = kind
        self._callbacks: list[Callable[[*Ts], object]] = []

    def add(self, callback: Callable[[*Ts], object]) -> Callable[[], None]:
        """Tell somebody from now on; returns the undo."""
        self._callbacks.append(callback)

        def undo() -> None:
            with suppress(ValueError):
                self._callbacks.remove(callback)

        return undo

    def tell(self, *args: *Ts) -> None:
        """Tell all of them, in the order in which they came."""
        for callback in tuple(self._callbacks):
            try:
                callback(*args)
            except Exception:
                self._log.exception("A %s callback failed", self._kind)
