"""Local training against torch's optimisers and an obvious one, row by row, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.optimisers import MAKERS, WITH_MOMENTUM
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import tiny_task
from fibecfed.models.transformer_task import TransformerTask

EPOCHS, SIZES = 2, (5, 4, 3)


def made_task(dtype: torch.dtype = torch.float64) -> TransformerTask:
    return tiny_task("bert", dtype=dtype, num_classes=3)


TASK = made_task()


def batches() -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    found = []
    for size in SIZES:
        ids = torch.randint(3, 64, (size, 6), generator=g)
        mask = (torch.arange(6) < torch.randint(2, 7, (size, 1), generator=g)).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(3, (size,), generator=g)})
    return found


def options(**more: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"learning_rate": 0.02, "weight_decay": 0.1, **more})


def trained(training: TrainingOptions, task: TransformerTask = TASK, **more: Any) -> Any:
    return fit(task, task.params(), [batches()] * EPOCHS, training, Key(0), **more)


def gradients(params: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses = TASK.losses(leaves, batch)
    return dict(zip(leaves, torch.autograd.grad(losses.mean(), list(leaves.values())), strict=True)), losses.detach()


def torch_trained(make: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same batches through one of torch's optimisers."""
    params = {name: torch.nn.Parameter(value.clone()) for name, value in TASK.params().items()}
    optimiser = make(params.values())
    losses = []
    for batch in batches() * EPOCHS:
        found, loss = gradients({name: value.detach() for name, value in params.items()}, batch)
        for name, value in params.items():
            value.grad = found[name]
        optimiser.step()
        losses.append(loss)
    return {name: value.detach() for name, value in params.items()}, losses


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_adamw_takes_the_steps_of_torchs_adamw():
    expected, losses = torch_trained(lambda params: torch.optim.AdamW(params, lr=0.02, weight_decay=0.1))
    found = trained(options())
    assert_close(found.params, expected)
    assert (found.steps, found.examples) == (EPOCHS * len(SIZES), EPOCHS * sum(SIZES))
    assert math.isclose(found.loss, float(torch.cat(losses).mean()), rel_tol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_sgd_takes_the_steps_of_torchs_sgd(momentum: float):
    expected, _ = torch_trained(lambda params: torch.optim.SGD(params, lr=0.02, momentum=momentum))
    assert_close(trained(options(optimizer="sgd", momentum=momentum, weight_decay=0.0)).params, expected)


def row_by_row(training: TrainingOptions, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each row of each tensor with an optimiser of its own, those not selected with none."""
    params = {name: value.clone() for name, value in TASK.params().items()}
    memory: dict[tuple[str, int], tuple[Any, Any]] = {}
    rate, decay = training.learning_rate, training.weight_decay
    for t, batch in enumerate(batches() * EPOCHS, start=1):
        found, _ = gradients(params, batch)
        for name, value in params.items():
            for row in range(len(value)):
                if name in masks and not masks[name][row]:
                    continue
                g, (m, v) = found[name][row], memory.get((name, row), (0.0, 0.0))
                value[row] -= rate * decay * value[row]
                if training.optimizer == "adamw":
                    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                    value[row] -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
                else:
                    m = training.momentum * m + g
                    value[row] -= rate * m
                memory[name, row] = m, v
    return params


def some_masks(share: float = 0.5) -> dict[str, Tensor]:
    params = TASK.params()
    return {name: torch.rand(len(params[name]), generator=Key(2).fold(name).generator()) < share for name in sorted(params)[:6]}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_masked_step_is_that_of_an_optimiser_for_each_row_and_moves_no_other_bit(optimizer: str):
    training = options(optimizer=optimizer, momentum=0.5 if optimizer == "sgd" else 0.0)
    masks = some_masks()
    before, after = TASK.params(), trained(training, masks=masks).params
    assert_close(after, row_by_row(training, masks))
    for name, mask in masks.items():
        assert torch.equal(after[name][~mask], before[name][~mask])
        assert (after[name][mask] != before[name][mask]).any(dim=-1).all()


def test_masks_of_ones_are_no_masks_and_masks_of_zeros_leave_everything():
    plain = trained(options()).params
    ones = {name: torch.ones(len(value), dtype=torch.bool) for name, value in TASK.params().items()}
    zeros = {name: ~mask for name, mask in ones.items()}
    assert all(torch.equal(plain[name], trained(options(), masks=ones).params[name]) for name in plain)
    assert all(torch.equal(value, trained(options(), masks=zeros).params[name]) for name, value in TASK.params().items())


def test_only_the_tensors_named_move_and_they_move_as_if_the_rest_were_masked():
    some = list(TASK.names)[::3]
    before, after = TASK.params(), trained(options(), trained=some).params
    others = {name: torch.zeros(len(before[name]), dtype=torch.bool) for name in before if name not in some}
    assert_close(after, trained(options(), masks=others).params)
    for name in before:
        assert torch.equal(after[name], before[name]) == (name not in some)


def test_a_mask_for_a_tensor_that_is_not_trained_is_refused():
    name = TASK.names[0]
    with pytest.raises(KeyError, match="not trained"):
        trained(options(), trained=TASK.names[1:], masks={name: torch.ones(2, dtype=torch.bool)})


def test_the_parameters_that_came_in_and_the_module_stay_as_they_were():
    params, module = TASK.params(), {name: value.clone() for name, value in TASK.model.state_dict().items()}
    kept = {name: value.clone() for name, value in params.items()}
    fit(TASK, params, [batches()], options(), Key(0), collect=Collect())
    assert all(torch.equal(params[name], kept[name]) and not params[name].requires_grad for name in kept)
    assert all(torch.equal(value, module[name]) for name, value in TASK.model.state_dict().items())


def test_fisher_collected_on_the_way_is_that_of_a_pass_when_hardly_anything_moves():
    slow = options(learning_rate=1e-12, weight_decay=0.0)
    found = trained(slow, collect=Collect()).neurons
    expected = fisher_pass(TASK, TASK.params(), batches()).neurons
    for got, want in ((found.rows, expected.rows), (found.columns, expected.columns)):
        assert got.keys() == want.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-12)


def test_fisher_is_collected_of_masked_neurons_too_and_in_the_first_epoch_alone():
    slow = options(learning_rate=1e-12, weight_decay=0.0)
    plain = trained(slow, collect=Collect()).neurons
    masked = trained(slow, collect=Collect(), masks=some_masks(0.2)).neurons
    assert all(torch.allclose(plain.rows[name], masked.rows[name], rtol=1e-5) for name in plain.rows)
    one = fit(TASK, TASK.params(), [batches()], options(), Key(0), collect=Collect()).neurons
    two = fit(TASK, TASK.params(), [batches(), batches()], options(), Key(0), collect=Collect()).neurons
    assert one is not None and two is not None
    assert all(torch.equal(one.rows[name], two.rows[name]) for name in one.rows)


def test_collecting_fisher_changes_no_step_and_is_off_unless_asked_for():
    plain, collecting = trained(options()), trained(options(), collect=Collect())
    assert plain.neurons is None
    assert plain.loss == collecting.loss
    assert all(torch.equal(plain.params[name], collecting.params[name]) for name in plain.params)


def heavy(*weights: float) -> list[Batch]:
    """The batches with these weights, from the first example on, over and over."""
    return [{**batch, "weights": torch.tensor(weights * 2)[: len(batch["labels"])]} for batch in batches()]


@pytest.mark.parametrize("penalty", [False, True], ids=["no penalty", "distance"])
@pytest.mark.parametrize("weights", [(), (100.0, 0.0, 0.0, 0.0), (1.0, 2.0, 0.5, 3.0)], ids=str)
def test_collecting_fisher_follows_weights_and_penalty_of_the_objective(weights: tuple[float, ...], penalty: bool):
    start = TASK.params()

    def distance(params: Params) -> Tensor:
        return 5 * torch.stack([(params[name] - start[name]).square().sum() for name in sorted(start)]).sum()

    epochs = [heavy(*weights) if weights else batches()]

    def after(**more: Any) -> Any:
        return fit(TASK, start, epochs, options(), Key(0), penalty=distance if penalty else None, **more)

    plain, collecting = after(), after(collect=Collect())
    assert plain.loss == collecting.loss
    assert all(torch.equal(plain.params[name], collecting.params[name]) for name in start)
    untouched = fit(TASK, start, [batches()], options(), Key(0)).params
    changed = any(not torch.equal(plain.params[name], untouched[name]) for name in start)
    assert changed == bool(weights or penalty)


@pytest.mark.parametrize("weights", [(100.0, 0.0, 0.0, 0.0), (1.0, 2.0, 0.5, 3.0)], ids=str)
def test_fisher_collected_under_weights_counts_each_example_once(weights: tuple[float, ...]):
    slow = options(learning_rate=1e-12, weight_decay=0.0)
    found = fit(TASK, TASK.params(), [heavy(*weights)], slow, Key(0), collect=Collect()).neurons
    assert found is not None
    singles = [{name: value[i : i + 1] for name, value in batch.items()} for batch in batches() for i in range(len(batch["labels"]))]
    for name in TASK.names:
        each = torch.stack([gradients(TASK.params(), one)[0][name].square() for one in singles])
        rows = each.mean(0).sum(1) if each.ndim == 3 else each.mean(0)
        torch.testing.assert_close(found.rows[name], rows.float(), rtol=1e-5, atol=1e-12)


def test_fisher_of_a_part_that_is_trained_is_of_that_part():
    top = [name for name in TASK.names if TASK.layer_of(name) in (1, None)]
    found = trained(options(), trained=top, collect=Collect()).neurons
    assert set(top) <= found.rows.keys()


def test_nothing_to_train_on_gives_the_parameters_back():
    found = fit(TASK, TASK.params(), [], options(), Key(0))
    assert (found.steps, found.examples, found.loss) == (0, 0, 0.0)
    assert all(torch.equal(found.params[name], value) for name, value in TASK.params().items())


def test_a_loss_that_is_not_finite_stops_with_its_step():
    task = made_task(torch.float32)
    params = task.params()
    head = next(name for name in task.names if name.endswith("bias"))
    with pytest.raises(FloatingPointError, match=r"the loss of step 0 is (nan|inf)"):
        fit(task, {**params, head: torch.full_like(params[head], torch.inf)}, [batches()], options(), Key(0))
    with pytest.raises(FloatingPointError, match=r"the loss of step [1-9]\d* is|the tensor .* is not finite after"):
        fit(task, params, [batches()] * 4, options(learning_rate=1e30), Key(0))


def test_a_tensor_that_is_not_finite_in_the_end_is_named():
    task, huge = made_task(torch.float32), options(optimizer="sgd", weight_decay=3.0).model_copy(update={"learning_rate": 1e38})
    with pytest.raises(FloatingPointError, match=r"the tensor \S+ is not finite after 1 steps"):
        fit(task, {name: value + 2 for name, value in task.params().items()}, [batches()[:1]], huge, Key(0))


def test_dropout_draws_from_the_key_alone():
    task = tiny_task("bert", num_classes=3)
    task.dropout = 0.5
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = [fit(task, task.params(), [batches()], options(), Key(seed)).loss for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    state = torch.random.get_rng_state()
    fit(task, task.params(), [batches()], options(), Key(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_of_the_examples_make_a_weighted_mean_of_the_losses():
    weighted = [{**batch, "weights": torch.arange(1.0, len(batch["labels"]) + 1, dtype=torch.float64)} for batch in batches()]
    training = options(optimizer="sgd", weight_decay=0.0)
    result = fit(TASK, TASK.params(), [weighted], training, Key(0))
    params = TASK.params()
    for batch in weighted:
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        losses, weights = TASK.losses(leaves, {name: value for name, value in batch.items() if name != "weights"}), batch["weights"]
        found = torch.autograd.grad((losses * weights).sum() / weights.sum(), list(leaves.values()))
        params = {name: params[name] - 0.02 * gradient for name, gradient in zip(leaves, found, strict=True)}
    for name, value in params.items():
        torch.testing.assert_close(result.params[name], value, rtol=1e-9, atol=1e-12)


# ---- every optimiser, clipping, accumulation, step limits, class weights


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_optimiser_is_torchs_own_with_decoupled_decay(name: str) -> None:
    momentum = 0.9 if name in WITH_MOMENTUM else 0.0
    training = options(optimizer=name, momentum=momentum)
    params = {key: torch.nn.Parameter(value.clone()) for key, value in TASK.params().items()}
    extra = {"momentum": momentum} if momentum else {}
    optimiser = MAKERS[name](params.values(), lr=0.02, weight_decay=0.0, foreach=False, **extra)
    for batch in batches() * EPOCHS:
        grads, _ = gradients({key: value.detach() for key, value in params.items()}, batch)
        with torch.no_grad():
            for key, value in params.items():
                value.mul_(1 - 0.02 * 0.1)
                value.grad = grads[key]
        optimiser.step()
    for key, value in trained(training).params.items():
        torch.testing.assert_close(value, params[key].detach(), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_optimiser_moves_a_masked_row(name: str) -> None:
    start = TASK.params()
    masks = {key: torch.arange(len(value)) % 2 == 0 for key, value in start.items()}
    found = trained(options(optimizer=name, momentum=0.9 if name in WITH_MOMENTUM else 0.0, max_grad_norm=0.5), masks=masks).params
    for key, value in start.items():
        assert torch.equal(found[key][1::2], value[1::2])
    assert any(not torch.equal(found[key][::2], value[::2]) for key, value in start.items())


def test_the_gradient_is_clipped_to_the_norm_over_all_tensors_that_move() -> None:
    start = TASK.params()
    batch = batches()[0]
    grads, _ = gradients(start, batch)
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for limit in (float(norm) / 3, float(norm) * 3):
        training = options(optimizer="sgd", weight_decay=0.0, max_grad_norm=limit)
        found = fit(TASK, start, [[batch]], training, Key(0)).params
        shrunk = min(1.0, limit / float(norm))
        for key, value in start.items():
            torch.testing.assert_close(found[key], value - 0.02 * shrunk * grads[key], atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("weights", [False, True])
def test_accumulated_batches_are_one_large_one_whatever_their_sizes(weights: bool) -> None:
    """Four optimisers' steps on the same examples, cut otherwise: no batch of the epoch's end counts more or less."""
    whole = batches()
    if weights:
        whole = [{**batch, "weights": torch.arange(1.0, 1 + len(batch["labels"]))} for batch in whole]
    parts = [{name: rows[i : i + 2] for name, rows in batch.items()} for batch in whole[:1] for i in range(0, len(batch["labels"]), 2)]
    training = options(weight_decay=0.0)
    large = fit(TASK, TASK.params(), [whole[:1]] * 2, training, Key(0))
    small = fit(TASK, TASK.params(), [parts] * 2, training.model_copy(update={"gradient_accumulation": 3}), Key(0))
    assert (large.steps, small.steps, large.examples, small.examples) == (2, 2, 10, 10)
    assert small.loss == pytest.approx(large.loss)
    for key, value in large.params.items():
        torch.testing.assert_close(small.params[key], value, atol=1e-9, rtol=1e-7)
    penalised = [
        fit(TASK, TASK.params(), [cut], training.model_copy(update={"gradient_accumulation": n}), Key(0), penalty=_pull)
        for cut, n in ((whole[:1], 1), (parts, 3))
    ]
    for key, value in penalised[0].params.items():
        torch.testing.assert_close(penalised[1].params[key], value, atol=1e-9, rtol=1e-7)


def _pull(params: Params) -> Tensor:
    return 0.1 * torch.stack([value.square().sum() for value in params.values()]).sum()


def test_no_more_steps_are_taken_than_allowed_and_what_was_not_seen_is_not_counted() -> None:
    full, short = trained(options()), trained(options(max_steps=4))
    assert (full.steps, short.steps, short.examples) == (EPOCHS * len(SIZES), 4, sum(SIZES) + SIZES[0])
    assert trained(options(max_steps=100)).steps == full.steps
    assert same_tensors(trained(options(max_steps=3)).params, fit(TASK, TASK.params(), [batches()], options(), Key(0)).params)


def same_tensors(a: Params, b: Params) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
