"""Trained keys and values in every layer (P-tuning v2: Liu et al., ACL 2022; prefix tuning: Li and Liang, ACL 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..core.errors import UserError
from .body import Body, Inputs, behind


class Prefix(nn.Module):
    """m trained keys and values in each layer, which every token attends to beside those of the text; no projection makes them.

    The tensors are `layers.<l>.key` and `layers.<l>.value`, each (m, heads x dim), with the heads of keys where they are fewer than those
    of queries. A prefix has no position: rotary embeddings do not turn it, and the text keeps its own positions [C: PEFT and the
    published code move the text by m].

    Args:
        heads: of keys and values.
        dim: of one head.
        spread: standard deviation at the start [C: the base model's `initializer_range`].
    """

    num_positions = 0
    trains_norms = False
    from_middle = False

    def __init__(self, num_tokens: int, num_layers: int, heads: int, dim: int, spread: float) -> None:
        super().__init__()
        self.heads = heads
        self.spread = spread
        self.layers = nn.ModuleList(_KeyValue(num_tokens, heads * dim) for _ in range(num_layers))

    def check(self, body: Body) -> None:
        body.require("a prefix", "past_key_values", "position_ids")

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        mask = inputs["attention_mask"]
        cache: Any = DynamicCache() if inputs.get("past_key_values") is None else inputs["past_key_values"]
        for number, layer in enumerate(self.layers):
            cache.update(self._by_head(layer.key, len(mask)), self._by_head(layer.value, len(mask)), number)  # pyright: ignore[reportArgumentType]
        length = cache.get_seq_length()
        seen = torch.cat([mask.new_ones(len(mask), length), mask], 1)
        hidden = body({**inputs, "attention_mask": seen, "past_key_values": cache})
        if any(cache.get_seq_length(number) != seen.shape[1] for number in range(len(self.layers))):
            raise UserError(f"method.kind: a prefix cannot be used with a {type(body.module).__name__}: its blocks pass by past_key_values")
        return hidden

    def go_on(self, body: Body, inputs: Inputs) -> Tensor:
        return body(behind(inputs, len(self.layers[0].key), shift=0))  # pyright: ignore[reportArgumentType]

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        return (torch.randn(value.shape, generator=generator) * self.spread).to(value.dtype)

    def _by_head(self, value: Tensor, size: int) -> Tensor:
        """(m, heads x dim) -> (batch, heads, m, dim), in the precision that the body's own keys have."""
        if torch.is_autocast_enabled(value.device.type):
            value = value.to(torch.get_autocast_dtype(value.device.type))
        return value.unflatten(1, (self.heads, -1)).transpose(0, 1).expand(size, -1, -1, -1)


class _KeyValue(nn.Module):
    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.zeros(num_tokens, width))
        self.value = nn.Parameter(torch.zeros(num_tokens, width))
