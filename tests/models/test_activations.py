"""Kept rows come back as they were, in no more memory than the budget allows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.models.activations import BOOKKEEPING, PAGE, Activations, ActivationSize, num_pages

HIDDEN = 4
PER_PAGE = PAGE * HIDDEN * 4 + BOOKKEEPING


def row(number: int, tokens: int) -> Tensor:
    """Values that no other row has."""
    return torch.arange(tokens * HIDDEN, dtype=torch.float32).view(tokens, HIDDEN) + 1000 * number


def keep(kept: Activations, numbers: list[int], tokens: int) -> None:
    kept.keep([b"%d %d" % (number, tokens) for number in numbers], torch.stack([row(number, tokens) for number in numbers]))


def test_rows_come_back_in_the_order_asked_for() -> None:
    kept = Activations(100 * PER_PAGE)
    keep(kept, [1, 2, 3], 11)
    keep(kept, [4], 8)
    assert torch.equal(kept.rows([b"3 11", b"1 11"]), torch.stack([row(3, 11), row(1, 11)]))
    assert torch.equal(kept.rows([b"4 8"]), row(4, 8)[None])
    assert (len(kept), kept.nbytes) == (4, (3 * 2 + 1) * PER_PAGE)
    assert b"2 11" in kept and b"2 8" not in kept


def test_a_key_that_is_there_keeps_what_it_has() -> None:
    kept = Activations(100 * PER_PAGE)
    kept.keep([b"a", b"a"], torch.stack([row(1, 8), row(2, 8)]))
    kept.keep([b"a"], row(3, 8)[None])
    assert torch.equal(kept.rows([b"a"]), row(1, 8)[None]) and len(kept) == 1


def test_bits_are_those_of_the_dtype_as_computed() -> None:
    kept, values = Activations(10_000), torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept.keep([b"a", b"b"], values)
    assert torch.equal(kept.rows([b"a", b"b"]), values) and kept.rows([b"a"]).dtype == torch.bfloat16


def test_rows_of_another_dtype_or_width_take_the_place_of_all() -> None:
    kept = Activations(10_000)
    keep(kept, [1], 8)
    kept.keep([b"half"], torch.ones(1, 8, HIDDEN, dtype=torch.bfloat16))
    assert b"1 8" not in kept and b"half" in kept


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 7), st.lists(st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 30)), max_size=25))
def test_the_budget_is_kept_and_what_is_there_is_right(pages: int, batches: list[tuple[list[int], int]]) -> None:
    kept = Activations(pages * PER_PAGE + 3)
    for numbers, tokens in batches:
        keep(kept, numbers, tokens)
        assert kept.nbytes <= kept.budget
        assert any(b"%d %d" % (number, tokens) in kept for number in numbers) or num_pages(tokens) > pages
        there = [(n, t) for t in range(1, 31) for n in range(31) if b"%d %d" % (n, t) in kept]
        assert len(there) == len(kept) and kept.nbytes == sum(num_pages(t) for _, t in there) * PER_PAGE
        assert all(torch.equal(kept.rows([b"%d %d" % (n, t)])[0], row(n, t)) for n, t in there)


def test_clearing_frees_the_whole_budget() -> None:
    kept = Activations(4 * PER_PAGE)
    keep(kept, [1, 2, 3, 4], 8)
    kept.clear()
    assert (len(kept), kept.nbytes) == (0, 0)
    keep(kept, [5, 6, 7, 8], 8)
    assert len(kept) == 4


def test_more_rows_than_the_budget_holds_leave_as_many_as_it_holds() -> None:
    kept = Activations(3 * PER_PAGE)
    keep(kept, list(range(10)), 8)
    assert len(kept) == 3
    keep(kept, [20], 8)
    assert len(kept) == 3 and b"20 8" in kept


def test_what_an_example_takes() -> None:
    size = ActivationSize(hidden=HIDDEN, before=3, dtype=torch.float32)
    assert [size.of(tokens) // PER_PAGE for tokens in (1, 8, 9, 16, 17)] == [2, 2, 3, 3, 4]
