"""Numbers as a reader wants them."""

from __future__ import annotations

import math


def percent(share: float | None) -> str:
    """A share between 0 and 1 as a percentage; "-" where there is none."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds in words of two units at most: "2 h 5 min", "3 min 20 s", "0.4 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 task", "3 tasks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock(seconds: float) -> str:
    """A round number of seconds, as in 5 s, 1:40 min, 2:30 h."""
    whole = round(seconds)
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def compact(value: float) -> str:
    """As in 0.05, 3, 1,200."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
