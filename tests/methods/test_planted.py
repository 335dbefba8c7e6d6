"""Data and models with a known answer: flipped labels are the hardest examples, and the neurons that matter are the ones kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import KEY, client_view, federation, made_method
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.data.planted import planted_classes, planted_federation
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import tiny_task

TRAINING = TrainingOptions(local_epochs=2, batch_size=8, learning_rate=0.02)


def auc(scores: Tensor, flagged: Tensor) -> float:
    """How often a flagged example scores higher than another one."""
    higher = scores[flagged][:, None] > scores[~flagged][None, :]
    return float(higher.double().mean())


def trace(task: Any, params: Any, examples: Any) -> Tensor:
    return fisher_pass(task, params, [examples.batch(list(range(len(examples))))]).trace


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_rank_hardest_once_the_head_is_trained(seed: int):
    task = tiny_task("bert", hidden=64, rank=8, vocab=32)
    data = planted_federation(5, 40, Key(seed), vocab_size=32, length=10, noise=0.1, test_per_client=10)
    method = made_method(rounds=8, training=TRAINING, layers={"rule": "last", "value": 1}, score_after=4)
    world = federation(method, task, data, per_round=5)
    difficulty: dict[str, Tensor] = {}
    for step in world.run():
        for client, notes in step.record.notes.items():
            if "difficulty" in notes:
                assert step.now.index == 4
                difficulty[client] = torch.tensor(notes["difficulty"])
    assert set(difficulty) == set(data.clients)
    start = task.init_params(KEY.fold("run", "init"))
    flipped = torch.cat([data.flipped(client) for client in data.clients])
    before = auc(torch.cat([trace(task, start, data.client(client).train) for client in data.clients]), flipped)
    after = auc(torch.cat([difficulty[client] for client in data.clients]), flipped)
    print(f"\nseed {seed}: AUC of the difficulty for flipped labels: {before:.2f} at the start, {after:.2f} at score_after")
    assert after > 0.7 and after > before
    # within a client as well: what the curriculum leaves for later
    for client in data.clients:
        hardest = torch.argsort(difficulty[client], descending=True)[: int(data.flipped(client).sum())]
        assert not len(hardest) or data.flipped(client)[hardest].double().mean() >= 0.5
    truth = planted_classes(data.test.table, 2)
    batch = data.test.batch(list(range(len(data.test))))
    assert (task.predict(world.server.params, batch) == truth[data.test.indices]).double().mean() > 0.9


def planted_model(share: float, faint: float = 1e-3) -> tuple[Any, dict[str, Tensor]]:
    """A tiny BERT in whose first layer only some neurons of each LoRA tensor have much to say, and which ones.

    A value is heard through its column of the attention's output map, a query through the key of the same place, a rank through its row
    of A.
    """
    task = tiny_task("bert", layers=2, hidden=16, rank=4)
    attention = task.model.get_base_model().bert.encoder.layer[0].attention
    chosen: dict[str, Tensor] = {}
    for name in task.names:
        if task.layer_of(name) == 0:
            rows = 4 if "lora_A" in name else 16
            kept = Key(3).fold(name).permutation(rows)[: int(share * rows)]
            chosen[name] = torch.zeros(rows, dtype=torch.bool).index_fill_(0, kept, True)
    with torch.no_grad():
        for name, kept in chosen.items():
            factor = torch.where(kept, 1.0, faint)
            if ".value.lora_B" in name:
                attention.output.dense.weight.mul_(20 * factor)
            elif ".query.lora_B" in name:
                attention.self.key.weight.copy_(20 * factor[:, None] * attention.self.key.weight)
    drawn = task.init_params

    def init_params(key: Key) -> dict[str, Tensor]:
        params = drawn(key)
        for name, kept in chosen.items():
            if "lora_A" in name:
                params[name] = params[name] * torch.where(kept, 1.0, faint)[:, None]
        return params

    task.init_params = init_params
    return task, chosen


@pytest.mark.parametrize("rule", ["share", "coverage"])
def test_planted_informative_neurons_are_the_ones_kept(rule: str):
    task, chosen = planted_model(0.5)
    data = planted_federation(3, 40, Key(0), vocab_size=64, length=10)
    neurons = {"rule": rule, "value": 0.5 if rule == "share" else 0.98}
    method = made_method(rounds=4, training=TRAINING, layers={"rule": "last", "value": 1}, neurons=neurons, curriculum={"pace": "none"})
    world = federation(method, task, data, per_round=3)
    now = Round("tune", 0, 4, 0)
    down = method.phases[0].broadcast(world.server, now)
    for client in data.clients:
        asked = client_view(world, client)
        update = method.phases[0].client_update(asked, down, now)
        assert set(update.state.own) == set(chosen)
        for name, kept in chosen.items():
            moved = (update.state.own[name] != asked.state.own[name]).any(-1)
            if rule == "share":
                assert torch.equal(moved, kept), name
            else:
                assert moved.any() and not (moved & ~kept).any(), name
