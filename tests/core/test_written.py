"""Rouge-L of answers: published values, and the score of a slow, obvious version."""

from __future__ import annotations

import re
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fibecfed.core.answers import of_answers
from fibecfed.core.metrics import METRICS
from fibecfed.core.written import rouge_l

TEXTS = st.lists(st.sampled_from(["ls", "-l", "Find", "find", ".", "a2", "a", "'*.TXT'", "é"]), max_size=7).map(" ".join)


def slow(written: str, expected: str) -> float:
    """F1 of the longest of all common subsequences."""
    left, right = (re.findall("[a-z0-9]+", text.lower()) for text in (written, expected))
    of_right = {taken for number in range(len(right) + 1) for taken in combinations(right, number)}
    common = max(number for number in range(len(left) + 1) for taken in combinations(left, number) if taken in of_right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_rouge_l_is_f1_of_the_longest_common_subsequence_of_words(written: str, expected: str) -> None:
    assert rouge_l(written, expected) == pytest.approx(slow(written, expected), abs=1e-6)


@pytest.mark.parametrize(
    ("written", "score"),
    [
        ("police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("the gunman kill police", 0.5),
        ("the gunman police killed", 0.5),
        ("Police killed the gunman!", 1.0),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_rouge_l_has_the_values_of_its_paper(written: str, score: float) -> None:
    assert rouge_l(written, "police killed the gunman") == score


def test_scores_of_answers_are_sums_over_those_generated_and_impossible_sums_are_named() -> None:
    kind = of_answers(written=True)
    totals = {**kind.zero, "examples": torch.tensor(4), "tokens": torch.tensor(9), "generated": torch.tensor(2)}
    totals["rouge_l"] = torch.tensor(1.5, dtype=torch.float64)
    assert kind.problem(totals) is None
    assert METRICS["rouge_l"].of({name: value.item() for name, value in totals.items()}) == 0.75
    for value in (2.5, -0.1):
        totals["rouge_l"] = torch.tensor(value, dtype=torch.float64)
        assert kind.problem(totals) == f"rouge_l is {value}, expected 0 to 2, the number of generated answers"
