"""Scores from counts, against the same scores from lists of labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sums import sums, totals

from fibecfed.core.errors import UserError
from fibecfed.core.metrics import METRICS, Metric, accuracy, f1, matthews, metric_named, offered_by, precision, primary, recall
from fibecfed.core.statistics import added, class_sums, of_classes, plain


def labelled(num_classes: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1)), min_size=1, max_size=40)


def confusion(pairs: list[tuple[int, int]], num_classes: int) -> list[list[int]]:
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for true, predicted in pairs:
        matrix[true][predicted] += 1
    return matrix


@given(labelled(4))
def test_accuracy_is_the_share_of_examples_predicted_right(pairs: list[tuple[int, int]]) -> None:
    assert accuracy(confusion(pairs, 4)) == pytest.approx(np.mean([true == predicted for true, predicted in pairs]))


@given(labelled(2))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    hits = sum(true == predicted == 1 for true, predicted in pairs)
    positives = sum(true for true, _ in pairs)
    claimed = sum(predicted for _, predicted in pairs)
    precision, recall = (hits / claimed if claimed else 0.0), (hits / positives if positives else 0.0)
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert f1(confusion(pairs, 2)) == pytest.approx(expected)


@given(labelled(3))
def test_matthews_is_the_correlation_of_one_hot_labels(pairs: list[tuple[int, int]]) -> None:
    true = np.eye(3)[[t for t, _ in pairs]]
    predicted = np.eye(3)[[p for _, p in pairs]]

    def covariance(x: np.ndarray, y: np.ndarray) -> float:
        return float(((x - x.mean(0)) * (y - y.mean(0))).sum())

    spread = covariance(true, true) * covariance(predicted, predicted)
    expected = covariance(true, predicted) / math.sqrt(spread) if spread > 1e-12 else 0.0
    assert matthews(confusion(pairs, 3)) == pytest.approx(expected, abs=1e-12)


@given(labelled(2))
def test_matthews_of_two_classes_is_pearsons_correlation(pairs: list[tuple[int, int]]) -> None:
    (tn, fp), (fn, tp) = confusion(pairs, 2)
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert matthews([[tn, fp], [fn, tp]]) == pytest.approx((tp * tn - fp * fn) / math.sqrt(spread) if spread else 0.0)


@given(labelled(3))
def test_scores_by_class_are_shares_of_what_is_true_and_of_what_is_predicted(pairs: list[tuple[int, int]]) -> None:
    for c in range(3):
        hits, true, predicted = (sum(of) for of in zip(*((t == p == c, t == c, p == c) for t, p in pairs), strict=True))
        assert precision(confusion(pairs, 3), c) == (hits / predicted if predicted else 0.0)
        assert recall(confusion(pairs, 3), c) == (hits / true if true else 0.0)
        assert f1(confusion(pairs, 3), c) == pytest.approx(2 * hits / (true + predicted) if true + predicted else 0.0)


@given(labelled(3))
def test_macro_scores_give_each_class_that_occurs_the_same_weight(pairs: list[tuple[int, int]]) -> None:
    matrix = confusion(pairs, 3)
    there = sorted({c for pair in pairs for c in pair})
    for name, of in (("macro_f1", f1), ("macro_precision", precision), ("macro_recall", recall)):
        assert METRICS[name].of(sums(matrix)) == pytest.approx(np.mean([of(matrix, c) for c in there]))


@given(st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 2)), max_size=30), st.integers(0, 30))
def test_sums_of_parts_add_up_and_scores_are_those_of_the_examples(rows: list[Any], cut: int) -> None:
    zero = of_classes(3).zero

    def of(some: list[Any]) -> dict[str, torch.Tensor]:
        return class_sums(torch.tensor([row[:3] for row in some]).view(-1, 3), torch.tensor([row[3] for row in some], dtype=torch.int64))

    parts = added((of(some) for some in (rows[:cut], rows[cut:])), zero)
    whole = plain(added([of(rows)], zero))
    assert parts["confusion"].tolist() == whole["confusion"]
    assert float(parts["nll"]) == pytest.approx(whole["nll"], abs=1e-4) and np.allclose(parts["calibration"], whole["calibration"])
    if not rows:
        assert all(math.isnan(metric.of(whole)) for metric in METRICS.values())
        return
    logits, labels = np.array([row[:3] for row in rows], dtype=np.float64), [row[3] for row in rows]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert METRICS["loss"].of(whole) == pytest.approx(-np.mean([math.log(p[i, c]) for i, c in enumerate(labels)]), abs=1e-4)
    top = torch.tensor([row[:3] for row in rows]).argmax(1).numpy()
    error = 0.0
    for b in range(15):  # expected calibration error as Guo et al. define it: mean gap of a bin, weighted by its examples
        inside = [i for i in range(len(rows)) if min(14, int(15 * p[i, top[i]])) == b]
        if inside:
            gap = np.mean([p[i, top[i]] for i in inside]) - np.mean([top[i] == labels[i] for i in inside])
            error += len(inside) / len(rows) * abs(gap)
    edges = np.abs(15 * p[range(len(rows)), top] - np.round(15 * p[range(len(rows)), top])) < 1e-5  # float32 may choose the next bin
    assert edges.any() or METRICS["calibration_error"].of(whole) == pytest.approx(error, abs=1e-4)
    assert of_classes(3).problem(parts) is None and sum(of_classes(3).counted(parts)) == len(rows)


def test_scores_of_nothing_and_of_one_sided_predictions_are_defined() -> None:
    assert all(map(math.isnan, (accuracy([[0, 0], [0, 0]]), matthews([[0, 0], [0, 0]]), f1([[0, 0], [0, 0]]))))
    assert matthews([[5, 0], [3, 0]]) == 0.0
    assert f1([[5, 0], [3, 0]]) == 0.0
    assert matthews([[5, 0], [0, 3]]) == accuracy([[5, 0], [0, 3]]) == f1([[5, 0], [0, 3]]) == 1.0
    assert matthews([[0, 5], [3, 0]]) == -1.0


def test_which_score_is_better_follows_from_the_metric_and_a_number_beats_none() -> None:
    up, down = METRICS["accuracy"], METRICS["loss"]
    assert up.better(0.6, 0.5) and not up.better(0.5, 0.5) and down.better(0.5, 0.6) and not down.better(0.6, 0.5)
    for metric in (up, down):
        assert metric.better(0.1, math.nan) and not metric.better(math.nan, 0.1) and not metric.better(math.nan, math.nan)
    assert (up.text(0.8125), down.text(0.4116), METRICS["matthews"].text(0.5)) == ("81.2 %", "0.412 nat", "0.500")
    assert up.text(None) == down.text(math.nan) == "-"


def test_a_metric_of_one_class_is_named_by_it() -> None:
    found = metric_named("f1:spam", ["ham", "spam", "other: x"])
    table = [[5, 1, 0], [2, 4, 0], [0, 0, 3]]
    assert (found.name, found.title, found.of(sums(table))) == ("f1:spam", "F1 of spam", f1(table, 1))
    assert metric_named("recall:other: x", ["ham", "spam", "other: x"]).of(sums(table)) == 1.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("acuracy", "got 'acuracy', expected 'accuracy'"),
        ("f1_macro", "expected 'macro_f1'"),
        ("banana", "expected one of accuracy, macro_f1"),
        ("f1:spum", "expected a class of the data after the colon: 'spam'"),
        ("loss:spam", "expected no class with loss; of one class are f1, precision, recall"),
        ("f1", "f1 is of two classes; expected 'macro_f1'"),
    ],
)
def test_a_metric_that_is_not_to_be_had_is_refused_with_the_nearest_one(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"^evaluation.metric: .*{text}"):
        primary(name, of_classes(3).zero, "accuracy", ("ham", "spam", "other"))


def test_a_metric_is_added_as_a_row_that_says_which_sums_it_needs() -> None:
    """Such as perplexity, of a task that answers with other sums."""
    perplexity = Metric("perplexity", "perplexity", ("nll", "tokens"), lambda s: math.exp(s["nll"] / s["tokens"]), False, "")
    assert perplexity.of({"nll": 20.0, "tokens": 10}) == pytest.approx(math.exp(2)) and math.isnan(perplexity.of(sums([[1]])))
    other = {"nll": torch.zeros(()), "tokens": torch.zeros((), dtype=torch.int64)}
    assert offered_by(other) == []  # none of classification's needs no confusion matrix
    with pytest.raises(UserError, match="accuracy cannot be had from what this task predicts"):
        primary("accuracy", other, "perplexity")


def test_sums_that_cannot_be_are_named() -> None:
    statistics = of_classes(2)
    good = totals(torch.tensor([[2, 0], [1, 1]]), 0.5)
    assert statistics.problem(good) is None and statistics.counted(good) == (2, 2)
    assert statistics.problem({**good, "nll": torch.tensor(-1.0)}) == "nll is -1.0, expected at least 0"
    boasting = {**good, "calibration": torch.full((15,), 1.0)}
    assert statistics.problem(boasting) == "calibration sums to 15.0, expected at most 4, the number of examples"
