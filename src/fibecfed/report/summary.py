"""summary.json: scores, bytes, steps and seconds of a run, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.metrics import Metric
from ..core.records import EvalRecord, RoundRecord
from ..engine.evaluation import best_by_validation, scores


def summarise(records: Sequence[RoundRecord | EvalRecord], *, metric: Metric | None, selected: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a finished run.

    `bytes_up` and `bytes_down` are the lengths of all encoded messages of training and phase 1; evaluation's stand apart. `seconds` is the
    wall clock of the rounds, `cpu_s` the processor time of this process in them, `compute_s` the sum of the clients' own seconds.
    `failures` counts clients whose answer was not used, in every cohort that was asked.
    `best_by_validation` is None without validation examples.

    Args:
        selected: what the method chose.

    Raises:
        ValueError: no evaluation among the records.
    """
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    evaluations = [record for record in records if isinstance(record, EvalRecord)]
    if not evaluations:
        raise ValueError("the records hold no evaluation")
    trained = [record for record in evaluations if record.rounds > 0] or evaluations
    best = best_by_validation(trained)
    return {
        "scores": {
            **scores(trained[-1], metric),
            "best_by_validation": None if best is None else scores(best, metric),
            "untrained": scores(evaluations[0], metric),
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
    }
