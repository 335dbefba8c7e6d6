"""The rows of an audit, and the points of view that each attack is tried from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .figures import Interval
from .replay import Observed

FINAL = "final model"


@dataclass(frozen=True)
class AttackRow:
    """One attack.

    Attributes:
        guessing: what somebody who sees nothing reaches, as a mean over the views.
        figures: by view; a view that it cannot be tried on, or where nothing of it is sent, is not there.
        why: why the row is empty, or None.
        guesses: by view, what somebody who sees nothing reaches, where views differ in that.
        better: which figures tell more than guessing: those above it, those below it, or both, as a score that is always wrong tells as
            much as one that is always right.
    """

    name: str
    unit: str
    guessing: float
    figures: Mapping[str, Interval]
    why: str | None = None
    guesses: Mapping[str, float] = field(default_factory=dict[str, float])
    better: Literal["above", "below", "both"] = "both"

    def guess(self, view: str) -> float:
        """What somebody who sees nothing reaches."""
        return self.guesses.get(view, self.guessing)

    def tells(self, view: str) -> bool:
        """Whether a figure is better than guessing, beyond its interval."""
        one, guess = self.figures[view], self.guess(view)
        return (self.better != "below" and one.low > guess) or (self.better != "above" and one.high < guess)


def views_of(rounds: Sequence[Observed]) -> tuple[str, ...]:
    """Names of the views, in the order of the table."""
    found: list[str] = []
    for one in rounds:
        found += names_of(one)
    return (*found, FINAL)


def names_of(one: Observed) -> tuple[str, str]:
    """Names of the two views of a round: one update, and their mean."""
    return f"round {one.now.number}: one update", f"round {one.now.number}: mean of {len(one.updates)}"
