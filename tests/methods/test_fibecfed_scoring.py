"""FibecFed scored by the backward passes of its training, without a pass of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fibecfed_parts import DATA, FIXED, OWN, TASK, positions, update_of, watch
from made import KEY, federation, made_method
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.wire import decode, encode
from fibecfed.data.planted import planted_federation
from fibecfed.local.curriculum import partly_scored
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.fibecfed_client import Own
from fibecfed.models.tiny import tiny_task

IN_TRAINING = {"scoring": "training"}


def world_of(**more: Any) -> Any:
    curriculum = {**IN_TRAINING, "beta": 0.5, "pace": "step", **more.pop("curriculum", {})}
    return federation(made_method(**{**FIXED, "rounds": 8, "score_after": 2, "curriculum": curriculum, **more}), TASK, DATA)


def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("a pass of its own")

    monkeypatch.setattr("fibecfed.methods.fibecfed_client.fisher_pass", never)


def test_a_client_is_scored_by_what_it_trains_on_and_keeps_the_latest_trace_with_its_round(monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    no_pass(monkeypatch)
    world, client, state = world_of(), "1", None
    n = len(DATA.client(client).train)
    latest: dict[int, int] = {}
    for index in range(8):
        before = state
        update = update_of(world, client, index, state, 8)
        state = update.state
        used = positions(client, calls[index]["epochs"][0])
        collect = calls[index]["collect"]
        if index < 2:
            assert not state.difficulty and not collect.traces
            continue
        if index < 7 and collect.traces:
            new = sorted(set(used) - set(latest))
            latest |= dict.fromkeys(used, index)
            assert update.notes.get("difficulty_of", []) == new
            written = torch.tensor(update.notes.get("difficulty", []))
            torch.testing.assert_close(written, state.difficulty["trace"][new], rtol=1e-5, atol=0)
            first = positions(client, calls[index]["epochs"][0][:1])  # the first batch: at the parameters of the start
            at_start = fisher_pass(TASK, calls[index]["params"], [DATA.client(client).train.batch(first)]).trace
            torch.testing.assert_close(state.difficulty["trace"][first], at_start, rtol=1e-4, atol=1e-9)
        assert state.difficulty["round"].tolist() == [latest.get(i, -1) for i in range(n)]
        if before is not None and before.difficulty:
            drawn = KEY.fold("run", "client", client, "round", index, "unscored").permutation(n)
            order = partly_scored(before.difficulty["trace"], before.difficulty["round"] >= 0, drawn)
            assert set(used) == set(order[: len(used)].tolist())
    assert len(latest) > n / 2 and not len(state.order)


def test_what_is_known_is_put_easy_to_hard_on_its_places_in_a_random_order():
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        n = 12
        trace, known, order = torch.rand(n, generator=draw), torch.rand(n, generator=draw) < 0.6, torch.randperm(n, generator=draw)
        mixed = partly_scored(trace, known, order)
        assert sorted(mixed.tolist()) == list(range(n))
        assert torch.equal(mixed[~known[order]], order[~known[order]])  # those not seen keep their place
        scored = mixed[known[order]]
        assert known[scored].all() and bool((trace[scored].diff() >= 0).all())
    everything = torch.ones(n, dtype=torch.bool)
    assert torch.equal(partly_scored(trace, everything, order), torch.argsort(trace, stable=True))
    assert torch.equal(partly_scored(trace, ~everything, order), order)


def test_traces_that_no_later_round_can_use_are_not_collected(monkeypatch: pytest.MonkeyPatch):
    def traced(**more: Any) -> list[int]:
        calls, state = watch(monkeypatch), None
        world = world_of(curriculum={"pace": "linear", "alpha": 0.5, **more}, score_after=1)
        for index in range(8):
            state = update_of(world, "1", index, state, 8).state
        return [index for index, call in enumerate(calls) if call["collect"] is not None and call["collect"].traces]

    assert traced() == [1, 2]  # from round 4 on every example is used, in random order
    assert traced(order_within_round="easy_to_hard") == [1, 2, 3, 4, 5, 6]  # nothing comes after the last round
    assert traced(order="length") == traced(pace="none") == []


@pytest.mark.parametrize("rule", ["share", "coverage"])
def test_a_first_training_updates_every_neuron_and_later_ones_those_of_its_fisher_information(rule: str, monkeypatch: pytest.MonkeyPatch):
    calls = watch(monkeypatch)
    no_pass(monkeypatch)
    world = world_of(neurons={"rule": rule, "every": 2})
    first = update_of(world, "1", 0, None, 8)
    second = update_of(world, "1", 1, first.state, 8)
    assert all(mask.all() for mask in calls[0]["masks"].values()) and first.notes["kept_neurons"] == first.notes["own_neurons"]
    assert set(calls[1]["masks"]) == OWN and second.notes["kept_neurons"] < second.notes["own_neurons"]
    assert set(first.state.rows) == OWN
    assert all((call["collect"].every, set(call["collect"].neurons)) == (2, OWN) for call in calls)


def test_the_last_round_collects_nothing(monkeypatch: pytest.MonkeyPatch):
    for closing in (False, True):
        calls = watch(monkeypatch)
        world = federation(made_method(**FIXED, rounds=2, closing_round=closing, score_after=0), TASK, DATA, per_round=1)
        world.finish()
        assert [call["collect"] is None for call in calls] == [*([False] * (len(calls) - 1)), True]


def test_a_part_of_the_examples_is_enough_for_the_first_masks(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def counting(task: Any, params: Any, batches: Any, *args: Any) -> Any:
        batches = list(batches)
        seen.append(sum(len(batch["labels"]) for batch in batches))
        return fisher_pass(task, params, batches, *args)

    monkeypatch.setattr("fibecfed.methods.fibecfed_client.fisher_pass", counting)
    n = len(DATA.client("1").train)
    for every, expected in ((1, n), (3, -(-n // 3))):
        update_of(federation(made_method(**FIXED, curriculum={"pace": "none"}, neurons={"every": every}), TASK, DATA), "1")
        assert seen.pop() == expected


def test_a_state_of_version_0_1_is_read_and_one_without_traces_has_its_bytes():
    state = Own({"w": torch.ones(2)}, {}, {}, torch.arange(3), 1, 1)
    blob = encode(state)
    assert b"difficulty" not in blob
    again = decode(Own, blob)
    assert not again.difficulty and again.order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_labels_are_found_hard(seed: int):
    task = tiny_task("bert", hidden=64, rank=8, vocab=32)
    data = planted_federation(5, 40, Key(seed), vocab_size=32, length=10, noise=0.1, test_per_client=10)
    training = TrainingOptions(local_epochs=2, batch_size=8, learning_rate=0.02)
    method = made_method(
        rounds=8,
        training=training,
        layers={"rule": "last", "value": 1},
        score_after=4,
        curriculum={**IN_TRAINING, "beta": 1.0, "order_within_round": "easy_to_hard"},
    )
    world = federation(method, task, data, per_round=5)
    world.finish()
    flipped = torch.cat([data.flipped(client) for client in data.clients])
    found = [world.state(client).difficulty for client in data.clients]
    assert all((one["round"] == 6).all() for one in found)
    trace = torch.cat([one["trace"] for one in found])
    assert auc(trace, flipped) > 0.8


def auc(scores: Tensor, flagged: Tensor) -> float:
    """How often a flagged example scores higher than another one."""
    return float((scores[flagged][:, None] > scores[~flagged][None, :]).double().mean())
