"""The rows of an audit, and the points of view that each attack is tried from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .figures import Interval
from .replay import Observed

FINAL = "final model"


@dataclass(frozen=True)
class AttackRow:
    """One attack.

    Attributes:
        guessing: what somebody who sees nothing reaches.
        figures: by view; a view that it cannot be tried on, or where nothing of it is sent, is not there.
        why: why the row is empty, or None.
    """

    name: str
    unit: str
    guessing: float
    figures: Mapping[str, Interval]
    why: str | None = None


def views_of(rounds: Sequence[Observed]) -> tuple[str, ...]:
    """Names of the views, in the order of the table."""
    found: list[str] = []
    for one in rounds:
        found += names_of(one)
    return (*found, FINAL)


def names_of(one: Observed) -> tuple[str, str]:
    """Names of the two views of a round: one update, and their mean."""
    return f"round {one.now.number}: one update", f"round {one.now.number}: mean of {len(one.updates)}"
