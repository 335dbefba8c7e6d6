from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.data.partition import client_ids, partition


def labels_of(sizes: list[int], seed: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[Key(seed).permutation(len(labels))]


SIZES = st.lists(st.integers(0, 30), min_size=2, max_size=4).filter(lambda sizes: sum(sizes) >= 4)


def check_that_it_is_a_partition(spread, parts):
    for part, labels in parts.items():
        held = spread.indices[part]
        assert tuple(held) == spread.clients
        assert torch.cat(list(held.values())).sort().values.tolist() == list(range(len(labels)))
        num_classes = spread.counts[part].shape[1]
        for k, client in enumerate(spread.clients):
            assert held[client].dtype == torch.int64
            assert held[client].tolist() == sorted(held[client].tolist())
            assert torch.bincount(labels[held[client]], minlength=num_classes).tolist() == spread.counts[part][k].tolist()
    assert all(len(positions) >= 1 for positions in spread.indices["train"].values())


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["dirichlet", "iid", "shards"]),
    SIZES,
    st.integers(0, 3),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.3, 1.0, 100.0]),
    st.sampled_from([0.05, 5.0]),
)
def test_every_example_goes_to_exactly_one_client_and_every_client_can_train(kind, sizes, seed, num_clients, alpha, size_alpha):
    parts = {
        "train": labels_of(sizes, seed),
        "validation": labels_of([size // 3 for size in sizes], seed + 1),
        "test": labels_of([size // 2 for size in reversed(sizes)], seed + 2),
    }
    num_clients = min(num_clients, len(parts["train"]))
    kwargs = {"num_clients": num_clients, "alpha": alpha, "size_alpha": size_alpha, "shards_per_client": 1, "key": Key(seed)}
    spread = partition(kind, parts, **kwargs)
    assert len(spread.clients) == num_clients
    check_that_it_is_a_partition(spread, parts)
    again = partition(kind, parts, **kwargs)
    for part in parts:
        assert all(torch.equal(spread.indices[part][c], again.indices[part][c]) for c in spread.clients)


def test_another_key_gives_another_partition():
    parts = {"train": labels_of([50, 50], 0)}
    for kind in ("dirichlet", "iid", "shards"):
        a, b = (partition(kind, parts, num_clients=5, key=Key(seed)).indices["train"] for seed in (0, 1))
        assert any(not torch.equal(a[client], b[client]) for client in a), kind


def test_dirichlet_meets_sizes_and_class_totals_like_a_slow_fit():
    parts = {"train": labels_of([300, 500, 200], 0)}
    spread = partition("dirichlet", parts, num_clients=8, alpha=0.5, size_alpha=5.0, key=Key(7))
    draw = np.random.default_rng(Key(7).fold("dirichlet").seed())
    sizes = draw.dirichlet([5.0] * 8)
    priors = draw.dirichlet([0.5] * 3, size=8)
    table = [[sizes[k] * priors[k][c] for c in range(3)] for k in range(8)]
    totals, num = [300, 500, 200], 1000
    for _ in range(2000):
        for k in range(8):
            scale = sizes[k] * num / sum(table[k])
            table[k] = [value * scale for value in table[k]]
        for c in range(3):
            scale = totals[c] / sum(table[k][c] for k in range(8))
            for k in range(8):
                table[k][c] *= scale
    assert np.abs(spread.counts["train"] - np.array(table)).max() < 1.01
    assert np.abs(spread.counts["train"].sum(1) - sizes * num).max() < 3.01


def test_dirichlet_gives_train_and_test_the_same_shares():
    parts = {"train": labels_of([4000, 6000], 0), "validation": labels_of([400, 600], 1), "test": labels_of([2000, 3000], 2)}
    spread = partition("dirichlet", parts, num_clients=10, alpha=0.3, key=Key(3))
    for part, size in (("validation", 1000), ("test", 5000)):
        assert np.abs(spread.counts[part] / size - spread.counts["train"] / 10_000).max() < 1.5 / size


def test_a_small_alpha_makes_one_sided_clients_and_a_large_one_even_ones():
    parts = {"train": labels_of([2000, 2000, 2000, 2000], 0)}

    def mean_largest_share(alpha):
        counts = partition("dirichlet", parts, num_clients=40, alpha=alpha, key=Key(0)).counts["train"]
        return (counts.max(1) / counts.sum(1)).mean()

    assert mean_largest_share(0.05) > 0.85 > 0.6 > mean_largest_share(1.0) > 0.3 > mean_largest_share(1000.0)


def test_as_many_clients_as_examples_get_one_each_even_where_sizes_are_extreme():
    parts = {"train": labels_of([30, 20], 0)}
    spread = partition("dirichlet", parts, num_clients=50, alpha=0.05, size_alpha=0.05, key=Key(0))
    assert spread.counts["train"].sum(1).tolist() == [1] * 50


def test_more_clients_than_examples_are_refused_with_both_numbers():
    for kind in ("dirichlet", "iid", "shards"):
        with pytest.raises(UserError, match="got 11 clients for 10 training examples"):
            partition(kind, {"train": labels_of([5, 5], 0)}, num_clients=11, key=Key(0))
    with pytest.raises(UserError, match="5 clients x 3 shards are 15 shards for 10 training"):
        partition("shards", {"train": labels_of([5, 5], 0)}, num_clients=5, shards_per_client=3, key=Key(0))


def test_iid_sizes_differ_by_at_most_one():
    spread = partition("iid", {"train": labels_of([50, 53], 0), "test": labels_of([3, 4], 0)}, num_clients=10, key=Key(0))
    assert set(spread.counts["train"].sum(1)) == {10, 11}
    assert sorted(spread.counts["test"].sum(1)) == [0] * 3 + [1] * 7


def test_shards_hold_few_classes_and_test_follows_train():
    parts = {"train": labels_of([100] * 10, 0), "test": labels_of([20] * 10, 1)}
    spread = partition("shards", parts, num_clients=50, shards_per_client=2, key=Key(0))
    assert set(spread.counts["train"].sum(1)) == {20}
    assert (spread.counts["train"] > 0).sum(1).max() <= 2
    assert not (spread.counts["test"] * (spread.counts["train"] == 0)).any()


def test_a_column_makes_its_values_the_clients_in_sorted_order():
    parts = {"train": torch.tensor([0, 1, 0, 1]), "test": torch.tensor([1, 0])}
    groups = {"train": ["b", "a", "b", "10"], "test": ["10", "b"]}
    spread = partition("column", parts, num_clients=99, groups=groups, key=Key(0))
    assert spread.clients == ("10", "a", "b")
    assert spread.indices["train"]["b"].tolist() == [0, 2] and spread.indices["test"]["a"].tolist() == []
    check_that_it_is_a_partition(spread, parts)
    with pytest.raises(UserError, match="1 clients in test have no training example: 'c'"):
        partition("column", parts, num_clients=1, groups={**groups, "test": ["c", "b"]}, key=Key(0))
    with pytest.raises(UserError, match="client_column"):
        partition("column", parts, num_clients=1, key=Key(0))


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="got 'dirichlett'"):
        partition("dirichlett", {"train": torch.tensor([0, 1])}, num_clients=1, key=Key(0))  # pyright: ignore[reportArgumentType]


def test_the_table_is_json_with_counts_by_client_part_and_class():
    spread = partition("column", {"train": torch.tensor([0, 1, 1])}, num_clients=1, groups={"train": ["x", "x", "y"]}, key=Key(0))
    assert json.loads(json.dumps(spread.table())) == {"x": {"train": [1, 1]}, "y": {"train": [0, 1]}}


@given(st.integers(1, 3000))
def test_client_ids_sort_as_strings_like_their_numbers(num_clients):
    ids = client_ids(num_clients)
    assert list(ids) == sorted(ids) and [int(client) for client in ids] == list(range(num_clients))


def test_ten_thousand_clients_are_spread_in_seconds():
    parts = {"train": labels_of([12_000, 8_000], 0), "validation": labels_of([1200, 800], 0), "test": labels_of([600, 400], 0)}
    start = time.process_time()
    spread = partition("dirichlet", parts, num_clients=10_000, alpha=0.1, key=Key(0))
    assert time.process_time() - start < 10
    assert spread.counts["train"].sum(1).min() == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_proportional_fitting_is_carried_on_until_clients_have_their_sizes(seed):
    """One-sided clients and classes of very different sizes: the sizes come out to less than an example a class, which few steps do not."""
    totals = [60_000, 25_000, 10_000, 5_000]
    spread = partition("dirichlet", {"train": labels_of(totals, 0)}, num_clients=30, alpha=0.1, size_alpha=5.0, key=Key(seed))
    sizes = np.random.default_rng(Key(seed).fold("dirichlet").seed()).dirichlet([5.0] * 30)
    assert np.abs(spread.counts["train"].sum(1) - sizes * sum(totals)).max() < len(totals)
    assert spread.counts["train"].sum(0).tolist() == totals
