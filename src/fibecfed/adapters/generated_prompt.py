"""Soft tokens made for each example from its sentence vector (IDPG: Wu et al., NAACL 2022)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .body import Body, Inputs, drawn_map, run_with_prompts

CACHE_BYTES = 2**26


class GeneratedPrompt(nn.Module):
    """m soft tokens = up(ReLU(down(v))) before the input, v being the example's vector from the frozen body without any adapter.

    v is the mean of the last hidden state over the text's tokens [C: the paper takes the first token's, which decoders have no use for].
    It is computed once per example and kept. Each is computed alone, without padding and dropout, so that its bits depend on the example
    and not on the batch it first came in: a resumed run sees the same. Where embeddings are given in place of tokens, it is computed from
    them, and not kept.

    The paper's best form has PHM layers and prompts in every layer: not built.
    """

    trains_norms = False
    from_middle = False

    def __init__(self, num_tokens: int, size: int, hidden: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.down = nn.Linear(hidden, size)
        self.up = nn.Linear(size, num_tokens * hidden)
        self.sentences = _Sentences(CACHE_BYTES // (4 * hidden))

    @property
    def num_positions(self) -> int:
        return self.num_tokens

    def check(self, body: Body) -> None:
        body.require_front("a generated prompt")

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        embeddings = body.embeddings(inputs)
        prompts = self.up(self.down(self._vectors(body, inputs)).relu()).unflatten(1, (self.num_tokens, -1))
        return run_with_prompts(body, inputs, prompts, embeddings)

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        return drawn_map(value, generator)

    def _vectors(self, body: Body, inputs: Inputs) -> Tensor:
        mask = inputs["attention_mask"]
        if "inputs_embeds" in inputs:
            return (body(inputs) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        given = [name for name in ("input_ids", "token_type_ids") if name in inputs]
        rows = [torch.stack([inputs[name][row][mask[row].bool()] for name in given]) for row in range(len(mask))]
        return torch.stack([self.sentences.vector(body, dict(zip(given, row, strict=True)), inputs) for row in rows])


class _Sentences:
    """The sentence vectors that were computed before, by token ids; the least recently used go first."""

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sentences:
        return _Sentences(self.most)  # a copy of the model may be of another precision

    @torch.no_grad()
    def vector(self, body: Body, text: dict[str, Tensor], inputs: Inputs) -> Tensor:
        """Mean of the last hidden state over the tokens of one text, float32 or better, (hidden,)."""
        key = tuple(token for value in text.values() for token in value.tolist())
        found = self.kept.pop(key, None)
        if found is None:
            ids = text["input_ids"]
            alone: dict[str, Any] = {name: value.unsqueeze(0) for name, value in text.items()}
            alone["attention_mask"] = torch.ones_like(ids).unsqueeze(0)
            alone["position_ids"] = torch.arange(body.first_position, body.first_position + len(ids), device=ids.device).unsqueeze(0)
            alone.update({name: value for name, value in inputs.items() if name == "use_cache"})
            training = body.module.training
            body.module.eval()
            try:
                found = body(alone)[0].mean(0)
            finally:
                body.module.train(training)
            found = found if found.dtype == torch.float64 else found.float()
        self.kept[key] = found
        if len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return found
