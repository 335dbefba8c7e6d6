"""FibecFed: what travels, what stays, which neurons move, and how its parts are switched off."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fibecfed_parts import DATA, FIXED, OWN, SHARED, TASK, tune, update_of, watch
from made import TRAINING, client_view, federation, made_method, same

from fibecfed.core.method import Received, Work
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.checks import Refused, checked
from fibecfed.engine.checks import expected as expected_answer
from fibecfed.engine.failures import STOP
from fibecfed.engine.runtime import frame
from fibecfed.local.batches import batches
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.selection import neuron_masks
from fibecfed.local.sensitivity import layer_sensitivity
from fibecfed.local.spectrum import spectrum
from fibecfed.methods.fibecfed import AllLayers, AskRatio, GlobalLayers, LocalLayers, Ratio
from fibecfed.methods.importance import AskImportance, Importance

# ---- phases


@pytest.mark.parametrize(
    ("layers", "closing", "names"),
    [
        ({}, False, ["importance", "tune"]),
        ({"rule": "count", "value": 1}, True, ["importance", "tune", "closing"]),
        ({"rule": "coverage"}, False, ["importance", "tune"]),
        ({"rule": "layer_gap"}, False, ["importance", "spectrum", "tune"]),
        ({"rule": "plateau"}, True, ["importance", "spectrum", "tune", "closing"]),
        ({"rule": "last"}, False, ["tune"]),
        ({"rule": "first"}, False, ["tune"]),
        ({"rule": "random"}, False, ["tune"]),
        ({"rule": "all"}, True, ["tune", "closing"]),
    ],
)
def test_phase_1_measures_what_the_rule_needs_and_the_closing_round_comes_last(layers: dict[str, Any], closing: bool, names: list[str]):
    table = {
        "importance": (1, 3, AskImportance, Importance),
        "spectrum": (1, 2, AskRatio, Ratio),
        "tune": (4, "sampled", GlobalLayers, LocalLayers),
        "closing": (1, "sampled", GlobalLayers, AllLayers),
    }
    method = made_method(layers={**layers, "importance_clients": 3, "spectrum_clients": 2}, closing_round=closing)
    assert {phase.name: (phase.num_rounds, phase.cohort, phase.down, phase.up) for phase in method.phases} == {n: table[n] for n in names}
    assert [phase.name for phase in method.phases] == names


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ({}, 2),
        ({"rule": "share", "value": 0.25}, 1),
        ({"rule": "count", "value": 3}, 3),
        ({"rule": "coverage", "value": 1.0}, 4),
        ({"rule": "coverage", "importance": "increment"}, None),
        ({"rule": "layer_gap"}, None),
        ({"rule": "layer_gap", "mu": 0.01}, 1),
        ({"rule": "plateau"}, None),
        ({"rule": "last", "value": 1}, (3,)),
        ({"rule": "first", "value": 3}, (0, 1, 2)),
        ({"rule": "random"}, 2),
        ({"rule": "all"}, (0, 1, 2, 3)),
        ({"norm": math.inf}, 2),
    ],
    ids=str,
)
def test_every_rule_of_layers_runs_and_its_answer_stays_for_the_whole_run(layers: dict[str, Any], chosen: Any):
    rounds = 2
    world = federation(made_method(rounds=rounds, layers={**layers, "importance_clients": 3, "spectrum_clients": 2}), TASK, DATA)
    steps = world.finish()
    found = steps[-1].server.layers
    assert 1 <= len(found) <= 4 and list(found) == sorted(set(found))
    if isinstance(chosen, int):
        assert len(found) == chosen
    elif chosen is not None:
        assert found == chosen
    assert {step.server.layers for step in steps if step.now.phase == "tune"} == {found}
    summary = world.method.summary(world.server)
    assert summary["global_layers"] == list(found) and summary["num_layers"] == 4
    assert (summary["importance"] is None) == (layers.get("rule") in ("last", "first", "random", "all"))
    assert (summary["ratio"] is None) == (layers.get("rule") not in ("layer_gap", "plateau"))


def test_importances_are_averaged_by_numpys_weighted_mean_and_the_largest_layers_win():
    method = made_method(layers={"rule": "count", "value": 2})
    server = method.init(TASK, Key(0))
    importances = [[0.1, 0.9, 0.2, 0.3], [0.8, 0.1, 0.1, 0.2], [0.0, 0.0, 0.4, 0.9]]
    sizes = [1, 5, 2]
    received = [Received(str(k), Importance(torch.tensor(i), n)) for k, (i, n) in enumerate(zip(importances, sizes, strict=True))]
    after = method.phases[0].aggregate(server, received, Round("importance", 0, 1, 0))
    mean = np.average(importances, axis=0, weights=sizes)
    np.testing.assert_allclose(after.importance.numpy(), mean, rtol=1e-6)
    assert after.layers == tuple(sorted(np.argsort(-mean)[:2]))


def test_the_number_of_layers_is_the_mean_ratio_of_the_layers_rounded_half_up():
    method = made_method(layers={"rule": "layer_gap"})
    server = method.init(TASK, Key(0))
    server = replace(server, importance=torch.tensor([0.4, 0.1, 0.3, 0.2]))
    received = [Received("0", Ratio(0.25, 1)), Received("1", Ratio(0.75, 3))]
    after = method.phases[1].aggregate(server, received, Round("spectrum", 0, 1, 1))
    assert math.isclose(after.ratio, (0.25 * 1 + 0.75 * 3) / 4)
    assert after.layers == (0, 2, 3)  # floor(4 * 0.625 + 0.5) = 3


@pytest.mark.parametrize("more", [{}, {"importance": "increment", "noise_scale": 0.3, "norm": math.inf, "importance_examples": 5}])
def test_a_client_answers_with_the_sensitivity_of_its_layers_as_the_options_say(more: dict[str, Any]):
    world = federation(made_method(layers=more), TASK, DATA)
    options, client, now = world.method.layers, client_view(world, "1"), Round("importance", 0, 1, 0)
    got = world.method.phases[0].client_update(client, AskImportance(), now).message
    train = client.data.train
    drawn = client.key.fold("importance").permutation(len(train))[: more.get("importance_examples", 64)]
    params = TASK.init_params(Key(7).fold("run", "init"))
    some = list(batches(train, drawn, 32))
    expected = layer_sensitivity(TASK, params, some, options.noise_scale, options.norm, options.importance)
    torch.testing.assert_close(got.importance, expected)
    plain = layer_sensitivity(TASK, params, some)
    assert got.num_samples == len(train) and torch.equal(plain, expected) == (not more)


def test_the_layers_that_react_most_to_noise_are_shared():
    world = federation(made_method(rounds=1, layers={"importance_clients": 5}), TASK, DATA)
    world.finish()
    params = TASK.init_params(Key(7).fold("run", "init"))
    total = torch.zeros(4)
    for client in DATA.clients:
        train = DATA.client(client).train
        total += len(train) * layer_sensitivity(TASK, params, batches(train, torch.arange(len(train)), 32))
    assert set(world.server.layers) == set(total.argsort(descending=True)[:2].tolist())


@pytest.mark.parametrize("rule", ["layer_gap", "plateau"])
def test_a_client_answers_with_the_share_that_its_curvature_calls_for(rule: str):
    world = federation(made_method(layers={"rule": rule}), TASK, DATA)
    client, now = client_view(world, "1", 1), Round("spectrum", 0, 1, 1)
    got = world.method.phases[1].client_update(client, AskRatio(), now).message
    train = client.data.train
    drawn = client.key.fold("spectrum").permutation(len(train))[: 2 * TRAINING.batch_size]
    params = TASK.init_params(Key(7).fold("run", "init"))
    expected = spectrum(TASK, params, train.batch(drawn.tolist()), rule, TRAINING.learning_rate, client.key.fold("probe"))
    assert (got.ratio, got.num_samples) == (expected.ratio, len(train))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 1.7e308])
def test_a_share_of_layers_that_is_none_is_refused(ratio: float):
    world = federation(made_method(layers={"rule": "layer_gap"}), TASK, DATA)
    phase, now = world.method.phases[1], Round("spectrum", 0, 1, 1)
    expect = expected_answer(phase, world.server, AskRatio(), now)
    checked(frame(encode(Ratio(1.0, 3)), Work()), expect, STOP, None)
    with pytest.raises(Refused, match="expected a share between 0 and 1"):
        checked(frame(encode(Ratio(ratio, 3)), Work()), expect, STOP, None)


def test_tuning_averages_by_numpys_weighted_mean_and_leaves_the_other_layers():
    method = made_method(**FIXED)
    server = method.init(TASK, Key(0))
    draws = [{name: torch.randn(server.params[name].shape, generator=Key(k).fold(name).generator()) for name in SHARED} for k in range(3)]
    sizes = [2, 7, 4]
    received = [Received(str(k), LocalLayers(draws[k], sizes[k])) for k in range(3)]
    after = method.phases[0].aggregate(server, received, tune(0))
    for name in TASK.names:
        if name in SHARED:
            expected = np.average([draw[name].double().numpy() for draw in draws], axis=0, weights=sizes)
            np.testing.assert_allclose(after.params[name].numpy(), expected, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(after.params[name], server.params[name])


# ---- what travels, what stays


def test_only_the_global_layers_and_the_head_travel_and_no_other_byte_of_a_client():
    world = federation(made_method(**FIXED, score_after=0), TASK, DATA)
    world.finish()
    phases = {phase.name: phase for phase in world.method.phases}
    assert len(world.transport.carried) == 4 * 2
    for client, _, now, down, up in world.transport.carried:
        assert set(decode(phases[now.phase].down, down).shared) == SHARED
        sent = decode(phases[now.phase].up, up[:-32])
        assert set(sent.shared) == SHARED and sent.num_samples == len(DATA.client(client).train)
    for client in world.states.clients():
        state = world.state(client)
        assert set(state.own) == OWN
        for value in (*state.own.values(), *state.rows.values(), state.order):
            piece = value.numpy().tobytes()
            assert not any(piece in up for _, _, _, _, up in world.transport.carried)


def test_phase_1_sends_numbers_and_no_tensor_of_the_model():
    world = federation(made_method(rounds=1, layers={"rule": "layer_gap", "importance_clients": 2, "spectrum_clients": 2}), TASK, DATA)
    first, second, _ = world.finish()
    assert first.record.fields_down.keys() == second.record.fields_down.keys() == {"overhead"}
    assert first.record.fields_up["importance"] == 2 * 4 * 4
    assert second.record.fields_up.keys() == {"overhead"}
    assert all("eigenvalues" in notes for notes in second.record.notes.values())


def test_a_client_answers_with_the_global_layers_beside_its_own():
    world = federation(made_method(**FIXED), TASK, DATA)
    world.finish()
    down = world.method.phases[0].broadcast(world.server, tune(3))
    client = world.states.clients()[0]
    model = world.method.personalise(down, world.state(client))
    assert set(model) == set(TASK.names)
    assert same({name: model[name] for name in SHARED}, {name: world.server.params[name] for name in SHARED})
    assert same({name: model[name] for name in OWN}, world.state(client).own)
    newcomer = world.method.init_client(TASK, "new", Key(7).fold("run", "init"))
    assert same(world.method.personalise(down, newcomer), world.method.server_params(world.server))


def test_own_layers_persist_between_the_rounds_of_a_client():
    world = federation(made_method(**FIXED), TASK, DATA, per_round=5)
    first = update_of(world, "1", 0)
    calls_state = first.state
    second = update_of(world, "1", 1, state=calls_state)
    start = world.server.params
    moved = [name for name in OWN if not torch.equal(first.state.own[name], start[name])]
    assert moved
    for name in moved:
        assert not torch.equal(second.state.own[name], start[name])


def test_the_closing_round_sends_every_layer_and_gives_the_server_their_mean():
    world = federation(made_method(**FIXED, closing_round=True), TASK, DATA)
    *_, before, last = world.run()
    assert last.now.phase == "closing"
    carried = [entry for entry in world.transport.carried if entry[2].phase == "closing"]
    sent = [decode(AllLayers, up[:-32]) for _, _, _, _, up in carried]
    assert all(set(decode(GlobalLayers, down).shared) == SHARED for _, _, _, down, _ in carried)
    assert all(set(message.shared) == set(TASK.names) for message in sent)
    assert last.record.fields_up["shared"] == sum(value.nbytes for message in sent for value in message.shared.values())
    for name in TASK.names:
        expected = np.average([m.shared[name].double().numpy() for m in sent], axis=0, weights=[m.num_samples for m in sent])
        np.testing.assert_allclose(last.server.params[name].numpy(), expected, rtol=1e-5, atol=1e-8)
    assert all(torch.equal(before.server.params[name], TASK.init_params(Key(7).fold("run", "init"))[name]) for name in OWN)
    for client in last.record.cohort:  # on all its data, whatever the pace
        assert last.record.examples[client] == 2 * len(DATA.client(client).train)
        assert set(world.state(client).own) == OWN


# ---- neurons


@pytest.mark.parametrize("rule", ["share", "coverage", "random"])
def test_unselected_neurons_of_own_layers_stay_bit_for_bit_and_all_others_move(rule: str, monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, neurons={"rule": rule, "value": 0.5}), TASK, DATA)
    first = update_of(world, "1")
    second = update_of(world, "1", 1, state=first.state)  # the B are no longer 0: every neuron has a gradient
    masks = calls[1]["masks"]
    assert set(masks) == OWN
    for name, mask in masks.items():
        assert int(mask.sum()) > 0 and (rule == "coverage" or int(mask.sum()) == math.ceil(0.5 * len(mask)))
        before, after = first.state.own[name], second.state.own[name]
        assert torch.equal(after[~mask], before[~mask])
        assert (after[mask] != before[mask]).any(-1).all()
    for name in SHARED:
        assert (second.message.shared[name] != world.server.params[name]).any(-1).all() or "lora_A" in name
    assert second.notes["kept_neurons"] == sum(int(mask.sum()) for mask in masks.values())
    assert second.notes["own_neurons"] == sum(len(first.state.own[name]) for name in masks) > second.notes["kept_neurons"]


def test_the_random_neurons_of_a_client_are_the_same_in_every_round_and_others_on_other_clients(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, neurons={"rule": "random"}), TASK, DATA)
    first = update_of(world, "1")
    update_of(world, "1", 1, state=first.state)
    update_of(world, "2")
    assert same(calls[0]["masks"], calls[1]["masks"]) and not same(calls[0]["masks"], calls[2]["masks"])
    assert not first.state.rows and calls[0]["collect"] is None


def test_all_neurons_of_own_layers_move_without_a_rule(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    update = update_of(federation(made_method(**FIXED, neurons={"rule": "all"}), TASK, DATA), "1")
    assert not calls[0]["masks"] and calls[0]["collect"] is None
    assert not update.state.rows and "kept_neurons" not in update.notes


def test_fisher_of_the_neurons_follows_its_momentum_over_two_trainings(monkeypatch: pytest.MonkeyPatch):
    gamma = 0.7
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, neurons={"momentum": gamma}, curriculum={"pace": "none"}), TASK, DATA)
    train = DATA.client("1").train

    def collected(call: dict[str, Any]) -> Any:
        return fit(TASK, call["params"], call["epochs"], TRAINING, Key(0), masks=call["masks"], collect=Collect()).neurons

    first = update_of(world, "1")
    second = update_of(world, "1", 1, state=first.state)
    at_start = fisher_pass(TASK, world.server.params, batches(train, torch.arange(len(train)), 4)).neurons
    new = [collected(call) for call in calls[:2]]
    for part in ("rows", "columns"):
        kept = [getattr(update.state, part) for update in (first, second)]
        assert set(kept[0]) == set(kept[1]) == {name for name in getattr(at_start, part) if name in OWN}
        for name in kept[0]:
            once = gamma * getattr(at_start, part)[name] + (1 - gamma) * getattr(new[0], part)[name]
            torch.testing.assert_close(kept[0][name], once, rtol=1e-4, atol=1e-9)
            twice = gamma * kept[0][name] + (1 - gamma) * getattr(new[1], part)[name]
            torch.testing.assert_close(kept[1][name], twice, rtol=1e-4, atol=1e-9)
    # ... and the masks of a training are those of what was known before it
    options = world.method.neurons
    own = {name: first.state.own[name] for name in OWN}
    known = type(at_start)(dict(first.state.rows), dict(first.state.columns))
    assert same(calls[1]["masks"], neuron_masks(options, own, known, Key(0)))


# ---- switched off


@pytest.mark.parametrize("neurons", ["all", "share", "random"])
def test_with_all_layers_global_and_no_pace_it_is_fedavg_bit_for_bit(neurons: str):
    off = {"layers": {"rule": "all"}, "neurons": {"rule": neurons}, "curriculum": {"pace": "none"}}
    plain, ours = federation(made_method("lora"), TASK, DATA), federation(made_method(**off), TASK, DATA)
    for a, b in zip(plain.run(), ours.run(), strict=True):
        assert same(a.server.params, b.server.params)
        assert (a.record.cohort, a.record.loss, a.record.steps) == (b.record.cohort, b.record.loss, b.record.steps)
    for client in ours.states.clients():
        assert not ours.state(client).own


def test_sgd_trains_it_too():
    training = TRAINING.model_copy(update={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05})
    steps = federation(made_method(training=training, **FIXED), TASK, DATA).finish()
    assert all(math.isfinite(loss) for step in steps for loss in step.record.loss.values())
