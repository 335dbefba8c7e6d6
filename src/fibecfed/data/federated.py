"""A data set spread over clients: the object that a federated run reads its examples from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.classification import classes_of
from ..core.errors import UserError
from ..core.rng import Key
from ..core.trees import checksum
from ..core.types import ClientData, ClientId
from .answers import AnswerSplit, Cuts
from .cuts import stratified_cut, subset
from .instructions import AnswerDataset
from .options import DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH_PAIRS, DataOptions
from .partition import PARTS, Kind, Partition
from .partition import partition as spread_examples
from .prompt import Prompt
from .sources import TextDataset, TextSplit
from .text import TableExamples, TokenTable, token_table
from .tokenise import tokenise


@dataclass(frozen=True)
class FederatedData:
    """Tokenised examples and who holds them.

    Attributes:
        train: all training examples, with the labels that are trained on. Nobody in the federation sees them together.
        validation, test: all examples of these parts, for the server's model.
        label_names: names of the classes, in order of the label; None where the examples have no classes.
        noisy: which training labels were replaced by another class (`data.label_noise`), bool, shape (training examples,).
        partition: its positions are those of `train`, `validation` and `test`; its counts are of the labels before any were replaced.
        max_length: tokens that examples were truncated to; 0 where there were no texts.
        read: what was read from where, a sentence for each file or source.
        notes: what the reader has to be told about it: a sentence each.
        cuts: of answers, what became of the examples, by part as they were read.
    """

    train: TableExamples
    validation: TableExamples
    test: TableExamples
    label_names: tuple[str, ...] | None
    metric: str | None
    partition: Partition
    noisy: Tensor
    max_length: int = 0
    read: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cuts: Mapping[str, Cuts] = field(default_factory=dict[str, Cuts])

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """Ids in ascending order."""
        return self.partition.clients

    def client(self, client: ClientId) -> ClientData:
        """What one client holds, as views: nothing is copied.

        Raises:
            KeyError: no such client.
        """
        held = self.partition.indices
        return ClientData(
            train=self.train.select(held["train"][client]),
            validation=self.validation.select(held["validation"][client]),
            test=self.test.select(held["test"][client]),
        )

    def held_by(self, clients: Sequence[ClientId], part: str) -> TableExamples:
        """The examples of a part that some clients hold together, in the order of the part."""
        examples, held = getattr(self, part), self.partition.indices[part]
        if len(clients) == len(self.clients) or not len(examples):
            return examples
        return examples.select(torch.cat([held[client] for client in clients]).sort().values)

    def class_counts(self, part: str) -> np.ndarray:
        """Examples by client (in the order of `clients`) and class, of the labels before any were replaced, shape (clients, classes).

        Raises:
            UserError: the examples have no classes.
        """
        counts = self.partition.counts[part]  # ends at the last class that has an example
        return np.pad(counts, ((0, 0), (0, len(self.classes("a count of classes")) - counts.shape[1])))

    def classes(self, what: str) -> tuple[str, ...]:
        """Names of the classes, in order of the label.

        Args:
            what: what needs them, as the beginning of the sentence that rejects other data.

        Raises:
            UserError: the examples have no classes.
        """
        if self.label_names is None:
            raise UserError(f"{what} needs examples with classes, which these do not have; use data with a column of labels")
        return self.label_names

    def checksum(self) -> str:
        """SHA-256 over the tokens, the labels and the order of all examples, as hex; of texts alike to the model it is the same."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        tables = {"pool": self.train.table, "test": self.test.table}
        return checksum(
            {f"{name} tokens": table.ids for name, table in tables.items()}
            | {f"{name} offsets": table.offsets for name, table in tables.items()}
            | {f"{name} rows": part.indices for name, part in parts.items()}
            | {f"{name} labels": part.labels for name, part in parts.items() if part.labels is not None}
            | {f"{name} learned": table.learned for name, table in tables.items() if table.learned is not None}
        )

    def flipped(self, client: ClientId) -> Tensor:
        """Which of the client's training labels were replaced by another class, bool, shape (its training examples,)."""
        return self.noisy[self.partition.indices["train"][client]]


def federate(
    dataset: TextDataset | AnswerDataset,
    tokenizer: Any,
    options: DataOptions,
    *,
    clients: int,
    partition: Kind = "dirichlet",
    alpha: float = 1.0,
    size_alpha: float = 5.0,
    shards_per_client: int = 2,
    key: Key,
    prompt: Prompt | None = None,
) -> FederatedData:
    """Draw, cut, tokenise and spread a data set.

    A pool of examples is drawn from train, so large that `max_train` of them are left after a stratified `validation_fraction` was
    cut off; `max_test` are drawn from test. Both are spread over the clients by their true labels; then `label_noise` of the training
    labels are replaced by another class, each equally likely. Examples without classes are cut at random, and spread by column or evenly.

    Args:
        tokenizer: a Hugging Face tokenizer.
        clients: K; not used by the partition "column", whose clients are those that hold a training example.
        key: decides all draws: the pool ("train"), the test subset ("test"), the validation part, the partition, the noise.
        prompt: a template that the texts are put into.

    Raises:
        UserError: more clients than training examples, a partition by column without that column, a client known to test alone, or a
            partition by class or noise in the labels of examples without classes.
    """
    groups = _groups(dataset, partition)
    rows, num_validation = _pool(len(dataset.train), options)
    pool = dataset.train.take(subset(len(dataset.train), rows, key.fold("train")))
    kept, cut = stratified_cut(pool.strata, num_validation, key.fold("validation"), pool.clients if groups else None)
    test_rows = subset(len(dataset.test), options.max_test, key.fold("test"))
    if groups and rows is not None:
        drawn = set(pool.clients or ())  # clients that the draw left without an example take no part, in testing neither
        test_rows = np.array([row for row in test_rows if (dataset.test.clients or ())[row] in drawn], dtype=np.int64)
    test = dataset.test.take(test_rows)
    max_length = _max_length(dataset, options)
    pool_table, test_table = (_tokens(part, tokenizer, max_length, prompt) for part in (pool, test))
    train_view, validation_view = pool_table.view(torch.from_numpy(kept)), pool_table.view(torch.from_numpy(cut))
    spread = spread_examples(
        partition,
        {"train": classes_or_number(train_view), "validation": classes_or_number(validation_view), "test": classes_or_number(test)},
        num_clients=clients,
        alpha=alpha,
        size_alpha=size_alpha,
        shards_per_client=shards_per_client,
        groups=_held_by(pool.clients, kept, cut, test.clients) if groups else None,
        key=key.fold("partition"),
    )
    train, noisy = with_noise(train_view, len(dataset.label_names or ()), options.label_noise, key.fold("label_noise"))
    return FederatedData(
        train=train,
        validation=validation_view,
        test=test_table.view(),
        label_names=dataset.label_names,
        metric=dataset.metric,
        partition=spread,
        noisy=noisy,
        max_length=max_length,
        read=dataset.read,
        notes=dataset.notes,
        cuts=dataset.cuts if isinstance(dataset, AnswerDataset) else {},
    )


def _max_length(dataset: TextDataset | AnswerDataset, options: DataOptions) -> int:
    if isinstance(dataset, AnswerDataset):
        return dataset.max_length
    return options.max_length or (DEFAULT_MAX_LENGTH_PAIRS if dataset.pair else DEFAULT_MAX_LENGTH)


def _tokens(part: TextSplit | AnswerSplit, tokenizer: Any, max_length: int, prompt: Prompt | None) -> TokenTable:
    """Those of a part; of one with answers, which is left out where nothing of them is left, they are known already."""
    return part.table if isinstance(part, AnswerSplit) else tokenise(tokenizer, part, max_length, prompt)


def classes_or_number(part: TableExamples | TextSplit | AnswerSplit) -> Tensor | int:
    """What `partition` takes of a part: the class of each example, or how many there are where they have no classes."""
    return len(part) if part.labels is None else part.labels


def federate_one(
    dataset: TextDataset | AnswerDataset, tokenizer: Any, options: DataOptions, client: ClientId, key: Key, prompt: Prompt | None = None
) -> FederatedData:
    """The data of a machine that is one client: as `federate`, with all of it held by `client`."""
    whole = federate(dataset, tokenizer, options, clients=1, partition="iid", key=key, prompt=prompt)
    (alone,) = whole.clients
    held = {part: {client: indices[alone]} for part, indices in whole.partition.indices.items()}
    return replace(whole, partition=replace(whole.partition, clients=(client,), indices=held))


def absent(clients: Sequence[ClientId], label_names: Sequence[str] | None) -> FederatedData:
    """What a server knows of data that lies with its clients: their ids and the classes, if there are any, and not one example."""
    nothing = token_table([], None if label_names is None else []).view()
    held = {part: dict.fromkeys(clients, torch.empty(0, dtype=torch.int64)) for part in PARTS}
    counts = {part: np.zeros((len(clients), 1 if label_names is None else len(label_names)), dtype=np.int64) for part in PARTS}
    return FederatedData(
        train=nothing,
        validation=nothing,
        test=nothing,
        label_names=None if label_names is None else tuple(label_names),
        metric=None,
        partition=Partition("column", tuple(sorted(clients)), held, counts),
        noisy=torch.zeros(0, dtype=torch.bool),
    )


def made_up(
    clients: Sequence[ClientId],
    dataset: TextDataset | AnswerDataset,
    tokenizer: Any,
    options: DataOptions,
    *,
    each: int,
    prompt: Prompt | None = None,
) -> FederatedData:
    """Training examples for estimates where the data lie elsewhere: every client holds those of `dataset` over and over.

    Args:
        dataset: as `made_up_texts` or `instructions.made_up_answers` make it.
        each: training examples of a client.
    """
    plain = options.model_copy(update={"max_train": None, "max_test": None, "validation_fraction": 0.0, "label_noise": 0.0})
    whole = federate(dataset, tokenizer, plain, clients=1, partition="iid", key=Key(0), prompt=prompt)
    held = {"train": torch.arange(each) % len(dataset.train)}
    indices = {part: dict.fromkeys(clients, held.get(part, torch.empty(0, dtype=torch.int64))) for part in PARTS}
    counts = {part: np.zeros((len(clients), len(dataset.label_names or " ")), dtype=np.int64) for part in PARTS}
    return replace(whole, partition=Partition("column", tuple(sorted(clients)), indices, counts))


def made_up_texts(label_names: Sequence[str], options: DataOptions, different: int) -> TextDataset:
    """So many texts as long as `options` lets them be, the classes in turn."""
    texts = ["data " * (options.max_length or DEFAULT_MAX_LENGTH_PAIRS)] * different
    split = TextSplit(texts, texts if options.pair_column is not None else None, torch.arange(different) % len(label_names), None)
    return TextDataset(split, split, tuple(label_names), options.pair_column is not None, None, "synthetic")


def with_noise(examples: TableExamples, num_classes: int, share: float, key: Key) -> tuple[TableExamples, Tensor]:
    """The examples with `share` of their labels replaced (`flip_labels`), and which were, bool, shape (examples,).

    Raises:
        UserError: a fraction of the labels of examples without classes.
    """
    if not share:
        return examples, torch.zeros(len(examples), dtype=torch.bool)
    labels, noisy = flip_labels(classes_of(examples, "data.label_noise", "remove it"), num_classes, share, key)
    return replace(examples, labels=labels), noisy


def flip_labels(labels: Tensor, num_classes: int, share: float, key: Key) -> tuple[Tensor, Tensor]:
    """Replace round(share n) labels, drawn at random, by another class, each equally likely.

    Returns:
        New labels, int64, and which were replaced, bool, both of shape (n,).
    """
    picked = key.fold("which").permutation(len(labels))[: round(share * len(labels))]
    noisy = torch.zeros(len(labels), dtype=torch.bool)
    noisy[picked] = True
    step = torch.randint(1, num_classes, (len(labels),), generator=key.fold("class").generator())
    return torch.where(noisy, (labels + step) % num_classes, labels), noisy


def _pool(size: int, options: DataOptions) -> tuple[int | None, int]:
    """How many rows are drawn from train (None: all), and how many of them become the validation part."""
    share = options.validation_fraction
    if options.max_train is not None:
        num_validation = round(options.max_train * share / (1 - share))
        if options.max_train + num_validation < size:
            return options.max_train + num_validation, num_validation
    return None, round(size * share)


def _groups(dataset: TextDataset | AnswerDataset, kind: Kind) -> bool:
    if kind != "column":
        return False
    if dataset.train.clients is None or dataset.test.clients is None:
        raise UserError("federation.partition = 'column' needs `data.client_column`, the column that names the client of an example.")
    strangers = sorted(set(dataset.test.clients) - set(dataset.train.clients))
    if strangers:
        raise UserError(
            f"data.client_column: {len(strangers)} clients of the test set have no training example: "
            f"{', '.join(map(repr, strangers[:10]))}. "
            "Expected every client in train; remove their rows from the test file, or add rows of theirs to the training file."
        )
    return True


def _held_by(pool: Sequence[str] | None, kept: np.ndarray, cut: np.ndarray, test: Sequence[str] | None) -> dict[str, list[str]]:
    names = list(pool or ())
    return {"train": [names[i] for i in kept], "validation": [names[i] for i in cut], "test": list(test or ())}
