"""What can be had without reading a text, and what a finished run has to say about it and about the models that it saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.metrics import METRICS, Metric, metric_named
from ..core.records import EvalRecord
from ..core.statistics import CONFUSION, Sums
from ..core.units import count

Parts = Mapping[str, Sequence[int]]
"""Part -> number of examples of each class, of one client."""

_CLEARLY = 0.01
"""By which the best validation score must be above the last one, beside one standard error, to be worth a word."""
_TRY = "try another training.learning_rate, more federation.rounds, or a larger data.max_length if texts are cut."
_NAMED = 5
"""Clients that a sentence names."""


def majority(sums: Sums, metric: Metric) -> float:
    """Score of always predicting the most frequent class of the counted examples; NaN where it does not follow from that."""
    by_class = [sum(row) for row in sums.get(CONFUSION, ())]
    return _always([(by_class, by_class)], metric)


def baselines(record: EvalRecord, partition: Mapping[str, Parts], metric: Metric) -> tuple[float, float]:
    """`majority` and `own_majority` of the clients that an evaluation counted: what its scores are compared with."""
    counted = [parts for client, parts in partition.items() if client in record.clients]
    return majority(record.pooled, metric), own_majority(counted, metric)


def own_majority(partition: Iterable[Parts], metric: Metric) -> float:
    """Pooled score of clients that each answer the most frequent class of their own training examples, whatever the text.

    NaN where it is not known how the examples are spread, or where the metric does not follow from predicted classes alone.
    """
    return _always([(part["test"], part["train"]) for part in partition if any(part["train"])], metric)


def _always(groups: Sequence[tuple[Sequence[int], Sequence[int]]], metric: Metric) -> float:
    """Score of answering one class in each group: the most frequent one of its second counts, on the examples of its first."""
    if not groups or metric.needs != (CONFUSION,):
        return math.nan
    confusion = [[0] * len(groups[0][0]) for _ in groups[0][0]]
    for counts, known in groups:
        answer = max(range(len(known)), key=known.__getitem__)
        for c, number in enumerate(counts):
            confusion[c][answer] += number
    return metric.of({CONFUSION: confusion})


def metric_of(summary: Mapping[str, Any]) -> Metric:
    """The primary metric of a summary; of one of version 0.1 accuracy."""
    return metric_named(summary.get("metric", "accuracy"), summary.get("classes", {}).get("labels", ()))


def other_scores(summary: Mapping[str, Any]) -> list[tuple[Metric, float | None, float | None]]:
    """The last round's scores of a run on answers under the metrics beside the primary one: of the clients' own models, of the global one.

    Nothing for classes, which have tables of their own.
    """
    found: Any = summary["scores"].get("metrics") or {}
    own, server = (found.get(name) or {} for name in ("personalised", "global"))
    if "token_accuracy" not in own and "token_accuracy" not in server:
        return []
    names = [name for name in METRICS if name != summary.get("metric") and (own.get(name) is not None or server.get(name) is not None)]
    return [(METRICS[name], own.get(name), server.get(name)) for name in names]


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of a finished run's scores must not overlook, a sentence each; empty where all is well.

    Args:
        summary: as in summary.json; one of version 0.1 has nothing to say.
    """
    saved = summary.get("saved")
    if saved is None:
        return []
    metric = metric_of(summary)
    scores = summary["scores"]
    return [
        *_of_some(summary.get("evaluation", {})),
        *(_no_better(saved, metric) or _no_better_than_untrained(saved, scores.get("untrained"), metric)),
        *_clients_below(summary.get("clients", {}), metric),
        *_better_round(scores, saved, metric),
        *(one["text"] for one in summary.get("stopped_early", {}).values()),
        *still_rising(summary.get("rising"), metric),
    ]


def _of_some(evaluation: Mapping[str, Any]) -> list[str]:
    asked, every = evaluation.get("clients"), evaluation.get("of")
    return [f"The scores are of {asked} of {every} clients and their test examples."] if asked and every and asked < every else []


def _no_better_than_untrained(saved: Mapping[str, Any], untrained: Mapping[str, Any] | None, metric: Metric) -> list[str]:
    """Also where no score follows from always predicting one class."""
    score, before = saved["pooled_personalised"], (untrained or {}).get("pooled_personalised")
    if score is None or before is None or not metric.better(before, score):
        return []
    return [f"The personalised score ({metric.text(score)}) is worse than before training ({metric.text(before)}): {_TRY}"]


def no_better(score: float | None, simple: float | None, metric: Metric) -> bool:
    """Whether a score does not beat that of a simple rule; a perfect one is nothing to complain of."""
    return score is not None and simple is not None and not metric.better(score, simple) and not (metric.unit == "%" and score == 1)


def _no_better(saved: Mapping[str, Any], metric: Metric) -> list[str]:
    own = saved["majority"] if saved["own_majority"] is None else saved["own_majority"]
    of_own = "the most frequent class" if saved["own_majority"] is None else "each client's own most frequent class"
    lines = []
    for name, score, simple, what in (
        ("personalised", saved["pooled_personalised"], own, of_own),
        ("global", saved["global"], saved["majority"], "the most frequent class"),
    ):
        if no_better(score, simple, metric):
            than = "only equals" if score == simple else "is worse than"
            lines.append(f"The {name} score ({metric.text(score)}) {than} what always predicting {what} gives ({metric.text(simple)}).")
    if lines:
        lines.append(f"{_TRY[0].upper()}{_TRY[1:]}")
    return lines


def _clients_below(clients: Mapping[str, Mapping[str, Any]], metric: Metric) -> list[str]:
    known = {name: one for name, one in clients.items() if one.get("score") is not None and one["majority"] is not None}
    below = [name for name, one in known.items() if metric.better(one["majority"], one["score"])]
    if not below:
        return []
    below.sort(key=lambda name: (-abs(known[name]["score"] - known[name]["majority"]), name))
    examples = (f"{name} ({metric.text(known[name]['score'])} against {metric.text(known[name]['majority'])})" for name in below[:_NAMED])
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    verb = "scores" if len(below) == 1 else "score"
    return [f"{len(below)} of {count(len(known), 'client')} {verb} worse than their own most frequent class: {', '.join(examples)}{more}."]


def rising(scored: Sequence[tuple[int, float, int]], metric: Metric) -> dict[str, Any] | None:
    """Whether the score was still getting better when training ended: the last evaluation is the best, and better than every one up to
    three quarters of the rounds by a point and one standard error, so that no single lucky evaluation decides.

    Args:
        scored: rounds, personalised score and number of examples of each evaluation of a trained model, in order; without a last local
            training, which is no further round.

    Returns:
        The two evaluations, or None.
    """
    if len(scored) < 2 or not math.isfinite(scored[-1][1]):
        return None
    rounds, last, examples = scored[-1]
    earlier = [(r, score) for r, score, _ in scored[:-1] if r <= 0.75 * rounds and math.isfinite(score)]
    others = [score for _, score, _ in scored[:-1] if math.isfinite(score)]
    if not earlier or any(metric.better(score, last) for score in others):
        return None
    best = max(earlier, key=lambda one: (one[1] if metric.higher_is_better else -one[1], one[0]))
    if not metric.better(last, best[1]) or abs(last - best[1]) < _noise(last, examples, metric):
        return None
    return {"rounds": rounds, "score": last, "before_rounds": best[0], "before": best[1]}


def _noise(score: float, examples: int, metric: Metric) -> float:
    """By how much a score must be better to be worth a word: of a share a point and one standard error."""
    return max(_CLEARLY, standard_error(score, examples, metric))


def standard_error(score: float, examples: int, metric: Metric) -> float:
    """Of a share as one of so many examples; of any other score a hundredth of it."""
    share = min(1.0, max(0.0, score))
    return math.sqrt(share * (1 - share) / max(1, examples)) if metric.unit == "%" else _CLEARLY * abs(score)


def still_rising(found: Mapping[str, Any] | None, metric: Metric) -> list[str]:
    """What `rising` found, as a sentence; nothing where it found nothing."""
    if not found:
        return []
    before, now = metric.text(found["before"]), metric.text(found["score"])
    return [
        f"The personalised score was still getting better when training ended ({before} after round {found['before_rounds']}, {now} after "
        f"round {found['rounds']}): with more federation.rounds or a larger training.learning_rate it may go on."
    ]


def _better_round(scores: Mapping[str, Any], saved: Mapping[str, Any], metric: Metric) -> list[str]:
    """That another round than the saved one was clearly better by validation: of a share at least a point and one standard error."""
    best = scores.get("best_by_validation")
    if best is None or best["rounds"] == saved["rounds"] or best["validation_examples"] != saved["validation_examples"]:
        return []
    gain = abs(best["validation"] - saved["validation"])
    share = min(1.0, max(0.0, best["validation"]))
    error = math.sqrt(share * (1 - share) / best["validation_examples"]) if metric.unit == "%" else _CLEARLY * abs(saved["validation"])
    if not metric.better(best["validation"], saved["validation"]) or gain < max(_CLEARLY, error):
        return []
    return [
        f"The models of round {saved['rounds']} are saved, but those of round {best['rounds']} were better on the validation parts "
        f'({metric.text(best["validation"])} against {metric.text(saved["validation"])}): set evaluation.save = "best" to keep them.'
    ]
