"""Texts without classes: cut, tokenised and spread; what goes by class is rejected in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.data.federated import FederatedData, federate
from fibecfed.data.inspect import warnings
from fibecfed.data.options import DataOptions
from fibecfed.data.partition import partition
from fibecfed.data.planted import planted_federation
from fibecfed.data.sources import TextDataset, TextSplit

SPEAKERS = ["anna"] * 20 + ["ben"] * 12 + ["carl"] * 8


def split(size: int, speakers: Sequence[str] | None = None) -> TextSplit:
    clients = None if speakers is None else list(speakers)
    return TextSplit([f"line {number} of a play" for number in range(size)], None, None, clients)


def plays(speakers: bool = False) -> TextDataset:
    names = SPEAKERS if speakers else None
    return TextDataset(split(40, names), split(6, names and ["anna", "ben", "carl"] * 2), None, False, None, "made")


def federated(tokenizer: Any, dataset: TextDataset, **more: Any) -> FederatedData:
    options = DataOptions(path="plays.csv", **{name: more.pop(name) for name in list(more) if name in DataOptions.model_fields})
    return federate(dataset, tokenizer, options, **{"clients": 4, "key": Key(0), "partition": "iid", **more})


def test_a_partition_by_column_gives_each_text_to_its_speaker(tokenizer: Any) -> None:
    data = federated(tokenizer, plays(speakers=True), partition="column", validation_fraction=0.25)
    assert data.clients == ("anna", "ben", "carl") and data.label_names is None
    ones = {client: data.client(client) for client in data.clients}
    held = {client: [len(part) for part in (one.train, one.validation, one.test)] for client, one in ones.items()}
    assert {client: sizes[0] + sizes[1] for client, sizes in held.items()} == {"anna": 20, "ben": 12, "carl": 8}
    assert [len(data.validation), *(sizes[2] for sizes in held.values())] == [10, 2, 2, 2]
    assert data.partition.table()["ben"] == {part: [size] for part, size in zip(("train", "validation", "test"), held["ben"], strict=True)}


def test_a_cut_leaves_every_speaker_a_text_to_train_on(tokenizer: Any) -> None:
    data = federated(tokenizer, plays(speakers=True), partition="column", validation_fraction=0.95)
    assert all(len(data.client(client).train) for client in data.clients)
    assert len(data.train) + len(data.validation) == 40


def test_a_partition_at_random_is_even_and_the_same_for_the_same_key(tokenizer: Any) -> None:
    data, again = (federated(tokenizer, plays()) for _ in range(2))
    assert [len(data.client(client).train) for client in data.clients] == [9] * 4
    assert data.checksum() == again.checksum() and data.checksum() != federated(tokenizer, plays(), key=Key(1)).checksum()


def test_batches_have_no_labels_and_views_neither(tokenizer: Any) -> None:
    one = federated(tokenizer, plays()).client("0").train
    assert set(one.batch([0, 1])) == {"input_ids", "attention_mask", "token_type_ids"}
    assert one.labels is None and one.select(torch.tensor([0])).labels is None


@pytest.mark.parametrize("kind", ["dirichlet", "shards"])
def test_a_partition_by_class_is_refused_in_a_sentence(kind: Any, tokenizer: Any) -> None:
    said = f'federation.partition: got "{kind}", which depends on the classes, for examples without classes; set "column" or "iid"'
    for attempt in (
        lambda: federated(tokenizer, plays(), partition=kind),
        lambda: partition(kind, {"train": 9}, num_clients=3, key=Key(0)),
        lambda: planted_federation(3, 4, Key(0), partition=kind, classes=False),
    ):
        with pytest.raises(UserError) as rejection:
            attempt()
        assert str(rejection.value) == said


def test_label_noise_is_refused_in_a_sentence(tokenizer: Any) -> None:
    with pytest.raises(UserError) as rejection:
        federated(tokenizer, plays(), label_noise=0.1)
    assert str(rejection.value) == "data.label_noise needs examples with classes, which these do not have; remove it"


def test_what_asks_for_the_classes_of_such_data_is_refused_in_a_sentence(tokenizer: Any) -> None:
    data = federated(tokenizer, plays())
    for asked in (lambda: data.class_counts("train"), lambda: data.classes("a card")):
        with pytest.raises(UserError, match="needs examples with classes, which these do not have"):
            asked()


def test_a_look_at_the_data_says_nothing_of_classes_but_all_the_rest(tokenizer: Any) -> None:
    dataset = plays()
    assert not any("class" in text or "label" in text for text in warnings(federated(tokenizer, dataset)))
    copies = TextSplit(["the same line"] * 40, None, None, None)
    said = warnings(federated(tokenizer, replace(dataset, train=copies)))
    assert any("duplicates" in text for text in said) and not any("label" in text for text in said)
    assert any(
        text.startswith("fewer than 8 training examples on 8 of 8 clients") for text in warnings(federated(tokenizer, dataset, clients=8))
    )


def test_counts_without_classes_are_one_column() -> None:
    spread = partition("iid", {"train": 10, "test": 3}, num_clients=4, key=Key(0))
    assert sorted(np.concatenate([spread.counts["train"][:, 0], spread.counts["test"][:, 0]]).tolist()) == [0, 1, 1, 1, 2, 2, 3, 3]
    assert spread.counts["train"].shape == (4, 1)
