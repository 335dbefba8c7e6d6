"""The tables of a report, in their order; those of methods x tasks are in by_task.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from . import tables
from .by_task import all_by_task
from .results import OURS, Run
from .standing import ALONE, Spread, Standings, final, spread, total_size
from .tables import Cell, Table, megabytes, number, points, words


def all_tables(standings: Standings) -> list[Table]:
    """Those that have rows, in the order of the report."""
    scores, costs = all_by_task(standings)
    found = [methods(standings), *scores, targets(standings), *costs]
    found += [losses(standings), ablations(standings), tuning(standings), runs(standings)]
    return [table for table in found if table.rows]


def methods(standings: Standings) -> Table:
    """One row a method: rank, scores, targets, bytes, steps."""
    races, ranks = standings.counted, standings.ranks
    size = {method: standings.mean(method, total_size) for method in ranks}
    fewest = min((value for method, value in size.items() if method != ALONE), default=math.nan)
    fewest_lora = min((value for method, value in size.items() if standings.whole_lora(method)), default=math.nan)
    rows = []
    for method, rank in ranks.items():
        rows.append(
            (
                words(method),
                number(rank.mean, 2),
                number(100 * standings.mean(method, lambda run: run.last.personalised)),
                number(100 * standings.mean(method, lambda run: run.last.server)),
                words(f"{rank.low:.1f} to {rank.high:.1f}"),
                number(rank.tasks, 0),
                number(sum(standings.reaches(one.task, method) for one in races), 0),
                number(sum(method in standings.first(one.task) for one in races), 0),
                number(standings.relative_seconds(method), 2),
                megabytes(size[method]),
                number(size[method] / fewest if method != ALONE else None, 2),
                number(size[method] / fewest_lora if standings.whole_lora(method) else None, 3),
                number(standings.mean(method, lambda run: run.steps), 0),
                number(standings.mean(method, lambda run: run.trainable), 0),
            )
        )
    header = (
        "method", "mean rank", "personalised %", "global %", "95 % interval", "tasks", "targets reached", "first to target",
        "relative time to target", "MB per run", "bytes relative to the smallest", "bytes relative to the smallest LoRA", "steps per run",
        "parameters of adapter and head",
    )  # fmt: skip
    note = (
        "Rank in the pooled personalised score, 1 = best, mean over tasks; interval by bootstrap over tasks and seeds. Scores, bytes, "
        "steps and parameters of adapter and head, of which a method may train a part, are means over tasks. Targets: how many "
        f"of the {len(races)} counted ones are reached, and on how many the method is first in modelled time; time over {OURS}'s is the "
        "geometric mean over targets that both reach. Smallest: without methods that do not federate; smallest LoRA: among those that "
        "train LoRA of one rank on all adapted layers and average both factors."
    )
    table = Table("methods", "Methods over all tasks", note, header, tuple(rows))
    at = header.index
    most = (at("personalised %"), at("global %"), at("targets reached"), at("first to target"))
    least = (
        at("mean rank"),
        at("relative time to target"),
        at("bytes relative to the smallest"),
        at("bytes relative to the smallest LoRA"),
        at("steps per run"),
    )
    return tables.set_off(tables.set_off(table, most=most, least=least), least=[at("MB per run")], but=(ALONE,))


def targets(standings: Standings) -> Table:
    """One row a task: where its target comes from, who reaches it first."""
    rows = []
    for task, one in standings.targets.items():
        first = standings.first(task)
        rows.append(
            (
                words(task),
                number(100 * one.majority),
                number(None if one.prior is None else 100 * one.prior),
                words(one.best),
                number(100 * one.best_score),
                number(100 * one.score),
                words("fixed" if task in standings.comparison.fixed_targets else "yes" if one.counted else "no"),
                words(", ".join(first) or None),
                tables.seconds(standings.seconds(task, first[0]) if first else None),
                tables.seconds(standings.seconds(task, OURS)),
                number(sum(standings.reaches(task, method) for method in standings.ranks), 0),
            )
        )
    header = (
        "task", "majority %", "own majority %", "best method", "best score %", "target %", "counted", "first", "shortest time",
        f"{OURS}'s time", "reached by",
    )  # fmt: skip
    note = (
        "Target = majority class + 0.8 (best method's final score - majority class), from these runs. A task whose best method is less "
        "than 5 points above the majority class is shown but not counted. Own majority: each client answers the most frequent class of "
        f"its own training examples, whatever the text. Modelled time: {standings.comparison.network.describe()}."
    )
    return Table("targets", "Targets", note, header, tuple(rows))


def losses(standings: Standings) -> Table:
    """Tasks on which another method scores higher than FibecFed, reaches the target sooner, or sends fewer bytes."""
    comparison, rows = standings.comparison, []
    others = [method for method in standings.ranks if method != OURS]
    for task, one in standings.targets.items():
        if final(comparison, task, OURS) is None:
            continue
        ours, ahead = _better(standings, task, others, lambda run: run.last.personalised)
        ours_global, ahead_global = _better(standings, task, others, lambda run: run.last.server)
        mine = math.inf if (value := standings.seconds(task, OURS)) is None else value
        sooner = {m: value for m in others if (value := standings.seconds(task, m)) is not None and value < mine}
        size, more = _better(standings, task, [m for m in others if m != ALONE], lambda run: -total_size(run))
        if not (ahead or ahead_global or sooner or more):
            continue
        best, best_global, fewest = (max(found, key=found.__getitem__, default=None) for found in (ahead, ahead_global, more))
        fastest = min(sooner, key=sooner.__getitem__, default=None)
        rows.append(
            (
                words(task),
                points(ours),
                number(len(ahead), 0),
                words(best),
                number(100 * ahead[best] if best else None),
                points(ours_global),
                number(len(ahead_global), 0),
                words(best_global),
                number(100 * ahead_global[best_global] if best_global else None),
                number(len(sooner), 0),
                words(fastest),
                tables.seconds(sooner[fastest] if fastest else None),
                tables.seconds(mine),
                words("yes" if one.counted else "no"),
                number(len(more), 0),
                words(fewest),
                number(size.mean / (size.mean + more[fewest]) if size and fewest and size.mean + more[fewest] else None, 2),
            )
        )
    header = (
        "task", f"{OURS} %", "methods ahead", "best of them", "ahead by, points", f"{OURS} global %", "ahead in global",
        "best in global", "global, ahead by", "sooner at the target", "fastest", "shortest time", f"{OURS}'s time", "target counts",
        "sending fewer", "fewest bytes", f"{OURS}'s bytes relative to the smallest",
    )  # fmt: skip
    note = (
        f"Tasks on which another method has a higher personalised or global score than {OURS}, reaches the target in less modelled time, "
        "or sends fewer bytes; methods that do not federate are no measure of bytes."
    )
    return Table("losses", "Where FibecFed loses", note, header, tuple(rows))


def _better(standings: Standings, task: str, others: list[str], of: Callable[[Run], float]) -> tuple[Spread | None, dict[str, float]]:
    """FibecFed's value on a task, and by how much each other method's is higher, of those whose is."""
    comparison = standings.comparison
    ours = spread(map(of, comparison.of(task, OURS)))
    found = {m: spread(map(of, comparison.of(task, m))) for m in others}
    return ours, {m: other.mean - ours.mean for m, other in found.items() if ours and other and other.mean > ours.mean}


def ablations(standings: Standings) -> Table:
    """FibecFed's variants beside it, on the seeds that both have."""
    comparison, rows = standings.comparison, []
    for task in comparison.tasks:
        ours = {run.seed: run for run in comparison.of(task, OURS)}
        for method in comparison.ablations:
            pairs = [(run, ours[run.seed]) for run in comparison.of(task, method) if run.seed in ours]
            if not pairs:
                continue
            rows.append(
                (
                    words(task),
                    words(method),
                    number(len(pairs), 0),
                    points(spread(run.last.personalised for run, _ in pairs)),
                    points(spread(run.last.personalised - own.last.personalised for run, own in pairs)),
                    number(_ratio([(total_size(run), total_size(own)) for run, own in pairs]), 3),
                    number(_ratio([(run.steps, own.steps) for run, own in pairs]), 3),
                )
            )
    header = ("task", "variant", "seeds", "personalised %", f"difference to {OURS}, points", "bytes, x", "steps, x")
    note = f"Runs of {OURS} with parts left out or exchanged, compared with {OURS} on the same seeds. They are not ranked."
    return Table("ablations", "Parts of FibecFed", note, header, tuple(rows))


def _ratio(pairs: list[tuple[float, float]]) -> float | None:
    ratios = [one / other for one, other in pairs if other]
    return statistics.fmean(ratios) if ratios else None


def tuning(standings: Standings) -> Table:
    """Learning rates tried."""
    rows = []
    for method, tried in standings.comparison.tuning.items():
        if isinstance(tried, dict):
            rate = _rate(tried.get("chosen"))
            chosen = rate if rate.value is None else Cell(f"{rate.text}{_server(tried)}", rate.value)
            rows.append((words(method), words(_trials(tried.get("tried"))), chosen, words(tried.get("source"))))
    note = (
        "Rates tried with their score on validation examples, in per cent, the one chosen, and where the centre of the rates comes from. "
        "Server: the rate of the server's step that goes with it."
    )
    return Table("tuning", "Tuning", note, ("method", "tried", "chosen", "source of the centre"), tuple(rows))


def _rate(rate: object) -> Cell:
    """A learning rate; "-" for what is none."""
    return Cell(f"{rate:g}", float(rate)) if isinstance(rate, int | float) else Cell("-")


def _server(row: dict[str, object]) -> str:
    """As in " (server 2.7)", of a trial or a choice with a server rate; "" without one."""
    rates = row.get("rates")
    rate = rates.get("method.server_learning_rate") if isinstance(rates, dict) else None
    return f" (server {rate:g})" if isinstance(rate, int | float) else ""


def _trials(tried: object) -> str | None:
    """As in "0.0005: 81.2, 0.0015 (server 0.3): diverged"."""
    rows = [one for one in tried if isinstance(one, dict)] if isinstance(tried, list) else []
    scores = [(f"{one.get('rate')}{_server(one)}", one.get("score")) for one in rows]
    return ", ".join(f"{rate}: {f'{100 * score:.1f}' if isinstance(score, int | float) else 'diverged'}" for rate, score in scores) or None


def runs(standings: Standings) -> Table:
    """Every run, raw."""
    rows = []
    for run in standings.comparison.runs:
        last = run.last
        rows.append(
            (
                words(run.task),
                words(run.method),
                number(run.seed, 0),
                number(100 * last.personalised, 2),
                number(100 * last.server, 2),
                number(None if run.worst_decile is None else 100 * run.worst_decile),
                number(None if run.metric_personalised is None else 100 * run.metric_personalised),
                words(run.metric),
                number(last.rounds, 0),
                megabytes(run.bytes_up),
                megabytes(run.bytes_down),
                number(run.steps, 0),
                number(run.examples, 0),
                number(run.trainable, 0),
                tables.seconds(last.seconds),
                tables.seconds(run.measured_s),
                _rate(run.conditions["learning_rate"]),
                tables.seconds(run.source_s or None),
                number(run.source_examples or None, 0),
            )
        )
    header = (
        "task", "method", "seed", "personalised %", "global %", "worst decile %", "own metric x 100", "metric", "rounds", "MB up",
        "MB down", "steps", "examples", "parameters of adapter and head", "modelled time", "measured time", "learning rate",
        "sources' time", "sources' examples",
    )  # fmt: skip
    note = (
        "Every run as recorded. Own metric: the task's usual one where it is not accuracy. Modelled time is of all rounds; measured time "
        "is wall clock. Sources: what was trained beforehand on other tasks' data, counted nowhere else."
    )
    return Table("runs", "All runs", note, header, tuple(rows))
