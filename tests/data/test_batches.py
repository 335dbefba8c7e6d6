from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.rng import Key
from fibecfed.data.batches import batches, by_length, split_order
from fibecfed.data.planted import planted_tokens
from fibecfed.data.text import token_table


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 10))
def test_an_order_is_cut_into_full_runs_and_a_last_short_one(order, batch_size):
    runs = [run.tolist() for run in split_order(order, batch_size)]
    assert [position for run in runs for position in run] == order
    assert all(len(run) == batch_size for run in runs[:-1]) and all(0 < len(run) <= batch_size for run in runs)


def test_batches_follow_the_order_given():
    view = token_table([[1], [2, 2], [3]], [0, 1, 2]).view()
    assert [batch["labels"].tolist() for batch in batches(view, torch.tensor([2, 0, 1]), 2)] == [[2, 0], [1]]
    assert list(batches(view, [], 2)) == []


def test_batches_by_length_hold_each_example_once_with_less_padding():
    view = planted_tokens(200, 2, 32, 20, Key(0)).view()
    pairs = list(by_length(view, 16))
    assert torch.cat([positions for positions, _ in pairs]).sort().values.tolist() == list(range(200))
    for positions, batch in pairs:
        assert torch.equal(batch["labels"], view.labels[positions])

    def padding(all_batches):
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in all_batches)

    assert padding(batch for _, batch in pairs) * 5 < padding(batches(view, range(200), 16))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="got batch_size = 0"):
        split_order([1], 0)
