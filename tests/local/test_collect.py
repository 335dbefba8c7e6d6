"""Fisher information taken from training's own backward passes, against a loop over examples, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.collect import Collect
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import tiny_task

TASK = tiny_task("bert", dtype=torch.float64, num_classes=3)
HEAD = [name for name in TASK.names if TASK.layer_of(name) is None]
ADAPTER = [name for name in TASK.names if TASK.layer_of(name) is not None]
SIZES = (5, 4, 3, 4)


def made_batches(weights: bool = False) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    found = []
    for size in SIZES:
        ids = torch.randint(3, 64, (size, 6), generator=g)
        mask = (torch.arange(6) < torch.randint(2, 7, (size, 1), generator=g)).long()
        labels = torch.randint(3, (size,), generator=g)
        beside = {"weights": torch.rand(size, generator=g) + 0.5} if weights else {}
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels, **beside})
    return found


def options(**more: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"learning_rate": 0.05, "weight_decay": 0.1, **more})


def gradients(params: Params, batch: Batch) -> list[dict[str, Tensor]]:
    """Each example's own gradient, in a batch of one."""
    found = []
    for i in range(len(batch["labels"])):
        leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        one = {name: value[i : i + 1] for name, value in batch.items() if name != "weights"}
        grads = torch.autograd.grad(TASK.losses(leaves, one)[0], list(leaves.values()))
        found.append(dict(zip(leaves, grads, strict=True)))
    return found


def at_each_batch(batches: list[Batch], training: TrainingOptions) -> list[list[dict[str, Tensor]]]:
    """The gradients of every batch's examples at the parameters from which it was trained."""
    found, k = [], training.gradient_accumulation
    for number, batch in enumerate(batches):
        before = fit(TASK, TASK.params(), [batches[: number - number % k]], training, Key(0)).params
        found.append(gradients(before, batch))
    return found


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("over", [None, ADAPTER], ids=["all", "adapter"])
def test_traces_are_those_of_a_loop_at_the_parameters_from_which_each_batch_was_trained(accumulated: int, weights: bool, over: Any):
    batches, training = made_batches(weights), options(gradient_accumulation=accumulated)
    collect = Collect(neurons=(), traces=True, trace_over=over)
    found = fit(TASK, TASK.params(), [batches, batches[:1]], training, Key(0), collect=collect)
    names = TASK.names if over is None else over
    expected = [sum(float(g[name].square().sum()) for name in names) for batch in at_each_batch(batches, training) for g in batch]
    assert found.neurons is None and found.traces is not None and len(found.traces) == sum(SIZES)
    torch.testing.assert_close(found.traces, torch.tensor(expected), rtol=1e-6, atol=0)
    at_start = [sum(float(g[name].square().sum()) for name in names) for batch in batches for g in gradients(TASK.params(), batch)]
    assert not torch.allclose(found.traces, torch.tensor(at_start), rtol=1e-2)  # the parameters did move between the batches


@pytest.mark.parametrize("every", [1, 2, 3, 9])
@pytest.mark.parametrize("traces", [False, True])
def test_neurons_are_those_of_every_so_many_batches_alone(every: int, traces: bool):
    batches, some = made_batches(), [name for name in ADAPTER if ".1." in name]
    found = fit(TASK, TASK.params(), [batches, batches], options(), Key(0), collect=Collect(some, every, traces))
    examples = [g for batch in at_each_batch(batches, options())[::every] for g in batch]
    assert found.neurons is not None and set(found.neurons.rows) == set(some)
    assert set(found.neurons.columns) == {name for name in some if "lora_B" in name}
    for name in some:
        squared = torch.stack([g[name].square() for g in examples]).mean(0)
        torch.testing.assert_close(found.neurons.rows[name], squared.sum(1).float(), rtol=1e-5, atol=1e-14)
        if "lora_B" in name:
            torch.testing.assert_close(found.neurons.columns[name], squared.sum(0).float(), rtol=1e-5, atol=1e-14)
    assert (found.traces is not None) == traces


def test_neither_changes_a_bit_of_the_training():
    def after(**more: Any) -> Any:
        return fit(TASK, TASK.params(), [made_batches()] * 2, options(), Key(0), **more)

    plain = after()
    for collect in (Collect(traces=True), Collect((), 1, True), Collect(ADAPTER[:2], 2)):
        found = after(collect=collect)
        assert all(torch.equal(found.params[name], plain.params[name]) for name in plain.params) and found.loss == plain.loss


def test_training_that_stops_early_has_the_traces_of_what_it_saw():
    found = fit(TASK, TASK.params(), [made_batches()], options(max_steps=2), Key(0), collect=Collect((), 1, True))
    assert found.traces is not None and len(found.traces) == sum(SIZES[:2])
    nothing = fit(TASK, TASK.params(), [[]], options(), Key(0), collect=Collect(traces=True))
    assert nothing.traces is None and nothing.neurons is None


def test_a_batch_of_which_nothing_is_asked_is_a_plain_one(monkeypatch: pytest.MonkeyPatch):
    traced, plain, losses = TASK.traced, [], TASK.losses

    def never(*args: Any) -> Any:
        raise AssertionError("its maps were recorded")

    def count(*args: Any) -> Any:
        plain.append(1)
        return losses(*args)

    monkeypatch.setattr(TASK, "traced", never)
    monkeypatch.setattr(TASK, "losses", count)
    fit(TASK, TASK.params(), [made_batches()], options(), Key(0), collect=Collect(neurons=()))
    assert len(plain) == len(SIZES)
    monkeypatch.setattr(TASK, "traced", lambda *args: (plain.append(-1), traced(*args))[1])
    fit(TASK, TASK.params(), [made_batches()], options(), Key(0), collect=Collect(ADAPTER, 2))
    assert plain.count(-1) == 2
