"""Paces, orders, and which examples a round uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.curriculum import (
    PACES,
    ceil_share,
    control_order,
    easy_to_hard,
    num_batches_used,
    positions_of_round,
    share,
)
from fibecfed.local.options import CurriculumOptions

unit = st.floats(0, 1)
betas = st.floats(0.01, 1)


@dataclass(frozen=True)
class Texts:
    lengths: Tensor
    rarity: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, positions: Sequence[int]) -> Batch:
        return {"labels": self.labels[list(positions)]}


@pytest.mark.parametrize("pace", PACES)
@given(u=unit, v=unit, beta=betas)
def test_every_pace_stays_between_beta_and_one_and_never_falls(pace: str, u: float, v: float, beta: float) -> None:
    low, high = sorted((u, v))
    assert beta - 1e-12 <= PACES[pace](low, beta) <= PACES[pace](high, beta) + 1e-12 <= 1 + 2e-12


@pytest.mark.parametrize("pace", PACES)
@given(beta=betas)
def test_every_pace_begins_at_beta_and_ends_at_exactly_one(pace: str, beta: float) -> None:
    assert PACES[pace](0.0, beta) == pytest.approx(1.0 if pace == "none" else beta)
    assert PACES[pace](1.0, beta) == 1.0


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        ("linear", 0.4),
        ("sqrt", 0.6),
        ("quadratic", 0.25),
        ("exp", 0.2 + 0.8 * (math.exp(2.5) - 1) / (math.exp(10) - 1)),
        ("log", 0.2 + 0.8 * (1 + math.log(0.25 + 0.75 * math.exp(-10)) / 10)),
        ("step", 0.2),
        ("none", 1.0),
    ],
)
def test_each_pace_at_a_quarter_of_the_way_has_the_value_of_its_formula(pace: str, expected: float) -> None:
    assert PACES[pace](0.25, 0.2) == pytest.approx(expected)


def test_the_paces_are_those_of_the_options() -> None:
    assert set(PACES) == set(CurriculumOptions.model_fields["pace"].annotation.__args__)  # pyright: ignore[reportOptionalMemberAccess]


def test_the_share_reaches_one_after_alpha_of_the_rounds_and_stays() -> None:
    options = CurriculumOptions(beta=0.6, alpha=0.8)
    assert [round(share(options, t, 10), 6) for t in range(10)] == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.0]


@pytest.mark.parametrize("num_rounds", [1, 10, 40, 100])
def test_the_step_falls_on_the_first_round_from_alpha_of_the_rounds_on(num_rounds: int) -> None:
    for alpha in range(1, 101):  # every hundredth: 0.07 x 100 is above 7 in float64
        options = CurriculumOptions(pace="step", beta=0.5, alpha=alpha / 100)
        for t in range(num_rounds):
            assert share(options, t, num_rounds) == (1.0 if 100 * t >= alpha * num_rounds else 0.5)


def test_a_round_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="round -1"):
        share(CurriculumOptions(), -1, 10)
    with pytest.raises(ValueError, match="of 0"):
        share(CurriculumOptions(), 0, 0)


def test_a_share_of_batches_is_rounded_up_as_in_exact_arithmetic() -> None:
    assert math.ceil(0.07 * 100) == 8
    for hundredths in range(1, 101):
        for count in (*range(1, 60), 100, 300, 2000):
            assert num_batches_used(hundredths / 100, count) == ceil_share(hundredths / 100, count) == -(-hundredths * count // 100)


def test_at_least_one_batch_and_at_most_all_are_used() -> None:
    assert num_batches_used(0.6, 5) == 3
    assert num_batches_used(1e-12, 5) == 1
    assert num_batches_used(1.0 + 1e-6, 5) == 5
    with pytest.raises(ValueError, match="at least one"):
        num_batches_used(0.5, 0)


@given(st.lists(st.integers(0, 3), min_size=1))
def test_easy_to_hard_ascends_with_ties_by_the_lower_position(values: list[int]) -> None:
    order = easy_to_hard(torch.tensor(values, dtype=torch.float32)).tolist()
    assert order == sorted(range(len(values)), key=lambda i: (values[i], i))


def test_ties_of_many_examples_go_to_the_lower_position_too() -> None:
    values = torch.randint(3, (1000,), generator=Key(0).generator())  # short ones come out in order from any sort
    assert easy_to_hard(values).tolist() == sorted(range(1000), key=lambda i: (values[i].item(), i))


def test_a_difficulty_that_is_not_finite_is_named() -> None:
    with pytest.raises(FloatingPointError, match="example 1 is nan"):
        easy_to_hard(torch.tensor([0.0, math.nan]))


def test_the_control_orders_follow_length_rarity_and_the_key() -> None:
    texts = Texts(torch.tensor([5, 2, 9, 2]), torch.tensor([0.1, 3.0, 0.2, 0.1], dtype=torch.float64))
    assert control_order("length", texts, Key(0)).tolist() == [1, 3, 0, 2]
    assert control_order("rarity", texts, Key(0)).tolist() == [0, 3, 2, 1]
    many = Texts(torch.zeros(50), torch.zeros(50))
    drawn = control_order("random", many, Key(0)).tolist()
    assert sorted(drawn) == list(range(50))
    assert drawn == control_order("random", many, Key(0)).tolist() != control_order("random", many, Key(1)).tolist()
    with pytest.raises(ValueError, match="'fisher'"):
        control_order("fisher", texts, Key(0))  # pyright: ignore[reportArgumentType]


def test_a_round_uses_the_first_batches_of_the_order_and_all_examples_at_share_one() -> None:
    order = torch.tensor([4, 0, 3, 1, 6, 5, 2])
    assert positions_of_round(order, 0.5, 2).tolist() == [4, 0, 3, 1]
    assert positions_of_round(order, 0.01, 2).tolist() == [4, 0]
    assert positions_of_round(order, 1.0, 2).tolist() == order.tolist()
    assert positions_of_round(order, 0.1, 100).tolist() == order.tolist()


@given(n=st.integers(1, 60), batch_size=st.integers(1, 9), low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_a_larger_share_keeps_every_example_of_a_smaller_one(n: int, batch_size: int, low: float, high: float) -> None:
    order = Key(n).permutation(n)
    low, high = sorted((low, high))
    few, many = positions_of_round(order, low, batch_size).tolist(), positions_of_round(order, high, batch_size).tolist()
    assert few == many[: len(few)] and many == order.tolist()[: len(many)]
