"""FibecFed whose importances come with the answers of the first tuning round, without a round of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fibecfed_parts import DATA, TASK, tune, watch
from made import KEY, client_view, federation, made_method, names_of_layers, same

from fibecfed.core.method import Received, Work
from fibecfed.core.trees import pick
from fibecfed.core.types import Round
from fibecfed.core.wire import encode, payload_bytes
from fibecfed.engine.checks import Refused, checked, expected
from fibecfed.engine.failures import STOP
from fibecfed.engine.runtime import frame
from fibecfed.local.fisher import Neurons
from fibecfed.local.selection import neuron_masks
from fibecfed.methods.fibecfed import LocalLayers
from fibecfed.methods.importance import AskImportance

FIRST: dict[str, Any] = {"importance_round": "first", "rule": "count", "value": 2}


def world_of(layers: dict[str, Any] = FIRST, *, per_round: int = 2, **more: Any) -> Any:
    return federation(made_method(**{"layers": layers, **more}), TASK, DATA, per_round=per_round)


def first_update(world: Any, client: str) -> Any:
    (phase,) = world.method.phases
    return phase.client_update(client_view(world, client), phase.broadcast(world.server, tune(0)), tune(0))


@pytest.mark.parametrize("first_layers", ["all", "last"])
@pytest.mark.parametrize("examples", [3, 64])
def test_a_client_measures_what_it_would_in_a_separate_round_before_it_trains(first_layers: str, examples: int):
    more = {"importance": "increment", "noise_scale": 0.3, "importance_examples": examples}
    world, separate = world_of({**FIRST, "first_layers": first_layers, **more}), world_of({**more, "rule": "count", "value": 2})
    assert [phase.name for phase in world.method.phases] == ["tune"]
    update, now = first_update(world, "1"), Round("importance", 0, 1, 0)
    there = separate.method.phases[0].client_update(client_view(separate, "1"), AskImportance(), now)
    assert torch.equal(update.message.importance["layers"], there.message.importance)  # the same parameters, examples and order
    assert update.notes["importance"] == there.notes["importance"]
    assert update.work.steps > 0


def test_if_everybody_measures_the_importances_and_the_layers_are_those_of_a_separate_round():
    everybody = {"importance_clients": len(DATA.clients)}
    world, separate = world_of({**FIRST, **everybody}, per_round=5), world_of({"rule": "count", "value": 2, **everybody}, per_round=5)
    for one in (world, separate):
        one.finish()
    torch.testing.assert_close(world.server.importance, separate.server.importance, rtol=1e-5, atol=0)  # the examples in another order
    assert world.server.layers == separate.server.layers
    assert world.method.summary(world.server)["importance"] == pytest.approx(
        separate.method.summary(separate.server)["importance"], rel=1e-4
    )


@pytest.mark.parametrize("folded", [False, True])
def test_planted_answers_choose_the_layers_of_the_rounds_that_follow(folded: bool):
    world = world_of()
    (phase,), start = world.method.phases, world.server
    assert start.layers == (0, 1, 2, 3) and not start.importance.any()
    importances, sizes = [[0.1, 0.9, 0.2, 0.3], [0.8, 0.1, 0.1, 0.2], [0.0, 0.0, 0.4, 0.9]], [1, 5, 2]
    received = [
        Received(str(k), LocalLayers({name: value + k for name, value in start.params.items()}, n, {"layers": torch.tensor(i)}))
        for k, (i, n) in enumerate(zip(importances, sizes, strict=True))
    ]
    if folded:
        folding = phase.fold(start, tune(0))
        for one in received:
            folding.add(one)
        after = folding.state()
    else:
        after = phase.aggregate(start, received, tune(0))
    mean = (torch.tensor(importances).double() * torch.tensor(sizes)[:, None]).sum(0) / 8
    torch.testing.assert_close(after.importance, mean.float())
    assert after.layers == (0, 3) == tuple(sorted(mean.topk(2).indices.tolist()))
    moved = (1 * 5 + 2 * 2) / 8
    assert all(torch.allclose(after.params[name], value + moved) for name, value in start.params.items())
    later = [Received("0", LocalLayers(pick(after.params, names_of_layers(TASK, [0, 3, None])), 1))]
    again = phase.aggregate(after, later, tune(1))
    assert again.layers == after.layers and torch.equal(again.importance, after.importance)


def test_every_layer_travels_in_the_first_round_and_then_stays_where_it_was_trained():
    world = world_of()
    steps = world.run()
    step = next(steps)
    (phase,) = world.method.phases
    took_part = step.record.cohort
    sent = {client: first_update(world_of(), client).message.shared for client in took_part}
    assert all(message.keys() == set(TASK.names) for message in sent.values())
    shared = names_of_layers(TASK, [*step.server.layers, None])
    own = set(TASK.names) - shared
    broadcast = phase.broadcast(step.server, tune(1))
    assert broadcast.shared.keys() == shared
    for client in took_part:
        personal = world.method.personalise(broadcast, world.state(client))
        assert same(pick(personal, own), pick(sent[client], own)) and same(pick(personal, shared), dict(broadcast.shared))
    new = next(client for client in DATA.clients if client not in took_part)
    start = TASK.init_params(KEY.fold("run", "init"))
    personal = world.method.personalise(broadcast, world.method.init_client(TASK, new, KEY.fold("run", "init")))
    assert same(pick(personal, own), pick(start, own))
    of_server = world.method.server_params(step.server)
    assert any(not torch.equal(of_server[name], start[name]) for name in own)  # as averaged in the first round
    for later in steps:
        assert later.server.layers == step.server.layers
        assert same(pick(world.method.server_params(later.server), own), pick(of_server, own))


def test_the_last_layers_travel_in_the_first_round_if_asked_and_cost_no_byte_more_than_later():
    world = world_of({**FIRST, "first_layers": "last"})
    assert world.server.layers == (2, 3)
    first, *later = [step.record for step in world.finish()]
    payload = payload_bytes(LocalLayers({}, 1, {"layers": torch.zeros(4)}))["importance"]
    for record in later:
        assert set(record.bytes_down.values()) == set(first.bytes_down.values())
        assert min(first.bytes_up.values()) - max(record.bytes_up.values()) >= payload  # and the numbers themselves
        assert max(first.bytes_up.values()) - min(record.bytes_up.values()) < payload + 200


@pytest.mark.parametrize(
    ("layers", "number"),
    [
        ({"rule": "share", "value": 0.25}, 1),
        ({"rule": "count", "value": 3}, 3),
        ({"rule": "coverage", "value": 0.9}, 2),  # half of them: how many hold that much is not known yet
        ({}, 2),
    ],
)
def test_as_many_last_layers_as_the_rule_selects(layers: dict[str, Any], number: int):
    world = world_of({"importance_round": "first", "first_layers": "last", **layers})
    assert world.server.layers == (0, 1, 2, 3)[-number:]


def test_the_first_round_updates_every_neuron_and_finds_those_of_the_next_without_a_pass(monkeypatch: pytest.MonkeyPatch):
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("a separate pass")

    monkeypatch.setattr("fibecfed.methods.fibecfed_client.fisher_pass", never)
    calls = watch(monkeypatch)
    world = world_of({**FIRST, "first_layers": "last"}, score_after=3)
    first = first_update(world, "1")
    assert calls[0]["masks"] == {} and set(calls[0]["trained"]) == set(TASK.names)
    layers = names_of_layers(TASK, range(4))
    assert set(first.state.rows) == layers == set(calls[0]["collect"].neurons)
    server = replace(world.server, layers=(0, 2))
    (phase,) = world.method.phases
    phase.client_update(client_view(world, "1", 1, first.state), phase.broadcast(server, tune(1)), tune(1))
    own = names_of_layers(TASK, [1, 3])
    neurons = world.method.neurons
    known = Neurons(dict(first.state.rows), dict(first.state.columns))
    assert same(calls[1]["masks"], neuron_masks(neurons, pick(TASK.params(), own), known, KEY))
    assert set(calls[1]["collect"].neurons) == own


def test_tensors_that_did_not_move_in_the_first_round_get_their_neurons_later():
    """ffa: the A of layers that are global at first are frozen, so nothing of them was collected."""
    world = world_of({**FIRST, "first_layers": "last", "importance_clients": 1}, aggregation="ffa", rounds=4, per_round=5)
    assert len(world.finish()) == 4


@pytest.mark.parametrize(
    ("index", "importance", "said"),
    [
        (0, {}, "importance of its update lacks 1 tensors"),
        (0, {"layers": torch.zeros(3)}, r"has shape \(3,\), expected \(4,\)"),
        (0, {"layers": torch.tensor([0.0, float("nan"), 0.0, 0.0])}, "importance.* not finite"),
        (1, {"layers": torch.zeros(4)}, "importance of its update has 1 unknown tensors"),
    ],
)
def test_an_answer_brings_importances_in_the_first_round_and_never_again(index: int, importance: dict[str, Any], said: str):
    world = world_of()
    (phase,), now = world.method.phases, tune(index)
    broadcast = phase.broadcast(world.server, now)
    expect = expected(phase, world.server, broadcast, now)
    right = {"layers": torch.zeros(4)} if index == 0 else {}
    checked(frame(encode(LocalLayers(broadcast.shared, 1, right)), Work()), expect, STOP, None)
    with pytest.raises(Refused, match=said):
        checked(frame(encode(LocalLayers(broadcast.shared, 1, importance)), Work()), expect, STOP, None)
