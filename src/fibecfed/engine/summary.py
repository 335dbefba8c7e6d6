"""summary.json: scores, bytes, steps and seconds of a run, from its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.metrics import Metric, accuracy
from ..core.records import EvalRecord, RoundRecord
from .baselines import Parts, baselines, own_majority
from .evaluation import best_by_validation, scores


def summarise(
    records: Sequence[RoundRecord | EvalRecord],
    *,
    metric: Metric | None,
    selected: Mapping[str, Any],
    partition: Mapping[str, Parts] | None = None,
    saved: int | None = None,
) -> dict[str, Any]:
    """The numbers of a finished run.

    `scores` are those after the last round, `saved` those of the models that were saved, `clients` each client's own under them. `majority`
    is the accuracy of always predicting the most frequent class, `own_majority` that of each client answering its own most frequent one.
    `bytes_up` and `bytes_down` are the lengths of all encoded messages of training and phase 1; evaluation's stand apart. `seconds` is the
    wall clock of the rounds, `cpu_s` the CPU time of this process in them, `compute_s` the sum of the clients' own seconds.
    `failures` counts clients whose answer was not used, in every cohort that was asked.
    `best_by_validation` is None without validation examples.

    Args:
        selected: what the method chose.
        partition: client -> part -> number of examples of each class, as in the records' header; None: not known.
        saved: rounds after which the models were saved; None: the last.

    Raises:
        ValueError: no evaluation among the records.
    """
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    if not evaluations:
        raise ValueError("the records hold no evaluation")
    trained = [record for record in evaluations if record.rounds > 0] or evaluations
    last = trained[-1]
    best = best_by_validation(trained)
    kept = next((record for record in trained if record.rounds == saved), last)
    return {
        "scores": {
            **_scored(last, metric),
            **_baselines(last, partition),
            "best_by_validation": None if best is None else _scored(best, metric),
            "untrained": scores(evaluations[0], metric),
        },
        "saved": {
            **_scored(kept, metric),
            **_baselines(kept, partition),
            "rounds": saved or len(rounds),
        },
        "bytes_up": sum(sum(record.bytes_up.values()) for record in rounds),
        "bytes_down": sum(sum(record.bytes_down.values()) for record in rounds),
        "steps": sum(sum(record.steps.values()) for record in rounds),
        "examples": sum(sum(record.examples.values()) for record in rounds),
        "seconds": sum(record.seconds for record in rounds),
        "cpu_s": sum(record.cpu_s for record in rounds),
        "compute_s": sum(sum(record.compute_s.values()) for record in rounds),
        "evaluation": {
            "bytes_up": sum(record.bytes_up for record in evaluations),
            "bytes_down": sum(record.bytes_down for record in evaluations),
            "seconds": sum(record.seconds for record in evaluations),
        },
        "rounds": len(rounds),
        "failures": sum(len(one.failures) for record in rounds for one in (record, *record.attempts)),
        "clients_that_took_part": len({client for record in rounds for client in record.cohort if record.steps.get(client)}),
        "selected": dict(selected),
        "clients": {client: _of_client(counts, (partition or {}).get(client)) for client, counts in kept.clients.items()},
    }


def _scored(record: EvalRecord, metric: Metric | None) -> dict[str, Any]:
    """`scores`, with the accuracy that a round can be chosen by."""
    return {
        **scores(record, metric),
        "validation": _known(accuracy(record.pooled_validation)),
        "validation_examples": sum(map(sum, record.pooled_validation)),
    }


def _baselines(record: EvalRecord, partition: Mapping[str, Parts] | None) -> dict[str, float | None]:
    overall, own = baselines(record, partition or {})
    return {"majority": _known(overall), "own_majority": _known(own)}


def _of_client(counts: Sequence[Sequence[int]], parts: Parts | None) -> dict[str, Any]:
    return {
        "test_examples": sum(map(sum, counts)),
        "accuracy": _known(accuracy(counts)),
        "majority": None if parts is None else _known(own_majority([parts])),
    }


def _known(value: float) -> float | None:
    """None in place of NaN, which is no JSON."""
    return None if math.isnan(value) else value
