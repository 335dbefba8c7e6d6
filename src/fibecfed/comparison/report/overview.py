"""The tables of a report, in their order; those of methods x tasks are in by_task.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from . import tables
from .by_task import all_by_task
from .classes import of_classes
from .recorded import RecordedTrial, TuningRow
from .results import OURS
from .scores import SHOWN, ComparedMetric
from .standing import ALONE, COUNTED_FROM, Frame, Standings, Target, spread
from .tables import Cell, Column, Table, megabytes, number, points, score, words


def all_tables(standings: Standings) -> list[Table]:
    """Those that have rows, in the order of the report."""
    scores, costs = all_by_task(standings)
    found = [methods(standings), *scores, *of_classes(standings.comparison), targets(standings), *costs]
    found += [losses(standings), ablations(standings), tuning(standings), runs(standings)]
    return [table for table in found if table.rows]


def methods(standings: Standings) -> Table:
    """One row per method: rank, scores, targets, bytes, steps."""
    races, ranks, of = standings.counted, standings.ranks, standings.comparison.scores
    measured = ("personalised", "global", "bytes", "steps", "trainable")
    mean = {name: {method: standings.mean(method, name) for method in ranks} for name in measured}
    size, lora = mean["bytes"], [method for method in ranks if standings.whole_lora(method)]
    fewest = min((value for method, value in size.items() if method != ALONE), default=math.nan)
    fewest_lora = min((size[method] for method in lora), default=math.nan)
    columns = [
        Column("method", words),
        Column("mean rank", lambda m: number(ranks[m].mean, 2), min),
        Column(of.head("personalised"), lambda m: score(mean["personalised"][m], of), of.best),
        Column(of.head("global"), lambda m: score(mean["global"][m], of), of.best),
        Column("95 % interval", lambda m: words(f"{ranks[m].low:.1f} to {ranks[m].high:.1f}")),
        Column("tasks", lambda m: number(ranks[m].tasks, 0)),
        Column("targets reached", lambda m: number(sum(standings.reaches(one.task, m) for one in races), 0), max),
        Column("first to target", lambda m: number(sum(m in standings.first(one.task) for one in races), 0), max),
        Column("relative time to target", lambda m: number(standings.relative_seconds(m), 2), min),
        Column("MB per run", lambda m: megabytes(size[m]), min, (ALONE,)),
        Column("bytes relative to the smallest", lambda m: number(size[m] / fewest if m != ALONE else None, 2), min),
        Column("bytes relative to the smallest LoRA", lambda m: number(size[m] / fewest_lora if m in lora else None, 3), min),
        Column("steps per run", lambda m: number(mean["steps"][m], 0), min),
        Column("parameters of adapter and head", lambda m: number(mean["trainable"][m], 0)),
    ]
    note = (
        "Rank in the pooled personalised score, 1 = best, mean over tasks; interval by bootstrap over tasks and seeds. Scores, bytes, "
        "steps and parameters of adapter and head, of which a method may train a part, are means over tasks. Targets: how many "
        f"of the {len(races)} counted ones are reached, and on how many the method is first in modelled time; time over {OURS}'s is the "
        "geometric mean over targets that both reach. Smallest: without methods that do not federate; smallest LoRA: among those that "
        "train LoRA of one rank on all adapted layers and average both factors."
    )
    return tables.table("methods", "Methods over all tasks", note, columns, ranks)


def targets(standings: Standings) -> Table:
    """One row per task: where its target comes from, who reaches it first."""
    fixed, of = standings.comparison.fixed_targets, standings.comparison.scores
    majority = of.baseline.partition(" ")[0]
    own = "Own majority: each client answers the most frequent class of its own training examples, whatever the text; "
    own += "the majority where that is more. "
    own = own if majority == "majority" else ""
    first = {task: standings.first(task) for task in standings.targets}

    def shortest(one: Target) -> Cell:
        return tables.seconds(standings.seconds(one.task, first[one.task][0]) if first[one.task] else None)

    columns = [
        Column("task", lambda one: words(one.task)),
        Column(of.head(majority), lambda one: score(one.majority, of)),
        *([Column(of.head("own majority"), lambda one: score(one.prior, of))] if own else []),
        Column("best method", lambda one: words(one.best)),
        Column(of.head("best score"), lambda one: score(one.best_score, of)),
        Column(of.head("target"), lambda one: score(one.score, of)),
        Column("counted", lambda one: words("fixed" if one.task in fixed else "yes" if one.counted else "no")),
        Column("first", lambda one: words(", ".join(first[one.task]) or None)),
        Column("shortest time", shortest),
        Column(f"{OURS}'s time", lambda one: tables.seconds(standings.seconds(one.task, OURS))),
        Column("reached by", lambda one: number(sum(standings.reaches(one.task, method) for method in standings.ranks), 0)),
    ]
    note = (
        f"Target = {of.base} + 0.8 (best method's final score - {of.base}), from these runs. A task whose best method is less "
        f"than {of.round(COUNTED_FROM)} {of.above} the {of.base} is shown but not counted. {own}"
        f"Modelled time: {standings.comparison.network.describe()}."
    )
    return tables.table("targets", "Targets", note, columns, standings.targets.values())


def losses(standings: Standings) -> Table:
    """Tasks on which another method scores higher than FibecFed, reaches the target sooner, or sends fewer bytes."""
    others, of = [method for method in standings.ranks if method != OURS], standings.comparison.scores
    own = {task: ahead(standings, task, "personalised", others, of.sign) for task in standings.targets}
    server = {task: ahead(standings, task, "global", others, of.sign) for task in standings.targets}
    fewer = {task: ahead(standings, task, "bytes", [m for m in others if m != ALONE], sign=-1) for task in standings.targets}
    times = {task: {m: math.inf if (s := standings.seconds(task, m)) is None else s for m in standings.ranks} for task in standings.targets}
    sooner = {task: {m: s for m, s in found.items() if s < found.get(OURS, math.inf)} for task, found in times.items()}

    def first(found: Mapping[str, float]) -> str | None:
        return next(iter(found), None)

    def fastest(task: str) -> str | None:
        return min(sooner[task], key=sooner[task].__getitem__, default=None)

    def relative(task: str) -> Cell:
        size, best = standings.spread(task, OURS, "bytes"), max(fewer[task].values(), default=0.0)
        return number(size.mean / (size.mean - best) if size and best and size.mean - best else None, 2)

    columns = [
        Column("task", words),
        Column(of.head(OURS), lambda task: points(standings.spread(task, OURS, "personalised"), of)),
        Column("methods ahead", lambda task: number(len(own[task]), 0)),
        Column("best of them", lambda task: words(first(own[task]))),
        Column(f"ahead by,{of.step}".rstrip(","), lambda task: score(max(own[task].values(), default=None), of)),
        Column(of.head(f"{OURS} global"), lambda task: points(standings.spread(task, OURS, "global"), of)),
        Column("ahead in global", lambda task: number(len(server[task]), 0)),
        Column("best in global", lambda task: words(first(server[task]))),
        Column("global, ahead by", lambda task: score(max(server[task].values(), default=None), of)),
        Column("sooner at the target", lambda task: number(len(sooner[task]), 0)),
        Column("fastest", lambda task: words(fastest(task))),
        Column("shortest time", lambda task: tables.seconds(min(sooner[task].values(), default=None))),
        Column(f"{OURS}'s time", lambda task: tables.seconds(times[task][OURS])),
        Column("target counts", lambda task: words("yes" if standings.targets[task].counted else "no")),
        Column("sending fewer", lambda task: number(len(fewer[task]), 0)),
        Column("fewest bytes", lambda task: words(first(fewer[task]))),
        Column(f"{OURS}'s bytes relative to the smallest", relative),
    ]
    note = (
        f"Tasks on which another method has a {of.higher} personalised or global score than {OURS}, reaches the target in less "
        "modelled time, or sends fewer bytes; methods that do not federate are no measure of bytes."
    )
    ours = [task for task in standings.targets if standings.spread(task, OURS, "personalised")]
    lost = [task for task in ours if own[task] or server[task] or sooner[task] or fewer[task]]
    return tables.table("losses", "Where FibecFed loses", note, columns, lost)


def ahead(standings: Standings, task: str, measure: str, others: Sequence[str], sign: int) -> dict[str, float]:
    """Of some other methods those whose mean on a task is better than FibecFed's by a difference that is shown, the best first, and by how
    much."""
    column = standings.means(measure)[task].reindex([OURS, *others])
    gaps = (sign * (column - column[OURS])).drop(OURS).round(SHOWN)
    return gaps[gaps > 0].sort_values(ascending=False, kind="stable").to_dict()


def ablations(standings: Standings) -> Table:
    """FibecFed's variants beside it, on the seeds that both have."""
    of = standings.comparison.scores
    frame: Frame = standings.frame.sort_values("seed")
    pairs = frame[frame["ablation"]].merge(frame[frame["method"] == OURS], on=["task", "seed"], suffixes=("", "_ours"))
    for name in ("bytes", "steps"):
        pairs[f"{name}, x"] = pairs[name] / pairs[f"{name}_ours"].where(pairs[f"{name}_ours"] != 0)
    pairs["gain"] = pairs["personalised"] - pairs["personalised_ours"]
    found = pairs.groupby(["task", "method"])

    columns: list[Column] = [
        Column("task", lambda place: words(place[0])),
        Column("variant", lambda place: words(place[1])),
        Column("seeds", lambda place: number(len(found.get_group(place)), 0)),
        Column(of.head("personalised"), lambda place: points(spread(found.get_group(place)["personalised"]), of)),
        Column(f"difference to {OURS},{of.step}".rstrip(","), lambda place: points(spread(found.get_group(place)["gain"]), of)),
        Column("bytes, x", lambda place: number(found.get_group(place)["bytes, x"].mean(), 3)),
        Column("steps, x", lambda place: number(found.get_group(place)["steps, x"].mean(), 3)),
    ]
    note = f"Runs of {OURS} with parts left out or exchanged, compared with {OURS} on the same seeds. They are not ranked."
    return tables.table("ablations", "Parts of FibecFed", note, columns, sorted(found.groups))


def tuning(standings: Standings) -> Table:
    """Learning rates tried."""

    def trials(row: TuningRow) -> str:
        scores = ("diverged" if one.score is None else f"{of.factor * one.score:.{of.digits}f}" for one in row.tried)
        return ", ".join(f"{one.rate}{_server(one)}: {score}" for one, score in zip(row.tried, scores, strict=True))

    of = standings.comparison.scores
    rows = [(method, row) for method, row in standings.comparison.tuning.items() if row is not None]
    columns: list[Column] = [
        Column("method", lambda row: words(row[0])),
        Column("tried", lambda row: words(trials(row[1]) or None)),
        Column("chosen", lambda row: Cell("-") if row[1].chosen is None else Cell(f"{row[1].chosen:g}{_server(row[1])}", row[1].chosen)),
        Column("source of the centre", lambda row: words(row[1].source)),
    ]
    note = (
        f"Rates tried with their score on validation examples, {of.scale}the one chosen, and where the centre of the rates comes from. "
        "Server: the rate of the server's step that goes with it."
    )
    return tables.table("tuning", "Tuning", note, columns, rows)


def _server(row: RecordedTrial | TuningRow) -> str:
    """As in " (server 2.7)", of a trial or a choice with a server rate; "" without one."""
    rate = row.rates.get("method.server_learning_rate")
    return "" if rate is None else f" (server {rate:g})"


def runs(standings: Standings) -> Table:
    """Every run, raw."""
    of = standings.comparison.scores
    columns: list[Column] = [
        Column("task", lambda run: words(run.task)),
        Column("method", lambda run: words(run.method)),
        Column("seed", lambda run: number(run.seed, 0)),
        Column(of.head("personalised"), lambda run: score(run.last.personalised, of, 1)),
        Column(of.head("global"), lambda run: score(run.last.server, of, 1)),
        Column(of.head("worst decile"), lambda run: score(run.worst_decile, of)),
        Column("own metric x 100", lambda run: score(run.usual_personalised, ComparedMetric())),
        Column("metric", lambda run: words(run.usual)),
        Column("rounds", lambda run: number(run.last.rounds, 0)),
        Column("MB up", lambda run: megabytes(run.bytes_up)),
        Column("MB down", lambda run: megabytes(run.bytes_down)),
        Column("steps", lambda run: number(run.steps, 0)),
        Column("examples", lambda run: number(run.examples, 0)),
        Column("parameters of adapter and head", lambda run: number(run.trainable, 0)),
        Column("modelled time", lambda run: tables.seconds(run.last.seconds)),
        Column("measured time", lambda run: tables.seconds(run.measured_s)),
        Column("learning rate", lambda run: Cell(f"{run.conditions['learning_rate']:g}", run.conditions["learning_rate"])),
        Column("sources' time", lambda run: tables.seconds(run.source_s or None)),
        Column("sources' examples", lambda run: number(run.source_examples or None, 0)),
    ]
    note = (
        f"Every run as recorded. Own metric: the task's usual one where it is not {of.metric.title}. Modelled time is of all rounds; "
        "measured time is wall clock. Sources: what was trained beforehand on other tasks' data, counted nowhere else."
    )
    return tables.table("runs", "All runs", note, columns, standings.comparison.runs)
