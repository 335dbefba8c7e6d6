"""Learning rates over the rounds, against what they are by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.types import Round
from fibecfed.local.options import TrainingOptions
from fibecfed.local.schedule import factor, in_round, mean_factor


def factors(rounds: int, **options: object) -> list[float]:
    return [factor(TrainingOptions.model_validate(options), t, rounds) for t in range(rounds)]


def test_the_schedules_are_their_formulas() -> None:
    assert factors(4) == [1.0] * 4
    assert factors(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert factors(4, schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)])
    assert factors(5, schedule="linear", warmup=0.4) == pytest.approx([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3])
    assert factors(4, warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert factors(1, schedule="cosine", warmup=0.9) == [1.0]


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 0.99), st.integers(1, 200))
def test_every_round_trains_at_most_at_the_rate_given_and_one_at_exactly_it(schedule: str, warmup: float, rounds: int) -> None:
    found = factors(rounds, schedule=schedule, warmup=warmup)
    assert all(0 < one <= 1 for one in found) and max(found) == 1.0
    peak = found.index(1.0)
    assert found[: peak + 1] == sorted(found[: peak + 1]) and found[peak:] == sorted(found[peak:], reverse=True)


def test_a_round_behind_the_last_trains_as_the_last() -> None:
    options = TrainingOptions(schedule="linear", learning_rate=0.4)
    assert in_round(options, Round("finetune", 4, 4, 9)).learning_rate == pytest.approx(0.1)
    assert in_round(options, Round("finetune", 4, 4, 9, alone=True)).learning_rate == pytest.approx(0.25)  # a client for itself: the mean
    assert in_round(TrainingOptions(), Round("tune", 3, 4, 3)) == TrainingOptions()


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 0.99), st.integers(1, 200))
def test_a_training_of_a_client_for_itself_is_at_the_mean_rate(schedule: str, warmup: float, rounds: int) -> None:
    found = factors(rounds, schedule=schedule, warmup=warmup)
    options = TrainingOptions.model_validate({"schedule": schedule, "warmup": warmup, "learning_rate": 0.4})
    last = in_round(options, Round("tune", rounds, rounds, 9, alone=True))
    assert last.learning_rate == pytest.approx(0.4 * sum(found) / rounds)
    assert min(found) <= mean_factor(options, rounds) <= 1
    if schedule == "constant" and warmup == 0:
        assert last is options
