"""What a finished run says of its scores."""

from __future__ import annotations

from typing import Any

import pytest

from fibecfed.core.metrics import METRICS
from fibecfed.engine.baselines import remarks, rising
from fibecfed.finish import summaries


def summary(
    saved: dict[str, Any] | None = None, best: dict[str, Any] | None = None, clients: dict[str, Any] | None = None
) -> dict[str, Any]:
    scores = {
        "rounds": 12, "pooled_personalised": 0.8, "global": 0.7, "majority": 0.6, "own_majority": 0.65, "validation": 0.75,
        "validation_examples": 400,
    }  # fmt: skip
    return {"scores": {**scores, "best_by_validation": best}, "saved": {**scores, **(saved or {})}, "clients": clients or {}}


def test_scores_above_what_needs_no_text_are_not_remarked_on():
    assert remarks(summary()) == []
    assert remarks({"scores": {}}) == []  # of version 0.1


@pytest.mark.parametrize(
    ("saved", "sentence"),
    [
        (
            {"pooled_personalised": 0.639},
            "personalised score (63.9 %) is worse than what always predicting each client's own most frequent class",
        ),
        ({"pooled_personalised": 0.65}, "The personalised score (65.0 %) only equals what always predicting each client's own"),
        ({"global": 0.588}, "The global score (58.8 %) is worse than what always predicting the most frequent class gives (60.0 %)."),
        ({"own_majority": None, "pooled_personalised": 0.59}, "worse than what always predicting the most frequent class gives (60.0 %)"),
    ],
)
def test_a_score_that_needs_no_text_is_said_plainly_with_what_to_try(saved: dict[str, Any], sentence: str):
    first, advice = remarks(summary(saved))
    assert sentence in first and "training.learning_rate" in advice


def test_what_cannot_be_known_or_bettered_is_not_remarked_on():
    assert remarks(summary({"global": None, "majority": None, "own_majority": None})) == []
    assert remarks(summary({"pooled_personalised": 1.0, "own_majority": 1.0})) == []


def test_clients_below_their_own_most_frequent_class_are_named_the_worst_first():
    clients = {f"{n}": {"test_examples": 10, "score": 0.5 - n / 100, "majority": 0.5} for n in range(8)}
    clients["none"] = {"test_examples": 0, "score": None, "majority": None}
    (text,) = remarks(summary(clients=clients))
    assert text.startswith("7 of 8 clients score worse than their own most frequent class: 7 (43.0 % against 50.0 %), 6 (")
    assert "and 2 more" in text


def test_scores_of_a_sample_of_the_clients_are_said_to_be_such():
    assert remarks({**summary(), "evaluation": {"clients": 2, "of": 3}}) == ["The scores are of 2 of 3 clients and their test examples."]
    assert (
        remarks({**summary(), "evaluation": {"clients": 3, "of": 3}})
        == remarks({**summary(), "evaluation": {"clients": 3, "of": None}})
        == []
    )


def test_a_model_that_training_made_worse_is_said_to_be_so_whatever_the_metric():
    found = summary({"pooled_personalised": 4.7, "global": 4.2, "majority": None, "own_majority": None})
    found |= {"metric": "loss", "scores": {**found["scores"], "untrained": {"pooled_personalised": 1.106}}}
    (text,) = remarks(found)
    assert text.startswith(
        "The personalised score (4.700 nat) is worse than before training (1.106 nat): try another training.learning_rate"
    )
    found["saved"]["pooled_personalised"] = 1.0
    assert remarks(found) == []


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ({"rounds": 7, "validation": 0.80, "validation_examples": 400}, True),
        ({"rounds": 7, "validation": 0.76, "validation_examples": 400}, False),  # within one standard error
        ({"rounds": 12, "validation": 0.80, "validation_examples": 400}, False),
        ({"rounds": 7, "validation": 0.80, "validation_examples": 300}, False),  # of other clients
    ],
)
def test_a_round_that_was_clearly_better_is_named_with_the_key_to_set(best: dict[str, Any], said: bool):
    found = remarks(summary(best=best))
    assert found == (
        [
            "The models of round 12 are saved, but those of round 7 were better on the validation parts (80.0 % against 75.0 %): "
            'set evaluation.save = "best" to keep them.'
        ]
        if said
        else []
    )


@pytest.mark.parametrize(
    ("scores", "is_said"),
    [
        ([0.5, 0.6, 0.7, 0.8], True),
        ([0.5, 0.7, 0.8, 0.8], False),
        ([0.5, 0.81, 0.7, 0.8], False),  # not the best
        ([0.5, 0.6, 0.795, 0.8], False),  # flat since three quarters of the rounds
        ([0.8], False),
        ([0.5, float("nan")], False),
    ],
)
def test_a_score_that_still_gets_better_when_training_ends_is_said_to(scores: list[float], is_said: bool):
    found = rising([(5 * n, score, 1000) for n, score in enumerate(scores, start=1)], METRICS["accuracy"])
    assert (found is not None) == is_said
    said = remarks({**summary(), "rising": found})
    assert len(said) == is_said
    if is_said:
        assert "80.0 % after round 20" in said[0] and "after round 15" in said[0] and "federation.rounds" in said[0]


def test_the_noise_of_few_examples_is_not_taken_for_a_rise():
    assert rising([(1, 0.75, 100), (2, 0.78, 100)], METRICS["accuracy"]) is None
    assert rising([(1, 0.75, 10_000), (2, 0.78, 10_000)], METRICS["accuracy"]) is not None


def test_a_lower_loss_is_better():
    assert rising([(1, 0.9, 10), (2, 0.5, 10)], METRICS["loss"]) is not None
    assert rising([(1, 0.5, 10), (2, 0.9, 10)], METRICS["loss"]) is None


def test_a_client_is_told_its_own_scores_and_nobody_elses():
    told = summaries({"method": "lora", "clients": {"a": {"score": 0.1}, "b": {"score": 0.9}}})
    assert told("a") == {"method": "lora", "client": {"score": 0.1}} and told("c")["client"] is None
