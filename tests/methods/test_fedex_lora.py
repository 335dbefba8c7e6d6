"""FedEx-LoRA: the server's model holds exactly the mean of the clients' products."""

from __future__ import annotations

import numpy as np
import torch
from made import federation, made_data, made_method, same

from fibecfed.core.task import DELTA
from fibecfed.core.types import Round
from fibecfed.core.wire import decode
from fibecfed.methods.aggregation import RESIDUAL
from fibecfed.methods.fedavg import LocalModel
from fibecfed.models.tiny import tiny_task

TASK, DATA = tiny_task("bert", dtype=torch.float64), made_data()


def test_what_the_model_adds_to_each_weight_is_the_mean_of_the_clients_products_after_every_round():
    world = federation(made_method("fedex-lora", rounds=3), TASK, DATA, per_round=3)
    added = {found.weight: np.zeros((16, 16)) for found in TASK.low_rank()}  # the residuals of the rounds before
    for step in world.run():
        replies = [decode(LocalModel, up[:-32]) for _, _, now, _, up in world.transport.carried if now.number == step.now.number]
        total = sum(reply.num_samples for reply in replies)
        server = step.server
        for found in TASK.low_rank():
            exact = sum(
                reply.num_samples / total * 2.0 * (reply.shared[found.b].double() @ reply.shared[found.a].double()).numpy()
                for reply in replies
            )  # alpha / r = 2
            product = 2.0 * (server.params[found.b].double() @ server.params[found.a].double()).numpy()
            got = product + server.extra[RESIDUAL + found.weight].double().numpy()
            np.testing.assert_allclose(got, added[found.weight] + exact, atol=1e-9)  # the residual is kept in float32
            assert np.abs(exact - product).max() > 1e-5  # the mean of the factors alone is something else
            added[found.weight] = server.extra[RESIDUAL + found.weight].double().numpy()


def test_the_models_answers_are_those_of_the_frozen_weights_with_the_residual_added():
    world = federation(made_method("fedex-lora"), TASK, DATA)
    last = world.finish()[-1]
    params = world.method.server_params(world.server)
    merged = {name: value for name, value in params.items() if not name.endswith(DELTA)}
    for name, value in TASK.adapted_weights().items():
        merged[name] = value + world.server.extra[RESIDUAL + name]
    batch = DATA.test.batch([0, 1, 2])
    torch.testing.assert_close(TASK.logits(params, batch), TASK.logits(merged, batch))
    down = world.method.phases[0].broadcast(world.server, last.now)
    assert same(world.method.personalise(down, world.method.init_client(TASK, "1", None)), params)  # pyright: ignore[reportArgumentType]


def test_the_residual_travels_down_and_is_counted_and_never_up():
    world = federation(made_method("fedex-lora"), TASK, DATA, per_round=2)
    for step in world.run():
        assert step.record.fields_down["residual"] == 2 * 4 * 16 * 16 * next(iter(world.server.extra.values())).itemsize
        assert "residual" not in step.record.fields_up


def test_with_one_client_nothing_is_left_over():
    world = federation(made_method("fedex-lora", clients=1), TASK, made_data(1, 12), per_round=1)
    world.finish()
    assert all(not value.any() for value in world.server.extra.values())
    assert world.method.summary(world.server)["residual_ratio"] == 0.0
    assert world.method.phases[0].broadcast(world.server, Round("tune", 0, 4, 0)).shared.keys() == set(TASK.names)
