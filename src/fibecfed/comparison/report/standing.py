"""Who stands where: means over seeds, targets and who reaches them first, ranks over tasks with a bootstrap interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from ...core.metrics import OF_WRITTEN
from ...methods.catalogue import CATALOGUE
from .results import OURS, ComparisonResults, Point, Run, is_ablation
from .scores import ComparedMetric

Frame = Any
"""A DataFrame; pandas' own types tell too little of what is selected from one."""
COUNTED_FROM = 0.05
"""A task counts for targets if its best method is at least this much better than what is had without reading a text."""
TARGET_SHARE = 0.8
"""Fraction of the way from there to the best method's final score that is a task's target."""
DIGITS = 9
"""Of a mean that count: in the last bits, equal scores differ by the order in which they were added."""
SLACK = 10.0**-DIGITS
"""By which a score may miss a bound that it has to reach."""
DRAWS, LEVEL = 2000, 0.95
"""Bootstrap draws, and the level of their interval."""
ALONE = "local"
"""The method that does not federate; it still answers, with a few bytes per round, and is no measure of few bytes."""


def _written(name: str, run: Run) -> float:
    return run.written.get(name, math.nan)


MEASURES: Mapping[str, Callable[[Run], float]] = {
    "personalised": lambda run: run.last.personalised,
    "global": lambda run: run.last.server,
    "usual": lambda run: math.nan if run.usual_personalised is None else run.usual_personalised,
    "bytes": lambda run: run.bytes_up + run.bytes_down,
    "megabytes": lambda run: (run.bytes_up + run.bytes_down) / 1e6,
    "steps": lambda run: run.steps,
    "trainable": lambda run: run.trainable,
    "majority": lambda run: run.majority,
    "prior": lambda run: run.prior,
    **{name: partial(_written, name) for name in OF_WRITTEN},
}
"""Column of `Standings.frame` -> what it holds of a run."""


@dataclass(frozen=True)
class Spread:
    """Mean of some values, to nine digits, and their standard deviation (n - 1), None of fewer than two."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Without NaN; None where there are no values."""
    found = np.array([value for value in values if not math.isnan(value)])
    if not len(found):
        return None
    return Spread(round(float(found.mean()), DIGITS), round(float(found.std(ddof=1)), DIGITS) if len(found) > 1 else None, len(found))


@dataclass(frozen=True)
class Target:
    """The score that methods race to on a task.

    Attributes:
        majority: the baseline's score, mean over the task's runs.
        prior: that of each client's own largest class; None where it is not known.
        best, best_score: the ranked method with the highest final score.
        base: the better one of `majority` and `prior`: what is had without reading a text.
        score: base + 0.8 (best_score - base), or the fixed one.
        counted: the best score is at least `COUNTED_FROM` better than `base`, or the target is fixed.
    """

    task: str
    majority: float
    prior: float | None
    base: float
    best: str
    best_score: float
    score: float
    counted: bool


def reached(run: Run, score: float) -> Point | None:
    """The first evaluation of a trained model at which the pooled personalised score is at least as good as `score`."""
    sign = ComparedMetric(run.metric).sign
    return next((point for point in run.points if point.rounds > 0 and sign * (point.personalised - score) >= -SLACK), None)


def costs_to(runs: Sequence[Run], score: float, of: Callable[[Point], float]) -> list[float]:
    """What it took each run to reach a score; infinity for one that never gets there."""
    return [math.inf if (point := reached(run, score)) is None else of(point) for run in runs]


@dataclass(frozen=True)
class Rank:
    """A method's rank in the pooled personalised score, mean over the tasks it ran on, with a bootstrap interval."""

    mean: float
    low: float
    high: float
    tasks: int


def mean_ranks(frame: Frame, sign: int) -> dict[str, Rank]:
    """Best first. The bootstrap draws tasks, and inside each drawn task its seeds, with replacement; all methods share the draws.

    The interval is the middle 95 % of 2,000 draws. A method is ranked on the tasks it has scores on, among those that have some there.
    Equal scores share the mean of their places.

    Args:
        sign: -1 where a lower score is the better one.
    """
    scores = frame[~frame["ablation"]].dropna(subset="personalised").set_index(["task", "method", "seed"])["personalised"]
    if scores.empty:
        return {}
    places = pd.MultiIndex.from_product(scores.index.remove_unused_levels().levels)
    cube = sign * scores.reindex(places).to_numpy().reshape([len(level) for level in places.levels])
    plain = _ranked(_mean(cube))
    low, high = np.nanquantile(_bootstrap(cube), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = {
        method: Rank(float(np.nanmean(plain[:, m])), float(low[m]), float(high[m]), int(np.isfinite(plain[:, m]).sum()))
        for m, method in enumerate(places.levels[1])
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].mean, item[0])))


def _bootstrap(scores: np.ndarray) -> np.ndarray:
    """Mean rank of each method in each draw, (DRAWS, methods), from scores by task, method and seed."""
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
    """1 for the highest of each row; NaN where there is no score."""
    return pd.DataFrame(np.round(means, DIGITS)).rank(axis=1, ascending=False).to_numpy()


@dataclass(frozen=True)
class Standings:
    """A comparison with what was worked out from it once.

    Attributes:
        frame: a row per run: task, method, seed, `MEASURES`, and whether it is an ablation.
        ranks: ranked methods, best first.
        targets: of every task with a ranked method.
    """

    comparison: ComparisonResults
    frame: Frame
    ranks: Mapping[str, Rank]
    targets: Mapping[str, Target]

    @cached_property
    def of_ours(self) -> Standings:
        """The same over the tasks on which FibecFed has a score: the others say nothing about it."""
        runs = tuple(run for run in self.comparison.runs if self.spread(run.task, OURS, "personalised"))
        return self if len(runs) == len(self.comparison.runs) else standings(replace(self.comparison, runs=runs))

    @cached_property
    def _spreads(self) -> Frame:
        return self.frame.groupby(["task", "method"])[list(MEASURES)].agg(spread)

    @cached_property
    def _by_place(self) -> dict[str, dict[tuple[str, str], Spread]]:
        return self._spreads.to_dict()

    def spread(self, task: str, method: str, measure: str) -> Spread | None:
        """Of a column of `frame` over the seeds of a method on a task; None where it has no value."""
        found = self._by_place[measure].get((task, method))
        return found if isinstance(found, Spread) else None

    @cached_property
    def _means(self) -> Frame:
        return self._spreads.map(lambda found: found.mean, na_action="ignore").astype(float).unstack("task")

    def means(self, measure: str) -> Frame:
        """Mean over seeds of a column of `frame`: methods x tasks, NaN where there is none."""
        return self._means[measure]

    def mean(self, method: str, measure: str) -> float:
        """Mean over the method's tasks of the mean over seeds; NaN without runs."""
        return float(self.means(measure).loc[method].mean())

    def overall(self, method: str, measure: str) -> Spread | None:
        """`mean`, with the deviation over seeds of a seed's mean over tasks; over those with a value on all of the method's tasks."""
        runs = self.frame[self.frame["method"] == method].pivot(index="seed", columns="task", values=measure)
        found = spread(runs.dropna(axis=1, how="all").dropna(axis=0).mean(axis=1))
        return found and replace(found, mean=round(self.mean(method, measure), DIGITS))

    def whole_lora(self, method: str) -> bool:
        """As `Row.whole_lora` in methods/catalogue.py says of the method's kind."""
        kinds = {run.kind for run in self.comparison.runs if run.method == method}
        return any(kind in CATALOGUE and CATALOGUE[kind].whole_lora for kind in kinds)

    @property
    def counted(self) -> list[Target]:
        """Targets of the tasks that count."""
        return [one for one in self.targets.values() if one.counted]

    def costs(self, task: str, method: str, of: Callable[[Point], float]) -> tuple[float, float, float] | None:
        """Median, lowest and highest of `costs_to` the task's target over seeds; None for a method that did not run there."""
        found = costs_to(self.comparison.of(task, method), self.targets[task].score, of)
        return (statistics.median(found), min(found), max(found)) if found else None

    def seconds(self, task: str, method: str) -> float | None:
        """Modelled time to the task's target."""
        found = self.costs(task, method, lambda point: point.seconds)
        return found and found[0]

    def reaches(self, task: str, method: str) -> bool:
        """Whether the median run of a method reaches the task's target."""
        value = self.seconds(task, method)
        return value is not None and math.isfinite(value)

    def first(self, task: str) -> list[str]:
        """Methods with the least modelled time to the task's target; several where they tie, none where nobody reaches it."""
        found = {method: self.seconds(task, method) or 0.0 for method in self.ranks if self.reaches(task, method)}
        return [method for method, value in found.items() if value == min(found.values())]

    def relative_seconds(self, method: str) -> float | None:
        """Geometric mean over counted targets that both reach of a method's modelled time over FibecFed's; None where there is none."""
        ratios = []
        for one in self.counted:
            if self.reaches(one.task, method) and self.reaches(one.task, OURS):
                ratios.append((self.seconds(one.task, method) or 0.0) / (self.seconds(one.task, OURS) or math.inf))
        return statistics.geometric_mean(ratios) if ratios and all(ratios) else None


def standings(comparison: ComparisonResults) -> Standings:
    """Ranks and targets of a comparison."""
    columns = ["task", "method", "seed", "ablation", *MEASURES]
    rows = [[run.task, run.method, run.seed, is_ablation(run), *(of(run) for of in MEASURES.values())] for run in comparison.runs]
    frame: Frame = pd.DataFrame(rows, columns=pd.Index(columns)).astype({"ablation": bool, **dict.fromkeys(MEASURES, float)})
    scores = comparison.scores
    ranks = mean_ranks(frame, scores.sign)
    found = {task: _target(runs, ranks, comparison.fixed_targets.get(task), scores) for task, runs in frame.groupby("task")}
    return Standings(comparison, frame, ranks, {task: one for task, one in found.items() if one is not None})


def _target(runs: Frame, ranked: Iterable[str], fixed: float | None, scores: ComparedMetric) -> Target | None:
    """The target of a task from its own runs; None where no ranked method has a score on it."""
    finals = {method: found.mean for method in sorted(ranked) if (found := spread(runs.loc[runs["method"] == method, "personalised"]))}
    majority, prior = spread(runs["majority"]), spread(runs["prior"])
    if not finals or majority is None:
        return None
    best = max(finals, key=lambda method: scores.sign * finals[method])
    base = majority.mean if prior is None else scores.sign * max(scores.sign * majority.mean, scores.sign * prior.mean)
    gain = finals[best] - base
    score = base + TARGET_SHARE * gain if fixed is None else fixed
    counted = scores.sign * gain >= COUNTED_FROM - SLACK or fixed is not None
    return Target(str(runs["task"].iloc[0]), majority.mean, prior and prior.mean, base, best, finals[best], score, counted)
