"""Steps that are private for examples: equal to a loop over examples, and no example moves one by more than C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from answering import alone, answer_task, answers
from made import KEY, made_data, made_task
from torch import Tensor

from fibecfed.core.types import Batch, Params
from fibecfed.local.options import TrainingOptions
from fibecfed.local.private import clipped_sum, fit_private

C = 0.5


def leaves(task, params: Params, moving: Sequence[str]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_(name in moving) for name, value in params.items()}


def by_loop(task, params: Params, moving: Sequence[str], batch: Batch, clip_norm: float) -> tuple[dict[str, Tensor], list[float]]:
    """The slow, obvious version: one backward pass for each example."""
    total = {name: torch.zeros_like(params[name]) for name in moving}
    norms = []
    for row in range(len(batch["labels"])):
        own = leaves(task, params, moving)
        loss = task.losses(own, {name: value[row : row + 1] for name, value in batch.items()}).sum()
        grads = torch.autograd.grad(loss, [own[name] for name in moving])
        norm = float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt())
        norms.append(norm)
        for name, grad in zip(moving, grads, strict=True):
            total[name] += grad * min(1.0, clip_norm / norm)
    return total, norms


def moved(task) -> dict[str, Tensor]:
    """Parameters at which A and B both have gradients."""
    generator = KEY.fold("moved").generator()
    return {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in task.init_params(KEY).items()}


@pytest.mark.parametrize("part", ["all", "lora_B and head", "upper blocks"])
@pytest.mark.parametrize("clip_norm", [0.05, 0.5, 1e6])
def test_the_clipped_sum_is_that_of_a_loop_over_examples(part: str, clip_norm: float) -> None:
    task, batch = made_task(), made_data(examples=9).client("0").train.batch(range(9))
    params = moved(task)
    moving = {
        "all": list(task.names),
        "lora_B and head": [name for name in task.names if "lora_A" not in name],
        "upper blocks": [name for name in task.names if task.layer_of(name) in (2, 3)],
    }[part]
    expected, norms = by_loop(task, params, moving, batch, clip_norm)
    found = clipped_sum(task, leaves(task, params, moving), moving, batch, clip_norm)
    assert found.sums.keys() == set(moving)
    torch.testing.assert_close(found.squared_norms.sqrt(), torch.tensor(norms), rtol=1e-5, atol=0)
    size = max(float(value.abs().max()) for value in expected.values())
    for name in moving:
        torch.testing.assert_close(found.sums[name], expected[name], rtol=1e-5, atol=1e-5 * size)


def test_of_answers_each_has_the_gradient_of_its_own_mean_over_tokens() -> None:
    """Whatever the others of the batch are, and however long."""
    task, batch = answer_task(), answers()
    params, moving = task.params(), list(task.names)
    whole = clipped_sum(task, leaves(task, params, moving), moving, batch, C)
    total = {name: torch.zeros_like(params[name]) for name in moving}
    for row in range(4):
        one, own = alone(batch, row), leaves(task, params, moving)
        tokens = int((one["labels"] != -100).sum())
        grads = torch.autograd.grad(task.losses(own, one).sum() / tokens, [own[name] for name in moving])
        norm = float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt())
        assert float(whole.squared_norms[row]) ** 0.5 == pytest.approx(norm, rel=1e-4)
        for name, grad in zip(moving, grads, strict=True):
            total[name] += grad * min(1.0, C / norm)
    size = max(float(value.abs().max()) for value in total.values())
    for name in moving:
        torch.testing.assert_close(whole.sums[name], total[name], rtol=1e-4, atol=1e-5 * size)


@dataclass
class NoNoise:
    """What would be noised, as it is."""

    clip_norm: float = C
    noise_norm: float = 0.0
    sums: list[Mapping[str, Tensor]] = field(default_factory=list)

    def epochs(self, units: int, batch_size: int, epochs: int) -> Sequence[Sequence[Tensor]]:
        return [torch.arange(units).split(batch_size) for _ in range(epochs)]

    def one_of(self, sizes: Tensor) -> Tensor:
        return torch.zeros_like(sizes)

    def counts(self, bins: Tensor, number: int) -> Tensor:
        return torch.bincount(bins, minlength=number).double()

    def noised(self, total: Params) -> dict[str, Tensor]:
        self.sums.append({name: value.clone() for name, value in total.items()})
        return dict(total)


def norm(sums: Params) -> float:
    return float(torch.stack([value.double().square().sum() for value in sums.values()]).sum().sqrt())


def test_one_example_moves_a_sum_by_at_most_c_whatever_it_is() -> None:
    task, examples = made_task(), made_data(examples=9).client("0").train
    params = moved(task)
    moving = list(task.names)
    batch = dict(examples.batch(range(4)))
    without = clipped_sum(task, leaves(task, params, moving), moving, {name: value[1:] for name, value in batch.items()}, C).sums
    for scale in (1.0, 1e4, 1e25, float("nan"), float("inf")):
        hostile = Weighted(task, torch.tensor([scale, 1.0, 1.0, 1.0]))
        found = clipped_sum(hostile, leaves(task, params, moving), moving, batch, C).sums
        assert norm({name: found[name] - without[name] for name in found}) <= C
        if scale != scale:  # an example whose gradient is not finite counts as one without
            torch.testing.assert_close(found, without)


class Weighted:
    """A task whose losses of some examples are made large."""

    def __init__(self, task, weights: Tensor) -> None:
        self.task, self.weights = task, weights

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def traced(self, params: Params, batch: Batch):
        losses, tape = self.task.traced(params, batch)
        return losses * self.weights, tape


def test_a_step_is_the_noised_sum_over_the_configured_batch_size() -> None:
    """Also of the last batch, which is smaller; accumulated batches are one step."""
    task, examples = made_task(), made_data(examples=9).client("0").train
    params, n = moved(task), len(examples)
    whole, parts = NoNoise(), NoNoise()
    options = TrainingOptions(local_epochs=1, batch_size=4, learning_rate=0.1, optimizer="sgd", weight_decay=0.0)
    one = fit_private(task, params, examples, options, KEY, whole)
    other = fit_private(task, params, examples, options.model_copy(update={"batch_size": 2, "gradient_accumulation": 2}), KEY, parts)
    assert one.steps == other.steps == len(whole.sums) == -(-n // 4) and one.loss == 0.0
    for name in task.names:
        expected = params[name] - 0.1 * sum(sums[name] for sums in whole.sums) / 4
        torch.testing.assert_close(one.params[name], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.params[name], one.params[name], rtol=1e-4, atol=1e-6)


def test_kept_activations_change_no_step() -> None:
    """Of the upper blocks, and of the head alone; in the second epoch the lower blocks do not run."""
    examples = made_data(examples=9).client("0").train
    options = TrainingOptions(local_epochs=2, batch_size=4, gradient_accumulation=3, learning_rate=0.1)
    for blocks in ((3,), ()):
        found = list[Mapping[str, Tensor]]()
        for budget in (0, 2**22):
            task = made_task()
            if budget:
                task.keep_activations(budget)
            trained = [name for name in task.names if task.layer_of(name) in (None, *blocks)]
            found.append(fit_private(task, moved(task), examples, options, KEY, NoNoise(), trained=trained).params)
        assert task.lower_blocks is not None and task.lower_blocks.found >= len(examples)
        assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_penalty_pulls_beside_the_noise_and_masked_rows_stay() -> None:
    task, examples = made_task(), made_data(examples=9).client("0").train
    params = moved(task)
    name = next(name for name in task.names if "lora_A" in name)
    options = TrainingOptions(local_epochs=1, batch_size=len(examples), learning_rate=0.1, optimizer="sgd", weight_decay=0.0)
    plain, pulled = NoNoise(), NoNoise()
    rows = torch.arange(len(params[name])) % 2 == 0
    without = fit_private(task, params, examples, options, KEY, plain, trained=[name], masks={name: rows}).params[name]
    found = fit_private(task, params, examples, options, KEY, pulled, trained=[name], penalty=lambda p: p[name].square().sum()).params[name]
    assert torch.equal(without[~rows], params[name][~rows]) and not torch.equal(without[rows], params[name][rows])
    torch.testing.assert_close(plain.sums[0][name], pulled.sums[0][name])
    torch.testing.assert_close(found[rows], (without - 0.2 * params[name])[rows], rtol=1e-4, atol=1e-6)
