"""Means of the layers that clients keep: their laws, beside sharing everything and beside no mean at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import KEY, federation, made_data, made_method, made_task, names_of_layers, same

from fibecfed.core.method import Received
from fibecfed.core.types import Round
from fibecfed.core.wire import decode
from fibecfed.methods.fibecfed_messages import GlobalLayers, LocalLayers
from fibecfed.methods.means import Means

TASK, DATA = made_task(2), made_data()
LAST = {"rule": "last", "value": 1}


def ended(rounds: int = 4, **options: Any) -> Any:
    """A federation of FibecFed behind its last round, and what it sent."""
    world = federation(made_method("fibecfed", rounds=rounds, **options), TASK, DATA, per_round=3)
    world.last = world.finish()[-1]  # type: ignore[attr-defined]
    return world


def models(world: Any) -> list[Any]:
    """What each client predicts with at the end, and the server's model."""
    down = world.method.phases[-1].broadcast(world.server, world.last.now)
    own = [world.state(client) or world.method.init_client(TASK, client, KEY.fold("run", "init")) for client in DATA.clients]
    return [*(world.method.personalise(down, state) for state in own), world.method.server_params(world.server)]


def test_a_round_that_is_folded_leaves_the_same_mark():
    method = made_method("fibecfed", rounds=5, layers={**LAST, "mean_every": 2})
    phase, server = method.phases[-1], method.init(TASK, KEY)
    for index, marked in ((0, False), (1, True)):
        now = Round("tune", index, 5, index)
        answer = Received("0", phase.template(server, now))
        folding = phase.fold(server, now)
        folding.add(answer)
        assert folding.state().has_mean == phase.aggregate(server, [answer], now).has_mean == marked


@pytest.mark.parametrize("head", ["shared", "personal"])
def test_a_mean_in_every_round_that_clients_begin_with_is_sharing_everything(head: str):
    """Layers, and a head that is kept."""
    one = {"neurons": {"rule": "all"}, "score_after": 1}
    pulled = ended(**one, head=head, layers={**LAST, "mean_every": 1, "pull": 1.0})
    shared = ended(**one, layers={"rule": "all"})
    assert all(same(a, b) for a, b in zip(models(pulled), models(shared), strict=True))


def test_a_mean_that_nobody_is_pulled_to_changes_no_client_that_trained():
    without, with_it = ended(layers=LAST), ended(layers={**LAST, "mean_every": 2})
    for client in DATA.clients:
        (a, b) = (world.state(client) for world in (without, with_it))
        assert (a is None) == (b is None) and (a is None or same(a.own, b.own))
    kept = names_of_layers(TASK, [0])
    start, end = TASK.init_params(KEY.fold("run", "init")), with_it.method.server_params(with_it.server)
    assert same({n: without.server.params[n] for n in kept}, {n: start[n] for n in kept})
    assert all(not torch.equal(end[n], start[n]) for n in kept)  # the global model is whole


def test_the_mean_is_asked_for_every_so_many_rounds_and_in_the_last_and_sent_down_from_then_on():
    world = ended(rounds=5, layers={**LAST, "mean_every": 2})
    kept = names_of_layers(TASK, [0])
    for _, _, now, down, up in world.transport.carried:
        sent, answer = decode(GlobalLayers, down), decode(LocalLayers, up[:-32])
        asked = now.index in (1, 3, 4)
        assert sent.all_sent == asked and sent.rest.keys() == (kept if now.index >= 2 else set())
        assert answer.shared.keys() == sent.shared.keys() | (kept if asked else set())


def test_the_pull_is_a_fraction_of_the_way_to_the_mean():
    own, mean = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([1.0])}, {"a": torch.tensor([2.0, 0.0])}
    assert Means(1, 0.0, 1).pulled(own, mean) is own
    half = Means(1, 0.5, 1).pulled(own, mean)
    assert half["a"].tolist() == [1.0, 2.0] and half["b"] is own["b"]
    assert Means(1, 1.0, 1).pulled(own, mean)["a"] is mean["a"]


@pytest.mark.parametrize(("every", "asked"), [(0, []), (1, [0, 1, 2, 3]), (3, [2, 3]), (9, [3])])
def test_rounds_with_a_mean(every: int, asked: list[int]):
    means = Means(every, 0.0, 4)
    rounds = [Round("tune", index, 4, index) for index in range(4)]
    assert [now.index for now in rounds if means.all_sent(now)] == asked
    assert [means.made_before(now) for now in rounds] == [any(one < now.index for one in asked) for now in rounds]
    assert not means.all_sent(Round("closing", 0, 1, 4)) and means.made_before(Round("closing", 0, 1, 4)) == bool(every)
