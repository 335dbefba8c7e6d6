"""What an answer of several tokens counts: in the loss of a step, and in Fisher information."""

from __future__ import annotations

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from ..core.answers import targets_of
from ..core.trees import moved
from ..core.types import Batch

MeanOver: TypeAlias = Literal["token", "example"]
Normalise: TypeAlias = Literal["token", "none", "mean", "length-bins"]


def step_loss(losses: Float[Tensor, " batch"], batch: Batch, over: MeanOver) -> Tensor:
    """The mean loss of a batch.

    Of examples with a class each it is sum_s w_s L_s / sum_s w_s, w = 1 without `weights` in the batch. Where an example is an answer of
    n_s labelled tokens, and L_s the sum of their losses, "token" is sum_s w_s L_s / sum_s w_s n_s, in which every token counts the same,
    and "example" sum_s w_s (L_s / n_s) / sum_s w_s, in which every answer does.
    """
    targets, weights = targets_of(batch), batch.get("weights")
    if targets is not None and over == "token":
        total = losses.sum() if weights is None else (losses * moved(weights, losses.device, losses.dtype)).sum()
        return total / (amount_of(batch, len(losses), over) or 1.0)
    each = losses if targets is None else losses / moved(targets.clamp(min=1), losses.device, losses.dtype)
    if weights is None:
        return each.mean()
    here = moved(weights, each.device, each.dtype)
    return (each * here).sum() / here.sum()


def amount_of(batch: Batch, size: int, over: MeanOver) -> float:
    """By how much a batch of `size` examples counts in a step of several: the denominator of `step_loss`, so that a step of several batches
    is that of one large one."""
    targets, weights = targets_of(batch), batch.get("weights")
    if targets is None or over == "example":
        return float(size) if weights is None else float(weights.sum())
    return float(targets.sum() if weights is None else (targets * weights.double()).sum())


def is_apart(batch: Batch, over: MeanOver) -> bool:
    """Whether no factor makes the gradient of `step_loss` that of the summed losses: examples weigh differently."""
    return "weights" in batch or (over == "example" and targets_of(batch) is not None)


def counted(batch: Batch, size: int) -> int:
    """What a recorded loss is the mean over: labelled tokens, or the `size` examples where each has one class."""
    targets = targets_of(batch)
    return size if targets is None else int(targets.sum())


def information_scale(batch: Batch, normalise: Normalise) -> Tensor | None:
    """Factor on each example's gradient before it is squared, (batch,); None: 1.

    With n labelled tokens, "token" and "length-bins" divide an example's Fisher information by n, "mean" by n^2, as if its loss were a
    mean; "none" leaves it that of the whole answer.
    """
    targets = targets_of(batch)
    if targets is None or normalise == "none":
        return None
    n = targets.clamp(min=1).double()
    return n.reciprocal() if normalise == "mean" else n.rsqrt()
