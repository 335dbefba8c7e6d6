"""Who holds which example: partitions over clients, some of them by class. No example twice, none left over."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import Key
from ..core.types import ClientId
from .cuts import generator, largest_remainder

Kind = Literal["dirichlet", "iid", "shards", "column"]
PARTS = ("train", "validation", "test")

BY_CLASS: tuple[Kind, ...] = ("dirichlet", "shards")
"""The partitions that need classes."""
WITHOUT_CLASSES = 'set "column" or "iid"'

_FLOOR = 1e-9  # smallest class prior: keeps every cell of the table reachable for proportional fitting
_FITTING_STEPS = 500
_FITTING_TOLERANCE = 1e-4  # examples


@dataclass(frozen=True)
class Partition:
    """The realised spread.

    Attributes:
        clients: ids in ascending order.
        indices: part -> client -> positions inside the part, int64, ascending. A client may hold nothing of validation and test.
        counts: part -> examples by client (in the order of `clients`) and class, int64, shape (clients, classes); one column of all of them
            where they have no classes.
    """

    kind: Kind
    clients: tuple[ClientId, ...]
    indices: Mapping[str, Mapping[ClientId, Tensor]]
    counts: Mapping[str, np.ndarray]

    def table(self) -> dict[ClientId, dict[str, list[int]]]:
        """Client -> part -> number of examples of each class, or of all where they have none, as JSON values."""
        rows = {part: counts.tolist() for part, counts in self.counts.items()}
        return {client: {part: rows[part][k] for part in rows} for k, client in enumerate(self.clients)}


def client_ids(num_clients: int) -> tuple[ClientId, ...]:
    """Decimal numbers from 0, zero-padded to one width, so that they sort as strings the way they sort as numbers.

    >>> client_ids(11)[:2], client_ids(11)[-1]
    (('00', '01'), '10')
    """
    width = len(str(num_clients - 1))
    return tuple(f"{k:0{width}d}" for k in range(num_clients))


def partition(
    kind: Kind,
    parts: Mapping[str, Tensor | int],
    *,
    num_clients: int,
    key: Key,
    alpha: float = 1.0,
    size_alpha: float = 5.0,
    shards_per_client: int = 2,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Partition:
    """Spread the examples of every part over clients.

    Args:
        kind: "dirichlet", "iid", "shards" or "column": see the function of that name (`by_column`).
        parts: classes of the examples of "train" and of any other parts, int64, shape (examples,); or their number where they have none.
        num_clients: K; not used by "column".
        alpha, size_alpha: for "dirichlet".
        shards_per_client: for "shards".
        groups: for "column": part -> the client of each example.

    Raises:
        UserError: more clients than training examples, a partition by class of examples without, or what the function of that name raises.
    """
    if kind in BY_CLASS and any(isinstance(held, int) for held in parts.values()):
        raise UserError(
            f'federation.partition: got "{kind}", which depends on the classes, for examples without classes; {WITHOUT_CLASSES}'
        )
    labels = {part: np.zeros(held) if isinstance(held, int) else np.asarray(held) for part, held in parts.items()}
    labels = {part: values.astype(np.int64) for part, values in labels.items()}
    num_train = len(labels["train"])
    if kind == "column":
        if groups is None:
            raise UserError("federation.partition = 'column' needs `data.client_column`, the column that names the client of an example.")
        return by_column(labels, groups)
    if num_clients > num_train:
        raise UserError(
            f"federation.clients: got {num_clients} clients for {num_train} training examples; expected at most one client per example. "
            "Lower `federation.clients`, raise `data.max_train` or add data."
        )
    if kind == "dirichlet":
        return dirichlet(labels, num_clients, alpha, size_alpha, key)
    if kind == "iid":
        return iid(labels, num_clients, key)
    if kind == "shards":
        return shards(labels, num_clients, shards_per_client, key)
    raise UserError(f"federation.partition: got {kind!r}, expected dirichlet, iid, shards or column.")


def dirichlet(labels: Mapping[str, np.ndarray], num_clients: int, alpha: float, size_alpha: float, key: Key) -> Partition:
    """Sizes s ~ Dirichlet(size_alpha), class priors p_k ~ Dirichlet(alpha) for each client, independent.

    The table of counts of each part is s_k p_kc, fitted proportionally to the client sizes (s_k n) and the class totals of the
    part, then rounded by largest remainder within each class, so that every example is given away. Train, validation and test share
    s and p. A client that would have no training example gets one from the client that then has most, of the class its own prior
    likes best among those that client holds.

    Source: Hsu et al. 2019 (arXiv 1909.06335) for the priors; the sizes, the fitting and the shared priors are our own choice.
    """
    draw = generator(key.fold("dirichlet"))
    num_classes = _num_classes(labels)
    sizes = draw.dirichlet(np.full(num_clients, size_alpha))
    priors = np.maximum(draw.dirichlet(np.full(num_classes, alpha), size=num_clients), _FLOOR)
    joint = np.maximum(sizes, _FLOOR / num_clients)[:, None] * priors / priors.sum(1, keepdims=True)
    counts = {part: _spread(joint, np.bincount(values, minlength=num_classes)) for part, values in labels.items()}
    _fill_empty(counts["train"], priors)
    return _deal("dirichlet", labels, counts, key)


def iid(labels: Mapping[str, np.ndarray], num_clients: int, key: Key) -> Partition:
    """A random order dealt out evenly: sizes within a part differ by at most 1."""
    holder = {}
    for part, values in labels.items():
        draw = generator(key.fold("iid", part))
        clients = np.arange(len(values)) % num_clients
        holder[part] = draw.permutation(num_clients)[clients[draw.permutation(len(values))]]
    return _collect("iid", client_ids(num_clients), labels, holder)


def shards(labels: Mapping[str, np.ndarray], num_clients: int, shards_per_client: int, key: Key) -> Partition:
    """Training examples sorted by label (inside a label: in random order), cut into equal shards, `shards_per_client` to each client.

    Validation and test are spread so that each class goes to the clients in proportion to what they hold of it in train.

    Source: McMahan et al. 2017 (AISTATS), who leave the test set in one piece.

    Raises:
        UserError: more shards than training examples.
    """
    train = labels["train"]
    num_shards = num_clients * shards_per_client
    if num_shards > len(train):
        raise UserError(
            f"federation.shards_per_client: {num_clients} clients x {shards_per_client} shards are {num_shards} shards for {len(train)} "
            "training examples; expected at most one shard per example. Lower `federation.shards_per_client` or `federation.clients`."
        )
    draw = generator(key.fold("shards"))
    shuffled = draw.permutation(len(train))
    in_order = shuffled[np.argsort(train[shuffled], kind="stable")]
    owner = draw.permutation(np.repeat(np.arange(num_clients), shards_per_client))
    shard = np.arange(len(train)) * num_shards // len(train)
    holder = {"train": np.empty(len(train), dtype=np.int64)}
    holder["train"][in_order] = owner[shard]
    num_classes = _num_classes(labels)
    held = _counts(train, holder["train"], num_clients, num_classes)
    for part, values in labels.items():
        if part != "train":
            counts = _spread(held.astype(float), np.bincount(values, minlength=num_classes))
            holder[part] = _assign(values, counts, key.fold("deal", part))
    return _collect("shards", client_ids(num_clients), labels, holder)


def by_column(labels: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[str]]) -> Partition:
    """Each example goes to the client its row names; clients are those of train, sorted.

    Raises:
        UserError: a client in another part that has no training example.
    """
    clients = tuple(sorted(set(groups["train"])))
    number = {client: k for k, client in enumerate(clients)}
    for part in labels:
        strangers = sorted(set(groups[part]) - number.keys())
        if strangers:
            raise UserError(
                f"data.client_column: {len(strangers)} clients in {part} have no training example: {', '.join(map(repr, strangers[:10]))}. "
                "Expected every client in train; remove their rows, or move some to the training file."
            )
    holder = {part: np.array([number[client] for client in groups[part]], dtype=np.int64) for part in labels}
    return _collect("column", clients, labels, holder)


def _num_classes(labels: Mapping[str, np.ndarray]) -> int:
    return 1 + max(int(values.max()) for values in labels.values() if len(values))


def _spread(joint: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Whole counts (clients, classes) in the proportions of `joint`, fitted to its client margins and to the class `totals`."""
    sizes = joint.sum(1)
    if not totals.any():
        return np.zeros(joint.shape, dtype=np.int64)
    # a class that nobody holds in `joint` is spread by size
    table = np.where(joint.sum(0) > 0, joint, sizes[:, None])
    rows, columns = sizes / sizes.sum() * totals.sum(), totals.astype(float)
    for _ in range(_FITTING_STEPS):
        table = table * (columns / np.maximum(table.sum(0), 1e-300))
        margin = table.sum(1)
        if np.abs(margin - rows).max() < _FITTING_TOLERANCE:
            break
        table = table * (rows / np.maximum(margin, 1e-300))[:, None]
    return np.stack([largest_remainder(table[:, c], int(total)) for c, total in enumerate(totals)], axis=1)


def _fill_empty(counts: np.ndarray, priors: np.ndarray) -> None:
    """Move one example to every client that has none, in place; there are at least as many examples as clients."""
    sizes = counts.sum(1)
    heap = [(-int(size), k) for k, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    for k in np.flatnonzero(sizes == 0):
        size, donor = heapq.heappop(heap)
        c = int(np.argmax(np.where(counts[donor] > 0, priors[k], -1.0)))
        counts[donor, c] -= 1
        counts[k, c] += 1
        if size + 1 < -1:
            heapq.heappush(heap, (size + 1, donor))


def _deal(kind: Kind, labels: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], key: Key) -> Partition:
    holder = {part: _assign(values, counts[part], key.fold("deal", part)) for part, values in labels.items()}
    return _collect(kind, client_ids(len(counts["train"])), labels, holder)


def _assign(labels: np.ndarray, counts: np.ndarray, key: Key) -> np.ndarray:
    """The client of each example: within a class, a random one of those that `counts` leaves room for."""
    order = generator(key).permutation(len(labels))
    holder = np.empty(len(labels), dtype=np.int64)
    for c in range(counts.shape[1]):
        holder[order[labels[order] == c]] = np.repeat(np.arange(len(counts)), counts[:, c])
    return holder


def _counts(labels: np.ndarray, holder: np.ndarray, num_clients: int, num_classes: int) -> np.ndarray:
    return np.bincount(holder * num_classes + labels, minlength=num_clients * num_classes).reshape(num_clients, num_classes)


def _collect(kind: Kind, clients: tuple[ClientId, ...], labels: Mapping[str, np.ndarray], holder: Mapping[str, np.ndarray]) -> Partition:
    num_classes = _num_classes(labels)
    indices: dict[str, Mapping[ClientId, Any]] = {}
    counts = {}
    for part, values in labels.items():
        counts[part] = _counts(values, holder[part], len(clients), num_classes)
        order = torch.from_numpy(np.argsort(holder[part], kind="stable"))
        indices[part] = dict(zip(clients, order.split(counts[part].sum(1).tolist()), strict=True))
    return Partition(kind, clients, indices, counts)
