"""FedProx and SCAFFOLD against their formulas, and one local training after the last round of any method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made import KEY, TRAINING, client_view, federation, made_data, made_method, made_task, same

from fibecfed.core.types import Round
from fibecfed.local.batches import plain_epochs
from fibecfed.methods.fedavg import proximal_term
from fibecfed.methods.finetune import PHASE
from fibecfed.models.tiny import tiny_task

TASK, DATA = tiny_task("bert", dtype=torch.float64), made_data()
NOW = Round("tune", 0, 4, 0)
PLAIN = TRAINING.model_copy(update={"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 0.0})


def by_hand(client, start, correction=None, proximal=0.0):
    """SGD in numpy on gradients by autograd: every step, the correction or the pull added; the number of steps."""
    params = {name: value.clone() for name, value in start.items()}
    steps = 0
    for epoch in plain_epochs(client.data.train, PLAIN, client.key, PLAIN.local_epochs):
        for batch in epoch:
            leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
            grads = torch.autograd.grad(TASK.losses(leaves, batch).mean(), list(leaves.values()))
            for name, grad in zip(leaves, grads, strict=True):
                more = (correction or {}).get(name, 0.0) + proximal * (params[name] - start[name])
                params[name] = params[name] - PLAIN.learning_rate * (grad + more)
            steps += 1
    return params, steps


def test_fedprox_pulls_every_step_towards_the_model_that_was_sent():
    method = made_method("fedprox", training=PLAIN, proximal=0.7)
    world = federation(method, TASK, DATA)
    client = client_view(world, "1")
    start = {name: value.double() for name, value in world.server.params.items()}
    got = method.train(client, start, NOW).params
    expected, _ = by_hand(client, start, proximal=0.7)
    for name in start:
        np.testing.assert_allclose(got[name].numpy(), expected[name].numpy(), atol=1e-12)
    assert not same(got, method.__class__(PLAIN, 4).train(client, start, NOW).params)
    assert float(proximal_term(2.0, {"w": torch.tensor([1.0, 2.0])})({"w": torch.tensor([2.0, 4.0])})) == 5.0


def test_scaffold_is_algorithm_1_with_option_2_over_three_rounds():
    method = made_method("scaffold", training=PLAIN, clients=5, server_learning_rate=0.8)
    world = federation(method, TASK, DATA, per_round=3)
    x = {name: value.double() for name, value in world.server.params.items()}
    c = {name: torch.zeros_like(value) for name, value in x.items()}
    own = {client: dict(c) for client in DATA.clients}
    for step in world.run():
        if step.number > 3:
            break
        moved, changes, sizes = [], [], []
        for name in step.record.cohort:
            client = client_view(world, name, step.now.number)
            y, steps = by_hand(client, x, {key: c[key] - own[name][key] for key in x})
            new = {key: own[name][key] - c[key] + (x[key] - y[key]) / (steps * PLAIN.learning_rate) for key in x}
            moved.append(y)
            changes.append({key: new[key] - own[name][key] for key in x})
            sizes.append(len(client.data.train))
            own[name] = new
        mean = {key: sum(n * y[key] for n, y in zip(sizes, moved, strict=True)) / sum(sizes) for key in x}
        x = {key: x[key] + 0.8 * (mean[key] - x[key]) for key in x}
        c = {key: c[key] + len(moved) / 5 * sum(change[key] for change in changes) / len(moved) for key in x}
        for key in x:
            np.testing.assert_allclose(step.server.params[key].double().numpy(), x[key].numpy(), atol=2e-6)  # the state is in float32
            np.testing.assert_allclose(step.server.control[key].double().numpy(), c[key].numpy(), atol=2e-4)


KINDS = ("fibecfed", "lora", "fedalt", "slora", "hetlora", "fedex-lora", "scaffold", "local", "voc", "fedsa-lora")


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_last_round_every_client_trains_once_more_and_keeps_the_result(kind: str):
    task, data = made_task(2), made_data()
    plain, tuned = (federation(made_method(kind, finetune=on), task, data) for on in (False, True))
    before = plain.finish()[-1]
    *steps, last = tuned.run()
    assert steps[-1].record.bytes_up == before.record.bytes_up and last.record.cohort == data.clients
    assert last.now.phase == PHASE and sum(last.record.bytes_up.values()) < 200 * len(data.clients)  # nothing of it leaves
    assert same(plain.method.server_params(plain.server), tuned.method.server_params(tuned.server))
    down = tuned.method.phases[-1].broadcast(tuned.server, last.now)
    address = tuned.method.phases[-1].address
    for client in data.clients:
        sent = down if address is None else address(tuned.server, down, client)
        model = tuned.method.personalise(sent, tuned.state(client))
        newcomer = tuned.method.init_client(task, client, KEY.fold("run", "init"))
        old = plain.state(client) or plain.method.init_client(task, client, KEY.fold("run", "init"))
        start = plain.method.personalise(sent, old)
        assert not same(model, start) and model.keys() == start.keys()
        assert set(tuned.method.personalise(sent, newcomer)) == set(model)


def test_a_state_from_before_the_last_training_is_read_with_and_without_it():
    from fibecfed.core.wire import decode, encode
    from fibecfed.methods.finetune import with_tuned

    method = made_method("fedalt")
    state = method.init_client(made_task(2), "a", KEY)
    read = decode(with_tuned(method.client_state), encode(state))
    assert same(read.own, state.own) and read.tuned == {}
