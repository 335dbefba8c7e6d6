"""How much a client computes, counted: tokens that pass through a transformer block, forward and backward."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..core.task import Tape, Task
from ..core.types import Batch, Params

TOKEN_BLOCKS = "token_blocks"
"""Key of a client's notes: [forward, backward]."""

_BESIDE = "adapter."  # part of the name of a tensor beside the blocks; one in no block stands before the first


class CountedTask:
    """A task that counts the tokens, padding included, that go through its blocks; the same numbers on every machine.

    A loss whose gradient will be asked for counts forward through all blocks and backward through those from the lowest trained one up.
    What is computed with second derivatives counts as if it had first ones alone.
    """

    def __init__(self, task: Task, counts: list[int] | None = None) -> None:
        self._task = task
        self._counts = [0, 0] if counts is None else counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    @property
    def token_blocks(self) -> list[int]:
        """Forward and backward so far."""
        return list(self._counts)

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        self._count(params, batch, embeddings)
        return self._task.losses(params, batch, embeddings)

    def traced(self, params: Params, batch: Batch) -> tuple[Tensor, Tape]:
        self._count(params, batch)
        return self._task.traced(params, batch)

    def sums(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        self._count({}, batch)
        return self._task.sums(params, batch)

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Of tasks that have classes; without a graph."""
        self._count({}, batch)
        return cast("Any", self._task).logits(params, batch)

    def hidden_states(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> tuple[Tensor, ...]:
        self._count(params, batch, embeddings)
        return self._task.hidden_states(params, batch, embeddings)

    def exact(self) -> Task:
        return cast("Task", CountedTask(self._task.exact(), self._counts))

    def _count(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> None:
        tokens, blocks = batch["input_ids"].numel(), self._task.num_layers
        self._counts[0] += tokens * blocks
        if not torch.is_grad_enabled():
            return
        lowest = blocks if embeddings is None or not embeddings.requires_grad else 0
        lowest = min([lowest, *(self._block(name) for name, value in params.items() if value.requires_grad)])
        self._counts[1] += tokens * (blocks - lowest)

    def _block(self, name: str) -> int:
        """The first block through which a tensor's gradient goes."""
        if name not in self._task.names:
            return 0  # frozen weights that are trained for a while are those of every block
        layer = self._task.layer_of(name)
        return layer if layer is not None else 0 if _BESIDE in name else self._task.num_layers
