"""Agreement of clients on a layer: its formulas against slow ones, and planted clients whose answer is known."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from made import made_data, made_task
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.local.agreement import GradientHalves, UpdateDirections, reliability, stays, within_layers
from fibecfed.local.batches import batches
from fibecfed.local.collect import Collect
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions

PLACES = {"a": 0, "b": 0, "c": 1}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trees(clients: int) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    before = {name: draw(i, 3, 4) for i, name in enumerate(PLACES)}
    return before, [{name: before[name] + draw(10 * k + i, 3, 4) for i, name in enumerate(PLACES)} for k in range(1, clients + 1)]


def between(before: dict[str, Tensor], after: list[dict[str, Tensor]]) -> Tensor:
    directions = UpdateDirections(before, PLACES, 3)
    for one in after:
        directions.add(one)
    return directions.between()


# ---- between clients


def test_between_is_the_cosine_of_every_pair_of_clients_summed_layer_by_layer():
    before, after = trees(4)
    found = between(before, after)
    for layer, names in enumerate((("a", "b"), ("c",))):
        updates = [torch.cat([(one[name] - before[name]).flatten() for name in names]) for one in after]
        cosines = [float(torch.cosine_similarity(x, y, dim=0)) for x, y in combinations(updates, 2)]
        assert float(found[layer, 0]) == pytest.approx(sum(cosines)) and float(found[layer, 1]) == len(cosines)
    assert found[2].tolist() == [0, 0]  # a layer without tensors


def test_neither_the_order_of_clients_nor_the_length_of_their_updates_counts():
    before, after = trees(4)
    longer = [{name: before[name] + (k + 1) * (one[name] - before[name]) for name in one} for k, one in enumerate(after)]
    assert torch.allclose(between(before, after), between(before, longer[::-1]))


def test_a_client_whose_layer_did_not_move_is_in_no_pair():
    before, after = trees(3)
    found = between(before, [*after, {**after[0], "c": before["c"]}])
    assert found[:, 1].tolist() == [6, 3, 0]
    assert torch.equal(found[1], between(before, after)[1])


def test_tensors_that_were_not_sent_are_left_out():
    before, after = trees(3)
    assert torch.equal(between({"c": before["c"]}, after)[1], between(before, after)[1])


# ---- within a client


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_halves_are_the_gradients_of_every_second_step_in_the_scale_of_the_optimisers_update(optimizer: Any):
    task, data = made_task(2), made_data()
    train, params = data.client(data.clients[0]).train, task.init_params(Key(1))
    # so small a rate that every gradient is at `params`
    still = TrainingOptions(batch_size=4, learning_rate=1e-30, weight_decay=0.0, optimizer=optimizer)
    epochs = [list(batches(train, order, 4)) for order in (torch.arange(len(train)), torch.arange(len(train)).flip(0))]
    found = fit(task, params, epochs, still, Key(2), collect=Collect((), halves=True)).halves
    assert found is not None and found.keys() == set(task.names)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    steps = [torch.autograd.grad(task.losses(leaves, batch).mean(), list(leaves.values())) for batch in epochs[0]]
    assert len(steps) >= 2
    for place, name in enumerate(leaves):
        grads = torch.stack([step[place].double() for step in steps])
        root = grads.square().sum(0).sqrt()
        scaled = torch.where(root > 0, grads / root, grads) if optimizer == "adamw" else grads
        even, odd = scaled[0::2].sum(0), scaled[1::2].sum(0)
        expected = [float((even * odd).sum()), float((even.square().sum() + odd.square().sum()) / 2)]
        assert found[name].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_training_is_the_same_whether_or_not_it_is_asked_for():
    task, data = made_task(2), made_data()
    train, params = data.client(data.clients[0]).train, task.init_params(Key(1))

    def trained(collect: Collect | None) -> Any:
        return fit(task, params, [batches(train, torch.arange(len(train)), 4)], TrainingOptions(), Key(2), collect=collect)

    one, other = trained(None), trained(Collect((), halves=True))
    assert all(torch.equal(one.params[name], other.params[name]) for name in params) and one.halves is None


def test_one_step_says_nothing_of_a_clients_noise():
    halves = GradientHalves()
    halves.add([draw(1, 3)])
    assert halves.products(["a"]) == {}


def test_layers_are_told_as_cosines_so_that_no_length_leaves_the_client():
    task = made_task(2)
    products = {name: torch.tensor([3.0, 5.0]) * (1 + i) for i, name in enumerate(task.names)}
    found = within_layers(task, products)
    assert found.shape == (3, 2) and found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor([0.6, 1.0]).expand(3, 2))
    assert within_layers(task, {}).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0, 3.0])
def test_the_reliability_of_a_whole_follows_from_the_cosine_of_its_halves(noise: float):
    """Signal of squared length 1, noise of `noise` in the mean of two halves, so of twice as much in each of them."""
    size = 200_000
    signal = draw(0, size)
    one, other = (signal + (2 * noise) ** 0.5 * draw(k, size) for k in (1, 2))
    found = reliability(torch.cosine_similarity(one, other, dim=0))
    assert float(found) == pytest.approx(1 / (1 + noise), abs=0.01)


# ---- the rule


def measured(common: float, own: float, noise: float, clients: int = 8, size: int = 4000) -> tuple[Tensor, Tensor]:
    """(S, W) / (W + N) of clients whose updates have these squared lengths of what is common, their own, and noise; from samples."""
    halves = [[common**0.5 * draw(0, size) + own**0.5 * draw(k, size) + (2 * noise) ** 0.5 * draw(100 * k + h, size) for h in (1, 2)]
              for k in range(1, clients + 1)]  # fmt: skip
    directions = UpdateDirections({"a": torch.zeros(size)}, {"a": 0}, 1)
    for one, other in halves:
        directions.add({"a": (one + other) / 2})
    sums = directions.between()
    within = torch.stack([torch.cosine_similarity(one, other, dim=0) for one, other in halves]).mean()
    return sums[:, 0] / sums[:, 1], reliability(within)[None]


@pytest.mark.parametrize(
    ("common", "own", "noise", "expected"),
    [
        (1.0, 0.0, 0.0, False),  # all alike
        (1.0, 0.0, 5.0, False),  # alike, and hardly to be seen
        (0.3, 1.0, 0.2, False),  # of eight clients what is common is more
        (0.0, 1.0, 3.0, False),  # its own is lost in the noise
        (0.0, 0.0, 1.0, False),  # nothing but noise
        (0.05, 1.0, 0.2, True),
        (0.0, 1.0, 0.5, True),
    ],
)
def test_a_layer_stays_where_a_clients_own_exceeds_the_noise_and_what_all_have_in_common(
    common: float, own: float, noise: float, expected: bool
):
    assert stays(*measured(common, own, noise), 8).tolist() == [expected]


def test_clients_that_contradict_each_other_keep_the_layer():
    assert stays(torch.tensor([-0.8]), torch.tensor([0.9]), 2).tolist() == [True]
