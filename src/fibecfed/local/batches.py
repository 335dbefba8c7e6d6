"""Cutting examples into batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.types import Batch, Examples


def batches(examples: Examples, order: Tensor, batch_size: int) -> Iterator[Batch]:
    """The examples at the positions `order`, in that order, cut into batches; the last may be shorter."""
    for start in range(0, len(order), batch_size):
        yield examples.batch(order[start : start + batch_size].tolist())


def by_length(examples: Examples) -> Tensor:
    """Positions from the shortest example to the longest: the order with the least padding, for passes whose order does not matter."""
    return torch.argsort(examples.lengths, stable=True)
