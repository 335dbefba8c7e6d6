"""What a comparison came to, in sentences with their numbers."""

from __future__ import annotations

import math

from .results import OURS, Comparison
from .standing import LORA_BOTH_FACTORS, Standings, Target, final, total_size
from .units import count


def what(comparison: Comparison) -> str:
    """One sentence: how many runs of what."""
    methods, tasks, seeds = comparison.methods, comparison.tasks, comparison.seeds
    more = f" and {count(len(comparison.ablations), 'variant')} of {OURS}" if comparison.ablations else ""
    of = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"{count(len(methods), 'method')}{more} on {count(len(tasks), 'task')}, {of}: {count(len(comparison.runs), 'run')}."


def verdict(standings: Standings) -> list[str]:
    """Rank, scores, bytes and time of FibecFed among the others; who is first in a comparison without it. Empty for a single method."""
    ranks = standings.ranks
    if len(ranks) < 2:
        return []
    if OURS not in ranks:
        first = next(iter(ranks))
        over = count(len(standings.targets), "task")
        return [f"{first} is first: mean rank {ranks[first].mean:.2f} of {len(ranks)} methods over {over}."]
    return [_rank(standings), *_scores(standings), _bytes(standings), *_race(standings)]


def _rank(standings: Standings) -> str:
    ranks = standings.ranks
    ours = ranks[OURS]
    place = sum(rank.mean < ours.mean for rank in ranks.values()) + 1
    other = next(method for method in ranks if method != OURS)
    place_of = "level with it" if ranks[other].mean == ours.mean else "next" if place == 1 else "first"
    return (
        f"{OURS} has mean rank {ours.mean:.2f} in the personalised score (95 % interval {ours.low:.1f} to {ours.high:.1f}): place {place} "
        f"of {len(ranks)} methods over {count(ours.tasks, 'task')}; {place_of} is {other} with {ranks[other].mean:.2f}."
    )


def _scores(standings: Standings) -> list[str]:
    lines = []
    for name, of in (("personalised", lambda run: run.last.personalised), ("global", lambda run: run.last.server)):
        means = {method: 100 * mean for method in standings.ranks if not math.isnan(mean := standings.mean(method, of))}
        if OURS not in means or len(means) < 2:
            continue
        other = max((method for method in means if method != OURS), key=lambda method: means[method])
        gap = means[OURS] - means[other]
        side = "above" if gap >= 0 else "below"
        lines.append(
            f"Its {name} score is {means[OURS]:.1f} % as a mean over tasks, {abs(gap):.1f} points {side} the best other ({other})."
        )
    return lines


def _bytes(standings: Standings) -> str:
    size = {method: standings.mean(method, total_size) for method in standings.ranks}
    same = {method: value for method, value in size.items() if method in LORA_BOTH_FACTORS}
    fewest = min(same, key=lambda method: same[method])
    text = f"It sends {size[OURS] / 1e6:.1f} MB a run"
    if len(same) > 1:
        of = f"of the {len(same)} methods that train LoRA everywhere and average both factors"
        text += f", the fewest {of}" if fewest == OURS else f", {size[OURS] / same[fewest]:.2f} times the fewest {of} ({fewest}'s)"
    fewer = [method for method in size if size[method] < size[OURS]]
    return text + (f"; fewer are sent by {', '.join(fewer)}." if fewer else "; nobody sends fewer.")


def _race(standings: Standings) -> list[str]:
    races = standings.counted
    if not races:
        return ["No task counts for targets: nowhere is the best method 5 points above the majority class."]
    reached = sum(standings.reaches(one.task, OURS) for one in races)
    wins = {method: sum(method in standings.first(one.task) for one in races) for method in standings.ranks}
    other = max((method for method in wins if method != OURS), key=lambda method: wins[method])
    text = f"It reaches the target on {reached} of {count(len(races), 'counted task')} and is first, in modelled time, on {wins[OURS]}"
    text += f"; of the others {other} is first most often, on {wins[other]}." if wins[other] else "; nobody else is first anywhere."
    ratio = standings.relative_seconds("lora") if "lora" in standings.ranks else None
    return [text] if ratio is None else [text, f"Where both get there, lora takes {ratio:.2f} times its modelled time (geometric mean)."]


def defeats(standings: Standings) -> list[str]:
    """Where FibecFed loses, a sentence a kind of loss; empty without FibecFed or others."""
    if OURS not in standings.ranks or len(standings.ranks) < 2:
        return []
    lines = []
    if behind := [part for task in standings.targets if (part := _ahead(standings, task))]:
        of = count(len(standings.targets), "task")
        lines.append(f"Another method has the higher personalised score on {len(behind)} of {of}: {', '.join(behind)}.")
    if lost := [_lost(standings, one) for one in standings.counted if OURS not in standings.first(one.task)]:
        of = count(len(standings.counted), "counted task")
        lines.append(f"It is not the first to the target on {len(lost)} of {of}: {', '.join(lost)}.")
    return lines or ["Nowhere here: it has the highest personalised score on every task and is first to every counted target."]


def _ahead(standings: Standings, task: str) -> str | None:
    """The best method ahead on a task and by how much; None where there is none."""
    comparison, ours = standings.comparison, final(standings.comparison, task, OURS)
    if ours is None:
        return None
    gaps = {m: 100 * (found.mean - ours.mean) for m in standings.ranks if (found := final(comparison, task, m)) and found.mean > ours.mean}
    if not gaps:
        return None
    best = max(gaps, key=lambda method: gaps[method])
    others = len(gaps) - 1
    return f"{task} ({best} by {gaps[best]:.1f} points{f', and {others} more' if others else ''})"


def _lost(standings: Standings, one: Target) -> str:
    first = ", ".join(standings.first(one.task)) or "nobody"
    never = "" if standings.reaches(one.task, OURS) else f", {OURS} never gets there"
    return f"{one.task} ({first} first{never})"
