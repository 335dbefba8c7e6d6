"""The learning rate that each method is compared at: the same number of trials for all, on validation parts, done once.

A trial is a step on a line: step 0 is the rate that the method's own paper uses, step i is factor^i times it. A server rate, where the
method has one, moves along the same line by the catalogue's `server_rate_power`, so that it costs no trials of its own [C].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.model import keys
from ...core.errors import UserError
from ...core.files import FAILURE, RECORDS, TUNING, write_atomically
from ...core.json_text import from_json, to_json
from ...core.metrics import METRICS, Metric, metric_named
from ...core.records import EvalRecord, read
from ...local.options import TrainingOptions
from ...methods.catalogue import CATALOGUE
from .options import ComparisonOptions, TuningOptions
from .plan import table_of

RATE = "training.learning_rate"
SERVER_RATE = "method.server_learning_rate"
_WORST = -1e9  # of a trial that diverged: below every score


@dataclass(frozen=True)
class Trial:
    """One rate of one method.

    Attributes:
        step: its place on the line.
        rates: key of the configuration -> value.
        scores: task -> primary metric of the personalised models on the validation parts after the last round; None where it diverged.
    """

    step: int
    rates: Mapping[str, float]
    scores: Mapping[str, float | None]

    @property
    def score(self) -> float | None:
        """Mean over the tasks; None where it diverged on one of them."""
        scores = [score for score in self.scores.values() if score is not None]
        return sum(scores) / len(scores) if len(scores) == len(self.scores) else None

    def worth(self, metric: Metric) -> float:
        """What trials are chosen by, the more the better: the fewer tasks it diverged on, and the better its scores on the others."""
        sign = 1 if metric.higher_is_better else -1
        return sum(_WORST if score is None else sign * score for score in self.scores.values()) / len(self.scores)


def metric_of(comparison: ComparisonOptions) -> Metric:
    """The metric that rates are chosen by, by its name: what a metric of a single class is computed with, the run knows."""
    name = comparison.base.get("evaluation", {}).get("metric") or "accuracy"
    return METRICS.get(name.partition(":")[0], METRICS["accuracy"])


@dataclass(frozen=True)
class Tuned:
    """What was tried for one method, and what was chosen.

    Attributes:
        source: where the centre comes from.
        chosen: the trial's step, and its rates; None where every trial diverged.
    """

    source: str
    trials: tuple[Trial, ...] = ()
    chosen: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)


def grid(options: TuningOptions) -> tuple[int, ...]:
    """The steps that every method is tried at: 3 trials -> -1, 0, 1."""
    return tuple(range(-(options.trials // 2), options.trials // 2 + 1))


def rates(kind: str, step: int, factor: float) -> dict[str, float]:
    """The values of a step, to three digits."""
    found = {RATE: _three_digits(CATALOGUE[kind].learning_rate * factor**step)}
    for key in keys(kind):
        if key.name == SERVER_RATE and (power := CATALOGUE[kind].server_rate_power):
            found[SERVER_RATE] = _three_digits(key.default * factor ** (step * power))
    return found


def left_open(comparison: ComparisonOptions, method: str, values: Mapping[str, float]) -> dict[str, float]:
    """Of the values of a step those that hold for a method: its own table's server rate stays what it is."""
    own = comparison.method.get(method, {}).get("method", {})
    return {name: value for name, value in values.items() if name != SERVER_RATE or "server_learning_rate" not in own}


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def label(values: Mapping[str, float]) -> str:
    """What the folder of a trial is called: its learning rate."""
    return f"{values[RATE]:g}"


def best(scores: Mapping[int, float]) -> int:
    """The step with the highest score; of equals the one nearest to the paper's, then the lower."""
    return max(scores, key=lambda step: (scores[step], -abs(step), -step))


def beyond(scores: Mapping[int, float]) -> int | None:
    """The one more step to try: beyond the best if that is the lowest or the highest, else None."""
    found = best(scores)
    if found == min(scores):
        return found - 1
    return found + 1 if found == max(scores) else None


def choose(source: str, trials: tuple[Trial, ...], metric: Metric) -> Tuned:
    """The choice among finished trials; none where every one diverged on every task."""
    ordered = tuple(sorted(trials, key=lambda trial: trial.step))
    if all(score is None for trial in ordered for score in trial.scores.values()):
        return Tuned(source, ordered)
    chosen = best({trial.step: trial.worth(metric) for trial in ordered})
    return Tuned(source, ordered, chosen, next(trial.rates for trial in ordered if trial.step == chosen))


def is_tuned(comparison: ComparisonOptions, method: str) -> bool:
    """Whether a method runs at a rate that is tuned, for its kind: not where its own table names one."""
    return comparison.tuning.trials > 0 and "learning_rate" not in comparison.method.get(method, {}).get("training", {})


def has_diverged(folder: Path) -> bool:
    """Whether a trial was made and its numbers were no longer finite: that is a result, and it is not made again."""
    try:
        return from_json((folder / FAILURE).read_bytes())["why"] == "diverged"
    except (OSError, ValueError, KeyError, TypeError):  # none there, or one that says nothing
        return False


def validation_score(folder: Path) -> float | None:
    """Primary metric on the validation parts after the last round of a finished trial; None if it diverged.

    Raises:
        UserError: records that cannot be read, naming file and line.
    """
    if has_diverged(folder):
        return None
    try:
        header, records = read(folder / RECORDS)
        last = [record for record in records if isinstance(record, EvalRecord)][-1]
        metric = metric_named(header["metric"], header.get("labels", ()))
    except (OSError, ValueError, LookupError, UserError) as error:
        raise UserError(f"{folder}: not the records of a finished trial ({error}); remove the folder to run it again") from None
    return metric.of(last.pooled_validation)


# ---- the file


def read_tuning(out: Path) -> dict[str, Tuned]:
    """Kind of method -> what was tuned before, in a comparison's folder.

    Raises:
        UserError: the file is not what was written, naming it.
    """
    path = out / TUNING
    if not path.is_file():
        return {}
    try:
        return {kind: _from_row(row) for kind, row in from_json(path.read_bytes()).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: not what `fibecfed compare` wrote ({error}); remove it: it is restored from the trials") from None


def _from_row(row: Mapping[str, Any]) -> Tuned:
    trials = tuple(Trial(one["step"], one["rates"], one["scores"]) for one in row["tried"])
    return Tuned(row["source"], trials, row["step"], row["rates"])


def write_tuning(out: Path, tuned: Mapping[str, Tuned]) -> None:
    """What was tried and chosen, for the report and for the next time.

    A method's row: `tried`, each with its learning `rate`, its `score` (null where it diverged on a task), all its `rates` and the `scores`
    by task; the learning rate `chosen` with all `rates` that go with it; and the `source` of the centre.
    """
    table = {kind: _to_row(row) for kind, row in tuned.items()}
    write_atomically(out / TUNING, (to_json(table, indent=2) + "\n").encode())


def _to_row(row: Tuned) -> dict[str, Any]:
    tried = [
        {
            "rate": one.rates[RATE],
            "score": one.score,
            "step": one.step,
            "rates": dict(one.rates),
            "scores": dict(one.scores),
        }
        for one in row.trials
    ]
    return {"chosen": row.rates.get(RATE), "source": row.source, "tried": tried, "step": row.chosen, "rates": dict(row.rates)}


def fixed(comparison: ComparisonOptions, method: str) -> Tuned:
    """The rate of a method that is not tuned, in the form of one that is."""
    table = table_of(comparison, comparison.tasks[0], method, 0)
    rate = table.get("training", {}).get("learning_rate")
    if rate is None:
        return Tuned("the default of training.learning_rate", rates={RATE: TrainingOptions().learning_rate})
    return Tuned("given by the comparison", rates={RATE: rate})
