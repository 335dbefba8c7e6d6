from __future__ import annotations

import pytest
import torch

from fibecfed.core.rng import Key
from fibecfed.data.planted import FIRST_MARKER, START, planted_classes, planted_federation, planted_tokens
from fibecfed.local.batches import batches


def test_the_markers_tell_the_label_of_every_example():
    table = planted_tokens(300, 3, 32, 9, Key(0))
    assert torch.equal(planted_classes(table, 3), table.labels)
    assert table.labels.bincount().tolist() == [100, 100, 100]
    assert set(table.lengths.tolist()) == {5, 6, 7, 8, 9} and int(table.ids.max()) < 32
    for i in range(300):
        tokens = table.ids[table.offsets[i] : table.offsets[i + 1]].tolist()
        markers = [token for token in tokens if FIRST_MARKER <= token < FIRST_MARKER + 3]
        assert tokens[0] == START and START not in tokens[1:]
        assert markers == [FIRST_MARKER + int(table.labels[i])] * max(1, len(tokens) // 4)


def test_noise_replaces_labels_and_leaves_the_markers():
    table = planted_tokens(200, 3, 32, 8, Key(0), noise=0.25)
    assert int((planted_classes(table, 3) != table.labels).sum()) == 50


def test_a_bag_of_tokens_learns_planted_data_in_a_few_hundred_steps():
    train, test = planted_tokens(400, 3, 32, 10, Key(0)).view(), planted_tokens(200, 3, 32, 10, Key(1)).view()
    torch.manual_seed(0)
    model = torch.nn.EmbeddingBag(32, 3, padding_idx=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(20):
        for batch in batches(train, Key(0).fold(epoch).permutation(400), 40):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"]).backward()
            optimiser.step()
    batch = test.batch(range(200))
    assert (model(batch["input_ids"]).argmax(1) == batch["labels"]).float().mean() > 0.97


def test_a_planted_federation_knows_its_flipped_labels():
    data = planted_federation(20, 10, Key(0), noise=0.1, partition="dirichlet", alpha=0.5)
    truth = planted_classes(data.train.table, 2)
    assert int(data.noisy.sum()) == 20
    for client in data.clients:
        held = data.client(client).train
        assert torch.equal(held.labels != truth[held.indices], data.flipped(client))


def test_ten_thousand_planted_clients_are_cheap():
    data = planted_federation(10_000, 4, Key(0), validation_per_client=0)
    assert data.clients[0] == "0000" and len(data.clients) == 10_000
    held = data.client("1234")
    assert (len(held.train), len(held.validation), len(held.test)) == (4, 0, 2)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size = 4"):
        planted_tokens(10, 2, 4, 8, Key(0))
