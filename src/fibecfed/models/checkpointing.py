"""Gradient checkpointing: for the backward pass a block keeps its input alone, and is computed once more there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def recomputed(blocks: Sequence[nn.Module], lock: Any, device: torch.device) -> Iterator[None]:
    """Inside, each call of a block whose gradient is asked for keeps its input, and is repeated in the backward pass.

    transformers' own way works in training mode alone, and repeats a block with the tensors that stand in the module by then; here they
    are those that stood there in the forward pass. Dropout is repeated with the same draws.

    Args:
        lock: that of the module, held while a block is repeated; not on a GPU, where the backward pass has a thread of its own, for
            which the one that holds it waits.
    """
    if not torch.is_grad_enabled():
        yield
        return
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _checkpointed(block, block.forward, lock if device.type == "cpu" else contextlib.nullcontext())
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            if own is not None:
                block.forward = own


def _checkpointed(block: nn.Module, forward: Callable[..., Any], lock: Any) -> Callable[..., Any]:
    call = _Call(block, forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        tensors: dict[str, torch.Tensor] = {f"block.{name}": value for name, value in block.named_parameters()}

        def again(*args: Any) -> Any:
            with lock:
                return functional_call(call, tensors, args, kwargs)

        return checkpoint(again, *args, use_reentrant=False)

    return run


class _Call(nn.Module):
    """A block by the forward that it had."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self._forward = [forward]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward[0](*args, **kwargs)
