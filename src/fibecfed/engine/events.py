"""What a run tells whoever watches it, as values: a progress bar, a notebook, a test. Nothing in a run depends on who listens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..core.metrics import Metric
from ..core.terminal import one_line
from ..core.units import count

logger = logging.getLogger(__name__)


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
class StoppedEarly:
    """A phase ended before its last round, by `evaluation.patience`.

    Attributes:
        left_out: rounds that are not held.
    """

    left_out: int
    text: str


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


Event: TypeAlias = Started | DataInspected | PhaseStarted | RoundDone | Evaluated | StoppedEarly | Warned | Finished


def logged(listen: Callable[[Event], None]) -> Callable[[Event], None]:
    """A listener that logs each event and hands it on. Progress shows every warning, so these have `shown` set."""

    def both(event: Event) -> None:
        for level, text in _in_words(event):
            logger.log(level, "%s", one_line(text), extra={"shown": level >= logging.WARNING})
        listen(event)

    return both


def _in_words(event: Event) -> Iterator[tuple[int, str]]:
    """The lines that an event is in a log, each with its level."""
    match event:
        case Started():
            yield logging.INFO, f"{event.folder}: {event.total_rounds} rounds, {event.completed} of them done before"
        case PhaseStarted():
            yield logging.INFO, f"phase {event.phase}: {count(event.num_rounds, 'round')}"
        case RoundDone():
            loss = "nobody trained" if event.loss is None else f"loss {event.loss:.4f}"
            sent = f"{event.bytes_up} bytes up, {event.bytes_down} bytes down"
            yield logging.INFO, f"{event.phase} round {event.index}: {loss}, {sent}, {event.seconds:.2f} s"
        case Evaluated():
            of = {"personalised": event.pooled_personalised, "global": event.global_, "worst decile": event.worst_decile}
            scores = f"{event.metric.name}: {', '.join(f'{name} {event.metric.text(score)}' for name, score in of.items())}"
            yield logging.INFO, f"evaluation after {event.rounds} rounds: {scores}, {event.answered} of {event.clients} clients"
        case StoppedEarly():
            yield logging.INFO, event.text
        case Warned():
            yield logging.WARNING, event.text
        case DataInspected():
            yield from ((logging.WARNING, text) for text in event.warnings)
        case Finished():
            yield logging.INFO, f"{event.folder}: finished"
