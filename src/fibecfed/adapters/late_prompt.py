"""A prompt made from the hidden state at the middle layer, and inserted there (LPT: Liu et al., Findings of EMNLP 2022)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from .body import Body, Inputs, before_text, drawn_map


class LatePrompt(nn.Module):
    """m soft tokens = up(ReLU(down(v))), put before the text at the input of block floor(L/2) (0-based).

    v is the hidden state there of the token that the class is read from. Below, the text runs as if there were no prompt: places are kept
    for it, which no token attends to, so that masks and positions need no rebuilding half-way. Nothing there is trained, so no graph is
    built there. A table of positions is not used up by the prompt; where positions are rotary, the prompt has the first m of them.
    """

    trains_norms = False
    from_middle = True

    def __init__(self, num_tokens: int, size: int, hidden: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, num_tokens * hidden)

    @property
    def num_positions(self) -> int:
        return self.num_tokens

    def check(self, body: Body) -> None:
        body.require_front("a late prompt")
        if "attention_mask" not in inspect.signature(body.blocks[0].forward).parameters:
            raise UserError(
                f"method.kind: a late prompt cannot be used with a {type(body.module).__name__}: its blocks take no attention_mask"
            )

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        mask, m = inputs["attention_mask"], self.num_tokens
        embeddings = body.embeddings(inputs)
        places = embeddings.new_zeros(len(mask), m, embeddings.shape[-1])
        shift = m if body.rotary else 0
        whole = before_text(inputs, places, embeddings, first_position=body.first_position, shift=shift, seen=False)
        middle = len(body.blocks) // 2
        signature = inspect.signature(body.blocks[0].forward)

        def insert(block: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            bound = signature.bind(*args, **keywords)
            bound.arguments["attention_mask"] = _opened(bound.arguments.get("attention_mask"), m, body.causal)
            if block is body.blocks[middle]:
                hidden = bound.arguments["hidden_states"]
                text = hidden[:, m:]
                prompts = self.up(self.down(body.pool(text, mask)).relu()).unflatten(1, (m, -1))
                bound.arguments["hidden_states"] = torch.cat([prompts.to(hidden.dtype), text], 1)
            return bound.args, bound.kwargs

        handles = [block.register_forward_pre_hook(insert, with_kwargs=True) for block in body.blocks[middle:]]
        try:
            return body(whole)
        finally:
            for handle in handles:
                handle.remove()

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        return drawn_map(value, generator)


def _opened(mask: Any, m: int, causal: bool) -> Tensor:
    """An attention mask (batch, 1, query, key), true or 0 where it is open, with the first m keys opened."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise UserError("method.kind: a late prompt needs the attention called sdpa or eager, which take a mask with a row for each token")
    value = True if mask.dtype == torch.bool else 0
    opened = mask.clone()
    opened[:, :, m:, :m] = value
    for row in range(m):
        opened[:, :, row, : row + 1 if causal else m] = value
    return opened
