"""FibecFed: what travels, what stays, which neurons move, which examples are trained on, and how its parts are switched off."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made import TRAINING, federation, made_data, made_method, made_task, names_of_layers, same, seat

from fibecfed.core.method import Received
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import decode
from fibecfed.local.batches import batches
from fibecfed.local.curriculum import share
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.selection import neuron_masks
from fibecfed.methods.fibecfed import AllLayers, AskImportance, AskRatio, GlobalLayers, Importance, LocalLayers, Ratio, default_score_after

TASK, DATA = made_task(4), made_data()
FIXED: dict[str, Any] = {"layers": {"rule": "last", "value": 2}}
"""Layers 2 and 3 of 4 are global, without a phase of measuring."""
OWN = names_of_layers(TASK, [0, 1])
SHARED = names_of_layers(TASK, [2, 3, None])


def tune(index: int, rounds: int = 4) -> Round:
    return Round("tune", index, rounds, index)


def update_of(world: Any, client: str, index: int = 0, state: Any = None, rounds: int = 4) -> Any:
    phase = next(phase for phase in world.method.phases if phase.name == "tune")
    now = tune(index, rounds)
    return phase.client_update(seat(world, client, index, state), phase.broadcast(world.server, now), now)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of `fit`: the batches of each epoch, where it started, and what was masked."""
    calls: list[dict[str, Any]] = []

    def spy(task: Any, params: Any, epochs: Any, *args: Any, **more: Any) -> Any:
        epochs = [list(epoch) for epoch in epochs]
        calls.append({"epochs": epochs, "params": params, **more})
        return fit(task, params, epochs, *args, **more)

    monkeypatch.setattr("fibecfed.methods.fibecfed.fit", spy)
    return calls


def positions(client: str, epoch: list[Any]) -> list[int]:
    """Where in the client's training part the examples of an epoch stand; they are all different."""
    train = DATA.client(client).train
    rows = {tokens: i for i in range(len(train)) for tokens in texts(train.batch([i]))}
    assert len(rows) == len(train)
    return [rows[tokens] for batch in epoch for tokens in texts(batch)]


def texts(batch: Any) -> list[tuple[int, ...]]:
    """The tokens of each example without padding."""
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


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


def test_the_random_neurons_of_a_client_are_the_same_in_every_round_and_others_on_other_clients(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, neurons={"rule": "random"}), TASK, DATA)
    first = update_of(world, "1")
    update_of(world, "1", 1, state=first.state)
    update_of(world, "2")
    assert same(calls[0]["masks"], calls[1]["masks"]) and not same(calls[0]["masks"], calls[2]["masks"])
    assert not first.state.rows and calls[0]["collect_fisher"] is False


def test_all_neurons_of_own_layers_move_without_a_rule(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    update = update_of(federation(made_method(**FIXED, neurons={"rule": "all"}), TASK, DATA), "1")
    assert not calls[0]["masks"] and not calls[0]["collect_fisher"]
    assert not update.state.rows and "kept_neurons" not in update.notes


def test_fisher_of_the_neurons_follows_its_momentum_over_two_trainings(monkeypatch: pytest.MonkeyPatch):
    gamma = 0.7
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, neurons={"momentum": gamma}, curriculum={"pace": "none"}), TASK, DATA)
    train = DATA.client("1").train

    def collected(call: dict[str, Any]) -> Any:
        return fit(TASK, call["params"], call["epochs"], TRAINING, Key(0), masks=call["masks"], collect_fisher=True).neurons

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


# ---- curriculum


def test_each_round_trains_on_the_first_batches_that_the_pace_allows():
    rounds = 5
    world = federation(made_method(**FIXED, rounds=rounds, score_after=2, curriculum={"beta": 0.3, "alpha": 0.8}), TASK, DATA, per_round=5)
    options = world.method.curriculum
    for step in world.run():
        for client in DATA.clients:
            n = len(DATA.client(client).train)
            allowed = max(1, math.ceil(share(options, step.now.index, rounds) * math.ceil(n / 4) - 1e-9))
            assert step.record.examples[client] == 2 * min(n, 4 * allowed), (client, step.now.index)
            assert step.record.steps[client] == 2 * allowed


def test_before_scoring_the_examples_are_drawn_anew_and_afterwards_the_easiest_come_first(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    rounds, client = 8, "1"
    options = {"beta": 0.3, "pace": "step"}
    world = federation(made_method(**FIXED, rounds=rounds, score_after=4, curriculum=options), TASK, DATA)
    n = len(DATA.client(client).train)
    assert n > 8
    state, used, scored_at = None, [], None
    for index in range(6):
        update = update_of(world, client, index, state, rounds)
        state = update.state
        assert ("difficulty" in update.notes) == (index == 4)
        if index == 4:
            scored_at = update.notes["difficulty"]
            start = calls[index]["params"]
        used.append([set(positions(client, epoch)) for epoch in calls[index]["epochs"]])
        assert used[-1][0] == used[-1][1]  # the epochs of a round have the same examples
    assert len({frozenset(epochs[0]) for epochs in used[:4]}) > 1
    train = DATA.client(client).train
    trace = fisher_pass(TASK, start, [train.batch([i]) for i in range(n)]).trace
    torch.testing.assert_close(torch.tensor(scored_at), trace, rtol=1e-4, atol=1e-8)
    order = torch.argsort(trace, stable=True).tolist()
    assert state.order.tolist() == order
    assert used[4][0] == used[5][0] == set(order[: len(used[4][0])])


def test_easy_to_hard_inside_the_round_is_the_order_of_difficulty(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, score_after=0, curriculum={"order_within_round": "easy_to_hard"}), TASK, DATA)
    update = update_of(world, "1")
    for epoch in calls[0]["epochs"]:
        found = positions("1", epoch)
        assert found == update.state.order[: len(found)].tolist()


def test_a_client_is_scored_once_or_again_after_so_many_trainings_of_its_own():
    for every, expected in ((0, [1]), (1, [1, 2, 3, 4, 5]), (2, [1, 3, 5])):
        world = federation(made_method(**FIXED, rounds=6, score_after=1, curriculum={"rescore_every": every}), TASK, DATA)
        state, scored = None, []
        for index in range(6):
            update = update_of(world, "1", index, state, 6)
            state = update.state
            scored += [index] if "difficulty" in update.notes else []
        assert scored == expected
        assert state.trainings == 6


@pytest.mark.parametrize("order", ["length", "rarity", "random"])
def test_the_controls_follow_their_order_at_the_same_pace_and_score_nobody(order: str, monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    world = federation(made_method(**FIXED, score_after=0, curriculum={"order": order, "beta": 0.4}), TASK, DATA)
    first = update_of(world, "1")
    update_of(world, "1", 0, state=first.state)
    assert "difficulty" not in first.notes and not len(first.state.order)
    used = [set(positions("1", call["epochs"][0])) for call in calls]
    assert used[0] == used[1]
    train = DATA.client("1").train
    if order != "random":
        value = train.lengths.double() if order == "length" else train.rarity
        rest = sorted(set(range(len(train))) - used[0])
        assert rest and float(value[sorted(used[0])].max()) <= float(value[rest].min())


@pytest.mark.parametrize("pace", ["linear", "sqrt", "quadratic", "exp", "log", "step"])
def test_every_pace_runs_and_ends_with_all_examples(pace: str):
    world = federation(made_method(**FIXED, rounds=3, curriculum={"pace": pace, "beta": 0.3, "alpha": 0.6}), TASK, DATA, per_round=5)
    steps = world.finish()
    assert sum(steps[0].record.examples.values()) < sum(steps[-1].record.examples.values()) == 2 * 55


def test_without_a_pace_every_round_takes_all_examples():
    steps = federation(made_method(**FIXED, curriculum={"pace": "none"}), TASK, DATA, per_round=5).finish()
    assert all(step.record.examples[client] == 2 * len(DATA.client(client).train) for step in steps for client in DATA.clients)
    assert not any("difficulty" in notes for step in steps for notes in step.record.notes.values())


def test_scoring_starts_after_a_fifth_of_the_rounds_unless_said_otherwise():
    assert [default_score_after(rounds) for rounds in (1, 4, 5, 10, 11, 40)] == [1, 1, 1, 2, 3, 8]
    assert made_method(rounds=40).score_after == 8 and made_method(score_after=0).score_after == 0


@pytest.mark.parametrize("options", [{"labels": "model"}, {"fisher_over": "adapter"}])
def test_the_kinds_of_fisher_information_score_in_their_own_way(options: dict[str, Any]):
    plain = update_of(federation(made_method(**FIXED, score_after=0), TASK, DATA), "1")
    other = update_of(federation(made_method(**FIXED, score_after=0, curriculum=options), TASK, DATA), "1")
    assert plain.notes["difficulty"] != other.notes["difficulty"]


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
