"""The rule "agreement": which layers leave, what a client then has of them, and what the server keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import KEY, LENGTH, client_view, federation, made_data, made_method, made_task, names_of_layers, same
from torch import Tensor

from fibecfed.core.method import Received
from fibecfed.core.trees import weighted_mean
from fibecfed.core.types import Round
from fibecfed.core.wire import decode
from fibecfed.data.federated import FederatedData
from fibecfed.data.planted import planted_federation
from fibecfed.methods.fibecfed import GlobalLayers, LocalLayers

TASK, DATA = made_task(4), made_data()
RULE: dict[str, Any] = {"rule": "agreement", "after": 1, "mean_every": 0}
HEAD = 4
"""Where the head stands behind the layers."""


def rule(rounds: int = 6, head: str = "agreement", **more: Any) -> Any:
    return made_method(rounds=rounds, layers={**RULE, **more}, head=head, depth=1.0)


def answers(
    server: Any, own: Sequence[int], *, noise: float = 0.0, num_samples: Sequence[int] = (5, 6, 7, 8)
) -> list[Received[LocalLayers]]:
    """Clients whose updates are alike, but in the layers `own` (4 = the head), where each goes its own way; reliable as the noise says."""

    def drawn(seed: int, value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))

    places = dict(zip(sorted(server.params), (HEAD if layer < 0 else layer for layer in server.tensor_layers), strict=True))
    reliable = (1 - noise) / (1 + noise)  # cosine of two halves of an update of which the fraction `noise` is noise
    halves = {"layers": torch.tensor([reliable, 1.0]).repeat(HEAD + 1, 1)}

    def trained(k: int) -> dict[str, Tensor]:
        return {name: value + drawn(k if places[name] in own else 99, value) for name, value in server.params.items()}

    return [Received(str(k), LocalLayers(trained(k), n, halves=halves)) for k, n in enumerate(num_samples)]


def after(method: Any, received: Sequence[Received[LocalLayers]], index: int = 0, server: Any = None) -> Any:
    phase = method.phases[0]
    state = federation(method, TASK, DATA).server if server is None else server
    return phase.aggregate(state, received, Round("tune", index, phase.num_rounds, index))


# ---- which layers leave


@pytest.mark.parametrize("own", [(), (1,), (HEAD,), (0, 2, HEAD), (0, 1, 2, 3, HEAD)], ids=str)
def test_the_layers_in_which_clients_differ_stay_with_them_and_no_others(own: tuple[int, ...]):
    method = rule()
    found = after(method, answers(federation(method, TASK, DATA).server, own))
    assert found.layers == tuple(layer for layer in range(4) if layer not in own)
    assert found.shares_head == (HEAD not in own)
    names = {layer if layer < HEAD else "head" for layer in own}
    assert method.summary(found)["left_after_round"] == {str(name): 1 for name in names}


def test_what_is_as_noisy_as_it_is_different_is_shared():
    method = rule()
    found = after(method, answers(federation(method, TASK, DATA).server, [1], noise=0.6))
    assert found.layers == (0, 1, 2, 3)


@pytest.mark.parametrize("own", [(), (1,)])
def test_neither_the_order_of_clients_nor_their_numbers_of_examples_decide(own: tuple[int, ...]):
    method = rule()
    server = federation(method, TASK, DATA).server
    plain, other = (after(method, answers(server, own, num_samples=sizes)) for sizes in ((5, 6, 7, 8), (500, 1, 1, 1)))
    turned = after(method, list(reversed(answers(server, own))))
    assert plain.layers == other.layers == turned.layers
    assert torch.equal(plain.agreement["between"], other.agreement["between"])
    assert torch.allclose(plain.agreement["between"], turned.agreement["between"])


def test_no_layer_leaves_before_its_time_nor_in_the_last_round():
    method = rule(after=3)
    server = federation(method, TASK, DATA).server
    for index in range(2):
        server = after(method, answers(server, [0, 1, 2, 3, HEAD]), index, server)
        assert server.layers == (0, 1, 2, 3) and server.shares_head
    assert after(method, answers(server, [0, 1, 2, 3, HEAD]), 2, server).layers == ()
    assert after(method, answers(server, [0, 1, 2, 3, HEAD]), 5, server).layers == (0, 1, 2, 3)


def test_a_layer_that_left_does_not_come_back():
    method = rule(momentum=0.0)
    server = after(method, answers(federation(method, TASK, DATA).server, [2]))
    assert after(method, answers(server, []), 1, server).layers == (0, 1, 3)


def test_one_odd_round_does_not_decide_against_those_before_it():
    method = rule(after=3, momentum=0.9)
    server = federation(method, TASK, DATA).server
    for index, own in enumerate(([], [], [1])):
        server = after(method, answers(server, own), index, server)
    assert server.layers == (0, 1, 2, 3)


@pytest.mark.parametrize("clients", [1, 2])
def test_a_single_answer_says_nothing_of_agreement_and_two_do(clients: int):
    method = rule()
    server = federation(method, TASK, DATA).server
    one, other = answers(server, [])[:2]
    against = {name: 2 * server.params[name] - one.message.shared[name] for name in names_of_layers(TASK, [1])}
    opposed = replace(other, message=replace(other.message, shared={**other.message.shared, **against}))
    assert after(method, [one, opposed][:clients]).layers == ((0, 1, 2, 3) if clients == 1 else (0, 2, 3))


@pytest.mark.parametrize(("head", "shared"), [("shared", True), ("agreement", False)])
def test_the_head_is_decided_on_where_it_is_asked_for(head: str, shared: bool):
    method = rule(head=head)
    found = after(method, answers(federation(method, TASK, DATA).server, [HEAD]))
    sent = method.phases[0].broadcast(found, Round("tune", 1, 6, 1)).shared
    assert (names_of_layers(TASK, [None]) <= sent.keys()) == shared and found.shares_head == shared


def test_a_personal_head_is_never_sent_down_as_shared():
    method = rule(head="personal")
    sent = method.phases[0].broadcast(federation(method, TASK, DATA).server, Round("tune", 0, 6, 0))
    assert sent.shared.keys() == names_of_layers(TASK, [0, 1, 2, 3]) and sent.rest.keys() == names_of_layers(TASK, [None])


# ---- whole federations


def alike(flipped: int = 0) -> FederatedData:
    """Four clients of the same kind of texts; the last `flipped` of them tell every class by the other one's name."""
    data = planted_federation(4, 40, KEY.fold("data"), length=LENGTH)
    labels = data.train.labels
    assert labels is not None
    turned = labels.clone()
    for client in data.clients[4 - flipped :]:
        rows = data.partition.indices["train"][client]
        turned[rows] = 1 - turned[rows]
    return replace(data, train=replace(data.train, labels=turned))


# ---- what a client has of a layer that left


def left(method: Any, own: Sequence[int] = (1, HEAD)) -> Any:
    """A federation of the rule `LATER` in which everybody has trained in round 0, and these have left after round 1."""
    world = federation(method, TASK, DATA, per_round=5)
    next(world.run())
    world.server = after(method, answers(world.server, own), 1, world.server)
    return world


LATER: dict[str, Any] = {"after": 2, "momentum": 0.0}
NOW = Round("tune", 2, 6, 2)


def test_a_client_goes_on_from_the_last_mean_of_it_and_then_from_its_own():
    method = rule(**LATER)
    world = left(method)
    gone = names_of_layers(TASK, [1, None])
    sent = method.phases[0].broadcast(world.server, NOW)
    assert sent.shared.keys() == names_of_layers(TASK, [0, 2, 3]) and sent.rest.keys() == gone
    state = world.state(DATA.clients[0])
    before = method.personalise(sent, state)
    assert all(torch.equal(before[name], world.server.params[name]) for name in TASK.names)
    trained = method.phases[0].client_update(client_view(world, DATA.clients[0], 2, state), sent, NOW)
    assert trained.message.shared.keys() == sent.shared.keys() and trained.state.own.keys() == gone
    other = replace(sent, rest={name: value + 1 for name, value in sent.rest.items()})
    again = method.personalise(other, trained.state)
    assert all(torch.equal(again[name], trained.state.own[name]) for name in gone)


def test_a_client_that_never_took_part_begins_with_the_mean():
    method = rule(**LATER)
    world = left(method)
    sent = method.phases[0].broadcast(world.server, NOW)
    assert same(method.personalise(sent, method.init_client(TASK, "new", world.runtime.key)), world.server.params)


def test_in_a_layer_that_left_chosen_neurons_are_updated_without_another_pass():
    method = rule(**LATER)
    world = left(method)
    sent = method.phases[0].broadcast(world.server, NOW)
    start = method.personalise(sent, world.state(DATA.clients[0]))
    found = method.phases[0].client_update(client_view(world, DATA.clients[0], 2), sent, NOW)
    assert found.notes["kept_neurons"] * 2 == found.notes["own_neurons"]
    for name in names_of_layers(TASK, [1]):
        moved = int((found.state.own[name] != start[name]).any(1).sum())
        assert moved <= (len(start[name]) + 1) // 2, name


# ---- what the server keeps of it


def test_every_so_many_rounds_and_in_the_last_one_every_layer_is_sent_and_its_mean_renewed():
    method = rule(rounds=5, mean_every=2)
    world = federation(method, TASK, DATA, per_round=3)
    gone = names_of_layers(TASK, [0, 1, 2, 3, None])
    world.server = replace(world.server, layers=(), shares_head=False)
    for step in world.run():
        carried = [
            (decode(GlobalLayers, down), decode(LocalLayers, up[:-32]))
            for _, _, now, down, up in world.transport.carried
            if now == step.now
        ]
        asked = step.now.index in (1, 3, 4)
        for down, up in carried:
            assert down.all_sent == asked and down.rest.keys() == gone
            assert up.shared.keys() == (gone if asked else set())
        if asked:
            mean = weighted_mean([up.shared for _, up in carried], [up.num_samples for _, up in carried])
            assert same(world.server.params, mean)


@pytest.mark.parametrize(("flipped", "least", "most"), [(0, 5, 5), (2, 0, 2)], ids=["alike", "contradicting labels"])
def test_clients_alike_share_everything_and_clients_that_contradict_each_other_little(flipped: int, least: int, most: int):
    world = federation(rule(rounds=10, after=2), TASK, alike(flipped), per_round=4)
    world.finish()
    assert least <= len(world.server.layers) + world.server.shares_head <= most
