"""Python's garbage collector: it rests while a process becomes a kernel, and leaves alone what that has made."""

from __future__ import annotations

import gc

_rests: bool = False


def rest() -> None:
    """Collect nothing until `resume`: what is imported is no garbage, and looking at it takes 8 of 130 ms."""
    global _rests
    _rests = gc.isenabled()
    gc.disable()


def resume() -> None:
    """Collect again, if `rest` has stopped that: what there is now stays, and is not looked at again."""
    global _rests
    if _rests:
        _rests = False
        gc.freeze()
        gc.enable()
