"""Clipped updates: no answer moves a sum by more than C."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.privacy.clip import clipped, digest, grid_step, nothing, on_grid

SENT = {"a": torch.tensor([[1.0, -2.0], [0.5, 0.0]]), "b": torch.tensor([3.0])}


def norm_of(update: dict[str, np.ndarray]) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for value in update.values() for x in value.reshape(-1)))


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=5, max_size=5),
    clip_norm=st.floats(1e-20, 1e20),
)
def test_the_norm_is_at_most_c_on_the_grid_too(values: list[float], clip_norm: float) -> None:
    answer = {"a": torch.tensor(values[:4], dtype=torch.float64).reshape(2, 2), "b": torch.tensor(values[4:], dtype=torch.float64)}
    update = on_grid(clipped(answer, SENT, clip_norm), clip_norm)
    step = grid_step(clip_norm)
    total = sum(int(x) ** 2 for value in update.values() for x in value.reshape(-1))  # exact
    assert total <= (clip_norm / step) ** 2


@given(values=st.lists(st.floats(-0.3, 0.3), min_size=5, max_size=5))
def test_a_small_update_is_as_it_was_but_for_the_grid(values: list[float]) -> None:
    change = {"a": torch.tensor(values[:4], dtype=torch.float64).reshape(2, 2), "b": torch.tensor(values[4:], dtype=torch.float64)}
    update = on_grid(clipped({name: SENT[name].double() + value for name, value in change.items()}, SENT, 1.0), 1.0)
    for name, value in change.items():
        assert np.abs(update[name] * grid_step(1.0) - value.numpy()).max() <= grid_step(1.0)


def test_a_large_update_keeps_its_direction() -> None:
    change = {name: torch.randn(value.shape, dtype=torch.float64) for name, value in SENT.items()}
    small = clipped({name: SENT[name] + 10 * value for name, value in change.items()}, SENT, 0.1)
    assert norm_of(small) == pytest.approx(0.1, rel=1e-8)
    whole = math.sqrt(sum(float(value.square().sum()) for value in change.values()))
    for name, value in change.items():
        assert small[name] == pytest.approx(value.numpy() * 0.1 / whole, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_none(bad: float) -> None:
    answer = {"a": torch.full((2, 2), 7.0), "b": torch.tensor([bad])}
    assert norm_of(clipped(answer, SENT, 1.0)) == 0


@pytest.mark.parametrize("answer", [{"a": SENT["a"]}, {**SENT, "c": torch.zeros(1)}, {"a": SENT["a"], "b": torch.zeros(2)}])
def test_other_names_or_shapes_are_rejected(answer: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="names, shapes"):
        clipped(answer, SENT, 1.0)


def test_the_digest_is_of_values_names_shapes_and_clip_norm() -> None:
    zero = nothing(SENT)
    other = {**zero, "b": zero["b"] + 1}
    turned = {**zero, "a": zero["a"].reshape(4)}
    assert len({digest(zero, 1.0), digest(other, 1.0), digest(turned, 1.0), digest(zero, 1.5), digest(zero, 3.0)}) == 5
    assert digest(zero, 1.0) == digest(nothing(SENT), 1.0)
