"""Canaries: synthetic examples of which a coin decides who is trained on.

A canary is an example of a client whose words are replaced by words drawn at random from all training texts (of an example with an answer:
those of the answer), under a class drawn at random. No real text is like it, so what a model knows of it, it knows from having been
trained on it. Each client gets 2N of them, and trains on those whose coin shows heads. Where examples are of people, each is of a person
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.rng import Key
from ..core.types import ClientId
from ..data.federated import FederatedData
from ..data.text import TableExamples, TokenTable, offsets_of


@dataclass(frozen=True)
class Canaries:
    """The canaries of one client.

    Attributes:
        examples: all of them, trained on or not.
        planted: whether the client trained on each, bool, shape (canaries,).
    """

    examples: TableExamples
    planted: Tensor


def planted(data: FederatedData, each: int, key: Key) -> tuple[FederatedData, dict[ClientId, Canaries]]:
    """Data whose clients hold canaries besides, and those canaries.

    Args:
        each: N; a client without training examples gets none.
        key: of the words, classes and coins.
    """
    table, train = data.train.table, data.train
    words = table.ids[_words(table)].unique()
    classes = None if data.label_names is None else len(data.label_names)
    made, found, extra = list[TokenTable](), dict[ClientId, tuple[int, Tensor]](), dict[ClientId, Tensor]()
    for client in data.clients:
        held = data.partition.indices["train"][client]
        if not len(held) or not len(words):
            continue
        draw = key.fold("client", client).generator()
        rows = train.indices[held[torch.randint(len(held), (2 * each,), generator=draw)]]
        first = sum(map(len, made))
        found[client] = first, torch.rand(2 * each, generator=draw) < 0.5
        nobody = None if table.units is None else int(table.units.max()) + 1 + first + torch.arange(2 * each)
        made.append(replace(_replaced(table.take(rows), words, classes, draw), units=nobody))
    pool = _joined([table, *made])
    indices, labels, places = [train.indices], [train.labels], len(train)
    result = dict[ClientId, Canaries]()
    counts = np.array(data.partition.counts["train"])
    if classes is not None:
        counts = np.pad(counts, ((0, 0), (0, classes - counts.shape[1])))
    for client, (first, coins) in found.items():
        rows = len(table) + first + torch.arange(2 * each)
        of_pool = pool.view(rows)
        result[client] = Canaries(of_pool, coins)
        own = rows[coins]
        indices.append(own)
        labels.append(None if of_pool.labels is None else of_pool.labels[coins])
        extra[client] = torch.arange(places, places + len(own))
        places += len(own)
        column = torch.zeros(len(own), dtype=torch.int64) if of_pool.labels is None else of_pool.labels[coins]
        np.add.at(counts[data.clients.index(client)], column.numpy(), 1)
    spread = {
        client: torch.cat([held, extra[client]]) if client in extra else held for client, held in data.partition.indices["train"].items()
    }
    partition = replace(
        data.partition,
        indices={**data.partition.indices, "train": spread},
        counts={**data.partition.counts, "train": counts},
    )
    grown = TableExamples(pool, torch.cat(indices), None if train.labels is None else torch.cat([one for one in labels if one is not None]))
    validation = replace(data.validation, table=pool) if data.validation.table is table else data.validation
    noisy = torch.cat([data.noisy, torch.zeros(places - len(train), dtype=torch.bool)])
    return replace(data, train=grown, validation=validation, partition=partition, noisy=noisy), result


def _words(table: TokenTable) -> Tensor:
    """Which tokens of a table are replaced, bool, shape (tokens,)."""
    words = ~torch.isin(table.ids, table.special_ids)
    if table.learned is not None:
        return words & table.learned
    return words if table.segments is None else words & (table.segments > 0)


def _replaced(table: TokenTable, words: Tensor, classes: int | None, draw: torch.Generator) -> TokenTable:
    """Examples with other words, and other classes where they have some."""
    drawn = words[torch.randint(len(words), (len(table.ids),), generator=draw)]
    labels = None if classes is None else torch.randint(classes, (len(table),), generator=draw)
    return replace(table, ids=torch.where(_words(table), drawn, table.ids), labels=labels)


def _joined(tables: Sequence[TokenTable]) -> TokenTable:
    """Tables of one kind, one after the other."""
    first = tables[0]

    def together(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.cat([getattr(table, name) for table in tables])

    names = ("labels", "token_type_ids", "segments", "whole_lengths", "digests", "learned", "units")
    bare = [table.bare for table in tables if table.bare is not None]
    return replace(
        first,
        ids=torch.cat([table.ids for table in tables]),
        offsets=offsets_of(torch.cat([table.lengths for table in tables])),
        bare=_joined(bare) if bare else None,
        **{name: together(name) for name in names},
    )
