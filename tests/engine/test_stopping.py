"""Early stopping: which evaluations end a phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sums import sums

from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord
from fibecfed.core.types import Round
from fibecfed.engine.stopping import EarlyStopping

ROUNDS = (*(Round("tune", i, 6, i) for i in range(6)), *(Round("last", i, 3, 6 + i) for i in range(3)))


def scored(rounds: int, right: int, clients: tuple[str, ...] = ("a", "b"), missing: tuple[str, ...] = ()) -> EvalRecord:
    """Of ten validation examples so many were right."""
    none = sums([[0, 0], [0, 0]])
    return EvalRecord(
        rounds,
        dict[str, Any](dict.fromkeys(clients, none)),
        none,
        sums([[right, 10 - right], [0, 0]]),
        none,
        none,
        0,
        0,
        0.0,
        dict.fromkeys(missing, "late"),
    )


def stopping(patience: int | None, *records: EvalRecord) -> EarlyStopping:
    return EarlyStopping(patience, ROUNDS, METRICS["accuracy"], records)


def reference(patience: int, right: list[int]) -> int | None:
    """After how many evaluations, one each round, the first phase is over."""
    for n in range(1, len(right)):  # one behind the last round of the phase ends nothing
        first_best = right[:n].index(max(right[:n]))
        if n - 1 - first_best >= patience:
            return n
    return None


@given(st.lists(st.integers(0, 10), min_size=6, max_size=6), st.integers(1, 6))
def test_a_phase_ends_as_a_slow_reference_says(right: list[int], patience: int) -> None:
    found, n = EarlyStopping(patience, ROUNDS, METRICS["accuracy"]), 0
    for n, number in enumerate(right, start=1):
        if found.saw(scored(n, number)):
            break
    assert (n if found.stopped else None) == reference(patience, right)
    held = n if found.stopped else 6
    assert [(now.phase, now.index) for now in found.rounds] == [(now.phase, now.index) for now in (*ROUNDS[:held], *ROUNDS[6:])]
    assert [now.number for now in found.rounds] == list(range(held + 3)), "rounds are numbered as they are held"
    again = stopping(patience, *(scored(k, number) for k, number in enumerate(right[:n], start=1)))
    assert (again.stopped, again.rounds) == (found.stopped, found.rounds)  # as after an interruption


def test_an_equal_score_is_no_better_one_and_what_was_ended_is_said() -> None:
    found = stopping(2, scored(0, 10), scored(1, 5), scored(2, 7), scored(3, 7))
    assert not found.stopped
    stopped = found.saw(scored(4, 6))
    assert stopped is not None and stopped.text == (
        "Phase tune ended after round 4, 2 rounds early: no score on the validation parts was better than after round 2 in 2 evaluations "
        "(evaluation.patience)."
    )
    assert [now.phase for now in found.rounds] == ["tune"] * 4 + ["last"] * 3, "the phase behind it is still held"
    assert found.saw(scored(5, 3)) is None, "each phase is measured by its own scores"
    assert found.saw(scored(6, 2)) is None and found.saw(scored(7, 2)) is None, "nothing is left to be ended"
    assert len(stopping(1, scored(7, 3), scored(8, 2)).rounds) == 8


def test_an_evaluation_that_lacks_a_client_counts_neither_way_and_fewer_clients_begin_again() -> None:
    lacking = scored(3, 0, ("a",), missing=("b",))
    found = stopping(2, scored(1, 5), scored(2, 5), lacking)
    assert not found.stopped
    assert not stopping(2, scored(1, 9), scored(2, 5), scored(3, 4, ("a",)), scored(4, 4, ("a",))).stopped
    assert found.saw(scored(4, 5)) is not None


@pytest.mark.parametrize("patience", [None, 6])
def test_nothing_ends_early_without_a_patience_or_with_one_that_is_never_used_up(patience: int | None) -> None:
    assert not stopping(patience, *(scored(n, 9 - n) for n in range(1, 7))).stopped


def test_evaluations_without_validation_examples_end_nothing() -> None:
    none = sums([[0, 0], [0, 0]])
    assert not stopping(1, *(replace(scored(n, 5), pooled_validation=none) for n in range(1, 5))).stopped
