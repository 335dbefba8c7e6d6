"""Scores: counts of every client on its own slice with its own model, and of the global model on everything."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, Around, Federation, federation, made_data, made_method, made_task, undecided
from toy import Scripted, Toy

from fibecfed.core import metrics
from fibecfed.core.errors import Diverged, RunFailed
from fibecfed.core.records import EvalRecord
from fibecfed.core.types import Failure
from fibecfed.core.wire import decode, encode
from fibecfed.engine.client import Counts
from fibecfed.engine.evaluation import Evaluator, best_by_validation, sample, scores, worst_decile
from fibecfed.engine.failures import Standing, Tolerance
from fibecfed.engine.transport import Answer, Ticket, exchange

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


class Losing(Around):
    """A transport on which other answers arrive than were sent; None: nothing arrives."""

    def __init__(self, inner: Any, lost: Mapping[str, Any]) -> None:
        super().__init__(inner)
        self.lost = lost

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            found = self.lost.get(answer.ticket.client, answer.reply)
            found = found(decode(Counts, cast("bytes", answer.reply))) if callable(found) else found
            if found is not None:
                yield Answer(answer.ticket, encode(found) if isinstance(found, Counts) else found)


def test_every_model_is_scored_on_the_examples_it_is_for():
    world = federation(made_method(rounds=2, clients=4, layers={"rule": "last", "value": 1}), TASK, DATA)
    *_, last = world.run()
    world.server = replace(world.server, params=undecided(TASK, world.server.params, DATA.test))
    world.transport.carried.clear()
    found, _ = evaluator(world).after(world.server, last.now, last.number)
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
        device = TASK.device

        def logits(self, params: Any, batch: Any) -> torch.Tensor:
            asked.append(len(batch["labels"]))
            return TASK.logits(params, batch)

    aside: Any = Counting()
    found, _ = replace(evaluator(world), task=aside).after(world.server, last.now, last.number)
    assert not asked  # beyond what the clients have tested
    assert found.server == counted(world.server.params, DATA.test).tolist() == found.pooled
    assert found.server_validation == counted(world.server.params, DATA.validation).tolist() == found.pooled_validation
    assert (np.array(found.server) > 0).sum() > 2
    loss = torch.cat([TASK.losses(world.server.params, DATA.test.batch([i])) for i in range(len(DATA.test))])
    assert found.loss_server == found.loss_pooled == pytest.approx(float(loss.mean()), rel=1e-4)
    without, _ = replace(evaluator(world), task=aside).after(world.server, last.now, last.number, Standing(excluded=frozenset("0")))
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
    world = federation(Toy(), TASK, DATA)
    *_, last = world.run()
    broken = replace(evaluator(world), transport=Scripted({("0", 2): Failure("client 0 is gone")}))
    with pytest.raises(RunFailed, match="evaluation after 3 rounds: client 0 is gone"):
        broken.after(world.server, last.now, last.number)


def test_clients_that_cannot_be_scored_are_left_out_by_choice():
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    full, _ = evaluator(world).after(world.server, last.now, 1)
    lost = {"0": Failure("client 0 is gone"), "1": b"nonsense", "2": None}
    some = replace(evaluator(world), transport=Losing(world.transport, lost), tolerance=Tolerance(on_failure="drop"))
    found, _ = some.after(world.server, last.now, 1)
    assert found.clients == {"3": full.clients["3"]} and found.pooled == full.clients["3"] and found.server == full.server
    assert found.failures["0"] == "client 0 is gone" and found.failures["2"] == "client 2: no answer"
    assert "client 1: 8 bytes that are not a fibecfed message" in found.failures["1"]
    assert full.failures == {} and found.bytes_down == full.bytes_down and found.bytes_up == full.bytes_up // 4 + 8
    without, _ = evaluator(world).after(world.server, last.now, 1, Standing(excluded=frozenset("012")))
    assert without.clients == found.clients and without.bytes_down == full.bytes_down // 4 and not without.failures
    with pytest.raises(RunFailed, match="evaluation after 1 rounds: client 0 is gone"):
        replace(some, transport=Losing(world.transport, {**lost, "3": None})).after(world.server, last.now, 1)


def moved(counts: Counts) -> Counts:
    """One example less of its first class, one more of its second: as many as before."""
    table = counts.test.clone()
    row = int(table.sum(1).argmax())
    table[row, int(table[row].argmax())] -= 1
    table[1 - row, 0] += 1
    return replace(counts, test=table)


LIES: dict[str, tuple[Any, str]] = {
    "2^62 right answers": (lambda c: replace(c, test=torch.full((2, 2), 2**62)), f"test counts {2**64} examples, expected at most 99 "),
    "100 validation examples": (lambda c: replace(c, validation=torch.full((2, 2), 25)), "validation counts 100 examples, expected"),
    "a negative count": (lambda c: replace(c, test=c.test - 9), "test has a count of -"),
    "a NaN loss": (lambda c: replace(c, test_loss=math.nan), "test_loss is nan, expected a finite number of at least 0"),
    "an infinite loss": (lambda c: replace(c, validation_loss=math.inf), "validation_loss is inf, expected"),
    "a negative loss": (lambda c: replace(c, test_loss=-0.5), r"test_loss is -0\.5, expected"),
    "losses whose sum is not finite": (lambda c: replace(c, test_loss=1.7e308), "test_loss is 1.7e"),
}  # fmt: skip
DROP = Tolerance(on_failure="drop", max_samples=99)


@pytest.mark.parametrize("name", LIES)
def test_counts_that_cannot_be_are_the_failure_of_their_sender_alone(name: str):
    lie, text = LIES[name]
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    lying = replace(evaluator(world), transport=Losing(world.transport, {"2": lie}), tolerance=DROP)
    found, standing = lying.after(world.server, last.now, 1)
    honest, _ = replace(evaluator(world), transport=Losing(world.transport, {"2": None}), tolerance=DROP).after(world.server, last.now, 1)
    assert set(found.failures) == {"2"} and re.match(f"client 2: {text}", found.failures["2"])
    assert (found.pooled, found.clients, found.loss_pooled) == (honest.pooled, honest.clients, honest.loss_pooled)
    assert set(standing.counted) == {"0", "1", "3"}
    with pytest.raises(RunFailed, match="evaluation after 1 rounds: client 2: ") as stopped:
        replace(lying, tolerance=replace(DROP, on_failure="stop")).after(world.server, last.now, 1)
    assert not isinstance(stopped.value, Diverged)  # a client's word


def test_the_examples_a_client_counts_on_are_those_of_its_first_evaluation_after_a_resumption_too():
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    honest = replace(evaluator(world), tolerance=DROP)
    first, standing = honest.after(world.server, last.now, 1)
    for client in DATA.clients:
        parts = DATA.client(client).test, DATA.client(client).validation
        assert standing.counted[client] == tuple(tuple(torch.bincount(part.labels, minlength=2).tolist()) for part in parts)
    resumed = Standing.from_table(json.loads(json.dumps(standing.table())))
    assert resumed == standing
    again, same = honest.after(world.server, last.now, 2, resumed)
    assert not again.failures and same == standing and again.pooled == first.pooled
    lies = {"2": moved, "3": lambda counts: replace(counts, validation=counts.validation + 1)}
    found, after = replace(honest, transport=Losing(world.transport, lies)).after(world.server, last.now, 2, resumed)
    assert after == standing and set(found.clients) == {"0", "1"}
    assert re.match(r"client 2: test counts \d examples of class \d, expected \d as in its first evaluation", found.failures["2"])
    assert re.match(r"client 3: validation counts \d examples of class 0, expected \d as in its first evaluation", found.failures["3"])
    # what was rejected at first pins nothing
    first, standing = replace(honest, transport=Losing(world.transport, {"2": LIES["a NaN loss"][0]})).after(world.server, last.now, 1)
    assert not honest.after(world.server, last.now, 2, standing)[0].failures


def test_a_model_whose_loss_is_not_finite_is_its_clients_failure_and_a_divergence_where_the_run_stops():
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    nan = replace(world.server, params={name: value * 0 + 3e38 for name, value in world.server.params.items()})
    with pytest.raises(
        Diverged, match=r"evaluation after 1 rounds: client 0, evaluation after tune round 0: its loss is (nan|inf).*learning_rate"
    ):
        evaluator(world).after(nan, last.now, 1)
    phase = world.method.phases[-1]
    requests = {client: encode(phase.broadcast(nan if client == "1" else world.server, last.now)) for client in DATA.clients}
    replies = dict(exchange(world.transport, "evaluate", last.now, requests))
    assert isinstance(replies["1"], Failure) and replies["1"].repeats and sum(isinstance(reply, bytes) for reply in replies.values()) == 3


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


def test_only_evaluations_of_the_same_clients_are_compared():
    good, fair = [[4, 0], [0, 0]], [[3, 1], [0, 0]]
    three, two = (dict.fromkeys(names, fair) for names in ("abc", "ab"))

    def of(rounds: int, validation: Any, clients: Any, **more: Any) -> EvalRecord:
        return record(rounds, pooled_validation=validation, clients=clients, **more)

    without_one = of(2, good, two, failures={"c": "gone"})
    best = best_by_validation([of(1, fair, three), without_one, of(3, fair, three)])
    assert best is not None and best.rounds == 1
    excluded = best_by_validation([of(1, good, three), of(2, fair, two), of(3, fair, two)])  # c takes no part any more
    assert excluded is not None and excluded.rounds == 2
    assert best_by_validation([without_one]) is None


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


def test_a_sample_of_clients_is_the_same_in_every_evaluation_and_the_global_model_is_scored_on_their_examples():
    world = federation(made_method("fibecfed"), TASK, DATA, per_round=5)
    clients = world.data.clients
    assert sample(clients, None, KEY) == sample(clients, 99, KEY) == clients
    some = sample(clients, 3, KEY)
    assert some == sample(clients, 3, KEY) and len(some) == 3 and list(some) == sorted(some) and set(some) < set(clients)
    assert len({sample(clients, 3, KEY.fold(n)) for n in range(20)}) > 1
    test, validation = (world.data.held_by(some, part) for part in ("test", "validation"))
    assert len(test) == sum(len(world.data.client(client).test) for client in some)
    scored = replace(evaluator(world), clients=some, test=test, validation=validation)
    last = world.finish()[-1]
    found, _ = scored.after(world.server, last.now, last.number)
    assert tuple(found.clients) == some
    assert {client for client, action, *_ in world.transport.carried if action == "evaluate"} == set(some)
    expected = counted(world.method.server_params(world.server), test)
    assert np.array_equal(found.server, expected) and sum(map(sum, found.pooled)) == len(test)
    assert sum(map(sum, scored.untrained(world.server).server)) == len(test)
