"""HetLoRA: ranks of the clients, truncation, pruning of the tail, padding, and weights by the norm of the product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made import KEY, TRAINING, client_view, federation, made_data, made_method, same

from fibecfed.core.method import Received, Work
from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.checks import Refused, checked, expected
from fibecfed.engine.failures import STOP
from fibecfed.engine.runtime import frame
from fibecfed.methods.fedavg import LocalModel
from fibecfed.methods.hetlora import OwnRank, padded, pairs, product_norms, tail_norm, truncated
from fibecfed.models.tiny import tiny_task

TASK, DATA = tiny_task("bert", rank=6, dtype=torch.float64), made_data()
NOW = Round("tune", 0, 4, 0)


def begun(**options):
    return federation(made_method("hetlora", **options), TASK, DATA, per_round=5)


def test_ranks_are_drawn_between_the_least_and_the_models_and_differ():
    method = made_method("hetlora", min_rank=2)
    ranks = [method.init_client(TASK, str(client), KEY).rank for client in range(200)]
    assert set(ranks) == {2, 3, 4, 5, 6}
    assert ranks == [made_method("hetlora", min_rank=2).init_client(TASK, str(client), KEY).rank for client in range(200)]


def test_every_message_holds_the_clients_rank_both_ways_and_no_more():
    world = begun()
    ranks = {client: world.method.init_client(TASK, client, KEY).rank for client in DATA.clients}
    assert len(set(ranks.values())) > 1
    step = next(world.run())
    for client, _, now, down, up in world.transport.carried:
        assert now == step.now
        message = decode(LocalModel, up[:-32])
        for a, b in pairs(TASK.names):
            assert len(message.shared[a]) == message.shared[b].shape[1] == world.state(client).rank <= ranks[client]
        assert step.record.bytes_down[client] == len(down)
    sizes = sorted((ranks[client], step.record.bytes_down[client]) for client in ranks)
    assert [size for _, size in sizes] == sorted(size for _, size in sizes) and sizes[0][1] < sizes[-1][1]
    assert sum(step.record.fields_down.values()) == sum(step.record.bytes_down.values())


def test_truncation_and_padding_keep_the_leading_ranks_and_the_product():
    params = TASK.params()
    small = truncated(params, 2)
    large = padded(small, 6)
    for a, b in pairs(params):
        assert torch.equal(small[a], params[a][:2]) and torch.equal(small[b], params[b][:, :2])
        torch.testing.assert_close(large[b] @ large[a], small[b] @ small[a])
        assert large[a].shape == params[a].shape and large[b].shape == params[b].shape
    batch = DATA.test.batch([0, 1, 2])
    torch.testing.assert_close(TASK.logits(large, batch), TASK.logits(small, batch))


def test_the_server_pads_with_zeros_and_weighs_by_the_norm_of_the_product():
    world = begun()
    generator = KEY.generator()
    sent, sizes, ranks = {}, {"0": 3, "1": 9, "2": 5}, {"0": 2, "1": 6, "2": 4}
    for client, rank in ranks.items():
        drawn = {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) for name, value in TASK.params().items()}
        sent[client] = truncated(drawn, rank)
    received = [Received(client, LocalModel(sent[client], sizes[client])) for client in ranks]
    after = world.method.phases[0].aggregate(world.server, received, NOW)
    for a, b in pairs(TASK.names):
        norms = [np.linalg.norm(sent[c][b].double().numpy() @ sent[c][a].double().numpy()) for c in ranks]
        expected_a, expected_b = np.zeros((6, 16)), np.zeros((16, 6))
        for client, norm in zip(ranks, norms, strict=True):
            expected_a[: ranks[client]] += norm / sum(norms) * sent[client][a].double().numpy()
            expected_b[:, : ranks[client]] += norm / sum(norms) * sent[client][b].double().numpy()
        np.testing.assert_allclose(after.params[a].numpy(), expected_a, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(after.params[b].numpy(), expected_b, rtol=1e-10, atol=1e-12)
    (name,) = (name for name in TASK.names if TASK.layer_of(name) is None and TASK.params()[name].ndim == 1)
    expected = np.average([sent[c][name].numpy() for c in ranks], axis=0, weights=list(sizes.values()))
    np.testing.assert_allclose(after.params[name].numpy(), expected, rtol=1e-10)
    assert world.method.summary(after) == {"ranks": ranks}
    assert product_norms(sent["0"]).keys() == {a for a, _ in pairs(TASK.names)}


@pytest.mark.parametrize(("penalty", "pruned"), [(100.0, True), (0.0, False)])
def test_a_client_gives_up_the_tail_whose_norm_fell_in_training(penalty: float, pruned: bool):
    """A strong penalty drives the tail down; without one, training from B near 0 drives it up."""
    world = begun(decay=0.5, penalty=penalty, training=TRAINING)
    client = next(c for c in DATA.clients if world.method.init_client(TASK, c, KEY).rank == 6 or c == DATA.clients[-1])
    phase, asked = world.method.phases[0], client_view(world, client, state=type(world.method.init_client(TASK, "0", KEY))(6, 6))
    start = {name: value * (0.1 if "lora_B" in name and not pruned else 1.0) for name, value in TASK.params().items()}
    down = type(phase.broadcast(world.server, NOW))(start)
    update = phase.client_update(asked, down, NOW)
    assert update.state.rank == (3 if pruned else 6) == update.notes["rank"]
    assert all(len(update.message.shared[a]) == update.state.rank for a, _ in pairs(TASK.names))


def test_the_server_sends_a_client_its_lower_rank_from_then_on_and_its_model_is_padded():
    world = begun(decay=0.5, penalty=100.0, rounds=3)
    seen: dict[str, list[int]] = {client: [] for client in DATA.clients}
    for step in world.run():
        for client in DATA.clients:
            seen[client].append(world.state(client).rank)
        known = world.method.summary(step.server)["ranks"]
        assert known == {client: world.state(client).rank for client in known}
        phase = world.method.phases[0]
        down = phase.address(step.server, phase.broadcast(step.server, step.now), "1")
        assert all(len(down.shared[a]) == known["1"] for a, _ in pairs(TASK.names))
        personal = world.method.personalise(down, world.state("1"))
        assert {name: value.shape for name, value in personal.items()} == {name: value.shape for name, value in TASK.params().items()}
    assert all(ranks == sorted(ranks, reverse=True) and ranks[-1] >= 2 for ranks in seen.values())
    assert any(ranks[-1] < ranks[0] for ranks in seen.values())


def test_the_tail_is_floor_gamma_r_and_never_below_the_least_rank():
    method = made_method("hetlora", min_rank=2, decay=0.8)
    assert [method.kept(rank) for rank in (1, 2, 3, 5, 6, 10)] == [1, 2, 2, 4, 4, 8]


def test_the_norm_of_the_tail_has_a_gradient_where_b_is_zero():
    params = {"x.lora_A": torch.ones(3, 4, requires_grad=True), "x.lora_B": torch.zeros(5, 3, requires_grad=True)}
    assert tail_norm(params, 3) == 0
    gradients = torch.autograd.grad(tail_norm(params, 1), list(params.values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert same(truncated(params, 3), params)


def test_the_penalty_is_its_weight_times_the_norm_of_the_tail():
    training = TRAINING.model_copy(update={"optimizer": "sgd", "local_epochs": 1, "batch_size": 64, "weight_decay": 0.0})
    params = TASK.params()
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    tail = dict(zip(leaves, torch.autograd.grad(tail_norm(leaves, 3), list(leaves.values()), allow_unused=True), strict=True))
    trained = {}
    for penalty in (0.0, 0.3):
        world = begun(decay=0.5, penalty=penalty, training=training)
        client = client_view(world, "1", state=OwnRank(6, 6))
        trained[penalty], _ = world.method._train(client, params, Round("tune", 0, 1, 0))
    for a, b in pairs(params):
        for name in (a, b):  # one step of SGD: the two trainings differ by rate times the penalty's gradient
            got, plain = (truncated(trained[penalty].params, 3)[name] for penalty in (0.3, 0.0))
            torch.testing.assert_close(got, plain - 0.3 * training.learning_rate * truncated(tail, 3)[name], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("a_rank", "b_rank", "named"), [(3, 6, r"\[3, 6\]"), (7, 7, r"\[7\]"), (0, 0, r"\[0\]")])
def test_factors_of_unequal_or_impossible_rank_are_refused(a_rank: int, b_rank: int, named: str):
    world = begun()
    phase = world.method.phases[0]
    full = padded(TASK.params(), 8)
    shared = {
        name: value[:a_rank] if "lora_A" in name else value[:, :b_rank] if "lora_B" in name else value for name, value in full.items()
    }
    expect = expected(phase, world.server, phase.broadcast(world.server, NOW), NOW)
    reply = frame(encode(LocalModel(shared, 3)), Work(1, 4, 0.5))
    with pytest.raises(Refused, match=rf"ranks {named}, expected one rank for all between 1 and 6"):
        checked(reply, expect, STOP, None)
    whole = frame(encode(LocalModel(truncated(full, 4), 3)), Work(1, 4, 0.5))
    assert checked(whole, expect, STOP, None)[0].num_samples == 3
