"""The signs that say how a run stands, and their twins for terminals that have ASCII only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs of one cell's width each; a word or a number stands beside each of them."""

    running: str
    queued: str
    error: str
    interrupted: str
    rule: str
    times: str


UNICODE: Final = Glyphs(running="▶", queued="⋯", error="✗", interrupted="⊘", rule="─", times="×")
ASCII: Final = Glyphs(running=">", queued=".", error="x", interrupted="!", rule="-", times="x")
