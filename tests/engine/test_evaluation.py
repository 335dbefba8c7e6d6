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
from sums import loss as loss_of
from sums import matrix, sum_of, sums
from toy import Scripted, Toy

from fibecfed.core.errors import Diverged, RunFailed
from fibecfed.core.metrics import METRICS, offered_by
from fibecfed.core.records import EvalRecord
from fibecfed.core.statistics import of_classes
from fibecfed.core.types import Failure
from fibecfed.core.wire import decode, encode
from fibecfed.engine.evaluation import Evaluator, best_by_validation, every_score, sample, scores, worst_decile
from fibecfed.engine.failures import Standing
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import Scored
from fibecfed.engine.transport import Answer, Ticket, exchange

TASK, DATA = made_task(2), made_data(4, 8, test_per_client=6, validation_per_client=3)


ACCURACY = METRICS["accuracy"]
OF_CLASSES = [metric.name for metric in offered_by(of_classes(2).zero)]


def evaluator(world: Federation) -> Evaluator:
    return Evaluator(world.method, world.task, world.transport, DATA.clients, DATA.test, DATA.validation, 5)


def counted(params: Any, examples: Any) -> np.ndarray:
    found = np.zeros((2, 2), dtype=int)
    for i in range(len(examples)):
        batch = examples.batch([i])
        found[int(batch["labels"]), int(TASK.predict(params, batch))] += 1
    return found


def record(rounds: int = 1, **more: Any) -> EvalRecord:
    """Of confusion matrices."""
    none = [[0, 0], [0, 0]]
    fields: dict[str, Any] = {"clients": {}, "pooled": none, "pooled_validation": none, "server": none, "server_validation": none}
    given = {**fields, **more}
    found = {name: sums(given[name]) for name in fields if name != "clients"}
    clients = {client: sums(table) for client, table in given["clients"].items()}
    rest = {"bytes_down": 0, "bytes_up": 0, "seconds": 0.0, "failures": given.get("failures", {})}
    return EvalRecord(rounds=rounds, clients=clients, **found, **rest)


class Losing(Around):
    """A transport on which other answers arrive than were sent; None: nothing arrives."""

    def __init__(self, inner: Any, lost: Mapping[str, Any]) -> None:
        super().__init__(inner)
        self.lost = lost

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            found = self.lost.get(answer.ticket.client, answer.reply)
            found = found(decode(Scored, cast("bytes", answer.reply))) if callable(found) else found
            if found is not None:
                yield Answer(answer.ticket, encode(found) if isinstance(found, Scored) else found)


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
        assert matrix(found.clients[client]) == counted(params, data.test).tolist()
        pooled += counted(params, data.test)
        validation += counted(params, data.validation)
    assert matrix(found.pooled) == pooled.tolist() and matrix(found.pooled_validation) == validation.tolist()
    assert matrix(found.server) == counted(world.server.params, DATA.test).tolist()
    assert matrix(found.server_validation) == counted(world.server.params, DATA.validation).tolist()
    assert (np.array(matrix(found.server)) > 0).sum() > 2
    assert pooled.sum() == len(DATA.test) and found.rounds == last.number == 2
    loss = torch.cat([TASK.losses(world.server.params, DATA.test.batch([i])) for i in range(len(DATA.test))])
    assert loss_of(found.server) == pytest.approx(float(loss.mean()), rel=1e-4)
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
        statistics = TASK.statistics
        device = TASK.device

        def sums(self, params: Any, batch: Any) -> dict[str, torch.Tensor]:
            asked.append(len(batch["labels"]))
            return TASK.sums(params, batch)

    aside: Any = Counting()
    found, _ = replace(evaluator(world), task=aside).after(world.server, last.now, last.number)
    assert not asked  # beyond what the clients have tested
    assert matrix(found.server) == counted(world.server.params, DATA.test).tolist() and found.server == found.pooled
    assert matrix(found.server_validation) == counted(world.server.params, DATA.validation).tolist()
    assert found.server_validation == found.pooled_validation
    assert (np.array(matrix(found.server)) > 0).sum() > 2
    loss = torch.cat([TASK.losses(world.server.params, DATA.test.batch([i])) for i in range(len(DATA.test))])
    assert loss_of(found.server) == loss_of(found.pooled) == pytest.approx(float(loss.mean()), rel=1e-4)
    without, _ = replace(evaluator(world), task=aside).after(world.server, last.now, last.number, Standing(excluded=frozenset("0")))
    assert sum(asked) == len(DATA.test) + len(DATA.validation) and matrix(without.server) == matrix(found.server)


def test_scoring_changes_no_state_and_makes_none():
    world = federation(made_method(rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    before = {client: world.states.get(client) for client in world.states.clients()}
    evaluator(world).after(world.server, last.now, last.number)
    assert {client: world.states.get(client) for client in world.states.clients()} == before


def test_the_untrained_model_is_the_same_for_everybody_and_nothing_is_sent():
    world = federation(made_method(rounds=1, clients=4), TASK, DATA)
    found = evaluator(world).untrained(world.server)
    assert found.pooled == found.server and matrix(found.server) == counted(world.server.params, DATA.test).tolist()
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
    some = replace(evaluator(world), transport=Losing(world.transport, lost), tolerance=FederationOptions(on_failure="drop"))
    found, _ = some.after(world.server, last.now, 1)
    assert found.clients == {"3": full.clients["3"]} and found.pooled == full.clients["3"] and matrix(found.server) == matrix(full.server)
    assert found.failures["0"] == "client 0 is gone" and found.failures["2"] == "client 2: no answer"
    assert "client 1: 8 bytes that are not a fibecfed message" in found.failures["1"]
    assert full.failures == {} and found.bytes_down == full.bytes_down and found.bytes_up == full.bytes_up // 4 + 8
    without, _ = evaluator(world).after(world.server, last.now, 1, Standing(excluded=frozenset("012")))
    assert without.clients == found.clients and without.bytes_down == full.bytes_down // 4 and not without.failures
    with pytest.raises(RunFailed, match="evaluation after 1 rounds: client 0 is gone"):
        replace(some, transport=Losing(world.transport, {**lost, "3": None})).after(world.server, last.now, 1)


def moved(sent: Scored) -> Scored:
    """One example less of its first class, one more of its second: as many as before."""
    table = sent.test["confusion"].clone()
    row = int(table.sum(1).argmax())
    table[row, int(table[row].argmax())] -= 1
    table[1 - row, 0] += 1
    return lie("test", confusion=table)(sent)


def lie(part: str, **wrong: Any) -> Any:
    """Other sums in the place of some of a part."""
    table = {name: value if isinstance(value, torch.Tensor) else torch.tensor(value).double() for name, value in wrong.items()}
    return lambda sent: replace(sent, **{part: {**getattr(sent, part), **table}})


LIES: dict[str, tuple[Any, str]] = {
    "2^62 right answers": (lie("test", confusion=torch.full((2, 2), 2**62)), f"test counts {2**64} examples, expected at most 99 "),
    "100 validation examples": (lie("validation", confusion=torch.full((2, 2), 25)), "validation counts 100 examples, expected"),
    "a negative count": (lie("test", confusion=torch.full((2, 2), -9)), "test confusion has a count of -"),
    "a NaN loss": (lie("test", nll=math.nan), "test nll has a sum that is not finite or above 1e[+]100, expected an ordinary number"),
    "an infinite loss": (lie("validation", nll=math.inf), "validation nll has a sum that is not finite"),
    "a negative loss": (lie("test", nll=-0.5), r"test nll is -0\.5, expected at least 0"),
    "losses whose sum is not finite": (lie("test", nll=1.7e308), "test nll has a sum that is not finite or above"),
    "a calibration that cannot be": (lie("test", calibration=[99.0] * 15), "test calibration sums to 1485.0, expected at most"),
}  # fmt: skip
DROP = FederationOptions(on_failure="drop", max_samples=99)


@pytest.mark.parametrize("name", LIES)
def test_counts_that_cannot_be_are_the_failure_of_their_sender_alone(name: str):
    told, text = LIES[name]
    world = federation(made_method("lora", rounds=1, clients=4), TASK, DATA)
    *_, last = world.run()
    lying = replace(evaluator(world), transport=Losing(world.transport, {"2": told}), tolerance=DROP)
    found, standing = lying.after(world.server, last.now, 1)
    honest, _ = replace(evaluator(world), transport=Losing(world.transport, {"2": None}), tolerance=DROP).after(world.server, last.now, 1)
    assert set(found.failures) == {"2"} and re.match(f"client 2: {text}", found.failures["2"])
    assert (found.pooled, found.clients) == (honest.pooled, honest.clients)
    assert set(standing.counted) == {"0", "1", "3"}
    with pytest.raises(RunFailed, match="evaluation after 1 rounds: client 2: ") as stopped:
        replace(lying, tolerance=DROP.model_copy(update={"on_failure": "stop"})).after(world.server, last.now, 1)
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
    lies = {"2": moved, "3": lambda sent: lie("validation", confusion=sent.validation["confusion"] + 1)(sent)}
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
        Diverged,
        match=r"evaluation after 1 rounds: client 0, evaluation after tune round 0: the sum of nll over its test part is .*learning_rate",
    ):
        evaluator(world).after(nan, last.now, 1)
    phase = world.method.phases[-1]
    requests = {client: encode(phase.broadcast(nan if client == "1" else world.server, last.now)) for client in DATA.clients}
    replies = dict(exchange(world.transport, "evaluate", last.now, requests))
    assert isinstance(replies["1"], Failure) and replies["1"].repeats and sum(isinstance(reply, bytes) for reply in replies.values()) == 3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_worst_decile_is_numpys_tenth_percentile_over_clients_with_examples(rows: list[tuple[int, int]]):
    clients = {str(i): sums([[right, wrong], [0, 0]]) for i, (right, wrong) in enumerate(rows)}
    accuracies = [right / (right + wrong) for right, wrong in rows if right + wrong]
    found = worst_decile(clients, ACCURACY)
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
    best = best_by_validation(records, ACCURACY)
    assert best is not None and best.rounds == 2
    assert best_by_validation([record(1), record(2)], ACCURACY) is None


def test_only_evaluations_of_the_same_clients_are_compared():
    good, fair = [[4, 0], [0, 0]], [[3, 1], [0, 0]]
    three, two = (dict.fromkeys(names, fair) for names in ("abc", "ab"))

    def of(rounds: int, validation: Any, clients: Any, **more: Any) -> EvalRecord:
        return record(rounds, pooled_validation=validation, clients=clients, **more)

    without_one = of(2, good, two, failures={"c": "gone"})
    best = best_by_validation([of(1, fair, three), without_one, of(3, fair, three)], ACCURACY)
    assert best is not None and best.rounds == 1
    excluded = best_by_validation([of(1, good, three), of(2, fair, two), of(3, fair, two)], ACCURACY)  # c takes no part any more
    assert excluded is not None and excluded.rounds == 2
    assert best_by_validation([without_one], ACCURACY) is None


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_metric_can_be_the_one_that_counts_and_all_stand_beside_it(name: str):
    pooled, server = [[5, 1], [2, 4]], [[3, 3], [1, 5]]
    found, metric = record(4, pooled=pooled, server=server, clients={"0": pooled}), METRICS[name]
    table = scores(found, metric)
    assert set(table) == {"rounds", "pooled_personalised", "global", "worst_decile"} and table["rounds"] == 4
    assert table["pooled_personalised"] == table["worst_decile"] == metric.of(found.pooled) and table["global"] == metric.of(found.server)
    every = every_score(found, [METRICS[name] for name in OF_CLASSES])
    assert every["personalised"]["accuracy"] == 9 / 12 and every["global"]["f1"] == 10 / 14 and len(every["global"]) == len(OF_CLASSES)


def test_where_lower_is_better_the_worst_decile_is_the_highest_and_the_best_round_the_lowest():
    loss = METRICS["loss"]
    clients = {str(i): sums([[1, 0], [0, 0]], float(i)) for i in range(11)}
    assert worst_decile(clients, loss) == 9.0
    falling = [
        replace(record(n, clients={}), pooled_validation=sums([[4, 0], [0, 0]], value)) for n, value in ((1, 0.7), (2, 0.3), (3, 0.5))
    ]
    best = best_by_validation(falling, loss)
    assert best is not None and best.rounds == 2


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
    assert np.array_equal(matrix(found.server), expected) and sum_of(matrix(found.pooled)) == len(test)
    assert sum_of(matrix(scored.untrained(world.server).server)) == len(test)
