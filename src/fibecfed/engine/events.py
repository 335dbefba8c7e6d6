"""What a run tells whoever watches it, as values: a progress bar, a notebook, a test. Nothing in a run depends on who listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..core.metrics import Metric


@dataclass(frozen=True)
class Started:
    """A run is about to start, or to be resumed.

    Attributes:
        phases: name and number of rounds of each, in order.
        completed: rounds done before, over all phases; 0 unless the run is resumed.
    """

    folder: Path
    phases: tuple[tuple[str, int], ...]
    completed: int = 0

    @property
    def total_rounds(self) -> int:
        return sum(rounds for _, rounds in self.phases)


@dataclass(frozen=True)
class PhaseStarted:
    """The first round of a phase, or the first one after a resumption, is about to begin."""

    phase: str
    num_rounds: int


@dataclass(frozen=True)
class RoundDone:
    """One round is over.

    Attributes:
        index: 0-based number of the round inside its phase.
        loss: mean training loss over the cohort's examples, nat; None where nobody trained.
        bytes_up, bytes_down: encoded messages of this round.
        seconds: wall clock of this round.
    """

    phase: str
    index: int
    num_rounds: int
    loss: float | None
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The models were scored.

    Attributes:
        rounds: rounds completed before it; 0 is the untrained model.
        metric: the primary one.
        pooled_personalised, global_, worst_decile: its scores on the test sets; None where nothing was counted.
        metrics: every metric's scores by name, of the "personalised" models and of the "global" one.
        answered, clients: clients that the scores are of, and those that were asked.
    """

    rounds: int
    metric: Metric
    pooled_personalised: float | None
    global_: float | None
    worst_decile: float | None
    metrics: Mapping[str, Mapping[str, float | None]]
    is_last: bool = False
    answered: int = 0
    clients: int = 0


@dataclass(frozen=True)
class Warned:
    """Something the user should know, which does not stop the run."""

    text: str


@dataclass(frozen=True)
class DataInspected:
    """The data were read for a run that begins.

    Attributes:
        warnings: what the user should know about them, a sentence each.
    """

    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """The run is done and everything is written.

    Attributes:
        summary: as in summary.json.
    """

    summary: Mapping[str, Any]
    folder: Path


Event: TypeAlias = Started | DataInspected | PhaseStarted | RoundDone | Evaluated | Warned | Finished
