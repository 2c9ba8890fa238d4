"""How long a run takes, in few characters."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Write a time as `14ms`, `1.2s`, `3m07s`, `1h02m` or `2d03h`: at most six characters below a hundred days."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms" if seconds >= 0.0005 else "<1ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, unit, part, smaller in ((60, "m", 1, "s"), (3600, "h", 60, "m")):
        if whole < size * (60 if unit == "m" else 24):
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
