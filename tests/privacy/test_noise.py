"""Noise: as normal as it is said to be, the same for the same sum, another one for anything else."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from fibecfed.privacy.clip import grid_step
from fibecfed.privacy.noise import key_of, noised, normals

SECRET = bytes(range(32))


def test_it_is_standard_normal() -> None:
    found = normals(key_of(SECRET, "test"), 200_001)
    assert stats.kstest(found, "norm").pvalue > 1e-4
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], len(found))
    assert low < np.square(found).sum() < high
    assert abs(found.mean()) < 5 / math.sqrt(len(found))
    assert 4 < np.abs(found).max() < 6.5
    halves = found[:100_000], found[100_000:200_000]
    for one, other in ((halves[0], halves[1]), (found[:-1], found[1:]), (np.abs(halves[0]), np.abs(halves[1]))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(len(one))


def test_releases_of_a_zero_sum_have_the_variance_that_is_charged() -> None:
    clip_norm, z = 0.3, 1.7
    zero = {"a": np.zeros((2, 2), np.int64)}
    found = np.array([noised(zero, clip_norm, z, key_of(SECRET, "noise", n))["a"].reshape(-1) for n in range(10_000)]) * grid_step(
        clip_norm
    )
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], found.size)
    assert low < np.square(found / (z * clip_norm)).sum() < high
    assert stats.kstest(found.reshape(-1) / (z * clip_norm), "norm").pvalue > 1e-4
    between = np.corrcoef(found.T) - np.eye(4)
    assert np.abs(between).max() < 5 / math.sqrt(len(found))
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 5 / math.sqrt(len(found))


def test_the_same_key_gives_the_same_noise_and_any_other_name_another() -> None:
    keys = [key_of(SECRET, "noise", 1), key_of(SECRET, "noise", 2), key_of(SECRET, "noise1"), key_of(SECRET[:31] + b"!", "noise", 1)]
    assert len(set(keys)) == 4 and key_of(SECRET, "ab", "c") != key_of(SECRET, "a", "bc")
    first = normals(keys[0], 9)
    assert (first == normals(keys[0], 9)).all() and not np.isclose(first, normals(keys[1], 9)).any()


def test_a_long_stream_does_not_repeat_itself() -> None:
    found = normals(SECRET, 2**19 + 10)
    assert len(np.unique(found)) == len(found)


def test_noise_is_added_to_every_number_of_every_tensor() -> None:
    total = {"a": np.full((3, 2), 5, np.int64), "b": np.full(4, -5, np.int64)}
    found = noised(total, 1.0, 1.0, SECRET)
    moved = np.concatenate([(found[name] - total[name]).reshape(-1) for name in total])
    assert len(np.unique(moved)) == 10 and total["a"].max() == 5
    assert [value.shape for value in found.values()] == [(3, 2), (4,)]
