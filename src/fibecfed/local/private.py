"""Local training under differential privacy for examples: DP-SGD (Abadi et al., CCS 2016) in one backward pass a batch.

    step = (sum over the batch of clip_C(g_s) + N(0, z^2 C^2)) / B,        clip_C(g) = g min(1, C / ||g||)

with g_s the gradient of the loss of example s at all trained tensors. The batch size B is the configured one, never that of the batch at
hand, and an optimiser gets nothing but such steps: whatever follows from them, the client's own tensors too, is as private as they are.

With x (batch, token, d_in) the input of a trained linear map and e (batch, token, d_out) the gradient of the summed losses at its output,
||g_s||^2 is a sum over the maps (`fisher.squares`), and the clipped sum is (c e)^T x over batch and tokens with c_s = min(1, C / ||g_s||):
neither a second backward pass nor gradients by example are needed (book-keeping: Bu et al., ICML 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.answers import targets_of
from ..core.private import PrivateTraining
from ..core.rng import Key
from ..core.task import Tape, Task
from ..core.trees import first_not_finite, moved
from ..core.types import Batch, Examples, Params
from .batches import PASS_BATCH, batches, by_length
from .fisher import Neurons, is_lora_b, squares, uses
from .optimise import Fit
from .optimisers import Optimiser, row_masks
from .options import TrainingOptions

_MARGIN = 1 - 2**-18
"""Gradients are clipped to slightly less than C, by more than the rounding errors of float32 in computing a norm."""


@dataclass(frozen=True)
class ClippedSum:
    """What one batch gives.

    Attributes:
        sums: of each trained tensor the sum of the examples' clipped gradients, float32 or better.
        squared_norms: ||g_s||^2 of each example before clipping, shape (batch,).
    """

    sums: dict[str, Tensor]
    squared_norms: Tensor


@dataclass(frozen=True)
class Units:
    """Whose the examples of a client are: one at a time of each is used.

    Attributes:
        order: positions of the examples, those of one unit after the other.
        sizes: examples of each unit.
    """

    order: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, examples: Examples) -> Units:
        """Those of a client's training part; each example is one by itself where nobody says whose it is."""
        if examples.units is None:
            return cls(torch.arange(len(examples)), torch.ones(len(examples), dtype=torch.int64))
        _, unit, sizes = examples.units.unique(return_inverse=True, return_counts=True)
        return cls(unit.argsort(stable=True), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def examples(self, private: PrivateTraining) -> Tensor:
        """The position of one example of each unit; another one each time."""
        if len(self) == len(self.order):
            return self.order
        return self.order[self.sizes.cumsum(0) - self.sizes + private.one_of(self.sizes)]


@dataclass(frozen=True)
class Among:
    """Some of a client's examples.

    Attributes:
        taken: bool, shape (examples,); whether one is depends on nothing but itself and what was noised.
        share: about this fraction of them is; it follows from no example.
    """

    taken: Tensor
    share: float


class NoisedInformation:
    """Information of neurons as far as noised steps tell it: the mean over steps of the squared entries minus the noise's variance, summed
    by row and, for lora_B, by column; at least 0.

    Args:
        names: of tensors.
        deviation: of the noise of an entry.
    """

    def __init__(self, names: Collection[str], deviation: float) -> None:
        self._names, self._variance, self._steps = frozenset(names), deviation**2, 0
        self._sums: dict[str, Tensor] = {}

    def add(self, names: Sequence[str], step: Sequence[Tensor]) -> None:
        """Count one more step."""
        self._steps += 1
        for name, value in zip(names, step, strict=True):
            if name in self._names:
                square = value.detach().square() - self._variance
                self._sums[name] = self._sums[name] + square if name in self._sums else square

    def neurons(self) -> Neurons | None:
        """As `Fit.neurons`; None where nothing was asked for."""
        if not self._sums:
            return None
        mean = {name: (total / self._steps).to("cpu", torch.float32) for name, total in self._sums.items()}
        rows = {name: value.flatten(1).sum(1).clamp(min=0) if value.ndim > 1 else value.clamp(min=0) for name, value in mean.items()}
        return Neurons(rows, {name: value.sum(0).clamp(min=0) for name, value in mean.items() if is_lora_b(name)})


def traces(task: Task, params: Params, examples: Examples, over: Collection[str]) -> Tensor:
    """||g_s||^2 of each example at its own label over some tensors, float32, shape (examples,); not finite where a gradient is not."""
    leaves = {name: value.detach().to(task.device).requires_grad_(name in over) for name, value in params.items()}
    order, names = by_length(examples), frozenset(over)
    parts: list[Tensor] = []
    for batch in batches(examples, order, PASS_BATCH):
        losses, tape = task.traced(leaves, batch)
        tape = Tape(tuple(one for one in tape.linears if one.weight in names or one.bias in names))
        outputs = [one.output for one in tape.linears]
        gradients = torch.autograd.grad(example_losses(losses, batch).sum(), outputs, allow_unused=True)
        parts.append(squares(tape, gradients, trace_over=names, rows_of=()).trace.detach())
    found = torch.cat(parts).to("cpu", torch.float32)
    return torch.empty_like(found).index_copy_(0, order, found)


def example_losses(losses: Tensor, batch: Batch) -> Tensor:
    """The loss of each example: of an answer the mean over its labelled tokens, which depends on no other answer."""
    targets = targets_of(batch)
    return losses if targets is None else losses / moved(targets.clamp(min=1), losses.device, losses.dtype)


def clipped_sum(task: Task, params: Params, moving: Collection[str], batch: Batch, clip_norm: float) -> ClippedSum:
    """The sum over a batch of each example's gradient, scaled down to an L2 norm of at most C.

    An example whose gradient is not finite counts as one without a gradient.

    Args:
        params: all tensors; those of `moving` require a gradient.
        moving: names of the tensors that are trained; the norm is over these.

    Raises:
        ValueError: the task trains something that is not a linear map.
    """
    losses, tape = task.traced(params, batch)
    over = frozenset(moving)
    tape = Tape(tuple(one for one in tape.linears if one.weight in over or one.bias in over))
    outputs = [one.output for one in tape.linears]
    gradients = torch.autograd.grad(example_losses(losses, batch).sum(), outputs, allow_unused=True)
    squared = squares(tape, gradients, trace_over=over, rows_of=()).trace
    factor = (clip_norm * _MARGIN * squared.rsqrt()).clamp(max=1.0)
    usable = torch.isfinite(squared)
    whole = bool(usable.all())
    sums = {name: torch.zeros_like(params[name], dtype=squared.dtype) for name in moving}
    for linear, x, e in uses(tape, gradients):
        e = e * factor.to(e)[:, None, None]
        if not whole:  # 0 times what is not finite is not 0
            x, e = x[usable], e[usable]
        if linear.weight in sums:
            sums[linear.weight] += e.flatten(0, 1).T @ x.flatten(0, 1)
        if linear.bias in sums:
            sums[linear.bias] += e.sum((0, 1))
    return ClippedSum(sums, squared.detach())


def fit_private(
    task: Task,
    params: Params,
    examples: Examples,
    options: TrainingOptions,
    key: Key,
    private: PrivateTraining,
    *,
    trained: Collection[str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    penalty: Callable[[Params], Tensor] | None = None,
    among: Among | None = None,
    neurons: Collection[str] = (),
) -> Fit:
    """As `optimise.fit`, under privacy for the examples. Its loss is 0, since nobody may know it.

    A step is over `options.batch_size` times `options.gradient_accumulation` examples on average, of which at most `batch_size` go through
    the model at a time.

    Args:
        examples: the client's training part.
        private: where batches and noise come from.
        penalty: a number made of the tensors alone; its gradient is added to each step after the noise.
        among: the examples that are trained on; None: all.
        neurons: tensors whose neurons' information is estimated from the noised steps.

    Raises:
        FloatingPointError: a tensor that is not finite at the end.
    """
    moving = sorted(task.names if trained is None else trained)
    work = {name: value.detach().to(task.device, copy=True) for name, value in params.items()}
    leaves = [work[name].requires_grad_() for name in moving]
    optimiser = Optimiser(leaves, row_masks(moving, work, masks or {}), options)
    among = among or Among(torch.ones(len(examples), dtype=torch.bool), 1.0)
    units = Units.of(examples)
    whole = max(1, round(among.share * len(units)))  # about as many take part
    size = min(options.batch_size * options.gradient_accumulation, whole)
    drawn = min(len(units), round(size / among.share))  # of which about `size` take part
    found = NoisedInformation(neurons, private.noise_norm / size)
    steps = 0
    with task.training(key):
        for epoch in private.epochs(len(units), drawn, options.local_epochs):
            one_each = units.examples(private)
            for places in epoch:
                if options.max_steps and steps == options.max_steps:
                    break
                positions = one_each[places].sort().values
                positions = positions[among.taken[positions]]
                # which examples of a step go through the model together changes nothing but roundings: alike ones need little padding
                parts = positions[examples.lengths[positions].argsort(stable=True)].split(options.batch_size)
                noised = private.noised(_total(task, work, moving, examples, parts, private.clip_norm))
                step = [noised[name].to(leaf) / size for name, leaf in zip(moving, leaves, strict=True)]
                found.add(moving, step)
                if penalty is not None:
                    pulls = torch.autograd.grad(penalty(work), leaves, allow_unused=True)
                    step = [grad if pull is None else grad + pull for grad, pull in zip(step, pulls, strict=True)]
                optimiser.step(step)
                steps += 1
    result = {name: value.detach().to("cpu") for name, value in work.items()}
    if (bad := first_not_finite(result)) is not None:
        raise FloatingPointError(f"the tensor {bad} is not finite after {steps} steps")
    return Fit(result, steps, min(steps * size, options.local_epochs * whole), 0.0, found.neurons())


def _total(
    task: Task, params: Params, moving: Sequence[str], examples: Examples, parts: Sequence[Tensor], clip_norm: float
) -> dict[str, Tensor]:
    """The clipped sum of one step, part by part; 0 where it has no example."""
    total = {name: torch.zeros_like(params[name]) for name in moving}
    for part in parts:
        if len(part):
            for name, value in clipped_sum(task, params, moving, examples.batch(part.tolist()), clip_norm).sums.items():
                total[name] = total[name] + value
    return total
