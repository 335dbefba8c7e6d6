"""Tables with methods in rows and tasks in columns: scores, what it took to a target, and what a run sent, computed and held."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ...core.metrics import METRICS, OF_WRITTEN
from . import tables
from .results import Point
from .scores import ComparedMetric
from .standing import ALONE, Standings
from .tables import Cell, Column, Table, around, megabytes, number, points, words

_METHOD = Column("method", words)


def scores(standings: Standings, which: str) -> Table:
    """Scores after the last round, the best of each task highlighted.

    Args:
        which: "personalised" or "global".
    """
    seeds, of = len(standings.comparison.seeds), standings.comparison.scores
    over = "one seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation; that of the mean is over the seeds' means"
    how = {
        "personalised": "Each client predicts its own part of the test set with its own model; the predictions are pooled.",
        "global": "The server's model on the whole test set.",
    }[which]
    note = f"{of.what} after the last round, {over}. {how}"
    columns = [
        Column(task, lambda m, task=task: points(standings.spread(task, m, which), of), of.best) for task in standings.comparison.tasks
    ]
    columns.append(Column("mean", lambda method: points(standings.overall(method, which), of), of.best))
    return tables.table(f"scores-{which}", f"{which.capitalize()} score", note, [_METHOD, *columns], standings.ranks)


_USUAL = {"f1": "F1", "matthews": "Matthews"}


def own_metrics(standings: Standings) -> Table:
    """The usual metric of tasks that have another than the primary one; without rows where none has."""
    named = {run.task: _USUAL.get(run.usual, run.usual) for run in standings.comparison.runs if run.usual}
    columns = [
        Column(f"{task}, {named[task]}", lambda m, task=task: points(standings.spread(task, m, "usual"), ComparedMetric()), max)
        for task in sorted(named)
    ]  # fmt: skip
    note = "F1 of the second class, or Matthews' correlation, times 100, from the same pooled predictions as the personalised score."
    return tables.table("metrics", "Tasks' own metrics", note, [_METHOD, *columns], standings.ranks if named else ())


def written(standings: Standings, name: str) -> Table:
    """A metric of generated answers, where it is not the primary one; without rows where no answers were generated."""
    metric, comparison = METRICS[name], standings.comparison
    tasks = [task for task in comparison.tasks if any(name in run.written for run in comparison.runs if run.task == task)]
    of = ComparedMetric(metric)
    columns = [Column(task, lambda m, task=task: points(standings.spread(task, m, name), of), of.best) for task in tasks]
    note = f"{of.what} of answers that the clients' own models wrote to some of their test examples after the last round."
    shown = tasks and name != comparison.scores.metric.name
    title = f"{metric.title[0].upper()}{metric.title[1:]} of generated answers"
    return tables.table(f"scores-{name}", title, note, [_METHOD, *columns], standings.ranks if shown else ())


_COSTS: dict[str, tuple[str, str, Callable[[Point], float], Callable[[float | None], Cell]]] = {
    "time": ("Modelled time to the target", "Modelled", lambda point: point.seconds, tables.seconds),
    "bytes": ("MB to the target", "Both ways, without evaluation", lambda point: point.size, megabytes),
    "rounds": ("Rounds to the target", "All phases counted", lambda point: point.rounds, partial(number, digits=0)),
}


def to_target(standings: Standings, what: str) -> Table:
    """What each method needed to each task's target: "time", "bytes" or "rounds"."""
    title, how, of, show = _COSTS[what]

    def cell(task: str, method: str) -> Cell:
        middle, *ends = standings.costs(task, method, of) or (None, None, None)
        return tables.with_range(show(middle), *(show(end).text for end in ends))

    several = len(standings.comparison.seeds) > 1
    over = "; median over seeds, in brackets the lowest and the highest where they differ" if several else ""
    note = f"{how}, seen at evaluations only{over}. A run that never gets there counts as infinite."
    columns = [
        Column(task if one.counted else f"{task} (not counted)", partial(cell, task), min) for task, one in standings.targets.items()
    ]
    return tables.table(f"to-target-{what}", title, note, [_METHOD, *columns], standings.ranks)


_MEASURES: dict[str, tuple[str, str, str, int]] = {
    "bytes": ("MB per run on each task", "All messages of training and preparation, both ways", "megabytes", 1),
    "steps": ("Steps per run on each task", "Optimiser steps of all clients together", "steps", 0),
    "values": ("Parameters of adapter and head on each task", "How many a client holds; a method may train a part", "trainable", 0),
}


def measure(standings: Standings, what: str) -> Table:
    """What runs sent, computed and held: "bytes", "steps" or "values"."""
    title, how, name, digits = _MEASURES[what]

    note = f"{how}{'; mean over seeds ± standard deviation where they differ' if len(standings.comparison.seeds) > 1 else ''}."
    best, but = None if what == "values" else min, (ALONE,) if what == "bytes" else ()
    columns = [
        Column(task, lambda m, task=task: around(standings.spread(task, m, name), digits), best, but)
        for task in standings.comparison.tasks
    ]  # fmt: skip
    return tables.table(what, title, note, [_METHOD, *columns], standings.ranks)


def all_by_task(standings: Standings) -> tuple[list[Table], list[Table]]:
    """Scores, and the rest: costs to targets and measures of whole runs."""
    first = [scores(standings, "personalised"), scores(standings, "global"), own_metrics(standings)]
    first += [written(standings, name) for name in OF_WRITTEN]
    return first, [*(to_target(standings, what) for what in _COSTS), *(measure(standings, what) for what in _MEASURES)]
