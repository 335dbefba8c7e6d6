"""Scores from counts, against the same scores from lists of labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.metrics import accuracy, add, f1, matthews, zeros


def labelled(num_classes: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1)), min_size=1, max_size=40)


def confusion(pairs: list[tuple[int, int]], num_classes: int) -> list[list[int]]:
    matrix = zeros(num_classes)
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


@given(labelled(3), labelled(3))
def test_counts_of_two_clients_add_up_to_the_counts_of_all_examples(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert add(confusion(a, 3), confusion(b, 3)) == confusion(a + b, 3)


def test_scores_of_nothing_and_of_one_sided_predictions_are_defined() -> None:
    assert math.isnan(accuracy(zeros(2)))
    assert matthews(zeros(2)) == f1(zeros(2)) == 0.0
    assert matthews([[5, 0], [3, 0]]) == 0.0
    assert f1([[5, 0], [3, 0]]) == 0.0
    assert matthews([[5, 0], [0, 3]]) == accuracy([[5, 0], [0, 3]]) == f1([[5, 0], [0, 3]]) == 1.0
    assert matthews([[0, 5], [3, 0]]) == -1.0


def test_matrices_of_different_sizes_are_not_added() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        add(zeros(2), zeros(3))


def test_rows_of_an_empty_matrix_are_independent() -> None:
    matrix = zeros(2)
    matrix[0][0] += 1
    assert matrix == [[1, 0], [0, 0]]
