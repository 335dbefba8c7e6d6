from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.rng import Key
from fibecfed.data.cuts import largest_remainder, stratified_cut, subset


@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=20), st.integers(0, 10_000))
def test_largest_remainder_gives_out_exactly_the_total_and_stays_within_one_of_each_quota(shares, total):
    if sum(shares) < 1e-6:
        shares = [share + 1.0 for share in shares]
    values = np.array(shares)
    got = largest_remainder(values, total)
    assert got.sum() == total
    assert (got >= 0).all()
    assert (np.abs(got - values * total / values.sum()) < 1 + 1e-6).all()


def test_largest_remainder_gives_the_missing_one_to_the_largest_remainder():
    assert largest_remainder(np.array([5.0, 3.0, 2.0]), 4).tolist() == [2, 1, 1]
    assert largest_remainder(np.array([1.0, 1.0, 1.0]), 2).tolist() == [1, 1, 0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 5))
def test_a_stratified_cut_loses_nothing_and_keeps_every_class(labels, share, seed):
    count = round(share * len(labels))
    rest, cut = stratified_cut(np.array(labels), count, Key(seed))
    assert sorted([*rest, *cut]) == list(range(len(labels)))
    assert {labels[i] for i in rest} == set(labels)
    for c in set(labels):
        exact = labels.count(c) * count / len(labels)
        assert sum(labels[i] == c for i in cut) <= exact + 1
        assert sum(labels[i] == c for i in cut) >= min(exact, labels.count(c) - 1) - 1


def test_a_stratified_cut_takes_the_count_asked_for_and_is_the_same_for_the_same_key():
    labels = np.array([0] * 60 + [1] * 40)
    rest, cut = stratified_cut(labels, 20, Key(0))
    assert (labels[cut] == 0).sum() == 12 and (labels[cut] == 1).sum() == 8
    assert np.array_equal(cut, stratified_cut(labels, 20, Key(0))[1])
    assert not np.array_equal(cut, stratified_cut(labels, 20, Key(1))[1])
    assert np.array_equal(np.sort(cut), cut) and np.array_equal(np.sort(rest), rest)


def test_a_stratified_cut_leaves_each_group_an_example():
    groups = [f"g{i // 2}" for i in range(40)]
    rest, _ = stratified_cut(np.arange(40) % 2, 36, Key(0), groups)
    assert {groups[i] for i in rest} == set(groups)


def test_a_smaller_subset_lies_inside_a_larger_one():
    small, large = subset(100, 10, Key(3)), subset(100, 50, Key(3))
    assert len(small) == 10 and set(small) < set(large)
    assert subset(5, None, Key(0)).tolist() == subset(5, 9, Key(0)).tolist() == [0, 1, 2, 3, 4]
