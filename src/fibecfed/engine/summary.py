"""summary.json: scores, bytes, steps and seconds of a run, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.metrics import Metric, f1, offered_by, precision, recall
from ..core.records import EvalRecord, RoundRecord
from ..core.statistics import CONFUSION, Sums, number_of_examples
from .advice import advice
from .baselines import Parts, baselines, own_majority, rising
from .evaluation import best_by_validation, every_score, known, scores

LAST_TRAINING = "finetune"
"""The phase after which scores are those of models that clients trained for themselves: no point on the curve of the rounds."""


def summarise(
    records: Sequence[RoundRecord | EvalRecord],
    *,
    metric: Metric,
    selected: Mapping[str, Any],
    labels: Sequence[str] = (),
    partition: Mapping[str, Parts] | None = None,
    saved: int | None = None,
) -> dict[str, Any]:
    """The numbers of a finished run.

    `scores` are those after the last round under the primary metric, with all others in `scores.metrics`; `saved` those of the models that
    were saved, `clients` each client's own under them, `classes` the scores by class and the confusion matrices (true class as row).
    `majority` is the score of always predicting the most frequent class, `own_majority` that of each client answering its own most frequent
    one; None where the metric does not follow from predicted classes alone.
    `bytes_up` and `bytes_down` are the lengths of all encoded messages of training and phase 1; evaluation's stand apart. `seconds` is the
    wall clock of the rounds, `cpu_s` the CPU time of this process in them, `compute_s` the sum of the clients' own seconds.
    `virtual_s`, where time is modelled, is the virtual time at the end of the last round.
    `evaluation.clients` of `evaluation.of` clients are those that the scores are of.
    `failures` counts clients whose answer was not used, in every cohort that was asked.
    `best_by_validation` is None without validation examples. `advice` says which method to try on such clients, `rising` whether the
    score was still getting better at the end.

    Args:
        metric: the primary one.
        selected: what the method chose.
        labels: names of the classes.
        partition: client -> part -> number of examples of each class, as in the records' header; None: not known.
        saved: rounds after which the models were saved; None: the last.

    Raises:
        ValueError: no evaluation among the records.
    """
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    if not evaluations:
        raise ValueError("the records contain no evaluation")
    trained = [record for record in evaluations if record.rounds > 0] or evaluations
    last = trained[-1]
    best = best_by_validation(trained, metric)
    kept = next((record for record in trained if record.rounds == saved), last)
    return {
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "scores": {
            **_scored(last, metric),
            **_baselines(last, partition, metric),
            "metrics": every_score(last, offered_by(last.pooled)),
            "best_by_validation": None if best is None else _scored(best, metric),
            "untrained": scores(evaluations[0], metric),
        },
        "saved": {
            **_scored(kept, metric),
            **_baselines(kept, partition, metric),
            "rounds": saved or len(rounds),
        },
        "advice": advice((partition or {}).values()),
        "rising": rising(_scored_rounds(trained, rounds, metric), metric),
        "bytes_up": sum(sum(record.bytes_up.values()) for record in rounds),
        "bytes_down": sum(sum(record.bytes_down.values()) for record in rounds),
        "steps": sum(sum(record.steps.values()) for record in rounds),
        "examples": sum(sum(record.examples.values()) for record in rounds),
        "seconds": sum(record.seconds for record in rounds),
        "cpu_s": sum(record.cpu_s for record in rounds),
        "compute_s": sum(sum(record.compute_s.values()) for record in rounds),
        **({"virtual_s": max(times)} if (times := [record.virtual_s for record in rounds if record.virtual_s is not None]) else {}),
        "evaluation": {
            "bytes_up": sum(record.bytes_up for record in evaluations),
            "bytes_down": sum(record.bytes_down for record in evaluations),
            "seconds": sum(record.seconds for record in evaluations),
            "clients": len(kept.clients),
            "of": len(partition) if partition else None,
        },
        "rounds": len(rounds),
        "failures": sum(len(one.failures) for record in rounds for one in (record, *record.attempts)),
        "clients_that_took_part": len({client for record in rounds for client, steps in record.steps.items() if steps}),
        "selected": dict(selected),
        "clients": {client: _of_client(sums, (partition or {}).get(client), metric) for client, sums in kept.clients.items()},
        **_classes(kept, labels),
    }


def _scored_rounds(trained: Sequence[EvalRecord], rounds: Sequence[RoundRecord], metric: Metric) -> list[tuple[int, float, int]]:
    """Rounds, personalised score and examples of the evaluations, without those behind a last local training."""
    alone = {record.number + 1 for record in rounds if record.phase == LAST_TRAINING}
    return [
        (one.rounds, metric.of(one.pooled), number_of_examples(one.pooled)) for one in trained if one.rounds > 0 and one.rounds not in alone
    ]


def _scored(record: EvalRecord, metric: Metric) -> dict[str, Any]:
    """`scores`, with the one that a round can be chosen by."""
    return {
        **scores(record, metric),
        "validation": known(metric.of(record.pooled_validation)),
        "validation_examples": number_of_examples(record.pooled_validation),
    }


def _baselines(record: EvalRecord, partition: Mapping[str, Parts] | None, metric: Metric) -> dict[str, float | None]:
    overall, own = baselines(record, partition or {}, metric)
    return {"majority": known(overall), "own_majority": known(own)}


def _of_client(sums: Sums, parts: Parts | None, metric: Metric) -> dict[str, Any]:
    return {
        "test_examples": number_of_examples(sums),
        "score": known(metric.of(sums)),
        "majority": None if parts is None else known(own_majority([parts], metric)),
    }


def _classes(record: EvalRecord, labels: Sequence[str]) -> dict[str, Any]:
    """Scores by class, in the order of the labels; nothing where the classes have no names."""
    if not labels:
        return {}
    table: dict[str, Any] = {"labels": list(labels)}
    for whose, sums in (("personalised", record.pooled), ("global", record.server)):
        confusion = sums[CONFUSION]
        by_class = {name: [known(of(confusion, c)) for c in range(len(confusion))] for name, of in _BY_CLASS.items()}
        table[whose] = {**by_class, "confusion": confusion}
    return {"classes": table}


_BY_CLASS = {"precision": precision, "recall": recall, "f1": f1}
