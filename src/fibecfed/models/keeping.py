"""An adapted model's side of kept activations: that they are kept, and computed before they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.types import Batch, Params
from .activations import ActivationSize
from .depth import LowerBlocks
from .turns import one_at_a_time


class KeepsActivations:
    """Part of `AdaptedModel`."""

    lower_blocks: LowerBlocks | None = None

    @one_at_a_time
    def keep_activations(self: Any, budget: int) -> ActivationSize | None:
        """From now on keep the output of blocks below all that is trained, see `LowerBlocks`, in at most `budget` bytes.

        Returns:
            What an example takes; None where nothing can be kept: dropout makes each output another, or the blocks of this model give
            the next ones more than their output.
        """
        if self.dropout:
            return None
        lower = LowerBlocks(tuple(self._network.blocks), budget)
        params, ids = self.params(), self._network.few_tokens(self._objective.mask_id, self._device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with self._kernels():
            output = lower.tried(lambda inputs: self._logits(params, inputs, keeps=False), batch, max(1, self.num_layers // 2))
        if output is None:
            return None
        self.lower_blocks = lower
        return ActivationSize(output.shape[2], output.shape[1] - ids.shape[1], output.dtype)

    @one_at_a_time
    @torch.no_grad()
    def keep_ahead(self: Any, params: Params, trained: Collection[str], batches: Sequence[Batch]) -> None:
        """Compute now, in few passes, what a training on these batches will ask of the kept activations. Changes no number.

        Args:
            trained: names of the tensors that the training moves.
        """
        if self.lower_blocks is None:
            return

        def forward(inputs: Batch) -> Tensor:
            return self._logits(params, inputs, keeps=False)

        def below(block: int) -> Params:
            return self._below(params, block)

        first, attention = self.first_block(trained), self._network.config._attn_implementation
        self.lower_blocks.ahead(forward, [self._inputs(batch) for batch in batches], first, below, attention)
