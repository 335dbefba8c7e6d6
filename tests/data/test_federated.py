from __future__ import annotations

import pytest
import torch

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.data.federated import federate, flip_labels
from fibecfed.data.options import DataOptions


def options(**values):
    return DataOptions(task="sst2", **values)


def texts_of(tokenizer, examples):
    return [tokenizer.decode(examples.batch([i])["input_ids"][0], skip_special_tokens=True) for i in range(len(examples))]


def test_clients_together_hold_every_example_once(tokenizer, made_dataset):
    dataset = made_dataset()
    data = federate(dataset, tokenizer, options(), clients=7, alpha=0.3, key=Key(0))
    assert data.clients == tuple("0123456")
    held = {part: [] for part in ("train", "validation", "test")}
    for client in data.clients:
        for part, into in held.items():
            into += texts_of(tokenizer, getattr(data.client(client), part))
    assert sorted(held["train"] + held["validation"]) == sorted(texts_of(tokenizer, data.train) + texts_of(tokenizer, data.validation))
    assert sorted(held["train"] + held["validation"]) == sorted(dataset.train.texts)
    assert sorted(held["test"]) == sorted(dataset.test.texts)
    assert len(held["validation"]) == 10


def test_texts_keep_their_labels(tokenizer, made_dataset):
    data = federate(made_dataset(num_classes=3), tokenizer, options(max_train=40, max_test=9), clients=3, key=Key(0))
    for examples in (data.train, data.validation, data.test, data.client("1").train):
        for text, label in zip(texts_of(tokenizer, examples), examples.labels.tolist(), strict=True):
            assert int(text.split()[-1]) % 3 == label


def test_max_train_counts_the_examples_that_are_trained_on(tokenizer, made_dataset):
    data = federate(made_dataset(200, 50), tokenizer, options(max_train=90, max_test=20), clients=4, key=Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    data = federate(made_dataset(200, 50), tokenizer, options(max_train=199), clients=4, key=Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 50)
    data = federate(made_dataset(200, 50), tokenizer, options(validation_fraction=0.0), clients=4, key=Key(0))
    assert (len(data.train), len(data.validation)) == (200, 0)


def test_pairs_are_given_more_tokens(tokenizer, made_dataset):
    long = made_dataset(40, 10, pair=True)
    texts = [text + " word" * 200 for text in long.train.texts]
    train = type(long.train)(texts, long.train.pairs, long.train.labels, None)
    dataset = type(long)(train, long.test, long.label_names, True, None, "made")
    assert federate(dataset, tokenizer, options(), clients=2, key=Key(0)).train.lengths.max() == 128
    assert federate(dataset, tokenizer, options(max_length=20), clients=2, key=Key(0)).train.lengths.max() == 20
    single = type(long)(
        type(long.train)(texts, None, long.train.labels, None), made_dataset(4, 10).test, long.label_names, False, None, "made"
    )
    assert federate(single, tokenizer, options(), clients=2, key=Key(0)).train.lengths.max() == 64


def test_label_noise_changes_train_alone_and_tells_where(tokenizer, made_dataset):
    dataset = made_dataset(200, 50, num_classes=4)
    clean = federate(dataset, tokenizer, options(), clients=5, key=Key(0))
    noisy = federate(dataset, tokenizer, options(label_noise=0.1), clients=5, key=Key(0))
    assert int(noisy.noisy.sum()) == 18 and not clean.noisy.any()
    for client in clean.clients:
        a, b = clean.client(client), noisy.client(client)
        assert torch.equal(a.train.labels != b.train.labels, noisy.flipped(client))
        assert torch.equal(a.validation.labels, b.validation.labels) and torch.equal(a.test.labels, b.test.labels)
    assert clean.partition.table() == noisy.partition.table()


def test_flipped_labels_are_spread_over_the_other_classes():
    labels = torch.zeros(3000, dtype=torch.int64)
    new, noisy = flip_labels(labels, 4, 0.5, Key(0))
    counts = new.bincount(minlength=4).tolist()
    assert counts[0] == 1500 and int(noisy.sum()) == 1500 and all(430 < count < 570 for count in counts[1:])
    assert torch.equal(new != labels, noisy)


def test_the_key_decides_everything(tokenizer, made_dataset):
    a, b, c = (federate(made_dataset(), tokenizer, options(max_train=50), clients=5, key=Key(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.train.table.ids, b.train.table.ids) and a.partition.table() == b.partition.table()
    assert not torch.equal(a.train.table.ids, c.train.table.ids)


def test_natural_clients_keep_their_own_rows_and_at_least_one_to_train_on(tokenizer, made_clients):
    dataset = made_clients(["a", "a", "b", "c", "c", "c"] * 3 + ["solo"], ["c", "a", "b"])
    data = federate(dataset, tokenizer, options(validation_fraction=0.5), clients=99, partition="column", key=Key(0))
    assert data.clients == ("a", "b", "c", "solo")
    for client in data.clients:
        held = data.client(client)
        assert len(held.train) >= 1
        rows = [int(text.split()[-1]) for text in texts_of(tokenizer, held.train) + texts_of(tokenizer, held.validation)]
        assert {dataset.train.clients[row] for row in rows} == {client}
    assert texts_of(tokenizer, data.client("c").test) == [dataset.test.texts[0]]
    assert len(data.client("solo").validation) == 0


def test_natural_clients_that_the_draw_left_out_are_not_tested(tokenizer, made_clients):
    names = [f"n{i:02d}" for i in range(30)]
    data = federate(made_clients(names, names), tokenizer, options(max_train=9), clients=1, partition="column", key=Key(0))
    assert len(data.clients) == 10 == len(data.test) and len(data.validation) == 0


def test_a_column_without_its_name_or_with_a_client_known_to_test_alone_is_refused(tokenizer, made_dataset, made_clients):
    with pytest.raises(UserError, match=r"needs `data.client_column`"):
        federate(made_dataset(), tokenizer, options(), clients=1, partition="column", key=Key(0))
    with pytest.raises(UserError, match="no training example: 'new'"):
        federate(made_clients(["a"] * 6, ["a", "new"]), tokenizer, options(), clients=1, partition="column", key=Key(0))


def test_more_clients_than_training_examples_are_refused(tokenizer, made_dataset):
    with pytest.raises(UserError, match="got 95 clients for 90 training examples"):
        federate(made_dataset(), tokenizer, options(), clients=95, key=Key(0))
