"""SLoRA: sparse values at public places, then LoRA from the truncated singular value decomposition of their differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import KEY, TRAINING, client_view, federation, made_data, made_method

from fibecfed.core.method import Received
from fibecfed.core.task import DELTA
from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode
from fibecfed.local.lowrank import best_factors
from fibecfed.methods.fedavg import LocalModel
from fibecfed.methods.slora import LocalSparse, SLoraServer, SparseModel, SparseTask, sparse_rounds
from fibecfed.models.tiny import FAMILIES, tiny_task

TASK, DATA = tiny_task("bert", dtype=torch.float64), made_data()
SPARSE = Round("sparse", 0, 1, 0)


def begun(**options):
    return federation(made_method("slora", **{"density": 0.1, **options}), TASK, DATA)


@pytest.mark.parametrize(("rank", "shape"), [(1, (5, 4)), (3, (4, 6)), (4, (4, 4)), (6, (5, 4))])
def test_the_factors_are_the_best_approximation_of_their_rank_and_share_the_singular_values(rank, shape):
    matrix = torch.randn(shape, generator=KEY.generator(), dtype=torch.float64)
    a, b = best_factors(matrix, rank, 2.0)
    u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    np.testing.assert_allclose((2.0 * b @ a).numpy(), best, atol=1e-12)
    expected = np.sqrt(np.pad(s, (0, max(0, rank - len(s))))[:rank] / 2.0)
    np.testing.assert_allclose(a.norm(dim=1).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(b.norm(dim=0).numpy(), expected, atol=1e-12)


def test_stage_two_starts_from_the_truncated_svd_of_the_accumulated_difference_with_alpha_over_r():
    world = begun(rounds=8)
    steps = world.run()
    for _ in range(2):  # stage 1 is a quarter of 8 rounds
        step = next(steps)
        assert step.now.phase == "sparse"
    server = world.server
    down = world.method.phases[1].broadcast(server, Round("tune", 0, 6, 2))
    (scaling,) = {found.scaling for found in TASK.low_rank()}
    assert scaling == 4 / 2  # alpha / r of the tiny model
    for found in TASK.low_rank():
        values = server.values[found.weight].numpy()
        assert values.any()
        matrix = np.zeros(16 * 16)
        matrix[world.method.positions(found.weight, 16 * 16).numpy()] = values
        u, s, vt = np.linalg.svd(matrix.reshape(16, 16))
        expected = (u[:, :2] * s[:2]) @ vt[:2]
        got = scaling * down.shared[found.b].double().numpy() @ down.shared[found.a].double().numpy()
        np.testing.assert_allclose(got, expected, atol=1e-7 * s[0])
        np.testing.assert_allclose(down.shared[found.a].norm(dim=1).numpy(), down.shared[found.b].norm(dim=0).numpy(), rtol=1e-5)
    head = {name for name in TASK.names if TASK.layer_of(name) is None}
    assert all(torch.equal(down.shared[name], server.params[name]) for name in head)
    after = [step.now.phase for step in steps]
    assert after == ["tune"] * 6


def test_places_are_public_the_same_for_all_and_their_share_of_each_weight():
    world = begun()
    places = world.method.positions("x.base_layer.weight", 256)
    assert len(places) == 26 and len(set(places.tolist())) == 26  # ceil(0.1 x 256)
    assert places.tolist() == sorted(begun().method.positions("x.base_layer.weight", 256).tolist())
    assert places.tolist() != world.method.positions("y.base_layer.weight", 256).tolist()


def test_in_stage_one_values_alone_travel_and_lora_stands_still():
    world = begun()
    phase, client = world.method.phases[0], client_view(world, "1")
    down = phase.broadcast(world.server, SPARSE)
    update = phase.client_update(client, down, SPARSE)
    assert isinstance(down, SparseModel)
    assert set(update.message.values) == set(TASK.adapted_weights())
    assert all(value.shape == (26,) for value in update.message.values.values())
    assert set(update.message.shared) == {name for name in TASK.names if TASK.layer_of(name) is None}
    assert all(torch.equal(update.state.own[name], client.state.own[name]) for name in client.state.own)
    assert all(value.any() for value in update.message.values.values())


def test_the_sparse_model_is_the_backbone_with_those_numbers_added():
    world = begun()
    phase = world.method.phases[0]
    update = phase.client_update(client_view(world, "1"), phase.broadcast(world.server, SPARSE), SPARSE)
    after = phase.aggregate(world.server, [type("R", (), {"message": update.message})()], SPARSE)
    params = world.method.server_params(after)
    weights = TASK.adapted_weights()
    plain = {name: value for name, value in params.items() if not name.endswith(DELTA)}
    for name, value in weights.items():
        changed = value.clone().flatten()
        changed[world.method.positions(name, 256)] += update.message.values[name]
        plain[name] = changed.view(value.shape)
    batch = DATA.test.batch([0, 1, 2])
    torch.testing.assert_close(TASK.logits(params, batch), TASK.logits(plain, batch))


def test_gradients_of_the_sparse_values_are_those_of_the_weights_at_their_places():
    world = begun()
    server = world.server
    places = {name: world.method._place(name, server.params) for name in server.values}
    lora = {name: server.params[name] for found in TASK.low_rank() for name in (found.a, found.b)}
    sparse = SparseTask(TASK, lora, places)
    values = {name: torch.zeros(26, dtype=torch.float64, requires_grad=True) for name in server.values}
    head = {name: value for name, value in server.params.items() if name not in lora}
    batch = DATA.test.batch([0, 1, 2])
    found = torch.autograd.grad(sparse.losses({**values, **head}, batch).sum(), list(values.values()))
    whole = {name: value.clone().requires_grad_() for name, value in TASK.adapted_weights().items()}
    dense = torch.autograd.grad(TASK.losses({**server.params, **whole}, batch).sum(), [whole[name] for name in values])
    for name, a, b in zip(values, found, dense, strict=True):
        torch.testing.assert_close(a, b.flatten()[places[name][0]])


def test_stage_one_takes_the_factors_share_of_the_learning_rate():
    method = made_method("slora", rate_factor=0.25)
    assert method._sparse_training().learning_rate == 0.25 * TRAINING.learning_rate
    assert method.tuning.training == TRAINING


def test_rounds_are_divided_and_each_stage_gets_one():
    assert [sparse_rounds(0.25, rounds) for rounds in (1, 2, 3, 4, 8, 40)] == [0, 1, 1, 1, 2, 10]
    assert [phase.name for phase in made_method("slora", rounds=1).phases] == ["tune"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_difference_given_by_name_is_added_to_the_weight_in_every_family(family):
    task = tiny_task(family, dtype=torch.float64)
    params = task.params()
    zero_b = {name: torch.zeros_like(value) if "lora_B" in name else value for name, value in params.items()}
    by_lora = {name + DELTA: found.scaling * params[found.b] @ params[found.a] for found in task.low_rank() for name in [found.weight]}
    batch = made_data(vocab_size=64).test.batch([0, 1, 2])
    torch.testing.assert_close(task.logits({**zero_b, **by_lora}, batch), task.logits(params, batch))
    assert set(task.adapted_weights()) == {found.weight for found in task.low_rank()}
    with pytest.raises(KeyError, match="unknown"):
        task.logits({**params, "nowhere" + DELTA: torch.zeros(1)}, batch)


def test_the_servers_state_survives_the_wire():
    world = begun()
    back = decode(SLoraServer, encode(replace(world.server, tuned=True)))
    assert back.tuned and back.weights == world.server.weights


def test_both_stages_take_the_mean_by_the_clients_sizes():
    world = begun(rounds=4)
    sparse, tune = world.method.phases
    generator, sizes = KEY.generator(), [3, 9]

    def drawn(like):
        return {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in sorted(like.items())}

    head = {name: value for name, value in TASK.params().items() if TASK.layer_of(name) is None}
    first = [LocalSparse(drawn(world.server.values), drawn(head), n) for n in sizes]
    after = sparse.aggregate(world.server, [Received(str(n), message) for n, message in zip(sizes, first, strict=True)], SPARSE)
    for field, got in (("values", after.values), ("shared", after.params)):
        for name in getattr(first[0], field):
            expected = np.average([getattr(message, field)[name].numpy() for message in first], axis=0, weights=sizes)
            np.testing.assert_allclose(got[name].numpy(), expected, rtol=1e-6)
    second = [LocalModel(drawn(TASK.params()), n) for n in sizes]
    after = tune.aggregate(after, [Received(str(n), message) for n, message in zip(sizes, second, strict=True)], Round("tune", 0, 3, 1))
    for name in TASK.names:
        expected = np.average([message.shared[name].numpy() for message in second], axis=0, weights=sizes)
        np.testing.assert_allclose(after.params[name].numpy(), expected, rtol=1e-6)


def test_stage_one_trains_at_its_own_rate():
    training = TRAINING.model_copy(update={"optimizer": "sgd", "local_epochs": 1, "batch_size": 64, "weight_decay": 0.0})
    moved = []
    for factor in (1.0, 0.25):
        world = federation(made_method("slora", density=0.1, rate_factor=factor, training=training), TASK, DATA)
        phase = world.method.phases[0]
        moved.append(phase.client_update(client_view(world, "1"), phase.broadcast(world.server, SPARSE), SPARSE).message.values)
    for name in moved[0]:  # one step of SGD: a quarter of the rate, a quarter of the way
        torch.testing.assert_close(moved[1][name], 0.25 * moved[0][name], rtol=1e-4, atol=1e-9)
