"""FibecFed with blocks that are not trained: which they are, and that nothing of them moves, travels or counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fibecfed_parts import DATA, FIXED, TASK, tune, update_of, watch
from made import KEY, client_view, federation, made_method, names_of_layers, same
from torch import Tensor

from fibecfed.core.method import Received
from fibecfed.core.rng import Key
from fibecfed.core.task import Task
from fibecfed.core.types import Round
from fibecfed.core.wire import decode
from fibecfed.local import selection
from fibecfed.methods.depth import Information
from fibecfed.models.tiny import tiny_task

L = 4
FEW = {"importance_clients": 2, "importance_examples": 5}
BLOCKS = [names_of_layers(TASK, [layer]) for layer in range(L)]


def world_of(**options: Any) -> Any:
    layers = {**FEW, **options.pop("layers", {"rule": "share"})}
    return federation(made_method(**{"rounds": 3, "layers": layers, **options}), TASK, DATA)


def example_information(task: Task, params: dict[str, Tensor], batch: Any) -> list[Tensor]:
    """Squared norm of one example's gradient in each block, from its own backward pass."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    found = dict(zip(leaves, torch.autograd.grad(task.losses(leaves, batch).sum(), list(leaves.values())), strict=True))
    return [torch.stack([found[name].double().square().sum() for name in sorted(block)]).sum() for block in BLOCKS]


def test_the_blocks_of_the_largest_measured_information_are_trained_whatever_their_place() -> None:
    """Against one backward pass an example, weighted by the clients' sizes."""
    world = world_of(depth=2)
    phase = world.method.phases[0]
    now = Round(phase.name, 0, 1, 0)
    total, weights = torch.zeros(L, dtype=torch.float64), 0
    answers = []
    for client in ("1", "3"):
        one = client_view(world, client)
        update = phase.client_update(one, phase.broadcast(world.server, now), now)
        answers.append((client, update.message))
        drawn = one.key.fold("depth").permutation(len(one.data.train))[:5].tolist()
        each = [torch.stack(example_information(TASK, one.state.own, one.data.train.batch([i]))) for i in drawn]
        mean = torch.stack(each).mean(0)
        torch.testing.assert_close(update.message.information.double(), mean, rtol=1e-4, atol=1e-12)
        assert update.message.num_samples == len(one.data.train)
        total, weights = total + mean * len(one.data.train), weights + len(one.data.train)
    chosen = phase.aggregate(world.server, [Received(client, message) for client, message in answers], now)
    torch.testing.assert_close(chosen.information["blocks"].double(), total / weights, rtol=1e-4, atol=1e-12)
    assert chosen.trained == tuple(sorted(total.topk(2).indices.tolist()))
    planted = [Received("1", Information(torch.tensor([0.1, 3.0, 0.2, 2.0]), 4))]
    assert phase.aggregate(world.server, planted, now).trained == (1, 3)


@pytest.mark.parametrize(
    ("amount", "rule", "chosen"),
    [
        (1, "fisher", (2,)),
        (3, "fisher", (0, 2, 3)),
        (9, "fisher", (0, 1, 2, 3, 4)),
        (0.5, "fisher", (0, 2, 3)),
        (0.01, "fisher", (2,)),
        (1.0, "fisher", (0, 1, 2, 3, 4)),
        (0.5, "coverage", (2,)),
        (0.51, "coverage", (0, 2)),
        (0.75, "coverage", (0, 2)),
        (0.76, "coverage", (0, 2, 3)),
        (2, "last", (3, 4)),
        (0.4, "last", (3, 4)),
    ],
)
def test_how_many_blocks_and_which(amount: int | float, rule: Any, chosen: tuple[int, ...]) -> None:
    assert selection.trained_blocks(amount, rule, torch.tensor([2.5, 0.5, 5.0, 1.0, 1.0]), Key(0)) == chosen


def test_the_control_random_draws_from_its_key() -> None:
    found = {selection.trained_blocks(2, "random", torch.zeros(5), Key(seed)) for seed in range(30)}
    assert len(found) > 5 and all(len(set(blocks)) == 2 for blocks in found)


@pytest.mark.parametrize("rule", ["fisher", "random"])
@pytest.mark.parametrize("more", [{}, {"closing_round": True}, {"finetune": True}, {"aggregation": "exact"}])
def test_what_is_not_trained_stays_as_pre_trained_and_is_never_sent(rule: str, more: dict[str, Any]) -> None:
    world = world_of(depth=2, depth_rule=rule, score_after=0, **more)
    start = TASK.init_params(KEY.fold("run", "init"))
    world.finish()
    assert len(world.server.trained) == 2 and set(world.server.layers) <= set(world.server.trained)
    still = names_of_layers(TASK, [layer for layer in range(L) if layer not in world.server.trained])
    assert still and all(not start[name].any() for name in still if "lora_B" in name)
    phases = {phase.name: phase for phase in world.method.phases}
    trained_somewhere: set[str] = set()
    for _, _, now, down, up in world.transport.carried:
        if now.phase in ("tune", "closing"):
            sent = {**decode(phases[now.phase].down, down).shared, **decode(phases[now.phase].up, up[:-32]).shared}
            assert not sent.keys() & still
            trained_somewhere |= sent.keys()
    for client in world.states.clients():
        state = world.state(client)
        for kept in (state.own, getattr(state, "tuned", {})):
            assert all(torch.equal(kept[name], start[name]) for name in kept.keys() & still)
            trained_somewhere |= {name for name in kept if not torch.equal(kept[name], start[name])}
    assert trained_somewhere == set(TASK.names) - still
    assert all(torch.equal(world.server.params[name], start[name]) for name in still)


def test_examples_are_scored_by_what_is_trained_alone() -> None:
    world = world_of(depth=2, depth_rule="last", score_after=0, layers={"rule": "last", "value": 1})
    (found,) = (update_of(world, "1").notes["difficulty"],)
    train = DATA.client("1").train
    params = TASK.init_params(KEY.fold("run", "init"))
    counted = sorted(names_of_layers(TASK, [2, 3, None]))
    for position, trace in enumerate(found):
        leaves = {name: value.detach().requires_grad_(name in counted) for name, value in params.items()}
        gradients = torch.autograd.grad(TASK.losses(leaves, train.batch([position])).sum(), [leaves[name] for name in counted])
        assert trace == pytest.approx(float(sum(gradient.double().square().sum() for gradient in gradients)), rel=1e-4)


def test_neurons_are_chosen_in_the_trained_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch)
    world = world_of(depth=3, depth_rule="last", layers={"rule": "last", "value": 1})
    update = update_of(world, "1")
    assert set(calls[0]["masks"]) == names_of_layers(TASK, [1, 2]) == set(update.state.rows)
    assert set(calls[0]["trained"]) == names_of_layers(TASK, [1, 2, 3, None])


def test_with_every_block_trained_the_numbers_are_those_without_a_depth() -> None:
    """Both as a number and as a fraction; only the control measures nothing, so that rounds keep their numbers."""
    plain, counted, whole = (
        federation(made_method(**FIXED, rounds=3, **more), TASK, DATA) for more in ({}, {"depth": L, "depth_rule": "last"}, {"depth": 1.0})
    )
    for world in (plain, counted, whole):
        world.finish()
    assert same(plain.server.params, counted.server.params) and same(plain.server.params, whole.server.params)
    for client in plain.states.clients():
        assert same(plain.state(client).own, counted.state(client).own)
        assert plain.states.get(client) == whole.states.get(client)
    assert whole.method == plain.method


@pytest.mark.parametrize("layers", [{"rule": "share"}, {"rule": "count", "value": 3}, {"rule": "all"}, {"rule": "first", "value": 4}])
def test_global_layers_are_chosen_among_the_trained_blocks(layers: dict[str, Any]) -> None:
    world = world_of(depth=2, layers=layers)
    world.finish()
    wanted = {"share": 1}.get(layers["rule"], 2)
    assert len(world.server.layers) == wanted and set(world.server.layers) <= set(world.server.trained)


@pytest.mark.parametrize("rule", ["fisher", "coverage"])
def test_the_outlook_is_of_states_that_may_come(rule: str) -> None:
    world = world_of(depth=0.5, depth_rule=rule)
    states = world.method.outlook(world.server, tune(0))
    world.finish()
    possible = {(len(state.trained), len(state.layers)) for state in states}
    numbers = sorted(number for number, _ in possible)
    assert numbers == ([2] if rule == "fisher" else [1, 4])
    assert numbers[0] <= len(world.server.trained) <= numbers[-1]
    assert set(world.method.trains(TASK, states[0])) < set(TASK.names)


def test_the_summary_says_which_blocks_are_trained_and_by_what() -> None:
    world = world_of(depth=2)
    world.finish()
    summary = world.method.summary(world.server)
    assert summary["trained_layers"] == list(world.server.trained) and len(summary["information"]) == L
    assert "trained_layers" not in world_of().method.summary(world_of().server)


def test_kept_activations_change_no_bit_of_a_run() -> None:
    ends = []
    for budget in (0, 2**22, 4_000):
        task = tiny_task("bert", layers=L)
        if budget:
            task.keep_activations(budget)
        method = made_method(rounds=4, depth=1, depth_rule="last", score_after=1, layers={"rule": "all"})
        world = federation(method, task, DATA)
        world.finish()
        ends.append((world.server, {client: world.states.get(client) for client in world.states.clients()}))
        if budget == 2**22:
            assert task.lower_blocks is not None and task.lower_blocks.found > 50
        phase = method.phases[-1]
        down = phase.broadcast(world.server, tune(3))
        for client in world.states.clients():
            params = method.personalise(down, world.state(client))
            batch = DATA.client(client).test.batch([0, 1])
            assert torch.equal(task.logits(params, batch), tiny_task("bert", layers=L).logits(params, batch))
    assert same(ends[0][0].params, ends[1][0].params) and same(ends[0][0].params, ends[2][0].params)
    assert ends[0][1] == ends[1][1] == ends[2][1]
