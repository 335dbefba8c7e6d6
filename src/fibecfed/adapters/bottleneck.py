"""Bottleneck layers on the output of each sub-layer (Houlsby et al., ICML 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..core.errors import UserError
from .body import Body, Inputs

_SUB_LAYERS = (
    ("attention.output.dropout", "output.dropout"),  # BERT, RoBERTa, ELECTRA
    ("attn.resid_dropout", "mlp.dropout"),  # GPT-2
    ("self_attn.o_proj", "mlp.down_proj"),  # LLaMA, Qwen2, Mistral
)
"""Paths inside a block of the modules that give the output of its attention and of its feed-forward part, before the residual is added."""


class Bottlenecks(nn.Module):
    """h + up(GELU(down(h))) on the output h of the attention and of the feed-forward part of each block, before the residual and its norm.

    Near the identity at the start: weights from a normal of standard deviation 0.01, cut at two of them, biases zero, as published. The
    body's normalisation layers are trained too.
    """

    num_positions = 0
    trains_norms = True
    from_middle = False

    def __init__(self, size: int, num_layers: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Pair(size, hidden) for _ in range(num_layers))

    def check(self, body: Body) -> None:
        if _sub_layers(body.blocks[0]) is None:
            raise UserError(
                f"method.kind: a bottleneck adapter cannot be used with a {type(body.module).__name__}: got blocks with the parts "
                f"{[name for name, _ in body.blocks[0].named_children()]}, expected those of BERT, RoBERTa, GPT-2, LLaMA or Qwen2; "
                "choose another model"
            )

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        handles = []
        try:
            for block, pair in zip(body.blocks, self.layers, strict=True):
                for path, bottleneck in zip(_sub_layers(block) or (), pair.children(), strict=True):

                    def add(_module: nn.Module, _args: object, out: Tensor, bottleneck: nn.Module = bottleneck) -> Tensor:
                        return out + bottleneck(out)

                    handles.append(block.get_submodule(path).register_forward_hook(add))
            return body(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def go_on(self, body: Body, inputs: Inputs) -> Tensor:
        return self.run(body, inputs)

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        if value.ndim == 1:
            return torch.zeros_like(value)
        return nn.init.trunc_normal_(torch.empty(value.shape), std=0.01, a=-0.02, b=0.02, generator=generator).to(value.dtype)


class _Bottleneck(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, hidden)

    def forward(self, h: Tensor) -> Tensor:
        return self.up(gelu(self.down(h)))


class _Pair(nn.Module):
    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.attention = _Bottleneck(size, hidden)
        self.feed_forward = _Bottleneck(size, hidden)


def _sub_layers(block: nn.Module) -> tuple[str, str] | None:
    paths = {path for path, _ in block.named_modules()}
    return next((pair for pair in _SUB_LAYERS if paths.issuperset(pair)), None)
