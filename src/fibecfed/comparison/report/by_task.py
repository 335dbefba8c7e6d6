"""Tables with methods in rows and tasks in columns: scores, what it took to a target, and what a run sent, computed and held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from . import tables
from .results import Point, Run
from .standing import ALONE, Standings, spread, total_size
from .tables import Cell, Table, around, megabytes, number, points, words


def _table(standings: Standings, name: str, title: str, note: str, tasks: Sequence[str], cell: Callable[[str, str], Cell]) -> Table:
    """`cell` of each task and method; the tasks are the headings."""
    rows = tuple((words(method), *(cell(task, method) for task in tasks)) for method in standings.ranks)
    return Table(name, title, note, ("method", *tasks), rows)


def scores(standings: Standings, which: str) -> Table:
    """Accuracy after the last round, the best of each task highlighted.

    Args:
        which: "personalised" or "global".
    """
    comparison = standings.comparison
    of: Callable[[Run], float] = (lambda run: run.last.personalised) if which == "personalised" else (lambda run: run.last.server)
    seeds = len(comparison.seeds)
    over = "one seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation; that of the mean is over the seeds' means"
    how = {
        "personalised": "Each client predicts its own part of the test set with its own model; the predictions are pooled.",
        "global": "The server's model on the whole test set.",
    }[which]
    note = f"Accuracy in per cent after the last round, {over}. {how}"
    title = f"{which.capitalize()} score"
    table = _table(
        standings, f"scores-{which}", title, note, comparison.tasks, lambda task, m: points(spread(map(of, comparison.of(task, m))))
    )
    rows = tuple((*row, points(standings.overall(method, of))) for row, method in zip(table.rows, standings.ranks, strict=True))
    return tables.set_off(Table(table.name, title, note, (*table.header, "mean"), rows), most=range(1, len(comparison.tasks) + 2))


_METRICS = {"f1": "F1", "matthews": "Matthews"}


def own_metrics(standings: Standings) -> Table:
    """The usual metric of tasks that have one beside accuracy; without rows where none has."""
    comparison = standings.comparison
    named = {run.task: _METRICS[run.metric] for run in comparison.runs if run.metric in _METRICS}
    tasks = [task for task in comparison.tasks if task in named]

    def cell(task: str, method: str) -> Cell:
        return points(spread(run.metric_personalised for run in comparison.of(task, method) if run.metric_personalised is not None))

    note = "F1 of the second class, or Matthews' correlation, times 100, from the same pooled predictions as the personalised score."
    table = _table(standings, "metrics", "Tasks' own metrics", note, tasks, cell)
    header = ("method", *(f"{task}, {named[task]}" for task in tasks))
    return tables.set_off(Table(table.name, table.title, note, header, table.rows if tasks else ()), most=range(1, len(header)))


_COSTS: dict[str, tuple[str, str, Callable[[Point], float], Callable[[float | None], Cell]]] = {
    "time": ("Modelled time to the target", "Modelled", lambda point: point.seconds, tables.seconds),
    "bytes": ("MB to the target", "Both ways, without evaluation", lambda point: point.size, megabytes),
    "rounds": ("Rounds to the target", "All phases counted", lambda point: point.rounds, partial(number, digits=0)),
}


def to_target(standings: Standings, what: str) -> Table:
    """What each method needed to each task's target: "time", "bytes" or "rounds"."""
    title, how, of, show = _COSTS[what]

    def cell(task: str, method: str) -> Cell:
        ends = [show(end).text for end in standings.cost_range(task, method, of)]
        return tables.with_range(show(standings.cost(task, method, of)), *ends)

    several = len(standings.comparison.seeds) > 1
    over = "; median over seeds, in brackets the lowest and the highest where they differ" if several else ""
    note = f"{how}, seen at evaluations only{over}. A run that never gets there counts as infinite."
    table = _table(standings, f"to-target-{what}", title, note, list(standings.targets), cell)
    header = ("method", *(task if one.counted else f"{task} (not counted)" for task, one in standings.targets.items()))
    return tables.set_off(Table(table.name, title, note, header, table.rows), least=range(1, len(header)))


_MEASURES: dict[str, tuple[str, str, Callable[[Run], float], int]] = {
    "bytes": ("MB per run on each task", "All messages of training and preparation, both ways", lambda run: total_size(run) / 1e6, 1),
    "steps": ("Steps per run on each task", "Optimiser steps of all clients together", lambda run: run.steps, 0),
    "values": (
        "Parameters of adapter and head on each task",
        "How many a client holds; a method may train a part",
        lambda run: run.trainable,
        0,
    ),
}


def measure(standings: Standings, what: str) -> Table:
    """What runs sent, computed and held: "bytes", "steps" or "values"."""
    title, how, of, digits = _MEASURES[what]
    comparison = standings.comparison
    several = len(comparison.seeds) > 1
    note = f"{how}{'; mean over seeds ± standard deviation where they differ' if several else ''}."
    table = _table(
        standings, what, title, note, comparison.tasks, lambda task, m: around(spread(map(of, comparison.of(task, m))), digits)
    )  # fmt: skip
    return table if what == "values" else tables.set_off(table, least=range(1, len(table.header)), but=(ALONE,) if what == "bytes" else ())


def all_by_task(standings: Standings) -> tuple[list[Table], list[Table]]:
    """Scores, and the rest: costs to targets and measures of whole runs."""
    first = [scores(standings, "personalised"), scores(standings, "global"), own_metrics(standings)]
    return first, [*(to_target(standings, what) for what in _COSTS), *(measure(standings, what) for what in _MEASURES)]
