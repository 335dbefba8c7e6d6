"""Server optimisers against their formulas in float64, and the parts of FedAvg and FibecFed in all combinations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made import KEY, federation, made_data, made_method, names_of_layers, same

from fibecfed.core.method import Received
from fibecfed.core.task import DELTA
from fibecfed.core.wire import decode
from fibecfed.methods.aggregation import RESIDUAL, Exact, Mean, ServerAdam, ServerModel, ServerMomentum, ServerYogi
from fibecfed.methods.fedavg import LocalModel
from fibecfed.methods.fibecfed import LocalLayers
from fibecfed.models.tiny import tiny_task

TASK, DATA = tiny_task("bert", layers=4, dtype=torch.float64), made_data()


def means(rule: Any, rounds: int = 4) -> tuple[dict[str, torch.Tensor], list[np.ndarray], list[np.ndarray]]:
    """Tensors at the start, the means of some rounds, and where `rule` stands after each."""
    generator = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(3, 2, generator=generator, dtype=torch.float64), "stays": torch.ones(1)}
    state, given, got = ServerModel(start), [], []
    for _ in range(rounds):
        mean = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        state = rule.step(state, [Received("a", LocalModel({"w": mean}, 3))])
        given.append(mean.numpy())
        got.append(state.params["w"].numpy())
        assert state.params["stays"] is start["stays"]
    return start, given, got


def test_momentum_on_the_server_is_its_formula():
    start, given, got = means(ServerMomentum(0.5, 0.9))
    w, v = start["w"].numpy(), np.zeros((3, 2))
    for mean, after in zip(given, got, strict=True):
        v = 0.9 * v + (mean - w)
        w = w + 0.5 * v
        np.testing.assert_allclose(after, w, atol=1e-12)


@pytest.mark.parametrize("kind", [ServerAdam, ServerYogi])
def test_adaptive_steps_are_those_of_algorithm_2_of_reddi_et_al(kind: Any):
    start, given, got = means(kind(learning_rate=0.1, momentum=0.8, beta2=0.95, tau=0.01))
    w, m, v = start["w"].numpy(), np.zeros((3, 2)), np.full((3, 2), 0.01**2)
    for mean, after in zip(given, got, strict=True):
        change = mean - w
        m = 0.8 * m + 0.2 * change
        v = 0.95 * v + 0.05 * change**2 if kind is ServerAdam else v - 0.05 * change**2 * np.sign(v - change**2)
        w = w + 0.1 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(after, w, atol=1e-12)


def test_momentum_without_momentum_at_rate_one_is_the_mean():
    _, given, got = means(Mean())
    assert all(np.array_equal(mean, after) for mean, after in zip(given, got, strict=True))
    for mean, after in zip(given, means(ServerMomentum(1.0, 0.0))[2], strict=True):
        np.testing.assert_allclose(after, mean, atol=1e-15)


@pytest.mark.parametrize("method", ["lora", "fibecfed"])
def test_exact_aggregation_makes_the_server_hold_the_mean_of_the_products(method: str):
    world = federation(made_method(method, aggregation="exact", rounds=3), TASK, DATA, per_round=3)
    before: dict[str, np.ndarray] = {}
    up = LocalModel if method == "lora" else LocalLayers
    checked = 0
    for step in world.run():
        if step.now.phase != "tune":
            continue
        replies = [decode(up, blob[:-32]) for _, _, now, _, blob in world.transport.carried if now.number == step.now.number]
        total = sum(reply.num_samples for reply in replies)
        for pair in TASK.low_rank():
            if pair.a not in replies[0].shared:
                assert RESIDUAL + pair.weight not in step.server.extra
                continue
            share = [reply.num_samples / total * pair.scaling for reply in replies]
            exact = sum(p * (r.shared[pair.b].double() @ r.shared[pair.a].double()).numpy() for p, r in zip(share, replies, strict=True))
            product = pair.scaling * (step.server.params[pair.b].double() @ step.server.params[pair.a].double()).numpy()
            got = product + step.server.extra[RESIDUAL + pair.weight].double().numpy()
            np.testing.assert_allclose(got, before.get(pair.weight, 0.0) + exact, atol=1e-6)
            before[pair.weight] = step.server.extra[RESIDUAL + pair.weight].double().numpy()
            checked += 1
    assert checked == 3 * (8 if method == "lora" else 4)  # query and value of four layers, or of the two that are shared


def test_with_exact_aggregation_fibecfeds_clients_answer_with_the_residual_of_its_global_layers():
    world = federation(made_method("fibecfed", aggregation="exact", rounds=3), TASK, DATA, per_round=3)
    last = world.finish()[-1]
    down = world.method.phases[-1].broadcast(world.server, last.now)
    shared = {pair.weight for pair in TASK.low_rank() if TASK.layer_of(pair.a) in world.server.layers}
    assert shared == set(down.residual)
    assert any(value.any() for value in down.residual.values())
    model = world.method.personalise(down, world.state(world.states.clients()[0]))
    assert {name for name in model if name.endswith(DELTA)} == {name + DELTA for name in down.residual}
    assert last.record.fields_down["residual"] > 0 and "residual" not in last.record.fields_up


@pytest.mark.parametrize("method", ["lora", "fibecfed"])
def test_a_personal_head_never_travels_and_is_trained_whole(method: str):
    world = federation(made_method(method, head="personal"), TASK, DATA, per_round=5)
    heads = names_of_layers(TASK, [None])
    last = world.finish()[-1]
    down = world.method.phases[-1].broadcast(world.server, last.now)
    assert heads and not heads & down.shared.keys()
    start = world.method.init(TASK, KEY.fold("run", "init"))
    for client in DATA.clients:
        own = world.state(client).own
        assert heads <= own.keys()
        changed = [(own[name] != start.params[name]).reshape(len(own[name]), -1).any(1).all() for name in heads]
        assert all(changed), "every row of the head moves, whatever the neurons' masks"
    assert same({name: world.server.params[name] for name in heads}, {name: start.params[name] for name in heads})


@pytest.mark.parametrize("method", ["lora", "fibecfed"])
def test_with_ffa_the_a_of_shared_layers_stays_as_drawn_and_is_not_sent(method: str):
    world = federation(made_method(method, aggregation="ffa"), TASK, DATA, per_round=5)
    start = world.method.init(TASK, KEY.fold("run", "init")).params
    last = world.finish()[-1]
    down = world.method.phases[-1].broadcast(world.server, last.now)
    assert not any("lora_A" in name for name in down.shared) and any("lora_B" in name for name in down.shared)
    layers = range(4) if method == "lora" else world.server.layers
    moved = set()
    for client in DATA.clients:
        model = world.method.personalise(down, world.state(client))
        for name in model:
            if "lora_A" in name and TASK.layer_of(name) in layers:
                assert torch.equal(model[name], start[name]), name
            elif not torch.equal(model[name], start[name]):
                moved.add(name)
    assert any("lora_A" in name for name in moved) == (method == "fibecfed")  # in the layers that stay it is trained


@pytest.mark.parametrize("method", ["lora", "fibecfed"])
@pytest.mark.parametrize(
    ("name", "part"), [("fedavgm", ServerMomentum), ("fedadam", ServerAdam), ("fedyogi", ServerYogi), ("exact", Exact), ("mean", Mean)]
)
def test_every_aggregation_can_be_chosen_for_both(method: str, name: str, part: type[Any]):
    assert isinstance(made_method(method, aggregation=name).aggregation, part)


def test_the_kinds_named_after_a_server_optimiser_are_fedavg_with_it():
    for kind in ("fedavgm", "fedadam", "fedyogi"):
        assert made_method(kind) == made_method("lora", aggregation=kind)
    assert made_method("fedex-lora") == made_method("lora", aggregation="exact")
    assert made_method("ffa-lora") == made_method("lora", aggregation="ffa")
