"""Synthetic data with a known answer, for tests and benchmarks: no text, no tokenizer.

An example is a start token, ordinary tokens drawn at random, and in every fourth place (at least one) the marker of its class. A model
that learns C marker tokens knows everything that there is to know.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.rng import Key
from .federated import FederatedData, classes_or_number, flip_labels, with_noise
from .partition import Kind
from .partition import partition as spread_examples
from .text import TableExamples, TokenTable

PAD, START = 0, 1
FIRST_MARKER = 2
"""The marker of class c is the token FIRST_MARKER + c; ordinary tokens are those above the markers."""


def planted_tokens(num: int, num_classes: int, vocab_size: int, length: int, key: Key, noise: float = 0.0) -> TokenTable:
    """`num` examples of ceil(length / 2) to `length` tokens, with classes in equal shares and in random order.

    Args:
        vocab_size: token ids are below it.
        noise: fraction of the labels that are replaced by another class; the markers keep telling the true one.

    Raises:
        ValueError: too small a vocabulary or length.
    """
    first_ordinary = FIRST_MARKER + num_classes
    if vocab_size <= first_ordinary or length < 4:
        raise ValueError(f"got vocab_size = {vocab_size} and length = {length}, expected more than {first_ordinary} and at least 4")
    draw = key.fold("tokens").generator()
    truth = (torch.arange(num) % num_classes)[key.fold("classes").permutation(num)]
    lengths = torch.randint((length + 1) // 2, length + 1, (num,), generator=draw)
    tokens = torch.randint(first_ordinary, vocab_size, (num, length), generator=draw, dtype=torch.int32)
    tokens[:, 0] = START
    # places 1 .. lengths - 1 in random order; the first quarter of them get the marker
    chance = torch.rand(num, length, generator=draw)
    column = torch.arange(length)
    chance[(column == 0) | (column >= lengths[:, None])] = 2.0
    rank = chance.argsort(dim=1).argsort(dim=1)
    marked = rank < (lengths // 4).clamp(min=1)[:, None]
    tokens = torch.where(marked, (FIRST_MARKER + truth)[:, None].to(torch.int32), tokens)
    labels, _ = flip_labels(truth, num_classes, noise, key.fold("noise"))
    return TokenTable(
        ids=tokens[column < lengths[:, None]],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        labels=labels,
        token_type_ids=None,
        pad_id=PAD,
        special_ids=torch.tensor([PAD, START], dtype=torch.int32),
        segments=(tokens != START)[column < lengths[:, None]].to(torch.uint8),
    )


def planted_classes(table: TokenTable, num_classes: int) -> Tensor:
    """The class that the markers of each example tell, int64, shape (examples,): the known answer, whatever the labels say."""
    example = torch.repeat_interleave(torch.arange(len(table)), table.lengths)
    marker = table.ids.long() - FIRST_MARKER
    is_marker = (marker >= 0) & (marker < num_classes)
    classes = torch.zeros(len(table), dtype=torch.int64)
    classes[example[is_marker]] = marker[is_marker]
    return classes


def planted_federation(
    num_clients: int,
    examples_per_client: int,
    key: Key,
    *,
    num_classes: int = 2,
    vocab_size: int = 64,
    length: int = 12,
    noise: float = 0.0,
    partition: Kind = "iid",
    alpha: float = 1.0,
    validation_per_client: int = 1,
    test_per_client: int = 2,
    classes: bool = True,
) -> FederatedData:
    """Planted examples spread over clients; the numbers per client are means for the partitions that are not even.

    Args:
        noise: fraction of the training labels that are replaced by another class; `FederatedData.flipped` tells which.
        classes: False: the same texts, whose classes nobody is known.

    Raises:
        UserError: noise in, or a partition by, classes that nobody is known.
    """
    parts: dict[str, TableExamples] = {}
    for part, count in (("train", examples_per_client), ("validation", validation_per_client), ("test", test_per_client)):
        view = planted_tokens(num_clients * count, num_classes, vocab_size, length, key.fold(part)).view()
        parts[part] = view if classes else replace(view, labels=None)
    spread = spread_examples(
        partition,
        {part: classes_or_number(examples) for part, examples in parts.items()},
        num_clients=num_clients,
        alpha=alpha,
        key=key.fold("partition"),
    )
    train, noisy = with_noise(parts["train"], num_classes, noise, key.fold("label_noise"))
    return FederatedData(
        train=train,
        validation=parts["validation"],
        test=parts["test"],
        label_names=tuple(f"class {c}" for c in range(num_classes)) if classes else None,
        metric=None,
        partition=spread,
        noisy=noisy,
    )
