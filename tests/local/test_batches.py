"""Batches follow the order they are given; grouping by length saves padding and loses no example."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.rng import Key
from fibecfed.data.planted import planted_tokens
from fibecfed.data.text import token_table
from fibecfed.local.batches import PADDING, batches, by_length, grouped_by_length, length_batches, shuffled_batches, weighed
from fibecfed.local.options import TrainingOptions

MADE = planted_tokens(200, 2, 32, 100, Key(0)).view()


def numbered(count: int):
    """Examples that carry their position as their label, of lengths 1 to 7."""
    return token_table([[1] * (1 + 5 * i % 7) for i in range(count)], list(range(count))).view()


def padding(all_batches) -> int:
    return sum(int((batch["attention_mask"] == 0).sum()) for batch in all_batches)


def test_batches_follow_the_order_given_and_the_last_may_be_short():
    view = token_table([[1], [2, 2], [3]], [0, 1, 2]).view()
    assert [batch["labels"].tolist() for batch in batches(view, torch.tensor([2, 0, 1]), 2)] == [[2, 0], [1]]
    assert list(batches(view, torch.tensor([], dtype=torch.int64), 2)) == []


def test_the_order_by_length_has_the_least_padding_and_holds_each_example_once():
    order = by_length(MADE)
    assert order.sort().values.tolist() == list(range(200))
    assert MADE.lengths[order].diff().min() >= 0
    assert padding(batches(MADE, order, 16)) * 3 < padding(batches(MADE, torch.arange(200), 16))


@given(st.integers(1, 90), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_holds_each_example_once_and_only_its_last_batch_is_short(count: int, size: int, seed: int):
    view, key = numbered(count), Key(seed)
    positions = key.fold("some").permutation(count)[: max(1, count // 2)]
    for grouped in (True, False):
        options = TrainingOptions(batch_size=size, group_by_length=grouped)
        found = [batch["labels"].tolist() for batch in shuffled_batches(view, positions, options, key)]
        assert sorted(chain.from_iterable(found)) == sorted(positions.tolist())
        assert all(len(batch) == size for batch in found[:-1])
        again = [batch["labels"].tolist() for batch in shuffled_batches(view, positions, options, key)]
        assert again == found


def test_without_grouping_the_epoch_is_the_permutation_of_the_key():
    view, options = numbered(20), TrainingOptions(batch_size=6, group_by_length=False)
    positions = torch.arange(20).flip(0)
    found = [batch["labels"].tolist() for batch in shuffled_batches(view, positions, options, Key(3))]
    assert list(chain.from_iterable(found)) == positions[Key(3).permutation(20)].tolist()


def test_grouping_saves_most_of_the_padding_and_leaves_the_batches_in_random_order():
    order = Key(1).permutation(200)
    grouped = grouped_by_length(MADE, order, 8, Key(2))
    assert 2 * padding(batches(MADE, grouped, 8)) < padding(batches(MADE, order, 8))
    mean_lengths = torch.stack([MADE.lengths[run].double().mean() for run in grouped.split(8)])
    assert 0 < (mean_lengths.diff() > 0).double().mean() < 1
    assert not torch.equal(grouped, grouped_by_length(MADE, order, 8, Key(4)))


@pytest.mark.parametrize("grouped", [True, False])
def test_another_epoch_has_another_order(grouped: bool):
    options = TrainingOptions(batch_size=5, group_by_length=grouped)
    epochs = [
        [batch["labels"].tolist() for batch in shuffled_batches(numbered(40), torch.arange(40), options, Key(0).fold(e))] for e in (0, 1)
    ]
    assert epochs[0] != epochs[1]


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 9))
def test_batches_by_length_hold_every_length_once_and_little_padding(lengths: list[int], batch_size: int):
    view = token_table([[1] * length for length in lengths], [0] * len(lengths)).view()
    found = [sorted(batch["attention_mask"].sum(1).tolist()) for batch in length_batches(view, batch_size)]
    assert list(chain.from_iterable(found)) == sorted(lengths)
    waste = [sum(batch[-1] - length for length in batch) for batch in found]
    assert all(len(batch) <= batch_size for batch in found) and max(waste, default=0) <= PADDING
    for batch, lost, after in zip(found, waste, found[1:], strict=False):  # none ends without need
        assert len(batch) == batch_size or lost + len(batch) * (after[0] - batch[-1]) > PADDING


def test_class_weights_are_laid_beside_each_example() -> None:
    labels = torch.tensor([0, 2, 2, 2, 0, 2])
    examples = token_table(torch.full((6, 4), 7), labels).view()
    listed = weighed(examples, TrainingOptions(class_weights=(0.5, 1.0, 3.0)))
    assert listed is not None and listed["weights"].tolist() == [0.5, 3.0, 3.0, 3.0, 0.5, 3.0]
    balanced = weighed(examples, TrainingOptions(class_weights="balanced"))
    assert balanced is not None and balanced["weights"].tolist() == [1.5, 0.75, 0.75, 0.75, 1.5, 0.75]
    assert float(balanced["weights"].mean()) == 1.0
    both = weighed(examples, TrainingOptions(class_weights="balanced"), {"weights": torch.arange(6.0)})
    assert both is not None and both["weights"].tolist() == [0.0, 0.75, 1.5, 2.25, 6.0, 3.75]
    assert weighed(examples, TrainingOptions()) is None
    (batch, *_) = shuffled_batches(examples, torch.arange(6), TrainingOptions(class_weights="balanced", batch_size=6), Key(0))
    assert torch.equal(batch["weights"], torch.where(batch["labels"] == 0, 1.5, 0.75))
