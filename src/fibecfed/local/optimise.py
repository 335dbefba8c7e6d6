"""Local training of the trainable tensors of a task, whole or neuron by neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from ..core.rng import Key
from ..core.task import Task
from ..core.trees import first_not_finite
from ..core.types import Batch, Params
from .collect import Collect, Collected
from .fisher import Neurons
from .gradients import Wanted, gradients
from .optimisers import Optimiser, row_masks
from .options import TrainingOptions
from .tokens import MeanOver, amount_of, counted, is_apart, step_loss

_TOLD = 64
"""Batches that a task learns of at a time."""


@dataclass(frozen=True)
class Fit:
    """What local training made.

    Attributes:
        params: all tensors, trained or not, on the CPU.
        steps: optimiser steps.
        examples: examples seen, with repetition.
        loss: their mean loss when they were seen, nat; of answers the mean over their labelled tokens; 0 if there were none.
        neurons: Fisher information of the neurons in the first epoch, if asked for.
        traces: ||g(s)||^2 of the examples of the first epoch, each at the parameters from which its batch was trained, float32 on the CPU,
            in the order in which they came; if asked for.
        halves: of each trained tensor the products of the gradients' two halves, see `local.agreement.GradientHalves`; if asked for.
    """

    params: dict[str, Tensor]
    steps: int
    examples: int
    loss: float
    neurons: Neurons | None
    traces: Tensor | None = None
    halves: Mapping[str, Tensor] | None = None


def fit(
    task: Task,
    params: Params,
    epochs: Sequence[Iterable[Batch]],
    options: TrainingOptions,
    key: Key,
    *,
    trained: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    collect: Collect | None = None,
    penalty: Callable[[Params], Tensor] | None = None,
) -> Fit:
    """Train a copy of `params` on the mean loss of each step's batches in turn (`step_loss`), with a new optimiser.

    A step takes `options.gradient_accumulation` batches, an epoch's last step those that are left, and is that of one batch that holds them
    all. At most `options.max_steps` steps are taken, where that is not 0.

    Args:
        epochs: the batches of each epoch. `weights` in a batch make its loss the weighted mean.
        trained: names that may move; default all.
        masks: name -> bool (rows,): only the rows marked move. Neither weight decay nor a moment moves any other row.
        penalty: what is added to the loss of each step, a number made of the tensors; not part of the recorded loss.
        collect: what to take from the backward passes on the way; None: nothing.

    Raises:
        FloatingPointError: a loss or, at the end, a tensor that is not finite, with its batch or name.
    """
    moving = sorted(task.names if trained is None else trained)
    work = {name: value.detach().to(task.device, copy=True) for name, value in params.items()}
    leaves = [work[name].requires_grad_() for name in moving]
    optimiser = Optimiser(leaves, row_masks(moving, work, masks or {}), options)
    found = Collected(collect, options.optimizer)
    num_steps = num_examples = num_counted = batches_seen = 0
    total = 0.0
    with task.training(key):
        for number, epoch in enumerate(epochs):
            seen: list[tuple[Tensor, int, int]] = []
            left = (options.max_steps - num_steps) * options.gradient_accumulation if options.max_steps else None
            for group in _groups(_ahead(task, work, moving, epoch, left), options.gradient_accumulation):
                if options.max_steps and num_steps == options.max_steps:
                    break
                parts: list[tuple[list[Tensor], float]] = []
                for batch in group:
                    traced = found.needed() if number == 0 else None
                    objective = partial(_objective, batch=batch, over=options.objective, penalty=penalty, params=work)
                    apart = is_apart(batch, options.objective)
                    got = gradients(task, Wanted(work, leaves, batch, objective, traced, apart))
                    size = len(got.losses)
                    amount = amount_of(batch, size, options.objective)
                    if number == 0:
                        found.add(got.tape, got.at_outputs, size if apart else amount, batch)
                    parts.append((got.of_leaves, amount))
                    seen.append((got.losses.sum(), size, counted(batch, size)))
                joined = _joined(parts)
                if number == 0:
                    found.step(joined)
                optimiser.step(joined)
                num_steps += 1
            for loss, (_, size, count) in zip(_finite(seen, batches_seen), seen, strict=True):
                batches_seen, num_examples, num_counted, total = batches_seen + 1, num_examples + size, num_counted + count, total + loss
    result = {name: value.detach().to("cpu") for name, value in work.items()}
    if (bad := first_not_finite(result)) is not None:
        raise FloatingPointError(f"the tensor {bad} is not finite after {num_steps} steps")
    mean = total / num_counted if num_counted else 0.0
    return Fit(result, num_steps, num_examples, mean, found.neurons(), found.traces(), found.halves(moving))


def _ahead(task: Task, params: Params, moving: Sequence[str], epoch: Iterable[Batch], left: int | None) -> Iterable[Batch]:
    """The batches of an epoch; a task that keeps activations gets the next ones ahead, at most `left` in all where that is not None."""
    keep = getattr(task, "keep_ahead", None)
    if keep is None:
        return epoch
    return _told(partial(keep, params, moving), islice(epoch, left))


def _told(tell: Callable[[Sequence[Batch]], None], batches: Iterator[Batch]) -> Iterator[Batch]:
    while some := list(islice(batches, _TOLD)):
        tell(some)
        yield from some


def _groups(epoch: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each optimiser step."""
    batches = iter(epoch)
    while group := list(islice(batches, size)):
        yield group


def _joined(parts: Sequence[tuple[list[Tensor], float]]) -> list[Tensor]:
    """The gradient of one large batch from those of its parts, which are means: weighted by how much each part counts."""
    if len(parts) == 1:
        return parts[0][0]
    total = sum(weight for _, weight in parts)
    return [sum((grad * (weight / total) for grad, weight in column), start=torch.zeros(())) for column in _columns(parts)]


def _columns(parts: Sequence[tuple[list[Tensor], float]]) -> Iterator[list[tuple[Tensor, float]]]:
    for place in range(len(parts[0][0])):
        yield [(grads[place], weight) for grads, weight in parts]


def _finite(seen: Sequence[tuple[Tensor, int, int]], first: int) -> Iterator[float]:
    """The summed losses of an epoch's steps as numbers. Read once per epoch: a GPU would be waited for each time.

    Raises:
        FloatingPointError: one is not finite; the number of its step, the epoch's first being `first`.
    """
    values = torch.stack([loss for loss, _, _ in seen]).tolist() if seen else []
    for step, (loss, (_, _, count)) in enumerate(zip(values, seen, strict=True), start=first):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step} is {loss / max(count, 1)}")
        yield loss


def _objective(losses: Tensor, batch: Batch, over: MeanOver, penalty: Callable[[Params], Tensor] | None, params: Params) -> Tensor:
    """What a step minimises. With weights it does not tell an example's own gradient: one may weigh nothing."""
    mean = step_loss(losses, batch, over)
    return mean if penalty is None else mean + penalty(params)
