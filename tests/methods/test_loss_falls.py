"""Every method learns: the loss of its clients' models falls on planted data."""

from __future__ import annotations

import pytest
import torch
from made import KEY, federation, made_method

from fibecfed.core.types import Round
from fibecfed.data.planted import planted_federation
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS
from fibecfed.models.tiny import tiny_task

TRAINING = TrainingOptions(local_epochs=2, batch_size=8, learning_rate=0.02)
TASK = tiny_task("bert", hidden=32, rank=8, vocab=16)
RATES = {"ffa-lora": 0.1}
"""Where another rate than the common one is needed: half of LoRA moves, through an A that was drawn at random."""
DATA = planted_federation(3, 24, KEY.fold("planted"), vocab_size=16, length=12)


def loss(world, now: Round) -> float:
    """Mean loss of the clients' models on their own training examples."""
    phase = next(phase for phase in world.method.phases if phase.name == now.phase)
    down = phase.broadcast(world.server, now)
    total = []
    for client in DATA.clients:
        state = world.state(client) or world.method.init_client(TASK, client, KEY.fold("run", "init"))
        train = DATA.client(client).train
        with torch.no_grad():
            total.append(TASK.losses(world.method.personalise(down, state), train.batch(list(range(len(train))))))
    return float(torch.cat(total).mean())


@pytest.mark.parametrize("kind", METHODS)
def test_the_loss_falls_on_planted_data(kind: str):
    training = TRAINING.model_copy(update={"learning_rate": RATES.get(kind, TRAINING.learning_rate)})
    world = federation(made_method(kind, rounds=8, clients=3, training=training), TASK, DATA, per_round=3)
    start = TASK.init_params(KEY.fold("run", "init"))
    with torch.no_grad():
        before = float(TASK.losses(start, DATA.train.batch(list(range(len(DATA.train))))).mean())
    after = loss(world, world.finish()[-1].now)
    print(f"\n{kind}: {before:.3f} -> {after:.3f}")
    assert after < 0.8 * before
