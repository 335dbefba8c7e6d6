"""Batches of examples, in a given order or by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.types import Batch, Examples


def batches(examples: Examples, order: Sequence[int] | Tensor, batch_size: int) -> Iterator[Batch]:
    """The examples at the positions of `order`, `batch_size` at a time, in that order; the last batch may be shorter."""
    for positions in split_order(order, batch_size):
        yield examples.batch(positions.tolist())


def split_order(order: Sequence[int] | Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """`order` cut into runs of `batch_size` positions, int64; the last may be shorter. No runs for an empty order.

    Raises:
        ValueError: a batch size below 1.

    >>> [run.tolist() for run in split_order([4, 0, 3, 1, 2], 2)]
    [[4, 0], [3, 1], [2]]
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size = {batch_size}, expected at least 1")
    positions = torch.as_tensor(order, dtype=torch.int64)
    return positions.split(batch_size) if len(positions) else ()


def by_length(examples: Examples, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
    """All examples once, those of similar length together: the least padding, for passes in which the order is of no account.

    Yields:
        Positions, int64, and their batch; shortest first, ties in order of position.
    """
    order = torch.argsort(examples.lengths, stable=True)
    for positions in split_order(order, batch_size):
        yield positions, examples.batch(positions.tolist())
