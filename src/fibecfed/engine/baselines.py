"""What can be had without reading a text, and what a finished run has to say about it and about the models that it saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.metrics import Confusion
from ..core.records import EvalRecord
from ..core.units import count, percent

Parts = Mapping[str, Sequence[int]]
"""Part -> number of examples of each class, of one client."""

_CLEARLY = 0.01
"""By which the best validation score must be above the last one, beside one standard error, to be worth a word."""
_NAMED = 5
"""Clients that a sentence names."""


def majority(confusion: Confusion) -> float:
    """Accuracy of always predicting the most frequent class of the counted examples; NaN where there are none."""
    by_class = [sum(row) for row in confusion]
    return max(by_class) / sum(by_class) if any(by_class) else math.nan


def baselines(record: EvalRecord, partition: Mapping[str, Parts]) -> tuple[float, float]:
    """`majority` and `own_majority` of the clients that an evaluation counted: what its scores are compared with."""
    counted = [parts for client, parts in partition.items() if client in record.clients]
    return majority(record.pooled), own_majority(counted)


def own_majority(partition: Iterable[Parts]) -> float:
    """Pooled accuracy of clients that each answer the most frequent class of their own training examples, whatever the text.

    NaN where it is not known how the examples are spread.
    """
    parts = [part for part in partition if any(part["train"])]
    right = sum(part["test"][max(range(len(part["train"])), key=part["train"].__getitem__)] for part in parts)
    tested = sum(sum(part["test"]) for part in parts)
    return right / tested if tested else math.nan


def remarks(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of a finished run's scores must not overlook, a sentence each; empty where all is well.

    Args:
        summary: as in summary.json; one of version 0.1 has nothing to say.
    """
    saved = summary.get("saved")
    if saved is None:
        return []
    return [*_no_better(saved), *_clients_below(summary.get("clients", {})), *_better_round(summary["scores"], saved)]


def _no_better(saved: Mapping[str, Any]) -> list[str]:
    own = saved["majority"] if saved["own_majority"] is None else saved["own_majority"]
    of_own = "the most frequent class" if saved["own_majority"] is None else "each client's own most frequent class"
    lines = []
    for name, score, simple, what in (
        ("personalised", saved["pooled_personalised"], own, of_own),
        ("global", saved["global"], saved["majority"], "the most frequent class"),
    ):
        if score is not None and simple is not None and score <= simple and score < 1:
            than = "only equals" if score == simple else "is below"
            lines.append(f"The {name} score ({percent(score)}) {than} what always predicting {what} gives ({percent(simple)}).")
    if lines:
        lines.append("Try another training.learning_rate, more federation.rounds, or a larger data.max_length if texts are cut.")
    return lines


def _clients_below(clients: Mapping[str, Mapping[str, Any]]) -> list[str]:
    known = {name: one for name, one in clients.items() if one["accuracy"] is not None and one["majority"] is not None}
    below = sorted((name for name, one in known.items() if one["accuracy"] < one["majority"]), key=lambda name: _loss(known[name]))
    if not below:
        return []
    named = ", ".join(f"{name} ({percent(known[name]['accuracy'])} against {percent(known[name]['majority'])})" for name in below[:_NAMED])
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    verb = "scores" if len(below) == 1 else "score"
    return [f"{len(below)} of {count(len(known), 'client')} {verb} below their own most frequent class: {named}{more}."]


def _loss(client: Mapping[str, Any]) -> float:
    return client["accuracy"] - client["majority"]


def _better_round(scores: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """That another round than the saved one was clearly better by validation: at least a point and one standard error."""
    best = scores.get("best_by_validation")
    if best is None or best["rounds"] == saved["rounds"] or best["validation_examples"] != saved["validation_examples"]:
        return []
    gain = best["validation"] - saved["validation"]
    error = math.sqrt(best["validation"] * (1 - best["validation"]) / best["validation_examples"])
    if gain < max(_CLEARLY, error):
        return []
    return [
        f"The models of round {saved['rounds']} are saved, but those of round {best['rounds']} were better on the validation parts "
        f'({percent(best["validation"])} against {percent(saved["validation"])}): set evaluation.save = "best" to keep them.'
    ]
