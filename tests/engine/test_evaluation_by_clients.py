"""Where the clients hold all examples they count for the global model too: the counts are those of a server that held them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import KEY, Around, Federation, federation, made_data, made_method, made_task
from sums import loss, matrix, scored, sum_of

from fibecfed.core.errors import RunFailed
from fibecfed.core.statistics import Sums, plain
from fibecfed.core.types import Failure
from fibecfed.core.wire import decode, encode
from fibecfed.data.federated import absent
from fibecfed.engine.evaluation import Evaluator
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import BothScored
from fibecfed.engine.transport import Answer, Ticket

DATA = made_data(4, 8, test_per_client=6, validation_per_client=3)
NOTHING = absent(DATA.clients, DATA.label_names)
DROP = FederationOptions(on_failure="drop")

METHODS: dict[str, dict[str, Any]] = {
    "fibecfed": {"layers": {"rule": "last", "value": 1}},
    "closing": {"layers": {"rule": "last", "value": 1}, "closing_round": True},
    "lora": {},
    "finetuned": {"finetune": True},
    "hetlora": {},
    "fedalt": {},
    "fedpeptao": {},
}
KINDS = {"closing": "fibecfed", "finetuned": "lora"}


def world_of(name: str) -> Federation:
    return federation(made_method(KINDS.get(name, name), rounds=1, clients=4, **METHODS[name]), made_task(2), DATA)


def evaluators(world: Federation) -> tuple[Evaluator, Evaluator]:
    """One whose server holds every example, and one whose server holds none."""
    rich = Evaluator(world.method, world.task, world.transport, DATA.clients, DATA.test, DATA.validation, 5)
    return rich, replace(rich, test=NOTHING.test, validation=NOTHING.validation, start=KEY.fold("run", "init"))


def same(found: Sums, expected: Sums) -> bool:
    """Equal counts; other sums to the rounding of other batches."""
    return matrix(found) == matrix(expected) and loss(found) == pytest.approx(loss(expected), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_global_model_has_the_counts_of_a_server_that_holds_the_examples(name: str) -> None:
    world = world_of(name)
    rich, poor = evaluators(world)
    before, first = rich.untrained(world.server), poor.untrained(world.server)
    assert all(map(same, (first.server, first.server_validation, first.pooled), (before.server, before.server_validation, before.pooled)))
    *_, last = world.run()
    expected = rich.after(world.server, last.now, last.number)[0]
    found = poor.after(world.server, last.now, last.number)[0]
    assert same(found.server, expected.server) and same(found.server_validation, expected.server_validation)
    assert (found.clients, found.pooled, found.pooled_validation) == (expected.clients, expected.pooled, expected.pooled_validation)
    assert sum_of(matrix(found.server)) == len(DATA.test)


@pytest.mark.parametrize("name", ["fibecfed", "finetuned", "fedalt", "fedpeptao"])
def test_a_client_makes_the_global_model_of_the_broadcast_so_that_only_its_answer_grows(name: str) -> None:
    world = world_of(name)
    rich, poor = evaluators(world)
    *_, last = world.run()
    expected = rich.after(world.server, last.now, last.number)[0]
    world.transport.carried.clear()
    found = poor.after(world.server, last.now, last.number)[0]
    assert [action for _, action, *_ in world.transport.carried] == ["evaluate_both"] * 4
    assert found.bytes_down == expected.bytes_down and expected.bytes_up < found.bytes_up < 3 * expected.bytes_up


@pytest.mark.parametrize("name", ["closing", "hetlora"])
def test_what_a_broadcast_lacks_of_the_global_model_is_sent_and_its_bytes_are_counted(name: str) -> None:
    world = world_of(name)
    _, poor = evaluators(world)
    *_, last = world.run()
    world.transport.carried.clear()
    found = poor.after(world.server, last.now, last.number)[0]
    carried = world.transport.carried
    assert {action for _, action, *_ in carried} == {"evaluate", "evaluate_global"} and len(carried) == 8
    assert found.bytes_down == sum(len(down) for *_, down, _ in carried) and found.bytes_up == sum(len(up) for *_, up in carried)


def test_nothing_but_names_is_sent_for_the_untrained_model_and_no_client_has_a_score_of_its_own() -> None:
    world = world_of("fibecfed")
    found = evaluators(world)[1].untrained(world.server)
    assert found.rounds == 0 and found.clients == {} and found.bytes_down < 4 * 200
    assert {now.number for _, _, now, *_ in world.transport.carried} == {-1}


class Altered(Around):
    """A transport that puts something in the place of some clients' replies to one action."""

    def __init__(self, inner: Any, action: str, replies: Mapping[str, Any]) -> None:
        super().__init__(inner)
        self.action, self.replies = action, replies

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            replies = self.replies if answer.ticket.action == self.action else {}
            yield Answer(answer.ticket, replies.get(answer.ticket.client, answer.reply))


def test_counts_of_the_two_models_that_are_not_of_the_same_examples_are_refused() -> None:
    world = world_of("fibecfed")
    poor = evaluators(world)[1]
    *_, last = world.run()
    honest = decode(
        BothScored,
        world.runtime.evaluate("evaluate_both", "1", encode(world.method.phases[-1].broadcast(world.server, last.now)), last.now),
    )
    more = honest.global_test["confusion"] + torch.tensor([[2**30, 0], [0, 0]])
    boasting = replace(honest, global_test={**honest.global_test, "confusion": more})
    lied = Altered(world.transport, "evaluate_both", {"1": encode(boasting)})
    found = replace(poor, transport=lied, tolerance=DROP).after(world.server, last.now, last.number)[0]
    assert set(found.clients) == {"0", "2", "3"} and "as with its own model" in found.failures["1"]
    assert sum_of(matrix(found.server)) == sum_of(matrix(found.pooled)) < len(DATA.test)
    with pytest.raises(RunFailed, match="as with its own model"):
        replace(poor, transport=lied).after(world.server, last.now, last.number)


def test_a_client_that_fails_at_the_global_model_is_in_neither_count() -> None:
    world = world_of("hetlora")
    poor = evaluators(world)[1]
    *_, last = world.run()
    away = Altered(world.transport, "evaluate_global", {"2": Failure("client 2 is gone")})
    found = replace(poor, transport=away, tolerance=DROP).after(world.server, last.now, last.number)[0]
    assert set(found.clients) == {"0", "1", "3"} and found.failures == {"2": "client 2 is gone"}
    assert sum_of(matrix(found.server)) == sum_of(matrix(found.pooled))


def test_an_untrained_model_that_nobody_could_score_stops_a_run_only_where_failures_do() -> None:
    world = world_of("fibecfed")
    gone = Altered(world.transport, "evaluate_global", dict.fromkeys(DATA.clients, Failure("gone")))
    poor = replace(evaluators(world)[1], transport=gone)
    found = replace(poor, tolerance=DROP).untrained(world.server)
    assert set(found.failures) == set(DATA.clients) and matrix(found.server) == [[0, 0], [0, 0]]
    with pytest.raises(RunFailed, match="evaluation after 0 rounds: gone"):
        poor.untrained(world.server)


def test_the_sums_of_both_models_come_apart_again() -> None:
    eye, ones = torch.eye(2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.int64)
    own, of_global = (scored(eye * n, ones, float(n), 0.5) for n in (1, 2))
    both = decode(BothScored, encode(BothScored.of(own, of_global)))
    for got, expected in ((both.own, own), (both.of_global, of_global)):
        assert plain(got.test) == plain(expected.test) and plain(got.validation) == plain(expected.validation)
