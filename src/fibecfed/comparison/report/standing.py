"""Who stands where: means over seeds, targets and who reaches them first, ranks over tasks with a bootstrap interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...methods.catalogue import CATALOGUE
from .results import OURS, Comparison, Point, Run, is_ablation

COUNTED_FROM = 0.05
"""A task counts for targets if its best method is at least this far above the majority class."""
TARGET_SHARE = 0.8
"""Share of the way from the majority class to the best method's final score that is a task's target."""
DIGITS = 9
"""Of a mean that count: in the last bits, equal scores differ by the order in which they were added."""
SLACK = 10.0**-DIGITS
"""By which a score may be below a bound that it has to reach."""
DRAWS, LEVEL = 2000, 0.95
"""Bootstrap draws, and the level of their interval."""
ALONE = "local"
"""The method that does not federate; it still answers, with a few bytes a round, and is no measure of few bytes."""


@dataclass(frozen=True)
class Spread:
    """Mean of some values, to nine digits, and their standard deviation (n - 1), None of fewer than two."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Without NaN; None where there are no values."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return None
    return Spread(round(statistics.fmean(found), DIGITS), statistics.stdev(found) if len(found) > 1 else None, len(found))


def final(comparison: Comparison, task: str, method: str) -> Spread | None:
    """Pooled personalised accuracy after the last round."""
    return spread(run.last.personalised for run in comparison.of(task, method))


@dataclass(frozen=True)
class Target:
    """The score that methods race to on a task.

    Attributes:
        majority: accuracy of the largest class, mean over the task's runs.
        prior: that of each client's own largest class; None where it is not known.
        best, best_score: the ranked method with the highest final score.
        score: majority + 0.8 (best_score - majority), or the fixed one.
        counted: best_score - majority is at least 5 points, or the target is fixed.
    """

    task: str
    majority: float
    prior: float | None
    best: str
    best_score: float
    score: float
    counted: bool


def target(comparison: Comparison, task: str) -> Target | None:
    """The target of a task from its own runs; None where no ranked method has a score on it."""
    finals = {method: found.mean for method in comparison.methods if (found := final(comparison, task, method))}
    majority = spread(run.majority for run in comparison.runs if run.task == task)
    if not finals or majority is None:
        return None
    best = max(sorted(finals), key=lambda method: finals[method])
    gain = finals[best] - majority.mean
    fixed = comparison.fixed_targets.get(task)
    score = majority.mean + TARGET_SHARE * gain if fixed is None else fixed
    prior = spread(run.prior for run in comparison.runs if run.task == task)
    counted = gain >= COUNTED_FROM - SLACK or fixed is not None
    return Target(task, majority.mean, None if prior is None else prior.mean, best, finals[best], score, counted)


def reached(run: Run, score: float) -> Point | None:
    """The first evaluation of a trained model at which the pooled personalised accuracy is at least `score`."""
    return next((point for point in run.points if point.rounds > 0 and point.personalised >= score - SLACK), None)


def cost_to(runs: Sequence[Run], score: float, of: Callable[[Point], float]) -> float | None:
    """Median over runs of what it took to reach a score; a run that never does counts as infinity. None without runs."""
    return statistics.median(costs_to(runs, score, of)) if runs else None


def costs_to(runs: Sequence[Run], score: float, of: Callable[[Point], float]) -> list[float]:
    """What it took each run; infinity for one that never gets there."""
    return [math.inf if (point := reached(run, score)) is None else of(point) for run in runs]


def ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """1 for the highest; equal scores share the mean of their places.

    >>> ranks({"a": 0.5, "b": 0.9, "c": 0.5})
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    return {
        one: 1.0 + sum(other > score for other in scores.values()) + 0.5 * (sum(other == score for other in scores.values()) - 1)
        for one, score in scores.items()
    }


@dataclass(frozen=True)
class Rank:
    """A method's rank in the pooled personalised score, mean over the tasks it ran on, with a bootstrap interval."""

    mean: float
    low: float
    high: float
    tasks: int


def mean_ranks(comparison: Comparison) -> dict[str, Rank]:
    """Best first. The bootstrap draws tasks, and inside each drawn task its seeds, with replacement; all methods share the draws.

    The interval is the middle 95 % of 2,000 draws. A method is ranked on the tasks it has scores on, among those that have some there.
    """
    runs = [run for run in comparison.runs if not (is_ablation(run) or math.isnan(run.last.personalised))]
    if not runs:
        return {}
    tasks, methods, seeds = sorted({run.task for run in runs}), sorted({run.method for run in runs}), sorted({run.seed for run in runs})
    scores = np.full((len(tasks), len(methods), len(seeds)), np.nan)
    for run in runs:
        scores[tasks.index(run.task), methods.index(run.method), seeds.index(run.seed)] = run.last.personalised
    plain = _ranked(_mean(scores))
    drawn = _bootstrap(scores)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = {
        method: Rank(float(np.nanmean(plain[:, m])), float(low[m]), float(high[m]), int(np.isfinite(plain[:, m]).sum()))
        for m, method in enumerate(methods)
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].mean, item[0])))


def _bootstrap(scores: np.ndarray) -> np.ndarray:
    """Mean rank of each method in each draw: (DRAWS, methods)."""
    random = np.random.default_rng(0)
    num_tasks, num_methods, _ = scores.shape
    overall = _mean(scores)
    tasks = random.integers(num_tasks, size=(DRAWS, num_tasks))
    rows = np.empty((DRAWS, num_tasks, num_methods))
    for t in range(num_tasks):
        seeds = np.flatnonzero(np.isfinite(scores[t]).any(axis=0))
        here = tasks == t
        drawn = random.choice(seeds, size=(int(here.sum()), len(seeds)))
        means = _mean(np.moveaxis(scores[t][:, drawn], 0, 1))
        rows[here] = _ranked(np.where(np.isnan(means), overall[t], means))
    return _mean(np.moveaxis(rows, 1, 2))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is there, NaN where nothing is."""
    there = np.isfinite(values)
    count = there.sum(axis=-1)
    return np.where(count > 0, np.where(there, values, 0.0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _ranked(means: np.ndarray) -> np.ndarray:
    """`ranks` of each row; NaN where there is no score."""
    means = np.round(means, DIGITS)
    better = (means[:, None, :] > means[:, :, None]).sum(axis=-1)
    equal = (means[:, None, :] == means[:, :, None]).sum(axis=-1)
    return np.where(np.isnan(means), np.nan, 1.0 + better + 0.5 * (equal - 1))


@dataclass(frozen=True)
class Standings:
    """A comparison with what was worked out from it once.

    Attributes:
        ranks: ranked methods, best first.
        targets: of every task with a ranked method.
    """

    comparison: Comparison
    ranks: Mapping[str, Rank]
    targets: Mapping[str, Target]

    @cached_property
    def of_ours(self) -> Standings:
        """The same over the tasks on which FibecFed has a score: the others say nothing about it."""
        comparison = self.comparison
        runs = tuple(run for run in comparison.runs if final(comparison, run.task, OURS))
        return self if len(runs) == len(comparison.runs) else standings(replace(comparison, runs=runs))

    def pairs(self, method: str, of: Callable[[Run], float]) -> list[tuple[float, float]]:
        """FibecFed's and a method's means over seeds on each task on which both have the value."""
        comparison = self.comparison
        found = [[spread(map(of, comparison.of(task, one))) for one in (OURS, method)] for task in comparison.tasks]
        return [(ours.mean, other.mean) for ours, other in found if ours and other]

    def whole_lora(self, method: str) -> bool:
        """As `Row.whole_lora` in methods/catalogue.py says of the method's kind."""
        kinds = {run.kind for run in self.comparison.runs if run.method == method}
        return any(kind in CATALOGUE and CATALOGUE[kind].whole_lora for kind in kinds)

    @property
    def counted(self) -> list[Target]:
        """Targets of the tasks that count."""
        return [one for one in self.targets.values() if one.counted]

    def cost(self, task: str, method: str, of: Callable[[Point], float]) -> float | None:
        """`cost_to` the task's target; None for a method that did not run there."""
        return cost_to(self.comparison.of(task, method), self.targets[task].score, of)

    def cost_range(self, task: str, method: str, of: Callable[[Point], float]) -> tuple[float, float] | tuple[()]:
        """The lowest and the highest of `costs_to` the task's target; empty for a method that did not run there."""
        found = costs_to(self.comparison.of(task, method), self.targets[task].score, of)
        return (min(found), max(found)) if found else ()

    def seconds(self, task: str, method: str) -> float | None:
        """Modelled time to the task's target."""
        return self.cost(task, method, lambda point: point.seconds)

    def reaches(self, task: str, method: str) -> bool:
        """Whether the median run of a method reaches the task's target."""
        value = self.seconds(task, method)
        return value is not None and math.isfinite(value)

    def first(self, task: str) -> list[str]:
        """Methods with the least modelled time to the task's target; several where they tie, none where nobody reaches it."""
        found = {method: value for method in self.ranks if (value := self.seconds(task, method)) is not None and math.isfinite(value)}
        return [method for method, value in found.items() if value == min(found.values())]

    def mean(self, method: str, of: Callable[[Run], float]) -> float:
        """Mean over the method's tasks of the mean over seeds; NaN without runs."""
        tasks = self.comparison.tasks
        by_task = [found.mean for task in tasks if (found := spread(map(of, self.comparison.of(task, method))))]
        return statistics.fmean(by_task) if by_task else math.nan

    def overall(self, method: str, of: Callable[[Run], float]) -> Spread | None:
        """`mean`, with the deviation over seeds of a seed's mean over tasks; over those with a value on all of the method's tasks."""
        by_task = [{run.seed: of(run) for run in self.comparison.of(task, method)} for task in self.comparison.tasks]
        by_task = [found for values in by_task if (found := {seed: value for seed, value in values.items() if not math.isnan(value)})]
        if not by_task:
            return None
        whole = set(by_task[0]).intersection(*by_task[1:])
        of_seeds = [statistics.fmean(values[seed] for values in by_task) for seed in sorted(whole)]
        deviation = statistics.stdev(of_seeds) if len(of_seeds) > 1 else None
        return Spread(round(self.mean(method, of), DIGITS), deviation, len(of_seeds))

    def relative_seconds(self, method: str) -> float | None:
        """Geometric mean over counted targets that both reach of a method's modelled time over FibecFed's; None where there is none."""
        ratios = []
        for one in self.counted:
            if self.reaches(one.task, method) and self.reaches(one.task, OURS):
                ratios.append((self.seconds(one.task, method) or 0.0) / (self.seconds(one.task, OURS) or math.inf))
        return statistics.geometric_mean(ratios) if ratios and all(ratios) else None


def standings(comparison: Comparison) -> Standings:
    """Ranks and targets of a comparison."""
    targets = {task: one for task in comparison.tasks if (one := target(comparison, task))}
    return Standings(comparison, mean_ranks(comparison), targets)


def total_size(run: Run) -> float:
    """Bytes both ways of a whole run."""
    return float(run.bytes_up + run.bytes_down)
