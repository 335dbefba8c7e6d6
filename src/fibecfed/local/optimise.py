"""Local training: AdamW and SGD on the trainable tensors of a task, whole or neuron by neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.rng import Key
from ..core.task import Tape, Task
from ..core.trees import first_not_finite
from ..core.types import Batch, Params
from .fisher import Neurons, NeuronSums, squares
from .options import TrainingOptions

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class Fit:
    """What local training made.

    Attributes:
        params: all tensors, trained or not, on the CPU.
        steps: optimiser steps.
        examples: examples seen, with repetition.
        loss: their mean loss when they were seen, nat; 0 if there were none.
        neurons: Fisher information of the first epoch, if asked for.
    """

    params: dict[str, Tensor]
    steps: int
    examples: int
    loss: float
    neurons: Neurons | None


def fit(
    task: Task,
    params: Params,
    epochs: Sequence[Iterable[Batch]],
    options: TrainingOptions,
    key: Key,
    *,
    trained: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    collect_fisher: bool = False,
    penalty: Callable[[Params], Tensor] | None = None,
) -> Fit:
    """Train a copy of `params` on the mean loss of each batch in turn, with a new optimiser.

    Args:
        epochs: the batches of each epoch. `weights` in a batch make its loss the weighted mean.
        trained: names that may move; default all.
        masks: name -> bool (rows,): only the rows marked move. Neither weight decay nor a moment moves any other row.
        penalty: what is added to the loss of each step, a number made of the tensors; not part of the recorded loss.
        collect_fisher: sum per-example squared gradients by neuron during the first epoch; all neurons, masked or not. They are those of
            the examples' own losses, each example once: neither `weights` nor `penalty` has a part in them.

    Raises:
        FloatingPointError: a loss or, at the end, a tensor that is not finite, with its batch or name.
    """
    moving = sorted(task.names if trained is None else trained)
    work = {name: value.detach().to(task.device, copy=True) for name, value in params.items()}
    leaves = [work[name].requires_grad_() for name in moving]
    step = _STEPS[options.optimizer](leaves, _row_masks(moving, work, masks or {}), options)
    sums = NeuronSums() if collect_fisher else None
    num_steps = num_examples = 0
    total = 0.0
    with task.training(key):
        for number, epoch in enumerate(epochs):
            seen: list[tuple[Tensor, int]] = []
            for batch in epoch:
                size = len(batch["labels"])
                outputs: list[Tensor] = []
                if sums is not None and number == 0:
                    losses, tape = task.traced(work, batch)
                    tape = Tape(tuple(linear for linear in tape.linears if linear.output.requires_grad))  # not below what moves
                    outputs = [linear.output for linear in tape.linears]
                else:
                    losses, tape = task.losses(work, batch), Tape(())
                objective = _mean(losses, batch) if penalty is None else _mean(losses, batch) + penalty(work)
                grads, of_losses = _gradients(objective, losses, leaves, outputs, weighted="weights" in batch)
                if sums is not None and number == 0:
                    sums.add(squares(tape, of_losses, scale=size))
                step(grads)
                seen.append((losses.detach().sum(), size))
            for loss, size in _finite(seen, num_steps):
                num_steps, num_examples, total = num_steps + 1, num_examples + size, total + loss
    result = {name: value.detach().to("cpu") for name, value in work.items()}
    if (bad := first_not_finite(result)) is not None:
        raise FloatingPointError(f"the tensor {bad} is not finite after {num_steps} steps")
    mean = total / num_examples if num_examples else 0.0
    return Fit(result, num_steps, num_examples, mean, sums.mean() if sums is not None else None)


def _gradients(
    objective: Tensor, losses: Tensor, leaves: list[Tensor], outputs: list[Tensor], *, weighted: bool
) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """The objective's gradient at the leaves, zero where it does not depend on one, and the mean loss's at the outputs.

    Without weights one backward pass gives both: a penalty does not depend on the outputs. With them an example may weigh nothing, so
    that the objective says nothing of its own gradient.
    """
    if not weighted or not outputs:
        found = torch.autograd.grad(objective, [*leaves, *outputs], allow_unused=True)
        at_leaves, at_outputs = found[: len(leaves)], found[len(leaves) :]
    else:
        at_outputs = torch.autograd.grad(losses.mean(), outputs, retain_graph=True, allow_unused=True)
        at_leaves = torch.autograd.grad(objective, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, at_leaves, strict=True)], at_outputs


def _finite(seen: Sequence[tuple[Tensor, int]], first: int) -> Iterator[tuple[float, int]]:
    """The summed losses of an epoch's steps as numbers, with their examples. Read once per epoch: a GPU would be waited for each time.

    Raises:
        FloatingPointError: one is not finite; the number of its step, the epoch's first being `first`.
    """
    values = torch.stack([loss for loss, _ in seen]).tolist() if seen else []
    for step, (loss, (_, size)) in enumerate(zip(values, seen, strict=True), start=first):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss / size}")
        yield loss, size


def _mean(losses: Tensor, batch: Batch) -> Tensor:
    if "weights" not in batch:
        return losses.mean()
    weights = batch["weights"].to(losses)
    return (losses * weights).sum() / weights.sum()


def _row_masks(names: Sequence[str], params: Params, masks: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Each mask as a tensor of zeros and ones that broadcasts over its parameter's rows; None where every row moves."""
    unknown = sorted(masks.keys() - set(names))
    if unknown:
        raise KeyError(f"masks for tensors that are not trained: {unknown[:3]}")
    rows: list[Tensor | None] = []
    for name in names:
        mask = masks.get(name)
        if mask is None or bool(mask.all()):
            rows.append(None)
        else:
            value = params[name]
            rows.append(mask.to(value).view(-1, *[1] * (value.ndim - 1)).expand_as(value).contiguous())
    return rows


class _Adamw:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), every tensor at once.

    A masked row gets gradient 0, so its moments stay 0 and it takes no step, and a decay factor of 1.
    """

    def __init__(self, leaves: list[Tensor], masks: list[Tensor | None], options: TrainingOptions) -> None:
        self.leaves = leaves
        self.masks = masks
        self.rate = options.learning_rate
        self.first = [torch.zeros_like(leaf) for leaf in leaves]
        self.second = [torch.zeros_like(leaf) for leaf in leaves]
        self.decay = _decays(leaves, masks, options)
        self.count = 0

    @torch.no_grad()
    def __call__(self, grads: Sequence[Tensor]) -> None:
        grads = _masked(grads, self.masks)
        self.count += 1
        torch._foreach_mul_(self.leaves, self.decay)
        torch._foreach_lerp_(self.first, grads, 1 - BETAS[0])
        torch._foreach_mul_(self.second, BETAS[1])
        torch._foreach_addcmul_(self.second, grads, grads, 1 - BETAS[1])
        scale = torch._foreach_sqrt(self.second)
        torch._foreach_div_(scale, (1 - BETAS[1] ** self.count) ** 0.5)
        torch._foreach_add_(scale, EPSILON)
        torch._foreach_addcdiv_(self.leaves, self.first, scale, -self.rate / (1 - BETAS[0] ** self.count))


class _Sgd:
    """Gradient descent with optional heavy-ball momentum and decoupled weight decay."""

    def __init__(self, leaves: list[Tensor], masks: list[Tensor | None], options: TrainingOptions) -> None:
        self.leaves = leaves
        self.masks = masks
        self.rate = options.learning_rate
        self.momentum = options.momentum
        self.velocity = [torch.zeros_like(leaf) for leaf in leaves]
        self.decay = _decays(leaves, masks, options)

    @torch.no_grad()
    def __call__(self, grads: Sequence[Tensor]) -> None:
        torch._foreach_mul_(self.leaves, self.decay)
        torch._foreach_mul_(self.velocity, self.momentum)
        torch._foreach_add_(self.velocity, _masked(grads, self.masks))
        torch._foreach_add_(self.leaves, self.velocity, alpha=-self.rate)


_STEPS = {"adamw": _Adamw, "sgd": _Sgd}


def _decays(leaves: list[Tensor], masks: list[Tensor | None], options: TrainingOptions) -> list[Tensor]:
    rate = options.learning_rate * options.weight_decay
    one = torch.ones(())
    return [(one.to(leaf) if mask is None else mask) * -rate + 1 for leaf, mask in zip(leaves, masks, strict=True)]


def _masked(grads: Sequence[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
    return [grad if mask is None else grad * mask for grad, mask in zip(grads, masks, strict=True)]
