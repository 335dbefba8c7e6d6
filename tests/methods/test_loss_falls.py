"""Every method learns: the loss of its clients' models falls on planted data."""

from __future__ import annotations

import pytest
import torch
from made import KEY, federation, made_method, made_options

from fibecfed.core.types import Round
from fibecfed.data.planted import planted_federation
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS
from fibecfed.models.tiny import tiny_task
from fibecfed.models.transformer_task import TransformerTask

TRAINING = TrainingOptions(local_epochs=2, batch_size=8, learning_rate=0.02)
RATES = {"ffa-lora": 0.1, "lpt": 0.006, "idpg": 0.006, "momd": 0.1, "scaffold": 0.5}
"""Where another rate than the common one is needed: half of LoRA moves, through an A that was drawn at random; SGD takes smaller steps."""
OPTIONS = {"fedprox": {"proximal": 1e-4}, **{kind: {"server": {"learning_rate": 0.1}} for kind in ("fedadam", "fedyogi")}}
"""Where a default is not for eight rounds of a tiny model: its gradients are small beside a pull, and the server would hardly move."""
ROUNDS = {"prompt-tuning": 24, "fedprompt": 24, "attempt": 24, "p-tuning-v2": 16}
"""Where more rounds than 8 are needed: a prompt works through a body that was drawn at random."""
DATA = planted_federation(3, 24, KEY.fold("planted"), vocab_size=16, length=12)


def made(kind: str) -> TransformerTask:
    """With an adapter that is not LoRA, and for plain SGD, the matrices of the body are wide, so that what is trained goes through them."""
    adapter = getattr(made_options(kind), "adapter", None)
    task = tiny_task("bert", hidden=32, rank=8, vocab=16, adapter=adapter)
    if adapter is not None or kind == "scaffold":
        with torch.no_grad():
            for name, value in task.model.named_parameters():
                if value.ndim == 2 and not any(part in name for part in ("adapter.", "lora_", "modules_to_save")):
                    value.mul_(8)
    return task


def loss(world, task, now: Round) -> float:
    """Mean loss of the clients' models on their own training examples."""
    phase = next(phase for phase in world.method.phases if phase.name == now.phase)
    down = phase.broadcast(world.server, now)
    total = []
    for client in DATA.clients:
        state = world.state(client) or world.method.init_client(task, client, KEY.fold("run", "init"))
        train = DATA.client(client).train
        with torch.no_grad():
            total.append(task.losses(world.method.personalise(down, state), train.batch(list(range(len(train))))))
    return float(torch.cat(total).mean())


@pytest.mark.parametrize("kind", METHODS)
def test_the_loss_falls_on_planted_data(kind: str):
    training = TRAINING.model_copy(update={"learning_rate": RATES.get(kind, TRAINING.learning_rate)})
    task = made(kind)
    world = federation(
        made_method(kind, rounds=ROUNDS.get(kind, 8), clients=3, training=training, **OPTIONS.get(kind, {})), task, DATA, per_round=3
    )
    start = task.init_params(KEY.fold("run", "init"))
    with torch.no_grad():
        before = float(task.losses(start, DATA.train.batch(list(range(len(DATA.train))))).mean())
    after = loss(world, task, world.finish()[-1].now)
    print(f"\n{kind}: {before:.3f} -> {after:.3f}")
    assert after < 0.8 * before
