"""What a sum is of: everything that its messages are bound to, so that none of them fits another one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Context:
    """One sum.

    Attributes:
        run: name of the run.
        round: its number in the run.
        attempt: of the round, from 0.
        cohort: U0, names of all clients that are asked, sorted.
        broadcast: SHA-256 of the bytes that every client was sent, in hexadecimal digits.
        least: t, clients that each step needs.
        colluders: c, clients that may work with the server.
    """

    run: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    broadcast: str
    least: int
    colluders: int

    @cached_property
    def table(self) -> dict[str, Any]:
        """What is signed of it."""
        names = hashlib.sha256(json.dumps(self.cohort).encode()).hexdigest()
        limits = {"least": self.least, "colluders": self.colluders}
        return {"run": self.run, "round": self.round, "attempt": self.attempt, "cohort": names, "broadcast": self.broadcast, **limits}

    def point(self, client: str) -> int:
        """Where a client's shares are taken."""
        return self.cohort.index(client) + 1

    def problem(self) -> str | None:
        """Why nothing may be summed so; None: it may."""
        if tuple(sorted(set(self.cohort))) != self.cohort:
            return "the cohort is not a sorted list of different names"
        return None if self.colluders + 2 <= self.least <= len(self.cohort) else self._hides_nothing()

    def two_sets(self) -> str | None:
        """Why clients that agree on the survivors by signatures could be shown two sets of them; None: they could not."""
        return None if 2 * self.least > len(self.cohort) + self.colluders else self._hides_nothing()

    def _hides_nothing(self) -> str:
        return f"sums of {self.least} of {len(self.cohort)} clients hide nothing from {self.colluders} colluders and a lying server"


def digest_of_broadcast(blob: bytes) -> str:
    """SHA-256 of what clients are sent."""
    return hashlib.sha256(blob).hexdigest()
