"""The last training whose result a client's validation part decides on."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import TRAINING, client_view, federation, made_data, made_method, made_options, made_task, same

from fibecfed.core.trees import placed
from fibecfed.core.wire import decode
from fibecfed.engine.runtime import unframe
from fibecfed.local.batches import PASS_BATCH, batches
from fibecfed.local.schedule import in_round
from fibecfed.methods.finetune import VALIDATED, between, chosen_step

TASK, DATA = made_task(2), made_data(validation_per_client=4)


def losses_of(params: Any, examples: Any) -> list[float]:
    """The loss of each, in the order of the examples."""
    some = batches(examples, torch.arange(len(examples)), PASS_BATCH)
    return torch.cat([TASK.losses(placed(params, TASK.device), one).detach() for one in some]).tolist()


def by_hand(losses: dict[float, list[float]]) -> float:
    """The mean of both, unless an end is better by more than a quarter of a standard error, slowly."""
    found = 0.5
    for step in (0.0, 1.0):
        less = [a - b for a, b in zip(losses[0.5], losses[step], strict=True)]
        sure = len(less) > 1 and statistics.fmean(less) > statistics.stdev(less) / len(less) ** 0.5 / 4
        if sure and statistics.fmean(losses[step]) < statistics.fmean(losses[found]):
            found = step
    return found


def ended(kind: str, how: Any, data: Any = DATA, *, per_round: int = 2, **options: Any) -> tuple[Any, Any]:
    """A federation behind its last round, and the broadcast of it."""
    made = made_method(kind, finetune=how, asks_all=per_round == len(data.clients), **options)
    world = federation(made, TASK, data, per_round=per_round)
    *_, last = world.run()
    return world, world.method.phases[-1].broadcast(world.server, last.now)


def trained_in_the_last_round(kind: str, **options: Any) -> dict[str, Any]:
    """What each client had trained then, all of them asked, put together from its answer and from what stayed with it."""
    world = federation(made_method(kind, finetune=False, **options), TASK, DATA, per_round=len(DATA.clients))
    *_, last = world.run()
    phase = world.method.phases[-1]
    carried = [(client, reply) for client, _, now, _, reply in world.transport.carried if now == last.now]
    answers = {client: decode(phase.up, unframe(reply)[0]) for client, reply in carried}
    return {client: {**world.state(client).own, **answer.shared} for client, answer in answers.items()}


ALL: dict[str, Any] = {"neurons": {"rule": "all"}, "curriculum": {"pace": "none"}}
WHOLE: dict[str, Any] = {"lora": {}, "scaffold": {}, "fibecfed": ALL}
"""Methods whose clients train as much in the last round as in a training for themselves."""


@pytest.mark.parametrize("per_round", [2, len(DATA.clients)])
@pytest.mark.parametrize("kind", ["lora", "fibecfed"])
def test_each_client_keeps_the_mean_of_both_unless_its_validation_part_is_sure_of_an_end(kind: str, per_round: int):
    """The one after is that of a training of its own, or of the last round where that asked everybody."""
    (whole, down), (chosen, _) = (ended(kind, how, per_round=per_round, **WHOLE[kind]) for how in (True, "validated"))
    already = trained_in_the_last_round(kind, **WHOLE[kind]) if per_round > 2 else {c: whole.state(c).tuned for c in DATA.clients}
    assert already.keys() == set(DATA.clients)
    kept = set()
    for client in DATA.clients:
        examples = DATA.client(client).validation
        trained, state = already[client], chosen.state(client)
        inner = whole.method.inner
        own = whole.state(client)
        before = inner.personalise(down, inner.client_state(**{n: getattr(own, n) for n in inner.client_state.__wire_fields__}))
        best = by_hand({step: losses_of(between(before, trained, step), examples) for step in VALIDATED})
        kept.add(best)
        found = chosen.method.personalise(down, state)
        expected = between(before, trained, best)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert bool(state.tuned) == bool(best)
        assert not state.last
    assert kind == "lora" or len(kept) > 1  # here clients differ in what they keep, so that it is a choice


def test_where_every_round_asks_everybody_nobody_trains_once_more():
    for kind, options in WHOLE.items():
        made = made_method(kind, finetune="validated", rounds=2, asks_all=True, **options)
        *_, before, last = federation(made, TASK, DATA, per_round=len(DATA.clients)).run()
        assert all(before.record.steps.values()) and last.now.phase == "finetune" and not any(last.record.steps.values())


def test_a_client_that_missed_the_last_round_trains_once_more():
    world = federation(made_method("lora", finetune="validated", rounds=2, asks_all=True), TASK, DATA, per_round=2)
    *_, before, last = world.run()
    assert {client for client, steps in last.record.steps.items() if steps} == set(DATA.clients) - set(before.record.steps)


def test_the_last_training_is_at_the_mean_rate_of_the_rounds():
    """At the end of a decay it would hardly move a model."""
    decaying = TRAINING.model_copy(update={"schedule": "linear"})
    world = federation(made_method("lora", finetune=True, training=decaying), TASK, DATA)
    *_, last = world.run()
    down, now = world.method.phases[-1].broadcast(world.server, last.now), last.now
    for client in DATA.clients:
        view = client_view(world, client, now.number)
        rounds = world.method.phases[0].num_rounds
        rates = [in_round(decaying, replace(now, index=t, num_rounds=rounds)).learning_rate for t in range(rounds)]
        plain = made_method("lora", training=TRAINING.model_copy(update={"learning_rate": sum(rates) / len(rates)}))
        assert same(plain.train(view, down.shared, now).params, world.state(client).tuned)


def test_behind_a_decay_the_last_round_does_not_stand_for_a_training():
    decaying = TRAINING.model_copy(update={"schedule": "cosine"})
    made = made_method("lora", finetune="validated", rounds=2, asks_all=True, training=decaying)
    *_, last = federation(made, TASK, DATA, per_round=len(DATA.clients)).run()
    assert all(last.record.steps.values())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lora", {"finetune": True}),  # the training itself was asked for
        ("fibecfed", {**ALL, "finetune": "validated", "neurons": {"rule": "share", "value": 0.5}}),  # it trained half of its neurons
        ("fibecfed", {**ALL, "finetune": "validated", "aggregation": "ffa"}),  # it left A as it was
        ("fibecfed", {**ALL, "finetune": "validated", "curriculum": {"pace": "linear", "beta": 0.2, "alpha": 1.0}}),  # on a part of them
        ("slw", {"finetune": "validated"}),
        ("fedalt", {"finetune": "validated"}),
    ],
)
def test_a_last_training_that_the_last_round_cannot_stand_for_is_made(kind: str, options: Any):
    task = made_task(2, made_options(kind, **options))
    world = federation(made_method(kind, rounds=2, asks_all=True, **options), task, DATA, per_round=len(DATA.clients))
    *_, last = world.run()
    assert last.now.phase == "finetune" and all(last.record.steps.values())


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([[1.0, 1.2, 0.8, 1.0], [0.5, 0.7, 0.3, 0.5], [0.4, 0.6, 0.2, 0.4]], 1.0),  # the same gain for everyone: nothing to doubt
        ([[1.0, 1.2, 0.8, 1.0], [0.9, 1.2, 0.7, 1.0], [0.1, 1.9, 0.2, 1.4]], 0.5),  # 0.05 on average, which hangs on two of four
        ([[0.4, 0.6, 0.2, 0.4], [0.5, 0.7, 0.3, 0.5], [1.5, 1.7, 1.3, 1.5]], 0.0),  # worse for everyone
        ([[0.4, 0.96, 0.2, 0.4], [0.5, 0.7, 0.3, 0.5], [1.5, 1.7, 1.3, 1.5]], 0.5),  # 0.01 on average, and not for the second
        ([[0.1, 0.2, 0.3], [0.9, 0.9, 0.9], [0.0, 0.1, 0.2]], 1.0),  # both ends are sure: the better one
        ([[0.0, 0.1, 0.2], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3]], 0.0),
        ([[1.0, 1.2], [1.0, 1.2], [1.0, 1.2]], 0.5),
        ([[1.0], [0.5], [0.1]], 0.5),  # how far a single example is to be trusted cannot be told
    ],
)
def test_an_end_is_kept_where_it_is_better_by_more_than_a_quarter_of_a_standard_error(losses: list[list[float]], kept: float):
    found = dict(zip(VALIDATED, losses, strict=True))
    assert by_hand(found) == kept
    order = torch.randperm(len(losses[0]), generator=torch.Generator().manual_seed(0))
    for steps in (VALIDATED, VALIDATED[::-1]):
        assert chosen_step({step: torch.tensor(found[step], dtype=torch.float64)[order] for step in steps}) == kept


@pytest.mark.parametrize(
    ("losses", "kept"), [([[1.0, 1.2], [math.nan, 1.0], [math.nan] * 2], 0.0), ([[1.0, 1.2], [0.9, 1.1], [math.inf, 0.2]], 0.5)]
)
def test_a_last_training_that_diverged_is_not_kept(losses: list[list[float]], kept: float):
    assert chosen_step({step: torch.tensor(one) for step, one in zip(VALIDATED, losses, strict=True)}) == kept


@pytest.mark.parametrize("kind", ["hetlora", "slora", "fedalt", "fedex-lora", "prompt-tuning", "scaffold"])
def test_every_method_can_be_asked_to(kind: str):
    """Whatever it trains: other ranks, other adapters, residuals."""
    options = made_options(kind, finetune="validated")
    world = federation(made_method(kind, finetune="validated", rounds=2), made_task(2, options), DATA)
    *_, last = world.run()
    phase, server = world.method.phases[-1], world.server
    down = phase.broadcast(server, last.now)
    for client in DATA.clients:
        sent = down if phase.address is None else phase.address(server, down, client)
        assert world.method.personalise(sent, world.state(client))


def test_the_ends_of_the_way_are_the_models_themselves():
    a, b = {"x": torch.tensor([1.0, 3.0])}, {"x": torch.tensor([2.0, 5.0])}
    assert between(a, b, 0.0) is a and between(a, b, 1.0) is b
    assert between(a, b, 0.5)["x"].tolist() == [1.5, 4.0]


def test_a_client_without_validation_examples_keeps_the_mean_of_both():
    data = made_data(validation_per_client=0)
    (whole, down), (chosen, _) = (ended("lora", how, data) for how in (True, "validated"))
    for client in data.clients:
        trained, kept = whole.state(client).tuned, chosen.state(client).tuned
        expected = between(down.shared, trained, 0.5)
        assert kept.keys() == trained.keys() and all(torch.equal(kept[name], expected[name]) for name in kept)
