"""The learning rate that each method is compared at: the same number of trials for all, on validation parts, done once.

A trial is a step on a line: step 0 is the method's default rate (catalogue.py), step i is factor^i times it. A server rate, where the
method has one, moves along the same line by the catalogue's `server_rate_power`, so that it costs no trials of its own [C].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from ...config.model import keys
from ...core.errors import UserError
from ...core.files import FAILURE, RECORDS, TUNING, write_atomically
from ...core.json_text import from_json, to_json
from ...core.metrics import METRICS, Metric, metric_named
from ...core.records import EvalRecord, read
from ...local.options import TrainingOptions
from ...methods.catalogue import CATALOGUE
from ..report.recorded import RecordedTrial, TuningRow, line_of, read_json, told
from .options import ComparisonOptions, TuningOptions
from .plan import Job, job, primary_metric, table_of

RATE = "training.learning_rate"
SERVER_RATE = "method.server_learning_rate"
_WORST = -1e9  # of a trial that diverged: below every score


def trial(step: int, rates: Mapping[str, float], scores: Mapping[str, float | None]) -> RecordedTrial:
    """One rate of one method that was tried.

    Args:
        step: its place on the line.
        rates: key of the configuration -> value.
        scores: task -> primary metric of the personalised models on the validation parts after the last round; None where it diverged. The
            trial's score is their mean, None where one is.
    """
    known = [score for score in scores.values() if score is not None]
    mean = sum(known) / len(known) if len(known) == len(scores) else None
    return RecordedTrial(rate=rates[RATE], score=mean, step=step, rates=dict(rates), scores=dict(scores))


def worth(one: RecordedTrial, metric: Metric) -> float:
    """What trials are chosen by, the more the better: the fewer tasks one diverged on, and the better its scores on the others."""
    sign = 1 if metric.higher_is_better else -1
    return sum(_WORST if score is None else sign * score for score in one.scores.values()) / len(one.scores)


def metric_of(comparison: ComparisonOptions) -> Metric:
    """The metric that rates are chosen by, by its name: what a metric of a single class is computed with, the run knows."""
    name = primary_metric(comparison)
    return METRICS.get(name.partition(":")[0], METRICS["accuracy"])


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


def values_of(comparison: ComparisonOptions, kind: str, step: int) -> dict[str, float]:
    """The values of a step that a trial of a kind of method has."""
    return left_open(comparison, kind, rates(kind, step, comparison.tuning.factor))


def left_open(comparison: ComparisonOptions, method: str, values: Mapping[str, float]) -> dict[str, float]:
    """Of the values of a step those that hold for a method: its own table's server rate stays what it is."""
    own = comparison.method.get(method, {}).get("method", {})
    return {name: value for name, value in values.items() if name != SERVER_RATE or "server_learning_rate" not in own}


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def label(values: Mapping[str, float]) -> str:
    """What the folder of a trial is called: its learning rate."""
    return f"{values[RATE]:g}"


def trial_job(comparison: ComparisonOptions, out: Path, task: str, kind: str, step: int) -> Job:
    """The run of a kind of method on a task with the values of a step."""
    values = values_of(comparison, kind, step)
    return job(comparison, out, task, kind, comparison.tuning.seed, values, label(values))


def best(scores: Mapping[int, float]) -> int:
    """The step with the highest score; of equals the one nearest to the paper's, then the lower."""
    return max(scores, key=lambda step: (scores[step], -abs(step), -step))


def beyond(scores: Mapping[int, float]) -> int | None:
    """The one more step to try: beyond the best if that is the lowest or the highest, else None."""
    found = best(scores)
    if found == min(scores):
        return found - 1
    return found + 1 if found == max(scores) else None


def choose(source: str, trials: Iterable[RecordedTrial], metric: Metric) -> TuningRow:
    """The choice among finished trials; none where every one diverged on every task."""
    ordered = {one.step or 0: one for one in sorted(trials, key=lambda one: one.step or 0)}
    found = TuningRow(chosen=None, source=source, tried=tuple(ordered.values()))
    if all(score is None for one in found.tried for score in one.scores.values()):
        return found
    step = best({step: worth(one, metric) for step, one in ordered.items()})
    return found.model_copy(update={"chosen": ordered[step].rate, "step": step, "rates": ordered[step].rates})


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


def read_tuning(out: Path) -> dict[str, TuningRow]:
    """Kind of method -> what was tuned before, in a comparison's folder.

    Raises:
        UserError: the file is not what was written, naming it.
    """
    path = out / TUNING
    try:
        found: dict[str, TuningRow] = read_json(path, dict[str, TuningRow])
        if any(one.step is None for row in found.values() for one in row.tried):
            raise ValueError("a trial without its step")
        return found
    except FileNotFoundError:
        return {}
    except ValueError as error:
        what = told(error, "a table") if isinstance(error, ValidationError) else error
        raise UserError(
            f"{path}{line_of(error)}: not what `fibecfed compare` wrote ({what}); remove it: it is restored from the trials"
        ) from None


def write_tuning(out: Path, tuned: Mapping[str, TuningRow]) -> None:
    """What was tried and chosen, for the report and for the next time."""
    table = {kind: row.model_dump() for kind, row in tuned.items()}
    write_atomically(out / TUNING, (to_json(table, indent=2) + "\n").encode())


def fixed(comparison: ComparisonOptions, method: str) -> TuningRow:
    """The rate of a method that is not tuned, in the form of one that is."""
    rate = table_of(comparison, comparison.tasks[0], method, 0).get("training", {}).get("learning_rate")
    row = CATALOGUE.get(comparison.kind(method))
    source = "given by the comparison" if rate is not None else "the default of training.learning_rate" if row is None else row.rate_source
    if rate is None:
        rate = TrainingOptions().learning_rate if row is None else row.learning_rate
    return TuningRow(chosen=rate, source=source, tried=(), rates={RATE: rate})
