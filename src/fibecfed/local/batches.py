"""Cutting examples into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..core.classification import classes_of
from ..core.rng import Key
from ..core.types import Batch, Examples
from .options import TrainingOptions

PASS_BATCH = 32
"""Examples a batch of a pass without steps; what is measured does not depend on it."""
GROUP = 8
"""Batches whose examples are sorted together: large enough to save most padding, small enough that batches stay mixed."""
PADDING = 200
"""Tokens of padding in a batch that cost about as much as a pass of its own, measured with MiniLM on a CPU [C]."""


def batches(
    examples: Examples,
    order: Tensor,
    batch_size: int,
    *,
    max_length: int | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Iterator[Batch]:
    """The examples at the positions `order`, in that order, cut into batches; the last may be shorter.

    Args:
        max_length: cut texts to so many tokens.
        beside: what is added to a batch, as name -> one row for every example.
    """
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = examples.batch(chunk.tolist(), max_length)
        yield {**batch, **{name: rows[chunk] for name, rows in beside.items()}} if beside else batch


def shuffled_batches(
    examples: Examples,
    positions: Tensor,
    options: TrainingOptions,
    key: Key,
    *,
    max_length: int | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> Iterator[Batch]:
    """One epoch over the examples at `positions` in `shuffled` order; the rest as for `batches`."""
    order = shuffled(examples, positions, options, key)
    return batches(examples, order, options.batch_size, max_length=max_length, beside=weighed(examples, options, beside))


def shuffled(examples: Examples, positions: Tensor, options: TrainingOptions, key: Key) -> Tensor:
    """`positions` in random order, grouped by length if the options say so."""
    order = positions[key.permutation(len(positions))]
    return grouped_by_length(examples, order, options.batch_size, key.fold("groups")) if options.group_by_length else order


def weighed(examples: Examples, options: TrainingOptions, beside: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor] | None:
    """`beside`, with the weight of each example's class among its rows where the options weigh classes.

    "balanced": n / (C n_c) for a class with n_c of the client's n examples, C being the number of classes that it has: all classes count
    the same, and the mean weight is 1.

    Raises:
        UserError: class weights for examples without classes.
    """
    if options.class_weights is None:
        return beside
    labels = classes_of(examples, "training.class_weights", "remove it")
    if options.class_weights == "balanced":
        counts = torch.bincount(labels)
        table = len(examples) / (counts.count_nonzero() * counts.clamp(min=1))
    else:
        table = torch.tensor(options.class_weights)
    own = table.float()[labels]
    others = dict(beside or {})
    return {**others, "weights": own * others["weights"] if "weights" in others else own}


def plain_epochs(examples: Examples, options: TrainingOptions, key: Key, epochs: int) -> list[Iterator[Batch]]:
    """That many epochs over all examples, each in a random order of its own."""
    everything = torch.arange(len(examples))
    return [shuffled_batches(examples, everything, options, key.fold("order", epoch)) for epoch in range(epochs)]


def grouped_by_length(examples: Examples, order: Tensor, batch_size: int, key: Key) -> Tensor:
    """`order`, rearranged so that its batches hold examples of like length and need little padding; each example still comes once.

    Every run of `GROUP` batches is sorted by length and cut, and the batches are then shuffled by `key`; a short batch stays the last.
    """
    chunks = []
    for start in range(0, len(order), GROUP * batch_size):
        chunk = order[start : start + GROUP * batch_size]
        chunks.extend(chunk[torch.argsort(examples.lengths[chunk], stable=True)].split(batch_size))
    whole = [chunk for chunk in chunks if len(chunk) == batch_size]
    rest = [chunk for chunk in chunks if len(chunk) < batch_size]
    shuffled = [whole[int(i)] for i in key.permutation(len(whole))]
    return torch.cat([*shuffled, *rest]) if chunks else order


def by_length(examples: Examples) -> Tensor:
    """Positions from the shortest example to the longest: the order with the least padding, for passes whose order does not matter."""
    return torch.argsort(examples.lengths, stable=True)


def length_batches(examples: Examples, batch_size: int) -> Iterator[Batch]:
    """All examples from the shortest to the longest, in the groups of `of_like_length`: for passes whose order does not matter."""
    for positions in of_like_length(examples, batch_size):
        yield examples.batch(positions)


def of_like_length(examples: Examples, batch_size: int) -> Iterator[list[int]]:
    """Positions of all examples from the shortest to the longest, at most `batch_size` in a group and `PADDING` tokens of padding.

    A client's few texts differ much in length.
    """
    order = by_length(examples)
    lengths = examples.lengths[order].tolist()
    start = padding = 0
    for i in range(1, len(lengths)):
        padding += (i - start) * (lengths[i] - lengths[i - 1])
        if i - start == batch_size or padding > PADDING:
            yield order[start:i].tolist()
            start, padding = i, 0
    if lengths:
        yield order[start:].tolist()
