"""FedAvg-LoRA, with and without a personal training at the end, and training without a federation."""

from __future__ import annotations

import numpy as np
import torch
from made import TRAINING, client_view, federation, made_data, made_method, made_task, same

from fibecfed.core.method import Received
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.local.batches import shuffled_batches
from fibecfed.local.optimise import fit
from fibecfed.methods.aggregation import ServerModel
from fibecfed.methods.fedavg import LocalModel, SharedModel
from fibecfed.methods.finetune import Done

TASK, DATA = made_task(2), made_data()
NOW = Round("tune", 0, 4, 0)


def test_the_server_takes_the_mean_weighted_by_the_number_of_examples():
    method = made_method("lora")
    sizes = [3, 10, 1]
    params = [
        {"a": torch.randn(4, 3, generator=Key(k).generator()), "b": torch.randn(2, generator=Key(9 + k).generator())} for k in range(3)
    ]
    received = [Received(f"{k}", LocalModel(params[k], sizes[k])) for k in range(3)]
    after = method.phases[0].aggregate(ServerModel({name: torch.zeros_like(value) for name, value in params[0].items()}), received, NOW)
    for name in ("a", "b"):
        expected = np.average([tree[name].double().numpy() for tree in params], axis=0, weights=sizes)
        np.testing.assert_allclose(after.params[name].numpy(), expected, rtol=1e-6)


def test_it_has_one_phase_and_one_more_with_a_personal_training():
    table = [(phase.name, phase.num_rounds, phase.cohort, phase.down, phase.up) for phase in made_method("lora", finetune=True).phases]
    assert table == [("tune", 4, "sampled", SharedModel, LocalModel), ("finetune", 1, 5, SharedModel, Done)]
    assert [phase.name for phase in made_method("lora").phases] == ["tune"]
    assert [phase.name for phase in made_method("local").phases] == ["tune"]


def test_a_client_trains_on_all_its_examples_in_random_order_from_the_shared_model():
    world = federation(made_method("lora"), TASK, DATA)
    phase, client = world.method.phases[0], client_view(world, "1")
    down = phase.broadcast(world.server, NOW)
    update = phase.client_update(client, down, NOW)
    train = client.data.train
    everything = torch.arange(len(train))
    epochs = [shuffled_batches(train, everything, TRAINING, client.key.fold("order", epoch)) for epoch in range(TRAINING.local_epochs)]
    expected = fit(TASK, world.server.params, epochs, TRAINING, client.key.fold("dropout"))
    assert same(update.message.shared, expected.params)
    assert update.message.num_samples == len(train)
    assert update.work.examples == TRAINING.local_epochs * len(train)
    assert not update.state.own


def test_every_tensor_travels_both_ways_and_clients_keep_nothing():
    world = federation(made_method("lora"), TASK, DATA)
    world.finish()
    phase = world.method.phases[0]
    assert set(phase.broadcast(world.server, NOW).shared) == set(TASK.names)
    for client in world.states.clients():
        assert not world.state(client).own
        assert same(world.method.personalise(phase.broadcast(world.server, NOW), world.state(client)), world.server.params)
    assert world.method.summary(world.server) == {"shared_tensors": len(TASK.names)}


def test_the_personal_training_reaches_every_client_and_changes_nothing_on_the_server():
    world = federation(made_method("lora", finetune=True), TASK, DATA)
    *tuning, personal = world.run()
    assert personal.now.phase == "finetune" and personal.record.cohort == DATA.clients
    assert same(personal.server.params, tuning[-1].server.params)
    down = world.method.phases[1].broadcast(world.server, personal.now)
    models = [world.method.personalise(down, world.state(client)) for client in DATA.clients]
    assert all(not same(model, world.server.params) for model in models)
    assert len({model[TASK.names[0]].numpy().tobytes() for model in models}) == len(DATA.clients)


def test_local_training_sends_no_tensor_and_goes_on_where_the_client_stopped():
    world = federation(made_method("local"), TASK, DATA, per_round=5)
    first, second = list(world.run())[:2]
    assert all(step.record.fields_down["shared"] == step.record.fields_up["shared"] == 0 for step in (first, second))
    start = TASK.init_params(Key(7).fold("run", "init"))
    assert same(world.method.server_params(world.server), start)
    assert world.method.summary(world.server) == {"shared_tensors": 0}
    for client in DATA.clients:
        alone = world.method.personalise(SharedModel({}), world.state(client))
        assert set(alone) == set(TASK.names) and not same(alone, start)
    losses = [sum(step.record.loss.values()) for step in federation(made_method("local", rounds=6), TASK, DATA, per_round=5).run()]
    assert losses[-1] < losses[0]


def test_local_training_is_that_of_one_client_after_another_without_a_server():
    world = federation(made_method("local", rounds=2), TASK, DATA, per_round=5)
    world.finish()
    params = TASK.init_params(Key(7).fold("run", "init"))
    for number in range(2):
        client = client_view(world, "2", number)
        everything = torch.arange(len(client.data.train))
        epochs = [shuffled_batches(client.data.train, everything, TRAINING, client.key.fold("order", e)) for e in range(2)]
        params = fit(TASK, params, epochs, TRAINING, Key(0)).params
    assert same(world.state("2").own, params)
