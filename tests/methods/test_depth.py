"""Blocks left untrained, whatever the method: nothing of them moves or is sent, and keeping their output changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import KEY, federation, made_data, made_method, names_of_layers, same

from fibecfed.core.method import Received
from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode, tensors_of
from fibecfed.methods.catalogue import METHODS
from fibecfed.methods.depth import Information
from fibecfed.methods.options import DepthParts
from fibecfed.models.tiny import tiny_task

L, DATA = 4, made_data(3, 8)
KINDS = [kind for kind, options in METHODS.items() if issubclass(options, DepthParts)]
"""Methods that take `method.depth`."""


def world_of(kind: str, budget: int = 0, **options: Any) -> Any:
    task = tiny_task("bert", layers=L)
    if budget:
        task.keep_activations(budget)
    return federation(made_method(kind, rounds=2, clients=3, **options), task, DATA)


def test_they_are_those_that_train_lora_of_one_rank_on_every_block() -> None:
    others = {"adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "idpg", "attempt", "lpt", "fedalt", "slora", "hetlora", "fedpeptao"}
    assert set(METHODS) - set(KINDS) == others | {"momd", "moms-adamw"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_trained_stays_is_not_sent_and_may_be_kept(kind: str) -> None:
    more = {"layers": {"rule": "all"}} if kind == "fibecfed" else {}
    plain, kept = (world_of(kind, budget, depth=2, depth_rule="last", finetune=True, **more) for budget in (0, 2**22))
    start = plain.task.init_params(KEY.fold("run", "init"))
    for world in (plain, kept):
        world.finish()
    assert encode(plain.server) == encode(kept.server) and kept.task.lower_blocks.found > 0
    still, moved = names_of_layers(plain.task, [0, 1]), set[str]()
    phases = {phase.name: phase for phase in plain.method.phases}
    for _, _, now, down, up in plain.transport.carried:
        for fields in (tensors_of(decode(phases[now.phase].down, down)), tensors_of(decode(phases[now.phase].up, up[:-32]))):
            assert not still & {name for tensors in fields.values() for name in tensors}
    for client in DATA.clients:
        assert plain.states.get(client) == kept.states.get(client)
        tuned = plain.state(client).tuned
        assert all(torch.equal(tuned[name], start[name]) for name in still)
        moved |= {name for name in plain.task.names if not torch.equal(tuned[name], start[name])}
    assert {plain.task.layer_of(name) for name in moved} == {2, 3, None}
    assert all(torch.equal(plain.server.params[name], start[name]) for name in still)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"fibecfed"}))
def test_with_no_block_the_head_alone_is_trained_and_sent(kind: str) -> None:
    plain, kept = (world_of(kind, budget, depth=0, finetune=True) for budget in (0, 2**22))
    start = plain.task.init_params(KEY.fold("run", "init"))
    assert [phase.name for phase in plain.method.phases] == ["tune", "finetune"]  # nothing is measured
    for world in (plain, kept):
        world.finish()
    assert encode(plain.server) == encode(kept.server) and kept.task.lower_blocks.found > 0
    head, phases = names_of_layers(plain.task, [None]), {phase.name: phase for phase in plain.method.phases}
    sent, moved = set[str](), set[str]()
    for _, _, now, down, up in plain.transport.carried:
        for fields in (tensors_of(decode(phases[now.phase].down, down)), tensors_of(decode(phases[now.phase].up, up[:-32]))):
            sent |= {name for tensors in fields.values() for name in tensors}
    for client in DATA.clients:
        tuned = plain.state(client).tuned
        moved |= {name for name in plain.task.names if not torch.equal(tuned[name], start[name])}
    assert moved == head and sent <= head
    assert plain.method.summary(plain.server)["trained_layers"] == []
    assert set(plain.method.trains(plain.task, plain.server)) == head


@pytest.mark.parametrize("kind", ["lora", "scaffold"])
def test_the_blocks_of_the_largest_measured_information_are_trained(kind: str) -> None:
    world = world_of(kind, depth=2)
    phase = world.method.phases[0]
    planted = [
        Received(client, Information(torch.tensor(row), n)) for client, row, n in (("1", [9.0, 0, 0, 1], 1), ("2", [0, 2.0, 0, 5], 9))
    ]
    after = phase.aggregate(world.server, planted, Round(phase.name, 0, 1, 0))
    assert phase.name == "depth" and after.trained == (1, 3)
    world.finish()
    summary = world.method.summary(world.server)
    assert summary["trained_layers"] == list(world.server.trained) and min(summary["information"]) > 0
    assert summary["shared_tensors"] == len(names_of_layers(world.task, [*world.server.trained, None]))
    assert set(world.method.trains(world.task, world.server)) == names_of_layers(world.task, [*world.server.trained, None])


def test_with_every_block_trained_the_numbers_are_those_without_a_depth() -> None:
    plain, counted, whole = (world_of("lora", **more) for more in ({}, {"depth": L, "depth_rule": "last"}, {"depth": 1.0}))
    for world in (plain, counted, whole):
        world.finish()
    assert same(plain.server.params, counted.server.params) and encode(plain.server) == encode(whole.server)
    assert whole.method == plain.method
