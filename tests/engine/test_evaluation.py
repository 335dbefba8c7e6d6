"""Scores: counts of every client on its own slice with its own model, and of the global model on everything."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import Federation, federation, made_data, made_method, made_task, undecided
from toy import Toy

from fibecfed.core import metrics
from fibecfed.core.errors import RunFailed
from fibecfed.core.records import EvalRecord
from fibecfed.core.types import Failure
from fibecfed.engine.evaluation import Evaluator, best_by_validation, scores, worst_decile
from fibecfed.engine.failures import Tolerance

TASK, DATA = made_task(2), made_data(4, 8, test_per_client=6, validation_per_client=3)


def evaluator(world: Federation) -> Evaluator:
    return Evaluator(world.method, world.task, world.transport, DATA.clients, DATA.test, DATA.validation, 5)


def counted(params: Any, examples: Any) -> np.ndarray:
    found = np.zeros((2, 2), dtype=int)
    for i in range(len(examples)):
        batch = examples.batch([i])
        found[int(batch["labels"]), int(TASK.predict(params, batch))] += 1
    return found


def record(rounds: int = 1, **more: Any) -> EvalRecord:
    none = [[0, 0], [0, 0]]
    fields: dict[str, Any] = {"clients": {}, "pooled": none, "pooled_validation": none, "server": none, "server_validation": none}
    rest = {"loss_pooled": 0.0, "loss_server": 0.0, "bytes_down": 0, "bytes_up": 0, "seconds": 0.0}
    return EvalRecord(rounds=rounds, **{**fields, **rest, **more})


def test_every_model_is_scored_on_the_examples_it_is_for():
    world = federation(made_method(rounds=2, clients=4, layers={"rule": "last", "value": 1}), TASK, DATA)
    *_, last = world.run()
    world.server = replace(world.server, params=undecided(TASK, world.server.params, DATA.test))
    world.transport.carried.clear()
    found = evaluator(world).after(world.server, last.now, last.number)
    phase = world.method.phases[-1]
    down = phase.broadcast(world.server, last.now)
    pooled, validation = np.zeros((2, 2), dtype=int), np.zeros((2, 2), dtype=int)
    for client in DATA.clients:
        state = world.state(client) or world.method.init_client(TASK, client, world.runtime.key.fold("init"))
        params, data = world.method.personalise(down, state), DATA.client(client)
        assert found.clients[client] == counted(params, data.test).tolist()
        pooled += counted(params, data.test)
        validation += counted(params, data.validation)
    assert found.pooled == pooled.tolist() and found.pooled_validation == validation.tolist()
    assert found.server == counted(world.server.params, DATA.test).tolist()
    assert found.server_validation == counted(world.server.params, DATA.validation).tolist()
    assert (np.array(found.server) > 0).sum() > 2
    assert pooled.sum() == len(DATA.test) and found.rounds == last.number == 2
    loss = torch.cat([TASK.losses(world.server.params, DATA.test.batch([i])) for i in range(len(DATA.test))])
    assert found.loss_server == pytest.approx(float(loss.mean()), rel=1e-4)
    # its bytes are those of an exchange, apart from training
    carried = world.transport.carried
    assert {action for _, action, *_ in carried} == {"evaluate"}
    assert found.bytes_down == sum(len(down) for *_, down, _ in carried) and found.bytes_up == sum(len(up) for *_, up in carried)


def test_a_model_that_all_clients_share_is_tested_once():
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    world.server = replace(world.server, params=undecided(TASK, world.server.params, DATA.test))
    asked: list[int] = []

    class Counting:
        num_classes = 2

        def logits(self, params: Any, batch: Any) -> torch.Tensor:
            asked.append(len(batch["labels"]))
            return TASK.logits(params, batch)

    aside: Any = Counting()
    found = replace(evaluator(world), task=aside).after(world.server, last.now, last.number)
    assert not asked  # beyond what the clients have tested
    assert found.server == counted(world.server.params, DATA.test).tolist() == found.pooled
    assert found.server_validation == counted(world.server.params, DATA.validation).tolist() == found.pooled_validation
    assert (np.array(found.server) > 0).sum() > 2
    loss = torch.cat([TASK.losses(world.server.params, DATA.test.batch([i])) for i in range(len(DATA.test))])
    assert found.loss_server == found.loss_pooled == pytest.approx(float(loss.mean()), rel=1e-4)
    without = replace(evaluator(world), task=aside).after(world.server, last.now, last.number, {"0"})
    assert sum(asked) == len(DATA.test) + len(DATA.validation) and without.server == found.server


def test_scoring_changes_no_state_and_makes_none():
    world = federation(made_method(rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    before = {client: world.states.get(client) for client in world.states.clients()}
    evaluator(world).after(world.server, last.now, last.number)
    assert {client: world.states.get(client) for client in world.states.clients()} == before


def test_the_untrained_model_is_the_same_for_everybody_and_nothing_is_sent():
    world = federation(made_method(rounds=1, clients=4), TASK, DATA)
    found = evaluator(world).untrained(world.server)
    assert found.pooled == found.server == counted(world.server.params, DATA.test).tolist()
    assert (found.rounds, found.bytes_up, found.bytes_down) == (0, 0, 0) and not world.transport.carried


def test_a_client_that_cannot_be_scored_stops_the_run():
    class Broken:
        def exchange(self, action: Any, now: Any, requests: Any, timeout_s: Any, max_bytes: Any) -> Any:
            yield "0", Failure("client 0 is gone")

    world = federation(Toy(), TASK, DATA)
    *_, last = world.run()
    broken = Evaluator(world.method, TASK, Broken(), DATA.clients, DATA.test, DATA.validation, 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunFailed, match="evaluation after 3 rounds: client 0 is gone"):
        broken.after(world.server, last.now, last.number)


def test_clients_that_cannot_be_scored_are_left_out_by_choice():
    @dataclass
    class Losing:
        inner: Any
        lost: dict[str, Any]

        def exchange(self, action: Any, now: Any, requests: Any, timeout_s: Any, max_bytes: Any) -> Any:
            for client, reply in self.inner.exchange(action, now, requests, timeout_s, max_bytes):
                if self.lost.get(client, reply) is not None:
                    yield client, self.lost.get(client, reply)

        def notes(self) -> Any:
            return {}

    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    full = evaluator(world).after(world.server, last.now, 1)
    lost = {"0": Failure("client 0 is gone"), "1": b"nonsense", "2": None}
    some = replace(evaluator(world), transport=Losing(world.transport, lost), tolerance=Tolerance(on_failure="drop"))
    found = some.after(world.server, last.now, 1)
    assert found.clients == {"3": full.clients["3"]} and found.pooled == full.clients["3"] and found.server == full.server
    assert found.failures["0"] == "client 0 is gone" and found.failures["2"] == "client 2: no answer"
    assert "client 1: 8 bytes that are not a fibecfed message" in found.failures["1"]
    assert full.failures == {} and found.bytes_down == full.bytes_down and found.bytes_up == full.bytes_up // 4 + 8
    without = evaluator(world).after(world.server, last.now, 1, {"0", "1", "2"})
    assert without.clients == found.clients and without.bytes_down == full.bytes_down // 4 and not without.failures
    with pytest.raises(RunFailed, match="evaluation after 1 rounds: client 0 is gone"):
        replace(some, transport=Losing(world.transport, {**lost, "3": None})).after(world.server, last.now, 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_worst_decile_is_numpys_tenth_percentile_over_clients_with_examples(rows: list[tuple[int, int]]):
    clients = {str(i): [[right, wrong], [0, 0]] for i, (right, wrong) in enumerate(rows)}
    accuracies = [right / (right + wrong) for right, wrong in rows if right + wrong]
    found = worst_decile(clients)
    if accuracies:
        assert found == pytest.approx(np.percentile(accuracies, 10))
    else:
        assert found is None


def test_the_best_round_is_chosen_on_validation_and_the_earliest_of_equals_wins():
    good, bad = [[3, 1], [0, 0]], [[1, 3], [0, 0]]
    records = [
        record(1, pooled_validation=bad, pooled=good),  # best on test, which counts for nothing
        record(2, pooled_validation=good, pooled=bad),
        record(3, pooled_validation=good, pooled=good),
    ]
    best = best_by_validation(records)
    assert best is not None and best.rounds == 2
    assert best_by_validation([record(1), record(2)]) is None


@pytest.mark.parametrize("metric", [None, "accuracy", "matthews", "f1"])
def test_the_tasks_own_metric_stands_beside_the_accuracy(metric: Any):
    pooled, server = [[5, 1], [2, 4]], [[3, 3], [1, 5]]
    table = scores(record(4, pooled=pooled, server=server, clients={"0": pooled}), metric)
    assert table["rounds"] == 4
    assert table["pooled_personalised"] == table["worst_decile"] == 9 / 12 and table["global"] == 8 / 12
    if metric in ("matthews", "f1"):
        of = metrics.matthews if metric == "matthews" else metrics.f1
        assert math.isclose(table[f"pooled_personalised_{metric}"], of(pooled)) and math.isclose(table[f"global_{metric}"], of(server))
    else:
        assert set(table) == {"rounds", "pooled_personalised", "global", "worst_decile"}
