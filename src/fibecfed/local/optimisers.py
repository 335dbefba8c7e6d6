"""Torch's optimisers on the trainable tensors of a task, whole or row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.types import Params
from .options import TrainingOptions

MAKERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
"""`training.optimizer` -> torch's class, which is given the learning rate, no weight decay, and momentum where it has one."""

WITH_MOMENTUM = ("rmsprop", "sgd")


class Optimiser:
    """One of torch's optimisers, with weight decay apart and masks by row.

    Weight decay is decoupled (Loshchilov and Hutter 2019) for every optimiser. A masked row gets gradient 0, from which each of them makes
    no step and no moment, and a decay factor of 1: it keeps its bits.

    Args:
        leaves: the tensors, written in place.
        masks: for each tensor zeros and ones of its shape, or None where every row moves.
    """

    def __init__(self, leaves: list[Tensor], masks: list[Tensor | None], options: TrainingOptions) -> None:
        self.leaves = leaves
        self.masks = masks
        self.max_norm = options.max_grad_norm
        momentum = {"momentum": options.momentum} if options.optimizer in WITH_MOMENTUM else {}
        self.inner = (
            MAKERS[options.optimizer](leaves, lr=options.learning_rate, weight_decay=0.0, foreach=True, **momentum) if leaves else None
        )
        rate = options.learning_rate * options.weight_decay
        self.decay = [(leaf.new_ones(()) if mask is None else mask) * -rate + 1 for leaf, mask in zip(leaves, masks, strict=True)]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        """One step along the gradients, one a tensor; clipped to a norm over all of them where the options say so."""
        if self.inner is None:
            return
        masked = [grad if mask is None else grad * mask for grad, mask in zip(grads, self.masks, strict=True)]
        for leaf, grad in zip(self.leaves, masked, strict=True):
            leaf.grad = grad
        if self.max_norm:
            torch.nn.utils.clip_grad_norm_(self.leaves, self.max_norm, foreach=True)
        torch._foreach_mul_(self.leaves, self.decay)
        self.inner.step()


def row_masks(names: Sequence[str], params: Params, masks: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Each mask as a tensor of zeros and ones of its parameter's shape; None where every row moves.

    Raises:
        KeyError: a mask of a tensor that is not among `names`.
    """
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
