"""Answers as words: what they add up to, in any order, and what cannot be a sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fibecfed.core.types import Params
from fibecfed.privacy.clip import clipped, on_grid
from fibecfed.privacy.fixed import LANES, MOST, ClippedGrid, FixedPoint, NotASum, moved

SENT: Params = {"b": torch.tensor([0.5, -0.25]), "a": torch.arange(6.0).reshape(2, 3) / 8}


def answers(clients: int, seed: int = 0, size: float = 0.1) -> list[Params]:
    draw = torch.Generator().manual_seed(seed)
    return [{name: value + size * torch.randn(value.shape, generator=draw) for name, value in SENT.items()} for _ in range(clients)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 10), st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_the_mean_is_the_weighted_mean_to_the_resolution_of_the_range(room: int, seed: int, sizes: list[int]) -> None:
    fixed = FixedPoint(range=1.0, clients=max(room, len(sizes)), max_samples=90)
    found = answers(len(sizes), seed)
    total = sum((fixed.words(one, SENT, n) for one, n in zip(found, sizes, strict=True)), np.zeros(8 + LANES, np.uint32))
    mean = fixed.mean(total, SENT, len(sizes))
    assert mean.num_samples == sum(sizes) and mean.saturated == 0
    for name, value in SENT.items():
        terms = torch.stack([n * (one[name] - value).double() for one, n in zip(found, sizes, strict=True)])
        error = np.abs(mean.update[name] - (terms.sum(0) / sum(sizes)).numpy()).max()
        assert error <= 0.51 * fixed.step * len(sizes) / sum(sizes)


def test_any_order_gives_the_same_bits() -> None:
    fixed = FixedPoint(0.5, 5, 100)
    words = [fixed.words(one, SENT, n + 1) for n, one in enumerate(answers(5))]
    one, other = sum(words[1:], words[0]), sum(words[-2::-1], words[-1])
    assert np.array_equal(one, other) and one.dtype == np.uint32


def test_a_cohort_of_largest_answers_still_fits_and_is_counted() -> None:
    for clients in (2, 7, 1000):
        fixed = FixedPoint(0.5, clients, 3)
        words = fixed.words({name: value - 9 for name, value in SENT.items()}, SENT, 50)
        total = np.zeros_like(words)
        for _ in range(clients):
            total += words
        mean = fixed.mean(total, SENT, clients)
        assert all(np.allclose(update, -0.5, atol=1e-6) for update in mean.update.values())
        assert mean.saturated == 8 * clients and mean.num_samples == 3 * clients  # 50 examples weigh as 3


def test_zeros_move_nothing_in_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        sent = {name: value.to(dtype) for name, value in SENT.items()}
        fixed = FixedPoint(0.5, 3, 9)
        mean = fixed.mean(fixed.words(sent, sent, 9), sent, 1)
        assert all(torch.equal(moved(sent, mean.update)[name], value) for name, value in sent.items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda words: words[:-1], "a sum of 9 words, expected 10"),
        (lambda words: words + np.array([0] * 8 + [200, 0], np.uint32), "205 examples, expected 1 to 9 of 1 clients"),
        (lambda words: words - np.array([0] * 8 + [0, 1], np.uint32), "-1 numbers beyond the range"),
        (lambda words: words + np.array([MOST] + [0] * 9, np.uint32), "is beyond"),
    ],
)
def test_what_is_no_sum_is_told(change: object, text: str) -> None:
    fixed = FixedPoint(0.5, 2, 9)
    with pytest.raises(NotASum, match=text):
        fixed.mean(change(fixed.words(answers(1)[0], SENT, 5)), SENT, 1)  # pyright: ignore[reportCallIssue]


def test_random_words_are_no_sum() -> None:
    fixed, draw = FixedPoint(0.5, 5, 100), np.random.default_rng(0)
    for _ in range(200):
        with pytest.raises(NotASum):
            fixed.mean(draw.integers(0, 2**32, 8 + LANES, np.uint32), SENT, 5)


def test_clipped_words_are_the_integers_of_a_private_run() -> None:
    grid, found = ClippedGrid(0.3), answers(3)
    total = sum((grid.words(one, SENT, 1) for one in found), np.zeros(8, np.uint64))
    expected = [on_grid(clipped(one, SENT, 0.3), 0.3) for one in found]
    for name, value in grid.integers(total, SENT).items():
        assert np.array_equal(value, sum(one[name] for one in expected)) and value.shape == SENT[name].shape
    with pytest.raises(NotASum, match="a sum of 7 words, expected 8"):
        grid.integers(total[1:], SENT)
