"""FibecFed: which examples a client trains on in each round."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fibecfed_parts import DATA, FIXED, TASK, positions, update_of, watch
from made import federation, made_method

from fibecfed.local.curriculum import share
from fibecfed.local.fisher import fisher_pass
from fibecfed.methods.fibecfed import default_score_after

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
