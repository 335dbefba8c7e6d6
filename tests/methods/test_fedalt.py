"""FedAlt: personal layers first, with the shared ones frozen; then the shared ones beside the new personal layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import KEY, TRAINING, client_view, federation, made_data, made_method, made_task, names_of_layers, same

from fibecfed.core.method import Received
from fibecfed.core.types import Round
from fibecfed.local.batches import plain_epochs
from fibecfed.local.optimise import fit
from fibecfed.methods.fedavg import LocalModel

TASK, DATA = made_task(4), made_data()
PERSONAL, SHARED = names_of_layers(TASK, [2, 3]), names_of_layers(TASK, [0, 1, None])
NOW = Round("tune", 0, 4, 0)


def test_the_upper_half_of_the_layers_is_personal_and_the_rest_and_the_head_travel():
    world = federation(made_method("fedalt"), TASK, DATA)
    down = world.method.phases[0].broadcast(world.server, NOW)
    assert set(down.shared) == SHARED
    assert set(world.method.init_client(TASK, "1", KEY).own) == PERSONAL
    assert {layer for layer in range(4) if names_of_layers(TASK, [layer]) <= PERSONAL} == {2, 3}


def test_a_client_trains_the_two_parts_in_turn_each_half_of_the_local_epochs():
    training = TRAINING.model_copy(update={"local_epochs": 4})
    world = federation(made_method("fedalt", training=training), TASK, DATA)
    phase, client = world.method.phases[0], client_view(world, "1")
    update = phase.client_update(client, phase.broadcast(world.server, NOW), NOW)
    params = TASK.init_params(KEY.fold("run", "init"))
    for name, moving in (("personal", PERSONAL), ("shared", SHARED)):
        key = client.key.fold(name)
        before = params
        params = fit(TASK, params, plain_epochs(client.data.train, training, key, 2), training, key.fold("dropout"), trained=moving).params
        assert all(not torch.equal(params[tensor], before[tensor]) for tensor in moving if "lora_A" not in tensor)
        assert any(not torch.equal(params[tensor], before[tensor]) for tensor in moving if "lora_A" in tensor)
        assert same({n: params[n] for n in params if n not in moving}, {n: before[n] for n in before if n not in moving})
    assert same({**update.message.shared, **update.state.own}, params)
    assert update.work.examples == 4 * len(client.data.train)


@pytest.mark.parametrize(("epochs", "half"), [(1, 1), (2, 1), (3, 1), (6, 3)])
def test_each_part_gets_half_of_the_local_epochs_and_at_least_one(monkeypatch, epochs: int, half: int):
    training = TRAINING.model_copy(update={"local_epochs": epochs})
    world = federation(made_method("fedalt", training=training), TASK, DATA)
    calls: list[Any] = []

    def spy(task, params, epochs, *args, **more):
        calls.append((len(epochs), set(more["trained"])))
        return fit(task, params, epochs, *args, **more)

    monkeypatch.setattr("fibecfed.methods.fedalt.fit", spy)
    phase = world.method.phases[0]
    phase.client_update(client_view(world, "1"), phase.broadcast(world.server, NOW), NOW)
    assert calls == [(half, PERSONAL), (half, SHARED)]
    assert world.method.local_epochs == 2 * half


def test_the_server_takes_the_mean_of_the_shared_part_by_the_clients_sizes_and_keeps_the_rest():
    world = federation(made_method("fedalt"), TASK, DATA)
    sent = {client: {name: torch.full_like(TASK.params()[name], value) for name in SHARED} for client, value in (("0", 1.0), ("1", 5.0))}
    received = [Received("0", LocalModel(sent["0"], 3)), Received("1", LocalModel(sent["1"], 1))]
    after = world.method.phases[0].aggregate(world.server, received, NOW)
    assert all(torch.equal(after.params[name], torch.full_like(after.params[name], 2.0)) for name in SHARED)
    assert same({name: after.params[name] for name in PERSONAL}, {name: world.server.params[name] for name in PERSONAL})
