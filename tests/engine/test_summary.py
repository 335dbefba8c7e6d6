"""summary.json from records alone, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sums import sums

from fibecfed.core.metrics import METRICS, offered_by
from fibecfed.core.records import EvalRecord, FailedAttempt, RoundRecord
from fibecfed.core.statistics import of_classes
from fibecfed.engine.summary import summarise

ACCURACY = METRICS["accuracy"]
OF_CLASSES = [metric.name for metric in offered_by(of_classes(2).zero)]
GOOD, FAIR, POOR = [[4, 1], [0, 5]], [[4, 1], [2, 3]], [[3, 2], [3, 2]]

GONE = (FailedAttempt(("a", "b"), {"a": 0, "b": 0}, {}, {"a": "gone", "b": "gone"}, ()),)


def round_record(number: int, clients: dict[str, int], **more: Any) -> RoundRecord:
    """Each client takes `steps` steps on four examples each."""
    fields: dict[str, Any] = {
        "phase": "tune", "index": number, "number": number, "cohort": tuple(clients),
        "bytes_down": dict.fromkeys(clients, 100), "bytes_up": dict.fromkeys(clients, 10),
        "fields_down": {}, "fields_up": {}, "steps": clients, "examples": {client: 4 * steps for client, steps in clients.items()},
        "loss": dict.fromkeys(clients, 0.5), "compute_s": dict.fromkeys(clients, 2.0), "failures": {}, "server": {},
        "seconds": 5.0, "cpu_s": 4.5,
    }  # fmt: skip
    return RoundRecord(**{**fields, **more})


def evaluation(rounds: int, pooled: Any, validation: Any, server: Any = POOR, clients: Any = None) -> EvalRecord:
    return EvalRecord(
        rounds=rounds, clients={name: sums(table, 0.1) for name, table in (clients or {"a": pooled}).items()}, pooled=sums(pooled, 0.1),
        pooled_validation=sums(validation), server=sums(server, 0.2), server_validation=sums(validation), bytes_down=1000, bytes_up=7,
        seconds=3.0,
    )  # fmt: skip


RECORDS = [
    evaluation(0, POOR, POOR, clients={"x": [[0, 0], [0, 0]]}),
    round_record(0, {"a": 0, "b": 0}, phase="importance"),
    round_record(1, {"a": 3, "b": 2}),
    evaluation(2, FAIR, GOOD),
    round_record(
        2, {"c": 1, "a": 1}, failures={"d": "gone"}, attempts=GONE, cohort=("a", "c", "d"), bytes_down={"a": 100, "c": 100, "d": 100}
    ),
    evaluation(3, GOOD, FAIR, FAIR),
]


def test_scores_are_of_the_last_round_with_the_best_by_validation_and_the_untrained_beside_them():
    scores = summarise(RECORDS, metric=ACCURACY, selected={})["scores"]
    assert (scores["rounds"], scores["pooled_personalised"], scores["global"], scores["worst_decile"]) == (3, 0.9, 0.7, 0.9)
    best = scores["best_by_validation"]
    assert (best["rounds"], best["pooled_personalised"], best["global"], best["validation"]) == (2, 0.7, 0.5, 0.9)
    assert scores["untrained"] == {"rounds": 0, "pooled_personalised": 0.5, "global": 0.5, "worst_decile": None}


def test_bytes_steps_and_seconds_are_sums_over_the_rounds_and_those_of_scoring_stand_apart():
    found = summarise(RECORDS, metric=ACCURACY, selected={"global_layers": [1]})
    assert (found["bytes_up"], found["bytes_down"]) == (6 * 10, 7 * 100)
    assert (found["steps"], found["examples"], found["rounds"]) == (7, 28, 3)
    assert (found["seconds"], found["cpu_s"], found["compute_s"]) == (15.0, 13.5, 12.0)
    assert found["evaluation"] == {"bytes_up": 21, "bytes_down": 3000, "seconds": 9.0, "clients": 1, "of": None}
    assert summarise([two(1, GOOD, GOOD)], metric=ACCURACY, selected={}, partition=PARTITION)["evaluation"]["of"] == 3
    assert (found["failures"], found["clients_that_took_part"]) == (3, 3)
    assert found["selected"] == {"global_layers": [1]}
    json.dumps(found)


def test_the_primary_metric_is_named_and_all_others_stand_beside_it():
    found = summarise(RECORDS, metric=METRICS["f1"], selected={})
    assert (found["metric"], found["higher_is_better"]) == ("f1", True)
    scores = found["scores"]
    assert scores["pooled_personalised"] == pytest.approx(10 / 11) and scores["global"] == pytest.approx(6 / 9)
    assert scores["best_by_validation"]["pooled_personalised"] == pytest.approx(6 / 9)
    assert (
        scores["metrics"]["personalised"] == {name: pytest.approx(METRICS[name].of(sums(GOOD, 0.1))) for name in OF_CLASSES}
        and scores["metrics"]["global"]["accuracy"] == 0.7
    )


def test_where_lower_is_better_the_lowest_is_the_best_by_validation_and_no_answer_without_a_text_is_known():
    found = summarise([two(1, GOOD, GOOD), two(2, POOR, POOR)], metric=METRICS["loss"], selected={}, partition=PARTITION)
    assert (found["metric"], found["higher_is_better"]) == ("loss", False)
    assert found["scores"]["pooled_personalised"] == pytest.approx(0.1)
    assert (found["scores"]["majority"], found["scores"]["own_majority"], found["clients"]["a"]["majority"]) == (None, None, None)


def test_a_classification_has_its_scores_by_class_and_its_confusion_matrix():
    found = summarise(RECORDS, metric=ACCURACY, selected={}, labels=("no", "yes"))["classes"]
    assert found["labels"] == ["no", "yes"] and found["personalised"]["confusion"] == GOOD and found["global"]["confusion"] == FAIR
    assert found["personalised"]["recall"] == [0.8, 1.0] and found["personalised"]["precision"] == [1.0, 5 / 6]
    assert found["global"]["f1"] == pytest.approx([8 / 11, 6 / 9])
    assert "classes" not in summarise(RECORDS, metric=ACCURACY, selected={})


def test_the_untrained_model_is_never_the_best_and_the_last_where_there_is_nothing_else():
    scores = summarise([evaluation(0, GOOD, GOOD), round_record(0, {"a": 1}), evaluation(1, POOR, POOR)], metric=ACCURACY, selected={})[
        "scores"
    ]
    assert scores["best_by_validation"]["rounds"] == 1
    assert summarise([evaluation(0, GOOD, GOOD)], metric=ACCURACY, selected={})["scores"]["rounds"] == 0


def test_without_validation_examples_nothing_is_the_best_by_them():
    none = [[0, 0], [0, 0]]
    found = summarise([evaluation(0, GOOD, none), evaluation(1, GOOD, none)], metric=ACCURACY, selected={})
    assert found["scores"]["best_by_validation"] is None


def test_records_without_a_score_are_refused():
    with pytest.raises(ValueError, match="no evaluation"):
        summarise([round_record(0, {"a": 1})], metric=ACCURACY, selected={})


PARTITION = {
    "a": {"train": [5, 1], "validation": [1, 1], "test": [5, 5]},
    "b": {"train": [9, 1], "validation": [0, 2], "test": [2, 8]},
    "absent": {"train": [3, 0], "validation": [0, 0], "test": [9, 0]},
}


def two(rounds: int, a: Any, b: Any, **more: Any) -> EvalRecord:
    pooled = [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]
    return replace(evaluation(rounds, pooled, pooled, clients={"a": a, "b": b}), **more)


def test_what_needs_no_text_stands_beside_the_scores_overall_and_for_each_client():
    right, wrong = [[2, 0], [0, 8]], [[0, 2], [8, 0]]
    found = summarise([two(1, GOOD, right), two(2, POOR, wrong)], metric=ACCURACY, selected={}, partition=PARTITION)
    scores = found["scores"]
    assert (scores["majority"], scores["own_majority"]) == (13 / 20, 7 / 20)  # of a and b alone, who were counted
    assert found["clients"] == {
        "a": {"test_examples": 10, "score": 0.5, "majority": 0.5},
        "b": {"test_examples": 10, "score": 0.0, "majority": 0.2},
    }
    best = summarise([two(1, GOOD, right), two(2, POOR, wrong)], metric=ACCURACY, selected={}, partition=PARTITION, saved=1)
    assert (best["saved"]["rounds"], best["saved"]["pooled_personalised"], best["scores"]["pooled_personalised"]) == (1, 0.95, 0.25)
    assert best["clients"]["b"]["score"] == 1.0


def test_a_server_that_knows_no_partition_has_the_majority_of_what_was_counted_and_no_clients_own():
    found = summarise([two(1, GOOD, GOOD)], metric=ACCURACY, selected={}, partition={"a": {"train": [0, 0], "test": [0, 0]}})
    assert (found["scores"]["majority"], found["scores"]["own_majority"]) == (0.5, None)
    assert found["clients"]["a"]["majority"] is None and found["clients"]["b"]["majority"] is None
    nothing = summarise([evaluation(1, [[0, 0], [0, 0]], [[0, 0], [0, 0]])], metric=ACCURACY, selected={})
    assert nothing["scores"]["majority"] is None
    json.dumps(nothing, allow_nan=False)
