"""A prompt mixed for each example from frozen source prompts and a trained one (ATTEMPT: Asai et al., EMNLP 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .body import Body, Inputs, drawn_map, run_with_prompts
from .soft_prompt import drawn_prompt


class MixedPrompt(nn.Module):
    """The prompt of an example = P_target + sum_j a_j P_j, over the frozen source prompts and P_target itself.

    a = softmax_j(max(P_j) . LayerNorm(up(SiLU(down(max(X))))) / temperature), where max(.) is taken over the tokens of a prompt, or of the
    text's input embeddings X, for each dimension; the projections have no biases. As published, sources frozen and the temperature
    hidden x e by default.

    Args:
        sources: source prompts, (sources, m, hidden).
        start: "source": P_target starts as the first source prompt, as published; "vocabulary": from words.
    """

    trains_norms = False
    from_middle = False

    def __init__(self, sources: Tensor, size: int, temperature: float | None, start: Literal["source", "vocabulary"] = "source") -> None:
        super().__init__()
        self.start: Literal["source", "vocabulary"] = start
        _, num_tokens, hidden = sources.shape
        self.temperature = temperature or hidden * math.e
        self.register_buffer("sources", sources.detach().clone())
        self.target = nn.Parameter(torch.zeros(num_tokens, hidden))
        self.down = nn.Linear(hidden, size, bias=False)
        self.up = nn.Linear(size, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)

    @property
    def num_positions(self) -> int:
        return len(self.target)

    def check(self, body: Body) -> None:
        body.require_front("a mixed prompt")

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        embeddings = body.embeddings(inputs)
        weights = self.attention(embeddings, inputs["attention_mask"])
        mixed = torch.einsum("bs,smh->bmh", weights, self._prompts().to(weights.dtype))
        return run_with_prompts(body, inputs, self.target + mixed, embeddings)

    def attention(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """a, (batch, sources + 1), the target last; each row sums to 1."""
        text = embeddings.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
        query = self.norm(self.up(silu(self.down(text))))
        keys = self._prompts().amax(1)
        return (query.to(keys.dtype) @ keys.T / self.temperature).softmax(-1)

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        if name == "target" and self.start == "source":
            return self.get_buffer("sources")[0].detach().to("cpu", value.dtype, copy=True)
        if name == "target":
            return drawn_prompt(value, "vocabulary", generator, vocabulary)
        return torch.ones_like(value) if name == "norm.weight" else drawn_map(value, generator)

    def _prompts(self) -> Tensor:
        return torch.cat([self.get_buffer("sources"), self.target.unsqueeze(0)])
