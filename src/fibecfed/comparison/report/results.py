"""What a report knows: runs as read from their records, and a comparison of them. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.clock import Network
from ...core.metrics import METRICS, Metric
from ...core.records import EvalRecord, RoundRecord
from .recorded import TuningRow, WrittenExample
from .scores import ComparedMetric


@dataclass(frozen=True)
class Point:
    """Where a run stood at one evaluation.

    Attributes:
        rounds: completed before it.
        size: bytes of training and preparation both ways up to it; evaluation's own are left out.
        seconds: modelled, see clock.py.
        personalised, server: the primary metric, pooled over the clients with their own models, and of the global model; NaN where there
            are no test examples, as on the server of a federation across machines.
    """

    rounds: int
    size: int
    seconds: float
    personalised: float
    server: float


@dataclass(frozen=True)
class SelectionRecord:
    """What a method selected in a run; empty where it says nothing.

    Attributes:
        importance: of each layer.
        layers: that are averaged.
        kept: rounds of training -> mean number of neurons that a client of that round updated, of its `own`; 0: not recorded.
        data: rounds of training -> fraction of the cohort's examples, times local epochs, that was trained on.
        difficulty: (edges of the bins, as powers of ten; examples in each bin) over all scored examples.
    """

    importance: tuple[float, ...] = ()
    layers: tuple[int, ...] = ()
    kept: Mapping[int, float] = field(default_factory=dict[int, float])
    own: int = 0
    data: Mapping[int, float] = field(default_factory=dict[int, float])
    difficulty: tuple[tuple[float, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True)
class Classes:
    """What was predicted for which class after the last round: confusion matrices, true class as row and predicted class as column."""

    labels: tuple[str, ...]
    personalised: Sequence[Sequence[int]]
    server: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        method: its name in the comparison; `kind` is what `method.kind` says. They differ for an ablation.
        majority: score of always predicting the largest class of the test set, or that of the untrained model where the metric does not
            follow from predicted classes; NaN without one.
        prior: pooled score of each client answering the largest class of its own training examples, whatever the text; NaN where it is
            not known how the examples were spread.
        metric: the primary one, of every score that is not said to be another's.
        usual, usual_personalised: name of the metric that the task is usually scored by, where that is another one, and its score.
        answers: examples of what the untrained, the global and a client's own model wrote.
        written: metric of generated answers -> its score of the clients' own models; empty where none were generated.
        trainable: parameters of adapter and head; a method may train a part of them, or others for a while.
        measured_s: wall clock of the rounds on the machine of the run.
        clients: score of each client on its own test examples after the last round, ascending.
        conditions: machine, versions and settings.
        classes: what was predicted for which class; None where that is not known, or the examples have no classes.
        source_s, source_examples: seconds and examples with which source prompts were trained beforehand, on other tasks' data; in no other
            number of the run.
        rising: whether the personalised score was still getting better when training ended; False where its summary does not say.
    """

    task: str
    method: str
    seed: int
    kind: str
    points: tuple[Point, ...]
    majority: float
    worst_decile: float | None
    usual: str | None
    usual_personalised: float | None
    bytes_up: int
    bytes_down: int
    steps: int
    examples: int
    trainable: int
    measured_s: float
    clients: tuple[float, ...]
    selection: SelectionRecord
    conditions: Mapping[str, Any]
    metric: Metric = METRICS["accuracy"]
    classes: Classes | None = None
    prior: float = math.nan
    source_s: float = 0.0
    source_examples: int = 0
    answers: tuple[WrittenExample, ...] = ()
    written: Mapping[str, float] = field(default_factory=dict[str, float])
    rising: bool = False

    @property
    def last(self) -> Point:
        """After the last round: the score that counts."""
        return self.points[-1]


@dataclass(frozen=True)
class RunFiles:
    """All that the files of a run say, for the report of this run alone.

    Attributes:
        folder: as it was named.
        header: the first line of its records.
        summary: as in summary.json; of a run without one, or with one of version 0.1, what the records say of that.
        is_finished: whether it has results.
        texts: (client, place among its training examples) -> its class and its text, of those that are shown; only where it was asked for.
    """

    folder: Path
    header: Mapping[str, Any]
    records: Sequence[RoundRecord | EvalRecord]
    summary: Mapping[str, Any]
    is_finished: bool
    texts: Mapping[tuple[str, int], tuple[str, str]] = field(default_factory=dict[tuple[str, int], tuple[str, str]])


@dataclass(frozen=True)
class ComparisonResults:
    """Runs of methods on tasks with seeds.

    Attributes:
        title: name of the folder.
        problems: what could not be read or is missing, a sentence each.
        tuning: method -> what was tried; None where that is not known.
        fixed_targets: task -> score in place of the computed one.
        files: of the only run, where its folder is what the report is of.
    """

    title: str
    runs: tuple[Run, ...]
    network: Network
    problems: tuple[str, ...] = ()
    tuning: Mapping[str, TuningRow | None] = field(default_factory=dict[str, "TuningRow | None"])
    fixed_targets: Mapping[str, float] = field(default_factory=dict[str, float])
    files: RunFiles | None = None

    @cached_property
    def scores(self) -> ComparedMetric:
        """The metric of all runs."""
        return ComparedMetric(self.runs[0].metric) if self.runs else ComparedMetric()

    @cached_property
    def tasks(self) -> list[str]:
        """By name."""
        return sorted({run.task for run in self.runs})

    @cached_property
    def methods(self) -> list[str]:
        """Methods that are ranked: all but ablations."""
        return sorted({run.method for run in self.runs if not is_ablation(run)})

    @property
    def ablations(self) -> list[str]:
        """FibecFed with parts left out or exchanged."""
        return sorted({run.method for run in self.runs if is_ablation(run)})

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def of(self, task: str, method: str) -> list[Run]:
        """The runs of a method on a task, by seed."""
        return self._by_place.get((task, method), [])

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], list[Run]]:
        found: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            found.setdefault((run.task, run.method), []).append(run)
        return found


OURS = "fibecfed"
"""The method that the report is about."""


def is_ablation(run: Run) -> bool:
    """A variant of FibecFed under a name of its own. Variants of other methods are methods like the rest."""
    return run.kind == OURS and run.method != OURS
