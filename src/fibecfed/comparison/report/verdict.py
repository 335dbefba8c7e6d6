"""What a comparison came to, in sentences with their numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ...core.units import count
from .conditions import unlike
from .results import OURS, ComparisonResults
from .scores import SHOWN, ComparedMetric
from .standing import ALONE, COUNTED_FROM, SLACK, Frame, Rank, Standings, Target

WITHIN = 1.02
"""Up to this factor FibecFed's bytes are said to be about the fewest."""
_SCORES = ("personalised", "global")


def what(comparison: ComparisonResults) -> str:
    """One sentence: how many runs of what."""
    methods, tasks, seeds = comparison.methods, comparison.tasks, comparison.seeds
    more = f" and {count(len(comparison.ablations), 'variant')} of {OURS}" if comparison.ablations else ""
    of = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{count(len(methods), 'method')}{more} on {count(len(tasks), 'task')}, {of}: {count(len(comparison.runs), 'run')}."


def verdict(standings: Standings) -> list[str]:
    """Rank, scores, bytes and time of FibecFed among the others, over the tasks that it ran on; two methods are compared on those of both.

    Before all that a warning where settings differ between methods on a task. Who is first in a comparison without FibecFed. Empty for a
    single method.
    """
    ranks = standings.ranks
    if len(ranks) < 2:
        return []
    if OURS not in ranks:
        return [*unlike(standings.comparison), _first(ranks), *_rising(standings.comparison)]
    here = standings.of_ours
    if len(here.ranks) < 2:
        return [f"{OURS} and the other methods have no task in common, so they cannot be compared."]
    return [
        *unlike(here.comparison),
        _rank(here),
        *_scores(here),
        *_priors(here),
        _bytes(here),
        *_race(here),
        *_left_out(standings),
        *_rising(standings.comparison),
    ]


def _first(ranks: Mapping[str, Rank]) -> str:
    """Who is first of methods without FibecFed, all of them that tie."""
    best = next(iter(ranks.values()))
    first = [method for method, rank in ranks.items() if f"{rank.mean:.2f}" == f"{best.mean:.2f}"]
    over = {count(ranks[method].tasks, "task") for method in first}
    where = f"over {over.pop()}" if len(over) == 1 else "each over the tasks that it ran on"
    if len(first) == len(ranks):
        return f"All {len(ranks)} methods are level: mean rank {best.mean:.2f} {where}."
    who = f"{first[0]} is first" if len(first) == 1 else f"{', '.join(first[:-1])} and {first[-1]} share the first place"
    return f"{who}: mean rank {best.mean:.2f} of {len(ranks)} methods {where}."


def _rising(comparison: ComparisonResults) -> list[str]:
    """Whose scores were still getting better when training ended, so that more rounds might change the order."""
    methods = [*comparison.methods, *comparison.ablations]
    runs = {method: [run for run in comparison.runs if run.method == method] for method in methods}
    still = {method: sum(run.rising for run in own) for method, own in runs.items()}
    named = [f"{method} ({number} of {count(len(runs[method]), 'run')})" for method, number in still.items() if number]
    if not named:
        return []
    return [f"Still getting better when training ended, so that more rounds may bring more: {', '.join(named)}."]


def _others(standings: Standings) -> list[str]:
    return [method for method in standings.ranks if method != OURS]


def _rank(standings: Standings) -> str:
    ranks = standings.ranks
    ours = ranks[OURS]
    text = f"{OURS} has mean rank {ours.mean:.2f} in the personalised score (95 % interval {ours.low:.1f} to {ours.high:.1f})"
    tasks = count(ours.tasks, "task")
    whole = {method: rank for method, rank in ranks.items() if rank.tasks == ours.tasks}
    other = next((method for method in whole if method != OURS), None)
    if other is None:
        return f"{text} over {tasks}; no other method ran on all of them."
    place = sum(rank.mean < ours.mean for rank in whole.values()) + 1
    place_of = "level with it" if whole[other].mean == ours.mean else "next" if place == 1 else "first"
    of = f"{len(ranks)} methods over {tasks}" if len(whole) == len(ranks) else f"the {len(whole)} methods that ran on the same {tasks}"
    return f"{text}: place {place} of {of}; {place_of} is {other} with {whole[other].mean:.2f}."


def _gains(standings: Standings, measure: str) -> Frame:
    """By how much FibecFed's mean is better than each other method's: methods x tasks, NaN where one of the two has none."""
    means = standings.means(measure).reindex(index=[OURS, *_others(standings)], columns=pd.Index(standings.targets))
    return standings.comparison.scores.sign * (means.loc[OURS] - means).drop(OURS)


def _scores(standings: Standings) -> list[str]:
    lines, of = [], standings.comparison.scores
    for name in _SCORES:
        gains = _gains(standings, name).dropna(how="all")
        if gains.empty:
            continue
        gaps, both = gains.mean(axis=1), gains.notna().sum(axis=1)
        other = str(gaps.idxmin())
        gap = round(gaps[other], SHOWN)
        apart = f"{of.difference(gap)} {of.above if gap > 0 else of.below}" if gap else "level with"
        score = of.text(standings.mean(OURS, name))
        where = "" if both[other] == len(standings.targets) else f", over {count(int(both[other]), 'task')} that both ran on"
        lines.append(f"Its {name} score is {score} as a mean over tasks, {apart} the best other ({other}){where}.")
    return lines


def _priors(standings: Standings) -> list[str]:
    """Where a personal score says more about how labels are spread than about texts."""
    of = standings.comparison.scores
    known = [(one, one.prior) for one in standings.targets.values() if one.prior is not None]
    near = [(one, prior) for one, prior in known if of.sign * (one.best_score - prior) < COUNTED_FROM - SLACK]
    if not near:
        return []
    tasks = ", ".join(f"{one.task} ({of.text(prior)})" for one, prior in near)
    return [
        f"On {len(near)} of {count(len(known), 'task')} no method beats the per-client majority baseline (each client predicts the most "
        f"frequent class of its own training examples) by {of.round(COUNTED_FROM)}: {tasks}. There the personalised score reflects how "
        "labels are spread, not how well texts are classified."
    ]


def _bytes(standings: Standings) -> str:
    times = _times_the_bytes(standings)
    same = {method: value for method, value in times.items() if standings.whole_lora(method)}
    text = f"It sends {standings.mean(OURS, 'bytes') / 1e6:.1f} MB per run"
    if same:
        fewest = max(same, key=lambda method: same[method])
        of = f"of the {len(same) + 1} methods that train LoRA of one rank on all adapted layers and average both factors"
        within = "within" if same[fewest] <= WITHIN else "not within"
        more = f", {same[fewest]:.3f} times the fewest {of} ({fewest}'s), {within} {100 * (WITHIN - 1):.0f} %"
        text += f", the fewest {of}" if same[fewest] <= 1 else more
    fewer = [method for method, value in times.items() if value > 1]
    return text + (f"; fewer are sent by {', '.join(fewer)}." if fewer else "; no method sends fewer.")


def _times_the_bytes(standings: Standings) -> dict[str, float]:
    """Other method -> FibecFed's bytes over its own, on all tasks of both together; without the method that does not federate."""
    means, found = standings.means("bytes"), {}
    for method in _others(standings):
        ours, other = means.loc[[OURS, method]].dropna(axis=1).sum(axis=1)
        if method != ALONE and other:
            found[method] = float(ours / other)
    return found


def _race(standings: Standings) -> list[str]:
    races = standings.counted
    if not races:
        of = standings.comparison.scores
        return [f"No task counts for targets: nowhere is the best method {of.round(COUNTED_FROM)} {of.above} the {of.base}."]
    reached = sum(standings.reaches(one.task, OURS) for one in races)
    wins = {method: sum(method in standings.first(one.task) for one in races) for method in standings.ranks}
    most = max(wins[method] for method in _others(standings))
    others = [method for method in _others(standings) if wins[method] == most]
    text = f"It reaches the target on {reached} of {count(len(races), 'counted task')} and is first, in modelled time, on {wins[OURS]}"
    if not most:
        text += "; no other method is first on any task."
    elif len(others) == 1:
        text += f"; of the others {others[0]} is first most often, on {most}."
    else:
        text += f"; of the others {', '.join(others)} are first most often, on {most} each."
    ratio = standings.relative_seconds("lora") if "lora" in standings.ranks else None
    return [text] if ratio is None else [text, f"Where both reach it, lora takes {ratio:.2f} times its modelled time (geometric mean)."]


def _left_out(standings: Standings) -> list[str]:
    """What the sentences above are not about."""
    here, lines = standings.of_ours, []
    if missed := [task for task in standings.targets if task not in here.targets]:
        lines.append(f"All this leaves out {count(len(missed), 'task')} on which {OURS} has no result: {', '.join(missed)}.")
    if partly := [method for method in standings.ranks if method not in here.ranks or here.ranks[method].tasks < here.ranks[OURS].tasks]:
        lines.append(f"Compared only on those of its tasks that they have results on: {', '.join(partly)}.")
    return lines


def defeats(standings: Standings) -> list[str]:
    """Where FibecFed loses, a sentence per kind of loss: scores, time to the target, bytes; empty without FibecFed or others."""
    here = standings.of_ours
    if OURS not in here.ranks or len(here.ranks) < 2:
        return []
    lost, won, of = [], [], here.comparison.scores
    for name in _SCORES:
        gains = _gains(here, name).dropna(axis=1, how="all").round(SHOWN)
        if behind := [_ahead(task, gains[task], of) for task in gains if (gains[task] < 0).any()]:
            where = f"{len(behind)} of {count(len(gains.columns), 'task')}: {', '.join(behind)}"
            lost.append(f"Another method has the {of.higher} {name} score on {where}.")
        elif len(gains.columns):
            won.append(f"no method has a {of.higher} {name} score on any")
    races = [one for one in here.counted if here.first(one.task)]  # a target that nobody reaches is no loss to anyone
    if late := [_late(here, one) for one in races if OURS not in here.first(one.task)]:
        of_them = count(len(races), "counted task")
        lost.append(f"It is not the first to the target on {len(late)} of {of_them}: {', '.join(late)}.")
    elif races:
        won.append("no method reaches a counted target earlier")
    sent = _times_the_bytes(here)
    if fewer := [method for method in sent if sent[method] > 1]:
        best = max(fewer, key=lambda method: sent[method])
        times = f"{sent[best]:.{3 if sent[best] < 1.1 else 1}f}"  # so that hardly more is not read as the same
        verb, fewest = ("sends", ",") if len(fewer) == 1 else ("send", ", the fewest")
        of_them = count(len(sent), "other method")
        lost.append(f"{len(fewer)} of {of_them} {verb} fewer bytes in total{fewest} {best}: {OURS} sends {times} times as many.")
    elif sent:
        won.append("no method sends fewer bytes in total")
    return lost or [f"Nowhere on its {count(len(here.targets), 'task')}: {', '.join(won)}."]


def _ahead(task: str, gains: Frame, of: ComparedMetric) -> str:
    """The best method ahead on a task and by how much."""
    others = int((gains < 0).sum()) - 1
    return f"{task} ({gains.idxmin()} by {of.difference(gains.min())}{f', and {others} more' if others else ''})"


def _late(standings: Standings, one: Target) -> str:
    first = ", ".join(standings.first(one.task))
    never = "" if standings.reaches(one.task, OURS) else f", {OURS} never reaches it"
    return f"{one.task} ({first} first{never})"
